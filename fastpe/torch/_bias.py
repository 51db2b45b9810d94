"""Gradients of ``add_bias``: by the scores, and by what a bias has learned, summed by distance.

A bias whose values are a table of distances is evaluated by torch's own operations, so autograd knows what the table depends on;
adding the table is linear in both. Rows with values of their own (FIRE beyond its length) are made anew on the way back, a few at
a time. While a graph is traced, an operator adds the bias and another makes the gradients of its tensors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from .._arrays import dispatch
from .._arrays.torch import as_array
from .._backends import backend_on
from .._core.bias_tables import Work
from .._core.operations import AddBias, Between
from .._core.operations.add_bias import check_bias, resolve
from ..encodings.bias import Bias, HeadsOf
from ..encodings.buckets import Buckets
from . import _memory, _tensors
from ._distances import Standing, by_distance, standing
from ._grad_state import caller, has_tangent, in_transform, is_mapped, is_traced, keep, kept, recording
from ._packing import pack, record

Tensor = torch.Tensor
FUNCTION = "add_bias"
ROW_VALUES = 1 << 16  # of each head made at a time on the way back


def differentiable(operation: AddBias, scores: Tensor, where: Between, validate: bool, in_place: bool) -> Tensor:
    """Scores with a bias added that have a history."""
    check_bias(operation.bias)
    where = _tensors.fixed_where(where)
    tensors, table, span, traced = tensors_of(operation.bias), None, None, is_traced()
    if not traced and any(value.requires_grad or in_transform() or has_tangent(value) for value in tensors.values()):
        span = _span(operation, scores, where, validate)
        if span is None:  # the function's context holds tensors that require a gradient as saved ones alone
            operation = _with_tensors(operation, {name: value.detach() for name, value in tensors.items()})
        else:
            table, tensors = evaluated(operation.bias, scores, *span), {}
    elif not traced:  # nothing is learned
        tensors = {}
    call = _Call(operation, validate, in_place, traced, span, tuple(tensors))
    added: Tensor = add_bias(scores, table, *where, call, *tensors.values())
    return added


def tensors_of(bias: Any) -> dict[str, Tensor]:
    """What of a bias is a tensor, by name."""
    return {name: value for name, value in bias.arrays.items() if isinstance(value, Tensor)}


def _with_tensors(operation: AddBias, tensors: dict[str, Tensor]) -> AddBias:
    """The operation with other tensors in its bias."""
    return operation._replace(bias=operation.bias.with_arrays(**tensors)) if tensors else operation


def _span(operation: AddBias, scores: Tensor, where: Between, validate: bool) -> tuple[int, int] | None:
    """The distances of a table of values; None where there is none. Only the shape of the scores counts, and the positions."""
    library, outline = _tensors.outline(scores)
    places = resolve(library, outline, _tensors.shared_where(FUNCTION, where, scores.device), validate)
    work = Work(library, outline, outline, places, operation.bias, operation.causal, operation.input_scale, validate)
    return work.table_span()


def evaluated(bias: Any, like: Tensor, low: int, high: int) -> Tensor:
    """Values of the distances low ... high, key minus query, (H, high - low + 1), from the parameters by torch's operations."""
    if isinstance(bias, HeadsOf):
        return evaluated(bias.bias, like, low, high)[bias.first : bias.end].contiguous()
    real = torch.float64 if like.dtype == torch.float64 else torch.float32
    distances = -np.arange(low, high + 1)
    if isinstance(bias, Buckets):
        rows = torch.from_numpy(bias.rows(distances)).to(like.device)
        table_of: Any = bias.table
        values = table_of.T[:, rows]
    else:
        n = torch.from_numpy(distances).to(like.device)
        values = bias.evaluate(torch, n, None, **_as_float64(bias, like.device)) + 0.0
    table: Tensor = values.to(real).contiguous()
    return table


def _as_float64(bias: Any, device: torch.device, **given: Tensor) -> dict[str, Tensor]:
    """The parameters of a bias as float64 tensors; those that are given in place of its own."""
    wide = {}
    for name, value in {**bias.parameters, **given}.items():
        if not isinstance(value, Tensor):
            value = torch.from_numpy(np.asarray(value, np.float64)).to(device)
        wide[name] = value.to(torch.float64)
    return wide


class _Call(NamedTuple):
    """What ``Added`` does, tensors aside. ``span``: the distances of its table; ``names``: those of its tensors in the bias."""

    operation: AddBias
    validate: bool
    in_place: bool
    traced: bool
    span: Any
    names: tuple[str, ...]

    def named(self, tensors: Any) -> dict[str, Tensor]:
        return dict(zip(self.names, tensors, strict=True))


class Added(torch.autograd.Function):
    """scores*input_scale + bias: linear in the scores and, where there is one, in the table of the bias's values by distance.

    ``tensors``: those of a bias that a graph holds, or whose rows have values of their own; none where there is a table, or nothing to
    learn.
    """

    @staticmethod
    def forward(
        scores: Tensor, table: Any, q_offset: Any, q_positions: Any, k_positions: Any, call: _Call, *tensors: Tensor
    ) -> Any:
        where = Between(q_offset, q_positions, k_positions)
        if table is not None:
            return _write_table(scores, table, where, call)
        if call.traced:
            return record(call.operation, (scores,), where, call.validate)
        operation = _with_tensors(call.operation, call.named(tensors))
        if call.in_place:
            _memory.write(operation, (scores,), where, None, call.validate, counts_up=False)
            return scores
        return _memory.make(operation, (scores,), where, call.validate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        scores, _, *where, ctx.call = inputs[:6]
        if ctx.call.in_place:
            ctx.mark_dirty(scores)
        keep(ctx, *where, *inputs[6:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        call, (q_offset, q_positions, k_positions, *tensors) = ctx.call, kept(ctx)
        where, scale = Between(q_offset, q_positions, k_positions), call.operation.input_scale
        at = standing(grad.shape, grad.device, where)
        visible = at.visible(grad, call.operation.causal)
        of_scores = of_table = None
        of_tensors: list[Any] = [None] * len(tensors)
        if ctx.needs_input_grad[0]:
            of_scores = visible if scale == 1 else visible * scale
        if ctx.needs_input_grad[1]:
            of_table = by_distance(visible, at, call.span)
        if any(ctx.needs_input_grad[6:]):
            named = call.named(tensors)
            if call.traced:
                packed = pack(_with_tensors(call.operation, named), (grad,), where, call.validate)
                of_tensors = torch.ops.fastpe.bias_gradients.default(grad, *packed)
            else:
                of_tensors = _by_rows(call.operation.bias, named, visible, at)
        return of_scores, of_table, None, None, None, None, *of_tensors

    @staticmethod
    def jvp(ctx: Any, scores: Tensor | None, table: Tensor | None, *others: Any) -> Any:
        if table is not None or any(tangent is not None for tangent in others[4:]):
            raise NotImplementedError(
                "fastpe.torch.functional.add_bias: no forward-mode derivative by what a bias has learned."
            )
        if scores is None:
            return None
        operation = ctx.call.operation
        at = standing(scores.shape, scores.device, Between(*kept(ctx)[:3]))
        return at.visible(scores * operation.input_scale, operation.causal)

    @staticmethod
    def vmap(info: Any, in_dims: Any, scores: Tensor, *others: Any) -> tuple[Tensor, int]:
        """The mapped axis is one more axis before the heads; the batch stays the first one where there is one."""
        if is_mapped((in_dims[1:5], in_dims[6:])) or in_dims[0] is None:
            raise RuntimeError(
                "fastpe.torch.functional: vmap needs scores with the mapped axis, and everything else without it."
            )
        moved = scores.movedim(in_dims[0], -4)
        return add_bias(moved, *others), moved.dim() - 4


add_bias: Any = caller(Added)


def _write_table(scores: Tensor, table: Tensor, where: Between, call: _Call) -> Tensor:
    """Add a table of values by distance."""
    out = scores if call.in_place else _tensors.new_like(scores)
    _tensors.check_writable(FUNCTION, [out])
    operation = call.operation._replace(bias=_Outline(table.shape[0]))
    with _tensors.on_stream(scores.device):
        shared = _tensors.shared_where(FUNCTION, where, scores.device)
        array = as_array(FUNCTION, "scores", scores)
        work = operation.work(array, shared, None if call.in_place else as_array(FUNCTION, "out", out), call.validate)
        _, values = dispatch.memory(FUNCTION, "the bias's values", table, tensors=True)
        for kernel_call in work.with_table(values, *call.span):
            backend_on(work.target.device).run(kernel_call)
    return out


class _Outline(Bias):
    """A bias of which only the heads count."""

    heads: int

    def __init__(self, heads: int) -> None:
        self.heads = heads


def _by_rows(bias: Any, tensors: dict[str, Tensor], grad: Tensor, at: Standing) -> list[Tensor | None]:
    """The gradients of a bias's tensors, from values made anew a few rows at a time; None for those that require none."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        if not again:
            tensors = {name: value.detach().requires_grad_(value.requires_grad) for name, value in tensors.items()}
        wide = _as_float64(bias, grad.device, **tensors)
        needed = {name: value for name, value in tensors.items() if value.requires_grad}
        sums: dict[str, Tensor] = {}
        step = max(1, ROW_VALUES // max(1, grad.shape[-1]))
        for first in range(0, grad.shape[-2], step):
            queries, part = at.queries[..., first : first + step], grad[..., first : first + step, :]
            values = bias.evaluate(torch, queries[..., :, None] - at.keys[..., None, :], queries[..., :, None], **wide)
            if values.dim() == 4:  # (H, B, rows, columns)
                values = values.transpose(0, 1)
                part = part.reshape(part.shape[0], -1, *part.shape[-3:]).sum(1)
            else:
                part = part.reshape(-1, *part.shape[-3:]).sum(0)
            part = part.to(torch.float64)
            found = torch.autograd.grad(values, list(needed.values()), part, create_graph=again, retain_graph=True)
            sums = {name: sums[name] + one if sums else one for name, one in zip(needed, found, strict=True)}
    return [sums.get(name) for name in tensors]


def table_gradients(operation: AddBias, grad: Tensor, where: Between, validate: bool) -> list[Any]:
    """The gradients of the bias's tensors, from that of the result."""
    with recording(), torch.enable_grad():
        own = {name: value.detach().requires_grad_() for name, value in tensors_of(operation.bias).items()}
        operation = _with_tensors(operation, own)
        at = standing(grad.shape, grad.device, where)
        visible = at.visible(grad, operation.causal)
        span = _span(operation, grad, where, validate)
        if span is None:
            return _by_rows(operation.bias, own, visible, at)
        of_table = by_distance(visible, at, span)
        return list(torch.autograd.grad(evaluated(operation.bias, grad, *span), list(own.values()), of_table))
