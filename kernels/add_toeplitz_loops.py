"""The loops over the columns of `add_toeplitz.py`, emitted for each element type."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types

from . import abi, simd
from . import arithmetic as a
from .loops import address_of, either, is_set, pieces, steps
from .scheduler import WORD, load_word, variants
from .simd import I64, Vector

at = abi.ADD_TOEPLITZ.index


@variants(types.void, WORD, WORD)
def fill_run(element: a.Element, streams: bool, builder, target, number):  # type: ignore[no-untyped-def]
    """So many contiguous elements become -inf."""
    for index, count in pieces(builder, target, number, element.itemsize, streams):
        in_line = streams and count > 1
        infinite = simd.spread(builder, ir.Constant(element.real, -np.inf), count)
        address = address_of(builder, target, index, element.itemsize)
        simd.store(element.write(infinite), address, abi.LINE_BYTES if in_line else 1, in_line)


def _key(builder: ir.IRBuilder, keys: ir.Value, step: ir.Value, column: ir.Value, tabulated: bool) -> ir.Value:
    """Position of a column, in units of 2^-32."""
    if not tabulated:
        return builder.shl(column, I64(32))
    return builder.load(builder.inttoptr(builder.add(keys, builder.mul(column, step)), I64.as_pointer()))


@variants(types.void, WORD, WORD, types.float64, WORD, WORD, WORD, WORD, WORD)
def gather_values(  # type: ignore[no-untyped-def]
    element: a.Element, builder, call, values, slope, keys, query, first, number, buffer
):
    """The values of the columns first ... first + number - 1, into a buffer."""
    size, real = element.real_bytes, element.real
    low, high, step = (load_word(builder, call, index) for index in (at.low, at.high, at.keys_column_stride))
    by_column, linear, symmetric = (
        is_set(builder, load_word(builder, call, index)) for index in (at.by_column, at.slopes, at.symmetric)
    )
    invalid, row = builder.icmp_signed("==", query, I64(abi.NOT_A_POSITION)), builder.ashr(query, I64(32))

    def of_distance(distance: ir.Value) -> ir.Value:
        behind = builder.icmp_signed("<", distance, I64(0))
        far = builder.select(behind, builder.neg(distance), distance)
        factor = builder.select(symmetric, builder.neg(far), distance)
        product = builder.fmul(slope, builder.sitofp(factor, simd.F64))
        product = builder.fadd(product, ir.Constant(simd.F64, 0.0))  # no -0
        return product if real is simd.F64 else builder.fptrunc(product, real)

    def of_table(distance: ir.Value, column: ir.Value) -> ir.Value:
        for bound, relation in ((low, "<"), (high, ">")):
            distance = builder.select(builder.icmp_signed(relation, distance, bound), bound, distance)
        index = builder.select(by_column, column, builder.sub(distance, low))
        address = address_of(builder, values, index, size)
        return builder.load(builder.inttoptr(address, real.as_pointer()), align=size)

    for tabulated in either(builder, is_set(builder, keys)):
        for is_linear in either(builder, linear):
            for index in steps(builder, I64(0), number, 1):
                column = builder.add(first, index)
                key = _key(builder, keys, step, column, tabulated)
                distance = builder.sub(builder.ashr(key, I64(32)), row)
                value = of_distance(distance) if is_linear else of_table(distance, column)
                no_position = builder.or_(invalid, builder.icmp_signed("==", key, I64(abi.NOT_A_POSITION)))
                value = builder.select(no_position, ir.Constant(real, np.nan), value)
                target = address_of(builder, buffer, index, size)
                builder.store(value, builder.inttoptr(target, real.as_pointer()), align=size)


@variants(types.void, WORD, WORD, WORD, WORD, WORD, WORD, WORD)
def fill_future(  # type: ignore[no-untyped-def]
    element: a.Element, builder, call, keys, query, first, number, target, out_step
):
    """-inf for those of the columns first ... first + number - 1 that come after the query."""
    step = load_word(builder, call, at.keys_column_stride)
    infinite: Vector = element.write(simd.spread(builder, ir.Constant(element.real, -np.inf), 1))
    for tabulated in either(builder, is_set(builder, keys)):
        for index in steps(builder, I64(0), number, 1):
            key = _key(builder, keys, step, builder.add(first, index), tabulated)
            with builder.if_then(builder.icmp_signed(">", key, query)):
                simd.store(infinite, builder.add(target, builder.mul(index, out_step)), 1)
