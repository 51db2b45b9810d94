"""How many times faster than the alternatives: ``python -m bench.ratios [--quick] [--only TEXT] [--json FILE] [--check]``.

A figure of a noisy machine means little beside a figure of another minute, so rounds of all contenders interleave in one run, and their
medians are compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastpe._tools.benchmark import running
from fastpe._tools.benchmark.case import Case
from fastpe._tools.benchmark.probes import settle_threads
from fastpe._tools.machine import describe, duration, size, speedup

from . import registry
from .report import machine

TARGET_CASE = Case("add_encoding", (1, 131072, 1024), "float32")
TARGETS = {"share_of_roofline": 0.75, "numpy_cached": 1.15, "numpy_scratch_f64": 60.0}
COMPARED = ("numpy_cached", "torch_cached", "numpy_scratch_f64", "numpy_scratch_f32")

Result = dict[str, Any]


def measure(case: Case, threads: int, seconds: float, most: int) -> Result:
    """Time fastpe, its rivals and the roofline in interleaved rounds; RuntimeError where one fails."""
    work, entries = registry.workload(case), registry.entries(case)
    contenders = {name: entries[name].contender for name in ("fastpe", *COMPARED) if name in entries}
    contenders = {name: contender for name, contender in contenders.items() if not contender.missing()}
    result = running.measure(work, contenders, threads, seconds, most)
    if result["failures"]:
        raise RuntimeError(f"{case}: {result['failures']}")
    return {**result, "array_bytes": work.moved // 2}


def row(result: Result) -> str:
    """A line of the table."""
    cells = [size(tuple(result["shape"]), result["array_bytes"]), result["dtype"], duration(result["seconds"]["fastpe"])]
    cells += [f"{result['share_of_roofline']:.0%}", *(speedup(result["speedups"].get(name)) for name in COMPARED)]
    return _line(cells)


def _line(cells: Iterable[str]) -> str:
    widths = (-28, -8, 8, 8, *(len(name) for name in COMPARED))  # negative: aligned to the left
    return "  ".join(
        cell.ljust(-width) if width < 0 else cell.rjust(width) for cell, width in zip(cells, widths, strict=True)
    ).rstrip()


def missed(results: list[Result]) -> list[str]:
    """The targets that were not reached, in words."""
    wanted = list(TARGET_CASE.shape), TARGET_CASE.dtype
    target = next(result for result in results if (result["shape"], result["dtype"]) == wanted)
    reached = {"share_of_roofline": target["share_of_roofline"], **target["speedups"]}
    return [
        f"{TARGET_CASE.id}: {name} is {reached[name]:.2f}, target {least}"
        for name, least in TARGETS.items()
        if reached[name] < least
    ]


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        "python -m bench.ratios", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny arrays and few rounds: does it run?")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only cases with this in their name, e.g. 8x1024x512-float32"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the medians there")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    given = parser.parse_args(arguments)
    cases = [case for case in registry.suite("add_encoding", given.quick) if given.only in case.id]
    if not cases:
        parser.error(f"no case has {given.only!r} in its name")
    if given.check and TARGET_CASE not in cases:
        parser.error(f"--check needs {TARGET_CASE.id}")
    threads = settle_threads()
    known = machine(threads)
    print(describe(known))
    print("Speed-up of fastpe in place over each, and the share it has of the bandwidth of the fastest x += 1; medians.")
    print(_line(["x", "dtype", "fastpe", "roofline", *COMPARED]))
    results = []
    for case in cases:
        results.append(measure(case, threads, *((0.01, 5) if given.quick else (3.0, 201))))
        print(row(results[-1]), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps({"machine": known, "results": results}, indent=1) + "\n")
    failures = missed(results) if given.check else []
    for failure in failures:
        print(f"missed: {failure}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
