"""The one voice of errors: function, argument and rule, what came, what to do."""

from __future__ import annotations

import dataclasses
from typing import Any


def message(function: str, rule: str, got: str, remedy: str = "") -> str:
    """``add_encoding: x must ..., got ... . Remedy.``"""
    text = f"{function}: {rule}, got {got}."
    return f"{text} {remedy}" if remedy else text


def describe(value: Any) -> str:
    """What came, in few words: dtype and shape of an array, type and value of anything else."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{dtype} of shape {tuple(shape)}"
    if isinstance(value, memoryview):  # whose text is an address
        return f"a buffer of {value.format!r} of shape {shape}"
    text = _shown(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _shown(value: Any) -> str:
    """As ``repr``; a dataclass's own cannot be followed by a compiler that traces an error."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return repr(value)
    fields = [f"{field.name}={_shown(getattr(value, field.name))}" for field in dataclasses.fields(value) if field.repr]
    return f"{type(value).__qualname__}({', '.join(fields)})"


class NotExported(Exception):
    """An object, the library that was to see its memory, and why it does not; who knows verb and argument makes it an error."""


def not_exported(function: str, name: str, error: NotExported) -> TypeError:
    """The error for an argument that says it has memory and does not show it."""
    value, library, cause = error.args
    rule, remedy = f"{name} must export its memory with a type of {library}", f"Pass an array of {library} of its values."
    got = f"{type(value).__module__}.{type(value).__qualname__} ({cause})"
    return TypeError(message(function, rule, got, way_round(name, value, remedy)))


# ---- arrays that are not known ------------------------------------------------------------------------------------------------

_ON_DISK = (
    "numpy.asarray would load all of it and encode a copy: encode slices, z[i:j] = fastpe.add_encoding(z[i:j], offset=i), or all of it "
    "through Dask, dask.array.from_array(z)."
)
_BYTES = "Say what its bytes are, e.g. numpy.frombuffer({name}, 'float32').reshape(shape)."
_FROZEN = "add fastpe.encode(positions, dim), or pass "
# Well-known types that have another way in, by class or module.
_WAYS_ROUND = {
    "bytes": _BYTES,
    "bytearray": _BYTES,
    "mmap": _BYTES,
    "MaskedArray": "Pass x.data, and mask= for whole rows.",
    "dask": "To read it, pass {name}.compute(). Dask arrays are never written: make x one, too, and the result will be one.",
    "zarr": _ON_DISK,
    "h5py": _ON_DISK,
    "Dataset": "Pass the data of a variable, dataset['x'].data.",  # of xarray
    "xarray": "Pass {name}.data, the array inside: NumPy's is written in place, of Dask's a new one is made.",
    "pandas": "Its columns lie apart, and may be shared: pass {name}.to_numpy('float32', copy=True), and make a frame of the result.",
    "tensorflow": f"TensorFlow tensors cannot be written: {_FROZEN}x.numpy().copy().",
}


def way_round(name: str, value: Any, otherwise: str = "") -> str:
    """What to do with a well-known array that is none of those that fastpe knows."""
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    own = _WAYS_ROUND.get(kind.__name__) if kind.__name__ != "Dataset" or package == "xarray" else None
    return (own or _WAYS_ROUND.get(package, otherwise)).replace("{name}", name)


def aligned(function: str, name: str, memory: Any) -> Any:
    """The memory; ValueError where it lies on a GPU and is not aligned to its elements."""
    if memory.device is not None and not memory.is_aligned:
        rule, got = f"{name} on a GPU must be aligned to its elements", f"{memory.dtype} with strides {memory.strides}"
        raise ValueError(message(function, rule, f"{got} at address {memory.address:#x}", "Pass a copy."))
    return memory


def unknown_array(function: str, name: str, array: Any) -> TypeError:
    """The error for what is no array that fastpe knows, with the way round where there is one."""
    kind = type(array)
    remedy = way_round(name, array, f"Convert it first, e.g. {name} = numpy.asarray({name}, dtype='float32').")
    got = f"{kind.__module__}.{kind.__qualname__}"
    return TypeError(message(function, f"{name} must be a NumPy or CuPy array or a PyTorch tensor", got, remedy))


def tensor_beside(function: str, name: str) -> TypeError:
    """The error for a tensor among arrays of another library."""
    rule = f"{name} must be of the library of the other arrays"
    return TypeError(message(function, rule, "a tensor beside them", "Nothing is converted silently."))
