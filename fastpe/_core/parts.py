"""How a call splits: where the rows of a block of its arrays stand, so that each block has the bits that it has in the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._arrays import Memory
from .._arrays import numpy as numpy_arrays
from . import checks
from .arguments import Target, either, host_numbers
from .checks import message
from .where import Where, is_array, length_of, resolve, row_positions, row_shapes

Block = Sequence[tuple[int, int]]  # begin and end along each axis of x


def part(operation: Any, where: Where, shape: tuple[int, ...], block: Block) -> tuple[Any, Where]:
    """The operation on a block of an array of this shape, and where its rows stand. Arguments that say it lie on the host."""
    function = operation.function
    if len(block) != len(shape) or tuple(block[-1]) != (0, shape[-1]):
        rule = "a block must have every axis of the array, and whole rows"
        raise ValueError(message(function, rule, f"{tuple(block)} of shape {shape}"))
    outline = Memory(None, 0, shape, (0,) * len(shape), "float32", None, True)
    target = Target(function, numpy_arrays, outline, where.seq_axis % len(shape), False)
    encoding = operation[0]
    if encoding is not None and encoding.needs_length and operation.seq_len is None:
        operation = operation._replace(seq_len=length_of(function, resolve(target, where), target.rows))
    if encoding is not None and not encoding.counts and where.positions is None:  # rows of a grid
        own, positions = encoding.with_coordinates(function, target.rows)
        operation, where = operation._replace(encoding=own), where._replace(positions=positions)
    return operation, _cut(target, where, block)


def _cut(target: Target, where: Where, block: Block) -> Where:
    """The same rows, counted from where the block begins."""
    batch_axis, first = target.batch_axis, block[target.seq_axis][0]
    sequences = slice(None) if batch_axis is None else slice(*block[batch_axis])
    mask = None if where.mask is None else _rows_of(target, "mask", where.mask, block)
    if where.positions is not None:
        return Where(0, _rows_of(target, "positions", where.positions, block), None, mask, where.seq_axis)
    if where.cu_seqlens is None and where.mask is None:
        if type(where.offset) is int or not is_array(where.offset):  # what a compiler leaves open has no attributes
            return where._replace(offset=checks.integer(target.function, "offset", where.offset) + first)
        offsets = host_numbers(target.function, "offset", where.offset)
        if tuple(offsets.shape) != (target.batch,):
            rule = f"offset must be an integer, or have shape ({target.batch},)"
            raise ValueError(message(target.function, rule, f"shape {tuple(offsets.shape)}"))
        return where._replace(offset=offsets[sequences] + first)
    positions = np.broadcast_to(row_positions(target, resolve(target, where)), target.memory.shape[:-1])
    axes = (target.seq_axis, batch_axis)  # heads share positions that are counted
    index = tuple([slice(*ends) if axis in axes else 0 for axis, ends in enumerate(block[:-1])])
    return Where(0, positions[index], None, mask, where.seq_axis)


def _rows_of(target: Target, name: str, value: Any, block: Block) -> Any:
    """The block's part of an array of (T,), (B, T) or all rows; axes of positions may stand in front."""
    array, sizes = host_numbers(target.function, name, value), target.memory.shape
    axes: list[int] = [target.seq_axis]
    if array.ndim >= 2 and target.batch_axis is not None and array.shape[-1] != 1:
        order = sorted((target.batch_axis, target.seq_axis))
        if tuple(array.shape[-2:]) == tuple(sizes[axis] for axis in order):
            axes = order
    if tuple(array.shape) == tuple(sizes[:-1]):
        axes = list(range(array.ndim))
    if tuple(array.shape[-len(axes) :]) != tuple(sizes[axis] for axis in axes):
        rule = f"{name} must have shape {either([*row_shapes(target), sizes[:-1]])}, of the whole that is split"
        raise ValueError(message(target.function, rule, f"shape {tuple(array.shape)}"))
    return array[(..., *(slice(*block[axis]) for axis in axes))]
