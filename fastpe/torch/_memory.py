"""Operations on the memory of tensors, without autograd: tensors become arrays, the core writes on torch's stream, versions count up.

Nothing here is traced: a compiler that gave up on a caller's code is kept out, as it would take NumPy's arrays for tensors.
"""

from __future__ import annotations

import contextlib
import math
import types
from typing import Any

import numpy as np
import torch

from .._arrays import Memory, dispatch
from .._arrays.dtypes import FLOAT8
from .._arrays.torch import as_array, over
from .._core import call_cache, checks
from .._core.call_cache import DeviceEntry
from .._core.checks import message
from .._core.operations import Add, AddBias, Embed, Resample, Rotate, Spec
from .._core.operations.base import MOST_POSITIONS, has_single_rows
from .._core.run import finish

Tensor = torch.Tensor
_CPU, _INT64 = torch.device("cpu"), np.dtype(np.int64)
_PLAIN = {Tensor, torch.nn.Parameter}
_count_up = torch.autograd.graph.increment_version
_REPEATED = Add, Rotate, Embed
HUGE_BYTES = 1 << 22  # from here on NumPy asks for huge pages
MAPPED_BYTES = 1 << 25  # from here on the C library always takes new pages; below it reuses those that were freed


# ---- writing -----------------------------------------------------------------------------------------------------------------


def write(
    operation: Any, arrays: tuple[Any, ...], where: Any, out: Any, validate: bool, counts_up: bool = True, key: Any = None
) -> None:
    """Run an operation on tensors in place, or into ``out``. ``counts_up``: whether versions do, as autograd counts those that it marks."""
    function, lead = operation.function, next(x for x in (*arrays, out) if isinstance(x, Tensor))
    device = lead.device
    targets = _targets(operation, arrays, out)
    check_writable(function, targets)
    shared = tuple([as_shared(function, name, x, device) for name, x in zip(operation.names, arrays, strict=True)])
    if where is not None:
        where = shared_where(function, where, device)
    result: Any = None
    if out is not None and not (out is lead and operation.in_place):
        outs = [as_shared(function, "out", one, device) for one in targets]
        result = outs if isinstance(out, (tuple, list)) else outs[0]
    packing = getattr(operation, "packing", None)
    if packing is not None:
        shared = _parts(shared[0], packing)
        result = None if result is None else _parts(result, packing)
    with on_stream(device):
        job = operation.check(shared, where, result, validate)
        finish(operation, job, key, shared, where)
    if packing is not None and out is not None:
        _copy_values(arrays[0], out, packing)
    if counts_up:
        count_up(*targets)


def make(operation: Any, arrays: tuple[Any, ...], where: Any, validate: bool) -> Any:
    """Run an operation into new tensors, without checks if an earlier call was like this one."""
    if validate is not False or where is None:
        return _fresh(operation, arrays, where, validate, None)
    result = looked_up(operation, arrays, where) if type(operation) is Embed else call_cache.MISS
    if result is call_cache.MISS:
        key = key_of(operation, arrays, where, True)
        result = call_cache.MISS if key is None else repeat(operation, key, arrays, where, True)
        if result is call_cache.MISS:
            return _fresh(operation, arrays, where, validate, key)
    return result


def _fresh(operation: Any, arrays: tuple[Any, ...], where: Any, validate: bool, key: Any) -> Any:
    """Run an operation into new tensors, checked."""
    if isinstance(operation, Resample):
        return _resampled(operation, arrays[0])
    if operation.in_place:
        given = [x for x in arrays[: operation.writes] if x is not None]
        outs = [new_like(x) for x in given]
        out: Any = outs[0] if len(outs) == 1 else tuple(outs)
    else:
        lead = next(x for x in arrays if isinstance(x, Tensor))
        for name, x in zip(operation.names, arrays, strict=True):  # what has no memory is refused before anything is made of it
            as_shared(operation.function, name, x, lead.device)
        out = new(*result_of(operation, arrays), lead.device)
    write(operation, arrays, where, out, validate, key=key)
    return out


def result_of(operation: Any, arrays: tuple[Any, ...]) -> tuple[Any, torch.dtype]:
    """The shape and dtype of the new tensor that an operation makes of tensors, traced ones too."""
    specs = tuple([Spec(tuple(x.shape), name_of(x.dtype)) if isinstance(x, Tensor) else None for x in arrays])
    spec = operation.result(specs)
    return spec.shape, dtype_of(operation.function, spec.dtype)


def _targets(operation: Any, arrays: tuple[Any, ...], out: Any) -> list[Tensor]:
    if out is None:
        return [x for x in arrays[: operation.writes] if isinstance(x, Tensor)]
    outs = list(out) if operation.writes > 1 and isinstance(out, (tuple, list)) else [out]
    for one in outs:
        if not isinstance(one, Tensor):
            raise wrong_type(operation.function, "out must be a tensor like the input", one)
    return outs


def wrong_type(function: str, rule: str, x: Any) -> TypeError:
    return TypeError(message(function, rule, f"{type(x).__module__}.{type(x).__qualname__}"))


def _parts(array: Any, packing: tuple[int, int, int]) -> tuple[Any, ...]:
    """The queries and keys of a packed array."""
    q_heads, k_heads, axis = packing
    index = (slice(None),) * axis
    return array[(*index, slice(0, q_heads))], array[(*index, slice(q_heads, q_heads + k_heads))]


def _copy_values(qkv: Tensor, out: Tensor, packing: tuple[int, int, int]) -> None:
    q_heads, k_heads, axis = packing
    first, count = q_heads + k_heads, qkv.shape[axis] - q_heads - k_heads
    with torch.no_grad():
        out.detach().narrow(axis, first, count).copy_(qkv.detach().narrow(axis, first, count))


# ---- calls like an earlier one -----------------------------------------------------------------------------------------------


def key_of(operation: Any, arrays: tuple[Any, ...], where: Any, makes: bool = False) -> Any:
    """The key of a call on plain tensors that may be repeated; None for any other. As ``Operation.key``.

    ``makes``: whether an operation that would write in place makes new tensors.
    """
    kind = type(operation)
    if kind is AddBias:
        return _bias_key(operation, arrays[0], where, makes)
    if kind not in _REPEATED or not operation.repeatable(where):
        return None
    moves = 0 if where[1] is None and type(where[0]) is int else _kind_of_moves(operation, arrays, where)
    if moves is None:
        return None
    if kind is Embed:
        table, ids, type_ids, types, row_scale, _ = arrays
        if type_ids is not None or types is not None or row_scale is not None:
            return None
        arrays = table, ids
    layouts: list[Any] = []
    for x in arrays:
        if x is None:
            layouts.append(None)
        elif type(x) in _PLAIN and (x.is_cpu or x.is_cuda):
            try:
                layouts.append((x.dtype, x.shape, x.stride() if x.is_cpu else (x.stride(), x.get_device())))
            except RuntimeError:  # it has no strides
                return None
        else:
            return None
    encoding = operation[0]
    return (kind, None if encoding is None else encoding.text, operation[1:], where[4], moves, makes, *layouts)


def _kind_of_moves(operation: Any, arrays: tuple[Any, ...], where: Any) -> Any:
    """The shape of a tensor of offsets or positions that a prepared call has room for; as ``offset_kind``."""
    offset, positions = where[0], where[1]
    moves = offset if positions is None else positions
    if type(moves) not in _PLAIN:
        return None
    if moves.is_cuda:  # kernels there read any of these
        alone = positions is None or (type(offset) is int and offset == 0)
        return (positions is None, moves.dtype, moves.shape, moves.stride(), moves.get_device()) if alone else None
    if moves.dtype is not torch.int64 or not moves.is_cpu:
        return None
    if positions is not None:
        return ("positions", moves.shape) if type(offset) is int and offset == 0 and moves.numel() <= MOST_POSITIONS else None
    if type(operation) is Embed:
        return moves.shape if arrays[1].ndim > 1 and arrays[1].shape[-1] == 1 else None
    x = arrays[0] if arrays[0] is not None else arrays[1]
    return moves.shape if has_single_rows(x, where[4]) else None


def _bias_key(operation: AddBias, scores: Any, where: Any, makes: bool) -> Any:
    if type(scores) not in _PLAIN or not scores.is_cpu or not operation.repeatable(where):
        return None
    try:
        steps = None if scores.is_contiguous() else scores.stride()
    except RuntimeError:  # it has none
        return None
    if makes and steps is not None:  # those of the new tensor would depend on how many keys there are
        return None
    return AddBias, operation.bias.text, operation[1:], scores.dtype, scores.shape[:-1], steps, makes


def repeat(operation: Any, key: Any, arrays: tuple[Any, ...], where: Any, makes: bool = False) -> Any:
    """Run a call like an earlier one from the addresses of its tensors; MISS if it must be checked anew.

    A tensor may stand for other values than its memory has: negated, all zero, of a transform. Such a one has no address or is asked for.
    """
    try:
        entry: Any = call_cache.entries.get(key)
    except TypeError:
        return call_cache.MISS
    if entry is None:
        return call_cache.MISS
    kind, addresses = type(operation), []
    given = arrays[:2] if kind is Embed else [x for x in arrays if x is not None]
    moves = where[0] if where[1] is None else where[1]
    placed = isinstance(moves, Tensor)
    for x in [*given, moves] if placed else given:
        try:
            address = x.data_ptr()
        except RuntimeError:  # it has none
            return call_cache.MISS
        if not address or x.is_neg() or x.is_inference():
            return call_cache.MISS
        addresses.append(address)
    if type(entry) is DeviceEntry:
        positions = addresses.pop() if placed else 0
        return _repeat_on_device(entry, operation, arrays, given, addresses, (0, positions) if placed else (moves, 0), makes)
    if placed:
        moves = _integers(moves, addresses.pop())
    if kind is Embed:
        return _embedded(entry, arrays, addresses, moves)
    outs: list[Any] = []
    if makes:
        outs = [new_like(x) for x in given]
        addresses = [address for x, out in zip(addresses, outs, strict=True) for address in (x, out.data_ptr())]
    elif kind is not Rotate:
        addresses *= 2
    done = entry.run_bias(addresses, given[0].shape[-1], moves) if kind is AddBias else entry.run_at(addresses, moves)
    if not done:
        return call_cache.MISS
    if makes:
        return outs[0] if len(outs) == 1 else tuple(outs)
    _count_up(given)
    return given[0] if len(given) == 1 else arrays


def _repeat_on_device(
    entry: DeviceEntry,
    operation: Any,
    arrays: tuple[Any, ...],
    given: Any,
    addresses: list[int],
    place: tuple[int, int],
    makes: bool,
) -> Any:
    """Launch on the stream that PyTorch is using, ``place`` being the offset, or where positions are."""
    kind, outs = type(operation), given
    if kind is Embed:
        table, ids = arrays[:2]
        outs = [torch.empty((*ids.shape, table.shape[1]), dtype=table.dtype, device=table.device)]
        addresses.append(outs[0].data_ptr())
    elif makes:
        outs = [new_like(x) for x in given]
        addresses = [address for x, out in zip(addresses, outs, strict=True) for address in (x, out.data_ptr())]
    elif kind is not Rotate:
        addresses *= 2
    if not entry.launch(addresses, *place, _Stream(given[0].get_device())):
        return call_cache.MISS
    if kind is Embed or makes:
        return outs[0] if len(outs) == 1 else tuple(outs)
    _count_up(given)
    return given[0] if len(given) == 1 else arrays


class _Stream:
    """PyTorch's current stream of a device, as CuPy launches on it."""

    __slots__ = ("ptr",)

    def __init__(self, device: int) -> None:
        self.ptr = _raw_stream(device)


def _raw_stream(device: int) -> int:
    return int(torch.cuda.current_stream(torch.device("cuda", device)).cuda_stream)


_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", _raw_stream)  # a tenth of the time; missing without CUDA


def looked_up(operation: Embed, arrays: tuple[Any, ...], where: Any) -> Any:
    """Rows of a table and nothing else, by PyTorch, which takes a third of the time for a few; MISS if it is more than that."""
    encoding, scale, padding_idx, dtype, seq_len, out_scale, *_, frozen = operation
    table, ids, *more = arrays
    offset, positions, cu_seqlens, mask, _ = where
    absent = encoding, padding_idx, dtype, seq_len, out_scale, positions, cu_seqlens, mask, *more
    if (
        type(offset) is not int
        or offset != 0
        or type(scale) is not float
        or scale != 1
        or any(one is not None for one in absent)
    ):
        return call_cache.MISS
    if type(table) not in _PLAIN or type(ids) is not Tensor or not (table.is_cpu and ids.is_cpu and table.is_floating_point()):
        return call_cache.MISS
    if table.dtype.itemsize < 2 or not (_is_whole(table) and _is_whole(ids)):
        return call_cache.MISS
    if frozen is not None and not (type(frozen) is int and 0 <= frozen < table.shape[0]):
        return call_cache.MISS
    try:
        return torch.embedding(table, ids)
    except (IndexError, RuntimeError):  # our errors say more
        return call_cache.MISS


def _is_whole(x: Tensor) -> bool:
    """Whether the values of a tensor lie one behind the other, in a storage that has all of them."""
    if x.layout is not torch.strided or not x.is_contiguous() or x.is_neg() or x._is_zerotensor():
        return False
    return x.untyped_storage().nbytes() >= (x.storage_offset() + x.numel()) * x.itemsize


def _integers(tensor: Tensor, address: int) -> Any:
    """The array over an int64 tensor of the host."""
    return over(tensor, address, _INT64, tensor.shape, tuple([8 * stride for stride in tensor.stride()]))


def _embedded(entry: Any, arrays: tuple[Any, ...], addresses: list[int], moves: Any) -> Any:
    table, ids = arrays[:2]
    if not call_cache.are_rows(_integers(ids, addresses[1]), table.shape[0]):
        return call_cache.MISS
    out = new((*ids.shape, table.shape[1]), table.dtype, table.device)
    return out if entry.run_at((*addresses, out.data_ptr()), moves) else call_cache.MISS


# ---- tensors as arrays -------------------------------------------------------------------------------------------------------


def as_shared(function: str, name: str, value: Any, device: torch.device) -> Any:
    """The array that shares a tensor's memory; numbers and lists as they are; nothing else."""
    if value is None or type(value) is int:
        return value
    if isinstance(value, Tensor):
        if not (value.is_cpu and device == _CPU) and value.device != device:
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


# ---- what autograd counts ----------------------------------------------------------------------------------------------------


def check_writable(function: str, targets: list[Tensor]) -> None:
    for x in targets:
        if x.is_inference() and not torch.is_inference_mode_enabled():
            rule = "an inference tensor must not be written outside InferenceMode"
            raise RuntimeError(message(function, rule, "one", "Pass a clone of it, as PyTorch says too."))


def count_up(*targets: Tensor) -> None:
    """Count the version numbers up, by which autograd sees that a tensor was written after it was saved."""
    if torch.is_inference_mode_enabled():
        targets = tuple(x for x in targets if not x.is_inference())
    _count_up(targets)


# ---- new tensors -------------------------------------------------------------------------------------------------------------


def new(shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor to be written. Large ones on the CPU in memory of NumPy's: in huge pages the first write takes less than half as long."""
    if device != _CPU or math.prod(shape) * dtype.itemsize < HUGE_BYTES:
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


def _resampled(operation: Resample, table: Tensor) -> Tensor:
    """``fastpe.resample`` to a new tensor."""
    array = as_array(operation.function, "table", table)
    is_bfloat16 = table.dtype is torch.bfloat16
    with on_stream(table.device):
        made = operation.check((array,), None, None, False).result
        made = made.view("int16") if is_bfloat16 else made
        shared: Tensor = torch.from_numpy(made) if table.device == _CPU else torch.utils.dlpack.from_dlpack(made)
    return shared.view(table.dtype) if is_bfloat16 else shared


def _leave_out() -> None:
    """Keep the compiler out of the functions above."""
    try:
        from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
    except ImportError:  # an older PyTorch
        return
    skip = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)  # this frame and those below it
    for function in globals().values():
        if isinstance(function, types.FunctionType) and function.__module__ == __name__:
            set_code_exec_strategy(function.__code__, skip)


_leave_out()
