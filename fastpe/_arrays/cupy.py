"""CuPy arrays as memory. Only imported once the caller has a CuPy array."""

from __future__ import annotations

from typing import Any

try:
    import cupy
except ImportError:
    raise ImportError("fastpe: arrays on a GPU need CuPy: pip install 'fastpe[cuda13]', or cuda12 for CUDA 12.") from None

from . import Memory, exported
from .dtypes import FLOAT8, extended

NAME = "cupy"


def memory(array: Any) -> Memory:
    if not isinstance(array, cupy.ndarray):
        shown, writeable = exported.on_device(array, cupy)
        return memory(shown)._replace(writeable=writeable)
    return Memory(array, array.data.ptr, array.shape, array.strides, array.dtype.name, array.device.id, True)


def empty(shape: tuple[int, ...], dtype: str, device: int | None) -> Any:
    """Allocate a new array on a device."""
    return new(
        shape, extended(dtype, f"fastpe: {dtype} needs ml_dtypes.") if dtype == "bfloat16" or dtype in FLOAT8 else dtype, device
    )


def new(shape: tuple[int, ...], dtype: Any, device: int | None) -> Any:
    """The same, of NumPy's type or its name."""
    if cupy.cuda.runtime.getDevice() == device:
        return cupy.empty(shape, dtype)
    with cupy.cuda.Device(device):
        return cupy.empty(shape, dtype)


def from_host(array: Any, device: int | None) -> Any:
    """Copy a host array to a device."""
    with cupy.cuda.Device(device):
        return cupy.asarray(array)


def as_host(array: Any) -> Any:
    """Copy an array to the host; synchronises."""
    return cupy.asnumpy(array)


def contiguous(array: Any, dtype: str) -> Any:
    """The array itself, or a C-contiguous copy of this dtype."""
    with cupy.cuda.Device(array.device.id):
        return cupy.ascontiguousarray(array, dtype)


def synchronize(device: int | None) -> None:
    """Wait for the current stream of a device."""
    with cupy.cuda.Device(device):
        cupy.cuda.get_current_stream().synchronize()


def on(device: int | None) -> Any:
    """Where arrays of a device may be computed with."""
    return cupy.cuda.Device(device)
