"""What the tests of embed share."""

from __future__ import annotations

import cases
import numpy as np

ROWS = 40


def words(dtype="float32", width=24, rows=ROWS, seed=0):
    if dtype in cases.DTYPES:
        return cases.random((rows, width), dtype, seed)
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max + 1, (rows, width)).astype(dtype)


def some_ids(*shape, rows=ROWS, seed=1):
    return np.random.default_rng(seed).integers(0, rows, shape)


SCALES = np.random.default_rng(9).uniform(0.001, 0.01, ROWS).astype(np.float32)


def hard_to_round(dtype):
    """One row of float64 numbers that two roundings to 16 bits get wrong; infinities, NaN, numbers too large and too small."""
    one = np.float64(2.0**-10 if dtype == "float16" else 2.0**-7)
    halfway = 1 + one / 2 + np.array([0, 2.0**-30, -(2.0**-30), 2.0**-52, one, one + 2.0**-40, one - 2.0**-40])
    special = [np.inf, -np.inf, np.nan, 1e300, -1e300, 65519.99, 65520.0, 3.3961775e38, 1e-8, 6e-8, 1e-45, 0.0, -0.0]
    return np.concatenate((halfway, -halfway, special, np.random.default_rng(0).standard_normal(1000)))[None]
