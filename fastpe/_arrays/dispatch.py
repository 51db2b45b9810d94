"""From an array's type to the file that knows its library, and from its memory to the backend. Imports no optional library."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, NamedTuple, cast

from . import Memory, Outline, errors
from .locks import unforkable


class Row(NamedTuple):
    """An array library: the module that says how its arrays become memory ("": they have none), and, where the library has a world of its
    own (autograd, tracing, laziness, sharding), the module that runs operations there.
    """

    arrays: str
    runner: str = ""


# (module, class) of an array type. A new array library is one file and one row.
_ROWS = {
    ("numpy", "ndarray"): Row("fastpe._arrays.numpy"),
    ("cupy", "ndarray"): Row("fastpe._arrays.cupy"),
    ("torch", "Tensor"): Row("fastpe._arrays.torch", runner="fastpe.torch._run"),
    ("torch", "DTensor"): Row("fastpe._arrays.torch", runner="fastpe.torch._sharded"),
    ("jaxlib", "ArrayImpl"): Row("fastpe._arrays.jax", runner="fastpe.jax._run"),
    ("jax", "Tracer"): Row("fastpe._arrays.jax", runner="fastpe.jax._run"),
    ("dask", "Array"): Row("", runner="fastpe.dask"),
    ("numpy", "MaskedArray"): Row(""),  # an ndarray whose hidden elements must not be written: not known
}
MOST_TYPES = 256  # whose library is remembered; a remembered class lives on
_libraries: dict[type, ModuleType | None] = {}
_on_device: dict[type, bool] = {}  # whether a class is CuPy's own
_TORCH, _DTENSOR = (_ROWS["torch", name].runner for name in ("Tensor", "DTensor"))


def add_row(module: str, name: str, row: Row) -> None:
    """Make an array library known by its class's module (the first part) and name; subclasses are found too."""
    _ROWS[module, name] = row
    _libraries.clear()


def library_of(value: Any) -> ModuleType | None:
    """Return the module of a value's array library, as ``Row.arrays`` names it; None if it is no array that fastpe knows."""
    kind = type(value)
    try:
        return _libraries[kind]
    except KeyError:
        if len(_libraries) >= MOST_TYPES:
            _libraries.clear()
        row = _row(kind)
        name, of_class = _load("fastpe._arrays.exported").library(value) if row is None else (row.arrays, True)
        module = _load(name) if name else None
        return _libraries.setdefault(kind, module) if of_class else module


def library_on(device: int | None) -> Any:
    """The library whose arrays share the memory of tensors: NumPy's on the host (None), CuPy's on a CUDA device."""
    return _load("fastpe._arrays.numpy" if device is None else "fastpe._arrays.cupy")


def _row(kind: type) -> Row | None:
    names = ((base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__)
    return next((_ROWS[name] for name in names if name in _ROWS), None)


def runner(arrays: tuple[Any, ...], out: Any) -> Any:
    """The module that runs operations in the world of the first of these that has one; None where fastpe's backends do at once."""
    given = (*arrays, out)
    for value in given:
        if hasattr(type(value), "as_subclass"):  # `is_tensor`, written out
            _import(_TORCH)
            return _modules.fastpe_torch__run
    for value in given:
        row = None if value is None or type(value) in _on_device else _row(type(value))
        if row is not None and row.runner:
            return _load(row.runner)
    return None


def sharded() -> Any:
    """The module that runs operations on DTensors, to which the one of tensors hands them."""
    return _load(_DTENSOR)


def is_on_device(kind: type) -> bool:
    """Whether this is CuPy's class of arrays; not one that is derived from it."""
    if _on_device.get(kind):
        return True
    found = kind.__name__ == "ndarray" and _row(kind) is _ROWS["cupy", "ndarray"]
    if found:
        _on_device[kind] = True
    return found


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
    """The outline of an array or a tensor; of a tensor and of JAX's also while they are traced, when they have no memory."""
    library: Any = _load("fastpe._arrays.torch") if is_tensor(array) else library_of(array)
    if hasattr(library, "outline"):
        return cast(Outline, library.outline(function, name, array))
    return Outline.of_memory(*memory(function, name, array))


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
    try:
        found: Memory = library.memory(array)
    except errors.NotExported as error:
        raise errors.not_exported(function, name, error) from None
    return library, errors.aligned(function, name, found)


def _load(name: str) -> Any:
    _import(name)
    return getattr(_modules, name.replace(".", "_"))


def _import(name: str) -> None:
    if name not in _imported:
        with unforkable:
            setattr(_modules, name.replace(".", "_"), importlib.import_module(name))
            _imported.add(name)


# torch.compile calls it instead of following it, and would not see what it puts into a dict or a set that was read before.
_import._dynamo_marked_constant = True  # type: ignore[attr-defined]
_modules, _imported = ModuleType("modules"), set[str]()
