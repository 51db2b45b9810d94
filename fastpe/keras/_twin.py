"""The verbs in Keras' own operations, for backends without kernels: TensorFlow, eager, in graphs and in XLA's programs."""

from __future__ import annotations

import math
from typing import Any

from keras import backend, ops

from .._backends.plans import RotaryPlan, SinusoidalPlan
from .._core import checks, portable

OPS = portable.Ops(
    *(ops.cast, lambda x, count: x // ops.cast(2**count, x.dtype), ops.where, ops.stack, ops.concatenate),
    merge=lambda x: ops.reshape(x, (*ops.shape(x)[:-2], x.shape[-2] * x.shape[-1])),
)


def add_encoding(x: Any, encoding: Any, *, input_scale: float = 1.0, **where: Any) -> Any:
    plan = _plan("add_encoding", encoding, x, SinusoidalPlan)
    rows = portable.sinusoids(OPS, [(0, plan, _positions(x, -2, **where))], portable.real_of(x))
    return portable.add(OPS, x, rows, input_scale)


def embed(ids: Any, table: Any, encoding: Any, *, scale: float = 1.0, dtype: str | None = None, **where: Any) -> Any:
    rows = ops.cast(ops.take(table, ids, axis=0), portable.real_of(table)) * scale
    return ops.cast(rows if encoding is None else add_encoding(rows, encoding, **where), dtype or table.dtype)


def apply_rotary(q: Any, k: None, encoding: Any, *, seq_axis: int, **where: Any) -> Any:
    plan, at = _plan("apply_rotary", encoding, q, RotaryPlan), _positions(q, seq_axis, **where)
    return portable.rotate(OPS, q, plan, *portable.angles(OPS, plan, at, portable.real_of(q), factor=plan.attention_factor))


def add_bias(scores: Any, bias: Any, *, causal: bool, q_offset: Any) -> Any:
    (queries, keys), real = ops.shape(scores)[-2:], portable.real_of(scores)
    start = ops.expand_dims(ops.cast(keys - queries if q_offset is None else q_offset, "int32"), (-1, -2, -3))
    rows, columns = start + ops.expand_dims(ops.arange(queries), 1), ops.arange(keys)
    slopes = ops.reshape(ops.convert_to_tensor(bias.slopes_of, real), (-1, 1, 1))
    added = portable.line(OPS, slopes, rows, columns, bias.symmetric, real)
    return portable.add(OPS, scores, ops.where(columns > rows, -math.inf, added) if causal else added)


def _plan(function: str, encoding: Any, x: Any, kind: type) -> Any:
    width = checks.width(function, "the size of the last axis", x.shape[-1])
    plan = None if encoding.needs_length or encoding.holds_arrays else encoding.plan(width)
    if not isinstance(plan, kind) or (isinstance(plan, RotaryPlan) and (plan.axes.any() or plan.growths is not None)):
        rule = f"encoding must have positions of one axis, no rule by length, no arrays and no xPos on {backend.backend()}"
        raise TypeError(checks.message(function, rule, checks.describe(encoding), "Run Keras on PyTorch or JAX."))
    return plan


def _positions(x: Any, axis: int, offset: Any = 0, positions: Any = None) -> portable.Positions:
    """Where the rows of x stand, with its axes."""
    axis, rank = axis % len(x.shape), len(x.shape)
    if positions is None:
        start = ops.expand_dims(ops.cast(offset, "int32"), -1)
        whole = start + ops.arange(ops.shape(x)[axis], dtype="int32")
        given: list[Any] = [whole, None, whole >= start]  # else it has wrapped
    elif backend.is_int_dtype(backend.standardize_dtype(positions.dtype)):
        given = [ops.cast(positions, "int32"), None, None]
    else:
        units = ops.round(ops.cast(positions, "float64") * 2.0**32)
        whole, part = ops.cast(units // 2.0**32, "int32"), ops.cast(units % 2.0**32, "uint32")
        given = [whole, part, ops.logical_and(units >= -(2.0**63), units < 2.0**63)]
    for place in [-1] * (rank - 1 - axis) + [1] * (axis - 1) * (len(given[0].shape) - 1):
        given = [None if one is None else ops.expand_dims(one, place) for one in given]
    return portable.Positions(*given)
