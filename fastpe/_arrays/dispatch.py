"""From an array's type to the file that knows its library, and from its memory to the backend. Imports no optional library."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from . import Memory, Outline, errors
from .locks import unforkable

# (module, class) of an array type -> the file that knows it. A new array library is one file and one row.
_LIBRARIES = {
    ("numpy", "ndarray"): "fastpe._arrays.numpy",
    ("cupy", "ndarray"): "fastpe._arrays.cupy",
    ("torch", "Tensor"): "fastpe._arrays.torch",  # seen as NumPy's or CuPy's arrays
    ("numpy", "MaskedArray"): "",  # an ndarray whose hidden elements must not be written: not known
}
_found: dict[type, ModuleType | None] = {}


def library_of(value: Any) -> ModuleType | None:
    """Return the ``fastpe._arrays`` module for this value's type, or None if it is no array that fastpe knows."""
    kind = type(value)
    try:
        return _found[kind]
    except KeyError:
        names = ((base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__)
        file = next((_LIBRARIES[name] for name in names if name in _LIBRARIES), None)
        module = _found[kind] = _load(file) if file else None
        return module


def is_tensor(value: Any) -> bool:
    """Whether this is a tensor of PyTorch, which has verbs of its own: autograd must know what is written."""
    # Told by a method that they alone have: a compiler that follows this would look at every module in `sys.modules`.
    return hasattr(type(value), "as_subclass")


def is_array(value: Any) -> bool:
    """Whether this is an array that fastpe knows, or a tensor."""
    if is_tensor(value):
        return True
    # Known without the table of types, which a compiler could not follow.
    return not isinstance(value, (int, float, str, tuple, list)) and library_of(value) is not None


def outline(function: str, name: str, array: Any) -> Outline:
    """The outline of an array or a tensor; of a tensor also while it is traced, when it has no memory."""
    if is_tensor(array):
        return Outline.of_tensor(array)
    library, found = memory(function, name, array)
    contiguous = found.shape[-1:] == (1,) or found.strides[-1:] == (found.array.dtype.itemsize,)
    return Outline(found.shape, found.dtype, (library.NAME, found.device), contiguous)


def memory(function: str, name: str, array: Any, tensors: bool = False) -> tuple[ModuleType, Memory]:
    """Return the library and memory of an array, or where they are accepted of a tensor; TypeError for anything else."""
    library = library_of(array)
    if library is not None and library.NAME == "torch":
        if not tensors:
            raise errors.tensor_beside(function, name)
        array = library.as_array(function, name, array)
        library = library_of(array)
    if library is None:
        raise errors.unknown_array(function, name, array)
    found: Memory = library.memory(array)
    return library, found


def backend(memory: Memory) -> ModuleType:
    """Memory on the host runs Numba, memory on a CUDA device runs CUDA."""
    return backend_on(memory.device)


def backend_on(device: int | None) -> ModuleType:
    """The backend of a CUDA device, or of the host."""
    file = "fastpe._backends.host" if device is None else "fastpe._backends.cuda"
    return _loaded.get(file) or _load(file)


def _load(file: str) -> ModuleType:
    with unforkable:
        module = _loaded[file] = importlib.import_module(file)
        return module


_loaded: dict[str, ModuleType] = {}
