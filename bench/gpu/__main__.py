"""Whether fastpe is right and how fast it is on this machine's GPU: ``python -m bench.gpu`` from a clone's root.

Nothing is installed and nothing is downloaded. Each stage runs in a process of its own with a limit of time, so that a CUDA context that
is broken, or a call that hangs, spoils no other stage. Findings are JSON objects, one a line, in ``gpu.jsonl``; a short table ends the
output. ``python -m bench.gpu.report gpu.jsonl docs/performance.md`` writes the tables of the documentation.

The exit status is 0 if every check passed, 1 if one failed, and 3 if there is no GPU to check.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from . import records
from .summary import summary

ROOT = Path(__file__).resolve().parents[2]
PATHS = [ROOT, ROOT / "tests" / "helpers", ROOT / "tests" / "ptx"]
NO_GPU = 3
Record = dict[str, Any]


class Stage(NamedTuple):
    """A part of the check: ``function`` of ``module`` of this package."""

    name: str
    module: str
    function: str
    expected: int  # seconds
    limit: int
    simulated: bool = False  # whether it can run on the tests' simulated GPU


STAGES = (
    Stage("versions", "environment", "versions", 10, 60, True),
    Stage("kernels", "bits", "kernels", 25, 90, True),
    Stage("bits", "bits", "sweep", 45, 120, True),
    Stage("large", "large", "large", 30, 90),
    Stage("torch", "tensors", "tensors", 40, 120),
    Stage("host", "speed", "host", 20, 60),
    Stage("speed", "speed", "speed", 110, 180),
    Stage("pytest", "programs", "pytest", 90, 180),
    Stage("sanitizer", "programs", "sanitizer", 50, 120),
    Stage("ncu", "programs", "ncu", 40, 90),
)


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [stage.name for stage in STAGES]
    parser.add_argument("--only", type=lambda text: text.split(","), default=names, help=f"of {','.join(names)}")
    parser.add_argument("--budget", type=float, default=470.0, help="seconds for all stages; what does not fit is left out")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="where findings are written")
    parser.add_argument(
        "--simulate", action="store_true", help="tiny sizes on the tests' simulated GPU: shows that this program works"
    )
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # for compute-sanitizer
    parser.add_argument("--stage", choices=names, help=argparse.SUPPRESS)  # run by this program itself
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.only) - set(names))
    if unknown:
        parser.error(f"there is no stage {', '.join(unknown)}; there are {', '.join(names)}")
    return options


def problem() -> str | None:
    """Why there is no GPU to check."""
    try:
        from fastpe._backends import cuda
    except ImportError as error:
        return f"fastpe cannot be imported ({error})"
    return cuda.problem()


def run_stage(name: str, options: argparse.Namespace) -> None:
    """Run one stage in this process."""
    stage = next(stage for stage in STAGES if stage.name == name)
    sys.path[:0] = [str(path) for path in PATHS]
    records.begin(name)
    with records.checking("stage"):
        getattr(importlib.import_module(f"bench.gpu.{stage.module}"), stage.function)(options)


def in_process(stage: Stage, flags: list[str], limit: float) -> list[Record]:
    """What a stage finds in a process of its own; a process that ends otherwise than it should is a failure with what it said last."""
    path = os.pathsep.join([*map(str, PATHS), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "bench.gpu", "--stage", stage.name, *flags]
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        try:
            out, err = process.communicate(timeout=limit)
            ended = f"exit status {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            ended = f"stopped after {limit:.0f} s"
    found = [record for record in map(_record, out.splitlines()) if record is not None]
    if ended != "exit status 0" or not any(record["check"] == "stage" for record in found):
        seconds = round(time.perf_counter() - start, 1)
        end = err.strip().splitlines()[-6:]
        found.append(
            {"stage": stage.name, "check": "stage", "status": "fail", "error": ended, "seconds": seconds, "stderr": end}
        )
    return found


def _record(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None  # of some library
    return record if isinstance(record, dict) and "check" in record and record.get("status") in records.STATUSES else None


def run_all(options: argparse.Namespace, file: TextIO) -> list[Record]:
    """Run the chosen stages within the budget; what they find is written as soon as they end."""
    found: list[Record] = []
    start = time.perf_counter()
    flags = ["--simulate", "--tiny"] if options.simulate else []
    for stage in STAGES:
        if stage.name not in options.only or (options.simulate and not stage.simulated):
            continue
        left = options.budget - (time.perf_counter() - start)
        if left < stage.expected / 2:
            new = [{"stage": stage.name, "check": "stage", "status": "skip", "reason": f"{max(left, 0):.0f} s were left"}]
        else:
            new = in_process(stage, flags, left if options.simulate else min(stage.limit, left))
        found += new
        file.writelines(json.dumps(record) + "\n" for record in new)
        file.flush()
    return found


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    options = options_of(arguments)
    if options.stage:
        run_stage(options.stage, options)
        return 0
    reason = None if options.simulate else problem()
    if reason is not None:
        print(f"bench.gpu: there is no GPU to check: {reason}.", file=sys.stderr)
        return NO_GPU
    with tempfile.TemporaryDirectory(prefix="fastpe-gpu-") as folder, options.out.open("w") as file:
        os.environ.setdefault("FASTPE_CACHE_DIR", folder)  # kernels are compiled as on the first day
        found = run_all(options, file)
    print(summary(found))
    print(f"written to {options.out}")
    return 1 if any(record["status"] == "fail" for record in found) else 0


if __name__ == "__main__":
    sys.exit(main())
