"""The sinusoidal encoding from its formula: exact to float64, and as it is commonly computed."""

from __future__ import annotations

import decimal
import math
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

# What fastpe promises of the encoding, whatever the position.
ENCODING_ERROR = {"float16": 2e-7, "bfloat16": 2e-7, "float32": 2e-7, "float64": 1e-12}


def exact(positions: npt.ArrayLike, dim: int) -> npt.NDArray[np.float64]:
    """PE[p, 2f] = sin(p / 10000^(2f/D)), PE[p, 2f+1] = cos(the same): Vaswani et al. 2017, section 3.5, in float64.

    Frequencies have 40 digits and count in turns; whole turns of p * w are dropped exactly, for |p| below 2^23.
    """
    with decimal.localcontext() as context:
        context.prec = 40
        circle = 2 * decimal.Decimal("3.14159265358979323846264338327950288419717")
        turns = [decimal.Decimal(10000) ** (decimal.Decimal(-2 * f) / dim) / circle for f in range((dim + 1) // 2)]
        high = [int(value * 2**30) for value in turns]
        low = [float(value - decimal.Decimal(part) / 2**30) for value, part in zip(turns, high, strict=True)]
    p = np.asarray(positions, np.float64)[..., None]
    angle = 2 * np.pi * (p * (np.array(high) / 2.0**30) % 1.0 + p * np.array(low))
    result: npt.NDArray[np.float64] = interleaved(np, np.sin(angle), np.cos(angle), dim, np.float64)
    return result


def usual(xp: ModuleType, positions: Any, dim: int, dtype: Any) -> Any:
    """The encoding as it is commonly written, angles in float32 (float64 for a float64 table)."""
    real = xp.float64 if dtype == np.float64 else xp.float32
    frequencies = xp.exp(xp.arange(0, dim, 2).astype(real) * real(-math.log(10000.0) / dim))
    angle = xp.asarray(positions).astype(real)[:, None] * frequencies
    return interleaved(xp, xp.sin(angle), xp.cos(angle), dim, dtype)


def interleaved(xp: ModuleType, sine: Any, cosine: Any, dim: int, dtype: Any) -> Any:
    """Sines (..., F) in even columns and cosines in odd ones, (..., dim)."""
    result = xp.empty((*sine.shape[:-1], dim), dtype)
    result[..., 0::2], result[..., 1::2] = sine, cosine[..., : dim // 2]
    return result
