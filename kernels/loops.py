"""Loops and branches, emitted into a function under construction, and the loops over elements that several kernels have.

The first of these are generators: what the caller emits while it holds a yielded value is the body of the loop, or of the branch.
"""

from __future__ import annotations

from collections.abc import Iterator

from llvmlite import ir
from numba import types
from numba.core import cgutils

from . import abi, simd
from . import arithmetic as a
from .scheduler import REAL, WORD, variants
from .simd import I64


def steps(builder: ir.IRBuilder, start: ir.Value, stop: ir.Value, step: int) -> Iterator[ir.Value]:
    """A loop over start, start + step, ... below stop; yields the index."""
    with cgutils.for_range_slice(builder, start, stop, I64(step), intp=I64) as (index, _):
        yield index


def parts(builder: ir.IRBuilder, number: ir.Value, *counts: int) -> Iterator[tuple[ir.Value, ir.Value, int]]:
    """The parts of 0 ... number - 1 for vectors of each count, the largest first, and for single elements: from, to, and the count.

    The counts are powers of two.
    """
    start = I64(0)
    for count in dict.fromkeys((*counts, 1)):
        stop = builder.and_(number, I64(-count))
        with builder.if_then(builder.icmp_signed("<", start, stop)):
            yield start, stop, count
        start = stop


def vectors(builder: ir.IRBuilder, number: ir.Value, count: int) -> Iterator[tuple[ir.Value, int]]:
    """Two loops over 0 ... number - 1: whole vectors of ``count``, then single elements. Yields an index and how many to take there."""
    for start, stop, step in parts(builder, number, count):
        for index in steps(builder, start, stop, step):
            yield index, step


def lines(builder: ir.IRBuilder, target: ir.Value, number: ir.Value, itemsize: int) -> Iterator[tuple[ir.Value, int]]:
    """As ``vectors``, in whole cache lines of the target, with single elements before the first line too: for streaming stores."""
    before = builder.udiv(builder.and_(builder.neg(target), I64(abi.LINE_BYTES - 1)), I64(itemsize))
    before = builder.select(builder.icmp_signed("<", before, number), before, number)
    for index in steps(builder, I64(0), before, 1):
        yield index, 1
    for index, count in vectors(builder, builder.sub(number, before), abi.LINE_BYTES // itemsize):
        yield builder.add(before, index), count


def pieces(
    builder: ir.IRBuilder, target: ir.Value, number: ir.Value, itemsize: int, streams: bool
) -> Iterator[tuple[ir.Value, int]]:
    """``number`` contiguous elements in vectors of a cache line, or in ``lines`` if they are streamed."""
    return lines(builder, target, number, itemsize) if streams else vectors(builder, number, abi.LINE_BYTES // itemsize)


def either(builder: ir.IRBuilder, condition: ir.Value) -> Iterator[bool]:
    """Both branches of a condition: yields True for the one that runs if it holds, then False for the other."""
    with builder.if_else(condition) as (then, otherwise):
        with then:
            yield True
        with otherwise:
            yield False


def is_set(builder: ir.IRBuilder, word: ir.Value) -> ir.Value:
    """Whether a word is not 0."""
    return builder.icmp_signed("!=", word, I64(0))


def address_of(builder: ir.IRBuilder, base: ir.Value, index: ir.Value, size: int) -> ir.Value:
    """The address of an element of an array."""
    return builder.add(base, builder.mul(index, I64(size)))


# ---- elements ----------------------------------------------------------------------------------------------------------------


@variants(types.void, WORD, WORD, WORD, WORD, REAL, WORD)
def add_run(  # type: ignore[no-untyped-def]
    element: a.Element, reads: bool, is_constant: bool, streams: bool, builder, values, source, target, number, scale, ahead
):
    """Add contiguous values, or one value, to so many contiguous elements, past the caches if ``streams``."""
    item, size = element.itemsize, element.real_bytes
    constant = simd.load(builder, values, element.real, 1, size) if is_constant else None
    for index, count in pieces(builder, target, number, item, streams):
        if constant is None:
            loaded = simd.load(builder, address_of(builder, values, index, size), element.real, count, size)
        else:
            loaded = simd.spread(builder, builder.extract_element(constant.value, simd.I32(0)), count)
        x, out = address_of(builder, source, index, item), address_of(builder, target, index, item)
        a.add(element, reads, loaded, x, out, scale, ahead, streams and count > 1)


@variants(types.void, WORD, WORD, WORD, WORD, WORD, WORD, WORD, REAL)
def add_strided(  # type: ignore[no-untyped-def]
    element: a.Element, reads: bool, builder, values, step, source, x_step, target, out_step, number, scale
):
    """Add values so many bytes apart to elements of any strides."""
    for index in steps(builder, I64(0), number, 1):
        value, x, out = (
            builder.add(base, builder.mul(index, stride))
            for base, stride in ((values, step), (source, x_step), (target, out_step))
        )
        a.add(element, reads, simd.load(builder, value, element.real, 1, element.real_bytes), x, out, scale, I64(0))


@variants(types.void, WORD, WORD, WORD)
def fill_strided(element: a.Element, number: float, builder, target, step, count):  # type: ignore[no-untyped-def]
    """Elements so many bytes apart become a number."""
    value = element.write(simd.spread(builder, ir.Constant(element.real, number), 1))
    for index in steps(builder, I64(0), count, 1):
        simd.store(value, builder.add(target, builder.mul(index, step)), 1)


@variants(types.void, WORD, WORD, WORD, WORD, WORD, WORD)
def copy_columns(element: a.Element, builder, c0, c1, source, target, x_step, out_step):  # type: ignore[no-untyped-def]
    """Copy the columns c0 ... c1 - 1 of a row."""
    for column in steps(builder, c0, c1, 1):
        x, out = builder.add(source, builder.mul(column, x_step)), builder.add(target, builder.mul(column, out_step))
        simd.store(simd.load(builder, x, element.stored, 1, 1), out, 1)
