"""The loops of `rotate.py` and `rotate_table.py`, emitted for each element type: angles of a row, and the rotation of its pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from . import abi, simd
from . import arithmetic as a
from .add_sinusoidal_loops import Functions
from .loops import address_of, either, is_set, steps, vectors
from .scheduler import WORD, emitted, load_word
from .simd import I64, Vector

at, table = abi.ROTATE.index, abi.ROTATE_TABLE.index


def angle_evaluator(element: a.Element) -> Any:
    """Make ``evaluate_angles``: factor times cosines and sines of the frequencies f0 ... f1 - 1; it writes up to MARGIN more."""
    size = element.real_bytes

    @emitted(types.void, WORD, WORD, element.numba_real, WORD, WORD, WORD, WORD)
    def evaluate_angles(builder, call, position, factor, f0, f1, cosines_at, sines_at):  # type: ignore[no-untyped-def]
        functions = Functions(builder, element, call, position, factor, (at.frequencies, at.whole_turns))
        for fractional in either(builder, functions.fractional):
            for f in steps(builder, f0, f1, element.per_vector):
                sine, cosine = functions.at(f, element.per_vector, fractional)
                simd.store(sine, address_of(builder, sines_at, f, size), size)
                simd.store(cosine, address_of(builder, cosines_at, f, size), size)

    return evaluate_angles


def angle_scaler(element: a.Element) -> Any:
    """Make ``scale_angles``: cosines and sines of the frequencies f0 ... f1 - 1 times two to the power of distance * growth (xPos)."""
    size = element.real_bytes

    @emitted(types.void, WORD, WORD, WORD, WORD, WORD, WORD)
    def scale_angles(builder, call, distance, f0, f1, cosines_at, sines_at):  # type: ignore[no-untyped-def]
        growths, grows = load_word(builder, call, at.growths), is_set(builder, load_word(builder, call, at.grows))
        behind = builder.icmp_signed("<", distance, I64(0))
        rises = Vector(builder, builder.xor(behind, grows))
        distance = builder.select(behind, builder.neg(distance), distance)
        whole, part = builder.lshr(distance, I64(32)), builder.and_(distance, I64(0xFFFFFFFF))
        for f in steps(builder, f0, f1, element.per_vector):
            growth = simd.load(builder, address_of(builder, growths, f, 8), simd.I64, element.per_vector, 8)
            spread = (simd.spread(builder, value, element.per_vector) for value in (whole, part))
            factor = (a.exp2_64 if element.real is simd.F64 else a.exp2_32)(*a.exponent(*spread, growth), rises)
            for base in (cosines_at, sines_at):
                address = address_of(builder, base, f, size)
                simd.store(simd.load(builder, address, element.real, element.per_vector, size) * factor, address, size)

    return scale_angles


def angle_copier(element: a.Element) -> Any:
    """Make ``copy_angles``: the row of the caller's table that begins after so many bytes; NaN unless it is ``valid``."""
    size = element.real_bytes

    @emitted(types.void, WORD, WORD, types.boolean, WORD, WORD)
    def copy_angles(builder, call, skipped, valid, cosines_at, sines_at):  # type: ignore[no-untyped-def]
        for base, index in ((cosines_at, table.cosines), (sines_at, table.sines)):
            row = builder.add(load_word(builder, call, index), skipped)
            for f in steps(builder, I64(0), load_word(builder, call, at.pairs), 1):
                value = builder.load(builder.inttoptr(address_of(builder, row, f, size), element.real.as_pointer()))
                value = builder.select(valid, value, ir.Constant(element.real, np.nan))
                builder.store(value, builder.inttoptr(address_of(builder, base, f, size), element.real.as_pointer()))

    return copy_angles


def pair_rotator(element: a.Element, heads: int) -> Any:
    """Make ``rotate_row``: rotate the pairs of a row by these cosines and sines, back if the call is ``inverse``.

    ``u' = fma(u, cos, -(v sin))``, ``v' = fma(v, cos, u sin)``, pair by pair where the columns are not contiguous. It takes so many
    ``heads`` at a time, ``x_step`` and ``out_step`` bytes apart, so that cosines and sines are loaded less often.
    """
    item, size = element.itemsize, element.real_bytes

    @emitted(types.void, WORD, WORD, WORD, WORD, WORD, WORD, WORD, WORD, WORD, WORD)
    def rotate_row(  # type: ignore[no-untyped-def]
        builder, call, cosines_at, sines_at, source, target, x_stride, out_stride, ahead, x_step, out_step
    ):
        pairs, first = load_word(builder, call, at.pairs), load_word(builder, call, at.first_channel)
        inverse = Vector(builder, is_set(builder, load_word(builder, call, at.inverse)))
        dense = builder.and_(*(builder.icmp_signed("==", stride, I64(item)) for stride in (x_stride, out_stride)))
        steps_to = [(builder.mul(x_step, I64(head)), builder.mul(out_step, I64(head))) for head in range(heads)]
        bases = [(builder.add(source, x), builder.add(target, out)) for x, out in steps_to]

        def read(address: ir.Value, count: int) -> Vector:
            for line in range(0, count * item, abi.LINE_BYTES):
                simd.prefetch(builder, builder.add(address, builder.add(ahead, I64(line))))
            return simd.load(builder, address, element.stored, count, 1)

        for interleaved in either(builder, is_set(builder, load_word(builder, call, at.interleaved))):
            for contiguous in either(builder, dense):
                loop = (
                    vectors(builder, pairs, element.per_vector)
                    if contiguous
                    else ((f, 1) for f in steps(builder, I64(0), pairs, 1))
                )
                for f, count in loop:
                    one = builder.add(first, builder.mul(f, I64(2)) if interleaved else f)
                    other = builder.add(one, I64(1) if interleaved else pairs)
                    cosine, sine = (
                        simd.load(builder, address_of(builder, base, f, size), element.real, count, size)
                        for base in (cosines_at, sines_at)
                    )
                    sine = inverse.choose(sine, -sine)
                    for x_base, out_base in bases:
                        if contiguous and interleaved:
                            skipped = builder.mul(one, I64(item))
                            pair = simd.separate(read(builder.add(x_base, skipped), 2 * count))
                            rotated = a.rotate(*(element.read(value) for value in pair), cosine, sine)
                            both = simd.interleave(*(element.write(value) for value in rotated))
                            simd.store(both, builder.add(out_base, skipped), 1)
                            continue
                        channels = [(builder.mul(number, x_stride), builder.mul(number, out_stride)) for number in (one, other)]
                        pair = [element.read(read(builder.add(x_base, x), count)) for x, _ in channels]
                        for value, (_, out) in zip(a.rotate(*pair, cosine, sine), channels, strict=True):
                            simd.store(element.write(value), builder.add(out_base, out), 1)

    return rotate_row


def channel_copier(element: a.Element) -> Any:
    """Make ``copy_channels``: the channels c0 ... c1 - 1 of a row, from source to target."""

    @emitted(types.void, WORD, WORD, WORD, WORD, WORD, WORD)
    def copy_channels(builder, c0, c1, source, target, x_stride, out_stride):  # type: ignore[no-untyped-def]
        for channel in steps(builder, c0, c1, 1):
            x, out = builder.add(source, builder.mul(channel, x_stride)), builder.add(target, builder.mul(channel, out_stride))
            simd.store(simd.load(builder, x, element.stored, 1, 1), out, 1)

    return copy_channels
