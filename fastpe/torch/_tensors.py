"""Tensors as the arrays that share their memory, the stream that kernels run on, versions, and new tensors."""

from __future__ import annotations

import contextlib
import math
import types
from typing import Any

import numpy as np
import torch

from .._arrays import Memory, dispatch
from .._arrays.dtypes import FLOAT8
from .._arrays.torch import as_array
from .._core import checks
from .._core.checks import message

Tensor = torch.Tensor
CPU = torch.device("cpu")
HUGE_BYTES = 1 << 22  # from here on NumPy asks for huge pages
MAPPED_BYTES = 1 << 25  # from here on the C library always takes new pages; below it reuses those that were freed
increment_version = torch.autograd.graph.increment_version


# ---- tensors as arrays -------------------------------------------------------------------------------------------------------


def as_shared(function: str, name: str, value: Any, device: torch.device) -> Any:
    """The array that shares a tensor's memory; numbers and lists as they are; nothing else."""
    if value is None or type(value) is int:
        return value
    if isinstance(value, Tensor):
        if not (value.is_cpu and device == CPU) and value.device != device:
            got = f"{name} on {value.device} beside {device}"
            remedy = "Nothing is copied between devices silently."
            raise TypeError(message(function, "all tensors must be on one device", got, remedy))
        return as_array(function, name, value)
    library = dispatch.library_of(value)
    if library is not None and getattr(value, "ndim", 1) > 0:  # an array of the standard library does not say
        rule, got = "arrays beside a tensor must be tensors", f"{name} of {library.NAME}"
        raise TypeError(message(function, rule, got, f"Pass torch.as_tensor({name})."))
    return value


def shared_where(function: str, where: Any, device: torch.device) -> Any:
    """Where rows stand, with arrays in place of tensors."""
    return type(where)(*[as_shared(function, name, value, device) for name, value in zip(where._fields, where, strict=True)])


def outline(x: Tensor) -> tuple[Any, Memory]:
    """The library of a tensor's memory and what checks need to know of it, where nothing but its shape and device counts."""
    device = None if x.is_cpu else x.device.index
    return dispatch.library_on(device), Memory(None, 0, tuple(x.shape), (0,) * x.dim(), name_of(x.dtype), device, True)


def fixed(value: Any) -> Any:
    """Numbers that the caller cannot change any more: lists as tuples, arrays copied; tensors as they are."""
    if isinstance(value, (list, tuple)):
        return tuple(map(fixed, value))
    return value.copy() if isinstance(value, np.ndarray) else value


def fixed_where(where: Any) -> Any:
    """Where rows stand, with nothing that the caller could change before the way back; tensors are watched by their versions."""
    return type(where)(*map(fixed, where))


def on_stream(device: torch.device) -> Any:
    """Make torch's current stream of a device, if it is a GPU, the one that kernels are launched on."""
    return contextlib.nullcontext() if device.type == "cpu" else _on_stream(device)


@contextlib.contextmanager
def _on_stream(device: torch.device) -> Any:
    import cupy

    stream = torch.cuda.current_stream(device).cuda_stream
    protocol = types.SimpleNamespace(__cuda_stream__=lambda: (0, stream))  # streams of older torch do not know it themselves
    own_memory = cupy.cuda.using_allocator(_allocate)
    with cupy.cuda.Device(device.index), cupy.cuda.Stream.from_external(protocol), own_memory:
        yield


def _allocate(nbytes: int) -> Any:
    """Memory of PyTorch's for CuPy: a graph that is captured keeps it, so kernels may read what a call has made and given up."""
    import cupy

    device = cupy.cuda.Device().id
    tensor = torch.empty(nbytes, dtype=torch.uint8, device=torch.device("cuda", device))
    return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(tensor.data_ptr(), nbytes, tensor, device), 0)


_allocate.keeps_for_graphs = True  # type: ignore[attr-defined]


def check_writable(function: str, targets: list[Tensor]) -> None:
    for x in targets:
        if x.is_inference() and not torch.is_inference_mode_enabled():
            rule = "an inference tensor must not be written outside InferenceMode"
            raise RuntimeError(message(function, rule, "one", "Pass a clone of it, as PyTorch says too."))


def count_up(*targets: Tensor) -> None:
    """Count the version numbers up, by which autograd sees that a tensor was written after it was saved."""
    if torch.is_inference_mode_enabled():
        targets = tuple(x for x in targets if not x.is_inference())
    increment_version(targets)


# ---- new tensors -------------------------------------------------------------------------------------------------------------


def new(shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor to be written. Large ones on the CPU in memory of NumPy's: in huge pages the first write takes less than half as long."""
    if device != CPU or math.prod(shape) * dtype.itemsize < HUGE_BYTES:
        return torch.empty(shape, dtype=dtype, device=device)
    return _numpys(np.empty, shape, dtype)


def zeros(shape: Any, dtype: torch.dtype) -> Tensor:
    """Zeros on the CPU; large ones in memory of NumPy's, which comes in huge pages, and where nobody writes not at all."""
    if math.prod(shape) * dtype.itemsize < MAPPED_BYTES:
        return torch.zeros(shape, dtype=dtype)
    return _numpys(np.zeros, shape, dtype)


def _numpys(make: Any, shape: Any, dtype: torch.dtype) -> Tensor:
    """A tensor in memory that NumPy makes, which has no bfloat16 and no float8."""
    if dtype is torch.bfloat16 or name_of(dtype) in FLOAT8:
        return torch.from_numpy(make(shape, f"i{dtype.itemsize}")).view(dtype)
    return torch.from_numpy(make(shape, name_of(dtype)))


def new_like(x: Tensor) -> Tensor:
    """As ``torch.empty_like``, with the strides that it chooses."""
    if x.device.type != "cpu" or x.numel() * x.element_size() < HUGE_BYTES:
        return torch.empty_like(x)
    strides = torch.empty_like(x, device="meta").stride()
    return new((x.numel(),), x.dtype, x.device).as_strided(x.shape, strides)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype_of(function: str, dtype: Any) -> torch.dtype:
    """A floating-point dtype of torch, given as one, as a name or as NumPy's."""
    known = checks.RESULTS if function == "embed" else checks.FLOATS
    if isinstance(dtype, torch.dtype):
        if name_of(dtype) not in known:
            raise TypeError(message(function, f"dtype must be one of {', '.join(known)}", str(dtype)))
        return dtype
    found: torch.dtype = getattr(torch, checks.dtype_name(function, dtype, known))
    return found


def leave_out(names: dict[str, Any]) -> None:
    """Keep the compiler out of the functions of a module: one that gave up on a caller's code would take NumPy's arrays for tensors."""
    try:
        from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
    except ImportError:  # an older PyTorch
        return
    skip = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)  # this frame and those below it
    for function in names.values():
        if isinstance(function, types.FunctionType) and function.__module__ == names["__name__"]:
            set_code_exec_strategy(function.__code__, skip)


leave_out(globals())
