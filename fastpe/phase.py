"""Frequencies as exact turns.

The kernels keep an angle in turns, as a 64-bit fixed-point fraction: ``phase = position * frequency mod 1``. A frequency is
therefore stored as turns per position, an integer part and a fraction in units of 2^-64. Frequencies are evaluated with 60 decimal
digits, so the only error is the last rounding: 2^-65 turn per position, 1.7e-13 rad at position one million.
"""

from __future__ import annotations

import contextlib
import decimal
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

DIGITS = 60
TWO_PI = "6.28318530717958647692528676655900576839433879875021164194988918461563281"
TAYLOR_TERMS = 10

UInt64s = npt.NDArray[np.uint64]
Float64s = npt.NDArray[np.float64]


class Turns(NamedTuple):
    """Frequencies of shape (F,) in turns per position: ``whole + fraction / 2^64``."""

    fraction: UInt64s
    whole: UInt64s


def precise() -> contextlib.AbstractContextManager[decimal.Context]:
    """Decimal arithmetic with enough digits for frequencies."""
    return decimal.localcontext(decimal.Context(prec=DIGITS, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN))


def geometric(base: float, step: tuple[float, float], count: int, scale: float) -> tuple[Float64s, Turns]:
    """Evaluate ``w_f = scale * base^(-f * step)`` for f = 0 ... count - 1.

    ``step`` is a ratio (numerator, denominator) of exactly represented numbers. Returns the angular frequencies in radians per
    position, correctly rounded to float64, and the same in exact turns.
    """
    with precise():
        exponent = decimal.Decimal(step[0]) / decimal.Decimal(step[1])
        ratio = (-exponent * decimal.Decimal(base).ln()).exp()
        frequencies = [decimal.Decimal(scale)]
        while len(frequencies) < count:
            frequencies.append(frequencies[-1] * ratio)
        return rounded(frequencies[:count])


def rounded(frequencies: list[decimal.Decimal]) -> tuple[Float64s, Turns]:
    """Frequencies in radians per position, none negative, rounded to float64 and to turns; in the context of ``precise``."""
    two_pi, unit, half = decimal.Decimal(TWO_PI), decimal.Decimal(2**64), decimal.Decimal("0.5")
    angular = np.array([float(frequency) for frequency in frequencies])
    fraction, whole = np.empty(len(frequencies), np.uint64), np.empty(len(frequencies), np.uint64)
    for f, frequency in enumerate(frequencies):
        in_units = int(frequency / two_pi * unit + half)
        if in_units >= 2**96:
            raise OverflowError(f"{angular[f]:g} radians a position")
        whole[f], fraction[f] = in_units >> 64, in_units & (2**64 - 1)
    return angular, Turns(fraction, whole)


def sine_cosine(phase: UInt64s) -> tuple[Float64s, Float64s]:
    """Sine and cosine of ``phase / 2^64`` turns in float64, error at most 4e-16.

    Only multiplications and additions, one at a time: the same bits on every machine, which a C library's sine is not.
    """
    shifted = phase + np.uint64(1 << 61)
    centred = (shifted & np.uint64((1 << 62) - 1)).astype(np.int64) - np.int64(1 << 61)
    turns = centred.astype(np.float64) * 2.0**-64
    squared = turns * turns
    with decimal.localcontext(decimal.Context(prec=DIGITS)):
        term, coefficients = decimal.Decimal(1), []
        for k in range(1, 2 * TAYLOR_TERMS + 1):
            coefficients.append(float(term))
            term *= decimal.Decimal(TWO_PI) / k
    sine, cosine = np.zeros_like(turns), np.zeros_like(turns)
    for k in reversed(range(TAYLOR_TERMS)):
        sign = -1.0 if k % 2 else 1.0
        sine = sine * squared + sign * coefficients[2 * k + 1]
        cosine = cosine * squared + sign * coefficients[2 * k]
    sine *= turns
    quadrant = shifted >> np.uint64(62)
    odd = (quadrant & np.uint64(1)).astype(bool)
    negative_sine, negative_cosine = quadrant >= 2, (quadrant == 1) | (quadrant == 2)
    rotated_sine, rotated_cosine = np.where(odd, cosine, sine), np.where(odd, sine, cosine)
    return np.where(negative_sine, -rotated_sine, rotated_sine), np.where(negative_cosine, -rotated_cosine, rotated_cosine)
