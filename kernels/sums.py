"""Sums of rows: the loops of `sum_rows.py`, emitted for each combination of element types.

    out = ((a - zero) * row_scale) * scale + second + values

Each step is rounded in the type of the arithmetic, the sum once more at the store. What is not there is left out.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from . import arithmetic as a
from . import blocks as at
from . import lanes
from .lanes import I64, Lanes
from .rows import steps, vectors
from .sharing import WORD, emitted, load_word


def _at(builder: ir.IRBuilder, base: ir.Value, index: ir.Value, size: int) -> ir.Value:
    return builder.add(base, builder.mul(index, I64(size)))


def _real(real: ir.Type) -> Any:
    return types.float64 if real is lanes.F64 else types.float32


class _Sum:
    """One step of a row: what is read, summed and written at a column."""

    def __init__(
        self,
        builder: ir.IRBuilder,
        first: a.Element,
        second: a.Element | None,
        values: a.Element | None,
        out: a.Element,
        row: Any,
    ) -> None:
        self._builder, self._first, self._second, self._values, self._out = builder, first, second, values, out
        self._source, self._zero, self._row_scale, self._scale, self._second_at, self._values_at, self._target, self._ahead = (
            row
        )

    def add(self, index: ir.Value, count: int, x_step: Any, out_step: Any, streams: bool = False) -> None:
        """Columns ``index`` and on, whose elements are so many bytes apart in the first array and in the result."""
        builder = self._builder
        x, out = (
            builder.add(base, builder.mul(index, step)) for base, step in ((self._source, x_step), (self._target, out_step))
        )
        for line in range(0, count * self._first.itemsize, at.LINE_BYTES):
            lanes.prefetch(builder, builder.add(x, builder.add(self._ahead, I64(line))))
        found = self._first.read(lanes.load(builder, x, self._first.stored, count, 1))
        if self._first.stored is lanes.I8:
            found = (found - self._spread(self._zero, count)) * self._spread(self._row_scale, count)
        found = found * self._spread(self._scale, count)
        for element, base in ((self._second, self._second_at), (self._values, self._values_at)):
            if element is not None:
                place = _at(builder, base, index, element.itemsize)
                found = found + element.read(lanes.load(builder, place, element.stored, count, 1))
        lanes.store(self._out.write(found), out, at.LINE_BYTES if streams else 1, streams)

    def _spread(self, value: ir.Value, count: int) -> Lanes:
        return lanes.spread(self._builder, value, count)


def row_summer(first: a.Element, second: a.Element | None, values: a.Element | None, out: a.Element, streams: bool) -> Any:
    """Make ``sum_row`` for a row of contiguous elements, written past the caches if ``streams``."""
    real = _real(out.real)

    @emitted(types.void, WORD, WORD, real, real, real, WORD, WORD, WORD, WORD)
    def sum_row(builder, number, source, zero, row_scale, scale, second_at, values_at, target, ahead):  # type: ignore[no-untyped-def]
        row = _Sum(builder, first, second, values, out, (source, zero, row_scale, scale, second_at, values_at, target, ahead))
        x_step, out_step, begin = I64(first.itemsize), I64(out.itemsize), I64(0)
        if streams:  # up to the first line of the target by ones
            before = builder.udiv(builder.and_(builder.neg(target), I64(at.LINE_BYTES - 1)), I64(out.itemsize))
            begin = builder.select(builder.icmp_signed("<", before, number), before, number)
            for index in steps(builder, I64(0), begin, 1):
                row.add(index, 1, x_step, out_step)
        for index, count in vectors(builder, builder.sub(number, begin), at.LINE_BYTES // out.itemsize):
            row.add(builder.add(begin, index), count, x_step, out_step, streams and count > 1)

    return sum_row


def strided_summer(first: a.Element, second: a.Element | None, values: a.Element | None, out: a.Element) -> Any:
    """Make ``sum_strided``: as ``sum_row``, for elements any number of bytes apart in the first array and in the result."""
    real = _real(out.real)

    @emitted(types.void, WORD, WORD, real, real, real, WORD, WORD, WORD)
    def sum_strided(builder, call, source, zero, row_scale, scale, second_at, values_at, target):  # type: ignore[no-untyped-def]
        row = _Sum(builder, first, second, values, out, (source, zero, row_scale, scale, second_at, values_at, target, I64(0)))
        strides = (load_word(builder, call, place) for place in (at.X_COLUMN_STRIDE, at.OUT_COLUMN_STRIDE))
        x_step, out_step = strides
        for index in steps(builder, I64(0), load_word(builder, call, at.WIDTH), 1):
            row.add(index, 1, x_step, out_step)

    return sum_strided


def row_filler(out: a.Element) -> Any:
    """Make ``zero_row``."""

    @emitted(types.void, WORD, WORD)
    def zero_row(builder, call, target):  # type: ignore[no-untyped-def]
        step = load_word(builder, call, at.OUT_COLUMN_STRIDE)
        for index in steps(builder, I64(0), load_word(builder, call, at.WIDTH), 1):
            place = builder.add(target, builder.mul(index, step))
            builder.store(ir.Constant(out.stored, None), builder.inttoptr(place, out.stored.as_pointer()), align=1)

    return zero_row
