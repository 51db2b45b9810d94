"""Calls of ``rotate`` and ``rotate_table``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from ..._arrays import Memory
from ..plans import RotaryPlan, TablePlan
from .axes import Arguments, CallerTable, RotaryTables


class Pair(NamedTuple):
    """q or k: the array to rotate, and the array to write."""

    x: Memory
    out: Memory


class RotaryRows(NamedTuple):
    """Positions and mask of the rows of q and k.

    As ``Rows``, with strides along the batch, the rows and the axes of positions.
    """

    start: int
    table: int
    strides: tuple[int, int, int]
    mask: int
    mask_strides: tuple[int, int]
    keepalive: tuple[object, ...]

    @property
    def vary(self) -> bool:
        """Whether sequences differ in positions or mask."""
        return self.strides[0] != 0 or self.mask_strides[0] != 0


class Rotate(NamedTuple):
    """q and k (either may be missing), their pairs of channels rotated by the angles of their rows' positions, times a factor.

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
        """q and k, without None."""
        return [pair for pair in (self.q, self.k) if pair is not None]

    def arguments(self, tables: RotaryTables | CallerTable) -> Iterator[Arguments]:
        """Yield the arguments of every kernel call (``ROTATE`` or ``ROTATE_TABLE``)."""
        rows, plan = self.rows, self.plan
        given = {"q": self.q, "k": self.k}
        arrays = {name: _Heads.of(pair, self.seq_axis, rows.vary) for name, pair in given.items() if pair is not None}
        first, *others = arrays.values()
        if others and (first.extra or others[0].extra or first.batch != others[0].batch):
            for alone in (self._replace(k=None), self._replace(q=None)):
                yield from alone.arguments(tables)
            return
        arguments = {
            "batch": first.batch,
            "rows": self.pairs[0].out.shape[self.seq_axis],
            "positions": rows.table,
            "positions_batch_stride": rows.strides[0],
            "positions_row_stride": rows.strides[1],
            "positions_axis_stride": rows.strides[2],
            "start": rows.start,
            "mask": rows.mask,
            "mask_batch_stride": rows.mask_strides[0],
            "mask_row_stride": rows.mask_strides[1],
            "pairs": plan.rotary_dim // 2,
            "head_dim": plan.head_dim,
            "first_channel": plan.first_channel,
            "interleaved": plan.interleaved,
            "inverse": self.inverse,
            **tables._asdict(),
        }
        if isinstance(tables, RotaryTables):
            arguments.update(grows=self.grows, centre=self.centre << 32, factor=self.factor)
        for indices in itertools.product(*(range(size) for size, _, _ in first.extra)):
            call = arguments.copy()
            for name, heads in arrays.items():
                call.update(heads.arguments(name, indices))
            yield call


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

    def arguments(self, name: str, indices: tuple[int, ...]) -> Arguments:
        """The fields of the group of this name, at these indices of the extra axes."""
        x, out = self.pair.x.address, self.pair.out.address
        for index, (_, x_stride, out_stride) in zip(indices, self.extra, strict=True):
            x, out = x + index * x_stride, out + index * out_stride
        batch_stride, row_stride, head_stride, column_stride = self.strides
        out_batch_stride, out_row_stride, out_head_stride, out_column_stride = self.out_strides
        return {
            f"{name}_x": x,
            f"{name}_out": out,
            f"{name}_heads": self.heads,
            f"{name}_batch_stride": batch_stride,
            f"{name}_row_stride": row_stride,
            f"{name}_head_stride": head_stride,
            f"{name}_column_stride": column_stride,
            f"{name}_out_batch_stride": out_batch_stride,
            f"{name}_out_row_stride": out_row_stride,
            f"{name}_out_head_stride": out_head_stride,
            f"{name}_out_column_stride": out_column_stride,
        }
