"""The loops over the columns of `add_toeplitz.py`, emitted for each element type."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from . import abi, simd
from . import arithmetic as a
from .loops import address_of, either, is_set, lines, steps, vectors
from .scheduler import WORD, emitted, load_word
from .simd import I64, Vector

at = abi.ADD_TOEPLITZ.index


# ---- columns at 0, 1, ... ----------------------------------------------------------------------------------------------------


def run_adder(element: a.Element, is_constant: bool, streams: bool) -> Any:
    """Make ``add_run``: contiguous values, or one value for all, to so many contiguous elements."""
    item, size = element.itemsize, element.real_bytes

    @emitted(types.void, WORD, WORD, WORD, WORD, element.numba_real, WORD)
    def add_run(builder, values, source, target, number, scale, ahead):  # type: ignore[no-untyped-def]
        constant = simd.load(builder, values, element.real, 1, size) if is_constant else None
        in_vectors = vectors(builder, number, abi.LINE_BYTES // item)
        for index, count in lines(builder, target, number, item) if streams else in_vectors:
            if constant is None:
                loaded = simd.load(builder, address_of(builder, values, index, size), element.real, count, size)
            else:
                loaded = simd.spread(builder, builder.extract_element(constant.value, simd.I32(0)), count)
            x, out = address_of(builder, source, index, item), address_of(builder, target, index, item)
            a.add(element, True, loaded, x, out, scale, ahead, streams and count > 1)

    return add_run


def run_filler(element: a.Element, streams: bool) -> Any:
    """Make ``fill_run``: so many contiguous elements become -inf."""

    @emitted(types.void, WORD, WORD)
    def fill_run(builder, target, number):  # type: ignore[no-untyped-def]
        in_vectors = vectors(builder, number, abi.LINE_BYTES // element.itemsize)
        for index, count in lines(builder, target, number, element.itemsize) if streams else in_vectors:
            in_line = streams and count > 1
            infinite = simd.spread(builder, ir.Constant(element.real, -np.inf), count)
            address = address_of(builder, target, index, element.itemsize)
            simd.store(element.write(infinite), address, abi.LINE_BYTES if in_line else 1, in_line)

    return fill_run


def strided_adder(element: a.Element) -> Any:
    """Make ``add_strided``: values so many bytes apart to elements of any strides."""
    size = element.real_bytes

    @emitted(types.void, WORD, WORD, WORD, WORD, WORD, WORD, WORD, element.numba_real)
    def add_strided(builder, values, step, source, x_step, target, out_step, number, scale):  # type: ignore[no-untyped-def]
        for index in steps(builder, I64(0), number, 1):
            value, x, out = (
                builder.add(base, builder.mul(index, stride))
                for base, stride in ((values, step), (source, x_step), (target, out_step))
            )
            a.add(element, True, simd.load(builder, value, element.real, 1, size), x, out, scale, I64(0))

    return add_strided


def strided_filler(element: a.Element) -> Any:
    """Make ``fill_strided``: elements so many bytes apart become -inf."""

    @emitted(types.void, WORD, WORD, WORD)
    def fill_strided(builder, target, step, number):  # type: ignore[no-untyped-def]
        infinite = element.write(simd.spread(builder, ir.Constant(element.real, -np.inf), 1))
        for index in steps(builder, I64(0), number, 1):
            simd.store(infinite, builder.add(target, builder.mul(index, step)), 1)

    return fill_strided


# ---- columns at any positions ------------------------------------------------------------------------------------------------


def _key(builder: ir.IRBuilder, keys: ir.Value, step: ir.Value, column: ir.Value, tabulated: bool) -> ir.Value:
    """Position of a column, in units of 2^-32."""
    if not tabulated:
        return builder.shl(column, I64(32))
    return builder.load(builder.inttoptr(builder.add(keys, builder.mul(column, step)), I64.as_pointer()))


def value_gatherer(element: a.Element) -> Any:
    """Make ``gather_values``: the values of the columns first ... first + number - 1, into a buffer."""
    size, real = element.real_bytes, element.real

    @emitted(types.void, WORD, WORD, types.float64, WORD, WORD, WORD, WORD, WORD)
    def gather_values(builder, call, values, slope, keys, query, first, number, buffer):  # type: ignore[no-untyped-def]
        low, high, step = (load_word(builder, call, index) for index in (at.low, at.high, at.keys_column_stride))
        by_column, linear, symmetric = (
            is_set(builder, load_word(builder, call, index)) for index in (at.by_column, at.slopes, at.symmetric)
        )
        invalid, row = builder.icmp_signed("==", query, I64(a.NOT_A_POSITION)), builder.ashr(query, I64(32))

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
                    no_position = builder.or_(invalid, builder.icmp_signed("==", key, I64(a.NOT_A_POSITION)))
                    value = builder.select(no_position, ir.Constant(real, np.nan), value)
                    target = address_of(builder, buffer, index, size)
                    builder.store(value, builder.inttoptr(target, real.as_pointer()), align=size)

    return gather_values


def future_filler(element: a.Element) -> Any:
    """Make ``fill_future``: -inf for those of the columns first ... first + number - 1 that come after the query."""

    @emitted(types.void, WORD, WORD, WORD, WORD, WORD, WORD, WORD)
    def fill_future(builder, call, keys, query, first, number, target, out_step):  # type: ignore[no-untyped-def]
        step = load_word(builder, call, at.keys_column_stride)
        infinite: Vector = element.write(simd.spread(builder, ir.Constant(element.real, -np.inf), 1))
        for tabulated in either(builder, is_set(builder, keys)):
            for index in steps(builder, I64(0), number, 1):
                key = _key(builder, keys, step, builder.add(first, index), tabulated)
                with builder.if_then(builder.icmp_signed(">", key, query)):
                    simd.store(infinite, builder.add(target, builder.mul(index, out_step)), 1)

    return fill_future
