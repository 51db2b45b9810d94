"""Calls of ``rotate`` and ``rotate_table``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..._arrays import Memory
from ..plans import RotaryPlan, TablePlan
from .axes import Arguments, Axis, Rows, each_call, merged, stride_fields


class Pair(NamedTuple):
    """q or k: the array to rotate, and the array to write."""

    x: Memory
    out: Memory


class RotaryRows(Rows):
    """The rows of q and k, with strides along the batch, the rows and, of the table alone, the axes of positions."""

    __slots__ = ()

    @property
    def vary(self) -> bool:
        """Whether sequences differ in positions or mask."""
        return self.table_strides[0] != 0 or self.mask_strides[0] != 0


class Rotate(NamedTuple):
    """q and k (either may be missing), their pairs of channels rotated by the angles of their rows' positions, times a factor.

    ``grows``: whether xPos's factors, which are 1 at ``centre``, grow with the position. ``out_factors``: of q and k that become float8.
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
    out_factors: tuple[float, float] = (1.0, 1.0)

    @property
    def pairs(self) -> list[Pair]:
        """q and k, without None."""
        return [pair for pair in (self.q, self.k) if pair is not None]

    def arguments(self, tables: Arguments) -> Iterator[Arguments]:
        """Yield the arguments of every kernel call (``ROTATE`` or ``ROTATE_TABLE``), with the addresses of the plan's tables."""
        rows, plan = self.rows, self.plan
        given = {name: pair for name, pair in (("q", self.q), ("k", self.k)) if pair is not None}
        axes = [_axes(pair, self.seq_axis, rows.vary) for pair in given.values()]
        batch, _, extra = axes[0]
        if len(axes) > 1 and (extra or axes[1][2] or batch.size != axes[1][0].size):
            for alone in (self._replace(k=None), self._replace(q=None)):
                yield from alone.arguments(tables)
            return
        arguments = {
            "batch": batch.size,
            "rows": self.pairs[0].out.shape[self.seq_axis],
            "positions": rows.table,
            "positions_batch_stride": rows.table_strides[0],
            "positions_row_stride": rows.table_strides[1],
            "positions_head_stride": rows.table_strides[2],  # of axes
            "start": rows.start,
            **dict(rows.sequences),
            "mask": rows.mask,
            "mask_batch_stride": rows.mask_strides[0],
            "mask_row_stride": rows.mask_strides[1],
            "pairs": plan.rotary_dim // 2,
            "head_dim": plan.head_dim,
            "first_channel": plan.first_channel,
            "interleaved": plan.interleaved,
            "inverse": self.inverse,
            **tables,
        }
        if isinstance(plan, RotaryPlan):
            arguments.update(grows=self.grows, centre=self.centre << 32, factor=self.factor)
        for (name, pair), (by_batch, heads, _) in zip(given.items(), axes, strict=True):
            arguments.update(_fields(name, pair, self.seq_axis, by_batch, heads))
            arguments[f"{name}_out_factor"] = self.out_factors[name == "k"]
        yield from each_call(arguments, extra, tuple(f"{name}_{part}" for name in given for part in ("x", "out")))


def _axes(pair: Pair, seq_axis: int, vary: bool) -> tuple[Axis, Axis, list[Axis]]:
    """The axes of q or k that are the kernel's batch and heads, and those that are neither and cannot be merged."""
    steps = enumerate(zip(pair.out.shape[:-1], pair.x.strides, pair.out.strides, strict=False))
    axes = merged((Axis(size, tuple(strides)) for axis, (size, *strides) in steps if axis != seq_axis), vary)
    none = Axis(1, (0, 0))
    batch = axes.pop(0) if axes and (vary or len(axes) > 1) else none
    heads = axes.pop() if axes else none
    return batch, heads, axes


def _fields(name: str, pair: Pair, seq_axis: int, batch: Axis, heads: Axis) -> Arguments:
    """The fields of q or k."""
    fields: Arguments = {f"{name}_x": pair.x.address, f"{name}_out": pair.out.address, f"{name}_heads": heads.size}
    for array, memory, by_batch, by_head in zip((name, f"{name}_out"), pair, batch.strides, heads.strides, strict=True):
        fields.update(stride_fields(array, by_batch, memory.strides[seq_axis], by_head, memory.strides[-1]))
    return fields
