"""Claims of Dask: chunks of arrays in memory, encoded into an array in memory, against ``map_blocks`` of an addition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastpe

from .table import Call, Claim, Measuring, at_least, milliseconds


def dask(measuring: Measuring) -> Iterator[Claim]:
    """Dask's threads: ``add_encoding`` over ``da.map_blocks(np.add, x, table)``, with one thread of fastpe a chunk, and with all."""
    for shape, chunk in (((1, 65536, 1024), 4096), ((16, 4096, 1024), 1024)):
        batch, rows = shape[0], max(64, shape[1] // measuring.shrink)
        yield from _of(measuring, (batch, rows, shape[2]), max(16, chunk // measuring.shrink))


def _of(measuring: Measuring, shape: tuple[int, ...], chunk: int) -> Iterator[Claim]:
    import dask.array as da

    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    x = da.from_array(values, chunks=(1, chunk, shape[2]))
    table = da.from_array(fastpe.encode(range(shape[1]), shape[2])[None], chunks=(1, chunk, shape[2]))
    lazy: dict[str, Callable[[], Any]] = {
        "fastpe": lambda: fastpe.add_encoding(x),
        "fastpe, one thread": lambda: fastpe.add_encoding(x),
        "x + table": lambda: da.map_blocks(np.add, x, table),
    }
    target = np.empty(shape, np.float32)

    def call(name: str) -> Call:
        def step() -> None:
            fastpe.set_num_threads(1 if name.endswith("one thread") else measuring.threads)
            da.store(lazy[name](), target, lock=False, scheduler="threads")

        return step

    calls, before = {name: call(name) for name in lazy}, fastpe.get_num_threads()
    try:
        for step in calls.values():
            step()
            np.testing.assert_allclose(target[:, -1], values[:, -1] + fastpe.encode([shape[1] - 1], shape[2]), atol=1e-6)
        medians = measuring.medians(calls)
    finally:
        fastpe.set_num_threads(before)
    what = f"dask float32 {shape}, chunks of {chunk}"
    yield at_least(f"{what}: speed over x + table", medians["x + table"] / medians["fastpe"], 1.0, milliseconds(medians))
    yield at_least(f"{what}: one thread a chunk over all", medians["fastpe"] / medians["fastpe, one thread"], None)
