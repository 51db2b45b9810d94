"""Positions of rows as int64 in units of 2^-32 from whatever the caller gave: the CPU twin of ``locate_rows.cu``, in NumPy.

What is not a position in [-2^31, 2^31) becomes NOT_A_POSITION, whose row is NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .abi import NOT_A_POSITION

LIMIT = 2**31

Int64s = npt.NDArray[np.int64]


def locate_rows_given(positions: Any) -> Int64s:
    """Convert real or integer positions of any shape."""
    if positions.size == 0:
        return np.zeros(positions.shape, np.int64)
    low, high = positions.min().item(), positions.max().item()  # NaN if there is one, and then no comparison holds
    valid = None
    if not (low >= -LIMIT and high < LIMIT):
        with np.errstate(invalid="ignore"):
            valid = (positions >= -LIMIT) & (positions < LIMIT)
        positions = np.where(valid, positions, positions.dtype.type(0))
    table = np.empty(positions.shape, np.int64)
    if positions.dtype.kind == "f":
        table[...] = np.rint(positions.astype(np.float64) * 2.0**32)
    else:
        np.left_shift(positions.astype(np.int64), 32, out=table)
    if valid is not None:
        table[~valid] = NOT_A_POSITION
    return table


def locate_rows_counted(rows: int, mask: npt.NDArray[np.bool_] | None, offsets: Int64s, boundaries: Int64s | None) -> Int64s:
    """Count rows, those kept by a mask (B, T) or (1, T), from offsets (B,), or anew from boundaries (n+1,) with (n,) or (1,) of them."""
    if mask is None:
        count = np.arange(rows, dtype=np.int64)[None, :]
    else:
        count = np.cumsum(mask, axis=-1, dtype=np.int64)
        count -= mask
    if boundaries is None:
        return locate_rows_given(count + offsets[:, None])
    sequence = np.searchsorted(boundaries, np.arange(count.shape[-1]), side="right") - 1
    first = boundaries[sequence]
    return locate_rows_given(count - count[:, first] + (offsets[sequence] if offsets.size > 1 else offsets[:1]))
