"""Each operation: what it asks of a backend.

An operation turns arrays of any rank and strides into calls of its kernel, which knows four axes: batch, rows (T), heads and width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from .._arrays import Memory
from .plans import GridPlan, RotaryPlan, SinusoidalPlan, TablePlan


class Rows(NamedTuple):
    """Where the rows stand. Strides are in bytes, one for each axis of x but the last; 0 where an axis plays no part."""

    start: int
    table: int
    table_strides: tuple[int, ...]
    mask: int
    mask_strides: tuple[int, ...]
    alive: tuple[Any, ...]


class Tables(NamedTuple):
    """Addresses of a plan's tables in the memory of the device that will read them."""

    frequencies: int
    whole_turns: int
    cosines: int
    sines: int


class RotaryTables(NamedTuple):
    """Addresses of a rotary plan's tables in the memory of the device that will read them; ``axes`` and ``growths`` 0 for none."""

    frequencies: int
    whole_turns: int
    axes: int
    growths: int


class CallerTable(NamedTuple):
    """Addresses of a caller's cosines and sines in the memory of the device that will read them."""

    cosines: int
    sines: int
    rows: int
    row_stride: int


class Axis(NamedTuple):
    """An axis other than T and D: its size and what one step along it means in bytes, for each array."""

    size: int
    steps: tuple[int, ...]

    def holds(self, inner: Axis) -> bool:
        """Whether this axis and the one inside it are together one axis."""
        return all(outer == step * inner.size for outer, step in zip(self.steps, inner.steps, strict=True))


def outer_axes(shape: tuple[int, ...], seq_axis: int, *strides: tuple[int, ...]) -> list[Axis]:
    """The axes other than T and D, outermost first, merged where one stride serves; two at least."""
    found: list[Axis] = []
    for number, (size, *steps) in enumerate(zip(shape[:-1], *strides, strict=False)):
        axis = Axis(size, tuple(steps))
        if number == seq_axis or size == 1:
            continue
        if found and found[-1].holds(axis):
            axis = axis._replace(size=size * found.pop().size)
        found.append(axis)
    # The kernel's heads axis has no mask: only the batch axis may have one, and with a second axis it comes first.
    none = Axis(1, (0,) * len(strides))
    return found if len(found) >= 2 else [*found, none, none][:2]


def moved_blocks(block: tuple[Any, ...], axes: list[Axis], addresses: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """A block for every step along all axes but the last two, with the addresses at these places moved."""
    for steps in itertools.product(*(range(axis.size) for axis in axes[:-2])):
        moved = list(block)
        for step, axis in zip(steps, axes, strict=False):
            for place, stride in zip(addresses, axis.steps, strict=True):
                moved[place] += step * stride if moved[place] else 0
        yield tuple(moved)


class AddSinusoidal(NamedTuple):
    """out = x*input_scale + amplitude*PE(rows); out = amplitude*PE(rows) where x is None. x may be out."""

    x: Memory | None
    out: Memory
    rows: Rows
    seq_axis: int
    plan: SinusoidalPlan
    input_scale: float

    def arguments(self, tables: Tables) -> Iterator[tuple[int | float, ...]]:
        """Yield the argument block of every kernel call, in the order of ``kernels.add_sinusoidal.ARGUMENTS``."""
        x, out, rows, t, plan = self.x, self.out, self.rows, self.seq_axis, self.plan
        x_strides = out.strides if x is None else x.strides
        axes = outer_axes(out.shape, t, x_strides, out.strides, rows.table_strides, rows.mask_strides)
        block = _sum_block(x, x_strides, out, rows, t, axes, plan.width, tables, plan.columns, self.input_scale)
        yield from moved_blocks(block, axes, _ADDRESSES)


class AddGrid(NamedTuple):
    """out = x*input_scale + the encoding of a grid, whose channels follow several axes; x may be None or out, as in ``AddSinusoidal``.

    ``rows`` has an entry for each part of the plan. All share the mask, and whether sequences share their positions.
    """

    x: Memory | None
    out: Memory
    rows: tuple[Rows, ...]
    seq_axis: int
    plan: GridPlan
    input_scale: float

    @property
    def slices(self) -> list[AddSinusoidal]:
        """What each part adds to its channels: what it all amounts to."""
        return [
            AddSinusoidal(
                None if self.x is None else _channels(self.x, part.first_column, part.plan.width),
                _channels(self.out, part.first_column, part.plan.width),
                rows,
                self.seq_axis,
                part.plan,
                self.input_scale,
            )
            for part, rows in zip(self.plan.parts, self.rows, strict=True)
        ]

    def whole(self) -> Iterator[tuple[int | float, ...]]:
        """Yield the argument blocks of a kernel that adds to whole rows what the parts make; they say nothing of frequencies."""
        x, out, rows, t = self.x, self.out, self.rows[0], self.seq_axis
        x_strides = out.strides if x is None else x.strides
        axes = outer_axes(out.shape, t, x_strides, out.strides, rows.table_strides, rows.mask_strides)
        columns = (0, 0, 0, -1, 0, 0.0)
        block = _sum_block(x, x_strides, out, rows, t, axes, self.plan.width, (0, 0, 0, 0), columns, self.input_scale)
        yield from moved_blocks(block, axes, _ADDRESSES)


def _channels(memory: Memory, first: int, width: int) -> Memory:
    """The channels of an array from one on. Those of the second functions may lie beyond its last axis; a plan says where."""
    step = memory.strides[-1]
    return memory._replace(address=memory.address + first * step, shape=(*memory.shape[:-1], width))


_ADDRESSES = (0, 1, 14, 19)  # of x, out, positions and mask in the argument block


def _sum_block(
    x: Memory | None,
    x_strides: tuple[int, ...],
    out: Memory,
    rows: Rows,
    t: int,
    axes: list[Axis],
    width: int,
    tables: tuple[int, ...],
    columns: tuple[int | float, ...],
    scale: float,
) -> tuple[int | float, ...]:
    """The argument block of ``add_sinusoidal``, with which that of ``sum_rows`` begins."""
    batch, heads = axes[-2:]
    return (
        0 if x is None else x.address,
        out.address,
        batch.size,
        out.shape[t],
        heads.size,
        width,
        batch.steps[0],
        x_strides[t],
        heads.steps[0],
        x_strides[-1],
        batch.steps[1],
        out.strides[t],
        heads.steps[1],
        out.strides[-1],
        rows.table,
        batch.steps[2],
        rows.table_strides[t],
        heads.steps[2],
        rows.start,
        rows.mask,
        batch.steps[3],
        rows.mask_strides[t],
        *tables,
        *columns,
        scale,
    )


# ---- sums of rows ------------------------------------------------------------------------------------------------------------


class SumRows(NamedTuple):
    """out = ((first - zero) * row_scale) * scale + types[type_ids] + (amplitude*PE or learned)[position].

    ``first`` is x (``kernel`` is add_table), or the table of which ``ids`` choose rows (embed). ids and type_ids are int64 with the
    shape of out without its last axis. What is None is left out.
    """

    kernel: str
    first: Memory
    out: Memory
    rows: Rows
    seq_axis: int
    scale: float
    plan: SinusoidalPlan | None = None
    learned: Memory | None = None
    clips: bool = False
    ids: Memory | None = None
    type_ids: Memory | None = None
    types: Memory | None = None
    row_scales: Memory | None = None
    zero_points: Memory | None = None

    def arguments(self, tables: Tables) -> Iterator[tuple[int | float, ...]]:
        """Yield the argument block of every kernel call, in the order of ``kernels.blocks.SUM_ROWS``."""
        first, out, rows, t, ids, kinds = self.first, self.out, self.rows, self.seq_axis, self.ids, self.type_ids
        none = (0,) * len(out.shape)
        first_strides = first.strides
        if ids is not None:  # of a table one stride leads from row to row; the kernel looks for it where x has that of T
            by_row = (first.strides[0] if axis == t else 0 for axis in range(len(out.shape) - 1))
            first_strides = (*by_row, first.strides[1])
        id_strides, kind_strides = (none if memory is None else (*memory.strides, 0) for memory in (ids, kinds))
        moving = first_strides if ids is None else none
        axes = outer_axes(out.shape, t, moving, out.strides, rows.table_strides, rows.mask_strides, id_strides, kind_strides)
        batch, heads = axes[-2:]
        columns = (0, 0, 0, -1, 0, 0.0) if self.plan is None else self.plan.columns
        block = (
            *_sum_block(first, first_strides, out, rows, t, axes, out.shape[-1], tables, columns, self.scale),
            0 if ids is None else ids.address,
            *(batch.steps[4], id_strides[t], heads.steps[4]),
            first.shape[0] if ids is not None else 0,
            *(0 if memory is None else memory.address for memory in (self.row_scales, self.zero_points)),
            0 if kinds is None else kinds.address,
            *(batch.steps[5], kind_strides[t], heads.steps[5]),
            *_table_words(self.types),
            *_table_words(self.learned),
            self.clips,
        )
        yield from moved_blocks(block, axes, (*_ADDRESSES, 33, 40))


def _table_words(table: Memory | None) -> tuple[int, int, int]:
    """Address, stride from row to row, number of rows."""
    return (0, 0, 0) if table is None else (table.address, table.strides[0], table.shape[0])


# ---- rotations ---------------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """An array to be rotated and where to: q or k."""

    x: Memory
    out: Memory


class RotaryRows(NamedTuple):
    """Where the rows of q and k stand: as ``rows.Rows``, with one stride for the batch, the rows and the axes of positions."""

    start: int
    table: int
    strides: tuple[int, int, int]
    mask: int
    mask_strides: tuple[int, int]
    alive: tuple[object, ...]

    @property
    def vary(self) -> bool:
        """Whether sequences differ."""
        return self.strides[0] != 0 or self.mask_strides[0] != 0


class Rotate(NamedTuple):
    """q and k (either may be missing), their pairs of channels turned by the angles of their rows' positions, times a factor.

    ``grows``: whether xPos's factors, which are 1 at ``centre``, grow with the position.
    """

    q: Pair | None
    k: Pair | None
    rows: RotaryRows
    seq_axis: int
    plan: RotaryPlan | TablePlan
    inverse: bool
    factor: float
    grows: bool = False
    centre: int = 0

    @property
    def pairs(self) -> list[Pair]:
        """q and k, as far as they are there."""
        return [pair for pair in (self.q, self.k) if pair is not None]

    def arguments(self, tables: RotaryTables | CallerTable) -> Iterator[tuple[int | float, ...]]:
        """Yield the argument block of every kernel call, in the order of ``kernels.blocks.ROTATE`` or ``ROTATE_TABLE``."""
        rows, plan = self.rows, self.plan
        found = [_Heads.of(pair, self.seq_axis, rows.vary) if pair is not None else None for pair in (self.q, self.k)]
        present = [heads for heads in found if heads is not None]
        if len(present) == 2 and (present[0].extra or present[1].extra or present[0].batch != present[1].batch):
            for alone in (self._replace(k=None), self._replace(q=None)):
                yield from alone.arguments(tables)
            return
        for moved in itertools.product(*(range(size) for size, _, _ in present[0].extra)):
            yield (
                present[0].batch,
                self.pairs[0].out.shape[self.seq_axis],
                rows.table,
                *rows.strides,
                rows.start,
                rows.mask,
                *rows.mask_strides,
                plan.rotary_dim // 2,
                plan.head_dim,
                plan.first_channel,
                plan.interleaved,
                self.inverse,
                *(word for heads in found for word in (heads.words(moved) if heads is not None else (0,) * 11)),
                *tables,
                *((self.grows, self.centre << 32, self.factor) if isinstance(tables, RotaryTables) else ()),
            )


class _Heads(NamedTuple):
    """q or k as (B, T, H, D), and the axes that are neither and cannot be merged: (size, stride of x, stride of out)."""

    pair: Pair
    batch: int
    heads: int
    strides: tuple[int, ...]
    out_strides: tuple[int, ...]
    extra: list[tuple[int, int, int]]

    @classmethod
    def of(cls, pair: Pair, seq_axis: int, vary: bool) -> _Heads:
        axes: list[tuple[int, int, int]] = []
        last = len(pair.out.shape) - 1
        for axis, step in enumerate(zip(pair.out.shape, pair.x.strides, pair.out.strides, strict=True)):
            if axis in (seq_axis, last):
                continue
            mergeable = axes and (len(axes) > 1 or not vary) and all(axes[-1][i] == step[i] * step[0] for i in (1, 2))
            axes[-1:] = [(axes[-1][0] * step[0], *step[1:])] if mergeable else [*axes[-1:], step]
        batch, heads = (1, 0, 0), (1, 0, 0)
        if axes and (vary or len(axes) > 1):
            batch = axes.pop(0)
        if axes:
            heads = axes.pop()
        x, out = (
            (batch[i], memory.strides[seq_axis], heads[i], memory.strides[last]) for i, memory in ((1, pair.x), (2, pair.out))
        )
        return cls(pair, batch[0], heads[0], x, out, axes)

    def words(self, moved: tuple[int, ...]) -> tuple[int, ...]:
        skipped = [sum(step * axis[i] for step, axis in zip(moved, self.extra, strict=True)) for i in (1, 2)]
        addresses = self.pair.x.address + skipped[0], self.pair.out.address + skipped[1]
        return (*addresses, self.heads, *self.strides, *self.out_strides)
