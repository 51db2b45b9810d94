"""What a call costs: where the microseconds of one row go, and the first call of a process."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastpe
from fastpe._arrays.dtypes import ELEMENT_TYPES
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


FIRST_CALL = """
import pathlib, sys, time
import numpy as np
start = time.process_time()
import fastpe
from fastpe._backends.host import translations
archive, dtype, call = sys.argv[1:]
translations.ARCHIVE = pathlib.Path(archive)
if dtype == "bfloat16":
    import ml_dtypes
x = np.zeros((2, 3, 8, 64), dtype)
exec(call)
print(time.process_time() - start)
"""
FIRST_CALLS = {
    "add_encoding": "fastpe.add_encoding(x[0])",
    "add_encoding, out": "fastpe.add_encoding(x[0], out=x[1])",
    "encode": "fastpe.encode(8, 64, dtype=dtype)",
    "apply_rotary": "fastpe.apply_rotary(x, x.copy())",
    "embed": "fastpe.embed(range(8), x[0, 0])",
    "embed, sinusoidal": "fastpe.embed(range(8), x[0, 0], fastpe.Sinusoidal())",
    "add_bias": "fastpe.add_bias(x, fastpe.ALiBi(3), causal=True)",
}


def start(measuring: Measuring) -> Iterator[Claim]:
    """``import fastpe`` and a first call, over ``import numpy``: seconds of the processor, of all threads; the least of three processes."""
    quick = measuring.shrink > 1  # one call of one element type, and each process once
    dtypes: list[str] = ["bfloat16"] if quick else [*ELEMENT_TYPES]
    calls = {"add_encoding": FIRST_CALLS["add_encoding"]} if quick else FIRST_CALLS
    kernels = [*dtypes, *(["add_sinusoidal"] if quick else [])]

    def least(archive: Path, dtype: str, call: str, folders: list[Path]) -> float:
        command = [sys.executable, "-c", FIRST_CALL, str(archive), dtype, call]
        runs = []
        for folder in folders:
            bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder.parent / "bytecode")}
            environment = {**os.environ, **bytecode, "FASTPE_CACHE_DIR": str(folder)}
            runs.append(float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout))
        return min(runs)

    with tempfile.TemporaryDirectory() as parent:
        archive, numbers = Path(parent, "translations.zip"), itertools.count()
        subprocess.run([sys.executable, "-m", "fastpe._tools.translate", archive, *kernels], check=True)

        def new() -> list[Path]:
            folders = [Path(parent, str(next(numbers))) for _ in range(1 if quick else 3)]
            for folder in folders:
                folder.mkdir(mode=0o700)
            return folders

        for (name, call), dtype in itertools.product(calls.items(), dtypes):
            folders = new()
            yield at_most(f"{name}, {dtype}: kernel of the wheel, s", least(archive, dtype, call, folders), 1.5)
            again = folders[:1] * (1 if quick else 5)
            yield at_most(f"{name}, {dtype}: from the disk cache, s", least(archive, dtype, call, again), 0.1)
        add = FIRST_CALLS["add_encoding"]
        yield at_most("add_encoding, float32: translated by Numba, s", least(Path(parent, "none"), "float32", add, new()), 5.0)
