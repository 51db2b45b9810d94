"""Biases added as before: what ``repeated.py`` is to the other verbs.

A decoder has one more key at each step, so a form leaves open how many there are, and where the queries stand: a call of another length
is made from the last one without checking anew. Its table of values is one of those that are kept (``bias_values.py``), which no call
keeps from being given up.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple, Protocol

import numpy as np

from ._arrays import dispatch
from ._core.checks import POSITION_LIMIT
from .bias_values import Work, is_value
from .repeated import MOST_FORMS, Form, address


class BiasCall(Protocol):
    """What a backend keeps of a call."""

    rows: int
    columns: int

    def again(self) -> None: ...

    def run(self, addresses: tuple[int, ...], start: int, values: Any) -> None: ...

    def resized(self, columns: int, x_is_dense: bool, out_is_dense: bool) -> BiasCall: ...


class Known(NamedTuple):
    """A call, and what it serves for."""

    call: BiasCall
    values: weakref.ref[Any]
    low: int  # the distances, key minus query, of its table
    high: int
    lower_end: float  # below and above which values do not change
    upper_end: float
    most_columns: int  # so many can a row have without being partly another one
    causal: bool
    is_buffer: bool
    x_is_dense: bool
    out_is_dense: bool

    def values_at(self, start: int, columns: int) -> Any:
        """Its table, if that has the distances of queries from ``start`` on, and if it is still there."""
        low, high = 1 - start - self.call.rows, columns - 1 - start
        if self.causal:
            low, high = min(low, 0), min(high, 0)
        has_all = (low >= self.low or self.lower_end >= self.low) and (high <= self.high or self.upper_end <= self.high)
        return self.values() if has_all else None


_known: dict[Form, Known] = {}


def form_of(scores: Any, bias: Any, q_offset: Any, causal: Any, input_scale: Any, out: Any) -> Form | None:
    """The form of ``add_bias`` with these arguments and no others; None if there is none. As ``repeated.form_of``, but for the keys."""
    if type(scores) is not np.ndarray or type(causal) is not bool or type(input_scale) is not float:
        return None
    if q_offset is not None and type(q_offset) is not int:
        return None
    if out is None or out is scores:
        target = None
    elif type(out) is np.ndarray and out.shape == scores.shape:
        target = out.dtype, None if out.flags.c_contiguous else out.strides
    else:
        return None
    steps = None if scores.flags.c_contiguous else scores.strides
    return scores.dtype, scores.shape[:-1], steps, bias, causal, input_scale, target


def find(form: Form) -> Known | None:
    """What is known of a form."""
    try:
        return _known[form]
    except (KeyError, TypeError):  # unknown, or a bias that is no value
        return None


def run(form: Form, scores: Any, q_offset: Any, out: Any) -> bool:
    """Run a call of a known form; False if it is not known, or if it must be checked anew to say what is wrong."""
    known = find(form)
    if known is None:
        return False
    target = scores if form[6] is None else out
    if not target.flags.writeable or not target.size:
        return False
    destination = source = address(target, known.is_buffer)
    if target is not scores:
        source = address(scores, known.is_buffer and scores.flags.writeable)
        apart = abs(source - destination) >= scores.nbytes if known.is_buffer else not np.may_share_memory(scores, target)
        if not apart:
            return False
    return run_at(form, known, source, destination, scores.shape[-1], q_offset)


def run_at(form: Form, known: Known, source: int, target: int, columns: int, q_offset: int | None) -> bool:
    """Run a known call on arrays at these addresses, of so many columns; False as ``run``."""
    call = known.call
    start = columns - call.rows if q_offset is None else q_offset
    if not 0 < columns <= known.most_columns or not -POSITION_LIMIT <= start <= POSITION_LIMIT - call.rows:
        return False
    values = known.values_at(start, columns)
    if values is None:
        return False
    if columns != call.columns:
        call = call.resized(columns, known.x_is_dense, known.out_is_dense)
        keep(form, known._replace(call=call))
    call.run((source, target), start << 32, values)
    return True


def run_and_keep(form: Form, work: Work) -> bool:
    """Run a call that passed its checks, and keep it; False, and nothing has been done, if its kind is not kept."""
    source, target = work.source, work.target
    if 0 in target.shape or not is_value(work.bias) or (form[6] is None) != (source is target):
        return False
    if not target.strides[-1] == source.strides[-1] == target.array.itemsize:
        return False
    (operation,) = work.operations()  # the bias is a value, so one table serves for all rows
    backend = dispatch.backend(target)
    call = backend.prepare(operation)
    if call is None:
        backend.run(operation)
        return True
    call.again()
    if operation.key is not None and operation.values is not None:
        near, far = work.bias.reach  # of query minus key
        arrays = source.array, target.array
        dense = [array.flags.c_contiguous for array in arrays]
        known = Known(
            call,
            weakref.ref(operation.values.array),
            operation.low,
            operation.high,
            -np.inf if far is None else -far,
            np.inf if near is None else -near,
            POSITION_LIMIT if dense[1] else most_columns(target.shape, target.strides, target.array.itemsize),
            work.causal,
            all(dense) and target.array.dtype.kind == "f",
            *dense,
        )
        keep(form, known)
    return True


def keep(form: Form, known: Known) -> None:
    """Keep a call in place of an earlier one of its form."""
    if form not in _known and len(_known) >= MOST_FORMS:
        _known.clear()
    _known[form] = known


def most_columns(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> int:
    """How many elements rows of these strides can have, one behind the other, so that no element is in two of them."""
    room, span = POSITION_LIMIT * itemsize, 0
    for stride, size in sorted((abs(stride), size) for stride, size in zip(strides[:-1], shape[:-1], strict=True) if size > 1):
        room, span = min(room, stride - span), span + stride * (size - 1)
    return max(0, room // itemsize)
