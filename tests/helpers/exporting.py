"""Objects of other libraries that own memory, or show it: how each is made over an array, and who allows what."""

from __future__ import annotations

import array
import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

GUARD = 64  # bytes on both sides of an array, which nobody may write
_CTYPES = {"float32": ctypes.c_float, "float64": ctypes.c_double, "int32": ctypes.c_int32, "int64": ctypes.c_int64}


class ArrayInterface:
    """What has NumPy's array interface and nothing else but a type, as interfaces have no bfloat16."""

    def __init__(self, shown: np.ndarray) -> None:
        self._shown, self.dtype = shown, shown.dtype

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._shown.__array_interface__


class DLPack:
    """What exports DLPack 1.0, on the host, as NumPy does since 2.1."""

    def __init__(self, shown: np.ndarray) -> None:
        if np.lib.NumpyVersion(np.__version__) < "2.1.0":
            pytest.skip("before 2.1 NumPy exports no DLPack that says whether it may be written")
        self._shown = shown

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None) -> Any:
        return self._shown.__dlpack__(max_version=max_version, copy=copy)


class OldDLPack(DLPack):
    """What exports DLPack before it could say that memory is read-only."""

    def __dlpack__(self, *, stream: Any = None) -> Any:  # type: ignore[override]
        return self._shown.__dlpack__()


class BFloat16DLPack(DLPack):
    """What exports bfloat16, which NumPy does not take from DLPack: a tensor's capsule over the memory."""

    def __init__(self, shown: np.ndarray) -> None:
        torch = pytest.importorskip("torch")
        self._tensor = torch.from_numpy(shown.view(np.int16)).view(torch.bfloat16)

    def __dlpack__(self, **asked: Any) -> Any:
        return self._tensor.__dlpack__(**asked)


class OldBFloat16DLPack(BFloat16DLPack):
    """The same before DLPack could say that memory is read-only."""

    def __dlpack__(self, *, stream: Any = None) -> Any:  # type: ignore[override]
        return self._tensor.__dlpack__()


class CopyingDLPack(DLPack):
    """What exports copies, whatever it is asked."""

    def __dlpack__(self, **asked: Any) -> Any:
        return self._shown.__dlpack__(max_version=asked.get("max_version"), copy=True)


def _of_ctypes(shown: np.ndarray) -> Any:
    kind = _CTYPES[shown.dtype.name]
    for size in reversed(shown.shape):
        kind = kind * size
    return kind.from_buffer(shown)


def _of_pyarrow(shown: np.ndarray) -> Any:
    return pytest.importorskip("pyarrow").Tensor.from_numpy(shown)


def _of_array_api(shown: np.ndarray) -> Any:
    return pytest.importorskip("array_api_strict").asarray(shown, copy=False)


class Kind(NamedTuple):
    """A kind of object, and the element types that it knows."""

    over: Callable[[np.ndarray], Any]
    dtypes: frozenset[str]


_INTEGERS = {"int32", "int64"}
_ALL = frozenset({"float16", "float32", "float64", "bool", *_INTEGERS})
KINDS = {
    "memoryview": Kind(memoryview, _ALL),
    "array_interface": Kind(ArrayInterface, _ALL | {"bfloat16"}),
    "dlpack": Kind(DLPack, _ALL),
    "dlpack_bfloat16": Kind(BFloat16DLPack, frozenset({"bfloat16"})),
    "ctypes": Kind(_of_ctypes, frozenset(_CTYPES)),
    "pyarrow": Kind(_of_pyarrow, _ALL - {"bool"}),
    "array_api_strict": Kind(_of_array_api, _ALL - {"float16"}),
}


class Guarded(NamedTuple):
    """An array whose memory is between two others, which nobody may write."""

    array: np.ndarray
    around: np.ndarray

    @classmethod
    def copy(cls, values: np.ndarray) -> Guarded:
        around = np.full(values.nbytes + 2 * GUARD, 0xA5, np.uint8)
        inside = around[GUARD : GUARD + values.nbytes].view(values.dtype).reshape(values.shape)
        inside[...] = values
        return cls(inside, around)

    def is_intact(self) -> bool:
        """Whether nothing was written around it."""
        return bool((self.around[:GUARD] == 0xA5).all() and (self.around[-GUARD:] == 0xA5).all())


def numbers(values: np.ndarray) -> array.array[Any]:
    """A one-dimensional array of the standard library."""
    return array.array(values.dtype.char, values.tobytes())
