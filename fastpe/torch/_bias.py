"""Gradients of ``add_bias``: by the scores, and by what a bias has learned, summed by distance.

A bias whose values are a table of distances is evaluated by torch's own operations, so autograd knows what the table depends on;
adding the table is linear in both. Rows with values of their own (FIRE beyond its length) are made anew on the way back, a few at
a time. While a graph is traced, an operator adds the bias and another makes the gradients of its tensors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from .._arrays import Memory, dispatch
from .._arrays.torch import as_array
from .._backends import backend_on
from .._core.bias_tables import Work
from .._core.operations import AddBias, Between
from .._core.operations.add_bias import check_bias, resolve
from ..encodings.bias import Bias
from ..encodings.buckets import Buckets
from . import _memory
from ._distances import by_distance, hidden, standing
from ._grad_state import in_transform, is_traced, keep, kept, recording
from ._packing import pack

Tensor = torch.Tensor
FUNCTION = "add_bias"
ROW_VALUES = 1 << 16  # of each head made at a time on the way back


class _Call(NamedTuple):
    """What adding a bias is, tensors aside."""

    operation: AddBias
    q_offset: Any
    validate: bool
    in_place: bool

    def where(self, q_positions: Any, k_positions: Any) -> Between:
        return Between(self.q_offset, q_positions, k_positions)


def differentiable(operation: AddBias, scores: Tensor, where: Between, validate: bool, in_place: bool) -> Tensor:
    """Scores with a bias added that have a history."""
    check_bias(operation.bias)
    where = Between(*map(_memory.fixed, where))
    call = _Call(operation, where.q_offset, validate, in_place)
    places = where.q_positions, where.k_positions
    tensors = tensors_of(operation.bias)
    if is_traced():
        traced: Tensor = add_traced(
            scores, *places, where.q_offset if isinstance(where.q_offset, Tensor) else None, call, *tensors.values()
        )
        return traced
    if not any(value.requires_grad or in_transform() for value in tensors.values()):
        plain: Tensor = add_table(scores, None, *places, call, None)
        return plain
    span = _span(operation, scores, where, validate)
    if span is None:
        bias = operation.bias.with_arrays(**{name: value.detach() for name, value in tensors.items()})
        by_rows: Tensor = add_rows(
            scores, *places, call._replace(operation=operation._replace(bias=bias)), tuple(tensors), *tensors.values()
        )
        return by_rows
    table = evaluated(operation.bias, scores, *span)
    added: Tensor = add_table(scores, table, *places, call, span)
    return added


def tensors_of(bias: Any) -> dict[str, Tensor]:
    """What of a bias is a tensor, by name."""
    return {name: value for name, value in bias.arrays.items() if isinstance(value, Tensor)}


def _span(operation: AddBias, scores: Tensor, where: Between, validate: bool) -> tuple[int, int] | None:
    """The distances of a table of values; None where there is none. Only the shape of the scores counts, and the positions."""
    device = scores.device.index if scores.is_cuda else None
    outline = Memory(None, 0, tuple(scores.shape), (0,) * scores.dim(), _memory.name_of(scores.dtype), device, True)
    library = dispatch.library_on(device)
    shared = _memory.shared_where(FUNCTION, where, scores.device)
    places = resolve(library, outline, shared, validate)
    work = Work(library, outline, outline, places, operation.bias, operation.causal, operation.input_scale, validate)
    return work.table_span()


def evaluated(bias: Any, like: Tensor, low: int, high: int) -> Tensor:
    """Values of the distances low ... high, key minus query, (H, high - low + 1), from the parameters by torch's operations."""
    real = torch.float64 if like.dtype == torch.float64 else torch.float32
    distances = -np.arange(low, high + 1)
    if isinstance(bias, Buckets):
        rows = torch.from_numpy(bias.rows(distances)).to(like.device)
        result: Tensor = bias.table.T[:, rows].to(real).contiguous()
        return result
    n = torch.from_numpy(distances).to(like.device)
    values = bias.evaluate(torch, n, None, **_as_float64(bias, like.device)) + 0.0
    made: Tensor = values.to(real).contiguous()
    return made


def _as_float64(bias: Any, device: torch.device, **given: Tensor) -> dict[str, Tensor]:
    wide = {}
    for name, value in {**bias.parameters, **given}.items():
        if not isinstance(value, Tensor):
            value = torch.from_numpy(np.asarray(value, np.float64)).to(device)
        wide[name] = value.to(torch.float64)
    return wide


class AddTable(torch.autograd.Function):
    """scores*input_scale + table[distance]: linear in both. Without a table the bias has nothing to learn."""

    @staticmethod
    def forward(scores: Tensor, table: Any, q_positions: Any, k_positions: Any, call: _Call, span: Any) -> Tensor:
        where = call.where(q_positions, k_positions)
        if table is not None:
            return _write_table(scores, table, span, where, call)
        return _write(call.operation, scores, where, call)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        scores, _, q_positions, k_positions, call, span = inputs
        if call.in_place:
            ctx.mark_dirty(scores)
        ctx.call, ctx.span = call, span
        keep(ctx, q_positions, k_positions)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        places = kept(ctx)
        queries, keys = standing(grad.shape, grad.device, ctx.call.q_offset, *places)
        visible = _visible(grad, ctx.call.operation, queries, keys)
        of_table = None
        if ctx.needs_input_grad[1]:
            affine = places[0] is None and places[1] is None and queries.dim() == 1
            of_table = by_distance(visible, queries, keys, ctx.span, affine)
        of_scores = _times(visible, ctx.call.operation.input_scale) if ctx.needs_input_grad[0] else None
        return of_scores, of_table, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, scores: Tensor | None, table: Tensor | None, *others: Any) -> Any:
        if table is not None:
            raise NotImplementedError(
                "fastpe.torch.functional.add_bias: no forward-mode derivative by what a bias has learned."
            )
        if scores is None:
            return None
        operation = ctx.call.operation
        queries, keys = standing(scores.shape, scores.device, ctx.call.q_offset, *kept(ctx))
        return _visible(scores * operation.input_scale, operation, queries, keys)

    @staticmethod
    def vmap(info: Any, in_dims: Any, scores: Tensor, *others: Any) -> tuple[Tensor, int]:
        if any(dim is not None for dim in in_dims[1:4]) or in_dims[0] is None:
            raise RuntimeError(
                "fastpe.torch.functional: vmap needs scores with the mapped axis, and everything else without it."
            )
        moved = scores.movedim(
            in_dims[0], -4
        )  # one more axis before the heads; the batch stays the first one where there is one
        return add_table(moved, *others), moved.dim() - 4


def _visible(grad: Tensor, operation: AddBias, queries: Tensor, keys: Tensor) -> Tensor:
    """A gradient without those of scores that ``causal`` hid."""
    return grad.masked_fill(hidden(queries, keys), 0) if operation.causal else grad


def _times(grad: Tensor, factor: float) -> Tensor:
    return grad if factor == 1 else grad * factor


def _write(operation: AddBias, scores: Tensor, where: Between, call: _Call) -> Tensor:
    """Add the bias in place or to a new tensor, without autograd."""
    with torch.no_grad():
        if not call.in_place:
            made: Tensor = _memory.fresh(operation, (scores,), where, call.validate)
            return made
        _memory.write(operation, (scores,), where, None, call.validate, counts_up=False)
        return scores


def _write_table(scores: Tensor, table: Tensor, span: tuple[int, int], where: Between, call: _Call) -> Tensor:
    """Add a table of values by distance."""
    out = scores if call.in_place else _memory.new_like(scores)
    _memory.check_writable(FUNCTION, [out])
    operation = call.operation._replace(bias=_Outline(table.shape[0]))
    with torch.no_grad(), _memory.on_stream(scores.device):
        shared = _memory.shared_where(FUNCTION, where, scores.device)
        array = as_array(FUNCTION, "scores", scores)
        work = operation.work(array, shared, None if call.in_place else as_array(FUNCTION, "out", out), call.validate)
        values = as_array(FUNCTION, "the bias's values", table)
        library = dispatch.library_of(values)
        assert library is not None
        for kernel_call in work.with_table(library.memory(values), *span):
            backend_on(work.target.device).run(kernel_call)
    return out


class _Outline(Bias):
    """A bias of which only the heads count."""

    def __init__(self, heads: int) -> None:
        self._heads = heads

    @property
    def heads(self) -> int:
        return self._heads


add_table: Any = AddTable.apply


class AddRows(torch.autograd.Function):
    """A bias whose rows have values of their own: they are made anew on the way back, a few rows at a time."""

    @staticmethod
    def forward(scores: Tensor, q_positions: Any, k_positions: Any, call: _Call, names: Any, *tensors: Tensor) -> Tensor:
        bias = call.operation.bias.with_arrays(**dict(zip(names, tensors, strict=True)))
        return _write(call.operation._replace(bias=bias), scores, call.where(q_positions, k_positions), call)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        scores, q_positions, k_positions, call, names, *tensors = inputs
        if call.in_place:
            ctx.mark_dirty(scores)
        ctx.call, ctx.names = call, names
        keep(ctx, q_positions, k_positions, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        operation, (q_positions, k_positions, *tensors) = ctx.call.operation, kept(ctx)
        queries, keys = standing(grad.shape, grad.device, ctx.call.q_offset, q_positions, k_positions)
        visible = _visible(grad, operation, queries, keys)
        needed = [name for name, need in zip(ctx.names, ctx.needs_input_grad[5:], strict=True) if need]
        sums = of_parameters(operation.bias, dict(zip(ctx.names, tensors, strict=True)), needed, visible, queries, keys)
        of_scores = _times(visible, operation.input_scale) if ctx.needs_input_grad[0] else None
        return of_scores, None, None, None, None, *(sums.get(name) for name in ctx.names)


add_rows: Any = AddRows.apply


def of_parameters(
    bias: Any, parameters: dict[str, Tensor], needed: list[str], grad: Tensor, queries: Tensor, keys: Tensor
) -> dict[str, Tensor]:
    """The gradients of a bias's parameters, from values made anew a few rows at a time."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = {name: value if again else value.detach().requires_grad_() for name, value in parameters.items()}
        wide = _as_float64(bias, grad.device, **inputs)
        sums: dict[str, Tensor] = {}
        step = max(1, ROW_VALUES // max(1, grad.shape[-1]))
        for first in range(0, grad.shape[-2], step):
            at, part = queries[..., first : first + step], grad[..., first : first + step, :]
            values = bias.evaluate(torch, at[..., :, None] - keys[..., None, :], at[..., :, None], **wide)
            if values.dim() == 4:  # (H, B, rows, columns)
                values = values.transpose(0, 1)
                part = part.reshape(part.shape[0], -1, *part.shape[-3:]).sum(1)
            else:
                part = part.reshape(-1, *part.shape[-3:]).sum(0)
            outputs = torch.autograd.grad(
                values, [inputs[name] for name in needed], part.to(torch.float64), create_graph=again, retain_graph=True
            )
            for name, one in zip(needed, outputs, strict=True):
                sums[name] = one if name not in sums else sums[name] + one
    return sums


# ---- in a graph --------------------------------------------------------------------------------------------------------------


class AddTraced(torch.autograd.Function):
    """``add_bias`` while a graph is traced: an operator each way."""

    @staticmethod
    def forward(scores: Tensor, q_positions: Any, k_positions: Any, q_offset: Any, call: _Call, *tensors: Tensor) -> Tensor:
        packed = pack(call.operation, (scores,), call.where(q_positions, k_positions), call.validate)
        made: list[Tensor] = torch.ops.fastpe.run.default(*packed)
        return made[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, q_positions, k_positions, q_offset, call, *tensors = inputs
        ctx.call = call._replace(q_offset=None if q_offset is not None else call.q_offset)
        keep(ctx, q_positions, k_positions, q_offset, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (q_positions, k_positions, q_offset, *tensors), call = kept(ctx), ctx.call
        where = Between(call.q_offset if q_offset is None else q_offset, q_positions, k_positions)
        of_scores = None
        if ctx.needs_input_grad[0]:
            visible = _visible(grad, call.operation, *standing(grad.shape, grad.device, *where))
            of_scores = _times(visible, call.operation.input_scale)
        of_tensors: list[Any] = []
        if tensors and any(ctx.needs_input_grad[5:]):
            names = tensors_of(call.operation.bias)
            operation = call.operation._replace(bias=call.operation.bias.with_arrays(**dict(zip(names, tensors, strict=True))))
            of_tensors = torch.ops.fastpe.bias_gradients.default(grad, *pack(operation, (grad,), where, call.validate))
        return of_scores, None, None, None, None, *(of_tensors or (None for _ in tensors))


add_traced: Any = AddTraced.apply


def table_gradients(operation: AddBias, grad: Tensor, where: Between, validate: bool) -> list[Tensor]:
    """The gradients of the bias's tensors, from that of the result."""
    with recording(), torch.enable_grad():
        own = {name: value.detach().requires_grad_() for name, value in tensors_of(operation.bias).items()}
        bias = operation.bias.with_arrays(**own)
        queries, keys = standing(grad.shape, grad.device, *where)
        visible = _visible(grad, operation, queries, keys)
        blank = torch.empty(1, dtype=grad.dtype, device=grad.device).expand(grad.shape)
        span = _span(operation._replace(bias=bias), blank, where, validate)
        if span is None:
            sums = of_parameters(bias, own, list(own), visible, queries, keys)
            return [sums[name] for name in own]
        affine = where.q_positions is None and where.k_positions is None and queries.dim() == 1
        of_table = by_distance(visible, queries, keys, span, affine)
        return list(torch.autograd.grad(evaluated(bias, blank, *span), list(own.values()), of_table))
