"""What a call costs: where the microseconds of one row go, and the first call of a process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastpe
from fastpe._tools.benchmark.expressions import random_values

from .table import Call, Claim, Measuring, at_most


def profile(measuring: Measuring) -> Iterator[Claim]:
    """Where the microseconds of one row go: what a repeated call is made of."""
    x, narrow = random_values((1, 1, 1024), "float32"), random_values((1, 1, 2), "float32")

    def empty(x: Any, encoding: Any = None, *, offset: Any = 0, **others: Any) -> Any:
        return x

    steps: dict[str, Call] = {
        "a Python function of the same arguments": lambda: empty(x, offset=4095),
        "whether x may be written": lambda: x.flags.writeable,
        "x's address": lambda: x.ctypes.data,
        "the whole call, of two columns": lambda: fastpe.add_encoding(narrow, offset=4095),
        "the whole call": lambda: fastpe.add_encoding(x, offset=4095),
    }
    nothing: Call = lambda: None  # noqa: E731
    medians = measuring.medians({"": nothing, **steps})
    for name in steps:
        yield at_most(f"float32 (1, 1, 1024): {name}, us", (medians[name] - medians[""]) * 1e6, None)


FIRST_CALL = (
    "import numpy as np, time; t = time.perf_counter(); import fastpe; fastpe.add_encoding(np.zeros((1, 8, 64), np.float32));"
    "print(time.perf_counter() - t)"
)


def start(measuring: Measuring) -> Iterator[Claim]:
    """``import fastpe`` and a first call, over ``import numpy``."""

    def once(folder: Path) -> float:
        environment = {**os.environ, "FASTPE_CACHE_DIR": str(folder)}
        command = [sys.executable, "-c", FIRST_CALL]
        return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    with tempfile.TemporaryDirectory() as parent:
        folders = [Path(parent, str(number)) for number in range(3)]
        for folder in folders:
            folder.mkdir(mode=0o700)
        compiled = sorted(once(folder) for folder in folders)[1]
        loaded = sorted(once(folders[0]) for _ in range(5))[2]
    yield at_most("first call, kernel compiled, s", compiled, 3.0)
    yield at_most("first call, kernel from the disk cache, s", loaded, 1.0)
