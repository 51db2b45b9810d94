"""Each operation: what it asks of a backend.

An operation turns arrays of any rank and strides into calls of its kernel, which knows four axes: batch, rows (T), heads and width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from .arrays import Memory
from .encodings import SinusoidalPlan
from .positions import Rows


class Tables(NamedTuple):
    """Addresses of a plan's tables in the memory of the device that will read them."""

    frequencies: int
    whole_turns: int
    cosines: int
    sines: int


class Axis(NamedTuple):
    """An axis other than T and D: its size and what one step along it means in bytes."""

    size: int
    x: int
    out: int
    positions: int
    mask: int

    def holds(self, inner: Axis) -> bool:
        """Whether this axis and the one inside it are together one axis."""
        return all(outer == step * inner.size for outer, step in zip(self[1:], inner[1:], strict=True))


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
        axes = self._axes(x_strides)
        batch, heads = [*axes[-2:], _NO_AXIS, _NO_AXIS][:2]
        block = (
            0 if x is None else x.address,
            out.address,
            batch.size,
            out.shape[t],
            heads.size,
            plan.width,
            batch.x,
            x_strides[t],
            heads.x,
            x_strides[-1],
            batch.out,
            out.strides[t],
            heads.out,
            out.strides[-1],
            rows.table,
            batch.positions,
            rows.table_strides[t],
            heads.positions,
            rows.start,
            rows.mask,
            batch.mask,
            rows.mask_strides[t],
            *tables,
            *plan.columns,
            self.input_scale,
        )
        if len(axes) <= 2:
            yield block
            return
        for steps in itertools.product(*(range(axis.size) for axis in axes[:-2])):
            moved = list(block)
            for step, axis in zip(steps, axes, strict=False):
                for place, stride in zip(_ADDRESSES, axis[1:], strict=True):
                    moved[place] += step * stride if moved[place] else 0
            yield tuple(moved)

    def _axes(self, x_strides: tuple[int, ...]) -> list[Axis]:
        """The axes other than T and D, outermost first, merged where one stride serves."""
        rows = self.rows
        found: list[Axis] = []
        steps = zip(self.out.shape, x_strides, self.out.strides, rows.table_strides, rows.mask_strides, strict=False)
        for number, step in enumerate(steps):
            axis = Axis(*step)
            if number == self.seq_axis or axis.size == 1:
                continue
            if found and found[-1].holds(axis):
                axis = axis._replace(size=axis.size * found.pop().size)
            found.append(axis)
        # The kernel's heads axis has no mask: only the batch axis may have one, and with a second axis it comes first.
        return found


_NO_AXIS = Axis(1, 0, 0, 0, 0)
_ADDRESSES = (0, 1, 14, 19)  # of x, out, positions and mask in the argument block
