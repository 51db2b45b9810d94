"""Objects that export their memory (array interfaces, the buffer protocol, DLPack) as arrays of NumPy or CuPy over it: nothing is copied.

Their memory is written only where the exporter says that it may be. A way that cannot say, such as DLPack before its version 1, reads.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from . import dispatch
from .dtypes import extended
from .errors import NotExported

PLAIN = frozenset({type(None), int, float, tuple, list, np.ndarray})  # the types of most arguments
_HOST, _CUDA = (1, 3), (2, 13)  # DLPack's devices: the host's memory and pinned memory; CUDA's and managed memory
_NO_TYPE = ("bytes", "bytearray", "mmap")  # buffers that do not say what their bytes are
_IMMUTABLE = ("mlx",)  # whose buffers say that they may be written
_FAILURES = (AttributeError, BufferError, ImportError, RuntimeError, TypeError, ValueError)
_NOT_WRITABLE = 0b11  # flags of DLPack: read-only, and a copy
_FLAGS_AT, _ARRAY_AT = 3 * 8, 4 * 8  # bytes into a new capsule's structure, behind version, context and deleter
_TYPE_AT = 8 + 8 + 4  # bytes into the array, behind address, device and number of axes
_UNSIGNED, _BFLOAT = 1, 4  # DLPack's codes of types
_NO_BFLOAT16 = "for bfloat16 NumPy needs ml_dtypes: pip install ml_dtypes"

_is_capsule = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))


def library(value: Any) -> tuple[str, bool]:
    """The module of the library that sees an object's memory, "" if none does, and whether that holds for all of its class."""
    kind = type(value)
    if kind.__name__ in _NO_TYPE or issubclass(kind, (np.generic, str)) or kind.__module__.startswith("jax"):
        return "", True
    if hasattr(kind, "__dlpack_device__"):  # an array of its class may lie elsewhere
        return _of_device(value), False
    if hasattr(kind, "__cuda_array_interface__"):
        return "fastpe._arrays.cupy", True
    exports = hasattr(kind, "__array_interface__") or _is_buffer(value)
    return "fastpe._arrays.numpy" if exports else "", True


def plain(function: str, name: str, value: Any) -> Any:
    """The array of NumPy or CuPy over an argument that only exports its memory; anything else as it is."""
    if type(value) in PLAIN or isinstance(value, (int, float, str, tuple, list)) or dispatch.is_tensor(value):
        return value
    library = dispatch.library_of(value)
    if library is None or library.NAME not in ("numpy", "cupy"):
        return value
    return dispatch.memory(function, name, value)[1].array


def on_host(value: Any) -> Any:
    """The array of NumPy over an object's memory; read-only unless its exporter says otherwise."""
    kind = type(value)
    is_frozen = kind.__module__.partition(".")[0] in _IMMUTABLE
    try:
        if hasattr(kind, "__array_interface__"):
            array = np.asarray(_Interface(value))
            if array.dtype.kind == "V" and str(getattr(value, "dtype", "")).endswith("bfloat16"):
                array = array.view(extended("bfloat16", _NO_BFLOAT16))
        elif _is_buffer(value):
            array = np.asarray(memoryview(value))
        else:
            shown = _ByDLPack(value)
            array = shown.numpy()
            is_frozen = is_frozen or not shown.writable
    except _FAILURES as error:
        raise NotExported(value, "NumPy", error) from None
    if is_frozen:
        array.flags.writeable = False
    return array


def on_device(value: Any, cupy: Any) -> tuple[Any, bool]:
    """The array of CuPy over an object's memory, and whether it may be written."""
    shown = _ByDLPack(value)
    try:
        if hasattr(type(value), "__cuda_array_interface__"):
            return cupy.asarray(value), not value.__cuda_array_interface__["data"][1]
        return cupy.from_dlpack(shown), shown.writable
    except _FAILURES as error:
        raise NotExported(value, "CuPy", error) from None


class _Interface:
    """An object's array interface alone: NumPy would ask for its buffer first."""

    def __init__(self, value: Any) -> None:
        self.value, self.__array_interface__ = value, value.__array_interface__


class _ByDLPack:
    """An object's DLPack alone, never of a copy; afterwards ``writable`` says whether its memory may be written."""

    writable = False
    _code: Any = None  # of bfloat16, which NumPy does not take from DLPack

    def __init__(self, value: Any) -> None:
        self._value = value

    def numpy(self) -> Any:
        """The array of NumPy; where it is of bfloat16, NumPy is told of unsigned integers."""
        array = np.from_dlpack(self)
        if self._code is not None:
            self._code.value = _BFLOAT  # the exporter's structure is as it was
            array = array.view(extended("bfloat16", _NO_BFLOAT16))
        return array

    def __dlpack_device__(self) -> Any:
        return self._value.__dlpack_device__()

    def __dlpack__(self, **asked: Any) -> Any:
        given = {"stream": asked["stream"]} if asked.get("stream") is not None else {}
        new = {"max_version": asked["max_version"], "copy": False} if "max_version" in asked else {}
        try:
            capsule = self._value.__dlpack__(**given, **new)
        except TypeError as error:
            if "argument" not in str(error):
                raise BufferError(str(error)) from None  # not a TypeError, after which NumPy would ask for less
            capsule = self._value.__dlpack__(**given)
        is_new = bool(_is_capsule(capsule, b"dltensor_versioned"))
        at = pointer_of(capsule, b"dltensor_versioned" if is_new else b"dltensor")
        self.writable = is_new and not ctypes.c_uint64.from_address(at + _FLAGS_AT).value & _NOT_WRITABLE
        code = ctypes.c_uint8.from_address(at + is_new * _ARRAY_AT + _TYPE_AT)
        if code.value == _BFLOAT and self.__dlpack_device__()[0] in _HOST:
            self._code, code.value = code, _UNSIGNED
        return capsule


def _of_device(value: Any) -> str:
    try:
        device = int(value.__dlpack_device__()[0])
    except _FAILURES:  # one that has no memory
        return ""
    return "fastpe._arrays.numpy" if device in _HOST else "fastpe._arrays.cupy" if device in _CUDA else ""


def _is_buffer(value: Any) -> bool:
    try:
        memoryview(value).release()
    except TypeError:
        return False
    except (BufferError, ValueError):  # such as a type that buffers do not have: `on_host` says so
        return True
    return True
