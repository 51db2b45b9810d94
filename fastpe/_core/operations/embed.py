"""Rows of tables looked up by id, scaled, and their positions added, in one pass."""

from __future__ import annotations

from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..._arrays import ITEMSIZE, Memory, Outline, dispatch
from ..._arrays.dtypes import FLOAT8
from ..._backends import backend_of
from ..._backends.calls import GatherSum
from .. import checks
from ..arguments import Target, check_apart, device_name, host_numbers, is_known, output
from ..checks import describe, message
from ..parts import Block
from ..where import Where, resolve
from .base import Job, Operation, Spec, offset_kind

FUNCTION = "embed"
ZERO_POINT = 128  # of uint8, where none is given


class _Embed(NamedTuple):
    encoding: Any
    scale: float = 1.0
    padding_idx: int | None = None
    dtype: Any = None
    seq_len: int | None = None
    out_scale: float | None = None
    sparse: bool = False
    deterministic: bool = False
    frozen_idx: int | None = None


class Embed(_Embed, Operation):
    """``out[t] = table[ids[t]] * scale + types[type_ids[t]] + PE(position of row t)``.

    Arrays are the table, ids, ids and table of token types, scales and zero points of a quantised table. ``out_scale``: what a result in
    float8 is divided by. ``sparse``, ``deterministic`` and ``frozen_idx`` say how the table's gradient is made.
    """

    __slots__ = ()
    function: ClassVar[str] = FUNCTION
    names: ClassVar[tuple[str, ...]] = ("table", "ids", "token_types", "token_types", "row_scale", "row_scale")
    in_place: ClassVar[bool] = False

    def check(self, arrays: tuple[Any, ...], where: Where, out: Any, validate: bool) -> Job:
        encoding = self.encoding
        table, ids, type_ids, types, row_scale, zero_point = arrays
        library, words = dispatch.memory(FUNCTION, "table", table)
        if words.dtype not in ("int8", "uint8"):
            checks.floating(FUNCTION, "table", words.dtype, table)
        checks.is_table(FUNCTION, "table", dispatch.outline(FUNCTION, "table", table))
        factor = checks.number(FUNCTION, "scale", self.scale)
        checks.sequence_length(FUNCTION, self.seq_len)
        checks.boolean(FUNCTION, "validate", validate)
        rows_of_ids = _ids(library, words, "ids", ids, validate)
        shape = (*rows_of_ids.shape, words.shape[1])
        element = None if self.dtype is None else checks.dtype_name(FUNCTION, self.dtype, checks.RESULTS)
        quantised = _quantisation(library, words, row_scale, zero_point)
        kinds, types_table = _token_types(library, words, type_ids, types, rows_of_ids, validate)
        if out is None:
            out = library.empty(shape, element or _default_dtype(words.dtype), words.device)
            target = library.memory(out)
        else:
            narrow = [name for name in FLOAT8 if element in (None, name)]
            target = output(FUNCTION, out, library, words.device, shape, element, narrow)
            checks.writable(FUNCTION, "out", target)
            check_apart(FUNCTION, target, {"the table": words, "ids": rows_of_ids, "the table of types": types_table})
        checks.fits(FUNCTION, "scale", factor, target.dtype)
        out_factor = checks.out_factor(FUNCTION, self.out_scale, target.dtype)
        # The memory of a call like this one: ids that were converted must be converted again.
        given = dispatch.memory(FUNCTION, "ids", ids)[1] if is_known(ids) else rows_of_ids
        repeats = None
        if given.dtype in backend_of(words).ID_TYPES and (encoding is None or encoding.repeats(self.seq_len)):
            repeats = words, given, target
        if len(shape) == 1:  # a single id
            rows_of_ids, target = (
                one._replace(shape=(1, *one.shape), strides=(0, *one.strides)) for one in (rows_of_ids, target)
            )
            kinds = None if kinds is None else kinds._replace(shape=(1,), strides=(0,))
        place = Target(FUNCTION, library, target, len(target.shape) - 2, validate)
        padding, _ = (_row(name, getattr(self, name), words.shape[0]) for name in ("padding_idx", "frozen_idx"))
        if padding is not None:
            where = where._replace(mask=_without_padding(place, rows_of_ids, padding, where.mask))
        if encoding is None:
            _refuse_positions(where)
            rows, summand = resolve(place, where), {}
        else:
            rows, summand = encoding.summand(place, where, target, self.seq_len)
        if 0 in target.shape:
            return Job(out, target.device, ())
        terms = {"ids": rows_of_ids, "type_ids": kinds, "types": types_table, **quantised, **summand}
        call = GatherSum("embed", words, target, rows, place.seq_axis, factor, out_factor=out_factor, **terms)
        return Job(out, target.device, (call,), repeats)

    def result(self, specs: tuple[Spec, ...]) -> Spec:
        table, ids = specs[:2]
        checks.is_table(FUNCTION, "table", Outline(table.shape, table.dtype, None, True))
        return Spec((*ids.shape, table.shape[1]), self.dtype or _default_dtype(table.dtype))

    def adjoint(self) -> Scatter:
        return Scatter(self)

    def part(self, where: Where, shape: tuple[int, ...], block: Block) -> tuple[Any, Where]:
        """Of a result of this shape. What counts padding needs all ids: give a mask instead."""
        if self.padding_idx is not None:
            rule, remedy = "an embedding that counts padding cannot be split", "Pass mask=(ids != padding_idx)."
            raise ValueError(message(FUNCTION, rule, f"padding_idx {self.padding_idx}", remedy))
        return super().part(where, shape, block)

    def repeatable(self, where: Where) -> bool:
        cu_seqlens, mask = where[2:4]
        return (
            cu_seqlens is mask is self.padding_idx is self.dtype is None
            and type(self.scale) is float
            and (self.seq_len is None or type(self.seq_len) is int)
            and (self.out_scale is None or type(self.out_scale) is float)
            and (self.encoding is None or hasattr(self.encoding, "text"))
        )

    def key(self, arrays: tuple[Any, ...], where: Where, out: Any) -> Any:
        table, ids, type_ids, types, row_scale, _ = arrays
        if type_ids is not None or types is not None or row_scale is not None or not self.repeatable(where):
            return None
        if type(table) is not np.ndarray or type(ids) is not np.ndarray or ids.size == 0:
            return None
        offset = where[0]
        kind = 0 if where[1] is None and type(offset) is int else offset_kind(where, ids[..., None], -2)
        if kind is None or (out is not None and type(out) is not np.ndarray):
            return None
        target = None if out is None else (out.dtype, out.shape, out.strides)
        text = None if self.encoding is None else self.encoding.text
        arrays = ids.dtype, ids.shape, ids.strides, table.dtype, table.shape, table.strides
        return Embed, text, self.scale, self.seq_len, self.out_scale, *arrays, kind, target


class Scatter(NamedTuple):
    """The adjoint of ``Embed``: each row of a gradient is added to the row of the table that it came from."""

    embed: Embed


def pair(token_types: Any) -> tuple[Any, Any]:
    """Ids and table of a second embedding; None for both if there is none."""
    if token_types is None:
        return None, None
    if not isinstance(token_types, (tuple, list)) or len(token_types) != 2 or any(one is None for one in token_types):
        raise TypeError(message(FUNCTION, "token_types must be a pair (ids, table)", describe(token_types)))
    return token_types[0], token_types[1]


def quantisation(row_scale: Any) -> tuple[Any, Any]:
    """Scales and zero points of a quantised table; None for what is not given."""
    if not isinstance(row_scale, tuple):
        return row_scale, None
    if len(row_scale) != 2:
        raise ValueError(message(FUNCTION, "row_scale must be numbers or a pair (row_scale, zero_point)", describe(row_scale)))
    return row_scale


def _default_dtype(table: str) -> str:
    return table if table in ITEMSIZE else "float32"


# ---- arguments ---------------------------------------------------------------------------------------------------------------


def _ids(
    library: ModuleType, table: Memory, name: str, ids: Any, validate: bool, shape: tuple[int, ...] | None = None
) -> Memory:
    """Ids as integers that kernels read, checked to be rows of the table where they are on the host, or to validate."""
    if table.device is None:
        ids = host_numbers(FUNCTION, name, ids)
    own_library, given = dispatch.memory(FUNCTION, name, ids)
    if own_library is not library or given.device != table.device:
        got = f"{own_library.NAME} on {device_name(given.device)}"
        raise TypeError(message(FUNCTION, f"{name} must be of the table's library and on its device", got, "Copy them first."))
    kind = given.array.dtype.kind
    if kind not in "iu":
        remedy = "Convert them first, e.g. to int64." if kind == "f" else ""
        raise TypeError(message(FUNCTION, f"{name} must be integers", describe(ids), remedy))
    if shape is not None and given.shape != shape:
        raise ValueError(message(FUNCTION, f"{name} must have the shape of ids, {shape}", f"shape {given.shape}"))
    if (table.device is None or validate) and 0 not in given.shape:
        values, count = np.asarray(library.as_host(given.array)), table.shape[0]
        if values.min() < 0 or values.max() >= count:
            bad = checks.first_index((values < 0) | (values >= count))
            raise IndexError(message(FUNCTION, f"{name} must lie in [0, {count})", f"{values[bad]} at index {bad}"))
    backend = backend_of(table)
    if given.dtype in backend.ID_TYPES:
        return given
    backend.refuse_temporary(table.device, f"embed: {name} of {given.dtype} are converted, {_LOST}: pass int32 or int64")
    converted: Memory = library.memory(given.array.astype("int64"))
    return converted


_LOST = "and a captured graph would read what the call has given up"


def _row(name: str, value: Any, count: int) -> int | None:
    """The number of a row of the table, or None."""
    found = None if value is None else checks.integer(FUNCTION, name, value)
    if found is not None and not 0 <= found < count:
        raise ValueError(message(FUNCTION, f"{name} must lie in [0, {count})", str(found), "None: no such id."))
    return found


def _quantisation(library: ModuleType, table: Memory, scales: Any, zeros: Any) -> dict[str, Any]:
    """Scales and zero points of an integer table, on the host float64 each; the kernel's zero point of int8 is 128 more."""
    if table.dtype in ITEMSIZE:
        if scales is not None or zeros is not None:
            raise ValueError(message(FUNCTION, "row_scale is for int8 and uint8 tables", f"a {table.dtype} table"))
        return {}
    if scales is None:
        rule = f"row_scale must be given for an {table.dtype} table, ({table.shape[0]},) real numbers"
        raise ValueError(message(FUNCTION, rule, "None"))
    usual, more = (0, 128) if table.dtype == "int8" else (ZERO_POINT, 0)
    found = {"row_scales": _per_row(library, table, "row_scale", scales)}
    if table.device is not None and zeros is None:
        return {**found, "more_zero": usual + more}
    given = _per_row(library, table, "zero_point", usual if zeros is None else zeros)
    if table.device is not None:
        return {**found, "zero_points": given, "more_zero": more}
    return {**found, "zero_points": library.memory(given.array + more) if more else given}


def _per_row(library: ModuleType, table: Memory, name: str, value: Any) -> Memory:
    """One number for each row of a table."""
    backend = backend_of(table)
    if not is_known(value):
        value = host_numbers(FUNCTION, name, value)
        if name == "zero_point" and value.ndim == 0:
            value = np.full(table.shape[0], value)
        value = backend.uploaded(np.asarray(value, np.float64), table.device)
    own_library, memory = dispatch.memory(FUNCTION, name, value)
    if own_library is not library or memory.device != table.device or memory.shape != (table.shape[0],):
        rule = f"{name} must be ({table.shape[0]},) real numbers, of the table's library and on its device"
        raise ValueError(message(FUNCTION, rule, describe(value)))
    if memory.array.dtype.kind not in "iuf" and memory.dtype != "bfloat16":
        raise TypeError(message(FUNCTION, f"{name} must be real numbers", describe(value)))
    if memory.dtype in backend.SCALE_TYPES and (memory.strides == (memory.array.dtype.itemsize,) or memory.shape[0] <= 1):
        return memory
    backend.refuse_temporary(table.device, f"embed: {name} of {memory.dtype} is converted, {_LOST}: pass contiguous float32")
    converted: Memory = library.memory(memory.array.astype("float64"))
    return converted


def _token_types(
    library: ModuleType, table: Memory, type_ids: Any, types: Any, ids: Memory, validate: bool
) -> tuple[Memory | None, Memory | None]:
    if types is None:
        return None, None
    name = "the table of token_types"
    own_library, found = dispatch.memory(FUNCTION, name, types)
    checks.floating(FUNCTION, name, found.dtype, types)
    checks.is_table(FUNCTION, name, dispatch.outline(FUNCTION, "types", types))
    if own_library is not library or found.device != table.device:
        raise TypeError(message(FUNCTION, f"{name} must be of the table's library and on its device", own_library.NAME))
    if found.shape[1] != table.shape[1]:
        rule = f"{name} must have the table's width, {table.shape[1]}"
        raise ValueError(message(FUNCTION, rule, f"shape {found.shape}"))
    return _ids(library, found, "the ids of token_types", type_ids, validate, ids.shape), found


def _without_padding(target: Target, ids: Memory, padding: int, mask: Any) -> Any:
    """The mask without rows of padding, in the shape of ids."""
    reason = f"embed: padding_idx makes a mask, {_LOST}: pass mask=(ids != padding_idx)"
    backend_of(target.memory).refuse_temporary(target.memory.device, reason)
    kept = ids.array.reshape(ids.shape) != padding
    if len(ids.shape) > 2:
        rule = "padding_idx needs ids of shape (T,) or (B, T)"
        raise ValueError(message(FUNCTION, rule, f"shape {ids.shape}", "Reshape them."))
    if mask is None:
        return kept
    if not is_known(mask) and target.memory.device is None:
        mask = np.asarray(mask)
    if getattr(mask, "shape", None) in ((target.rows,), ids.shape) and getattr(mask.dtype, "kind", "") == "b":
        return kept & mask
    return mask  # wrong, as will be said


def _refuse_positions(where: Where) -> None:
    offset = None if type(where.offset) is int and where.offset == 0 else where.offset
    for name, value in (("offset", offset), ("positions", where.positions), ("cu_seqlens", where.cu_seqlens)):
        if value is not None:
            remedy = "Pass fastpe.Sinusoidal()."
            raise ValueError(message(FUNCTION, f"{name} needs an encoding", "None for the encoding", remedy))
