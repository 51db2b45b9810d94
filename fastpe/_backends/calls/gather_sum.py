"""Calls of ``embed`` and ``add_table``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..._arrays import Memory
from ..plans import SinusoidalPlan
from .axes import Arguments, Rows, sum_calls


class GatherSum(NamedTuple):
    """out = ((first - zero) * row_scale) * scale + types[type_ids] + (amplitude*PE or learned)[position].

    ``first`` is x (``kernel`` is add_table), or the table of which ``ids`` choose rows (embed). ids and type_ids are int64 with the
    shape of out without its last axis. Terms that are None are left out. On a GPU ids may be int32, and scales and zero points any numbers;
    ``more_zero`` is added to these zero points, and is all of them where there are none.
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
    more_zero: int = 0
    out_factor: float = 1.0  # of results in float8

    def arguments(self, tables: Arguments) -> Iterator[Arguments]:
        """The arguments of every kernel call (``GATHER_SUM``), with the addresses of the plan's tables."""
        first, out, ids, type_ids, types, learned = self.first, self.out, self.ids, self.type_ids, self.types, self.learned
        none = (0,) * (len(out.shape) - 1)
        if ids is not None:  # a table has one stride from row to row; the kernel reads it where x has that of T
            by_row = (first.strides[0] if axis == self.seq_axis else 0 for axis in range(len(none)))
            first = first._replace(strides=(*by_row, first.strides[1]))
        pairwise = {"interleaved": 1, "tail_column": out.shape[-1] - 1}  # threads of a GPU take columns by pairs
        fields = {
            **(pairwise if self.plan is None else self.plan.columns),
            **tables,
            "input_scale": self.scale,
            "out_factor": self.out_factor,
            "width": out.shape[-1],
            "table_rows": 0 if ids is None else first.shape[0],
            "row_scales": _address(self.row_scales),
            "zero_points": _address(self.zero_points),
            "types": _address(types),
            "learned": _address(learned),
            "clips": self.clips,
        }
        if types is not None:
            fields.update(types_row_stride=types.strides[0], type_rows=types.shape[0])
        if learned is not None:
            fields.update(learned_row_stride=learned.strides[0], learned_rows=learned.shape[0])
        id_arrays = {
            name: (_address(array), none if array is None else array.strides)
            for name, array in (("ids", ids), ("type_ids", type_ids))
        }
        return sum_calls(first, out, self.rows, self.seq_axis, fields, **id_arrays)


def _address(memory: Memory | None) -> int:
    return 0 if memory is None else memory.address
