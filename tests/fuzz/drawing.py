"""What examples are made of: shapes, strides, values, encodings, and where rows stand."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import cases
import mpmath
import numpy as np
import reference
from guarded import PLACES, Arena, View
from hypothesis import strategies as st

import fastpe
from fastpe._backends.host import chunking

Option = TypeVar("Option")
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42, 6e-8, 3e4, -3e4, 1e-310])
FAR = (0, 3, 7, 100, 131_071, 10**6, -5, -(10**6), 2**31 - 1, -(2**31))
LIMIT = 2**31
# How the CPU divides the work: as it does, among threads, in small blocks, past the caches.
SCHEDULES: dict[str, dict[str, int]] = {
    "plain": {},
    "threads": {"BYTES_PER_HELPER": 64, "CHUNK_BYTES": 256, "LARGEST_CHUNK_BYTES": 1024},
    "blocks": {"SHARED_BYTES": 256, "ANGLES_BYTES": 256, "SUMMED_BYTES": 256, "CHUNK_BYTES": 512, "STREAMED_BYTES": 128},
    "streams": {"STREAMED_BYTES": 512},
}


class Draw:
    """Choices of an example, and the memory it is in."""

    def __init__(self, data: st.DataObject, arena: Arena) -> None:
        self._data, self._arena = data, arena
        self.rng = np.random.default_rng(self.integer(0, 2**32 - 1))  # for values, which need not be simple

    def pick(self, *options: Option) -> Option:
        return self._data.draw(st.sampled_from(options))

    def integer(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))

    def once_in(self, number: int) -> bool:
        return self.integer(1, number) == number

    def flag(self) -> bool:
        return self._data.draw(st.booleans())

    def dtype(self) -> str:
        return self.pick("float32", "float16", "bfloat16", "float64")

    # ---- arrays --------------------------------------------------------------------------------------------------------------

    def shape(self, widths: Sequence[int], ranks: Sequence[int] = (2, 3, 3, 4, 5)) -> tuple[tuple[int, ...], int]:
        """A shape (..., D) and which axis is T."""
        rank = self.pick(*ranks)
        axis = self.integer(0, rank - 2)
        if self.once_in(40):  # a million elements or more, of few axes
            rows, sequences = self.pick(3000, 9001, 40_000), self.integer(1, 3)
            shape = [1] * (rank - 1)
            shape[axis] = rows
            if rank > 2:
                shape[1 if axis == 0 else 0] = sequences
            large = (32, 64, 65, 130, 256) if any(width % 2 for width in widths) else (32, 64, 256)
            fitting = [width for width in large if rows * width < 3_000_000]  # the judge takes 300 bytes for each element
            return (*shape, self.pick(*fitting)), axis
        empty = self.once_in(20)
        shape = [self.integer(0 if empty else 1, 4) for _ in range(rank - 1)]
        shape[axis] = self.pick(1, 2, 3, 7, 8, 9, 16, 17, 20) if not self.once_in(40) else 0
        return (*shape, self.pick(*widths)), axis

    def strides(self, shape: tuple[int, ...], itemsize: int) -> tuple[int, ...] | None:
        """Strides by which no element lies twice: gaps, any order of axes, either sign, perhaps no whole elements."""
        if self.pick(True, False, False):
            return None
        order = list(range(len(shape)))[::-1]
        if self.flag():
            order = [int(axis) for axis in self.rng.permutation(len(shape))]
        strides, span = [0] * len(shape), itemsize
        small = np.prod(shape) < 5000
        for axis in order:
            if shape[axis] <= 1 and self.once_in(3):
                strides[axis] = self.integer(-100, 100)
                continue
            gap = self.pick(0, 0, 0, itemsize, 3 * itemsize, 64, *((1, itemsize + 1, 4096 + itemsize) if small else ()))
            strides[axis] = self.pick(1, 1, 1, -1) * (span + gap)
            span += (span + gap) * (max(shape[axis], 1) - 1)
        return tuple(strides)

    def view(self, shape: tuple[int, ...], dtype: Any, strides: Any = "draw") -> View:
        """An array somewhere in guarded memory."""
        strides = self.strides(shape, np.dtype(dtype).itemsize) if isinstance(strides, str) else strides
        place = self.pick(*PLACES)
        return self._arena.view(shape, dtype, strides, place, self.integer(0, 130) if place == "between" else 0)

    def argument(self, values: Any) -> Any:
        """The same values in guarded memory, under strides of their own."""
        values = np.asarray(values)
        view = self.view(values.shape, values.dtype)
        view.array[...] = values
        view.array.flags.writeable = False
        return view.array

    def fill(self, array: np.ndarray, special: bool = True) -> np.ndarray:
        """Write values of some size, perhaps with NaN, infinity and subnormal numbers among them; returns a copy."""
        with np.errstate(all="ignore"):
            values = self.rng.standard_normal(array.shape) * 10.0 ** self.integer(-2, 2)
            if special and values.size and self.once_in(8):
                places = self.rng.integers(0, values.size, max(1, values.size // 6))
                values.reshape(-1)[places] = SPECIAL[self.rng.integers(0, len(SPECIAL), places.size)]
            array[...] = values.astype(array.dtype)
        return array.copy()

    @contextlib.contextmanager
    def schedule(self) -> Iterator[None]:
        """One way to divide the work of every call within."""
        name = self.pick(*SCHEDULES)
        before = {constant: getattr(chunking, constant) for constant in SCHEDULES[name]}
        cache, threads = chunking.cache_bytes, fastpe.get_num_threads()
        fastpe.clear_caches()  # the example alone decides what is kept
        try:
            for constant, value in SCHEDULES[name].items():
                setattr(chunking, constant, value)
            if name == "streams":
                chunking.cache_bytes = lambda: 0
            fastpe.set_num_threads(4 if name == "threads" else 1)
            yield
        finally:
            for constant, value in before.items():
                setattr(chunking, constant, value)
            chunking.cache_bytes = cache
            fastpe.set_num_threads(threads)
            fastpe.clear_caches()


# ---- where rows stand ----------------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """Arguments of a verb, and what they mean: positions in units of 2^-32 and which rows are kept, to be broadcast to x.shape[:-1].

    Positions of several axes have these in front.
    """

    arguments: dict[str, Any]
    units: np.ndarray
    kept: np.ndarray

    @property
    def positions(self) -> np.ndarray | None:
        """The positions as an array that a verb takes; None if float64 does not hold them."""
        if not (self.units & 0xFFFFFFFF).any():
            return self.units >> 32
        real = self.units.astype(np.float64) / 2.0**32
        return real if np.array_equal(units_of(real), self.units) else None


def units_of(positions: np.ndarray) -> np.ndarray:
    """Positions in units of 2^-32, as int64."""
    if positions.dtype.kind == "f":
        return np.rint(positions.astype(np.float64) * 2.0**32).astype(np.int64)
    return positions.astype(np.int64) << 32


def batch_axis(shape: tuple[int, ...], axis: int) -> int | None:
    return None if len(shape) == 2 else 1 if axis == 0 else 0


def draw_rows(
    draw: Draw,
    shape: tuple[int, ...],
    axis: int,
    *,
    axes: int | None = None,
    limit: int | None = None,
    real: bool = True,
    far: int = LIMIT,
    by_row: bool = True,
    masks: bool = True,
    skipped: Callable[[], np.ndarray] | None = None,
) -> Rows:
    """Positions of any form for x of a shape (..., D) whose rows are ``axis``.

    ``axes``: of the positions. ``limit``: the rows of a table. ``real``: whether reals are allowed. ``far``: from 0, at most. ``by_row``:
    whether there is a form of x.shape[:-1].
    """
    batch, rows = batch_axis(shape, axis), shape[axis]
    sequences = 1 if batch is None else shape[batch]
    turned = batch is not None and axis < batch  # the axes of an argument (B, T) are in x's order

    def along(bt: np.ndarray) -> np.ndarray:
        bt = np.swapaxes(bt, -1, -2) if turned else bt
        sizes = [size if number in (batch, axis) else 1 for number, size in enumerate(shape[:-1])]
        return bt.reshape(*bt.shape[:-2], *sizes)

    def as_given(bt: np.ndarray) -> np.ndarray:
        """(B, T) or, if one sequence stands for all, (T,)."""
        return bt[..., 0, :] if bt.shape[-2] != sequences or batch is None else np.swapaxes(bt, -1, -2) if turned else bt

    two = batch is not None and draw.flag()
    given: dict[str, Any] = {}
    kept = np.ones((sequences, rows), bool)
    if masks and draw.once_in(3):
        mask = draw.rng.random((sequences if two else 1, rows)) < draw.pick(0.6, 0.1, 0.95)
        kept &= mask
        given["mask"] = draw.argument(as_given(mask) if two else mask[0])
    forms = ("offset", "offsets", "positions", "positions", "cu_seqlens", "every row")
    form = draw.pick(*forms) if axes is None else draw.pick("offset", "positions", "positions")
    if form in ("positions", "every row"):
        values = _positions(draw, (axes or 1, sequences if two else 1, rows), limit, real, far)
        if form == "every row" and by_row and axes is None:
            values = _positions(draw, shape[:-1], limit, real, far)
            given["positions"] = draw.argument(values)
            return Rows(given, units_of(values), along(kept))
        argument = np.stack([as_given(one) if two else one[0] for one in values])
        given["positions"] = draw.argument(argument if axes is not None else argument[0])
        units = along(np.broadcast_to(units_of(values), (axes or 1, sequences, rows)))
        return Rows(given, units if axes is not None else units[0], along(kept))
    offsets, cuts = _offsets(draw, form if batch is not None or form == "cu_seqlens" else "offset", sequences, rows, limit, far)
    given["offset"] = draw.argument(offsets) if isinstance(offsets, np.ndarray) else offsets
    if cuts is not None:
        given["cu_seqlens"] = draw.argument(cuts)
    counted = kept if "mask" in given else None
    if cuts is None and counted is None:
        units = (np.broadcast_to(np.reshape(offsets, (-1, 1)), (sequences, 1)) + np.arange(rows)) << 32
    else:
        units = reference.rows((sequences, rows), offset=offsets, cu_seqlens=cuts, mask=counted) << 32
    units = along(units)
    return Rows(given, units if axes is None else np.broadcast_to(units, (axes, *units.shape)), along(kept))


def _positions(draw: Draw, shape: tuple[int, ...], limit: int | None, real: bool, far: int) -> np.ndarray:
    kinds = ("i8", "i4", "i2", "u1", "u8", ">i4") if limit is not None or not real else ("i8", "i4", "u1", ">i4", "f8", "f4")
    kind = draw.pick(*kinds)
    if kind[-2] == "f":
        return (draw.rng.standard_normal(shape) * min(far / 8, 10.0 ** draw.integer(0, 4))).astype(kind)
    bounds = np.iinfo(kind)
    if limit is not None:
        return draw.rng.integers(0, min(limit - 1, bounds.max), shape, endpoint=True).astype(kind)
    near = draw.pick(100, far)
    low, high = max(bounds.min, -near), min(bounds.max, near - 1)
    return draw.rng.integers(low, high, shape, endpoint=True).astype(kind)


def _offsets(draw: Draw, form: str, sequences: int, rows: int, limit: int | None, far: int) -> tuple[Any, np.ndarray | None]:
    """Offsets, one or several, and boundaries or None."""

    def one() -> int:
        if limit is not None:
            return draw.integer(0, max(limit - rows, 0))
        return max(-far, min(draw.pick(*FAR), far - 1 - rows))

    cuts = None
    if form == "cu_seqlens":
        inner = np.sort(draw.rng.integers(0, rows + 1, draw.integer(0, 3)))
        cuts = np.array([0, *inner, rows]).astype(draw.pick("i8", "i4", ">i8", "u8"))
        sequences = len(cuts) - 1
    several = form == "offsets" or (form == "cu_seqlens" and draw.flag())
    kind = draw.pick("i8", "i4", ">i8")
    return (np.array([one() for _ in range(sequences)], kind) if several else one()), cuts


# ---- encodings -----------------------------------------------------------------------------------------------------------------


def draw_sinusoidal(draw: Draw) -> fastpe.Sinusoidal:
    return fastpe.Sinusoidal(
        base=draw.pick(10000.0, 1.0000001, 1.5, 0.7, 500_000.0, 1e30),
        layout=draw.pick(*cases.LAYOUTS),
        cos_first=draw.flag(),
        frequency_shift=draw.pick(0, 0, 1, 0.5, -3),
        amplitude=draw.pick(1.0, 0.3, -2.5, 0.0, 1e30, 1e-30),
        position_scale=draw.pick(1.0, 0.25, 3.7, 1000.0, 1e-12, 1e6),
        zero_pad=draw.flag(),
    )


@functools.lru_cache(maxsize=2000)
def sinusoidal_turns(dim: int, base: float, shift: float, scale: float, zero_pad: bool) -> np.ndarray:
    return reference.turns(reference.angular_frequencies(dim, base, shift, scale, zero_pad))


@functools.lru_cache(maxsize=2000)
def rotary_turns(base: float, dim: int) -> np.ndarray:
    with mpmath.workprec(220):
        return reference.turns([mpmath.mpf(base) ** (-mpmath.mpf(2 * i) / dim) for i in range(dim // 2)])


def sinusoidal(encoding: fastpe.Sinusoidal, units: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """PE in float64, (..., D), and how far off the angle may be, (..., 1), both times the amplitude."""
    shape = encoding.base, encoding.frequency_shift, encoding.position_scale, encoding.zero_pad
    angle = reference.many_angles(units, sinusoidal_turns(dim, *shape))
    values = reference.arranged(angle, dim, encoding.layout, encoding.cos_first)
    return encoding.amplitude * values, abs(encoding.amplitude) * angle_error(units)[..., None]


def angle_error(units: np.ndarray) -> np.ndarray:
    """Radians: a frequency is rounded to 2^-64 turn, and products with a fraction of a position are truncated."""
    return 2 * np.pi * (np.abs(units / 2.0**32) * 2.0**-65 + ((units & 0xFFFFFFFF) != 0) * 2.0**-62)
