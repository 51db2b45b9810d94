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
