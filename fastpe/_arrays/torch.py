"""PyTorch tensors, seen as the NumPy or CuPy arrays that share their memory. Only imported once the caller has a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from . import Outline
from .dtypes import FLOAT8, ITEMSIZE, extended
from .errors import message

NAME = "torch"

_PLAIN = {torch.Tensor, torch.nn.Parameter}
_MISSING = "{}: {} tensors need ml_dtypes: pip install ml_dtypes, or pip install 'fastpe[torch]'."
_RULE = "{} must be a tensor whose memory can be used"
_SUPPORTED = "fastpe knows dense tensors on the CPU and on CUDA devices."


def as_array(function: str, name: str, tensor: Any) -> Any:
    """The array of NumPy (CPU) or CuPy (CUDA) over a tensor's memory: same shape, strides and dtype, nothing copied.

    TypeError for a tensor that has no such memory.
    """
    if type(tensor) in _PLAIN and tensor.is_cpu:
        try:
            address = tensor.data_ptr()
        except RuntimeError:  # it has no memory of its own
            address = 0
        array = _on_host(function, name, tensor, address) if address and not tensor.is_neg() else None
        if array is not None:
            return array
    with torch._C.DisableTorchFunctionSubclass():
        _check(function, name, tensor)
        array = _on_host(function, name, tensor, tensor.data_ptr()) if tensor.is_cpu else _on_device(tensor)
    if array is None:
        found, remedy = "a tensor whose storage was freed or cut", "Fill it first; sharded parameters must be gathered."
        raise TypeError(message(function, _RULE.format(name), found, f"{remedy} {_SUPPORTED}"))
    return array


def outline(function: str, name: str, tensor: Any) -> Outline:
    """The outline of a tensor, which may be traced; TypeError for one that is not dense."""
    check_layout(function, name, tensor)
    shape = tuple(tensor.shape)
    rows = shape[-1:] == (1,) or tensor.stride()[-1:] == (1,)
    return Outline(shape, str(tensor.dtype).removeprefix("torch."), ("torch", tensor.device), rows)


def check_layout(function: str, name: str, tensor: Any) -> None:
    """TypeError for a sparse tensor, which has neither strides nor a storage."""
    if tensor.layout is not torch.strided:
        _check(function, name, tensor)


def is_batched(tensor: Any) -> bool:
    """Whether a transform (vmap, torch.func.grad, batched gradients) stands for the tensor's memory."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


def is_finite(tensor: Any) -> bool:
    """Whether a tensor has neither NaN nor inf. One that is traced or freed has no values, and what lies on a GPU is not read."""
    if torch.compiler.is_compiling() or type(tensor) not in _PLAIN or not tensor.is_cpu:
        return True
    freed = not is_batched(tensor) and tensor.untyped_storage().nbytes() == 0
    return freed or bool(tensor.detach().isfinite().all())


def _check(function: str, name: str, tensor: Any) -> None:
    """TypeError for a tensor that has no memory as kernels know it."""
    found = None if type(tensor) in _PLAIN else _subclass(tensor)
    if found is None and is_batched(tensor):
        rule = "transforms of torch.func need functions that do not write in place"
        remedy = "Call those of fastpe.torch.functional."
        if torch._C._functorch.is_legacy_batchedtensor(tensor):
            rule = "batched gradients (is_grads_batched=True, vectorize=True) cannot be used"
            remedy = "Use torch.func.jacrev, or vmap of vjp."
        raise TypeError(message(function, rule, f"{name} inside one", remedy))
    if found is None and tensor.layout is not torch.strided:
        found = f"a {str(tensor.layout).removeprefix('torch.')} tensor", f"Pass {name}.to_dense()."
    if found is None and tensor.dtype in _QUANTISED:
        found = "a quantised tensor", f"Pass {name}.dequantize(), or {name}.int_repr() with row_scale= to embed."
    kind = tensor.device.type
    if found is None and kind == "meta":
        found = "a tensor on the meta device, which has no memory", "Materialise it first, e.g. module.to_empty(device=...)."
    elif found is None and kind not in ("cpu", "cuda"):
        found = f"a tensor on {tensor.device}", f"Copy it to one of those, e.g. {name}.cpu()."
    if found is None and tensor._is_zerotensor():
        found = "a tensor of zeros that has no memory", f"Pass {name}.clone()."
    if found is None and tensor.is_neg():
        found = "a tensor that negates its memory (the imaginary part of a conjugate)", f"Pass {name}.resolve_neg()."
    if found is None and tensor.dtype.is_complex:
        found = f"a {tensor.dtype} tensor", f"Pass torch.view_as_real({name})."
    if found is None and tensor.dtype not in _types(name):
        found = f"a {tensor.dtype} tensor", f"Convert it first, e.g. {name}.float()."
    if found is not None:
        raise TypeError(message(function, _RULE.format(name), found[0], f"{found[1]} {_SUPPORTED}"))


_QUANTISED = {torch.qint8, torch.quint8, torch.qint32}
_NAMES = (
    *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
_DTYPES = {getattr(torch, name): np.dtype(name) for name in _NAMES if hasattr(torch, name)}
_EXTENDED = {getattr(torch, name): name for name in ("bfloat16", *FLOAT8) if hasattr(torch, name)}  # types of ml_dtypes
_RESULTS = _DTYPES | {dtype: np.dtype(f"i{ITEMSIZE[name]}") for dtype, name in _EXTENDED.items()}  # of the same size
_DTYPES.update({dtype: np.dtype("i2") for dtype, name in _EXTENDED.items() if name == "bfloat16"})


def _types(name: str) -> dict[torch.dtype, Any]:
    """The types that an argument may have, as NumPy's."""
    return _RESULTS if name == "out" else _DTYPES


def _subclass(tensor: Any) -> tuple[str, str] | None:
    """Why a tensor of another class cannot be used; None if it only adds methods."""
    kind = type(tensor)
    if kind.__name__ in ("FakeTensor", "FunctionalTensor"):
        return f"a {kind.__name__}, which has no memory", "Only torch.compile and torch.export trace with them."
    if hasattr(kind, "device_mesh"):
        return (
            "a DTensor beside tensors",
            "Make all arrays of the call DTensors; a rank's to_local() alone begins at position 0.",
        )
    if hasattr(kind, "__tensor_flatten__") or kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return f"a {kind.__module__}.{kind.__qualname__}, which wraps other tensors", "Pass a tensor inside it."
    return None


class _Shared:
    """A tensor's memory for NumPy, which keeps this alive, and so the tensor."""

    def __init__(self, tensor: Any, interface: dict[str, Any]) -> None:
        self._tensor, self.__array_interface__ = tensor, interface


def over(tensor: Any, address: int, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """A NumPy array over a tensor's memory, unchecked; strides are in bytes."""
    place = {"version": 3, "data": (address, False), "shape": shape, "strides": strides, "typestr": dtype.str}
    return np.asarray(_Shared(tensor, place))


def _on_host(function: str, name: str, tensor: Any, address: int) -> Any:
    """The array over a tensor's memory; None if its storage does not hold all elements, or if NumPy does not know its type.

    ``Tensor.numpy()`` takes 2.2 us less, but its storage can never be resized again, as FSDP does.
    """
    dtype = _types(name).get(tensor.dtype)
    if dtype is None:
        return None
    itemsize, shape, strides, end = dtype.itemsize, tuple(tensor.shape), [], 0
    for size, stride in zip(shape, tensor.stride(), strict=True):
        strides.append(stride * itemsize)
        end += (size - 1) * stride
    if 0 not in shape and (tensor.storage_offset() + end + 1) * itemsize > tensor.untyped_storage().nbytes():
        return None
    array = over(tensor, address, dtype, shape, tuple(strides))
    element = _EXTENDED.get(tensor.dtype)
    return array if element is None else array.view(extended(element, _MISSING.format(function, element)))


def _on_device(tensor: Any) -> Any:
    try:
        import cupy
    except ImportError:
        raise ImportError(
            "fastpe: CUDA tensors need CuPy: pip install 'fastpe[torch,cuda13]', or cuda12 for CUDA 12."
        ) from None
    device, itemsize = tensor.device.index, tensor.element_size()
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    memory = cupy.cuda.UnownedMemory(tensor.data_ptr(), span * itemsize if tensor.numel() else 0, tensor, device)
    name = str(tensor.dtype).removeprefix("torch.")
    dtype = extended(name, _MISSING.format("fastpe", name)) if tensor.dtype in _EXTENDED else np.dtype(name)
    strides = tuple(stride * itemsize for stride in tensor.stride())
    with cupy.cuda.Device(device):
        return cupy.ndarray(tuple(tensor.shape), dtype, cupy.cuda.MemoryPointer(memory, 0), strides)
