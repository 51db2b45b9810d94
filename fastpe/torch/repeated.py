"""Calls on tensors like an earlier one: from their addresses straight to the kernel, without looking at them as arrays.

What ``fastpe.repeated`` keeps of a call on arrays serves tensors of the same form. Beside what it looks at every time, a tensor may stand
for other values than its memory has (negated, all zero, of a transform), which has no address or is asked for here.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import repeated, repeated_biases
from .._arrays.torch import as_array
from .._core.checks import POSITION_LIMIT
from ..bias_values import Work
from .memory import new

Tensor = torch.Tensor
Form = tuple[Any, ...]

_count_up = torch.autograd.graph.increment_version
_TABLES = {Tensor, torch.nn.Parameter}
_known: dict[Form, Any] = {}


def add_encoding(x: Tensor, encoding: Any, offset: Any, seq_axis: Any, input_scale: Any) -> bool:
    """Add in place; False if no such call is known, or if it must be checked anew to say what is wrong."""
    if type(offset) is not int or type(x) is not Tensor or type(seq_axis) is not int or type(input_scale) is not float:
        return False
    try:
        call = _known[x.dtype, x.shape, x.stride(), encoding, seq_axis, input_scale]
        address = x.data_ptr()
    except (
        KeyError,
        TypeError,
        RuntimeError,
    ):  # unknown, an encoding that is no value, a tensor that has no strides or address
        return False
    if not _is_plain(x) or not address or not -POSITION_LIMIT <= offset <= POSITION_LIMIT - call.rows:
        return False
    call.run((address, address), offset << 32)
    _count_up(x)
    return True


def keep_sum(x: Tensor, array: Any, encoding: Any, offset: Any, seq_axis: Any, input_scale: Any) -> None:
    """Keep a call that passed its checks, as those on arrays do."""
    form = repeated.form_of(array, encoding, offset, seq_axis, input_scale, None)
    call = repeated.known_sum(form)
    if call is not None:
        _keep((x.dtype, x.shape, x.stride(), encoding, seq_axis, input_scale), call)


def apply_rotary(q: Any, k: Any, encoding: Any, offset: Any, seq_axis: Any, inverse: Any) -> bool:
    """Rotate in place; False as ``add_encoding``."""
    if type(offset) is not int or type(seq_axis) is not int or type(inverse) is not bool:
        return False
    tensors = [x for x in (q, k) if x is not None]
    try:
        call, apart, sizes = _known[_rotary_form(q, k, encoding, seq_axis, inverse)]
        addresses = [x.data_ptr() for x in tensors]
    except (KeyError, TypeError, RuntimeError, AttributeError):
        return False
    if not -POSITION_LIMIT <= offset <= POSITION_LIMIT - call.rows:
        return False
    for x in tensors:
        if type(x) is not Tensor or not _is_plain(x):
            return False
    first, last = addresses[0], addresses[-1]
    if not first or not last or (last - first != apart and first < last + sizes[-1] and last < first + sizes[0]):
        return False
    call.run(addresses, offset << 32)
    _count_up(tensors)
    return True


def keep_rotation(q: Any, k: Any, arrays: Any, encoding: Any, offset: Any, seq_axis: Any, inverse: Any) -> None:
    """Keep a rotation that passed its checks, as those on arrays do."""
    first, second = arrays
    known = repeated.known_rotation(repeated.rotary_form_of(first, second, encoding, offset, seq_axis, inverse))
    if known is not None:
        sizes = [_span(x) for x in (q, k) if x is not None]
        _keep(_rotary_form(q, k, encoding, seq_axis, inverse), (*known, sizes))


def _rotary_form(q: Any, k: Any, encoding: Any, seq_axis: Any, inverse: Any) -> Form:
    if q is None or k is None:
        x = k if q is None else q
        return x.dtype, x.shape, x.stride(), q is None, encoding, seq_axis, inverse
    return q.dtype, q.shape, q.stride(), k.dtype, k.shape, k.stride(), encoding, seq_axis, inverse


def embed(ids: Any, table: Tensor, encoding: Any, scale: Any, offset: Any) -> Tensor | None:
    """Embed into a new tensor; None as ``add_encoding`` has False."""
    if type(offset) is not int or type(scale) is not float or type(ids) is not Tensor or type(table) not in _TABLES:
        return None
    try:
        call = _known[ids.dtype, ids.shape, ids.stride(), table.dtype, table.shape, table.stride(), encoding, scale]
        addresses = table.data_ptr(), ids.data_ptr()
    except (KeyError, TypeError, RuntimeError):
        return None
    if not _is_plain(ids) or not _is_plain(table) or not all(addresses) or (encoding is None and offset != 0):
        return None
    if not -POSITION_LIMIT <= offset <= POSITION_LIMIT - call.rows:
        return None
    numbers = as_array("embed", "ids", ids)
    if numbers.min() < 0 or numbers.max() >= table.shape[0]:
        return None
    out = new((*ids.shape, table.shape[1]), table.dtype, table.device)
    call.run((*addresses, out.data_ptr()), offset << 32)
    return out


def keep_embedding(ids: Any, table: Tensor, arrays: Any, encoding: Any, scale: Any, offset: Any) -> None:
    """Keep an embedding that passed its checks, as those on arrays do."""
    array_ids, array_table = arrays
    call = repeated.known_embedding(repeated.embedding_form_of(array_ids, array_table, encoding, scale, offset, None, None))
    if call is not None:
        _keep((ids.dtype, ids.shape, ids.stride(), table.dtype, table.shape, table.stride(), encoding, scale), call)


def add_bias(scores: Any, bias: Any, q_offset: Any, causal: Any, input_scale: Any) -> bool:
    """Add in place; False as ``add_encoding``."""
    form = _bias_form(scores, bias, q_offset, causal, input_scale)
    known = None if form is None else repeated_biases.find(form)
    if form is None or known is None or not _is_plain(scores):
        return False
    try:
        address = scores.data_ptr()
    except RuntimeError:  # it has none
        return False
    if not address or not repeated_biases.run_at(form, known, address, address, scores.shape[-1], q_offset):
        return False
    _count_up(scores)
    return True


def run_and_keep_bias(scores: Any, bias: Any, q_offset: Any, causal: Any, input_scale: Any, work: Work) -> bool:
    """Run a call in place that passed its checks, and keep it; False, and nothing has been done, if its kind is not kept."""
    form = _bias_form(scores, bias, q_offset, causal, input_scale)
    return form is not None and repeated_biases.run_and_keep(form, work)


def _bias_form(scores: Any, bias: Any, q_offset: Any, causal: Any, input_scale: Any) -> Form | None:
    if type(scores) is not Tensor or type(causal) is not bool or type(input_scale) is not float:
        return None
    if q_offset is not None and type(q_offset) is not int:
        return None
    try:
        steps = None if scores.is_contiguous() else scores.stride()
    except RuntimeError:  # it has none
        return None
    return scores.dtype, scores.shape[:-1], steps, bias, causal, input_scale, None


def _is_plain(x: Tensor) -> bool:
    """Whether a tensor's memory holds its values, and may be written here."""
    return x.is_cpu and not x.is_neg() and not x.is_inference()


def _span(x: Tensor) -> int:
    """Bytes from the first element to behind the last."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.element_size()


def _keep(form: Form, known: Any) -> None:
    if len(_known) >= repeated.MOST_FORMS:
        _known.clear()
    _known[form] = known
