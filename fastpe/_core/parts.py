"""How a call splits: where the rows of a block of its arrays stand, so that each block has the bits that it has in the whole."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from .._arrays import Memory, dispatch, dtypes
from .._arrays import numpy as numpy_arrays
from . import checks, grid_rows
from .arguments import Target, array_of, either, host_numbers
from .checks import message
from .where import Where, is_array, length_of, resolve, row_axes, row_positions, row_shapes

Block = Sequence[tuple[int, int]]  # begin and end along each axis of x


def part(operation: Any, where: Where, shape: tuple[int, ...], block: Block) -> tuple[Any, Where]:
    """The operation on a block of an array of this shape, and where its rows stand. Arguments that say it lie on the host."""
    if len(block) != len(shape) or tuple(block[-1]) != (0, shape[-1]):
        rule = "a block must have every axis of the array, and whole rows"
        raise ValueError(message(operation.function, rule, f"{tuple(block)} of shape {shape}"))
    operation, where = settled(operation, where, shape)
    return operation, _cut(operation[0], outline(operation.function, where, shape), where, block)


def settled(operation: Any, where: Where, shape: tuple[int, ...]) -> tuple[Any, Where]:
    """The same call, with what only the whole array tells: lengths, rows counted over a mask or boundaries, coordinates of grids.

    Whoever makes many parts settles once: its parts have the same operation, and cost little.
    """
    function, encoding = operation.function, operation[0]
    if encoding is None:  # rows that stand nowhere
        return operation, where
    if getattr(encoding, "sequences", None) is not None:
        rule, remedy = "a table with rows for each sequence cannot be split", "Pass its rows as (rows, F), and positions=."
        raise ValueError(message(function, rule, f"one of {encoding.sequences} rows", remedy))
    target = outline(function, where, shape)
    if encoding.needs_length and operation.seq_len is None:
        operation = operation._replace(seq_len=length_of(function, resolve(target, where), target.rows))
    if not encoding.counts:  # rows of a grid
        own, where = grid_rows.settled(target, encoding, where)
        operation = operation._replace(encoding=own)
    if where.positions is None and not (where.cu_seqlens is None and where.mask is None):
        positions = np.broadcast_to(row_positions(target, resolve(target, where)), shape[:-1])
        axes = (target.seq_axis, target.batch_axis)  # heads share positions that are counted
        index = tuple([slice(None) if axis in axes else slice(0, 1) for axis in range(len(shape) - 1)])
        heads = tuple(axis for axis in range(len(shape) - 1) if axis not in axes)
        where = Where(0, positions[index].squeeze(heads) if positions.size else positions, None, where.mask, where.seq_axis)
    return operation, where


def phantom(shape: tuple[int, ...], dtype: str, number: int = 0) -> Any:
    """An array of NumPy that has a shape and a dtype and no memory, for checks, which read and write none; numbers keep several apart."""
    element = dtypes.extended(dtype, "fastpe: bfloat16 needs ml_dtypes.") if dtype == "bfloat16" else np.dtype(dtype)
    place = {"version": 3, "data": ((number + 1) << 56, False), "shape": shape, "typestr": f"|V{element.itemsize}"}
    return np.asarray(SimpleNamespace(__array_interface__=place)).view(element)


def stand_in(value: Any) -> Any:
    """Zeros (of booleans, True) in no memory for a lazy or sharded array; anything else as it is."""
    is_usual = dispatch.library_of(value) is not None or dispatch.runner((value,), None) is None
    return value if is_usual else zeros_like(value)


def zeros_like(value: Any) -> Any:
    """Zeros (of booleans, True) in no memory, with the shape of an array; integers have 64 bits."""
    kind = np.dtype(value.dtype).kind
    return np.broadcast_to(np.array(kind == "b", "int64" if kind in "iu" else value.dtype), value.shape)


def rows_beside(target: Target, encoding: Any, where: Where) -> list[tuple[Any, list[int]]]:
    """Positions and the mask, each with the axes of x that its last axes are."""
    front = axes_in_front(encoding)
    given = [array_of(target.function, name, value) for name, value in (("positions", where.positions), ("mask", where.mask))]
    sizes = () if given[0] is None else tuple(given[0].shape[front:])
    ndims = [0 if value is None else value.ndim - leading for value, leading in zip(given, (front, 0), strict=True)]
    return [
        (value, [] if value is None else axes_of_rows(target, encoding, sizes, ndim))
        for value, ndim in zip(given, ndims, strict=True)
    ]


def axes_of_rows(target: Target, encoding: Any, positions: tuple[int, ...], ndim: int) -> list[int]:
    """The axes of x that positions, or a mask, of so many axes have, where positions have this shape behind their own axes."""
    count, last = grid_rows.axes_of_sequence(target, encoding, positions), len(target.memory.shape) - 1
    if count == 1 or ndim < count:  # beside positions (B, T), which look like those of a picture, a mask may be (T,)
        return row_axes(target, ndim)
    return [*range(ndim - count), *range(last - count, last)]


def refuse_open_length(operation: Any) -> None:
    """Refuse a rule that depends on the length where positions are not known yet."""
    if operation[0] is not None and operation[0].needs_length and operation.seq_len is None:
        rule = "seq_len must be given where the scaling rule depends on the length and positions are lazy or JAX's"
        raise ValueError(message(operation.function, rule, "None"))


def outline(function: str, where: Where, shape: tuple[int, ...]) -> Target:
    """An array of this shape, of which only the axes are looked at."""
    memory = Memory(None, 0, shape, (0,) * len(shape), "float32", None, True)
    return Target(function, numpy_arrays, memory, where.seq_axis % len(shape), False)


def _cut(encoding: Any, target: Target, where: Where, block: Block) -> Where:
    """The same rows, counted from where the block begins."""
    first, beside = block[target.seq_axis][0], zip(("positions", "mask"), rows_beside(target, encoding, where), strict=True)
    positions, mask = (None if value is None else _rows_of(target, name, value, axes, block) for name, (value, axes) in beside)
    if positions is not None:
        return Where(0, positions, None, mask, where.seq_axis)
    if encoding is None:
        return where._replace(mask=mask)
    if type(where.offset) is int or not is_array(where.offset):  # what a compiler leaves open has no attributes
        return where._replace(offset=checks.integer(target.function, "offset", where.offset) + first)
    offsets = host_numbers(target.function, "offset", where.offset)
    if tuple(offsets.shape) != (target.batch,):
        rule = f"offset must be an integer, or have shape ({target.batch},)"
        raise ValueError(message(target.function, rule, f"shape {tuple(offsets.shape)}"))
    sequences = slice(None) if target.batch_axis is None else slice(*block[target.batch_axis])
    return where._replace(offset=offsets[sequences] + first)


def _rows_of(target: Target, name: str, array: Any, axes: list[int], block: Block) -> Any:
    """The block's part of an array whose last axes are these of x."""
    sizes = target.memory.shape
    if tuple(array.shape[max(0, array.ndim - len(axes)) :]) != tuple([sizes[axis] for axis in axes]):
        rule = f"{name} must have shape {either([*row_shapes(target), sizes[:-1]])}, of the whole that is split"
        raise ValueError(message(target.function, rule, f"shape {tuple(array.shape)}"))
    return array[(..., *(slice(*block[axis]) for axis in axes))]


def axes_in_front(encoding: Any) -> int:
    """How many axes of positions stand before those of rows."""
    return 0 if encoding is None else int(getattr(encoding, "position_axes", None) is not None or not encoding.counts)
