"""How an operation runs on tensors: decided once, for all operations.

Traced (by ``torch.compile``, ``torch.export``, a dispatch mode, ``torch.jit.trace``), it becomes an operator of the graph. Where a gradient
may be asked for, autograd is told. Else the memory of the tensors is written, by the core, at once.
"""

from __future__ import annotations

from typing import Any

import torch

from .._arrays import dispatch
from .._arrays.torch import as_array
from .._core import call_cache, checks
from .._core.arguments import host_numbers, is_known
from .._core.checks import describe, message
from .._core.operations import Embed, Encode, Resample
from .._core.run import as_where
from . import _autograd, _memory, _operators, _repeat, _tensors
from ._grad_state import is_traced, is_watched, refuse, refuse_out, requires_gradient
from ._packing import from_numbers

Tensor = torch.Tensor
is_compiling = torch.compiler.is_compiling


def run(operation: Any, arrays: tuple[Any, ...], where: Any, out: Any, validate: bool) -> Any:
    """Run a verb's operation in place, into ``out``, or into a new tensor where that is what the verb makes, and return what it returns."""
    if not operation.in_place:
        return _make(operation, arrays, as_where(operation, where), out, validate)
    traced = is_traced()
    if not traced and not is_watched(operation, arrays, where, out):
        key = None
        if validate is False:
            key = _repeat.key_of(operation, arrays, where, False, out)
            if key is not None:
                result = _repeat.repeat(operation, key, arrays, where, False, out)
                if result is not call_cache.MISS:
                    return result
        if key is None and _is_split(operation, arrays):
            dispatch.sharded().write(operation, arrays, as_where(operation, where), out, validate)
        else:
            _memory.write(operation, arrays, as_where(operation, where), out, validate, key=key)
    elif _is_split(operation, arrays):
        dispatch.sharded().copy(operation, arrays, as_where(operation, where), out, validate)
    elif traced:
        _operators.write(operation, arrays, as_where(operation, where), out, validate)
    else:
        where = as_where(operation, where)
        refuse(operation, arrays, where)
        lead = next(x for x in arrays if x is not None)
        refuse_out(operation.function, None if out is lead else out)
        _autograd.write(operation, arrays, where, validate)
    if out is not None:
        return out
    targets = [x for x in arrays[: operation.writes] if x is not None]
    return targets[0] if len(targets) == 1 else tuple(targets)


def new(operation: Any, arrays: tuple[Any, ...], where: Any, validate: bool) -> Any:
    """Run an operation into new tensors, with gradients: the functional form of a verb."""
    if (type(arrays[0]) is not Tensor or not operation.in_place) and _is_split(operation, arrays):
        return dispatch.sharded().make(operation, arrays, where, validate)
    if is_traced():
        return _operators.make(operation, arrays, where, validate)
    if is_watched(operation, arrays, where, None):
        refuse(operation, arrays, where)
        return _autograd.make(operation, arrays, where, validate)
    return _memory.make(operation, arrays, where, validate)


def _is_split(operation: Any, arrays: tuple[Any, ...]) -> bool:
    """Whether the array whose rows count is a DTensor."""
    return hasattr(type(arrays[1] if arrays[0] is None or isinstance(operation, Embed) else arrays[0]), "device_mesh")


# ---- verbs that make something -----------------------------------------------------------------------------------------------


def _make(operation: Any, arrays: tuple[Any, ...], where: Any, out: Any, validate: bool) -> Any:
    """Embed, encode or resample: a new tensor, or ``out``."""
    if isinstance(operation, Resample):
        size, grid = (tuple(one) if isinstance(one, list) else one for one in (operation.new_size, operation.grid))
        return new(operation._replace(new_size=size, grid=grid), arrays, where, validate)
    if isinstance(operation, Embed):
        operation, arrays = embedded(operation, arrays)
    else:
        operation, arrays = _encoded(operation, arrays, out)
    if out is None:
        return new(operation, arrays, where, validate)
    if not isinstance(out, Tensor):
        rule = "out must be a tensor like the others"
        raise TypeError(message(operation.function, rule, describe(out)))
    if _is_split(operation, arrays):
        dispatch.sharded().copy(operation, arrays, where, out, validate)
        return out
    if is_traced():
        if requires_gradient(out):
            refuse_out(operation.function, out)
        dtype = _tensors.name_of(out.dtype)
        return out.copy_(_operators.make(operation._replace(dtype=dtype), arrays, where, validate))
    if is_watched(operation, arrays, where, out):
        refuse(operation, arrays, where)
        refuse_out(operation.function, out)
    key = _repeat.key_of(operation, arrays, where, False, out) if validate is False and where is not None else None
    if key is None or _repeat.repeat(operation, key, arrays, where, False, out) is call_cache.MISS:
        _memory.write(operation, arrays, where, out, validate, key=key)
    return out


def embedded(operation: Embed, arrays: tuple[Any, ...]) -> tuple[Embed, tuple[Any, ...]]:
    """Ids as tensors, and the name of the result's dtype."""
    table, ids, type_ids, *rest = arrays
    if not isinstance(table, Tensor):
        raise _memory.wrong_type("embed", "table must be a tensor", table)
    ids, type_ids = _as_ids(ids, table), _as_ids(type_ids, table)
    if operation.dtype is not None:
        operation = operation._replace(dtype=_tensors.name_of(_tensors.dtype_of("embed", operation.dtype)))
    return operation, (table, ids, type_ids, *rest)


def _as_ids(ids: Any, table: Tensor) -> Any:
    if ids is None or isinstance(ids, Tensor) or (not is_compiling() and is_known(ids)):
        return ids
    return torch.tensor(ids, device=table.device)


def _encoded(operation: Encode, arrays: tuple[Any, ...], out: Any) -> tuple[Encode, tuple[Any, ...]]:
    """Positions as a tensor on the device of the example, and the name of the result's dtype."""
    function, (like, positions) = operation.function, arrays
    example = next(array for array in (like, out, positions) if isinstance(array, Tensor))
    for name, array in (("like", like), ("out", out)):
        if array is not None and not isinstance(array, Tensor):
            raise TypeError(message(function, f"{name} must be a tensor like the others", describe(array)))
    if positions is not None and not isinstance(positions, Tensor):  # None: all rows of a grid
        numbers = positions  # real ones become float64, as NumPy has them
        positions = from_numbers(numbers) if is_compiling() else torch.as_tensor(host_numbers(function, "positions", numbers))
    if positions is not None and positions.device != example.device and positions.device.type == "cpu":
        if not is_compiling():
            as_array(function, "out" if like is None else "like", example)  # before anything is copied there
        positions = positions.to(example.device)
    if not is_compiling():
        checks.width(function, "dim", operation.dim)
    if operation.dtype is not None:
        operation = operation._replace(dtype=_tensors.name_of(_tensors.dtype_of(function, operation.dtype)))
    return operation, (example if positions is None else None, positions)
