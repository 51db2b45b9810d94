"""Refit the polynomials of ``kernels/arithmetic`` by the Remez exchange and print them as hexadecimal floats.

``python tests/fit_polynomials.py`` prints the constants that stand in ``kernels/arithmetic.py`` and ``kernels/arithmetic.cuh``;
``tests/test_polynomials.py`` refits them and compares.

On ``|r| <= 1/8`` turn, with ``z = r*r``:

    sin(2 pi r) = r * (SIN[0] + SIN[1] z + ...)      relative minimax
    cos(2 pi r) = 1 + COS[0] z + COS[1] z^2 + ...    absolute minimax, the constant term is 1 exactly

``SIN[0]`` is kept as an unevaluated sum ``SIN_HIGH + SIN_LOW`` of two working-precision numbers: it is the term that carries the
result, and its rounding alone would cost half a unit in the last place.

On ``|r| <= 1/2``: ``2^r = EXP2[0] + EXP2[1] r + ...``, relative minimax; the constant term rounds to 1.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

import mpmath
import numpy as np

DIGITS = 60
EIGHTH_TURN_SQUARED = mpmath.mpf(1) / 64

# (sine terms, cosine terms, terms of 2^r): the fewest whose error is far below the rounding of the working precision.
TERMS = {"float32": (4, 4, 7), "float64": (7, 7, 12)}


class Fit(NamedTuple):
    """Coefficients of one polynomial in z and the largest error of the exact polynomial."""

    coefficients: list[mpmath.mpf]
    error: mpmath.mpf


SQUARES = mpmath.mpf("1e-12"), EIGHTH_TURN_SQUARED


def remez(
    target: Callable[[mpmath.mpf], mpmath.mpf],
    weight: Callable[[mpmath.mpf], mpmath.mpf],
    terms: int,
    interval: tuple[mpmath.mpf, mpmath.mpf] = SQUARES,
) -> Fit:
    """Minimise max |weight * (polynomial - target)| over an interval by exchanging the alternation points."""
    low, high = interval
    points = [(low + high) / 2 - (high - low) / 2 * mpmath.cos(mpmath.pi * k / terms) for k in range(terms + 1)]
    grid = [low + (high - low) * (1 - mpmath.cos(mpmath.pi * k / 400)) / 2 for k in range(401)]
    for _ in range(12):
        matrix, right = mpmath.matrix(terms + 1, terms + 1), mpmath.matrix(terms + 1, 1)
        for row, z in enumerate(points):
            for power in range(terms):
                matrix[row, power] = z**power
            matrix[row, terms] = (-1) ** row / weight(z)
            right[row] = target(z)
        solution = mpmath.lu_solve(matrix, right)
        coefficients = [solution[power] for power in range(terms)]
        errors = [weight(z) * (mpmath.fdot((c, z**power) for power, c in enumerate(coefficients)) - target(z)) for z in grid]
        extrema = _alternating_extrema(errors)
        if len(extrema) < terms + 1:
            break
        while len(extrema) > terms + 1:
            extrema.pop(0 if abs(errors[extrema[0]]) < abs(errors[extrema[-1]]) else -1)
        points = [grid[k] for k in extrema]
    return Fit(coefficients, max(abs(error) for error in errors))


def _alternating_extrema(errors: list[mpmath.mpf]) -> list[int]:
    extrema: list[int] = []
    for k, error in enumerate(errors):
        if not extrema or mpmath.sign(error) != mpmath.sign(errors[extrema[-1]]):
            extrema.append(k)
        elif abs(error) > abs(errors[extrema[-1]]):
            extrema[-1] = k
    return extrema


def sine(terms: int) -> Fit:
    """Fit sin(2 pi sqrt(z)) / sqrt(z), relative error."""

    def target(z: mpmath.mpf) -> mpmath.mpf:
        root = mpmath.sqrt(z)
        return mpmath.sin(2 * mpmath.pi * root) / root

    return remez(target, lambda z: 1 / target(z), terms)


def cosine(terms: int) -> Fit:
    """Fit (cos(2 pi sqrt(z)) - 1) / z, weighted by z so that the error is that of the cosine."""

    def target(z: mpmath.mpf) -> mpmath.mpf:
        return (mpmath.cos(2 * mpmath.pi * mpmath.sqrt(z)) - 1) / z

    return remez(target, lambda z: z, terms)


def power_of_two(terms: int) -> Fit:
    """Fit 2^r, relative error."""
    half = mpmath.mpf(1) / 2
    return remez(lambda r: mpmath.mpf(2) ** r, lambda r: mpmath.mpf(2) ** -r, terms, (-half, half))


def round_to(value: mpmath.mpf, dtype: str) -> float:
    """Round to the nearest float32 or float64 (by way of float64, whose 53 bits are ample for these constants)."""
    return float(np.float32(float(value))) if dtype == "float32" else float(value)


def constants(dtype: str) -> dict[str, tuple[float, ...]]:
    """Return SIN_HIGH, SIN_LOW, SIN (the rest), COS and EXP2 in the working precision, lowest power first."""
    with mpmath.workdps(DIGITS):
        sine_terms, cosine_terms, power_terms = TERMS[dtype]
        s, c = sine(sine_terms).coefficients, cosine(cosine_terms).coefficients
        high = round_to(s[0], dtype)
        return {
            "SIN_HIGH": (high,),
            "SIN_LOW": (round_to(s[0] - high, dtype),),
            "SIN": tuple(round_to(value, dtype) for value in s[1:]),
            "COS": tuple(round_to(value, dtype) for value in c),
            "EXP2": tuple(round_to(value, dtype) for value in power_of_two(power_terms).coefficients),
        }


def main() -> None:
    with mpmath.workdps(DIGITS):
        for dtype, terms in TERMS.items():
            fits = zip(("sine", "cosine", "2^r"), (sine, cosine, power_of_two), terms, strict=True)
            print(f"{dtype}: " + ", ".join(f"{name} error {mpmath.nstr(fit(count).error, 3)}" for name, fit, count in fits))
            for name, values in constants(dtype).items():
                for value in values:
                    bits = struct.pack(">f" if dtype == "float32" else ">d", value).hex()
                    print(f"  {name:8s} {value.hex():>28s}  0x{bits}  {value!r}")


if __name__ == "__main__":
    main()
