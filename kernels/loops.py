"""Loops and branches, emitted into a function under construction.

Each of these is a generator: what the caller emits while it holds a yielded value is the body of the loop, or of the branch.
"""

from __future__ import annotations

from collections.abc import Iterator

from llvmlite import ir
from numba.core import cgutils

from . import abi
from .simd import I64


def steps(builder: ir.IRBuilder, start: ir.Value, stop: ir.Value, step: int) -> Iterator[ir.Value]:
    """A loop over start, start + step, ... below stop; yields the index."""
    with cgutils.for_range_slice(builder, start, stop, I64(step), intp=I64) as (index, _):
        yield index


def vectors(builder: ir.IRBuilder, number: ir.Value, count: int) -> Iterator[tuple[ir.Value, int]]:
    """Two loops over 0 ... number - 1: whole vectors of ``count``, then single elements. Yields an index and how many to take there."""
    whole = builder.and_(number, I64(-count))
    for index in steps(builder, I64(0), whole, count):
        yield index, count
    for index in steps(builder, whole, number, 1):
        yield index, 1


def lines(builder: ir.IRBuilder, target: ir.Value, number: ir.Value, itemsize: int) -> Iterator[tuple[ir.Value, int]]:
    """As ``vectors``, in whole cache lines of the target, with single elements before the first line too: for streaming stores."""
    before = builder.udiv(builder.and_(builder.neg(target), I64(abi.LINE_BYTES - 1)), I64(itemsize))
    before = builder.select(builder.icmp_signed("<", before, number), before, number)
    for index in steps(builder, I64(0), before, 1):
        yield index, 1
    for index, count in vectors(builder, builder.sub(number, before), abi.LINE_BYTES // itemsize):
        yield builder.add(before, index), count


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
