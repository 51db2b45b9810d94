"""Calls of ``embed`` and ``add_table``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..._arrays import Memory
from ..plans import SinusoidalPlan
from .add_sinusoidal import ADDRESSES, sum_arguments
from .axes import Arguments, Rows, Tables, each_call, outer_axes


class GatherSum(NamedTuple):
    """out = ((first - zero) * row_scale) * scale + types[type_ids] + (amplitude*PE or learned)[position].

    ``first`` is x (``kernel`` is add_table), or the table of which ``ids`` choose rows (embed). ids and type_ids are int64 with the
    shape of out without its last axis. Terms that are None are left out.
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

    def arguments(self, tables: Tables) -> Iterator[Arguments]:
        """Yield the arguments of every kernel call (``GATHER_SUM``)."""
        first, out, rows, t, ids, type_ids = self.first, self.out, self.rows, self.seq_axis, self.ids, self.type_ids
        none = (0,) * len(out.shape)
        first_strides = first.strides
        if ids is not None:  # a table has one stride from row to row; the kernel reads it where x has that of T
            by_row = (first.strides[0] if axis == t else 0 for axis in range(len(out.shape) - 1))
            first_strides = (*by_row, first.strides[1])
        id_strides, type_id_strides = (none if memory is None else (*memory.strides, 0) for memory in (ids, type_ids))
        moving = first_strides if ids is None else none
        strides = moving, out.strides, rows.table_strides, rows.mask_strides, id_strides, type_id_strides
        axes = outer_axes(out.shape, t, *strides)
        batch, heads = axes[-2:]
        arguments = sum_arguments(first._replace(strides=first_strides), out, rows, t, axes, self.scale)
        pairwise = {"interleaved": 1, "tail_column": out.shape[-1] - 1}  # threads of a GPU take columns by pairs
        arguments.update(pairwise if self.plan is None else self.plan.columns)
        arguments.update(tables._asdict())
        arguments.update(
            width=out.shape[-1],
            ids=_address(ids),
            ids_batch_stride=batch.strides[4],
            ids_row_stride=id_strides[t],
            ids_head_stride=heads.strides[4],
            table_rows=0 if ids is None else first.shape[0],
            row_scales=_address(self.row_scales),
            zero_points=_address(self.zero_points),
            type_ids=_address(type_ids),
            type_ids_batch_stride=batch.strides[5],
            type_ids_row_stride=type_id_strides[t],
            type_ids_head_stride=heads.strides[5],
            types=_address(self.types),
            learned=_address(self.learned),
            clips=self.clips,
        )
        if self.types is not None:
            arguments.update(types_row_stride=self.types.strides[0], type_rows=self.types.shape[0])
        if self.learned is not None:
            arguments.update(learned_row_stride=self.learned.strides[0], learned_rows=self.learned.shape[0])
        yield from each_call(arguments, axes, (*ADDRESSES, "ids", "type_ids"))


def _address(memory: Memory | None) -> int:
    return 0 if memory is None else memory.address
