"""The options of ``make lab`` that ``--task stretch`` takes, and its run."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch

from ..budget import seconds
from ..files import write_json
from ..sources import LabError
from . import report
from .rules import FACTORS, RULES, pieces
from .run import Run, language

__all__ = ["run"]

OUT = "bench/results/lab/stretch"
TWO_CORES = 65.0  # 10^9 multiplications a second of two quiet cores, an EPYC's
REDUCED = ("none", "yarn", "self_extend")
SHORT = 1024  # "trained" length of the check, which is far below the true one: every rule must read well
MOST_NATS, LEAST_DIGITS = 4.0, 0.5  # of the check; the model has 2.5 to 3.5 nats and 0.9 there, and guesses 0.1


def run(chosen: argparse.Namespace) -> int:
    """Do the readings that were asked for, and write results.json."""
    began = time.monotonic()
    names, factors, limit = _names(chosen.encodings), _factors(chosen.lengths), None
    if chosen.budget is not None:
        limit = seconds(chosen.budget)
    if chosen.steps is not None:
        raise LabError("lab: --steps must not be given with --task stretch, which trains nothing.")
    torch.set_num_threads(chosen.processes)
    print("loading the model", flush=True)
    if chosen.reduced:
        return _reduced(chosen)
    readings = Run(language(), Path(chosen.out or f"{OUT}{chosen.seed}").resolve(), chosen.seed, factors)
    readings.claim()
    todo = pieces(names, factors)
    left = readings.do(todo, None if limit is None else limit - (time.monotonic() - began))
    for piece in left:
        print(f"left out, there was no time left: {piece}")
    results = readings.results()
    if not results["readings"]:
        least = math.ceil(min(map(readings.cost, todo)) / TWO_CORES / 60)
        raise LabError(f"lab: --budget must be about {least}m or more for one reading, got {chosen.budget}.")
    write_json(readings.out / "results.json", results)
    report.write(readings.out, results)
    report.say(results)
    print(f"\n{time.monotonic() - began:.0f} s; results.json, table.md and two pictures are in {readings.out}")
    return 0


def _reduced(chosen: argparse.Namespace) -> int:
    """Read far less than the trained length, where every rule must still read and find; return 1 where one does not."""
    readings = Run(language(), Path(chosen.out or f"{OUT}-reduced{chosen.seed}").resolve(), chosen.seed, (2,), SHORT)
    readings.claim()
    todo = pieces(list(REDUCED), (2,))
    readings.do(todo)
    results = readings.results()
    write_json(readings.out / "results.json", results)
    wrong = 0
    for name, entry in results["readings"].items():
        nats = sum(block["loss"] for block in entry["blocks"]) / len(entry["blocks"])
        digits = [right for answer in entry["answers"] for right in answer["right"]]
        share = sum(digits) / len(digits)
        holds = nats < MOST_NATS and share > LEAST_DIGITS
        wrong += not holds
        print(f"{'holds' if holds else 'FAILS'}: {name} reads ({nats:.2f} nats) and finds ({share:.2f} of the digits)")
    return 1 if wrong else 0


def _names(text: str) -> list[str]:
    names = list(RULES) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in RULES:
            raise LabError(f"lab: --encodings must be all or some of {', '.join(RULES)} with --task stretch, got {name!r}.")
    return [name for name in RULES if name in names]


def _factors(text: str | None) -> tuple[int, ...]:
    try:
        factors = FACTORS if text is None else tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        factors = ()
    if not factors or not set(factors) <= set(FACTORS):
        raise LabError(f"lab: --lengths must be some of {','.join(map(str, FACTORS))} with --task stretch, got {text!r}.")
    return factors
