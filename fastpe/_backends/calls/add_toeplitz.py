"""Calls of ``add_toeplitz``: biases on scores. A bias is a vector of values for each head, never a matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..._arrays import Memory
from .axes import Arguments, Axis, each_call, merged, stride_fields


class QueryKeyRows(NamedTuple):
    """Positions of queries and keys: tables of int64 in units of 2^-32, (T,) or (B, T), or None: ``start`` + i, and j.

    Where they are the caller's own, ``kinds`` has the backend's kind of each (``Rows``).
    """

    start: int
    queries: Memory | None = None
    keys: Memory | None = None
    kinds: tuple[int, int] = (0, 0)


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
        """The arguments of every kernel call (``ADD_TOEPLITZ``), with the addresses of values or slopes."""
        x, out, table = self.x, self.out, self.values
        queries, queries_batch_stride, queries_row_stride = _placed(self.rows.queries)
        keys, keys_batch_stride, keys_column_stride = _placed(self.rows.keys)
        varies = queries_batch_stride != 0 or keys_batch_stride != 0
        steps = zip(out.shape[:-3], zip(x.strides, out.strides, strict=True), strict=False)
        axes = merged((Axis(size, strides) for size, strides in steps if size != 1), varies) or [Axis(1, (0, 0))]
        batch = axes.pop(0 if varies else -1)
        heads, rows, columns = out.shape[-3:]
        arguments: Arguments = {
            "x": x.address,
            "out": out.address,
            "batch": batch.size,
            "heads": heads,
            "rows": rows,
            "columns": columns,
            "values": values,
            "values_head_stride": 0 if table is None else table.strides[0],
            "values_row_stride": table.strides[-2] if table is not None and self.by_column else 0,
            "low": self.low,
            "high": self.high,
            "slopes": slopes,
            "symmetric": self.symmetric,
            "queries": queries,
            "queries_batch_stride": queries_batch_stride,
            "queries_row_stride": queries_row_stride,
            "start": self.rows.start << 32 if self.rows.queries is None else self.rows.kinds[0],
            "keys": keys,
            "keys_batch_stride": keys_batch_stride,
            "keys_column_stride": keys_column_stride,
            "keys_kind": self.rows.kinds[1],
            "by_column": self.by_column,
            "causal": self.causal,
            "input_scale": self.input_scale,
        }
        for name, memory, by_batch in zip(("x", "out"), (x, out), batch.strides, strict=True):
            head, row, column = memory.strides[-3:]
            arguments.update(stride_fields(name, by_batch, row, head, column))
        return each_call(arguments, axes, ("x", "out"))


def _placed(table: Memory | None) -> tuple[int, int, int]:
    """Address of a (T,) or (B, T) table, and its strides from sequence to sequence and from row to row."""
    if table is None:
        return 0, 0, 0
    by_batch = table.strides[0] if len(table.shape) == 2 and table.shape[0] > 1 else 0
    return table.address, by_batch, table.strides[-1]
