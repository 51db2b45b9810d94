"""Gradients of the operations: one function for what is linear in an array, one for what is looked up.

In place, the memory has been written already, and the function only tells autograd so, which counts the version up; else it makes a new
tensor. The way back is the operation's adjoint, run as any operation is; so it can be differentiated again, and traced.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .._core.checks import message
from .._core.operations import Add, AddBias, Embed, Encode, Resample, Scale
from .._core.where import Where
from . import _bias, _memory, _tensors
from ._factors import times
from ._gather_sum import by_position, embed_gradients, row_positions
from ._grad_state import caller, check_in_place, is_mapped, is_traced, keep, kept
from ._packing import record

Tensor = torch.Tensor


def write(operation: Any, arrays: tuple[Any, ...], where: Any, validate: bool) -> None:
    """Run an operation in place, and tell autograd."""
    if isinstance(operation, AddBias):
        check_in_place(operation.function, arrays[0])
        _bias.differentiable(operation, arrays[0], where, validate, in_place=True)
        return
    learned = _learned(operation)
    count = operation.writes
    indices = [i for i in range(count) if isinstance(arrays[i], Tensor) and (arrays[i].requires_grad or learned is not None)]
    function = operation.function if getattr(operation, "packing", None) is None else "apply_rotary_qkv"
    check_in_place(function, *(arrays[i] for i in indices))
    _memory.write(operation, arrays, where, None, validate, counts_up=False)
    _tensors.count_up(*(x for i, x in enumerate(arrays[:count]) if isinstance(x, Tensor) and i not in indices))
    for i in indices:
        _apply(operation, i, arrays, where, validate, in_place=True)


def make(operation: Any, arrays: tuple[Any, ...], where: Any, validate: bool) -> Any:
    """Run an operation into new tensors that have a history."""
    if isinstance(operation, AddBias):
        return _bias.differentiable(operation, arrays[0], where, validate, in_place=False)
    if isinstance(operation, Resample):
        return stretch(arrays[0], operation)
    if isinstance(operation, Encode):
        return evaluate(operation, arrays, where, validate)
    if isinstance(operation, Embed):
        table, ids, type_ids, types, *scales = arrays
        places = _tensors.fixed_where(where)[:4]
        return lookup(table, types, _learned(operation), ids, type_ids, *scales, *places, operation, validate)
    made = [_apply(operation, i, arrays, where, validate) for i in range(operation.writes) if arrays[i] is not None]
    return made[0] if len(made) == 1 else tuple(made)


def evaluate(operation: Any, arrays: tuple[Any, ...], where: Any, validate: bool) -> Any:
    """Run an operation into new tensors without a history."""
    run = record if is_traced() else _memory.make
    return run(operation, arrays, where, validate)


def _learned(operation: Any) -> Any:
    """The table of learned positions that an operation adds, if it does."""
    encoding = operation[0]
    adds = isinstance(operation, (Add, Embed)) and encoding is not None and encoding.holds_arrays
    return encoding.table if adds else None


def _with_table(operation: Any, table: Any) -> Any:
    """The operation with another tensor for its table of learned positions."""
    return operation if table is None else operation._replace(encoding=operation.encoding.with_arrays(table=table))


# ---- what is linear in an array ----------------------------------------------------------------------------------------------


class _Linear(NamedTuple):
    """What ``Linear`` does, tensors aside. ``array``: which of the operation's arrays x is."""

    operation: Any
    array: int
    seq_axis: int
    validate: bool
    in_place: bool


class Linear(torch.autograd.Function):
    """An operation that is linear in x, and in the rows of a learned table: its adjoint carries gradients back."""

    @staticmethod
    def forward(x: Tensor, table: Any, delta: Any, *given: Any) -> Tensor:
        *places, call = given  # where rows stand, but their axis
        if call.in_place:
            return x
        arrays: list[Any] = [None for _ in call.operation.names]
        arrays[call.array] = x
        if delta is not None:
            arrays[1] = delta
        where = Where(*places)._replace(seq_axis=call.seq_axis)
        result: Tensor = evaluate(_with_table(call.operation, table), tuple(arrays), where, call.validate)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, table, delta, *places, call = inputs
        if call.in_place:
            ctx.mark_dirty(x)
        ctx.call, ctx.table = call, None if table is None else (table.shape[0], table.dtype)
        encoding = call.operation[0]
        tables = encoding.arrays.values() if getattr(encoding, "holds_arrays", False) else ()
        keep(ctx, delta, *places, *(one for one in tables if one is not table))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (delta, *places), call = kept(ctx)[:5], ctx.call
        adjoint = call.operation.adjoint()
        of_x = of_table = None
        if ctx.needs_input_grad[1]:
            rows = row_positions(grad, call.seq_axis, places)
            of_table = by_position(grad, rows, ctx.table, call.operation.encoding.clips, call.seq_axis, places[3])
        if ctx.needs_input_grad[0]:
            if isinstance(adjoint, Scale):
                of_x = times(grad, adjoint.factor, places[3], call.seq_axis)
            else:
                back = call._replace(operation=adjoint, in_place=False)
                of_x = linear(grad.resolve_neg(), None, delta, *places, back)
        return of_x, of_table, *(None for _ in ctx.needs_input_grad[2:])

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, table: Tensor | None, *others: Any) -> Any:
        (delta, *places), call = kept(ctx)[:5], ctx.call
        if table is not None:
            raise NotImplementedError(
                f"fastpe.torch.functional.{call.operation.function}: no forward-mode derivative by a learned table."
            )
        if x is None:
            return None
        if isinstance(call.operation, Add):
            return times(x, call.operation.input_scale, places[3], call.seq_axis).clone()
        return linear(x, None, delta, *places, call._replace(in_place=False))

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, *given: Any) -> tuple[Tensor, int]:
        """The mapped axis is one more axis of heads, before the last one."""
        *others, call = given
        if is_mapped(in_dims[1:-1]) or in_dims[0] is None:
            raise RuntimeError("fastpe.torch.functional: vmap needs an x with the mapped axis, and everything else without it.")
        axis = call.seq_axis + x.dim() - 1 if call.seq_axis < 0 else call.seq_axis
        moved = x.movedim(in_dims[0], -2)
        return linear(moved, *others, call._replace(seq_axis=axis)), moved.dim() - 2


linear: Any = caller(Linear)


def _apply(operation: Any, index: int, arrays: tuple[Any, ...], where: Any, validate: bool, in_place: bool = False) -> Any:
    """``Linear`` of one of an operation's arrays."""
    delta = _tensors.fixed(arrays[1]) if operation.function == "rerotate" else None
    call = _Linear(operation, index, where.seq_axis, validate, in_place)
    return linear(arrays[index], _learned(operation), delta, *_tensors.fixed_where(where)[:4], call)


class Stretch(torch.autograd.Function):
    """A table resampled, which is linear in it; the transposed weights carry gradients back."""

    @staticmethod
    def forward(table: Tensor, operation: Resample) -> Tensor:
        result: Tensor = evaluate(operation, (table,), None, False)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        table, ctx.operation = inputs
        ctx.rows = table.shape[-2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return stretch(grad.resolve_neg(), ctx.operation.adjoint_to(int(ctx.rows))), None  # a graph is for one table

    @staticmethod
    def jvp(ctx: Any, table: Tensor, _: None) -> Any:
        return stretch(table, ctx.operation)

    @staticmethod
    def vmap(info: Any, in_dims: Any, table: Tensor, operation: Resample) -> tuple[Tensor, int]:
        """The mapped axis is more columns."""
        moved = table.movedim(in_dims[0], -1)
        made = stretch(moved.flatten(-2), operation)
        return made.unflatten(-1, moved.shape[-2:]), made.dim()


stretch: Any = Stretch.apply


# ---- what is looked up -------------------------------------------------------------------------------------------------------


class Lookup(torch.autograd.Function):
    """Rows of tables: the adjoint adds each row's gradient to the row that it came from."""

    @staticmethod
    def forward(
        table: Tensor, types: Any, learned: Any, ids: Tensor, type_ids: Any, scales: Any, zeros: Any, *given: Any
    ) -> Tensor:
        *places, operation, validate = given
        arrays = table, ids, type_ids, types, scales, zeros
        result: Tensor = evaluate(_with_table(operation, learned), arrays, Where(*places), validate)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        table, types, learned, ids, type_ids, _, _, *places, ctx.operation, _ = inputs
        ctx.tables = [None if one is None else (one.shape[0], one.dtype) for one in (table, types, learned)]
        keep(ctx, ids, type_ids, *places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        ids, type_ids, *places = kept(ctx)
        needed = ctx.needs_input_grad
        found = embed_gradients(grad, ctx.tables, needed[:3], ids, type_ids, places, ctx.operation.adjoint())
        return *found, *(None for _ in needed[3:])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError("fastpe.torch.functional.embed: no forward-mode derivative by a table.")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *given: Any) -> tuple[Tensor, int]:
        """The mapped axis of the ids is one more axis of heads, or of two axes the first one."""
        table, types, learned, ids, type_ids, *others = given
        if is_mapped((in_dims[:3], in_dims[5:-2])) or in_dims[3] is None or ids.dim() < 2:
            rule = "vmap needs ids of (..., T) with the mapped axis, and everything but token types without it"
            raise RuntimeError(message("embed", rule, "others"))
        ids = ids.movedim(in_dims[3], -2)
        if type_ids is not None:
            dim = in_dims[4]
            type_ids = type_ids.unsqueeze(-2).expand(ids.shape) if dim is None else type_ids.movedim(dim, -2)
        return lookup(table, types, learned, ids, type_ids, *others), ids.dim() - 2


lookup: Any = caller(Lookup)
