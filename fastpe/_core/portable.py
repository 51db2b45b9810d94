"""The kernels' arithmetic in plain array operations, for programs that no kernel serves: TPUs, and libraries that only have graphs.

Positions times frequencies are 64-bit products, made of 32-bit ones that wrap, so no device needs 64-bit types. Plans are those of the
kernels. Results are equal to the kernels' up to rounding, not to the bit: of float32 within 2e-7 of exact at any position.

Functions take the operations of a library first. Positions have the axes of the rows, and a last one: of size 1, or one for each frequency.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .._backends.plans import RotaryPlan, SinusoidalPlan, Turns
from ..kernels import arithmetic as a

Array = Any


class Ops(NamedTuple):
    """What a library must be able to do, beside ``+ - * & | ~ < >= !=``, ``x[..., a:b:c]`` and ``x.shape``, on integers that wrap.

    ``cast(x, name)`` converts as C does; ``shift(x, count)`` shifts unsigned numbers right; ``where``, ``stack`` and ``concat`` are as
    ``numpy.where``, ``numpy.stack`` and ``numpy.concatenate``; ``merge(x)`` makes one axis of the last two.
    """

    cast: Callable[[Array, str], Array]
    shift: Callable[[Array, int], Array]
    where: Callable[[Array, Array, Array], Array]
    stack: Callable[[list[Array], int], Array]
    concat: Callable[[list[Array], int], Array]
    merge: Callable[[Array], Array]


def ops_of(xp: Any) -> Ops:
    """The operations of a module like NumPy."""
    return Ops(
        cast=lambda x, name: x.astype(name),
        shift=lambda x, count: xp.right_shift(x, x.dtype.type(count)),
        where=xp.where,
        stack=xp.stack,
        concat=xp.concatenate,
        merge=lambda x: x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1]),
    )


class Positions(NamedTuple):
    """``whole + part / 2^32``: int32, and uint32 or None where all are integers. Where ``valid`` is False there is none; None: all are."""

    whole: Array
    part: Array | None = None
    valid: Array | None = None


def of_words(ops: Ops, low: Array, high: Array) -> Positions:
    """Of the int32 halves of a table as kernels read it, int64 in units of 2^-32."""
    valid = (low != np.int32(1)) | (high != np.int32(-(2**31)))  # all but NOT_A_POSITION
    return Positions(high, ops.cast(low, "uint32"), valid)


def by_axis(ops: Ops, axes: Any, positions: list[Positions]) -> Positions:
    """Of several axes, that of each frequency: ``axes`` (F,) are their numbers."""
    first, *others = positions
    for number, other in enumerate(others, 1):
        chosen = np.asarray(axes) == number
        first = Positions(
            *(None if one is None else ops.where(chosen, two, one) for one, two in zip(first, other, strict=True))
        )
    return first


# ---- angles ------------------------------------------------------------------------------------------------------------------


def phase(ops: Ops, at: Positions, frequencies: Turns, real: str = "float32") -> Array:
    """Position times frequency mod one turn, (..., F): uint32 in units of 2^-32 turn; for float64 uint64 in units of 2^-64."""
    if real == "float64":
        high, low = frequencies.fraction >> np.uint64(32), frequencies.fraction & np.uint64(0xFFFFFFFF)
        found = ops.cast(ops.cast(at.whole, "int64"), "uint64") * frequencies.fraction
        if at.part is not None:
            part = ops.cast(at.part, "uint64")
            found = found + (part * frequencies.whole) * np.uint64(1 << 32) + part * high + ops.shift(part * low, 32)
        return found
    high, low = _halves(frequencies.fraction)
    whole = ops.cast(at.whole, "uint32")
    found = whole * high + _upper(ops, whole, low) - ops.where(at.whole < 0, low, np.uint32(0))
    if at.part is not None:
        found = found + at.part * frequencies.whole.astype(np.uint32) + _upper(ops, at.part, high)
    return found


def sine_cosine(ops: Ops, turns: Array, real: str = "float32") -> tuple[Array, Array]:
    """Sine and cosine of a phase."""
    number = np.dtype(real).type
    bits, word, signed = (64, np.uint64, "int64") if real == "float64" else (32, np.uint32, "int32")
    eighth = 1 << (bits - 3)
    shifted = turns + word(eighth)
    centred = ops.cast(shifted & word(2 * eighth - 1), signed) - np.dtype(signed).type(eighth)
    r = ops.cast(centred, real) * number(2.0**-bits)
    z = r * r
    high, sines, cosines = (a.SIN_HIGH_64, a.SIN_64, a.COS_64) if bits == 64 else (a.SIN_HIGH_32, a.SIN_32, a.COS_32)
    sine = r * number(high) + _polynomial(z, sines, number) * r
    cosine = _polynomial(z, cosines, number)
    odd = (shifted & word(2 * eighth)) != 0
    sine, cosine = ops.where(odd, cosine, sine), ops.where(odd, sine, cosine)
    back, left = (shifted & word(4 * eighth)) != 0, ((shifted + word(2 * eighth)) & word(4 * eighth)) != 0
    return ops.where(back, -sine, sine), ops.where(left, -cosine, cosine)


def _polynomial(z: Array, coefficients: tuple[float, ...], number: Any) -> Array:
    *others, found = (number(one) for one in coefficients)
    for one in reversed(others):
        found = found * z + one
    return found


def _halves(numbers: Any) -> tuple[Any, Any]:
    return (numbers >> np.uint64(32)).astype(np.uint32), numbers.astype(np.uint32)


def _upper(ops: Ops, x: Array, y: Any) -> Array:
    """The upper half of the 64-bit product of uint32s; y is NumPy's."""
    mask = np.uint32(0xFFFF)
    x1, x0, y1, y0 = ops.shift(x, 16), x & mask, y >> np.uint32(16), y & mask
    middle = x1 * y0 + ops.shift(x0 * y0, 16)
    return x1 * y1 + ops.shift(middle, 16) + ops.shift(x0 * y1 + (middle & mask), 16)


def _marked(ops: Ops, values: Array, at: Positions, real: str) -> Array:
    """NaN where there is no position."""
    return values if at.valid is None else ops.where(at.valid, values, np.dtype(real).type(np.nan))


# ---- sinusoids ---------------------------------------------------------------------------------------------------------------


def sinusoids(ops: Ops, parts: list[tuple[int, SinusoidalPlan, Positions]], real: str = "float32") -> Array:
    """The encoding of positions, (..., D), with the amplitude. A part is a first column, a plan and positions; a grid has several."""
    blocks = [(first + column, block) for first, plan, at in parts for column, block in _blocks(ops, plan, at, real)]
    blocks.sort(key=lambda block: block[0])
    return blocks[0][1] if len(blocks) == 1 else ops.concat([block for _, block in blocks], -1)


def _blocks(ops: Ops, plan: SinusoidalPlan, at: Positions, real: str) -> list[tuple[int, Array]]:
    """Neighbouring columns of a plan, with the first one's number."""
    amplitude, pairs = np.dtype(real).type(plan.amplitude), plan.width // 2
    sine, cosine = (_marked(ops, one * amplitude, at, real) for one in sine_cosine(ops, phase(ops, at, plan.turns, real), real))
    first, second = (one[..., :pairs] for one in ((cosine, sine) if plan.cosine_first else (sine, cosine)))
    blocks = []
    if plan.interleaved and pairs:
        blocks = [(0, ops.merge(ops.stack([first, second], -1)))]
    elif pairs:
        blocks = [(0, first), (plan.second_half, second)]
    if plan.tail_column >= 0:
        blocks.append((plan.tail_column, (cosine if plan.tail_is_cosine else sine)[..., pairs:]))
    return blocks


def add(ops: Ops, x: Array, values: Array, scale: float = 1.0) -> Array:
    """``x * scale + values`` in the arithmetic's type, rounded once to that of x."""
    scaled = _real(ops, x) if scale == 1.0 else _real(ops, x) * np.dtype(real_of(x)).type(scale)
    return ops.cast(scaled + values, _name(x))


def real_of(x: Array) -> str:
    """The type of the arithmetic for an array."""
    return "float64" if _name(x) == "float64" else "float32"


def _name(x: Array) -> str:
    return str(getattr(x.dtype, "name", x.dtype))


def _real(ops: Ops, x: Array) -> Array:
    return x if _name(x) == real_of(x) else ops.cast(x, real_of(x))


# ---- rotations ---------------------------------------------------------------------------------------------------------------


def angles(
    ops: Ops, plan: RotaryPlan, at: Positions, real: str = "float32", back: bool = False, factor: float = 1.0
) -> tuple[Array, Array]:
    """Cosines and sines (..., F) of a rotation at positions, or of one ``back``, times a factor."""
    sine, cosine = sine_cosine(ops, phase(ops, at, plan.turns, real), real)
    number = np.dtype(real).type(factor)
    return _marked(ops, cosine * number, at, real), _marked(ops, sine * (-number if back else number), at, real)


def growth(ops: Ops, plan: RotaryPlan, at: Positions, grows: bool, centre: int, real: str = "float32") -> Array:
    """xPos's factors (..., F), which are 1 at the centre: those of keys grow with the position."""
    whole = at.whole - np.int32(centre)
    part = ops.cast(whole - whole, "uint32") if at.part is None else at.part
    below = whole < 0
    none = ops.cast(part < np.uint32(1), "uint32")  # a borrow of the distance's lower half
    distance = ops.where(below, ~ops.cast(whole, "uint32") + none, ops.cast(whole, "uint32"))
    part = ops.where(below, np.uint32(0) - part, part)
    integer, rest = _exponent(ops, distance, part, plan.growths, real)
    number = np.dtype(real).type
    sign = ops.where(whole >= 0 if grows else below, number(1.0), number(-1.0))
    found = _polynomial(rest * sign, a.EXP2_64 if real == "float64" else a.EXP2_32, number)
    bits = 10 if real == "float64" else 7  # of an exponent
    for bit in range(bits):
        power = ops.where(sign < 0, number(2.0 ** -(2**bit)), number(2.0 ** (2**bit)))
        found = ops.where((integer & np.uint32(1 << bit)) != 0, found * power, found)
    beyond = ops.where(sign < 0, number(0.0), number(np.inf))
    return ops.where(integer < np.uint32(1 << bits), found, beyond)


def _exponent(ops: Ops, distance: Array, part: Array, growths: Any, real: str) -> tuple[Array, Array]:
    """A distance times growths below 1: the nearest integer, uint32, and the rest in [-1/2, 1/2)."""
    if real == "float64":
        high, low = growths >> np.uint64(32), growths & np.uint64(0xFFFFFFFF)
        distance, part = ops.cast(distance, "uint64"), ops.cast(part, "uint64")
        more = part * high + ops.shift(part * low, 32)
        fraction = distance * growths + more
        integer = ops.cast(ops.shift(distance * high + ops.shift(distance * low, 32), 32), "uint32")
        integer = integer + ops.cast(fraction < more, "uint32") + ops.cast(ops.shift(fraction, 63), "uint32")
        return integer, ops.cast(ops.cast(fraction, "int64"), real) * 2.0**-64
    high, low = _halves(growths)
    fraction, integer = distance * high, _upper(ops, distance, high)
    for term in (_upper(ops, distance, low), _upper(ops, part, high)):
        fraction = fraction + term
        integer = integer + ops.cast(fraction < term, "uint32")
    return integer + ops.shift(fraction, 31), ops.cast(ops.cast(fraction, "int32"), real) * np.float32(2.0**-32)


def rotate(ops: Ops, x: Array, plan: Any, cosines: Array, sines: Array) -> Array:
    """The pairs of channels of x rotated by angles (..., F) that broadcast to them; other channels stay."""
    begin, count = plan.first_channel, plan.rotary_dim // 2
    end = begin + 2 * count
    halves = slice(begin, begin + count), slice(begin + count, end)
    u, v = (_real(ops, x[..., k]) for k in ((slice(begin, end, 2), slice(begin + 1, end, 2)) if plan.interleaved else halves))
    pair = [ops.cast(one, _name(x)) for one in (u * cosines - v * sines, v * cosines + u * sines)]
    made = [ops.merge(ops.stack(pair, -1))] if plan.interleaved else pair
    before, after = ([x[..., :begin]] if begin else []), ([x[..., end:]] if end < plan.head_dim else [])
    return ops.concat([*before, *made, *after], -1)


# ---- biases ------------------------------------------------------------------------------------------------------------------


def line(ops: Ops, slopes: Any, queries: Array, keys: Array, symmetric: bool = False, real: str = "float32") -> Array:
    """ALiBi's bias ``slope * (key - query)`` of whole positions, int32 that broadcast to (..., H, Tq, Tk); slopes are (H, 1, 1)."""
    distance = keys - queries
    wraps = (keys < queries) != (distance < 0)
    far = ops.where(wraps, ops.cast(keys, real) - ops.cast(queries, real), ops.cast(distance, real))
    if symmetric:
        far = ops.where(far < 0, far, -far)
    return far * slopes
