"""Calls of ``add_sinusoidal``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..._arrays import Memory
from ..plans import GridPlan, SinusoidalPlan
from .axes import Arguments, Axis, Rows, Tables, each_call, outer_axes

ADDRESSES = ("x", "out", "positions", "mask")  # in the order in which `outer_axes` gets their strides


class AddSinusoidal(NamedTuple):
    """out = x*input_scale + amplitude*PE(rows); out = amplitude*PE(rows) where x is None. x may be out."""

    x: Memory | None
    out: Memory
    rows: Rows
    seq_axis: int
    plan: SinusoidalPlan
    input_scale: float

    def arguments(self, tables: Tables) -> Iterator[Arguments]:
        """Yield the arguments of every kernel call (``ADD_SINUSOIDAL``)."""
        axes = sum_axes(self.x, self.out, self.rows, self.seq_axis)
        arguments = sum_arguments(self.x, self.out, self.rows, self.seq_axis, axes, self.input_scale)
        arguments.update(self.plan.columns, width=self.plan.width, **tables._asdict())
        yield from each_call(arguments, axes, ADDRESSES)


class AddGrid(NamedTuple):
    """out = x*input_scale + the encoding of a grid, whose channels follow several axes; x may be None or out, as in ``AddSinusoidal``.

    ``rows`` has an entry for each part of the plan. All share the mask; either all or none share their positions among sequences.
    """

    x: Memory | None
    out: Memory
    rows: tuple[Rows, ...]
    seq_axis: int
    plan: GridPlan
    input_scale: float

    @property
    def slices(self) -> list[AddSinusoidal]:
        """The same call as one call for each part, on its channels."""
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

    def whole_rows(self) -> Iterator[Arguments]:
        """Yield the arguments of every kernel call that adds whole rows, without frequencies: those of the parts make them up."""
        axes = sum_axes(self.x, self.out, self.rows[0], self.seq_axis)
        arguments = sum_arguments(self.x, self.out, self.rows[0], self.seq_axis, axes, self.input_scale)
        arguments.update(width=self.plan.width, tail_column=-1)
        yield from each_call(arguments, axes, ADDRESSES)


def _channels(memory: Memory, first: int, width: int) -> Memory:
    """So many channels of an array, from ``first`` on; with a plan of two blocks they may reach beyond its last axis."""
    return memory._replace(address=memory.address + first * memory.strides[-1], shape=(*memory.shape[:-1], width))


def sum_axes(x: Memory | None, out: Memory, rows: Rows, t: int) -> list[Axis]:
    x_strides = out.strides if x is None else x.strides
    return outer_axes(out.shape, t, x_strides, out.strides, rows.table_strides, rows.mask_strides)


def sum_arguments(x: Memory | None, out: Memory, rows: Rows, t: int, axes: list[Axis], scale: float) -> Arguments:
    """The arguments that say where arrays, positions and mask are; those of an encoding are missing."""
    x_strides = out.strides if x is None else x.strides
    batch, heads = axes[-2:]
    return {
        "x": 0 if x is None else x.address,
        "out": out.address,
        "batch": batch.size,
        "rows": out.shape[t],
        "heads": heads.size,
        "x_batch_stride": batch.strides[0],
        "x_row_stride": x_strides[t],
        "x_head_stride": heads.strides[0],
        "x_column_stride": x_strides[-1],
        "out_batch_stride": batch.strides[1],
        "out_row_stride": out.strides[t],
        "out_head_stride": heads.strides[1],
        "out_column_stride": out.strides[-1],
        "positions": rows.table,
        "positions_batch_stride": batch.strides[2],
        "positions_row_stride": rows.table_strides[t],
        "positions_head_stride": heads.strides[2],
        "start": rows.start,
        "mask": rows.mask,
        "mask_batch_stride": batch.strides[3],
        "mask_row_stride": rows.mask_strides[t],
        "input_scale": scale,
    }
