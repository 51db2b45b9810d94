"""Arithmetic as PTX defines it, on NumPy arrays with one element per thread.

Floats round to nearest even and keep subnormals; f32 arithmetic has one NaN; integers wrap around. An integer
division by zero, whose result the ISA leaves open, raises. Callers silence NumPy's floating-point warnings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from ptx_memory import PTXError, every, some

U8, U16, U32, U64 = (np.dtype(f"u{size}") for size in (1, 2, 4, 8))
F32, F64, PRED = np.dtype(np.float32), np.dtype(np.float64), np.dtype(bool)
NAN_F32 = np.uint32(0x7FFFFFFF).view(F32)
NAN_16 = np.uint16(0x7FFF)


# ---- floating point ------------------------------------------------------------------------------


def fma_f32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a*b + c with one rounding: exact product in float64, sum rounded to odd, then rounded to float32.

    Rounding the sum to float64 first does no harm where it is no subnormal float32 and not halfway between two.
    """
    product, c = a.astype(F64) * b.astype(F64), c.astype(F64)
    total = product + c
    twice = (total.view(U64) & _BELOW_F32) == _HALF_F32
    tiny = np.absolute(total) < _TINY_F32
    if some(twice) or (some(tiny) and some(tiny & (total != 0))):
        return _add_to_odd(product, c).astype(F32)
    return total.astype(F32)


_BELOW_F32, _HALF_F32, _TINY_F32 = np.uint64(2**29 - 1), np.uint64(2**28), np.float64(2.0**-125)


def fma_f64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a*b + c with one rounding (Boldo and Melquiond 2008: error-free transforms and a sum rounded to odd).

    Lanes whose exponents could make a transform inexact are done with fractions.
    """
    high, low = _two_product(a, b)
    partial, tail = _two_sum(c, low)
    total, rest = _two_sum(high, partial)
    result = total + _add_to_odd(tail, rest)
    ordinary = _exponent_within(a, 450) & _exponent_within(b, 450) & np.isfinite(c)
    if not every(ordinary):
        # a zero product or an infinite one is exact, and c decides alone where only c is not finite
        exact_product = (a == 0) | (b == 0) | ~np.isfinite(a) | ~np.isfinite(b)
        result = np.where(exact_product, a * b + c, np.where(np.isfinite(c), result, c))
        for lane in np.flatnonzero(~(ordinary | exact_product | ~np.isfinite(c))):
            result[lane] = _fma_exactly(*(float(x[lane if x.size > 1 else 0]) for x in (a, b, c)))
    return result


def _fma_exactly(a: float, b: float, c: float) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c  # both are exact, and the sign of the zero is the sum's
    try:
        return exact.numerator / exact.denominator
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def _exponent_within(x: np.ndarray, bound: int) -> np.ndarray:
    magnitude = np.abs(x)
    return (magnitude > 2.0**-bound) & (magnitude < 2.0**bound)


def _two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(s, e): s = a + b rounded, s + e = a + b exactly (Knuth)."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)


def _two_product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(p, e): p = a * b rounded, p + e = a * b exactly (Dekker, Veltkamp)."""
    product = a * b
    scaled_a, scaled_b = 134217729.0 * a, 134217729.0 * b  # 2^27 + 1
    a_high, b_high = scaled_a - (scaled_a - a), scaled_b - (scaled_b - b)
    a_low, b_low = a - a_high, b - b_high
    return product, a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)


def _add_to_odd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b rounded to odd: exact, or the neighbour with its last bit set, so a later rounding is right."""
    total, error = _two_sum(a, b)
    bits = total.view(np.int64)
    step = np.where((error > 0) == (total > 0), 1, -1)
    inexact = np.isfinite(error) & (error != 0) & (bits & 1 == 0)
    return (bits + np.where(inexact, step, 0)).view(F64)


def smaller(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    equal = (unsigned_view(a) | unsigned_view(b)).view(a.dtype)  # -0 is below +0
    return np.where(a == b, equal, np.fmin(a, b))


def larger(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    equal = (unsigned_view(a) & unsigned_view(b)).view(a.dtype)
    return np.where(a == b, equal, np.fmax(a, b))


def flush(x: np.ndarray) -> np.ndarray:
    """Subnormal float32 values become zeros of their sign."""
    tiny = np.abs(x) < np.float32(2.0**-126)
    return np.where(tiny, np.copysign(np.float32(0), x), x) if some(tiny) else x


def canonical(x: np.ndarray) -> np.ndarray:
    bad = np.isnan(x)
    return np.where(bad, NAN_F32, x) if some(bad) else x


def clamp_to_one(x: np.ndarray) -> np.ndarray:
    zero, one = x.dtype.type(0), x.dtype.type(1)
    return np.where(np.isnan(x), zero, np.clip(x, zero, one) + zero)  # -0 becomes +0


# ---- integers and bits ---------------------------------------------------------------------------


def unsigned(dtype: np.dtype) -> np.dtype:
    return PRED if dtype == PRED else np.dtype(f"u{dtype.itemsize}")


def unsigned_view(a: np.ndarray) -> np.ndarray:
    return a.view(unsigned(a.dtype))


def twice_as_wide(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")


def multiply_high(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The upper half of the exact product of two integers."""
    if a.itemsize < 8:
        wide = twice_as_wide(a.dtype)
        return (a.astype(wide) * b.astype(wide) >> wide.type(8 * a.itemsize)).astype(a.dtype)
    if a.dtype.kind == "i":
        ua, ub, zero = a.view(U64), b.view(U64), np.uint64(0)
        excess = np.where(a < 0, ub, zero) + np.where(b < 0, ua, zero)
        return (multiply_high(ua, ub) - excess).view(a.dtype)
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    a_low, a_high, b_low, b_high = a & mask, a >> half, b & mask, b >> half
    middle = a_high * b_low + (a_low * b_low >> half)
    carried = a_low * b_high + (middle & mask)
    return a_high * b_high + (middle >> half) + (carried >> half)


def divide(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quotient and remainder, truncated towards zero."""
    if not every(b):
        raise PTXError("integer division by zero")
    if a.dtype.kind == "u":
        return np.divmod(a, b)
    quotient, remainder = np.divmod(unsigned_view(np.abs(a)), unsigned_view(np.abs(b)))
    quotient = np.where((a < 0) != (b < 0), np.negative(quotient), quotient)
    return quotient.view(a.dtype), np.where(a < 0, np.negative(remainder), remainder).view(a.dtype)


def shift_left(a: np.ndarray, amount: np.ndarray) -> np.ndarray:
    inside = amount < 8 * a.itemsize
    if every(inside):
        return a << amount.astype(a.dtype)
    return np.where(inside, a << np.where(inside, amount, 0).astype(a.dtype), a.dtype.type(0))


def shift_right(a: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Arithmetic for signed a; amounts beyond the width leave copies of the sign, or zeros."""
    shifted = a >> np.minimum(amount, 8 * a.itemsize - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(amount < 8 * a.itemsize, shifted, a.dtype.type(0))


def extract_bits(a: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    bits = 8 * a.itemsize
    position, length = (position & 255).astype(np.int64), (length & 255).astype(np.int64)
    top = np.minimum(position + length, bits)
    field = shift_left(unsigned_view(a), bits - top).view(a.dtype)
    return np.where(length == 0, a.dtype.type(0), shift_right(field, bits - np.maximum(top - position, 0)))


def insert_bits(a: np.ndarray, b: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    position, length = position & 255, length & 255
    ones = ~shift_left(np.full_like(a, ~a.dtype.type(0)), length)
    return (b & ~shift_left(ones, position)) | shift_left(a & ones, position)


def permute_bytes(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    pair = a.astype(U64) | b.astype(U64) << np.uint64(32)
    result = np.zeros(1, U32)
    for k in range(4):
        choice = (selector >> np.uint32(4 * k)) & np.uint32(15)
        byte = (pair >> ((choice & np.uint32(7)).astype(U64) * np.uint64(8))).astype(U8)
        byte = np.where(choice & np.uint32(8), (byte.view(np.int8) >> 7).view(U8), byte)
        result = result | byte.astype(U32) << np.uint32(8 * k)
    return result


def funnel_shift(direction: str, mode: str) -> Callable:
    def run(low: np.ndarray, high: np.ndarray, amount: np.ndarray) -> np.ndarray:
        amount = (amount & 31 if mode == "wrap" else np.minimum(amount, 32)).astype(U64)
        both = low.astype(U64) | high.astype(U64) << np.uint64(32)
        return (both >> amount if direction == "r" else both << amount >> np.uint64(32)).astype(U32)

    return run


def count_leading_zeros(a: np.ndarray) -> np.ndarray:
    filled = a.copy()
    for k in range((8 * a.itemsize).bit_length() - 1):
        filled |= filled >> a.dtype.type(1 << k)
    return np.bitwise_count(~filled).astype(U32)


# ---- conversion ----------------------------------------------------------------------------------


def to_f16(x: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(x), NAN_16, x.astype(np.float16).view(U16))


def to_bf16(x: np.ndarray) -> np.ndarray:
    bits = x.view(U32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), NAN_16, rounded.astype(U16))


def from_f16(bits: np.ndarray, dtype: np.dtype) -> np.ndarray:
    value = bits.view(np.float16).astype(dtype)
    return canonical(value) if dtype == F32 else value


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(U32) << np.uint32(16)).view(F32)


def to_integer(x: np.ndarray, rounding: Callable, dtype: np.dtype) -> np.ndarray:
    """Round, then clamp to dtype's range. NaN is 0 from f32 to at most 32 bits, else the top bit alone."""
    info = np.iinfo(dtype)
    nan = 0 if x.dtype == F32 and dtype.itemsize < 8 else 1 << (info.bits - 1)
    rounded = rounding(x.astype(F64))
    low, high = float(info.min), float(info.max + 1)
    inside = (rounded >= low) & (rounded < high)
    result = np.where(inside, rounded, 0.0).astype(dtype)
    result = np.where(rounded >= high, dtype.type(info.max), result)
    result = np.where(rounded < low, dtype.type(info.min), result)
    return np.where(np.isnan(x), np.array(nan, U64).astype(dtype), result)
