"""What the benchmarks, the ratios and their tests share: cases, contenders, the check; clock and roofline are the package's."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import reference
from cases import DTYPES, assert_close

import fastpe
from fastpe._tools.benchmark.clock import (
    RESTORE_AFTER,
    Call,
    Timed,
    cuda_seconds_per_call,
    interleave,
    seconds_per_call,
)
from fastpe._tools.benchmark.expressions import as_tensor, from_scratch, random_values
from fastpe._tools.benchmark.probes import bandwidth, host_probes, settle_threads, torch_if_installed
from fastpe._tools.machine import is_small

__all__ = [  # with what the package's own benchmark has
    "CONTENDERS",
    "CUDA_CONTENDERS",
    "DTYPES",
    "RESTORE_AFTER",
    "Call",
    "Case",
    "Contender",
    "Timed",
    "Work",
    "all_cases",
    "as_tensor",
    "bandwidth",
    "check",
    "cuda_seconds_per_call",
    "from_scratch",
    "host_probes",
    "interleave",
    "is_small",
    "random_values",
    "seconds_per_call",
    "settle_threads",
    "torch_if_installed",
]

# (B, T, D). One row a sequence stands at its own offset, as in decoding; all others count from 0.
SHAPES = (
    (1, 1, 1024),
    (32, 1, 1024),
    (1, 128, 768),
    (8, 1024, 512),
    (64, 128, 768),
    (32, 4096, 1024),
    (1, 131072, 1024),
)
SMALL_SHAPES = ((1, 1, 64), (3, 1, 64), (2, 9, 64))
SMALL_DTYPES = ("float32", "bfloat16")
LAST_DECODED = 4095
DECODED_APART = 61

# ---- cases -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A shape (B, T, D) and an element type."""

    shape: tuple[int, int, int]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of x."""
        return int(np.prod(self.shape)) * DTYPES[self.dtype].itemsize

    @property
    def offset(self) -> Any:
        """Position of the first row: an int, or (B,) integers."""
        batch, rows, _ = self.shape
        if rows > 1:
            return 0
        return LAST_DECODED if batch == 1 else LAST_DECODED - DECODED_APART * np.arange(batch)

    @property
    def positions(self) -> np.ndarray:
        """Position of every row: (T,), or (B, T) where the sequences differ."""
        return np.asarray(self.offset)[..., None] + np.arange(self.shape[1])

    def __str__(self) -> str:
        return "x".join(map(str, self.shape)) + f"-{self.dtype}"


def all_cases(small: bool) -> list[Case]:
    """Every shape with every element type."""
    shapes, dtypes = (SMALL_SHAPES, SMALL_DTYPES) if small else (SHAPES, tuple(DTYPES))
    return [Case(shape, dtype) for shape in shapes for dtype in dtypes]


class Work:
    """The arrays of one case, on the host (``library`` is NumPy) or on a GPU (CuPy)."""

    def __init__(self, case: Case, library: ModuleType = np) -> None:
        self.case, self.library = case, library
        self.original = random_values(case.shape, case.dtype)
        self.x = library.array(self.original)
        self._source = library.asarray(self.original)
        self._calls = 0

    @functools.cached_property
    def out(self) -> Any:
        """An array like x."""
        return self.library.empty(self.case.shape, DTYPES[self.case.dtype])

    @functools.cached_property
    def encoded(self) -> Any:
        """Room for the encoding of the positions."""
        return self.library.empty((*self.case.positions.shape, self.case.shape[-1]), DTYPES[self.case.dtype])

    @functools.cached_property
    def table(self) -> Any:
        """The encoding of every position up to the last, rounded to the element type."""
        last = int(self.case.positions.max())
        whole = from_scratch(np.arange(last + 1), self.case.shape[-1], np.float64)
        return self.library.asarray(whole.astype(DTYPES[self.case.dtype]))

    def spend(self, calls: int) -> None:
        """Announce calls; x is restored before they would carry its values away."""
        if self._calls + calls > RESTORE_AFTER:
            self.restore()
        self._calls += calls

    def restore(self) -> None:
        """Put the first values back, as bytes: not every library copies every element type."""
        _bytes(self.x)[...] = _bytes(self._source)
        self._calls = 0

    def read(self, name: str) -> np.ndarray:
        """An array of this case on the host, in x's shape."""
        array = getattr(self, name)
        return np.broadcast_to(array if isinstance(array, np.ndarray) else array.get(), self.case.shape)


def _bytes(x: Any) -> Any:
    return x.reshape(-1).view(np.uint8)


# ---- contenders --------------------------------------------------------------------------------------------------------------


def _fastpe(work: Work) -> Call:
    x, offset = work.x, work.case.offset
    return lambda: fastpe.add_encoding(x, offset=offset)


def _fastpe_out(work: Work) -> Call:
    x, out, offset = work.x, work.out, work.case.offset
    return lambda: fastpe.add_encoding(x, offset=offset, out=out)


def _fastpe_encode(work: Work) -> Call:
    positions, width, out = work.case.positions, work.case.shape[-1], work.encoded
    return lambda: fastpe.encode(positions, width, out=out)


def _numpy_scratch(dtype: Any) -> Callable[[Work], Call]:
    def prepare(work: Work) -> Call:
        x, positions, width = work.x, work.case.positions, work.case.shape[-1]
        return lambda: np.add(x, from_scratch(positions, width, dtype).astype(x.dtype, copy=False), out=x)

    return prepare


def _cached(work: Work) -> Call:
    """x += the rows of a table, by NumPy or CuPy."""
    x, table, start, rows = work.x, work.table, work.case.offset, work.case.shape[1]
    add = work.library.add
    if np.ndim(start):
        starts = work.library.asarray(start)
        return lambda: add(x, table[starts][:, None], out=x)
    return lambda: add(x, table[start : start + rows], out=x)


def _torch_cached(work: Work) -> Call:
    import torch

    x, table, start, rows = as_tensor(work.x), as_tensor(work.table), work.case.offset, work.case.shape[1]
    if np.ndim(start):
        starts = torch.from_numpy(start)
        return lambda: x.add_(table[starts].unsqueeze(1))
    return lambda: x.add_(table[start : start + rows])


FLOAT64_ANGLES = 2.0**-50  # error of an angle for each position: frequency, product and sine rounded in the type
FLOAT32_ANGLES = 2.0**-22


@dataclass(frozen=True)
class Contender:
    """A way to add the encoding. ``prepare`` takes the case's arrays and returns the call to be timed."""

    name: str
    prepare: Callable[[Work], Call]
    writes: str = "x"  # which array of ``Work``
    angle_error: float = 0.0
    dtypes: tuple[str, ...] = tuple(DTYPES)
    most_float16: int = 1 << 62  # elements; NumPy computes float16 in software, fifty times slower
    requires: str | None = None

    def suits(self, case: Case) -> bool:
        """Whether the contender knows the element type and ends in reasonable time."""
        return case.dtype in self.dtypes and (case.dtype != "float16" or np.prod(case.shape) <= self.most_float16)

    def missing(self) -> str | None:
        """The package it needs and does not find."""
        return None if self.requires is None or importlib.util.find_spec(self.requires) else self.requires

    def bytes_moved(self, case: Case) -> int:
        """Bytes read and written once: x and the result, or for the encoding alone the result."""
        if self.writes == "encoded":
            return int(case.positions.size) * case.shape[-1] * DTYPES[case.dtype].itemsize
        return 2 * case.nbytes


_NUMPY = ("float32", "float64", "float16")
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("fastpe", _fastpe),
        Contender("fastpe_out", _fastpe_out, "out"),
        Contender("fastpe_encode", _fastpe_encode, "encoded"),
        Contender("numpy_cached", _cached, "x", FLOAT64_ANGLES, _NUMPY),
        Contender("torch_cached", _torch_cached, "x", FLOAT64_ANGLES, requires="torch"),
        Contender("numpy_scratch_f64", _numpy_scratch(np.float64), "x", FLOAT64_ANGLES, _NUMPY, 1 << 24),
        Contender("numpy_scratch_f32", _numpy_scratch(np.float32), "x", FLOAT32_ANGLES, ("float32", "float16"), 1 << 24),
    )
}
CUDA_CONTENDERS = {
    contender.name: contender
    for contender in (Contender("fastpe", _fastpe), Contender("cupy_cached", _cached, "x", FLOAT64_ANGLES))
}


def check(work: Work, contender: Contender, call: Call) -> None:
    """Call once; AssertionError unless the sampled rows, the last among them, are those of the reference."""
    work.restore()
    if contender.writes != "x":
        getattr(work, contender.writes).fill(np.nan)
    call()
    batch, rows, width = work.case.shape
    chosen = np.ix_(_sample(batch), _sample(rows))
    positions = np.broadcast_to(work.case.positions, (batch, rows))[chosen]
    expected = reference.sinusoidal(positions, width)
    if contender.writes != "encoded":
        expected = expected + work.original[chosen].astype(np.float64)
    slack = contender.angle_error * (int(positions.max()) + 8)
    assert_close(work.read(contender.writes)[chosen], expected, work.case.dtype, position_error=slack)
    if contender.writes != "x":
        assert (work.read("x")[chosen] == work.original[chosen]).all(), "x has changed"


def _sample(count: int) -> list[int]:
    return sorted({0, min(1, count - 1), count // 3, count // 2, max(count - 2, 0), count - 1})
