"""Phase, sine and cosine, rotation and 16-bit conversion for Numba: the twin of ``arithmetic.cuh``, bit for bit.

Every float operation is a plain multiply, a plain add or an explicit fused multiply-add, in a fixed order and without fastmath.
Angles are in turns: a phase is the fraction of a turn in fixed point, and integer wrap-around is the range reduction.
``tests/helpers/fit_polynomials.py`` derives the constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target

from . import abi, simd
from .simd import F16, F32, F64, I8, I16, I32, I64, Vector, fma, polynomial


def _reals(hexadecimal: str) -> tuple[float, ...]:
    return tuple(float.fromhex(number) for number in hexadecimal.split())


# sin(2 pi r) = r (SIN_HIGH + SIN[0] + SIN[1] z + ...), cos(2 pi r) = COS[0] + COS[1] z + ...; z = r*r, |r| <= 1/8 turn.
# float32: polynomial errors 3.2e-9 (relative) and 5.4e-11; with roundings the result errs by at most 7.4e-8.
SIN_HIGH_32 = float.fromhex("0x1.921fb6p+2")
SIN_32 = _reals("-0x1.a32b8ap-23 -0x1.4abbbap+5 0x1.465e92p+6 -0x1.2d9302p+6")
COS_32 = _reals("1 -0x1.3bd3ccp+4 0x1.03c1dep+6 -0x1.55c664p+6 0x1.d9f7b8p+5")
# float64: polynomial errors 3.3e-18 and 3.3e-20.
SIN_HIGH_64 = float.fromhex("0x1.921fb54442d18p+2")
SIN_64 = _reals(
    "0x1.026565a2ab64ap-52 -0x1.4abbce625be41p+5 0x1.466bc67758700p+6 -0x1.32d2cce2d538ap+6 0x1.50782fca3af0ap+5"
    " -0x1.e30063a1b8bb9p+3 0x1.e3eed62bb3a55p+1"
)
COS_64 = _reals(
    "1 -0x1.3bd3cc9be45dep+4 0x1.03c1f081b5ab0p+6 -0x1.55d3c7e3c95bcp+6 0x1.e1f50683b4301p+5 -0x1.a6d1ecb743441p+4"
    " 0x1.f9cc6ad2607f8p+2 -0x1.b26fe92617f8cp+0"
)
# 2^r = EXP2[0] + EXP2[1] r + ..., |r| <= 1/2. Polynomial errors 1.9e-9 and 3.1e-18 (relative).
EXP2_32 = _reals("1 0x1.62e43p-1 0x1.ebfbdap-3 0x1.c6aed4p-5 0x1.3b2dbcp-7 0x1.5f456ap-10 0x1.41d314p-13")
EXP2_64 = _reals(
    "1 0x1.62e42fefa39efp-1 0x1.ebfbdff82c5adp-3 0x1.c6b08d7049fd1p-5 0x1.3b2ab6fb9f412p-7 0x1.5d87fe78cf231p-10"
    " 0x1.43091310bf95dp-13 0x1.ffcbfba7c5eb8p-17 0x1.62bfc3c154df1p-20 0x1.b5267873093f1p-24 0x1.e620fc49ec411p-28"
    " 0x1.e7aa32c48dcfcp-32"
)


# ---- phase, sine and cosine --------------------------------------------------------------------------------------------------


def phase(whole: Vector, part: Vector, fraction_of_turn: Vector, whole_turns: Vector) -> Vector:
    """Phase at a position: (position * frequency) mod one turn, in units of 2^-64 turn (all uint64).

    The position is ``whole + part * 2^-32``, ``whole`` in two's complement; the frequency is
    ``whole_turns + fraction_of_turn * 2^-64`` turns a position. The product of the integer part wraps exactly; of the product with
    the fraction only bits below 2^-64 turn are dropped.
    """
    high, low = fraction_of_turn >> 32, fraction_of_turn & 0xFFFFFFFF
    return whole * fraction_of_turn + ((part * whole_turns) << 32) + part * high + ((part * low) >> 32)


def sincos(turns: Vector) -> tuple[Vector, Vector]:
    """Sine and cosine of ``turns / 2^32`` turns (uint32) in float32, or of ``turns / 2^64`` turns (uint64) in float64."""
    bits = turns.element.width
    real, high, sines, cosines = (F64, SIN_HIGH_64, SIN_64, COS_64) if bits == 64 else (F32, SIN_HIGH_32, SIN_32, COS_32)
    eighth, half = 1 << (bits - 3), 1 << (bits - 1)
    shifted = turns + eighth
    if isinstance(turns.value.type, ir.VectorType) and bits == 64:  # not every processor makes floats of many 64-bit integers
        kind = ir.VectorType(F64, turns.value.type.count)
        r = Vector(turns.builder, simd.outside(turns.builder, f"{abi.IN_QUADRANT}{kind.count}", kind, shifted.value))
    else:
        r = ((shifted & (2 * eighth - 1)) - eighth).to(real) * 2.0**-bits
    z = r * r
    sine = fma(r, high, polynomial(z, sines) * r)
    cosine = polynomial(z, cosines)
    odd = (shifted & (2 * eighth)).compare("!=", 0)
    sine_sign, cosine_sign = shifted & half, (shifted + 2 * eighth) & half
    return _signed(odd.choose(cosine, sine), sine_sign), _signed(odd.choose(sine, cosine), cosine_sign)


# ---- powers of two -----------------------------------------------------------------------------------------------------------


def exponent(whole: Vector, part: Vector, growth: Vector) -> tuple[Vector, Vector]:
    """Distance times growth (all uint64) as the nearest integer and a signed fraction in units of 2^-64.

    The distance is ``whole + part * 2^-32``, ``whole`` below 2^31; the growth is below 1, in units of 2^-64.
    """
    high, low = growth >> 32, growth & 0xFFFFFFFF
    rest = part * high + ((part * low) >> 32)
    fraction = whole * growth + rest
    integer = (whole * high + ((whole * low) >> 32)) >> 32
    integer = integer + fraction.compare("<", rest).choose(integer.like(1), integer.like(0)) + (fraction >> 63)
    return integer, fraction


def exp2(integer: Vector, fraction: Vector, rises: Vector, real: ir.Type) -> Vector:
    """Two to the power of integer + fraction (the fraction as a signed number), or of its negative; 0 and inf beyond."""
    word, bias, mantissa, coefficients = (I64, 1023, 52, EXP2_64) if real is F64 else (I32, 127, 23, EXP2_32)
    r = (fraction >> (64 - word.width)).to(word).to(real) * 2.0**-word.width
    r = rises.choose(r, -r)
    up, down = (integer.compare("<", most).choose(integer, integer.like(most)).to(word) for most in (bias + 1, bias))
    scale = rises.choose(up + bias, up.like(bias) - down) << mantissa
    return polynomial(r, coefficients) * scale.as_float()


def _signed(value: Vector, sign: Vector) -> Vector:
    return (value.bits() ^ sign).as_float()


def rotate(first: Vector, second: Vector, cosine: Vector, sine: Vector) -> tuple[Vector, Vector]:
    """The pair rotated by the angle of this cosine and sine."""
    return fma(first, cosine, second * sine), fma(second, cosine, -(first * sine))


# ---- 16-bit storage ----------------------------------------------------------------------------------------------------------


def bf16_to_f32(bits: Vector) -> Vector:
    return (bits.to(I32) << 16).as_float()


def f32_to_bf16(value: Vector) -> Vector:
    """Round to nearest even, for sums with a bfloat16: their NaNs have no bit set below the upper sixteen, so none is lost."""
    return _converted(value, _same, lambda: (_rounded_to_bf16(value) >> 16).to(I16))


def _converted(value: Vector, arranged: Callable[[Vector], Vector], otherwise: Callable[[], Vector]) -> Vector:
    """The bfloat16s of a vector as the processor converts them, ``arranged``, or ``otherwise`` where it would not round these as said."""
    builder, kind = value.builder, value.value.type
    if not isinstance(kind, ir.VectorType) or kind.count < 16:
        return otherwise()
    results = []
    converts = simd.outside(builder, f"{abi.CONVERTS}{kind.count}", simd.I1, value.value)
    with builder.if_else(converts, likely=True) as branches:
        for branch, in_hardware in zip(branches, (True, False), strict=True):
            with branch:
                if in_hardware:
                    bits = simd.outside(builder, f"{abi.TO_BFLOAT16}{kind.count}", ir.VectorType(I16, kind.count), value.value)
                    result = arranged(Vector(builder, bits))
                else:
                    result = otherwise()
                results.append((result.value, builder.block))
    chosen = builder.phi(results[0][0].type)
    for one in results:
        chosen.add_incoming(*one)
    return Vector(builder, chosen)


def _rounded_to_bf16(value: Vector) -> Vector:
    """Its bits, of which the upper half is the bfloat16."""
    bits = value.bits()
    return bits + ((bits >> 16) & 1) + 0x7FFF


def bf16_pairs_to_f32(words: Vector) -> tuple[Vector, Vector]:
    """The bfloat16s in the lower and the upper halves of 32-bit words: nothing is widened or interleaved."""
    return (words << 16).as_float(), (words & 0xFFFF0000).as_float()


def f32_to_bf16_pairs(lower: Vector, upper: Vector) -> Vector:
    """As ``f32_to_bf16``, to the halves of 32-bit words, as the elements of so many bfloat16."""
    builder, kind = lower.builder, ir.VectorType(I16, 2 * lower.value.type.count)

    def otherwise() -> Vector:
        words = (_rounded_to_bf16(lower) >> 16) | (_rounded_to_bf16(upper) & 0xFFFF0000)
        return Vector(builder, builder.bitcast(words.value, kind))

    def arranged(bits: Vector) -> Vector:
        order = [number + half for number in range(kind.count // 2) for half in (0, kind.count // 2)]
        mask = ir.Constant(ir.VectorType(I32, kind.count), order)
        return Vector(builder, builder.shuffle_vector(bits.value, bits.value, mask))

    return _converted(simd.join(lower, upper), arranged, otherwise)


def f16_to_f32_hardware(bits: Vector) -> Vector:
    return bits.as_float().to(F32)


def f32_to_f16_hardware(value: Vector) -> Vector:
    return value.to(F16).bits()


def f16_to_f32_integer(bits: Vector) -> Vector:
    """Exact, in integer steps and one exact multiply: for CPUs without a conversion instruction."""
    wide = bits.to(I32)
    magnitude = wide & 0x7FFF
    shifted = magnitude << 13
    # 2^112 moves the exponent bias from 15 to 127; subnormals come out normalised.
    finite = (shifted.as_float() * 2.0**112).bits()
    special = shifted | 0x7F800000
    special = magnitude.compare(">", 0x7C00).choose(special | 0x400000, special)
    return (magnitude.compare(">=", 0x7C00).choose(special, finite) | ((wide & 0x8000) << 16)).as_float()


def f32_to_f16_integer(value: Vector) -> Vector:
    """Round to nearest even, overflow to infinity: for CPUs without a conversion instruction."""
    bits = value.bits()
    magnitude = bits & 0x7FFFFFFF
    odd = (magnitude >> 13) & 1
    normal = (magnitude + ((((15 - 127) << 23) + 0xFFF) & 0xFFFFFFFF) + odd) >> 13
    # Adding 2^-1 leaves a subnormal's rounded bits at the bottom of the float.
    magic = magnitude.like(((127 - 15) + (23 - 10) + 1) << 23)
    subnormal = (magnitude.as_float() + magic.as_float()).bits() - magic
    result = magnitude.compare("<", 113 << 23).choose(subnormal, normal)
    result = magnitude.compare(">=", 0x47800000).choose(result.like(0x7C00), result)
    nan = ((magnitude >> 13) & 0x3FF) | 0x7E00
    result = magnitude.compare(">", 0x7F800000).choose(nan, result)
    return (result | ((bits & 0x80000000) >> 16)).to(I16)


def _converts_f16_in_hardware() -> bool:
    """Whether the CPU that Numba compiles for (not the one it runs on) converts float16 itself.

    Elsewhere LLVM calls library functions that the JIT cannot find, and the first call would crash.
    """
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    return triple.startswith(("aarch64", "arm64")) or "+f16c" in features.split(",")


if _converts_f16_in_hardware():
    f16_to_f32, f32_to_f16 = f16_to_f32_hardware, f32_to_f16_hardware
else:
    f16_to_f32, f32_to_f16 = f16_to_f32_integer, f32_to_f16_integer


# ---- element types -----------------------------------------------------------------------------------------------------------


class Element(NamedTuple):
    """How an element type is stored and computed with."""

    suffix: str
    itemsize: int
    stored: ir.Type
    real: ir.Type  # the type of the arithmetic
    read: Callable[[Vector], Vector]  # stored -> real
    write: Callable[[Vector], Vector]  # real -> stored

    @property
    def real_bytes(self) -> int:
        return 8 if self.real is F64 else 4

    @property
    def number(self) -> type[np.floating[Any]]:
        """The type of the arithmetic as NumPy's."""
        return np.float64 if self.real is F64 else np.float32

    @property
    def numba_real(self) -> Any:
        """The type of the arithmetic as Numba's."""
        return types.float64 if self.real is F64 else types.float32

    @property
    def per_vector(self) -> int:
        """Numbers in a vector of 64 bytes; LLVM cuts it into what the CPU has."""
        return 64 // self.real_bytes


def _same(value: Vector) -> Vector:
    return value


ELEMENTS = {
    "float32": Element("f32", 4, F32, F32, _same, _same),
    "float64": Element("f64", 8, F64, F64, _same, _same),
    "float16": Element("f16", 2, I16, F32, f16_to_f32, f32_to_f16),
    "bfloat16": Element("bf16", 2, I16, F32, bf16_to_f32, f32_to_bf16),
}


# ---- 8-bit storage -----------------------------------------------------------------------------------------------------------


def to_float8(bias: int, mantissa: int, largest: int) -> Callable[[Vector], Vector]:
    """Round float32 to nearest even, to ``largest`` where it is beyond; every NaN becomes 0x7F."""
    shift = 23 - mantissa

    def write(value: Vector) -> Vector:
        bits = value.bits()
        magnitude = bits & 0x7FFFFFFF
        odd = (magnitude >> shift) & 1
        normal = (magnitude + ((((bias - 127) << 23) + (1 << shift - 1) - 1) & 0xFFFFFFFF) + odd) >> shift
        magic = magnitude.like((128 - bias + shift) << 23)  # as in f32_to_f16_integer
        subnormal = (magnitude.as_float() + magic.as_float()).bits() - magic
        result = magnitude.compare("<", (128 - bias) << 23).choose(subnormal, normal)
        result = result.compare("<", largest).choose(result, result.like(largest)) | ((bits >> 24) & 0x80)
        return magnitude.compare(">", 0x7F800000).choose(result.like(0x7F), result).to(I8)

    return write


FLOAT8 = {"float8_e4m3fn": to_float8(7, 3, 0x7E), "float8_e5m2": to_float8(15, 2, 0x7B)}  # largest: 448 and 57344


# ---- mixed element types -----------------------------------------------------------------------------------------------------


def f32_to_bf16_any(value: Vector) -> Vector:
    """Round to nearest even; every NaN stays a NaN."""

    def otherwise() -> Vector:
        bits = value.bits()
        nan = (bits & 0x7FFFFFFF).compare(">", 0x7F800000)
        return nan.choose(bits.like(0x7FFF), _rounded_to_bf16(value) >> 16).to(I16)

    return _converted(value, _same, otherwise)


def f64_to_f32_odd(value: Vector) -> Vector:
    """Round to odd: an inexact result gets an odd last bit, so that rounding it once more, to 16 bits, equals rounding once."""
    near = value.to(F32)
    back, bits = near.to(F64), near.bits()
    exact = back.same(value)
    away = (value.bits() & (2**63 - 1)).compare("<", back.bits() & (2**63 - 1))  # near is farther from 0
    down = away.choose(bits - 1, bits)
    odd = down | 1
    return (exact | (bits & 0x7FFFFFFF).compare(">=", 0x7F800000)).choose(bits, odd).as_float()


def mixed(dtype: str, real: ir.Type) -> Element:
    """An element type, or int8 or uint8 (only read) or float8 (only written), with its arithmetic in ``real`` instead of its own."""
    own = ELEMENTS.get(dtype)
    if dtype in FLOAT8:
        narrow8 = FLOAT8[dtype]
        write = narrow8 if real is F32 else lambda value: narrow8(f64_to_f32_odd(value))
        return Element(dtype, 1, I8, real, _same, write)
    if own is None:
        flip = 0x80 if dtype == "int8" else 0  # int8 is read as uint8 with 128 more; the zero point subtracts it again

        def read_integer(value: Vector) -> Vector:
            return (value.to(I32) ^ flip).to(real)

        return Element(dtype, 1, I8, real, read_integer, _same)
    if own.real is real and own.stored is not I16:
        return own
    narrow = f32_to_bf16_any if dtype == "bfloat16" else own.write
    if own.real is real:
        return own._replace(write=narrow)
    return own._replace(
        real=F64,
        read=lambda value: own.read(value).to(F64),
        write=(lambda value: value.to(F32)) if dtype == "float32" else (lambda value: narrow(f64_to_f32_odd(value))),
    )


def add(
    element: Element,
    reads: bool,
    values: Vector,
    source: ir.Value,
    target: ir.Value,
    scale: ir.Value,
    ahead: ir.Value,
    streams: bool = False,
) -> None:
    """``target = source*scale + values`` in stored elements of any alignment; without ``reads``, ``target = values``.

    x is prefetched ``ahead`` bytes before it is needed: left to itself the processor keeps too few lines on their way from memory
    while it computes. ``streams`` writes past the caches, to a target that begins on a cache line.
    """
    builder, count = values.builder, values.value.type.count
    if reads:
        for line in range(0, count * element.itemsize, abi.LINE_BYTES):
            simd.prefetch(builder, builder.add(source, builder.add(ahead, ahead.type(line))))
        x = element.read(simd.load(builder, source, element.stored, count, 1))
        values = x * simd.spread(builder, scale, count) + values
    simd.store(element.write(values), target, abi.LINE_BYTES if streams else 1, streams)


def add_pairs(
    reads: bool, pair: tuple[Vector, Vector], source: ir.Value, target: ir.Value, scale: ir.Value, ahead: ir.Value
) -> None:
    """As ``add``, to bfloat16 whose first and second functions lie side by side: in a 32-bit word, so that nothing is interleaved.

    30 instructions for a line instead of 37 with AVX-512, if the processor does not round by itself, 59 instead of 73 with AVX2.
    """
    builder, count = pair[0].builder, pair[0].value.type.count
    if reads:
        for line in range(0, 4 * count, abi.LINE_BYTES):
            simd.prefetch(builder, builder.add(source, builder.add(ahead, ahead.type(line))))
        words, factor = simd.load(builder, source, I32, count, 1), simd.spread(builder, scale, count)
        first, second = bf16_pairs_to_f32(words)
        pair = first * factor + pair[0], second * factor + pair[1]
    simd.store(f32_to_bf16_pairs(*pair), target, 1)
