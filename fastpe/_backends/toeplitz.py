"""The operation on scores: what it asks of a backend. A bias is a vector of values for each head, never a matrix."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from .._arrays import Memory


class Places(NamedTuple):
    """Where queries and keys stand: tables of int64 in units of 2^-32, (T,) or (B, T), or None: start + i, and j."""

    start: int
    queries: Memory | None = None
    keys: Memory | None = None


class AddToeplitz(NamedTuple):
    """out = x*input_scale + bias, and -inf where ``causal`` hides the key. x, out: (..., H, Tq, Tk); x may be out.

    ``values``: (H, high - low + 1) in the type of the arithmetic, one behind the other, of the distances low ... high, key minus query;
    with ``by_column`` (H, Tq, Tk). ``slopes``: (H,) numbers instead. ``key`` names values, or slopes, that are always the same.
    """

    x: Memory
    out: Memory
    places: Places
    values: Memory | None
    low: int
    high: int
    slopes: Any
    symmetric: bool
    by_column: bool
    causal: bool
    input_scale: float
    key: Any = None

    def arguments(self, values: int, slopes: int) -> Iterator[tuple[int | float, ...]]:
        """Yield the argument block of every kernel call, in the order of ``kernels.blocks.ADD_TOEPLITZ``; from these addresses."""
        x, out, queries, keys = self.x, self.out, self.places.queries, self.places.keys
        query_steps, key_steps = _steps(queries), _steps(keys)
        varies = query_steps[0] != 0 or key_steps[0] != 0
        axes = [(size, (step, out_step)) for size, step, out_step in zip(out.shape[:-3], x.strides, out.strides, strict=False)]
        (batch, (x_batch, out_batch)), extra = _batch(axes, varies)
        table = (
            (0, 0, 0) if self.values is None else (self.values.strides[0], 0, self.values.strides[-2] if self.by_column else 0)
        )
        for moved in itertools.product(*(range(size) for size, _ in extra)):
            skipped = [sum(step * steps[i] for step, (_, steps) in zip(moved, extra, strict=True)) for i in (0, 1)]
            yield (
                x.address + skipped[0],
                out.address + skipped[1],
                batch,
                *out.shape[-3:],
                x_batch,
                *x.strides[-3:],
                out_batch,
                *out.strides[-3:],
                values,
                *table,
                self.low,
                self.high,
                slopes,
                self.symmetric,
                0 if queries is None else queries.address,
                *query_steps,
                self.places.start << 32,
                0 if keys is None else keys.address,
                *key_steps,
                self.by_column,
                self.causal,
                self.input_scale,
            )


_Axis = tuple[int, tuple[int, int]]


def _batch(axes: list[_Axis], varies: bool) -> tuple[_Axis, list[_Axis]]:
    """The axis that the kernel takes for the batch, and those that take a call each; merged where one stride serves."""
    found: list[_Axis] = []
    for place, (size, steps) in enumerate(axes):
        if size == 1 and not (varies and place == 0):
            continue
        if found and not varies and all(outer == step * size for outer, step in zip(found[-1][1], steps, strict=True)):
            found[-1] = found[-1][0] * size, steps
        else:
            found.append((size, steps))
    if not found:
        return (1, (0, 0)), []
    return (found[0], found[1:]) if varies else (found[-1], found[:-1])


def _steps(table: Memory | None) -> tuple[int, int]:
    """Strides of a (T,) or (B, T) table from sequence to sequence, and from row to row."""
    if table is None:
        return 0, 0
    by_batch = table.strides[0] if len(table.shape) == 2 and table.shape[0] > 1 else 0
    return by_batch, table.strides[-1]
