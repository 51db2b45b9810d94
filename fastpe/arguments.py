"""Arguments that are arrays to be written: which are taken, and whether they lie apart."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from . import checks, dispatch
from .arrays import Memory
from .checks import message


def output(
    function: str, out: Any, library: ModuleType, device: int | None, shape: tuple[int, ...], dtype: str | None
) -> Memory:
    """The memory of ``out``: of the same library, device, shape and dtype."""
    found_library, found = dispatch.memory(function, "out", out)
    if found_library is not library or found.device != device:
        got = f"{found_library.NAME} on {place_name(found.device)}"
        wanted = f"{library.NAME} on {place_name(device)}"
        raise TypeError(
            message(
                function, f"out must be a {wanted} array like the input", got, "Nothing is copied between devices silently."
            )
        )
    checks.floating(function, "out", found.dtype, out)
    checks.same_shape(function, "out", found.shape, shape, found.dtype, found.dtype if dtype is None else dtype)
    return found


def place_name(device: int | None) -> str:
    return "the host" if device is None else f"device {device}"


def overlap(a: Memory, b: Memory) -> bool:
    """Whether two arrays share an element without being the same view."""
    if a.device != b.device or 0 in a.shape or 0 in b.shape:
        return False
    if a.same_elements(b):
        return False
    return bool(np.shares_memory(_shadow(a), _shadow(b)))


class _Shadow:
    def __init__(self, memory: Memory) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (memory.address, True),
            "shape": memory.shape,
            "strides": memory.strides,
            "typestr": f"|V{np.dtype(memory.array.dtype).itemsize}",
        }


def _shadow(memory: Memory) -> Any:
    """A NumPy array over the same addresses, never read: NumPy knows exactly whether two views overlap."""
    return np.asarray(_Shadow(memory))
