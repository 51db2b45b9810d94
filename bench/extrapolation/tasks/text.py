"""Text generation: a character language model of what every Python ships, its help topics and the library's docstrings."""

from __future__ import annotations

import ast
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from ..encodings import FINE_TUNED
from ..files import write_arrays
from . import FACTORS, Batch, Task

if TYPE_CHECKING:
    from ..model import Decoder

__all__ = ["Text"]

Codes = npt.NDArray[np.uint8]

FIRST, NEWLINE = 32, 95  # characters are ASCII from the blank on, and a new line
DOCSTRING = 200  # characters that a docstring has at least
HELD_OUT = 0.15  # of the topics, their end
READ = 64  # characters that are judged at the end of each window: the same ones at every length


class Text(Task):
    """Nats per character on the last 64 characters of a window, the same characters whatever goes before them."""

    title = "Text generation"
    metrics: ClassVar[dict[str, str]] = {"nats per character": "lower"}
    sampled = (1, FINE_TUNED)
    steps = 1200
    tokens = outputs = NEWLINE + 1

    @classmethod
    def prepare(cls, folder: Path) -> None:
        path = _file(folder)
        if not path.exists():
            text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
            end = int(len(text) * (1 - HELD_OUT))
            training = "\n\n".join([text[:end], *_docstrings(Path(sysconfig.get_path("stdlib")))])
            write_arrays(path, training=encode(training), held_out=encode(text[end:]))

    def __init__(self, folder: Path, length: int) -> None:
        with np.load(_file(folder)) as arrays:
            self.training, self.held_out = (
                torch.from_numpy(arrays[name].astype(np.int64)) for name in ("training", "held_out")
            )
        self.length = length

    def batch(self, rng: np.random.Generator, count: int, factor: int = 1) -> Batch:
        length = factor * self.length
        starts = torch.from_numpy(rng.integers(0, len(self.training) - length, count))
        windows = self.training[starts[:, None] + torch.arange(length + 1)]
        return Batch(windows[:, :-1], windows[:, 1:])

    def evaluate(self, model: Decoder, factor: int, count: int) -> dict[str, float]:
        length, total = factor * self.length, 0.0
        ends = np.linspace(FACTORS[-1] * self.length, len(self.held_out) - 1, count).astype(np.int64)
        for some in np.array_split(ends, -(-count * length // 8192)):
            windows = self.held_out[torch.from_numpy(some)[:, None] + torch.arange(-length, 1)]
            scores = model(windows[:, :-1])[:, -READ:]
            total += torch.nn.functional.cross_entropy(
                scores.flatten(0, 1), windows[:, -READ:].flatten(), reduction="sum"
            ).item()
        return {"nats per character": total / (count * READ)}

    def sample(self, model: Decoder, factor: int) -> str:
        """The end of what was read, half a short text or all but the last of a long one, and the 64 characters that the model writes."""
        length = factor * self.length
        given = length - READ if factor > 1 else length // 2
        end = len(self.held_out) // 2  # the same index whatever the length
        output = model.write(self.held_out[None, end - given : end], given + READ, temperature=0.5)
        return "\n> ".join(" ".join(decode(some).split()) for some in (self.held_out[end - READ // 2 : end], output[0, given:]))


def encode(text: str) -> Codes:
    """Characters as numbers; what is not ASCII becomes a question mark, and other white space a blank."""
    codes = np.frombuffer(text.replace("\n", "\x7f").encode("ascii", "replace"), np.uint8)
    return np.maximum(codes, FIRST) - FIRST


def decode(codes: torch.Tensor) -> str:
    """The characters of such numbers."""
    return "".join("\n" if code == NEWLINE else chr(code + FIRST) for code in codes.tolist())


def _file(folder: Path) -> Path:
    return folder / f"python-{platform.python_version()}.npz"  # the texts are of this very Python


def _docstrings(library: Path) -> Iterator[str]:
    for path in sorted(library.rglob("*.py")):
        if {"site-packages", "dist-packages", "test", "tests", "idle_test"}.isdisjoint(path.relative_to(library).parts):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of old escapes in the library's strings
                    tree = ast.parse(path.read_text("utf-8"))
            except (SyntaxError, UnicodeDecodeError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    docstring = ast.get_docstring(node)
                    if docstring is not None and len(docstring) > DOCSTRING:
                        yield docstring
