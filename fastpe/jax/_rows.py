"""Positions of rows in a program: two 32-bit words each, as kernels read int64 in units of 2^-32 (`kernels/locate_rows.py`)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core.where import is_array
from ..kernels.locate_rows import locate_rows_given

LOWEST = np.int32(-(2**31))


def is_jax(value: Any) -> bool:
    """Whether this is an array of JAX, or stands for one."""
    return isinstance(value, (jax.Array, jax.core.Tracer))


def words_of(positions: Any) -> Any:
    """Of integer or real positions of any shape; what is none becomes NOT_A_POSITION."""
    if not is_jax(positions):
        return wide(locate_rows_given(np.asarray(positions)))
    if jnp.issubdtype(positions.dtype, jnp.integer):
        return _words(*_of_integers(positions))
    valid = (positions >= -(2.0**31)) & (positions < 2.0**31)
    size = jnp.abs(jnp.where(valid, positions, 0))
    whole = jnp.trunc(size)
    part = jnp.round((size - whole) * 2.0**32)
    carries = part >= 2.0**32
    low = jnp.where(carries, 0, part).astype(jnp.uint32)
    high = whole.astype(jnp.uint32) + carries.astype(jnp.uint32)
    high, low = (jnp.where(positions < 0, one, other) for one, other in ((~high + (low == 0), high), (-low, low)))
    return _words(_signed(high), _signed(low), valid)


def ids_of(ids: Any) -> Any:
    """Integers of any size as int64."""
    if not is_jax(ids):
        return wide(np.asarray(ids).astype(np.int64))
    if ids.dtype.itemsize == 8:
        low = _signed((ids & 0xFFFFFFFF).astype(jnp.uint32))
        return jnp.stack([low, (ids >> 32).astype(jnp.int32)], -1)
    unsigned = jnp.issubdtype(ids.dtype, jnp.unsignedinteger)
    low = _signed(ids.astype(jnp.uint32)) if unsigned else ids.astype(jnp.int32)
    return jnp.stack([low, jnp.zeros_like(low) if unsigned else low >> 31], -1)


def counted(rows: int, offset: Any, boundaries: Any, mask: Any) -> Any:
    """Of rows that count from an offset, or (B,) of them, from where a sequence of a packed row begins, and only kept rows of a mask."""
    count = jnp.arange(rows, dtype=jnp.int32)[None]
    if mask is not None:
        kept = jnp.atleast_2d(mask).astype(jnp.int32)
        count = jnp.cumsum(kept, -1, dtype=jnp.int32) - kept
    offset = jnp.asarray(offset) if is_array(offset) or is_jax(offset) else jnp.full((), offset, jnp.int32)
    if boundaries is not None:
        boundaries = jnp.asarray(boundaries)
        sequence = jnp.searchsorted(boundaries, jnp.arange(rows, dtype=boundaries.dtype), side="right") - 1
        count = count - count[:, boundaries[sequence]]
        offset = offset[sequence][None] if offset.ndim else offset
    elif offset.ndim:
        offset = offset[:, None]
    first, _, valid = _of_integers(offset)
    position = first + count
    table = _words(position, jnp.zeros_like(position), valid & (position >= first))  # one that is too large wraps
    return table[0] if table.shape[0] == 1 else table


def wide(table: Any) -> Any:
    """An int64 array of NumPy as words."""
    return np.ascontiguousarray(table).view(np.int32).reshape(*table.shape, 2)


def _of_integers(values: Any) -> tuple[Any, Any, Any]:
    """Positions as int32, the lower words, and which are positions."""
    valid = jnp.ones(values.shape, bool)
    if values.dtype.itemsize >= 4 and values.dtype != jnp.int32:
        valid = values <= 2**31 - 1
        valid = valid if jnp.issubdtype(values.dtype, jnp.unsignedinteger) else valid & (values >= -(2**31))
    high = values.astype(jnp.int32)
    return high, jnp.zeros_like(high), valid


def _signed(values: Any) -> Any:
    return jax.lax.bitcast_convert_type(values, jnp.int32)


def _words(high: Any, low: Any, valid: Any) -> Any:
    return jnp.stack([jnp.where(valid, low, 1), jnp.where(valid, high, LOWEST)], -1)
