"""``add_bias`` as operators, ``torch.ops.fastpe.*``, for ``torch.compile`` and ``torch.export``: see ``ops.py``.

A bias is a string in a graph; its tensors are arguments of their own.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import torch

from .._core.checks import message
from .._core.text import TENSOR
from ..encodings.bias import ALiBi, Kerple, Sandwich
from ..encodings.buckets import LogBuckets, T5Bias
from ..encodings.fire import FIRE
from . import bias as of_bias
from . import distances, memory, watching
from .ops import define, leave_out, library

Tensor = torch.Tensor
FUNCTION = "add_bias"
KINDS: dict[str, Any] = {kind.__name__: kind for kind in (ALiBi, T5Bias, LogBuckets, Kerple, Sandwich, FIRE)}
_PLACES = "SymInt? q_offset, Tensor? q_offsets, Tensor? q_positions, Tensor? k_positions, bool causal, float input_scale"
leave_out(of_bias)


# ---- biases as strings -------------------------------------------------------------------------------------------------------


def _text(bias: Any) -> str:
    """A bias without its tensors, and which fields those are.

    As of encodings: the compiler puts it into the conditions of a graph.
    """
    if type(bias) not in KINDS.values():
        kind = type(bias)  # and not `describe`, which the compiler cannot follow
        raise TypeError(message("torch.compile", "a bias must be one of fastpe's", f"a {kind.__module__}.{kind.__qualname__}"))
    for kind in [part.partition('"')[0] for part in bias.text.split('"type": "')[2:]]:
        if kind != TENSOR:
            rule = "the arrays of a bias must be tensors"
            raise TypeError(message("torch.compile", rule, f"a {kind}", "Pass torch.as_tensor of them."))
    return str(bias.text)


def _tensors(bias: Any) -> list[Tensor]:
    """The fields that are tensors, in the order of the text. No other field is read: the compiler would guard on it too."""
    parts = bias.text.split(f'": {{"type": "{TENSOR}"}}')[:-1]
    return [getattr(bias, part.rpartition('"')[2]) for part in parts]


@functools.lru_cache(maxsize=256)
def _read(text: str) -> tuple[Any, dict[str, Any], tuple[str, ...]]:
    """The class, the fields that are no tensors, and the names of those that are."""
    fields = json.loads(text)
    kind = KINDS[fields.pop("type")]
    names = tuple(name for name, value in fields.items() if isinstance(value, dict))
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items() if name not in names}
    return kind, plain, names


def _made(text: str, tensors: list[Tensor]) -> Any:
    kind, plain, names = _read(text)
    return kind(**plain, **dict(zip(names, tensors, strict=True)))


# ---- in a graph --------------------------------------------------------------------------------------------------------------


def _arguments(scores: Tensor, bias: Any, q_offset: Any, *places: Any) -> tuple[Any, ...]:
    def as_tensor(value: Any) -> Any:
        return torch.tensor(value, device=scores.device) if isinstance(value, (list, tuple, range)) else value

    offset = as_tensor(q_offset)
    offsets = (None, offset) if isinstance(offset, Tensor) else (offset, None)
    text = _text(bias)
    return _tensors(bias), text, *offsets, *(as_tensor(value) for value in places)


def add_bias(
    scores: Tensor, bias: Any, q_offset: Any, q_positions: Any, k_positions: Any, causal: bool, input_scale: float
) -> Tensor:
    """A new tensor, in a graph."""
    found: Tensor = _add_bias(scores, *_arguments(scores, bias, q_offset, q_positions, k_positions), causal, input_scale)
    return found


def add_bias_in_place(
    scores: Tensor,
    bias: Any,
    q_offset: Any,
    q_positions: Any,
    k_positions: Any,
    causal: bool,
    input_scale: float,
    out: Any,
) -> Tensor:
    """scores or out, written in a graph."""
    arguments = _arguments(scores, bias, q_offset, q_positions, k_positions)
    if watching.requires_gradient(scores, *arguments[0]):
        watching.check_no_out(FUNCTION, out)
        return scores.copy_(_add_bias(scores, *arguments, causal, input_scale))
    target, source = (scores, None) if out is None else (out, scores)
    _add_bias_(target, source, *arguments, causal, input_scale)
    return target


# ---- operators ---------------------------------------------------------------------------------------------------------------


def _run(scores: Tensor, *rest: Any) -> Tensor:
    out = memory.new_like(scores)
    _run_(out, scores, *rest)
    return out


def _run_(
    out: Tensor,
    scores: Any,
    tensors: list[Tensor],
    text: str,
    q_offset: Any,
    q_offsets: Any,
    q_positions: Any,
    k_positions: Any,
    causal: bool,
    input_scale: float,
) -> None:
    places = (q_offset if q_offsets is None else q_offsets, q_positions, k_positions)
    source, target = (out, None) if scores is None else (scores, out)
    of_bias.write(source, _made(text, tensors), *places, causal, input_scale, target, False)


def _run_adjoint(
    grad: Tensor, q_offset: Any, q_offsets: Any, q_positions: Any, k_positions: Any, causal: bool, input_scale: float
) -> Tensor:
    """The gradient of the scores."""
    if not causal:
        return grad * input_scale
    offset = q_offset if q_offsets is None else q_offsets
    queries, keys = distances.standing(grad.shape, grad.device, offset, q_positions, k_positions)
    return grad.masked_fill(distances.hidden(queries, keys), 0).mul_(input_scale)


def _run_gradients(
    grad: Tensor,
    tensors: list[Tensor],
    text: str,
    q_offset: Any,
    q_offsets: Any,
    q_positions: Any,
    k_positions: Any,
    causal: bool,
) -> list[Tensor]:
    """The gradients of the bias's tensors."""
    with torch.enable_grad():
        own = [tensor.detach().requires_grad_() for tensor in tensors]
        offset = q_offset if q_offsets is None else q_offsets
        rest = of_bias.Rest(_made(text, own), offset, causal, 1.0, False, False)
        blank = torch.empty(1, dtype=grad.dtype, device=grad.device).expand(grad.shape)
        found = of_bias.parameter_gradients(blank, grad, own, (offset, q_positions, k_positions), rest)
        return [one.contiguous() for one in found]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, tensors, text, q_offset, q_offsets, q_positions, k_positions, causal, input_scale = inputs
    ctx.save_for_backward(*tensors, q_offsets, q_positions, k_positions)
    ctx.text, ctx.q_offset, ctx.causal, ctx.input_scale, ctx.count = text, q_offset, causal, input_scale, len(tensors)


def _adjoint(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    tensors, places = list(ctx.saved_tensors[: ctx.count]), ctx.saved_tensors[ctx.count :]
    of_scores = _add_bias_adjoint(grad, ctx.q_offset, *places, ctx.causal, ctx.input_scale)
    of_tensors: list[Tensor] = []
    if ctx.count:
        of_tensors = _bias_gradients(grad, tensors, ctx.text, ctx.q_offset, *places, ctx.causal)
    return of_scores, of_tensors, *(None,) * 7


_add_bias = define(
    f"add_bias(Tensor scores, Tensor[] tensors, str bias, {_PLACES}) -> Tensor",
    _run,
    lambda scores, *rest: torch.empty_like(scores),
)
_add_bias_ = define(
    f"add_bias_(Tensor(a!) out, Tensor? scores, Tensor[] tensors, str bias, {_PLACES}) -> ()", _run_, lambda *rest: None
)
_add_bias_adjoint = define(
    f"add_bias_adjoint(Tensor grad, {_PLACES}) -> Tensor", _run_adjoint, lambda grad, *rest: torch.empty_like(grad)
)
_bias_gradients = define(
    f"bias_gradients(Tensor grad, Tensor[] tensors, str bias, {_PLACES.removesuffix(', float input_scale')}) -> Tensor[]",
    _run_gradients,
    lambda grad, tensors, *rest: [tensor.new_empty(tensor.shape) for tensor in tensors],
)
torch.library.register_autograd("fastpe::add_bias", _adjoint, setup_context=_keep, lib=library)
