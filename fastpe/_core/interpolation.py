"""Weights of interpolation between the rows of a table: PyTorch's, to the last bit of the positions that it samples at."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]


def weights(method: str, old: int, new: int, extra: float, real: Any) -> Floats:
    """(new, old) float64: how much of each old row a new one takes; rows stand in the middle of equal cells.

    In float32 for all but float64 tables, with fused multiply-adds: PyTorch computes them so, and the last bits of a position are up to
    1e-5 of the result.
    """
    step = real(1 / ((new + extra) / old)) if extra else real(old) / real(new)
    numbers = np.arange(new) + 0.5
    made = np.zeros((new, old))
    if method.endswith("antialias"):
        kernel, taps_reach = (_triangle, 1) if method == "antialias" else (_keys, 2)
        widening = max(step, real(1))
        reach = widening * real(taps_reach)
        for i, centre in enumerate((numbers * step).astype(real)):
            first, last = max(int(centre - reach + real(0.5)), 0), min(int(centre + reach + real(0.5)), old)
            parts = kernel(np.abs((np.arange(first, last).astype(real) - centre + real(0.5)) / widening))
            made[i, first:last] = parts / parts.sum()
        return made
    points = (numbers * np.float64(step) - 0.5).astype(real)
    if method != "bicubic":
        points = np.maximum(points, 0)
    below = np.floor(points)
    parts = points - below
    taps = {0: 1 - parts, 1: parts} if method != "bicubic" else _four_taps(parts)
    for tap, weight in taps.items():
        columns = np.clip(below.astype(int) + tap, 0, old - 1)
        np.add.at(made, (np.arange(new), columns), weight)
    return made


def _triangle(x: Floats) -> Floats:
    """A hat of width 2 at distances from its middle."""
    hat: Floats = np.maximum(1 - x, 0)
    return hat


def _keys(x: Floats, a: float = -0.5) -> Floats:
    """Keys's kernel at distances 0 to 2."""
    return np.where(x < 1, _horner(x, a + 2, -(a + 3), 0, 1), _horner(x, a, -5 * a, 8 * a, -4 * a))


def _four_taps(parts: Floats) -> dict[int, Floats]:
    """Weights of the four nearest rows, by Keys's kernel with a = -0.75."""
    rest = 1 - parts  # distances are made as PyTorch does, whose last bits differ
    return {tap: _keys(x, -0.75) for tap, x in {-1: parts + 1, 0: parts, 1: rest, 2: rest + 1}.items()}


def _horner(x: Floats, *coefficients: float) -> Floats:
    """A polynomial in fused steps."""
    result = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = (result.astype(np.float64) * x + coefficient).astype(x.dtype)
    return result
