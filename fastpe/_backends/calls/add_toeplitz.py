"""Calls of ``add_toeplitz``: biases on scores. A bias is a vector of values for each head, never a matrix."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..._arrays import Memory
from .axes import Arguments, Axis


class QueryKeyRows(NamedTuple):
    """Positions of queries and keys: tables of int64 in units of 2^-32, (T,) or (B, T), or None: ``start`` + i, and j."""

    start: int
    queries: Memory | None = None
    keys: Memory | None = None


class AddToeplitz(NamedTuple):
    """out = x*input_scale + bias, and -inf where ``causal`` hides the key. x, out: (..., H, Tq, Tk); x may be out.

    ``values``: (H, high - low + 1) in the type of the arithmetic, contiguous, of the distances low ... high, key minus query;
    with ``by_column`` (H, Tq, Tk). ``slopes``: (H,) numbers instead. ``key`` names values, or slopes, that are always the same.
    """

    x: Memory
    out: Memory
    rows: QueryKeyRows
    values: Memory | None
    low: int
    high: int
    slopes: Any
    symmetric: bool
    by_column: bool
    causal: bool
    input_scale: float
    key: Any = None

    def arguments(self, values: int, slopes: int) -> Iterator[Arguments]:
        """Yield the arguments of every kernel call (``ADD_TOEPLITZ``), with the addresses of values or slopes."""
        x, out, queries, keys = self.x, self.out, self.rows.queries, self.rows.keys
        query_strides, key_strides = _strides(queries), _strides(keys)
        varies = query_strides[0] != 0 or key_strides[0] != 0
        axes = [
            Axis(size, (step, out_step)) for size, step, out_step in zip(out.shape[:-3], x.strides, out.strides, strict=False)
        ]
        batch, extra = _batch(axes, varies)
        table = self.values
        heads, rows, columns = out.shape[-3:]
        x_head_stride, x_row_stride, x_column_stride = x.strides[-3:]
        out_head_stride, out_row_stride, out_column_stride = out.strides[-3:]
        arguments: Arguments = {
            "x": x.address,
            "out": out.address,
            "batch": batch.size,
            "heads": heads,
            "rows": rows,
            "columns": columns,
            "x_batch_stride": batch.strides[0],
            "x_head_stride": x_head_stride,
            "x_row_stride": x_row_stride,
            "x_column_stride": x_column_stride,
            "out_batch_stride": batch.strides[1],
            "out_head_stride": out_head_stride,
            "out_row_stride": out_row_stride,
            "out_column_stride": out_column_stride,
            "values": values,
            "values_head_stride": 0 if table is None else table.strides[0],
            "values_row_stride": table.strides[-2] if table is not None and self.by_column else 0,
            "low": self.low,
            "high": self.high,
            "slopes": slopes,
            "symmetric": self.symmetric,
            "queries": 0 if queries is None else queries.address,
            "queries_batch_stride": query_strides[0],
            "queries_row_stride": query_strides[1],
            "start": self.rows.start << 32,
            "keys": 0 if keys is None else keys.address,
            "keys_batch_stride": key_strides[0],
            "keys_column_stride": key_strides[1],
            "by_column": self.by_column,
            "causal": self.causal,
            "input_scale": self.input_scale,
        }
        for indices in itertools.product(*(range(axis.size) for axis in extra)):
            call = arguments.copy()
            for index, axis in zip(indices, extra, strict=True):
                call["x"] += index * axis.strides[0]
                call["out"] += index * axis.strides[1]
            yield call


def _batch(axes: list[Axis], varies: bool) -> tuple[Axis, list[Axis]]:
    """The axis that the kernel takes for the batch, and the axes that need a call for each index; merged where one stride serves.

    Where sequences differ (``varies``), the batch is the first axis.
    """
    merged: list[Axis] = []
    for number, axis in enumerate(axes):
        if axis.size == 1 and not (varies and number == 0):
            continue
        if merged and not varies and merged[-1].continues(axis):
            axis = axis._replace(size=axis.size * merged.pop().size)
        merged.append(axis)
    if not merged:
        return Axis(1, (0, 0)), []
    return (merged[0], merged[1:]) if varies else (merged[-1], merged[:-1])


def _strides(table: Memory | None) -> tuple[int, int]:
    """Strides of a (T,) or (B, T) table from sequence to sequence, and from row to row."""
    if table is None:
        return 0, 0
    by_batch = table.strides[0] if len(table.shape) == 2 and table.shape[0] > 1 else 0
    return by_batch, table.strides[-1]
