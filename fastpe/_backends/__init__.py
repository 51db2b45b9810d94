"""What runs kernels: Numba where memory lies on the host, CUDA where it lies on a device. ``base`` says what a backend offers."""

from __future__ import annotations

import importlib
from types import ModuleType

from .._arrays import Memory
from .._arrays.locks import unforkable

_loaded: dict[str, ModuleType] = {}


def backend_of(memory: Memory) -> ModuleType:
    """The backend of an array's memory."""
    return backend_on(memory.device)


def backend_on(device: int | None) -> ModuleType:
    """The backend of the host (None), or of a CUDA device."""
    name = "fastpe._backends.host" if device is None else "fastpe._backends.cuda"
    backend = _loaded.get(name)
    if backend is None:
        with unforkable:
            backend = _loaded[name] = importlib.import_module(name)
    return backend
