"""Calls on tensors like an earlier one: their keys, and how one is run from the addresses of its tensors, without checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._arrays.torch import over
from .._core import call_cache
from .._core.call_cache import DeviceEntry
from .._core.operations import Add, AddBias, Embed, Rotate
from .._core.operations.base import MOST_POSITIONS, has_single_rows
from ._tensors import increment_version, leave_out, new, new_like

Tensor = torch.Tensor
_INT64 = np.dtype(np.int64)
_PLAIN = {Tensor, torch.nn.Parameter}
_REPEATED = Add, Rotate, Embed


def key_of(operation: Any, arrays: tuple[Any, ...], where: Any, makes: Any = False, out: Any = None) -> Any:
    """The key of a call on plain tensors that may be repeated; None for any other. As ``Operation.key``.

    ``makes``: whether an operation that would write in place makes new tensors. With an ``out`` only calls on a GPU are repeated.
    """
    kind, targets = type(operation), _targets(out)
    if targets:
        if kind is AddBias or not all(type(one) in _PLAIN and one.is_cuda for one in targets):
            return None
        makes = type(out) if targets is out else out is arrays[0], len(targets)
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
    for x in (*arrays, *targets):
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


def _targets(out: Any) -> Any:
    """The tensors that a call is given to write to."""
    return () if out is None else out if type(out) in (tuple, list) else (out,)


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


def repeat(operation: Any, key: Any, arrays: tuple[Any, ...], where: Any, makes: bool = False, out: Any = None) -> Any:
    """Run a call like an earlier one from the addresses of its tensors; MISS if it must be checked anew.

    A tensor may stand for other values than its memory has: negated, all zero, of a transform. Such a one has no address or is asked for.
    """
    try:
        entry: Any = call_cache.entries.get(key)
    except TypeError:
        return call_cache.MISS
    if entry is None:
        return call_cache.MISS
    kind, addresses, on_device = type(operation), [], type(entry) is DeviceEntry
    given: list[Any] = list(arrays[:2]) if kind is Embed else [x for x in arrays if x is not None]
    moves = where[0] if where[1] is None else where[1]
    placed, targets = isinstance(moves, Tensor), _targets(out)
    for x in (*targets, *given, moves) if placed else (*targets, *given):
        try:
            address = x.data_ptr()
        except RuntimeError:  # it has none
            return call_cache.MISS
        if not address or x.is_neg() or x.is_inference():
            return call_cache.MISS
        addresses.append(address)
    positions = addresses.pop() if placed else 0
    into, addresses = addresses[: len(targets)], addresses[len(targets) :]
    outs: list[Any] = []
    if kind is Embed:
        table, ids = given
        if not on_device and not call_cache.are_rows(_integers(ids, addresses[1]), table.shape[0]):
            return call_cache.MISS
        if not into:
            outs = [new((*ids.shape, table.shape[1]), table.dtype, table.device)]
            into = [outs[0].data_ptr()]
        addresses += into
    elif into or makes:
        if not into:
            outs = [new_like(x) for x in given]
            into = [one.data_ptr() for one in outs]
        addresses = [address for both in zip(addresses, into, strict=True) for address in both]
    elif kind is not Rotate:
        addresses *= 2
    if on_device and not outs and (targets or len(given) > 1) and not entry.apart(addresses):
        return call_cache.MISS
    if on_device:
        done = entry.launch(addresses, 0 if placed else moves, positions, _Stream(given[0].get_device()))
    elif kind is AddBias:
        done = entry.run_bias(addresses, given[0].shape[-1], moves)
    else:
        done = entry.run_at(addresses, _integers(moves, positions) if placed else moves)
    if not done:
        return call_cache.MISS
    if outs:
        return outs[0] if len(outs) == 1 else tuple(outs)
    increment_version(targets or given)
    if targets:
        return out
    return given[0] if len(given) == 1 else arrays


class _Stream:
    """The stream of a device that PyTorch is using, as CuPy launches on it."""

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


leave_out(globals())
