"""Calls like an earlier one. What was checked then is not checked again: a row of a decoder costs a microsecond, not ten.

A call's form is all that its checks depend on but three things, which are looked at every time: where the arrays lie, whether they
may be written, and the first position.
"""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import numpy as np

from ._core.checks import POSITION_LIMIT
from .encodings import Learned, RotaryTable

MOST_FORMS = 256

Form = tuple[Any, ...]


class Call(Protocol):
    """What a backend keeps of a call: its kernel and everything that its arguments settle."""

    rows: int
    addresses: tuple[int, ...]
    is_placed: bool  # its rows stand where they stand: there is no offset

    def run(self, addresses: tuple[int, ...], start: int, offsets: Any = None) -> None: ...


_calls: dict[Form, tuple[Call, bool]] = {}  # and whether the arrays have a buffer as a whole
_from_buffer, _addressof = ctypes.c_char.from_buffer, ctypes.addressof


def form_of(x: Any, encoding: Any, offset: Any, seq_axis: Any, input_scale: Any, out: Any) -> Form | None:
    """The form of ``add_encoding`` with these arguments and no others; None if there is none.

    Forms are for plain NumPy arrays, and offsets that are an int, or for one row a sequence an int64 array. Types are compared
    where Python calls values of different types equal.
    """
    if type(x) is not np.ndarray or type(seq_axis) is not int or type(input_scale) is not float:
        return None
    if out is None or out is x:
        target = None
    elif type(out) is np.ndarray:
        target = out.dtype, out.shape, out.strides
    else:
        return None
    if type(offset) is int:
        offsets = None
    elif type(offset) is np.ndarray and x.ndim > 2 and x.shape[seq_axis] == 1:
        offsets = offset.dtype, offset.shape
    else:
        return None
    return x.dtype, x.shape, x.strides, encoding, seq_axis, input_scale, target, offsets


def run(form: Form, x: Any, offset: Any, out: Any) -> bool:
    """Run a call of a known form; False if it is not known, or if it must be checked anew to say what is wrong."""
    try:
        call, is_buffer = _calls[form]
    except (KeyError, TypeError):  # unknown, or an encoding that is no value
        return False
    target = x if form[6] is None else out
    if not target.flags.writeable:
        return False
    destination = source = address(target, is_buffer)
    if target is not x:
        source = address(x, is_buffer and x.flags.writeable)
        apart = abs(source - destination) >= x.nbytes if is_buffer else not np.may_share_memory(x, target)
        if not apart:
            return False
    if form[7] is None:
        if not -POSITION_LIMIT <= offset <= POSITION_LIMIT - call.rows or (offset and call.is_placed):
            return False
        start, offsets = offset << 32, None
    else:
        values = offset.tolist()
        if min(values) < -POSITION_LIMIT or max(values) >= POSITION_LIMIT:
            return False
        start, offsets = 0, offset
    call.run((source, destination), start, offsets)
    return True


def address(array: Any, is_buffer: bool) -> int:
    """Where an array lies; a buffer's address, which must be writable, takes 0.15 us, ndarray.ctypes 0.8."""
    return _addressof(_from_buffer(array)) if is_buffer else array.ctypes.data


def keep(form: Form, call: Call, x: Any, out: Any) -> None:
    """Keep a call that passed its checks."""
    if form[7] is not None and form[7][0] != np.int64:
        return
    if (form[6] is None) != (call.addresses[0] == call.addresses[1]):  # an out that was another view of x
        return
    if len(_calls) >= MOST_FORMS:
        _calls.clear()
    arrays = (x,) if form[6] is None else (x, out)
    _calls[form] = call, all(array.flags.c_contiguous and array.dtype.kind == "f" for array in arrays)


def known_sum(form: Form | None) -> Call | None:
    """What is kept of a call in place of this form."""
    found = None if form is None else _calls.get(form)
    return None if found is None else found[0]


# ---- rotations ---------------------------------------------------------------------------------------------------------------


class RotaryCall(Protocol):
    """What a backend keeps of a rotation in place."""

    rows: int
    addresses: tuple[int, ...]

    def run(self, addresses: list[int], start: int, offsets: Any = None) -> None: ...


_rotations: dict[Form, tuple[RotaryCall, list[bool], int]] = {}  # whether each has a buffer as a whole; k's distance from q


def rotary_form_of(q: Any, k: Any, encoding: Any, offset: Any, seq_axis: Any, inverse: Any) -> Form | None:
    """The form of ``apply_rotary`` with these arguments and no others; None if there is none."""
    if type(seq_axis) is not int or type(inverse) is not bool:
        return None
    first = k if q is None else q
    if type(first) is not np.ndarray or (k is not None and type(k) is not np.ndarray):
        return None
    if type(offset) is int:
        offsets = None
    elif type(offset) is np.ndarray and first.ndim > 2 and -first.ndim <= seq_axis < first.ndim and first.shape[seq_axis] == 1:
        offsets = offset.dtype, offset.shape
    else:
        return None
    if q is None or k is None:
        return first.dtype, first.shape, first.strides, q is None, encoding, seq_axis, inverse, offsets
    return q.dtype, q.shape, q.strides, k.dtype, k.shape, k.strides, encoding, seq_axis, inverse, offsets


def run_rotary(form: Form, q: Any, k: Any, offset: Any) -> bool:
    """Run a rotation of a known form; False if it is not known, or if it must be checked anew to say what is wrong."""
    try:
        call, are_buffers, apart = _rotations[form]
    except (KeyError, TypeError):
        return False
    arrays = [array for array in (q, k) if array is not None]
    for array in arrays:
        if not array.flags.writeable:
            return False
    addresses = [address(array, is_buffer) for array, is_buffer in zip(arrays, are_buffers)]  # noqa: B905 (0.1 us)
    # Interleaved with one another as they were when it was checked, or apart.
    if len(arrays) == 2 and addresses[1] - addresses[0] != apart and np.may_share_memory(q, k):
        return False
    if form[-1] is None:
        if not -POSITION_LIMIT <= offset <= POSITION_LIMIT - call.rows:
            return False
        call.run(addresses, offset << 32)
    else:
        values = offset.tolist()
        if min(values) < -POSITION_LIMIT or max(values) >= POSITION_LIMIT:
            return False
        call.run(addresses, 0, offset)
    return True


def keep_rotary(form: Form, call: RotaryCall, encoding: Any, q: Any, k: Any) -> None:
    """Keep a rotation that passed its checks. Those of a table are checked each time: not every position is in it."""
    arrays = [array for array in (q, k) if array is not None]
    if (
        (form[-1] is not None and form[-1][0] != np.int64)
        or len(call.addresses) != len(arrays)
        or isinstance(encoding, RotaryTable)
    ):
        return
    if len(_rotations) >= MOST_FORMS:
        _rotations.clear()
    are_buffers = [array.flags.c_contiguous and array.dtype.kind == "f" for array in arrays]
    _rotations[form] = call, are_buffers, call.addresses[-1] - call.addresses[0]


def known_rotation(form: Form | None) -> tuple[RotaryCall, int] | None:
    """What is kept of a rotation of this form, and k's distance from q."""
    found = None if form is None else _rotations.get(form)
    return None if found is None else (found[0], found[2])


# ---- embeddings --------------------------------------------------------------------------------------------------------------


class SumCall(Protocol):
    """What a backend keeps of an embedding."""

    rows: int

    def run(self, addresses: tuple[int, ...], start: int, offsets: Any = None) -> None: ...


_embeddings: dict[Form, SumCall] = {}


def embedding_form_of(ids: Any, table: Any, encoding: Any, scale: Any, offset: Any, dtype: Any, out: Any) -> Form | None:
    """The form of ``embed`` with these arguments and no others; None if there is none."""
    if (
        type(ids) is not np.ndarray
        or type(table) is not np.ndarray
        or type(scale) is not float
        or dtype is not None
        or ids.size == 0
    ):
        return None
    if type(offset) is int:
        offsets = None
    elif type(offset) is np.ndarray and ids.ndim > 1 and ids.shape[-1] == 1:
        offsets = offset.dtype, offset.shape
    else:
        return None
    if out is not None and type(out) is not np.ndarray:
        return None
    target = None if out is None else (out.dtype, out.shape, out.strides)
    return ids.dtype, ids.shape, ids.strides, table.dtype, table.shape, table.strides, encoding, scale, target, offsets


def run_embedding(form: Form, ids: Any, table: Any, offset: Any, out: Any) -> Any:
    """Run an embedding of a known form and return its result; None if it is not known, or must be checked anew to say what is wrong."""
    try:
        call = _embeddings[form]
    except (KeyError, TypeError):
        return None
    if ids.min() < 0 or ids.max() >= table.shape[0] or (form[6] is None and (form[-1] is not None or offset != 0)):
        return None
    if out is None:
        out = np.empty((*ids.shape, table.shape[1]), table.dtype)
    elif not out.flags.writeable or np.may_share_memory(out, table) or np.may_share_memory(out, ids):
        return None
    addresses = table.ctypes.data, ids.ctypes.data, out.ctypes.data
    if form[-1] is None:
        if not -POSITION_LIMIT <= offset <= POSITION_LIMIT - call.rows:
            return None
        call.run(addresses, offset << 32)
    else:
        values = offset.tolist()
        if min(values) < -POSITION_LIMIT or max(values) >= POSITION_LIMIT:
            return None
        call.run(addresses, 0, offset)
    return out


def keep_embedding(form: Form, call: SumCall, encoding: Any, ids: Any) -> None:
    """Keep an embedding that passed its checks. Those with a learned table are checked each time: not every position is in it."""
    if ids.dtype != np.int64 or (form[-1] is not None and form[-1][0] != np.int64) or isinstance(encoding, Learned):
        return
    if len(_embeddings) >= MOST_FORMS:
        _embeddings.clear()
    _embeddings[form] = call


def known_embedding(form: Form | None) -> SumCall | None:
    """What is kept of an embedding of this form."""
    return None if form is None else _embeddings.get(form)
