"""Arguments that verbs share: encodings to be added, and arrays to be written, which must lie apart from others."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from .._arrays import Memory, dispatch
from ..encodings import NAMES, Fourier, Grid, Learned, Sinusoidal
from . import checks
from .checks import describe, message

DEFAULT = Sinusoidal()


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


def check_apart(function: str, target: Memory, others: dict[str, Memory | None]) -> None:
    """Refuse a result that shares an element with a table or anything else that is read by rows."""
    for name, memory in others.items():
        if memory is not None and 0 not in target.shape and (overlap(memory, target) or target.same_elements(memory)):
            raise ValueError(message(function, f"the result must lie apart from {name}", "an array that overlaps it"))


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


def named_encoding(function: str, encoding: Any, learned: bool = True, grid: bool = False, fourier: bool = False) -> Any:
    """An encoding to be added, by value or name; None for the default one."""
    if encoding is None:
        return DEFAULT
    kinds = ((Sinusoidal, True), (Learned, learned), (Grid, grid), (Fourier, fourier))
    if isinstance(encoding, tuple(kind for kind, accepted in kinds if accepted)):
        return encoding
    known = ", ".join(repr(name) for name in NAMES)
    rule = f"encoding must be an encoding such as Sinusoidal() or one of {known}"
    if not isinstance(encoding, str):
        raise TypeError(message(function, rule, describe(encoding)))
    if encoding not in NAMES:
        remedy = f"What published models use, if {encoding!r} is one, is fastpe.recipe({encoding!r}).encoding."
        raise TypeError(message(function, rule, repr(encoding), remedy))
    return NAMES[encoding]()
