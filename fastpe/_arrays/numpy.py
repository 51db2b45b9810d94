"""NumPy arrays as memory."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from . import Memory, exported
from .dtypes import FLOAT8, extended

NAME = "numpy"

_MISSING = "encode: NumPy has no {} of its own. Install ml_dtypes (pip install ml_dtypes), or pass out=."
MOST_NAMES = 64  # a dtype may be structured: there is no end of them
_names: dict[Any, str] = {}  # of dtypes: NumPy makes the name anew each time (1.5 us)


def memory(array: Any) -> Memory:
    if not isinstance(array, np.ndarray):
        array = exported.on_host(array)
    dtype = array.dtype
    name = _names.get(dtype)
    if name is None:
        name = dtype.name if dtype.isnative else str(dtype)
        if len(_names) < MOST_NAMES:
            _names[dtype] = name
    return Memory(array, array.ctypes.data, array.shape, array.strides, name, None, array.flags.writeable)


def empty(shape: tuple[int, ...], dtype: str, device: int | None) -> Any:
    """Allocate a new array (the host is the only device here)."""
    return np.empty(shape, extended(dtype, _MISSING.format(dtype)) if dtype == "bfloat16" or dtype in FLOAT8 else dtype)


def as_host(array: Any) -> Any:
    """The array on the host (itself)."""
    return array


def from_host(array: Any, device: int | None) -> Any:
    """A host array in this library (itself)."""
    return array


def on(device: int | None) -> contextlib.AbstractContextManager[Any]:
    """Where arrays of a device may be computed with (the host is the only one here)."""
    return contextlib.nullcontext()
