"""Random examples of every verb, from fresh seeds for so many minutes: ``make fuzz MINUTES=15 SEED=1``.

A failure is shown as Hypothesis found and shrank it, with its choices, and ends the campaign.
"""

from __future__ import annotations

import argparse
import importlib
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import hypothesis
import judging
from drawing import Draw
from guarded import Arena
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

VERBS = ("add_encoding", "apply_rotary", "rerotate", "encode", "embed", "add_bias", "resample")
ARENA = Arena()
SETTINGS = {
    "deadline": None,
    "database": None,
    "phases": (Phase.generate, Phase.shrink),
    "suppress_health_check": list(HealthCheck),
}


def fuzzer(verb: str) -> ModuleType:
    return importlib.import_module(f"fuzz_{verb}")


def example(verb: str, data: st.DataObject) -> None:
    """One example of a verb."""
    try:
        fuzzer(verb).check(Draw(data, ARENA))
        judging.count(verb)
    finally:
        ARENA.release()


def search(verb: str, examples: int, seed: int | None) -> Callable[[], None]:
    """A function that checks so many examples, from a seed or always the same ones."""

    def check(data: st.DataObject) -> None:
        example(verb, data)

    check.__name__ = check.__qualname__ = f"check_{verb}"
    test = hypothesis.given(data=st.data())(check)
    test = settings(max_examples=examples, derandomize=seed is None, print_blob=False, **SETTINGS)(test)
    return test if seed is None else hypothesis.seed(seed)(test)


def report(began: float) -> str:
    lines = [f"{time.monotonic() - began:.0f} s; examples, refusals, elements compared:"]
    for verb in VERBS:
        numbers = judging.EXAMPLES[verb], judging.REFUSALS[verb], judging.ELEMENTS[verb]
        lines.append("  {:<14} {:>9,} {:>8,} {:>15,}".format(verb, *numbers))
    lines.append(f"  {'all':<14} {judging.EXAMPLES.total():>9,} {judging.REFUSALS.total():>8,} {judging.ELEMENTS.total():>15,}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=None, help="the first one; a random one by default")
    parser.add_argument("--examples", type=int, default=200, help="of a verb for each seed")
    parser.add_argument("--verbs", nargs="*", default=VERBS, choices=VERBS)
    options = parser.parse_args()
    began = shown = time.monotonic()
    seed = secrets.randbelow(10**9) if options.seed is None else options.seed
    while time.monotonic() - began < 60 * options.minutes:
        for verb in options.verbs:
            try:
                search(verb, options.examples, seed)()
            except BaseException:
                print(report(began), f"\n{verb} failed with seed {seed}; to repeat it: make fuzz SEED={seed}", flush=True)
                raise
        seed += 1
        if time.monotonic() - shown > 30:
            shown = time.monotonic()
            print(report(began), f"\n  next seed {seed}", flush=True)
    print(report(began), flush=True)
    return 0


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    os.environ.setdefault("FASTPE_CACHE_DIR", str(root / ".cache"))
    sys.exit(main())
