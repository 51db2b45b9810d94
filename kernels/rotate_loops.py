"""The loops of `rotate.py` and `rotate_table.py`, emitted for each element type: angles of a row, and the rotation of its pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from llvmlite import ir
from numba import types

from . import abi, simd
from . import arithmetic as a
from .add_sinusoidal_loops import Functions
from .loops import address_of, either, is_set, parts, steps, vectors
from .scheduler import REAL, WORD, load_word, variants
from .simd import I32, I64, Vector

at, table = abi.ROTATE.index, abi.ROTATE_TABLE.index


@variants(types.void, WORD, WORD, REAL, WORD, WORD, WORD, WORD)
def evaluate_angles(  # type: ignore[no-untyped-def]
    element: a.Element, builder, call, position, factor, f0, f1, cosines_at, sines_at
):
    """Factor times cosines and sines of the frequencies f0 ... f1 - 1; it writes up to MARGIN more."""
    functions = Functions(builder, element, call, position, factor, (at.frequencies, at.whole_turns))
    functions.store(f0, f1, sines_at, cosines_at)


@variants(types.void, WORD, WORD, WORD, WORD, WORD, WORD)
def scale_angles(  # type: ignore[no-untyped-def]
    element: a.Element, builder, call, distance, f0, f1, cosines_at, sines_at
):
    """Cosines and sines of the frequencies f0 ... f1 - 1 times two to the power of distance * growth (xPos)."""
    size = element.real_bytes
    growths, grows = load_word(builder, call, at.growths), is_set(builder, load_word(builder, call, at.grows))
    behind = builder.icmp_signed("<", distance, I64(0))
    rises = Vector(builder, builder.xor(behind, grows))
    distance = builder.select(behind, builder.neg(distance), distance)
    whole, part = builder.lshr(distance, I64(32)), builder.and_(distance, I64(0xFFFFFFFF))
    for f in steps(builder, f0, f1, element.per_vector):
        growth = simd.load(builder, address_of(builder, growths, f, 8), simd.I64, element.per_vector, 8)
        spread = (simd.spread(builder, value, element.per_vector) for value in (whole, part))
        factor = a.exp2(*a.exponent(*spread, growth), rises, element.real)
        for base in (cosines_at, sines_at):
            address = address_of(builder, base, f, size)
            simd.store(simd.load(builder, address, element.real, element.per_vector, size) * factor, address, size)


@variants(types.void, WORD, WORD, types.boolean, WORD, WORD)
def copy_angles(  # type: ignore[no-untyped-def]
    element: a.Element, builder, call, skipped, valid, cosines_at, sines_at
):
    """The row of the caller's table that begins after so many bytes; NaN unless it is ``valid``."""
    size = element.real_bytes
    for base, index in ((cosines_at, table.cosines), (sines_at, table.sines)):
        row = builder.add(load_word(builder, call, index), skipped)
        for f in steps(builder, I64(0), load_word(builder, call, at.pairs), 1):
            value = builder.load(builder.inttoptr(address_of(builder, row, f, size), element.real.as_pointer()))
            value = builder.select(valid, value, ir.Constant(element.real, np.nan))
            builder.store(value, builder.inttoptr(address_of(builder, base, f, size), element.real.as_pointer()))


@variants(types.void, WORD, WORD)
def direct_sines(element: a.Element, builder, call, sines_at):  # type: ignore[no-untyped-def]
    """Negate the sines of a row, unless the call rotates back: once here and not for each head."""
    size, inverse = element.real_bytes, is_set(builder, load_word(builder, call, at.inverse))
    with builder.if_then(builder.not_(inverse)):
        for f, count in vectors(builder, load_word(builder, call, at.pairs), element.per_vector):
            address = address_of(builder, sines_at, f, size)
            simd.store(-simd.load(builder, address, element.real, count, size), address, size)


def _written(element: a.Element, out: a.Element, value: Vector, factor: ir.Value, count: int) -> Vector:
    """Numbers as elements of the result: where that is of another type, float8, times a factor."""
    return element.write(value) if out is element else out.write(value * simd.spread(value.builder, factor, count))


@variants(types.void, WORD, WORD, WORD, WORD, WORD, WORD, REAL)
def copy_channels(  # type: ignore[no-untyped-def]
    element: a.Element, out: a.Element, builder, c0, c1, source, target, x_step, out_step, factor
):
    """Copy the channels c0 ... c1 - 1 of a row to elements of type ``out``."""
    for channel in steps(builder, c0, c1, 1):
        value = simd.load(builder, builder.add(source, builder.mul(channel, x_step)), element.stored, 1, 1)
        value = value if out is element else _written(element, out, element.read(value), factor, 1)
        simd.store(value, builder.add(target, builder.mul(channel, out_step)), 1)


@variants(types.void, WORD, WORD, WORD, WORD, WORD, WORD, WORD, WORD, WORD, WORD, WORD, REAL)
def rotate_row(  # type: ignore[no-untyped-def]
    element: a.Element,
    out: a.Element,
    builder,
    call,
    cosines,
    sines,
    heads,
    source,
    target,
    x_stride,
    out_stride,
    ahead,
    x_step,
    out_step,
    factor,
):
    """Rotate the pairs of a row in so many ``heads``, ``x_step`` and ``out_step`` bytes apart, to elements of type ``out``.

    ``u' = fma(u, cos, v sin)``, ``v' = fma(v, cos, -(u sin))``, where ``direct_sines`` has given the sines their sign; pair by pair where
    the columns are not contiguous. One head follows the other: taken column by column, lines of all heads would as a rule lie a power of
    two apart, and look alike to the caches and to the check of loads against stores (8.0 ms instead of 7.5 for float32 on one thread; AMD
    EPYC, Zen 4).
    """
    item, size = element.itemsize, element.real_bytes
    pairs, first = load_word(builder, call, at.pairs), load_word(builder, call, at.first_channel)
    sizes = (x_stride, item), (out_stride, out.itemsize)
    dense = builder.and_(*(builder.icmp_signed("==", stride, I64(size)) for stride, size in sizes))
    in_words = element is out is a.ELEMENTS["bfloat16"]

    def read(address: ir.Value, count: int, kind: ir.Type) -> Vector:
        for line in range(0, count * item, abi.LINE_BYTES):
            simd.prefetch(builder, builder.add(address, builder.add(ahead, I64(line))))
        return simd.load(builder, address, kind, count // 2 if kind is I32 else count, 1)  # two bfloat16 are a word

    def places(start: ir.Value, stop: ir.Value, count: int) -> Iterator[tuple[ir.Value, ...]]:
        for head in steps(builder, I64(0), heads, 1):
            bases = builder.add(source, builder.mul(head, x_step)), builder.add(target, builder.mul(head, out_step))
            for f in steps(builder, start, stop, count):
                yield *bases, f

    for interleaved in either(builder, is_set(builder, load_word(builder, call, at.interleaved))):
        for contiguous in either(builder, dense):
            whole = [abi.LINE_BYTES // item, element.per_vector] if not interleaved else [element.per_vector]
            for start, stop, count in parts(builder, pairs, *(whole if contiguous else [])):
                for x_base, out_base, f in places(start, stop, count):
                    one = builder.add(first, builder.mul(f, I64(2)) if interleaved else f)
                    other = builder.add(one, I64(1) if interleaved else pairs)
                    cosine, sine = (
                        simd.load(builder, address_of(builder, base, f, size), element.real, count, size)
                        for base in (cosines, sines)
                    )
                    if contiguous and interleaved:
                        x, place = address_of(builder, x_base, one, item), address_of(builder, out_base, one, out.itemsize)
                        if in_words:
                            pair = a.bf16_pairs_to_f32(read(x, 2 * count, I32))
                            simd.store(a.f32_to_bf16_pairs(*a.rotate(*pair, cosine, sine)), place, 1)
                            continue
                        pair = simd.separate(element.read(read(x, 2 * count, element.stored)))
                        both = simd.interleave(*a.rotate(*pair, cosine, sine))
                        simd.store(_written(element, out, both, factor, 2 * count), place, 1)
                        continue
                    channels = [(builder.mul(number, x_stride), builder.mul(number, out_stride)) for number in (one, other)]
                    pair = [element.read(read(builder.add(x_base, x), count, element.stored)) for x, _ in channels]
                    for value, (_, skipped) in zip(a.rotate(*pair, cosine, sine), channels, strict=True):
                        simd.store(_written(element, out, value, factor, count), builder.add(out_base, skipped), 1)
