"""Operations on the memory of tensors, without autograd: tensors become arrays, the core writes on torch's stream, versions count up.

Nothing here is traced.
"""

from __future__ import annotations

from typing import Any

import torch

from .._arrays.torch import as_array
from .._core import call_cache
from .._core.checks import message
from .._core.operations import Embed, Resample, Spec
from .._core.run import finish
from . import _repeat
from ._tensors import as_shared, check_writable, count_up, dtype_of, leave_out, name_of, new, new_like, on_stream, shared_where

Tensor = torch.Tensor


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
    result = _repeat.looked_up(operation, arrays, where) if type(operation) is Embed else call_cache.MISS
    if result is call_cache.MISS:
        key = _repeat.key_of(operation, arrays, where, True)
        result = call_cache.MISS if key is None else _repeat.repeat(operation, key, arrays, where, True)
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


def _resampled(operation: Resample, table: Tensor) -> Tensor:
    """``fastpe.resample`` to a new tensor."""
    array = as_array(operation.function, "table", table)
    is_bfloat16 = table.dtype is torch.bfloat16
    with on_stream(table.device):
        made = operation.check((array,), None, None, False).result
        made = made.view("int16") if is_bfloat16 else made
        shared: Tensor = torch.from_numpy(made) if table.is_cpu else torch.utils.dlpack.from_dlpack(made)
    return shared.view(table.dtype) if is_bfloat16 else shared


leave_out(globals())
