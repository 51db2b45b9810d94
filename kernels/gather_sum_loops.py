"""The loops over the columns of `gather_sum.py`, emitted for each combination of element types.

    out = ((first - zero) * row_scale) * scale + second + values

Each operation is rounded in the type of the arithmetic, the sum once more at the store. Terms that a call does not have are left out.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from . import abi, simd
from . import arithmetic as a
from .loops import address_of, lines, steps, vectors
from .scheduler import WORD, emitted, load_word
from .simd import I64, Vector

at = abi.GATHER_SUM.index


class _Sum:
    """The sum of one row: its terms, its target, and how to add some of its columns."""

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
        """Sum ``count`` columns from ``index`` on, whose elements are so many bytes apart in the first array and in the result."""
        builder = self._builder
        x, out = (
            builder.add(base, builder.mul(index, step)) for base, step in ((self._source, x_step), (self._target, out_step))
        )
        for line in range(0, count * self._first.itemsize, abi.LINE_BYTES):
            simd.prefetch(builder, builder.add(x, builder.add(self._ahead, I64(line))))
        total = self._first.read(simd.load(builder, x, self._first.stored, count, 1))
        if self._first.stored is simd.I8:
            total = (total - self._spread(self._zero, count)) * self._spread(self._row_scale, count)
        total = total * self._spread(self._scale, count)
        for element, base in ((self._second, self._second_at), (self._values, self._values_at)):
            if element is not None:
                address = address_of(builder, base, index, element.itemsize)
                total = total + element.read(simd.load(builder, address, element.stored, count, 1))
        simd.store(self._out.write(total), out, abi.LINE_BYTES if streams else 1, streams)

    def _spread(self, value: ir.Value, count: int) -> Vector:
        return simd.spread(self._builder, value, count)


def row_summer(first: a.Element, second: a.Element | None, values: a.Element | None, out: a.Element, streams: bool) -> Any:
    """Make ``sum_row`` for a row of contiguous elements, written past the caches if ``streams``."""
    real = out.numba_real

    @emitted(types.void, WORD, WORD, real, real, real, WORD, WORD, WORD, WORD)
    def sum_row(builder, number, source, zero, row_scale, scale, second_at, values_at, target, ahead):  # type: ignore[no-untyped-def]
        row = _Sum(builder, first, second, values, out, (source, zero, row_scale, scale, second_at, values_at, target, ahead))
        x_step, out_step = I64(first.itemsize), I64(out.itemsize)
        in_vectors = vectors(builder, number, abi.LINE_BYTES // out.itemsize)
        for index, count in lines(builder, target, number, out.itemsize) if streams else in_vectors:
            row.add(index, count, x_step, out_step, streams and count > 1)

    return sum_row


def strided_summer(first: a.Element, second: a.Element | None, values: a.Element | None, out: a.Element) -> Any:
    """Make ``sum_strided``: as ``sum_row``, for elements any number of bytes apart in the first array and in the result."""
    real = out.numba_real

    @emitted(types.void, WORD, WORD, real, real, real, WORD, WORD, WORD)
    def sum_strided(builder, call, source, zero, row_scale, scale, second_at, values_at, target):  # type: ignore[no-untyped-def]
        row = _Sum(builder, first, second, values, out, (source, zero, row_scale, scale, second_at, values_at, target, I64(0)))
        x_step, out_step = (load_word(builder, call, index) for index in (at.x_column_stride, at.out_column_stride))
        for index in steps(builder, I64(0), load_word(builder, call, at.width), 1):
            row.add(index, 1, x_step, out_step)

    return sum_strided


def row_filler(out: a.Element) -> Any:
    """Make ``zero_row``: every element of a row becomes 0."""

    @emitted(types.void, WORD, WORD)
    def zero_row(builder, call, target):  # type: ignore[no-untyped-def]
        step = load_word(builder, call, at.out_column_stride)
        for index in steps(builder, I64(0), load_word(builder, call, at.width), 1):
            address = builder.add(target, builder.mul(index, step))
            builder.store(ir.Constant(out.stored, None), builder.inttoptr(address, out.stored.as_pointer()), align=1)

    return zero_row
