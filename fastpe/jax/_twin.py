"""The call in plain operations of ``jnp``, for TPUs and GPUs: what each kernel call of the operation would do, by `_core/portable.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._backends.calls import AddGrid, GatherSum, Rotate
from .._backends.plans import TablePlan
from .._core import portable
from .._core.operations import AddBias, Encode
from .._core.parts import outline
from .._core.portable import Positions
from .._core.where import Where, row_axes
from ._call import Call, read
from ._rows import wide

OPS = portable.ops_of(jnp)


def in_plain_operations(*operands: Any, text: str) -> list[Any]:
    """The results of a call that a program holds. XLA divides it among devices as it does its own operations."""
    return evaluate(read(text), operands, {})


def evaluate(call: Call, operands: Sequence[Any], tables: dict[str, Any]) -> list[Any]:
    """The results of a call. ``tables``: what the encoding's arrays hold, those in the call being outlines."""
    twin, operation, shapes = _Twin(call, operands, tables), call.operation, [one.shape for one in operands]
    if isinstance(operation, AddBias):
        return [twin.add_bias(*operation)]
    for one in operation.check(*call.arguments(call.on_host(shapes)), None, False).calls:
        (twin.rotate if isinstance(one, Rotate) else twin.gather if isinstance(one, GatherSum) else twin.add)(one)
    if operation.in_place:
        return [one for one in twin.arrays[: operation.writes] if one is not None]
    (spec,) = call.results(shapes)
    return [jnp.zeros(spec.shape, spec.dtype) if twin.made is None else twin.made.astype(spec.dtype).reshape(spec.shape)]


class _Twin:
    """The operation's arrays, as calls change them; operands by name, and tables."""

    def __init__(self, call: Call, operands: Sequence[Any], tables: dict[str, Any]) -> None:
        given = iter(operands)
        self.arrays: list[Any] = [None if dtype is None else next(given) for dtype in call.arrays]
        self.call, self.named, self.tables, self.made = call, dict(zip(call.names, operands, strict=True)), tables, None

    def write(self, index: int, value: Any, call: Any, rows: Any) -> None:
        """What is written to an array, but for rows that a mask protects."""
        x = self.arrays[index]
        if rows.mask:
            value = jnp.where(self.kept(call, rows, value.shape), value, x.reshape(value.shape))
        self.arrays[index] = value.reshape(x.shape)

    # ---- rows ----------------------------------------------------------------------------------------------------------------

    def kept(self, call: Any, rows: Any, shape: Any) -> Any:
        return _of_rows(self.named["mask"].reshape(rows.keepalive[1].shape), call, shape)

    def positions(self, call: Any, rows: Any, shape: Any, axis: int | None = None) -> Positions:
        """Of rows of a call, with the axes of an array of this shape; the last has size 1. ``axis``: which of several they have."""
        name = self.call.positions_of(call)
        if not rows.table:
            first = self.named.get("start", np.int32(rows.start >> 32))
            return Positions(_of_rows(first + jnp.arange(shape[call.seq_axis], dtype=jnp.int32), call, shape))
        words = jnp.asarray(wide(rows.keepalive[0].array)) if name is None else self.named[name]
        words = words if axis is None else words[axis]
        sizes = shape[:-1] if isinstance(self.call.operation, Encode) else rows.keepalive[0].shape[axis is not None :]
        halves = (words[..., half].reshape(sizes) for half in range(2))
        return portable.of_words(OPS, *(_of_rows(one, call, shape, name == "delta") for one in halves))

    # ---- calls ---------------------------------------------------------------------------------------------------------------

    def add(self, call: Any) -> None:
        """An encoding added, or written down."""
        shape = call.out.shape
        parts: list[tuple[int, Any, Any, int | None]] = [(0, call.plan, call.rows, None)]
        if isinstance(call, AddGrid):
            parts = [
                (part.first_column, part.plan, rows, part.axis) for part, rows in zip(call.plan.parts, call.rows, strict=True)
            ]
        placed = [(first, plan, self.positions(call, rows, shape, axis)) for first, plan, rows, axis in parts]
        values = portable.sinusoids(OPS, placed, portable.real_of(call.out))
        if call.x is None:
            self.made = jnp.broadcast_to(values, shape)
        else:
            self.write(0, portable.add(OPS, self.arrays[0].reshape(shape), values, call.input_scale), call, parts[0][2])

    def rotate(self, call: Any) -> None:
        rows, plan = call.rows, call.plan
        for name, pair in (("q", call.q), ("k", call.k)):
            if pair is None:
                continue
            index, shape, real = self.call.operation.names.index(name), pair.x.shape, portable.real_of(pair.x)
            if isinstance(plan, TablePlan):
                at = self.positions(call, rows, shape)
                cosines, sines = (self.row_of(self.tables[name], at, False, real) for name in ("cos", "sin"))
                sines = -sines if call.inverse else sines
            else:
                axes = range(int(plan.axes.max()) + 1) if rows.table_strides[2] else [None]
                at = portable.by_axis(OPS, plan.axes, [self.positions(call, rows, shape, axis) for axis in axes])
                cosines, sines = portable.angles(OPS, plan, at, real, call.inverse, call.factor)
            if plan.growths is not None:
                factors = portable.growth(OPS, plan, at, call.grows, call.centre, real)
                cosines, sines = cosines * factors, sines * factors
            self.write(index, portable.rotate(OPS, self.arrays[index].reshape(shape), plan, cosines, sines), call, rows)

    def gather(self, call: GatherSum) -> None:
        """Rows of tables by id, or x, and their positions."""
        out, rows = call.out, call.rows
        real = "float64" if "float64" in (out.dtype, call.first.dtype) else "float32"
        first = self.arrays[0].astype(real) if call.ids is None else self.rows_of(0, 1, out, real)
        total = first * np.dtype(real).type(call.scale)
        if call.types is not None:
            total = total + self.rows_of(3, 2, out, real)
        if call.plan is not None:
            total = total + portable.sinusoids(OPS, [(0, call.plan, self.positions(call, rows, out.shape))], real)
        if call.learned is not None:
            total = total + self.row_of(self.tables["table"], self.positions(call, rows, out.shape), call.clips, real)
        if call.ids is None:
            self.write(0, total.astype(out.dtype), call, rows)
        else:
            self.made = jnp.where(self.kept(call, rows, out.shape), total, 0) if rows.mask else total

    def rows_of(self, table: int, ids: int, out: Any, real: str) -> Any:
        """Rows by id, of arrays with these numbers."""
        low, high = (self.arrays[ids][..., half].reshape(out.shape[:-1]) for half in range(2))
        return _picked(self.arrays[table], low, high == 0, real)

    def row_of(self, table: Any, at: Positions, clips: bool, real: str) -> Any:
        """Rows by position."""
        row = jnp.clip(at.whole, 0, table.shape[0] - 1) if clips else at.whole
        return _picked(table, row[..., 0], True if at.valid is None else at.valid[..., 0], real)

    def add_bias(self, bias: Any, causal: bool, scale: float) -> Any:
        x, offset = self.arrays[0], self.call.fixed.get("q_offset")
        count, columns = x.shape[-2:]
        first, real = columns - count if offset is None else offset, portable.real_of(x)
        queries = self.ends("q_positions", first, count, x.ndim)
        keys = Positions(
            *(None if one is None else jnp.swapaxes(one, -1, -2) for one in self.ends("k_positions", 0, columns, x.ndim))
        )
        given = {name: jnp.asarray(self.tables.get(name, value), real) for name, value in bias.parameters.items()}
        if bias.slopes_of is not None:
            symmetric = getattr(bias, "symmetric", False)
            values = portable.line(OPS, given["slopes"].reshape(-1, 1, 1), queries.whole, keys.whole, symmetric, real)
        elif bias.normalises and self.tables:
            values = bias.evaluate(jnp, queries.whole - keys.whole, queries.whole, **given)
        elif bias.normalises:
            rows = np.arange(first, first + count)[:, None]
            values = bias.values(rows - np.arange(columns), rows).astype(real)
        else:  # a vector for each head, by distance
            distances = np.arange(first - columns + 1, first + count)
            by_distance = bias.evaluate(jnp, distances, **given) if self.tables else bias.values(distances).astype(real)
            values = jnp.asarray(by_distance)[:, queries.whole - keys.whole - distances[0]]
        for one in (queries, keys):
            values = values if one.valid is None else jnp.where(one.valid, values, np.nan)
        made = portable.add(OPS, x, values, scale)
        hidden = keys.whole > queries.whole
        return jnp.where(hidden if queries.valid is None else hidden & queries.valid, -np.inf, made) if causal else made

    def ends(self, name: str, start: int, count: int, rank: int) -> Positions:
        """Of queries, or of keys, as a column, with the axes of scores."""
        if name not in self.named:
            return Positions(np.int32(start) + jnp.arange(count, dtype=jnp.int32)[:, None])
        words = self.named[name]
        axes = [rank - 2] if words.ndim == 2 else [0, rank - 2]
        return portable.of_words(OPS, *(_spread(words[..., k], axes, rank) for k in range(2)))


def _picked(table: Any, index: Any, valid: Any, real: str) -> Any:
    """Rows of a table; NaN for those that it does not have."""
    inside = valid & (index >= 0) & (index < table.shape[0])
    return jnp.where(inside[..., None], table.astype(real)[jnp.where(inside, index, 0)], np.nan)


def _of_rows(value: Any, call: Any, shape: Any, by_sequence: bool = False) -> Any:
    """What (T,), (B, T) or all rows of a call have, with the axes of an array of this shape. ``by_sequence``: (), (B,) or (B, T)."""
    target = outline("", Where(seq_axis=call.seq_axis), shape)
    axes = [target.batch_axis, target.seq_axis][: value.ndim] if by_sequence or not value.ndim else row_axes(target, value.ndim)
    return _spread(value, axes, len(shape))


def _spread(value: Any, axes: list[Any], rank: int) -> Any:
    """With size 1 along the other axes of x."""
    value = jnp.transpose(value, np.argsort(axes).tolist()) if axes != sorted(axes) else value
    return value[tuple(slice(None) if axis in axes else None for axis in range(rank))]
