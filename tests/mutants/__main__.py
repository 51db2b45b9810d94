"""Mutate fastpe and see whether its tests notice: ``make mutants OPTIONS="--of fastpe/_core --sample 200 --seed 1"``.

Nothing here writes into the tree: mutants live in a copy. ``--record`` first finds out which tests run which lines.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import runs
from coverage_map import Map, Test
from sampling import Mutant, all_mutants, sample

KEPT = runs.ROOT / ".cache" / "mutants"
EXPLAINED = Path(__file__).with_name("explained.json")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--record", metavar="PATTERN", help='record files of tests that are not yet, such as "tests/core/*"')
    parser.add_argument("--of", action="append", default=[], metavar="PATH", help="a file or folder to mutate")
    parser.add_argument("--sample", type=int, default=60, help="how many mutants at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants whose name contains a text")
    parser.add_argument(
        "--seconds", type=float, default=45, help="of tests for each mutant, in the core and again in the others"
    )
    parser.add_argument("--minutes", type=float, default=600, help="stop after; what is missing runs next time")
    parser.add_argument("--again", action="store_true", help="only run survivors of before that are not explained")
    parser.add_argument("--report", action="store_true", help="only print what all earlier runs found")
    options = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    if options.record:
        record(options.record, options.minutes)
    for place in options.of:
        mutants = [one for one in all_mutants(runs.ROOT, place) if options.only in one.name]
        chosen = sample(mutants, options.sample, options.seed)
        if options.again or options.report:  # of all that ran
            known = results()
            chosen = [one for one in mutants if one.name in known]
        if not options.report:
            run(chosen, options)
        report(place, chosen)
    return 0


def record(pattern: str, minutes: float) -> None:
    """Run each file of tests that has no record yet."""
    runs.preload()
    folder = KEPT / "map"
    folder.mkdir(exist_ok=True)
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as temporary:
        place, kernels = runs.copy(Path(temporary) / "copy"), runs.copy_kernels(Path(temporary) / "kernels")
        for file in runs.files_of_tests(pattern):
            path = folder / f"{file.replace('/', '-')}.json"
            if not path.exists() and time.monotonic() < end:
                start = time.monotonic()
                ended = runs.record(place, kernels, file, path)
                failed = json.loads(path.read_text())["failed"] if path.exists() else []
                print(f"{file}: {ended}, {time.monotonic() - start:.0f} s, not passed: {len(failed)}", flush=True)


def run(chosen: list[Mutant], options: argparse.Namespace) -> None:
    """Run the mutants that have no result yet; each result is a line of a file."""
    known = results()
    waiting = [one for one in chosen if one.name not in known]
    if options.again:
        survivors = {name for name, one in known.items() if not one["failed"]} - set(explanations())
        waiting = [one for one in chosen if one.name in survivors]
    if not waiting:
        return
    runs.preload()
    tests = Map(KEPT / "map")
    if not tests.tests:
        sys.exit('nothing is known of the tests: run with --record "*" first')
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as temporary, (KEPT / "results.jsonl").open("a") as file:
        copy, kernels = runs.copy(Path(temporary) / "copy"), runs.copy_kernels(Path(temporary) / "kernels")
        for mutant in waiting:
            if time.monotonic() > end:
                break
            result = {"name": mutant.name, **try_mutant(copy, kernels, tests, mutant, options.seconds)}
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(f"{result['seconds']:6.1f} s {'killed  ' if result['failed'] else 'SURVIVED'} {mutant.name}", flush=True)


def try_mutant(copy: Path, kernels: Path, tests: Map, mutant: Mutant, seconds: float) -> dict[str, Any]:
    """Whether tests notice a mutant: first those of the core, then the others."""
    path = copy / mutant.file
    source = path.read_bytes()
    mutated = mutant.mutation.apply(source)
    chosen = [test for test in tests.tests_of(mutant.file, mutant.mutation) if test.node not in _unsound]
    result: dict[str, Any] = {"failed": "", "ran": 0, "seconds": 0.0}
    for is_near in (True, False):
        group = within([test for test in chosen if test.is_near is is_near], seconds)
        while group and not result["failed"]:
            path.write_bytes(mutated)
            try:
                found = runs.run(copy, kernels, group, seconds)
            finally:
                path.write_bytes(source)
            result = {key: found[key] + result[key] for key in result}
            if not result["failed"] or is_sound(result["failed"], copy, kernels, group, seconds):
                break
            group = [test for test in group if test.node != result["failed"]]
            result["failed"] = ""
    return result


_sound: set[str] = set()
_unsound: set[str] = set()


def is_sound(failed: str, copy: Path, kernels: Path, tests: list[Test], seconds: float) -> bool:
    """Whether a test that failed passes without the mutant, after the same tests. What is no test ended the process."""
    names = [test.node for test in tests]
    if failed not in names or failed in _sound:
        return True
    found = runs.run(copy, kernels, tests[: names.index(failed) + 1], seconds)
    (_unsound if found["failed"] else _sound).add(failed)
    if found["failed"]:
        print(f"fails without a mutant too: {failed}", flush=True)
    return not found["failed"]


def within(tests: list[Test], seconds: float) -> list[Test]:
    """The first tests that take no longer together; at least one."""
    chosen: list[Test] = []
    for test in tests:
        seconds -= test.seconds
        if chosen and seconds < 0:
            break
        chosen.append(test)
    return chosen


def results() -> dict[str, dict[str, Any]]:
    """The last result of each mutant."""
    path = KEPT / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {found["name"]: found for found in map(json.loads, lines)}


def explanations() -> dict[str, str]:
    """Why no test can notice a mutant, by its name."""
    found: dict[str, str] = json.loads(EXPLAINED.read_text()) if EXPLAINED.exists() else {}
    return found


def report(place: str, chosen: list[Mutant]) -> None:
    """Every survivor, and a line of figures."""
    known = results()
    explained = explanations()
    ran = [one for one in chosen if one.name in known]
    survived = [one for one in ran if not known[one.name]["failed"]]
    for one in survived:
        print(f"{'explained' if one.name in explained else 'UNEXPLAINED'} line {one.line}: {one.name}")
    open_ones = [one for one in survived if one.name not in explained]
    print(
        f"{place}: {len(ran)} run, {len(ran) - len(survived)} killed, {len(survived) - len(open_ones)} explained, "
        f"{len(open_ones)} not; killed or explained: {1 - len(open_ones) / max(1, len(ran)):.1%}"
    )


if __name__ == "__main__":
    sys.exit(main())
