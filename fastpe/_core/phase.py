"""Frequencies as exact turns.

The kernels keep an angle in turns, as a 64-bit fixed-point fraction: ``phase = position * frequency mod 1``. A frequency is
therefore stored as turns per position, an integer part and a fraction in units of 2^-64. Frequencies are evaluated with 60 decimal
digits, so the only error is the last rounding: 2^-65 turn per position, 1.7e-13 rad at position one million.
"""

from __future__ import annotations

import contextlib
import decimal

import numpy as np
import numpy.typing as npt

from .._backends.plans import DIGITS, Turns
from .._backends.plans import TWO_PI as TWO_PI

Float64s = npt.NDArray[np.float64]


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
