"""From an array's type to the file that knows its library, and from its memory to the backend. Imports no optional library."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from . import checks
from .arrays import Memory
from .locks import unforkable

# (module, class) of an array type -> the file that knows it. A new array library is one file and one row.
_LIBRARIES = {
    ("numpy", "ndarray"): "fastpe.arrays.numpy",
    ("cupy", "ndarray"): "fastpe.arrays.cupy",
    ("numpy", "MaskedArray"): "",  # an ndarray whose hidden elements must not be written: not known
}
# Well-known types that have another way in, by class or module.
_WAYS_ROUND = {
    "MaskedArray": "Pass x.data, and mask= for whole rows.",
    "torch": "Pass x.numpy(), which shares the tensor's memory.",
    "jax": "JAX arrays cannot be written: add fastpe.encode(positions, dim), or pass a NumPy copy.",
    "jaxlib": "JAX arrays cannot be written: add fastpe.encode(positions, dim), or pass a NumPy copy.",
    "tensorflow": "TensorFlow tensors cannot be written: add fastpe.encode(positions, dim), or pass x.numpy().copy().",
}
_found: dict[type, ModuleType | None] = {}


def library_of(value: Any) -> ModuleType | None:
    """Return the ``fastpe.arrays`` module for this value's type, or None if it is no array that fastpe knows."""
    kind = type(value)
    try:
        return _found[kind]
    except KeyError:
        names = ((base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__)
        file = next((_LIBRARIES[name] for name in names if name in _LIBRARIES), None)
        module = _found[kind] = _load(file) if file else None
        return module


def memory(function: str, name: str, array: Any) -> tuple[ModuleType, Memory]:
    """Return an array's library and memory; TypeError for anything else."""
    library = library_of(array)
    if library is None:
        kind = type(array)
        convert = f"Convert it first, e.g. {name} = numpy.asarray({name}, dtype='float32')."
        remedy = _WAYS_ROUND.get(kind.__name__) or _WAYS_ROUND.get(kind.__module__.partition(".")[0], convert)
        got = f"{kind.__module__}.{kind.__qualname__}"
        raise TypeError(checks.message(function, f"{name} must be a NumPy or CuPy array", got, remedy))
    found: Memory = library.memory(array)
    return library, found


def backend(memory: Memory) -> ModuleType:
    """Memory on the host runs Numba, memory on a CUDA device runs CUDA."""
    return backend_on(memory.device)


def backend_on(device: int | None) -> ModuleType:
    """The backend of a CUDA device, or of the host."""
    file = "fastpe.backends.numba" if device is None else "fastpe.backends.cuda"
    return _loaded.get(file) or _load(file)


def _load(file: str) -> ModuleType:
    with unforkable:
        module = _loaded[file] = importlib.import_module(file)
        return module


_loaded: dict[str, ModuleType] = {}
