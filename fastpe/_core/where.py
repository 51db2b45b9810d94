"""Where rows stand: one value for the four arguments that say it, and one parser that turns it into what kernels read.

Row t stands at ``start + t``, or a table holds every row's position as int64 in units of 2^-32; a mask may protect rows. A table costs
8 bytes a row; kernels on a GPU read positions and the offsets of sequences where they are, so a graph may be captured and replayed with
new ones. Arguments on the host are always checked; arguments on a GPU are not read back unless the caller asks for it with
``validate=True``.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._arrays import Memory
from .._backends import backend_of
from .._backends.calls import Rows
from . import checks
from .arguments import WANTED, Target, argument, either, host_numbers, is_known, kind_of
from .checks import POSITION_LIMIT, describe, message

ONE = 1 << 32  # one position, in the kernels' units


if TYPE_CHECKING:
    from typing import TypedDict

    from .annotations import Booleans, Integers, Reals

    class RowArguments(TypedDict, total=False):
        """What says where rows stand, as arguments by name."""

        offset: Integers
        positions: Reals | None
        cu_seqlens: Integers | None
        mask: Booleans | None

    class WhereArguments(RowArguments, total=False):
        """The fields of ``Where`` as arguments by name."""

        seq_axis: int


class Where(NamedTuple):
    """Where the rows of a call stand, as its arguments say: see ``fastpe.add_encoding``."""

    offset: Any = 0
    positions: Any = None
    cu_seqlens: Any = None
    mask: Any = None
    seq_axis: int = -2


def where_of(function: str, arguments: Any, kind: Any = None, **more: Any) -> Any:
    """``Where``, or another kind, of arguments by name and of ``more``, which these may not name; TypeError as Python says it."""
    kind = kind or Where
    for name in arguments:
        if name not in kind._fields or name in more:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
    return kind(**more, **arguments)


def resolve(target: Target, where: Where, tabulates: bool = False) -> Rows:
    """Check the four arguments against each other and against x, and bring them into a form that kernels know.

    ``tabulates``: whether positions are always brought into a table.
    """
    offset, positions, cu_seqlens, mask, _ = where
    if positions is None and cu_seqlens is None and mask is None:
        if type(offset) is int:
            return _consecutive(target, offset)
        if not is_array(offset):
            return _consecutive(target, checks.integer(target.function, "offset", offset))
    if positions is not None:
        _refuse_beside_positions(target.function, offset, cu_seqlens)
    kept = None if mask is None else mask_memory(target, mask, row_shapes(target))
    if positions is not None:
        return _given(target, positions, kept, tabulates)
    return _counted(target, offset, cu_seqlens, kept, tabulates)


def resolve_axes(target: Target, where: Where, axes: int) -> tuple[Rows, int]:
    """Positions with ``axes`` axes, (A, T) or (A, B, T); returns the stride from axis to axis too."""
    function = target.function
    _refuse_beside_positions(function, where.offset, where.cu_seqlens)
    given = argument(target, "positions", where.positions, "iuf")
    accepted = [(axes, *shape) for shape in row_shapes(target)]
    if given.shape not in accepted:
        rule = f"positions must have shape {either(accepted)}, the axes of the encoding's sections first"
        raise ValueError(message(function, rule, f"shape {given.shape}"))
    kept = None if where.mask is None else mask_memory(target, where.mask, row_shapes(target))
    valid = kept_rows(target, kept, len(given.shape) - 1)
    table, kind = readable(function, target.library, given, target.validate, valid)
    strides = spread(target, given.shape[1:], table.strides[1:])
    return rows_of_table(target, table, strides, kept, kind=kind), table.strides[0]


def resolve_moves(target: Target, delta: Any, mask: Any) -> Rows:
    """By how much each row moves, as the position of the row: one number, (B,) or (B, T) of them; the mask only protects."""
    function = target.function
    if not is_known(delta):
        delta = backend_of(target.memory).uploaded(host_numbers(function, "delta", delta), target.memory.device)
    given = argument(target, "delta", delta, "iuf")
    accepted = [(), *([(target.batch,), (target.batch, target.rows)] if target.batch_axis is not None else [])]
    if given.shape not in accepted:
        rule = "delta must be one number" + (f" or have shape {either(accepted[1:])}" if accepted[1:] else "")
        raise ValueError(message(function, rule, f"shape {given.shape}"))
    kept = None if mask is None else mask_memory(target, mask, row_shapes(target))
    table, kind = readable(function, target.library, given, target.validate)
    return rows_of_table(target, table, _by_sequence(target, table), kept, kind=kind)


def rows_of_table(
    target: Target, table: Memory | None, strides: tuple[int, ...], kept: Memory | None, skipped: int = 0, kind: int = 0
) -> Rows:
    """Rows whose positions lie in a table, ``skipped`` bytes from its beginning on, and of which a mask may keep some.

    ``kind``: what the table has, or without a table the first row's position.
    """
    none = (0,) * (len(target.memory.shape) - 1)
    mask_strides = none if kept is None else spread(target, kept.shape, kept.strides)
    address = 0 if kept is None else kept.address
    return Rows(kind, 0 if table is None else table.address + skipped, strides, address, mask_strides, (table, kept))


def length_of(function: str, rows: Rows, count: int) -> int:
    """The largest position + 1 of so many rows."""
    if not rows.table and not rows.counts:
        return max(1, (rows.start >> 32) + count)
    table: Any = rows.keepalive[0]
    if rows.counts or table.device is not None:
        rule = "seq_len must be given where the scaling rule depends on the length and positions lie on a GPU"
        raise ValueError(message(function, rule, "None"))
    return max(1, int(table.array.max(initial=0) >> 32) + 1)


def rows_of_positions(function: str, library: ModuleType, given: Memory, validate: bool) -> Rows:
    """The rows of ``encode``: one for every position, in any shape."""
    table, kind = readable(function, library, given, validate)
    strides = table.strides or (0,)
    return Rows(kind, table.address, strides, 0, (0,) * len(strides), (table,))


# ---- offset ------------------------------------------------------------------------------------------------------------------


def _refuse_beside_positions(function: str, offset: Any, cu_seqlens: Any) -> None:
    counts = is_array(offset) or checks.integer(function, "offset", offset) != 0
    for name, is_given in (("cu_seqlens", cu_seqlens is not None), ("offset", counts)):
        if is_given:
            remedy = f"Give positions alone, or {name} alone."
            raise ValueError(message(function, f"positions and {name} contradict each other", "both", remedy))


def is_array(value: Any) -> bool:
    return isinstance(value, (list, tuple, range)) or getattr(value, "ndim", 0) > 0


def _consecutive(target: Target, offset: int) -> Rows:
    checks.positions(target.function, offset, target.rows, f"offset {offset} with {target.rows} rows")
    none = (0,) * (len(target.memory.shape) - 1)
    return Rows(offset * ONE, 0, none, 0, none, ())


def _offsets(target: Target, offset: Any, sequences: int | None) -> Memory | int:
    """One offset, or the memory of (B,) or, with cu_seqlens, (n,) of them."""
    function = target.function
    if not is_array(offset):
        value = checks.integer(function, "offset", offset, "One offset a sequence is an array of shape (B,).")
        checks.positions(function, value, 1, f"offset {value}")
        return value
    expected, what = (
        (sequences, "sequences of cu_seqlens") if sequences is not None else (target.batch, "sequences of the batch")
    )
    if sequences is None and target.batch_axis is None:
        remedy = "A 2-D x of shape (T, D) has no batch axis; give an int."
        raise ValueError(message(function, "offset must be an integer", describe(offset), remedy))
    given = argument(target, "offset", offset, "iu")
    if given.shape != (expected,):
        rule = f"offset must be an integer, or have shape ({expected},): one for each of the {expected} {what}"
        raise ValueError(message(function, rule, f"shape {given.shape}"))
    if target.validate or given.device is None:
        values = np.asarray(target.library.as_host(given.array))
        bad = checks.first_index((values < -POSITION_LIMIT) | (values >= POSITION_LIMIT))
        if bad is not None:
            raise ValueError(message(function, "offset must lie in [-2^31, 2^31)", f"{values[bad]} at index {bad}"))
    return given


# ---- cu_seqlens and mask -----------------------------------------------------------------------------------------------------


def _counted(target: Target, offset: Any, cu_seqlens: Any, mask: Memory | None, tabulates: bool) -> Rows:
    """Rows that count; in a table, if kernels cannot count from the offsets or the boundaries themselves."""
    given = mask
    boundaries = None if cu_seqlens is None else _boundaries(target, cu_seqlens)
    offsets = _offsets(target, offset, None if boundaries is None else boundaries.shape[0] - 1)
    if target.memory.device is not None and not tabulates:
        counts = mask is not None and target.rows > 1
        if not counts or (not target.validate and target.rows <= backend_of(target.memory).MOST_COUNTED_ROWS):
            found = _counted_by_kernels(target, offsets, boundaries, mask)
            if found is not None:
                return found._replace(counts=counts)
    if mask is not None and len(mask.shape) == 2 and target.seq_axis == 0:  # (T, B)
        mask = mask._replace(shape=mask.shape[::-1], strides=mask.strides[::-1], array=mask.array.T)
    table = backend_of(target.memory).locate_rows_counted(target.library, target.rows, mask, offsets, boundaries)
    kept = None
    if mask is not None and (target.validate or table.device is None):
        kept = np.asarray(target.library.as_host(mask.array))
    bad = first_bad(target.library, table, target.validate, kept)
    if bad is not None:
        raise ValueError(message(target.function, "every position must lie in [-2^31, 2^31)", f"a row beyond it at {bad}"))
    return rows_of_table(target, table, _by_sequence(target, table), given)


def _counted_by_kernels(target: Target, offsets: Memory | int, boundaries: Memory | None, mask: Memory | None) -> Rows | None:
    """Rows that kernels count from offsets and boundaries where these are; None if they cannot read them there."""
    if boundaries is not None:
        return None if target.validate else _restarting(target, boundaries, offsets, mask)
    if isinstance(offsets, int):
        return rows_of_table(target, None, (0,) * (len(target.memory.shape) - 1), mask, kind=offsets * ONE)
    kind = 0 if target.validate else backend_of(offsets).kind_of_positions(offsets, True)
    return rows_of_table(target, offsets, _by_sequence(target, offsets), mask, kind=kind) if kind else None


def _restarting(target: Target, boundaries: Memory, offsets: Memory | int, mask: Memory | None) -> Rows | None:
    """Rows that restart at boundaries, for kernels that look for these; None if they cannot read them where they are."""
    backend = backend_of(boundaries)
    kind, count, own = backend.kind_of_positions(boundaries, False), ("sequences", boundaries.shape[0] - 1), 0
    sequences: tuple[tuple[str, int], ...]
    if isinstance(offsets, int):
        sequences = count, ("offsets", offsets)
    else:
        own = backend.kind_of_positions(offsets, False)
        sequences = count, ("offsets", offsets.address), ("offsets_kind", own), ("offsets_stride", offsets.strides[0])
    if not kind or not (own or isinstance(offsets, int)):
        return None
    strides = [0] * (len(target.memory.shape) - 1)
    strides[target.seq_axis] = boundaries.strides[0]
    rows = rows_of_table(target, boundaries, tuple(strides), mask, kind=kind)
    return rows._replace(keepalive=(boundaries, mask, offsets), sequences=sequences)


def _by_sequence(target: Target, table: Memory) -> tuple[int, ...]:
    """Strides of a (), (B,) or (B, T) table for every leading axis of x."""
    result = [0] * (len(target.memory.shape) - 1)
    for axis, stride, size in zip((target.batch_axis, target.seq_axis), table.strides, table.shape, strict=False):
        if axis is not None and size > 1:
            result[axis] = stride
    return tuple(result)


def _boundaries(target: Target, cu_seqlens: Any) -> Memory:
    function = target.function
    given = argument(target, "cu_seqlens", cu_seqlens, "iu")
    rule = "cu_seqlens must have shape (n + 1,), starting at 0 and ending at T"
    if len(given.shape) != 1 or given.shape[0] < 1:
        raise ValueError(message(function, rule, f"shape {given.shape}"))
    if given.shape[0] == 1 and target.rows > 0:
        raise ValueError(message(function, rule, f"shape (1,) for T = {target.rows}"))
    if target.validate or given.device is None:
        values = np.asarray(target.library.as_host(given.array))
        rule = "cu_seqlens must start at 0, never decrease and end at T"
        if values[0] != 0:
            raise ValueError(message(function, rule, f"first value {values[0]}"))
        falls = np.flatnonzero(values[1:] < values[:-1])
        if falls.size:
            got = f"{values[falls[0] + 1]} after {values[falls[0]]} at index {falls[0] + 1}"
            raise ValueError(message(function, rule, got))
        if values[-1] != target.rows:
            raise ValueError(message(function, rule, f"last value {values[-1]} for T = {target.rows}"))
    return given


def mask_memory(target: Target, mask: Any, accepted: list[tuple[int, ...]]) -> Memory:
    """A mask, which must have one of these shapes."""
    given = argument(target, "mask", mask, "b")
    if given.shape not in accepted:
        raise ValueError(message(target.function, f"mask must have shape {either(accepted)}", f"shape {given.shape}"))
    return given


def row_shapes(target: Target) -> list[tuple[int, ...]]:
    """(T,) and, where there is a batch axis, (B, T) in x's axis order."""
    counts = (1,) if target.batch_axis is None else (1, 2)
    return [tuple(target.memory.shape[axis] for axis in row_axes(target, ndim)) for ndim in counts]


def spread(target: Target, shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a (T,), (B, T) or x.shape[:-1] array for every leading axis of x."""
    result = [0] * (len(target.memory.shape) - 1)
    for axis, stride, size in zip(row_axes(target, len(shape)), strides, shape, strict=True):
        result[axis] = stride if size > 1 else 0
    return tuple(result)


def row_axes(target: Target, ndim: int) -> list[int]:
    """The axes of x that a (T,), (B, T) or x.shape[:-1] array has."""
    if ndim == 1:
        return [target.seq_axis]
    if ndim == 2 and target.batch_axis is not None:
        return sorted((target.batch_axis, target.seq_axis))
    return list(range(len(target.memory.shape) - 1))


def kept_rows(target: Target, mask: Memory | None, ndim: int) -> Any:
    """Which rows of a table of so many axes are kept by the mask in any sequence and head; None for all."""
    if mask is None or (mask.device is not None and not target.validate):
        return None
    values = np.asarray(target.library.as_host(mask.array))
    masked, wanted = row_axes(target, values.ndim), row_axes(target, ndim)
    leading = range(len(target.memory.shape) - 1)
    spread = values.reshape([values.shape[masked.index(axis)] if axis in masked else 1 for axis in leading])
    return spread.any(axis=tuple(axis for axis in leading if axis not in wanted))


# ---- positions ---------------------------------------------------------------------------------------------------------------


def _given(target: Target, positions: Any, mask: Memory | None, tabulates: bool) -> Rows:
    function = target.function
    given = argument(target, "positions", positions, "iuf")
    accepted = row_shapes(target)
    if target.memory.shape[:-1] not in accepted:
        accepted.append(target.memory.shape[:-1])
    if given.shape not in accepted:
        remedy = f"x has shape {target.memory.shape} and seq_axis {target.seq_axis}."
        if given.shape[1:] in accepted:
            remedy += " Positions of several axes, one in front of the other, need an encoding with sections, or a Grid."
        raise ValueError(message(function, f"positions must have shape {either(accepted)}", f"shape {given.shape}", remedy))
    valid = kept_rows(target, mask, len(given.shape))
    table, kind = readable(function, target.library, given, target.validate, valid, tabulates)
    return rows_of_table(target, table, spread(target, given.shape, table.strides), mask, kind=kind)


def readable(
    function: str, library: ModuleType, given: Memory, validate: bool, kept: Any = None, tabulates: bool = False
) -> tuple[Memory, int]:
    """Given positions as kernels read them: themselves and their kind, or a table of them and 0."""
    kind = 0 if validate or tabulates else backend_of(given).kind_of_positions(given, False)
    return (given, kind) if kind else (position_table(function, library, given, validate, kept), 0)


def position_table(function: str, library: ModuleType, given: Memory, validate: bool, kept: Any = None) -> Memory:
    """The table of given positions; only ``kept`` rows need have one."""
    if kind_of(given) not in "iuf":
        remedy = "bfloat16 holds integers only up to 256; use int64 or float32." if given.dtype == "bfloat16" else ""
        raise TypeError(message(function, f"positions must be {WANTED['iuf']}", describe(given.array), remedy))
    if given.dtype not in ("float32", "float64") and kind_of(given) == "f":
        remedy = "float16 holds integers only up to 2048; use int64 or float32." if given.dtype == "float16" else ""
        raise TypeError(message(function, "positions must be integers, float32 or float64", describe(given.array), remedy))
    table: Memory = backend_of(given).locate_rows_given(library, given)
    bad = first_bad(library, table, validate, kept)
    if bad is not None:
        value = np.asarray(library.as_host(given.array))[bad]
        raise ValueError(message(function, "positions must be finite and lie in [-2^31, 2^31)", f"{value} at index {bad}"))
    return table


def first_bad(library: ModuleType, table: Memory, validate: bool, kept: Any = None) -> tuple[int, ...] | None:
    """Index of the first kept row that is no position. A table on a GPU is read back only to validate."""
    if table.device is not None and not validate:
        return None
    bad = np.asarray(library.as_host(table.array)) == checks.NOT_A_POSITION
    if kept is not None:
        bad &= kept
    return checks.first_index(bad)


# ---- positions as numbers ----------------------------------------------------------------------------------------------------


def row_positions(target: Target, rows: Rows) -> Any:
    """The integer position of every row, as broadcast along x.shape[:-1], on the host."""
    sizes = target.memory.shape[:-1]
    if rows.table == 0:
        along = [-1 if axis == target.seq_axis else 1 for axis in range(len(sizes))]
        return (rows.start >> 32) + np.arange(target.rows).reshape(along)
    values = np.asarray(target.library.as_host(rows.keepalive[0].array))
    return np.lib.stride_tricks.as_strided(values, sizes, rows.table_strides) >> 32


# ---- positions as rows of a table --------------------------------------------------------------------------------------------


def refuse_real_positions(function: str, positions: Any) -> None:
    """The rows of a table have integer positions."""
    if positions is None:
        return
    kind = getattr(getattr(positions, "dtype", None), "kind", None)
    if kind == "f" or (kind is None and np.asarray(positions).dtype.kind == "f"):
        raise TypeError(message(function, "positions of a table must be integers", describe(positions)))


def check_in_table(target: Target, rows: Rows, count: int) -> None:
    """IndexError with the first row whose position a table of so many rows does not have; on a GPU only to validate."""
    if not target.validate and (rows.counts or (rows.table and rows.keepalive[0].device is not None)):
        return
    positions = row_positions(target, rows)
    bad = (positions < 0) | (positions >= count)
    if rows.mask and rows.table:
        kept = np.asarray(target.library.as_host(rows.keepalive[1].array))
        bad = bad & np.lib.stride_tricks.as_strided(kept, target.memory.shape[:-1], rows.mask_strides)
    index = checks.first_index(bad)
    if index is not None:
        got = f"{np.broadcast_to(positions, bad.shape)[index]} at row {index[target.seq_axis]}"
        if target.batch_axis is not None:
            got += f" of sequence {index[target.batch_axis]}"
        raise IndexError(message(target.function, f"positions must lie in the table's [0, {count})", got))
