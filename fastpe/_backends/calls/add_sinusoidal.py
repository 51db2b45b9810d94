"""Calls of ``add_sinusoidal``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..._arrays import Memory
from ..plans import GridPlan, SinusoidalPlan
from .axes import Arguments, Rows, sum_calls


class AddSinusoidal(NamedTuple):
    """out = x*input_scale + amplitude*PE(rows); out = amplitude*PE(rows) where x is None. x may be out."""

    x: Memory | None
    out: Memory
    rows: Rows
    seq_axis: int
    plan: SinusoidalPlan
    input_scale: float

    def arguments(self, tables: Arguments) -> Iterator[Arguments]:
        """The arguments of every kernel call (``ADD_SINUSOIDAL``), with the addresses of the plan's tables."""
        fields = {**self.plan.columns, **tables, "width": self.plan.width, "input_scale": self.input_scale}
        return sum_calls(self.x, self.out, self.rows, self.seq_axis, fields)


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
        """The arguments of every kernel call that adds whole rows, without frequencies: those of the parts make them up."""
        fields = {"width": self.plan.width, "tail_column": -1, "input_scale": self.input_scale}
        return sum_calls(self.x, self.out, self.rows[0], self.seq_axis, fields)


def _channels(memory: Memory, first: int, width: int) -> Memory:
    """So many channels of an array, from ``first`` on; with a plan of two blocks they may reach beyond its last axis."""
    return memory._replace(address=memory.address + first * memory.strides[-1], shape=(*memory.shape[:-1], width))
