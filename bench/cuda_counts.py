"""Bytes and instructions an element of the CUDA kernels, counted in the PTX that NVRTC emits for several architectures.

``PYTHONPATH=tests/helpers:tests/ptx python -m bench.cuda_counts``; no GPU is needed: the tests' interpreter executes the PTX and counts.
Work is split as for large arrays, where a thread takes every head of its pairs, or every sequence of its columns; as for a prefill of 2048
rows of 32 heads on 132 multiprocessors; and as for a step of decoding. Registers and spills are ptxas's, the most of all architectures.
The counts say nothing about speed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ptx
import simulated_cupy
from cases import DTYPES, random
from ptx_memory import Memory

import fastpe
from fastpe._backends import cuda

ARCHITECTURES = "75", "90", "120"
SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}
SEQUENCES = 8  # one behind the other, where rows restart
PREFILL_ROWS = 62  # on the simulated four multiprocessors what 2048 are on 132


class Case(NamedTuple):
    """A call whose launch of a kernel file is counted."""

    kernel: str
    about: str
    call: Callable[[], Any]
    arrays: tuple[Any, ...]  # whose bytes are not those of tables
    elements: int
    multiprocessors: int = simulated_cupy.MULTIPROCESSORS  # among which the work is divided
    options: tuple[str, ...] = ()


class Count(NamedTuple):
    """What one launch did, for each element of x; instructions and bytes of tables by architecture."""

    kernel: str
    read: float
    written: float
    table: float
    instructions: dict[str, float]
    registers: int
    spilled: int


def _bytes(executed: Counter[str], operation: str) -> int:
    """Bytes of loads or stores in global memory."""
    nbytes = 0
    for mnemonic, count in executed.items():
        match = re.fullmatch(rf"{operation}(?:\.global)?(?:\.nc)?(?:\.v(\d))?\.[ubfs](\d+)", mnemonic)
        if match:
            nbytes += count * int(match[1] or 1) * SIZES[match[2]]
    return nbytes


@contextlib.contextmanager
def _observing(arrays: tuple[Any, ...]) -> Iterator[tuple[list[tuple[str, Counter[str]]], list[int]]]:
    """The launches meanwhile, and the bytes that they read of arrays."""
    launches: list[tuple[str, Counter[str]]] = []
    read: list[int] = []
    launch, load = ptx.Kernel.launch, Memory.load
    places = [(array._host.ctypes.data, array._host.ctypes.data + array._host.nbytes) for array in arrays]

    def counting(kernel: ptx.Kernel, *arguments: Any, **options: Any) -> Counter[str]:
        executed = launch(kernel, *arguments, **options)
        launches.append((kernel.name, executed))
        return executed

    def observing(
        memory: Memory, address: np.ndarray, dtype: np.dtype, count: int, *more: Any, **options: Any
    ) -> list[np.ndarray]:
        lanes = sum(int(((address >= first) & (address < end)).sum()) for first, end in places)
        read.append(lanes * dtype.itemsize * count)
        return load(memory, address, dtype, count, *more, **options)

    ptx.Kernel.launch, Memory.load = counting, observing  # type: ignore[method-assign, assignment]
    try:
        yield launches, read
    finally:
        ptx.Kernel.launch, Memory.load = launch, load  # type: ignore[method-assign]


def count(case: Case, architecture: str) -> Count:
    """Run a call on the simulated GPU and count its launch of a kernel file."""
    usual, cuda.launch._multiprocessors = cuda.launch._multiprocessors, lambda device: case.multiprocessors
    try:
        with _observing(case.arrays) as (launches, reads):
            case.call()
    finally:
        cuda.launch._multiprocessors = usual
    ((entry, executed),) = [one for one in launches if one[0].startswith(case.kernel)]
    _, log = cuda.compile_source(case.kernel, f"sm_{architecture}", "--ptxas-options=-v", *case.options)
    about = log[log.index(f"'{entry}'") :]
    registers, spilled = (
        int(re.search(pattern, about)[1]) for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores")
    )  # type: ignore[index]
    read, written = sum(reads), _bytes(executed, "st")
    table, total = _bytes(executed, "ld") - read, {architecture: sum(executed.values()) / case.elements}
    name = f"{entry}, {case.about}" if case.about else entry
    return Count(name, read / case.elements, written / case.elements, table / case.elements, total, registers, spilled)


def cases(dtype: str, rows: int) -> Iterator[Case]:
    """Rotations of q with 32 heads and k with 8, sums with 32 sequences and with one, biases of 8 heads, embeddings of 32 sequences."""
    device = simulated_cupy.view_on_device
    rotations = [("", 1, rows, 0), ("prefill", 1, PREFILL_ROWS, 4), ("decode", 32, 1, 132)]
    for interleaved in (False, True):
        for about, batch, length, multiprocessors in rotations[: 1 if interleaved else 3]:
            q, k = (device(random((batch, heads, length, 128), dtype)) for heads in (32, 8))
            encoding = fastpe.Rotary(interleaved=interleaved)
            call = lambda q=q, k=k, e=encoding: fastpe.apply_rotary(q, k, e)  # noqa: E731
            yield Case("rotate", about, call, (q, k), q.size + k.size, multiprocessors)
    for layout in ("interleaved", "concatenated"):
        for batch in (32, 1):
            x = device(random((batch, rows, 256), dtype))
            adds = fastpe.Sinusoidal(layout=layout)
            call = lambda x=x, e=adds: fastpe.add_encoding(x, e)  # noqa: E731
            yield Case("add_sinusoidal", f"batch {batch}", call, (x,), x.size, 0)
    cuts = device(np.linspace(0, PREFILL_ROWS, SEQUENCES + 1).astype(np.int32))
    q, k = (device(random((1, heads, PREFILL_ROWS, 128), dtype)) for heads in (32, 8))
    x = device(random((1, PREFILL_ROWS, 256), dtype))
    for about, given, options in (
        ("cu_seqlens", {"cu_seqlens": cuts}, ()),
        ("mask", {"mask": device(np.ones((1, PREFILL_ROWS), bool))}, cuda.launch.COUNTED),
    ):
        call = lambda given=given: fastpe.apply_rotary(q, k, **given)  # noqa: E731
        yield Case("rotate", about, call, (q, k), q.size + k.size, 4, options)
        call = lambda given=given: fastpe.add_encoding(x, **given)  # noqa: E731
        yield Case("add_sinusoidal", about, call, (x,), x.size, 0, options)
    scores, keys = device(random((1, 8, rows, 256), dtype)), device(np.arange(256))
    for about, given in (
        ("", {}),
        ("causal", {"q_offset": 256 - rows, "causal": True}),
        ("k_positions", {"k_positions": keys}),
    ):
        call = lambda x=scores, given=given: fastpe.add_bias(x, fastpe.ALiBi(8), **given)  # noqa: E731
        yield Case("add_toeplitz", about, call, (scores,), scores.size)
    table, ids = device(random((64, 256), dtype)), device(np.random.default_rng(0).integers(0, 64, (32, rows)))
    for encoding in (None, fastpe.Sinusoidal()):
        options = cuda.gather_sum_options(dtype, None, None, dtype, encoding is not None)
        call = lambda i=ids, t=table, e=encoding: fastpe.embed(i, t, e)  # noqa: E731
        about = f"{dtype}, {'no encoding' if encoding is None else 'sinusoidal'}"
        yield Case("embed", about, call, (ids, table), ids.size * 256, 0, options)


def counts(
    dtypes: tuple[str, ...] = tuple(DTYPES), rows: int = 16, architectures: tuple[str, ...] = ARCHITECTURES
) -> list[Count]:
    """The counts of every case."""
    found: dict[str, Count] = {}
    for architecture in architectures:
        with tempfile.TemporaryDirectory() as folder, simulated_cupy.installed(Path(folder), [architecture]):
            for case in (case for dtype in dtypes for case in cases(dtype, rows)):
                one = count(case, architecture)
                last = found.get(one.kernel, one)
                registers, spilled = max(last.registers, one.registers), max(last.spilled, one.spilled)
                instructions = last.instructions | one.instructions
                found[one.kernel] = one._replace(instructions=instructions, registers=registers, spilled=spilled)
    return list(found.values())


def row(one: Count, before: Count | None) -> str:
    """A line of the table; what is not as it was before is shown beside it."""
    old = before or one
    changes = [(old.table, one.table, ".2f")]
    changes += [(old.instructions[architecture], one.instructions[architecture], ".1f") for architecture in ARCHITECTURES]
    changes += [(old.registers, one.registers, "d"), (old.spilled, one.spilled, "d")]
    cells = [(format(was, style), format(now, style)) for was, now, style in changes]
    name, _, more = one.kernel.partition(", ")
    figures = " | ".join(now if was == now else f"{was} → {now}" for was, now in cells)
    return f"| `{name}`{', ' if more else ''}{more} | {one.read:g} | {one.written:g} | {figures} |"


def main() -> None:
    """Print the table of ``docs/performance.md``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the counts to this file")
    parser.add_argument("--before", type=Path, help="such a file of another tree, whose counts are shown beside")
    options = parser.parse_args()
    found = sorted(counts())
    if options.json:
        options.json.write_text(json.dumps(found))
    others = [Count(*one) for one in json.loads(options.before.read_text())] if options.before else []
    before = {one.kernel: one for one in others}
    heads = " | ".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
    print(f"| kernel | bytes read | bytes written | bytes of tables | {heads} | registers | spilled |")
    print("|---|--:|--:|--:|" + "--:|" * len(ARCHITECTURES) + "--:|--:|")
    for one in found:
        print(row(one, before.get(one.kernel)))


if __name__ == "__main__":
    main()
