"""Bytes and instructions an element of the CUDA kernels, counted in the PTX that NVRTC emits for sm_90.

``PYTHONPATH=tests/helpers:tests/ptx python -m bench.cuda_counts``; no GPU is needed: the tests' interpreter executes the PTX and counts.
Work is split as for large arrays: a thread takes every head of its pairs, or every sequence of its columns. Registers and spills are
ptxas's. The counts say nothing about speed.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ptx
import simulated_cupy
from cases import DTYPES, random

import fastpe
from fastpe._backends import cuda

ARCHITECTURE = "90"
SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}


class Count(NamedTuple):
    """What one launch did, for each element of x."""

    kernel: str
    read: float
    written: float
    table: float
    instructions: float
    registers: int
    spilled: int


def _bytes(executed: Counter[str], operation: str) -> tuple[int, int]:
    """Bytes of loads or stores through x's addresses, and of those of tables, which are known to be global."""
    nbytes = [0, 0]
    for mnemonic, count in executed.items():
        match = re.fullmatch(rf"{operation}(\.global)?(?:\.nc)?(?:\.v(\d))?\.[ubfs](\d+)", mnemonic)
        if match:
            nbytes[match[1] is not None] += count * int(match[2] or 1) * SIZES[match[3]]
    return nbytes[0], nbytes[1]


def count(name: str, call: Any, elements: int, options: tuple[str, ...] = ()) -> Count:
    """Run a call and count its launch of a kernel file."""
    launches: list[tuple[str, Counter[str]]] = []
    launch = ptx.Kernel.launch

    def counting(kernel: ptx.Kernel, *arguments: Any, **options: Any) -> Counter[str]:
        executed = launch(kernel, *arguments, **options)
        launches.append((kernel.name, executed))
        return executed

    ptx.Kernel.launch = counting  # type: ignore[method-assign]
    try:
        call()
    finally:
        ptx.Kernel.launch = launch  # type: ignore[method-assign]
    ((entry, executed),) = launches
    read, table = _bytes(executed, "ld")
    written, _ = _bytes(executed, "st")
    _, log = cuda.compile_source(name, f"sm_{ARCHITECTURE}", "--ptxas-options=-v", *options)
    about = log[log.index(f"'{entry}'") :]
    registers, spilled = (
        int(re.search(pattern, about)[1]) for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores")
    )  # type: ignore[index]
    total = sum(executed.values())
    return Count(entry, read / elements, written / elements, table / elements, total / elements, registers, spilled)


def counts(dtypes: tuple[str, ...] = tuple(DTYPES), rows: int = 16) -> list[Count]:
    """Both pair layouts of q with 32 heads and k with 8; both column layouts of 32 sequences and of one; embedding of 32 sequences."""
    results = []
    blocks, cuda.launch.BLOCKS_PER_MULTIPROCESSOR = cuda.launch.BLOCKS_PER_MULTIPROCESSOR, 0
    try:
        with tempfile.TemporaryDirectory() as folder, simulated_cupy.installed(Path(folder), [ARCHITECTURE]):
            for dtype in dtypes:
                for interleaved in (False, True):
                    q, k = (simulated_cupy.view_on_device(random((1, heads, rows, 128), dtype)) for heads in (32, 8))
                    encoding = fastpe.Rotary(interleaved=interleaved)
                    call = lambda q=q, k=k, e=encoding: fastpe.apply_rotary(q, k, e)  # noqa: E731
                    results.append(count("rotate", call, q.size + k.size))
                for layout in ("interleaved", "concatenated"):
                    for batch in (32, 1):
                        x = simulated_cupy.view_on_device(random((batch, rows, 256), dtype))
                        encoding = fastpe.Sinusoidal(layout=layout)
                        call = lambda x=x, e=encoding: fastpe.add_encoding(x, e)  # noqa: E731
                        one = count("add_sinusoidal", call, x.size)
                        results.append(one._replace(kernel=f"{one.kernel}, batch {batch}"))
                table = simulated_cupy.view_on_device(random((64, 256), dtype))
                ids = simulated_cupy.view_on_device(np.random.default_rng(0).integers(0, 64, (32, rows)))
                for encoding, adds in ((None, False), (fastpe.Sinusoidal(), True)):
                    options = cuda.gather_sum_options(dtype, None, None, dtype, adds)
                    call = lambda i=ids, t=table, e=encoding: fastpe.embed(i, t, e)  # noqa: E731
                    one = count("embed", call, ids.size * 256, options)
                    results.append(one._replace(kernel=f"{one.kernel}, {dtype}, {'sinusoidal' if adds else 'no encoding'}"))
    finally:
        cuda.launch.BLOCKS_PER_MULTIPROCESSOR = blocks
    return results


def main() -> None:
    """Print the table of ``docs/performance.md``."""
    print("| kernel | bytes read | bytes written | bytes of tables | instructions | registers | spilled |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for one in sorted(counts()):
        figures = f"{one.read:g} | {one.written:g} | {one.table:.2f} | {one.instructions:.1f} | {one.registers} | {one.spilled}"
        name, _, more = one.kernel.partition(", ")
        print(f"| `{name}`{', ' if more else ''}{more} | {figures} |")


if __name__ == "__main__":
    main()
