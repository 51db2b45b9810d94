"""``python -m fastpe bench``: its options, its table and its exit code."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from typing import Any, TextIO

from ..progress import steps
from .arguments import require_folder

FAILED = SLOWER = 1  # exit codes: fastpe failed or was wrong; --compare says that something is slower


def add_parser(commands: Any) -> Any:
    """Add the command to those of ``python -m fastpe``."""
    bench = commands.add_parser(
        "bench",
        help="measure fastpe, NumPy and torch on this machine",
        description="Measure fastpe beside NumPy, torch where it is installed, and a GPU where there is one: about two minutes, 2.5 GB.",
        epilog="Exit code: 1 where fastpe fails or is wrong, or --compare finds something slower by more than 10 % and the spreads.",
    )
    bench.add_argument("--quick", action="store_true", help="smaller arrays and fewer rounds: less than a minute")
    bench.add_argument(
        "--only", default="", metavar="TEXT", help="only lines with this in their name, such as embed or float32"
    )
    bench.add_argument("--threads", type=int, metavar="N", help="threads of fastpe and torch (default: fastpe's own choice)")
    bench.add_argument("--json", metavar="FILE", help="save the figures there; -: to stdout, and the table to stderr")
    bench.add_argument("--compare", metavar="FILE", help="a saved run to compare with")
    return bench


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; ImportError, ValueError and OSError say in one line what is wrong with the arguments."""
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr if arguments.json == "-" else out):
        return _run(arguments, out)


def _run(arguments: argparse.Namespace, out: TextIO) -> int:
    from ... import set_num_threads
    from .. import benchmark
    from ..benchmark.probes import settle_threads

    if arguments.threads is not None and arguments.threads < 1:
        raise ValueError(f"bench: --threads must be at least 1, got {arguments.threads}.")
    before = None if arguments.compare is None else benchmark.read(arguments.compare)
    if arguments.json not in (None, "-"):
        require_folder("bench", "--json", arguments.json)
    dtypes = ("float32", "bfloat16") if importlib.util.find_spec("ml_dtypes") else ("float32", "float16")
    every = benchmark.cases(arguments.quick, benchmark.devices(), dtypes)
    chosen = [case for case in every if arguments.only in str(case)]
    if not chosen:
        raise ValueError(f"bench: --only must be part of a line's name, such as {str(every[0])!r}, got {arguments.only!r}.")
    if arguments.threads is not None:
        set_num_threads(arguments.threads)
    threads = settle_threads()
    known = {**benchmark.machine(threads, "python -m fastpe bench" + " --quick" * arguments.quick), "busy_cores": _busy_cores()}
    results = []
    with steps(len(chosen), "measuring") as show:
        for case in chosen:
            show(str(case))
            results.append(benchmark.measure_line(case, threads, arguments.quick))
    print(f"{benchmark.describe(known)}\n{benchmark.EXPLANATION}\n\n{benchmark.table(results)}")
    for warning in benchmark.warnings(known, benchmark.noisy(results), len(results)):
        print(f"\nwarning: {warning}")
    if failures := benchmark.failed(results):
        print("\nfailed:", *failures, sep="\n  ")
    code = FAILED if any("fastpe" in result["failures"] for result in results) else 0
    if arguments.json == "-":
        out.write(benchmark.as_json(known, results))
    elif arguments.json is not None:
        benchmark.write(arguments.json, known, results)
        print(f"\nsaved {os.path.abspath(arguments.json)}")
    slower = 0 if before is None else _compare(before, known, results)
    return code or slower


def _busy_cores() -> float | None:
    from ..benchmark.spread import busy_cores
    from ..machine import is_small

    return None if is_small() else busy_cores()


def _compare(before: dict[str, Any], machine: dict[str, Any], results: list[dict[str, Any]]) -> int:
    from .. import benchmark

    lines, slower = benchmark.compare(before["results"], results)
    changed = [
        f"{what} {before['machine'].get(what)}" for what in ("cpu", "threads") if before["machine"].get(what) != machine[what]
    ]
    also = f" (another machine: {', '.join(changed)})" if changed else ""
    print(f"\nBeside the saved run{also}\n{lines}\n")
    print("\n".join(f"slower: {one}" for one in slower) or "Nothing is slower by more than 10 % and the spreads.")
    return SLOWER if slower else 0
