"""What the tests of rotations share."""

from __future__ import annotations

import cases
import numpy as np
from reference import angles, angular_frequencies

from fastpe import Rotary


def random(shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(cases.DTYPES[dtype])


def exact(head_dim, positions, base=10000.0):
    """(T, F) float64 cosines and sines of exact angles."""
    found = angles(np.asarray(positions), angular_frequencies(head_dim, base))
    return np.cos(found), np.sin(found)


def layout_of(encoding):
    return {"interleaved": encoding.interleaved, "rotary_offset": encoding.rotary_offset}


def table(rows=64, pairs=8, dtype="float32"):
    frequencies = Rotary().frequencies(2 * pairs)[0]
    angle = np.arange(rows)[:, None] * frequencies
    return np.cos(angle).astype(cases.DTYPES[dtype]), np.sin(angle).astype(cases.DTYPES[dtype])
