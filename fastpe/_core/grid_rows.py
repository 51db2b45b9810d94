"""Rows of an array that stand on a grid: which row is which, and where each stands along every axis."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from .._arrays import Memory
from .._arrays import numpy as numpy_arrays
from .._backends import backend_on
from .._backends.calls import AddGrid, Rows
from .arguments import Target, argument, array_of, either
from .checks import message
from .where import Where, kept_rows, mask_memory, position_table, readable, row_shapes, rows_of_table, spread


def check_axes(function: str, encoding: Any, axes: int, positions: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of positions without their axes, which stand first."""
    if not positions or positions[0] != axes:
        remedy = "Points with their axes last are numpy.moveaxis(points, -1, 0)." if positions and positions[-1] == axes else ""
        rule = f"positions must have the {axes} axes of the {type(encoding).__name__} first"
        raise ValueError(message(function, rule, f"shape {tuple(positions)}", remedy))
    return tuple(positions[1:])


def encoding(function: str, grid: Any, library: ModuleType, positions: Memory | None, out: Memory, validate: bool) -> AddGrid:
    """What writes the encoding of positions (axes, ...), or of all rows of the grid, to ``out``."""
    plan = grid.grid_plan(out.shape[-1], function, positions is None)
    table = counted(grid, out.device) if positions is None else position_table(function, library, positions, validate)
    axes = max(len(out.shape) - 1, 1)
    if len(out.shape) == 1:
        out = out._replace(shape=(1, *out.shape), strides=(0, *out.strides))
    sizes = out.shape[:-1]
    strides = tuple(8 * math.prod(sizes[axis + 1 :]) for axis in range(axes))
    if _is_line(out, axes):
        out, strides = _line(out, axes, ()), (8,)
    none = (0,) * len(strides)
    step = 8 * math.prod(sizes)
    rows = tuple(Rows(0, table.address + part.axis * step, strides, 0, none, (table,)) for part in plan.parts)
    return AddGrid(None, out, rows, len(strides) - 1, plan, 1.0)


class _View(NamedTuple):
    """An array as (..., T, D), T rows of a grid; ``sizes`` are those of its axes, None if nothing says them."""

    target: Target
    sizes: tuple[int, ...] | None
    gridded: bool


def additions(target: Target, grid: Any, where: Where, source: Memory | None, out: Memory, scale: float) -> list[AddGrid]:
    """Check where rows stand and return what is to be run: one addition, where the axes of the grid can be merged."""
    function, axes = target.function, len(grid.axes)
    for name, value in (("offset", where.offset), ("cu_seqlens", where.cu_seqlens)):
        if not (value is None or (type(value) is int and value == 0)):
            rule = f"a Grid says where rows stand, and {name} cannot"
            raise ValueError(message(function, rule, name, "Give positions=, of shape (axes, T) or (axes, B, T)."))
    if where.positions is None and grid.shape is None:
        raise ValueError(message(function, "positions must be given where a Grid has no shape", "None"))
    given = None if where.positions is None else argument(target, "positions", where.positions, "iuf")
    view = _view(target, grid, None if given is None else given.shape[1:])
    plan = grid.grid_plan(out.shape[-1], function, given is None)
    kept = None if where.mask is None else _reshaped(view, mask_memory(view.target, where.mask, _row_shapes(view)), 0)
    if given is not None:
        accepted = [(axes, *shape) for shape in _row_shapes(view)]
        if given.shape not in accepted:
            rule = f"positions must have shape {either(accepted)}, an entry for each axis of the grid first"
            raise ValueError(message(function, rule, f"shape {given.shape}"))
        given = _reshaped(view, given, 1)
        valid = kept_rows(view.target, kept, len(given.shape) - 1)
        table, kind = readable(function, target.library, given, target.validate, valid)
    else:
        table, kind = counted(grid, target.memory.device), 0
    strides = spread(view.target, table.shape[1:], table.strides[1:])
    steps = [part.axis * table.strides[0] for part in plan.parts]
    rows = tuple(rows_of_table(view.target, table, strides, kept, skipped, kind) for skipped in steps)
    return _merged(AddGrid(source, out, rows, view.target.seq_axis, plan, scale), view, axes)


def settled(target: Target, grid: Any, where: Where) -> tuple[Any, Where]:
    """The grid without a shape, positions of all rows, and the mask; both have the axes of x that rows have, so that blocks can be cut."""
    own, positions = (grid, where.positions) if where.positions is not None else grid.with_coordinates(target.function)
    positions, mask = [array_of(target.function, name, one) for name, one in (("positions", positions), ("mask", where.mask))]
    view, shape = _view(target, grid, tuple(positions.shape[1:])), target.memory.shape
    rows = _flat(view, tuple(positions.shape[1:]))
    # Positions (B, T) beside heads look like those of a picture in a block of as many sequences as heads: each head gets its own.
    by_head = not view.gridded and len(rows) == len(grid.axes) == 2 < len(shape) - 1 == target.seq_axis + 1

    def by_row(value: Any, leading: int) -> Any:
        given = tuple(value.shape[leading:])
        wanted = _flat(view, given)
        if view.gridded and view.sizes is not None:
            wanted = (*wanted[:-1], *view.sizes)
        if wanted != given and math.prod(wanted) == math.prod(given):
            value = value.reshape(*value.shape[:leading], *wanted)
        return value[..., None, :][..., np.zeros(shape[-3], int), :] if by_head else value

    where = where._replace(positions=by_row(positions, 1), mask=None if mask is None else by_row(mask, 0))
    return own if own.shape is None else replace(own, shape=None), where


def axes_of_sequence(target: Target, encoding: Any, positions: tuple[int, ...]) -> int:
    """How many axes of x the rows of a sequence have: one, or those of the grid, where positions of this shape, without theirs, say so."""
    count = 0 if encoding is None or encoding.counts else len(encoding.axes)
    shape = target.memory.shape
    is_last = target.seq_axis == len(shape) - 2 and len(shape) > count
    return count if count and is_last and positions[-count:] == shape[-1 - count : -1] else 1


def _view(target: Target, grid: Any, positions: tuple[int, ...] | None) -> _View:
    """Find T rows at ``seq_axis``, or the axes of the grid before the last axis, which are T together."""
    axes, shape = len(grid.axes), target.memory.shape
    sizes = grid.shape if grid.shape is not None or positions is None else _sizes_by(target, axes, positions)
    if sizes is not None and shape[target.seq_axis] == math.prod(sizes):
        return _View(target, sizes, False)
    if sizes is not None and len(shape) > axes and target.seq_axis == len(shape) - 2 and shape[-1 - axes : -1] == sizes:
        leading = shape[: -1 - axes]
        merged = (*leading, math.prod(sizes), shape[-1])
        flat = target.memory._replace(shape=merged, strides=(0,) * len(merged))
        return _View(target._replace(memory=flat, seq_axis=len(leading)), sizes, True)
    if grid.shape is None:
        return _View(target, None, False)
    count = " x ".join(str(size) for size in grid.shape)
    rule = f"x must have {grid.rows} rows along seq_axis or the axes {grid.shape} before the last, as the grid is {count}"
    raise ValueError(message(target.function, rule, f"shape {shape}", "Prefix tokens are left out by a view such as x[:, 1:]."))


def _sizes_by(target: Target, axes: int, given: tuple[int, ...]) -> tuple[int, ...] | None:
    """The sizes of a grid's axes, as positions for each row have them; None where they are (T,) or (B, T)."""
    shape = target.memory.shape
    if len(shape) <= axes + 1 and given in row_shapes(target):
        return None
    if len(given) >= axes and math.prod(given[-axes:]) == shape[target.seq_axis]:
        return given[-axes:]
    sizes, batch = shape[-1 - axes : -1], shape[:1] if len(shape) > axes + 1 else ()
    found = (*batch, *sizes), sizes, (*batch, math.prod(sizes)), (math.prod(sizes),)
    return sizes if len(shape) > axes and given in found else None


def _row_shapes(view: _View) -> list[tuple[int, ...]]:
    """(T,) and (B, T), and the same with the axes of the grid in place of T."""
    target = view.target
    flat = row_shapes(target)
    if view.sizes is None or (target.batch_axis is not None and target.batch_axis > target.seq_axis):
        return flat
    return flat + [(*(target.batch,) * (len(shape) - 1), *view.sizes) for shape in flat]


def _reshaped(view: _View, given: Memory, leading: int) -> Memory:
    """The same array with T in place of the axes of the grid."""
    shape = _flat(view, given.shape[leading:])
    if shape == given.shape[leading:]:
        return given
    found: Memory = view.target.library.memory(given.array.reshape(*given.shape[:leading], *shape))
    return found


def _flat(view: _View, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with T in place of the axes of the grid."""
    if shape in row_shapes(view.target) or view.sizes is None:
        return shape
    return (*shape[: len(shape) - len(view.sizes)], math.prod(view.sizes))


def counted(grid: Any, device: int | None) -> Memory:
    """The coordinates of a grid's rows in steps: (axes, T) int64 in units of 2^-32."""
    kind: Any = type(grid)
    array = _counted(kind, grid.shape, grid.column_major, grid.start)
    found = numpy_arrays.memory(array)
    if device is None:
        return found
    backend: Any = backend_on(device)  # the CUDA backend keeps arrays on devices
    address = backend.kept(("grid", grid.shape, grid.column_major, grid.start), device, array)
    return found._replace(address=address, device=device)


@functools.lru_cache(maxsize=16)
def _counted(kind: type, shape: tuple[int, ...], column_major: bool, start: float) -> Any:
    coordinates = kind(shape, column_major=column_major, start=start).counted().reshape(len(shape), -1)
    return position_table("Grid", numpy_arrays, numpy_arrays.memory(coordinates), True).array


# ---- the axes of the grid, merged --------------------------------------------------------------------------------------------


def _merged(operation: AddGrid, view: _View, axes: int) -> list[AddGrid]:
    """The addition to an array with T in place of the axes of the grid; where they cannot be merged, to one line after the other."""
    if not view.gridded:
        return [operation]
    found = []
    t, sizes = operation.seq_axis, view.sizes or ()
    one_line = all(memory is None or _is_line(memory, axes) for memory in (operation.x, operation.out))
    for steps in [()] if one_line else itertools.product(*(range(size) for size in sizes[:-1])):
        first = int(np.ravel_multi_index((*steps, 0), sizes)) if steps else 0
        x, out = (None if memory is None else _line(memory, axes, steps) for memory in (operation.x, operation.out))
        assert out is not None
        rows = tuple(
            one._replace(
                table=one.table + first * one.table_strides[t], mask=one.mask and one.mask + first * one.mask_strides[t]
            )
            for one in operation.rows
        )
        found.append(operation._replace(x=x, out=out, rows=rows))
    return found


def _is_line(memory: Memory, axes: int) -> bool:
    """Whether one step leads from each element of the grid to the next."""
    both = zip(memory.shape[-1 - axes : -1], memory.strides[-1 - axes : -1], strict=True)
    long = [(size, step) for size, step in both if size > 1]
    return all(outer == size * step for (_, outer), (size, step) in itertools.pairwise(long))


def _line(memory: Memory, axes: int, steps: tuple[int, ...]) -> Memory:
    """The array with T in place of the axes of the grid, or with its last axis at these steps along the others."""
    sizes, strides = memory.shape[-1 - axes : -1], memory.strides[-1 - axes : -1]
    address = memory.address + sum(step * stride for step, stride in zip(steps, strides, strict=False))
    count = sizes[-1] if steps else math.prod(sizes)
    step = next((stride for size, stride in zip(reversed(sizes), reversed(strides), strict=True) if size > 1), strides[-1])
    step = strides[-1] if steps else step
    leading = slice(0, len(memory.shape) - 1 - axes)
    shape, new = (*memory.shape[leading], count, memory.shape[-1]), (*memory.strides[leading], step, memory.strides[-1])
    return memory._replace(address=address, shape=shape, strides=new)
