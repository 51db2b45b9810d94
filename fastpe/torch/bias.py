"""``add_bias`` for tensors, and its gradients: by the scores, and by what a bias has learned, summed by distance.

A bias whose values are a table of distances is evaluated by torch's own operations, so that autograd knows what the table depends on;
adding the table is linear in both. Where rows have values of their own (FIRE beyond its length) they are made anew on the way back, a
few rows at a time.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import biases
from .._arrays import Memory, dispatch
from .._arrays.torch import as_array
from ..bias_values import Work
from ..encodings.bias import Bias
from ..encodings.buckets import Buckets
from . import direct, gradients, memory, repeated, watching
from .distances import by_distance, hidden, standing

Tensor = torch.Tensor
FUNCTION = "add_bias"
ROW_VALUES = 1 << 16  # of each head made at a time on the way back
is_compiling = torch.compiler.is_compiling


class Rest(NamedTuple):
    """What adding a bias is, tensors aside."""

    bias: Any
    q_offset: Any
    causal: bool
    input_scale: float
    validate: bool
    in_place: bool


def add_bias(
    scores: Tensor,
    bias: Any,
    *,
    q_offset: Any = None,
    q_positions: Any = None,
    k_positions: Any = None,
    causal: bool = False,
    input_scale: float = 1.0,
    out: Any = None,
    validate: bool = False,
) -> Tensor:
    """``fastpe.add_bias`` of a tensor."""
    if is_compiling():
        from . import bias_ops

        return bias_ops.add_bias_in_place(scores, bias, q_offset, q_positions, k_positions, causal, input_scale, out)
    plain = q_positions is k_positions is out is None and validate is False  # one chain
    if plain and not watching.watched(scores) and repeated.add_bias(scores, bias, q_offset, causal, input_scale):
        return scores
    biases.check_bias(bias)
    places = (q_offset, q_positions, k_positions)
    watched = watching.watched(scores, out, *tensors_of(bias).values())
    if not watched:
        write(scores, bias, *places, causal, input_scale, out, validate)
        return scores if out is None else out
    watching.check_no_out(FUNCTION, None if out is scores else out)
    watching.check_in_place(FUNCTION, scores)
    return _differentiable(scores, places, Rest(bias, q_offset, causal, input_scale, validate, True))


def with_bias(
    scores: Tensor,
    bias: Any,
    q_offset: Any,
    q_positions: Any,
    k_positions: Any,
    causal: bool,
    input_scale: float,
    validate: bool,
) -> Tensor:
    """A new tensor."""
    if is_compiling():
        from . import bias_ops

        return bias_ops.add_bias(scores, bias, q_offset, q_positions, k_positions, causal, input_scale)
    biases.check_bias(bias)
    places = (q_offset, q_positions, k_positions)
    if watching.watched(scores, *tensors_of(bias).values()):
        return _differentiable(scores, places, Rest(bias, q_offset, causal, input_scale, validate, False))
    out = memory.new_like(scores)
    write(scores, bias, *places, causal, input_scale, out, validate)
    return out


def tensors_of(bias: Any) -> dict[str, Tensor]:
    """What of a bias is a tensor, by name."""
    return {name: value for name, value in bias.parameters.items() if isinstance(value, Tensor)}


def prepared(
    scores: Tensor,
    bias: Any,
    q_offset: Any,
    q_positions: Any,
    k_positions: Any,
    causal: bool,
    input_scale: float,
    out: Any,
    validate: bool,
) -> Work:
    """``biases.prepare`` on the tensors' memory."""
    array = as_array(FUNCTION, "scores", scores)
    target = scores if out is None else direct.as_result(FUNCTION, out)
    direct.check_writable(FUNCTION, target)
    given = (("q_offset", q_offset), ("q_positions", q_positions), ("k_positions", k_positions))
    places = [direct.seen(FUNCTION, name, value, scores.device) for name, value in given]
    result = None if target is scores else as_array(FUNCTION, "out", target)
    offset, queries, keys = places
    return biases.prepare(array, bias, offset, queries, keys, causal, input_scale, result, validate)


def write(scores: Tensor, bias: Any, *rest: Any) -> None:
    """``fastpe.add_bias`` on tensors, without autograd."""
    q_offset, q_positions, k_positions, causal, input_scale, out, validate = rest
    if scores.device.type == "cpu":
        work = prepared(scores, bias, *rest)
        plain = q_positions is k_positions is None and (out is None or out is scores) and validate is False
        if not plain or not repeated.run_and_keep_bias(scores, bias, q_offset, causal, input_scale, work):
            work.run()
    else:
        with direct.on_stream(scores.device):
            prepared(scores, bias, *rest).run()
    direct.count_up(scores if out is None else out)


# ---- with a history ----------------------------------------------------------------------------------------------------------


def _differentiable(scores: Tensor, places: tuple[Any, Any, Any], rest: Rest) -> Tensor:
    parameters = tensors_of(rest.bias)
    if not any(value.requires_grad or watching.in_transform() for value in parameters.values()):
        result: Tensor = _apply(AddTable, scores, None, places[1], places[2], rest, None)
        return result
    span = _span(scores, rest, places)
    if span is None:
        plain = dataclasses.replace(rest.bias, **{name: value.detach() for name, value in parameters.items()})
        names = tuple(parameters)
        found: Tensor = _apply(AddRows, scores, places[1], places[2], rest._replace(bias=plain), names, *parameters.values())
        return found
    table = evaluated(rest.bias, scores, *span)
    added: Tensor = _apply(AddTable, scores, table, places[1], places[2], rest, span)
    return added


def _span(scores: Tensor, rest: Rest, places: tuple[Any, Any, Any]) -> tuple[int, int] | None:
    """The distances of a table of values; None where there is none."""
    biases.check_bias(rest.bias)
    device = scores.device.index if scores.is_cuda else None
    name = str(scores.dtype).removeprefix("torch.")
    found = Memory(None, 0, tuple(scores.shape), (0,) * scores.dim(), name, device, True)  # the shape counts, and the positions
    library = importlib.import_module(f"fastpe._arrays.{'numpy' if device is None else 'cupy'}")
    given = zip(("q_offset", "q_positions", "k_positions"), places, strict=True)
    arrays = [direct.seen(FUNCTION, name, value, scores.device) for name, value in given]
    offset, queries, keys = arrays
    where = biases.resolve(library, found, offset, queries, keys, rest.validate)
    work = Work(library, found, found, where, rest.bias, rest.causal, rest.input_scale, rest.validate)
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
    found = {}
    for name, value in {**bias.parameters, **given}.items():
        if not isinstance(value, Tensor):
            value = torch.from_numpy(np.asarray(value, np.float64)).to(device)
        found[name] = value.to(torch.float64)
    return found


def _apply(function: Any, *arguments: Any) -> Any:
    return function.apply(*arguments)


class AddTable(torch.autograd.Function):
    """scores*input_scale + table[distance]: linear in both. Without a table the bias has nothing to learn."""

    @staticmethod
    def forward(scores: Tensor, table: Any, q_positions: Any, k_positions: Any, rest: Rest, span: Any) -> Tensor:
        out = None if rest.in_place else memory.new_like(scores)
        given = (rest.q_offset, q_positions, k_positions, rest.causal, rest.input_scale, out, rest.validate)
        with torch.no_grad():
            if table is None:
                write(scores, rest.bias, *given)
            elif scores.device.type == "cpu":
                _write_table(scores, table, rest, span, given)
            else:
                with direct.on_stream(scores.device):
                    _write_table(scores, table, rest, span, given)
        return scores if out is None else out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        scores, _, q_positions, k_positions, rest, span = inputs
        if rest.in_place:
            ctx.mark_dirty(scores)
        ctx.rest, ctx.span = rest, span
        gradients.keep(ctx, q_positions, k_positions)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        rest, places = ctx.rest, gradients.kept(ctx)
        queries, keys = standing(grad.shape, grad.device, rest.q_offset, *places)
        seen = grad if not rest.causal else grad.masked_fill(hidden(queries, keys), 0)
        of_table = None
        if ctx.needs_input_grad[1]:
            affine = places[0] is None and places[1] is None and queries.dim() == 1
            of_table = by_distance(seen, queries, keys, ctx.span, affine)
        of_scores = None
        if ctx.needs_input_grad[0]:
            of_scores = seen if rest.input_scale == 1 else seen * rest.input_scale
        return of_scores, of_table, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, scores: Tensor | None, table: Tensor | None, *others: Any) -> Any:
        if table is not None:
            raise NotImplementedError(
                "fastpe.torch.functional.add_bias: no forward-mode derivative by what a bias has learned."
            )
        if scores is None:
            return None
        rest, places = ctx.rest, gradients.kept(ctx)
        tangent = scores * rest.input_scale
        if not rest.causal:
            return tangent
        return tangent.masked_fill(hidden(*standing(scores.shape, scores.device, rest.q_offset, *places)), 0)

    @staticmethod
    def vmap(info: Any, in_dims: Any, scores: Tensor, *others: Any) -> tuple[Tensor, int]:
        if any(dim is not None for dim in in_dims[1:4]) or in_dims[0] is None:
            raise RuntimeError(
                "fastpe.torch.functional: vmap needs scores with the mapped axis, and everything else without it."
            )
        moved = scores.movedim(
            in_dims[0], -4
        )  # one more axis before the heads; the batch stays the first one where there is one
        return _apply(AddTable, moved, *others), moved.dim() - 4


def _write_table(scores: Tensor, table: Tensor, rest: Rest, span: tuple[int, int], given: tuple[Any, ...]) -> None:
    plain = _Outline(table.shape[0])
    work = prepared(scores, plain, *given)
    array = as_array(FUNCTION, "the bias's values", table)
    library = dispatch.library_of(array)
    assert library is not None
    work.run_with(library.memory(array), *span)
    direct.count_up(scores if given[5] is None else given[5])


class _Outline(Bias):
    """A bias of which only the heads count."""

    def __init__(self, heads: int) -> None:
        self._heads = heads

    @property
    def heads(self) -> int:
        return self._heads


class AddRows(torch.autograd.Function):
    """A bias whose rows have values of their own: they are made anew on the way back, a few rows at a time."""

    @staticmethod
    def forward(scores: Tensor, q_positions: Any, k_positions: Any, rest: Rest, names: Any, *parameters: Tensor) -> Tensor:
        out = None if rest.in_place else memory.new_like(scores)
        bias = dataclasses.replace(rest.bias, **dict(zip(names, parameters, strict=True)))
        with torch.no_grad():
            write(scores, bias, rest.q_offset, q_positions, k_positions, rest.causal, rest.input_scale, out, rest.validate)
        return scores if out is None else out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        scores, q_positions, k_positions, rest, names, *parameters = inputs
        if rest.in_place:
            ctx.mark_dirty(scores)
        ctx.rest, ctx.names = rest, names
        gradients.keep(ctx, q_positions, k_positions, *parameters)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        rest, (q_positions, k_positions, *parameters) = ctx.rest, gradients.kept(ctx)
        queries, keys = standing(grad.shape, grad.device, rest.q_offset, q_positions, k_positions)
        seen = grad if not rest.causal else grad.masked_fill(hidden(queries, keys), 0)
        needed = [name for name, need in zip(ctx.names, ctx.needs_input_grad[5:], strict=True) if need]
        found = of_parameters(rest.bias, dict(zip(ctx.names, parameters, strict=True)), needed, seen, queries, keys)
        of_scores = seen * rest.input_scale if ctx.needs_input_grad[0] else None
        return of_scores, None, None, None, None, *(found.get(name) for name in ctx.names)


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


def parameter_gradients(
    blank: Tensor, grad: Tensor, parameters: list[Tensor], places: tuple[Any, Any, Any], rest: Rest
) -> tuple[Tensor, ...]:
    """Of parameters of ``rest.bias``, from the gradient of the result; ``blank`` has the shape of the scores."""
    queries, keys = standing(grad.shape, grad.device, *places)
    seen = grad if not rest.causal else grad.masked_fill(hidden(queries, keys), 0)
    span = _span(blank, rest, places)
    if span is None:
        by_name = tensors_of(rest.bias)
        found = of_parameters(rest.bias, by_name, list(by_name), seen, queries, keys)
        return tuple(found[next(name for name, own in by_name.items() if own is value)] for value in parameters)
    affine = places[1] is None and places[2] is None and queries.dim() == 1
    of_table = by_distance(seen, queries, keys, span, affine)
    return torch.autograd.grad(evaluated(rest.bias, blank, *span), parameters, of_table)
