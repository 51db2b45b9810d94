"""The loops over the columns of `gather_sum.py`, emitted for each combination of element types.

    out = ((first - zero) * row_scale) * scale + second + values

Each operation is rounded in the type of the arithmetic, the sum once more at the store. Terms that a call does not have are left out.
A float8 is the sum times a factor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types

from . import abi, simd
from . import arithmetic as a
from .loops import address_of, pieces, steps
from .scheduler import REAL, WORD, load_word, variants
from .simd import I64

at = abi.GATHER_SUM.index


class Terms(NamedTuple):
    """The element types of a sum's arrays; None where a call has no such array."""

    first: a.Element
    second: a.Element | None
    values: a.Element | None
    out: a.Element

    @property
    def numba_real(self) -> Any:
        return self.out.numba_real


@variants(types.void, WORD, WORD, REAL, REAL, REAL, REAL, WORD, WORD, WORD, WORD)
def sum_row(  # type: ignore[no-untyped-def]
    terms: Terms, streams: bool, builder, number, source, zero, row_scale, scale, factor, second_at, values_at, target, ahead
):
    """Sum a row of contiguous elements, written past the caches if ``streams``."""
    bases, numbers = (source, second_at, values_at, target), (zero, row_scale, scale, factor)
    apart = I64(terms.first.itemsize), I64(terms.out.itemsize)
    for index, count in pieces(builder, target, number, terms.out.itemsize, streams):
        _sum(builder, terms, bases, numbers, ahead, index, count, apart, streams and count > 1)


@variants(types.void, WORD, WORD, REAL, REAL, REAL, REAL, WORD, WORD, WORD)
def sum_strided(  # type: ignore[no-untyped-def]
    terms: Terms, builder, call, source, zero, row_scale, scale, factor, second_at, values_at, target
):
    """As ``sum_row``, for elements any number of bytes apart in the first array and in the result."""
    bases, numbers = (source, second_at, values_at, target), (zero, row_scale, scale, factor)
    apart = load_word(builder, call, at.x_column_stride), load_word(builder, call, at.out_column_stride)
    for index in steps(builder, I64(0), load_word(builder, call, at.width), 1):
        _sum(builder, terms, bases, numbers, I64(0), index, 1, apart)


def _sum(
    builder: ir.IRBuilder,
    terms: Terms,
    bases: tuple[ir.Value, ...],
    numbers: tuple[ir.Value, ...],
    ahead: ir.Value,
    index: ir.Value,
    count: int,
    apart: tuple[ir.Value, ir.Value],
    streams: bool = False,
) -> None:
    """Sum ``count`` columns from ``index`` on, whose elements are so many bytes ``apart`` in the first array and in the result."""
    source, second_at, values_at, target = bases
    zero, row_scale, scale, factor = (simd.spread(builder, number, count) for number in numbers)
    x, out = (builder.add(base, builder.mul(index, step)) for base, step in zip((source, target), apart, strict=True))
    # Rows of a table lie anywhere. Into the second level, bfloat16 rows took 1.8 times as long (19.1 instead of 10.4 ms for 32 x 4096 ids
    # and 1024 columns, of which a bare gather takes 10.5; AMD EPYC, Zen 5).
    for line in range(0, count * terms.first.itemsize, abi.LINE_BYTES):
        simd.prefetch(builder, builder.add(x, builder.add(ahead, I64(line))), abi.PREFETCH_NEAR)
    total = terms.first.read(simd.load(builder, x, terms.first.stored, count, 1))
    if terms.first.stored is simd.I8:
        total = (total - zero) * row_scale
    total = total * scale
    for element, base in ((terms.second, second_at), (terms.values, values_at)):
        if element is not None:
            address = address_of(builder, base, index, element.itemsize)
            total = total + element.read(simd.load(builder, address, element.stored, count, 1))
    if terms.out.stored is simd.I8:
        total = total * factor
    simd.store(terms.out.write(total), out, abi.LINE_BYTES if streams else 1, streams)
