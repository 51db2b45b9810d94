"""The call in plain operations of ``jnp``, for TPUs and GPUs: what each kernel call of the operation would do, by `_core/portable.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._backends.calls import AddGrid, GatherSum, RotaryRows, Rotate
from .._backends.plans import TablePlan
from .._core import portable
from .._core.operations import AddBias
from .._core.portable import Positions
from ._call import Call, read
from ._rows import wide

OPS = portable.ops_of(jnp)


def in_plain_operations(*operands: Any, text: str, apart: bool) -> list[Any]:
    """The results of a call that a program holds. XLA divides it among devices as it does its own operations."""
    return evaluate(read(text), operands, {})


def evaluate(call: Call, operands: Sequence[Any], tables: dict[str, Any]) -> list[Any]:
    """The results of a call. ``tables``: what the encoding's arrays hold, those in the call being outlines."""
    shapes = [one.shape for one in operands]
    twin = _Twin(call, operands, tables)
    if isinstance(call.operation, AddBias):
        return [twin.add_bias(*call.operation)]
    twin.hosts = call.on_host(shapes)
    for one in call.operation.check(*call.arguments(twin.hosts), None, False).calls:
        (twin.rotate if isinstance(one, Rotate) else twin.gather if isinstance(one, GatherSum) else twin.add)(one)
    if call.operation.in_place:
        return [twin.values[index] for index in call.replaced]
    (spec,) = call.results(shapes)
    return [jnp.zeros(spec.shape, spec.dtype) if twin.made is None else twin.made.astype(spec.dtype).reshape(spec.shape)]


class _Twin:
    """Operands, as calls change them, and tables. ``hosts`` lie in their places: memory of a call is found by its address."""

    def __init__(self, call: Call, operands: Sequence[Any], tables: dict[str, Any]) -> None:
        self.call, self.values, self.tables, self.made = call, list(operands), tables, None
        self.hosts: list[Any] = []

    def index(self, memory: Any) -> int:
        spans = ((one.ctypes.data, one.nbytes) for one in self.hosts)
        return next(index for index, (begin, size) in enumerate(spans) if begin <= memory.address < begin + size)

    def named(self, name: str) -> Any:
        return self.values[self.call.names.index(name)]

    def view(self, memory: Any) -> Any:
        """An operand with the axes that a call sees."""
        return _shaped(self.values[self.index(memory)], memory.shape)

    def write(self, memory: Any, value: Any, rows: Any, axis: int) -> None:
        """What is written, but for rows that a mask protects."""
        index = self.index(memory)
        if rows.mask:
            value = jnp.where(self.kept(rows, axis, len(memory.shape)), value, self.view(memory))
        self.values[index] = _shaped(value, self.values[index].shape)

    # ---- rows ----------------------------------------------------------------------------------------------------------------

    def kept(self, rows: Any, axis: int, rank: int) -> Any:
        return _along(self.named("mask"), rows.keepalive[1], 0, _strides(rows, rows.mask_strides, axis), rank)

    def positions(self, call: Any, rows: Any, shape: Any, skipped: int = 0) -> Positions:
        """Of rows of a call, with the axes of an array of this shape; the last has size 1."""
        axis, rank, name = call.seq_axis, len(shape), self.call.positions_of(call)
        if not rows.table:
            first = self.named("start") if "start" in self.call.places else np.int32(rows.start >> 32)
            count = first + jnp.arange(shape[axis], dtype=jnp.int32)
            return Positions(_spread(count, [axis], rank))
        memory = rows.keepalive[0]
        words = jnp.asarray(wide(memory.array)) if name is None else self.named(name)
        steps, first = _strides(rows, rows.table_strides, axis), rows.table + skipped - memory.address
        return portable.of_words(OPS, *(_along(words[..., k], memory, first, steps, rank) for k in range(2)))

    # ---- calls ---------------------------------------------------------------------------------------------------------------

    def add(self, call: Any) -> None:
        """An encoding added, or written down."""
        out, axis = call.out, call.seq_axis
        parts = [(0, call.plan, call.rows)]
        if isinstance(call, AddGrid):
            parts = [(part.first_column, part.plan, rows) for part, rows in zip(call.plan.parts, call.rows, strict=True)]
        placed = [(first, plan, self.positions(call, rows, out.shape)) for first, plan, rows in parts]
        values = portable.sinusoids(OPS, placed, portable.real_of(out))
        if call.x is None:
            self.made = jnp.broadcast_to(values, out.shape)
        else:
            self.write(out, portable.add(OPS, self.view(call.x), values, call.input_scale), parts[0][2], axis)

    def rotate(self, call: Any) -> None:
        rows, axis, plan = call.rows, call.seq_axis, call.plan
        for x, out in call.pairs:
            real, step = portable.real_of(x), rows.table_strides[2]  # from one axis of positions to the next
            if isinstance(plan, TablePlan):
                at = self.positions(call, rows, x.shape)
                cosines, sines = (self.row_of(self.tables[name], at, False, real) for name in ("cos", "sin"))
                sines = -sines if call.inverse else sines
            else:
                skipped = range(0, int(plan.axes.max() + 1) * step, step) if step else [0]
                at = portable.by_axis(OPS, plan.axes, [self.positions(call, rows, x.shape, one) for one in skipped])
                cosines, sines = portable.angles(OPS, plan, at, real, call.inverse, call.factor)
            if plan.growths is not None:
                factors = portable.growth(OPS, plan, at, call.grows, call.centre, real)
                cosines, sines = cosines * factors, sines * factors
            self.write(out, portable.rotate(OPS, self.view(x), plan, cosines, sines), rows, axis)

    def gather(self, call: GatherSum) -> None:
        """Rows of tables by id, or x, and their positions."""
        out, rows = call.out, call.rows
        real = "float64" if "float64" in (out.dtype, call.first.dtype) else "float32"
        first = self.view(call.first).astype(real) if call.ids is None else self.rows_of(call.first, call.ids, real)
        total = first * np.dtype(real).type(call.scale)
        if call.types is not None:
            total = total + self.rows_of(call.types, call.type_ids, real)
        if call.plan is not None:
            total = total + portable.sinusoids(OPS, [(0, call.plan, self.positions(call, rows, out.shape))], real)
        if call.learned is not None:
            total = total + self.row_of(self.tables["table"], self.positions(call, rows, out.shape), call.clips, real)
        if call.ids is None:
            self.write(out, total.astype(out.dtype), rows, call.seq_axis)
        else:
            self.made = jnp.where(self.kept(rows, call.seq_axis, len(out.shape)), total, 0) if rows.mask else total

    def rows_of(self, table: Any, ids: Any, real: str) -> Any:
        """Rows by id."""
        words = self.values[self.index(ids)]
        low, high = (_shaped(words[..., k], ids.shape) for k in range(2))
        return _picked(self.view(table), low, high == 0, real)

    def row_of(self, table: Any, at: Positions, clips: bool, real: str) -> Any:
        """Rows by position."""
        row = jnp.clip(at.whole, 0, table.shape[0] - 1) if clips else at.whole
        return _picked(table, row[..., 0], True if at.valid is None else at.valid[..., 0], real)

    def add_bias(self, bias: Any, causal: bool, scale: float) -> Any:
        x, offset = self.values[0], dict(self.call.fixed).get("q_offset")
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
        if name not in self.call.names:
            return Positions(np.int32(start) + jnp.arange(count, dtype=jnp.int32)[:, None])
        words = self.named(name)
        axes = [rank - 2] if words.ndim == 2 else [0, rank - 2]
        return portable.of_words(OPS, *(_spread(words[..., k], axes, rank) for k in range(2)))


def _picked(table: Any, index: Any, valid: Any, real: str) -> Any:
    """Rows of a table; NaN for those that it does not have."""
    inside = valid & (index >= 0) & (index < table.shape[0])
    return jnp.where(inside[..., None], table.astype(real)[jnp.where(inside, index, 0)], np.nan)


def _shaped(value: Any, shape: Any) -> Any:
    return value if value.shape == tuple(shape) else value.reshape(shape)


def _strides(rows: Any, strides: Any, axis: int) -> dict[int, int]:
    """The stride of rows along each axis of x; those of rotations are along the batch and the rows."""
    return {1 if axis == 0 else 0: strides[0], axis: strides[1]} if isinstance(rows, RotaryRows) else dict(enumerate(strides))


def _along(value: Any, memory: Any, first: int, strides: dict[int, int], rank: int) -> Any:
    """What stands in memory for each row, from so many bytes on, with axes as x has."""
    axes: list[int] = []
    value = _shaped(value, memory.shape)
    for size, step in zip(memory.shape, memory.strides, strict=True):
        found = [axis for axis, stride in strides.items() if size > 1 and stride == step]
        if not found:  # an axis of positions, or one that all rows share
            value = value[(slice(None),) * len(axes) + (first // step % size,)]
        axes += found
    return _spread(value, axes, rank)


def _spread(value: Any, axes: list[int], rank: int) -> Any:
    """With size 1 along the other axes of x."""
    value = jnp.transpose(value, np.argsort(axes).tolist()) if axes != sorted(axes) else value
    return value[tuple(slice(None) if axis in axes else None for axis in range(rank))]
