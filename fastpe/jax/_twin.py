"""The call in plain operations of ``jnp``, for TPUs and GPUs: what each kernel call of the operation would do, by `_core/portable.py`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from .._backends.calls import AddGrid, AddToeplitz, GatherSum, RotaryRows, Rotate
from .._core import portable
from .._core.portable import Positions
from ._call import read
from ._rows import wide

OPS = portable.ops_of(jnp)


def in_plain_operations(*operands: Any, text: str, apart: bool) -> list[Any]:
    """The results of a call. XLA divides it among devices as it does its own operations."""
    call = read(text)
    shapes = [one.shape for one in operands]
    hosts, arrays, where = call.on_host(shapes)
    twin = _Twin(call, hosts, list(operands))
    done = 0
    for one in call.operation.check(arrays, where, None, False).calls:
        if isinstance(one, AddToeplitz):
            done = twin.add_bias(one, done)
        elif isinstance(one, Rotate):
            twin.rotate(one)
        elif isinstance(one, GatherSum):
            twin.gather(one)
        else:
            twin.add(one)
    if call.operation.in_place:
        return [twin.values[index] for index in call.replaced]
    (spec,) = call.results(shapes)
    return [jnp.zeros(spec.shape, spec.dtype) if twin.made is None else twin.made.astype(spec.dtype).reshape(spec.shape)]


class _Twin:
    """Operands, as calls change them. ``hosts`` are arrays of NumPy in their places: memory of a call is found by its address."""

    def __init__(self, call: Any, hosts: list[Any], values: list[Any]) -> None:
        self.call, self.hosts, self.values, self.made = call, hosts, values, None

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
            real, shape = portable.real_of(x), x.shape
            skipped = range(0, int(plan.axes.max() + 1) * rows.table_strides[2], rows.table_strides[2] or 1) or [0]
            of_axes = [self.positions(call, rows, shape, one) for one in skipped]
            at = portable.by_axis(OPS, plan.axes, of_axes)
            cosines, sines = portable.angles(OPS, plan, at, real, call.inverse, call.factor)
            if plan.growths is not None:
                factors = portable.growth(OPS, plan, at, call.grows, call.centre, real)
                cosines, sines = cosines * factors, sines * factors
            self.write(out, portable.rotate(OPS, self.view(x), plan, cosines, sines), rows, axis)

    def gather(self, call: GatherSum) -> None:
        """Rows of tables by id, and their positions."""
        out, axis, rank = call.out, call.seq_axis, len(call.out.shape)
        real = "float64" if "float64" in (out.dtype, call.first.dtype) else "float32"
        total = self.rows_of(call.first, call.ids, real) * np.dtype(real).type(call.scale)
        if call.types is not None:
            total = total + self.rows_of(call.types, call.type_ids, real)
        if call.plan is not None:
            total = total + portable.sinusoids(OPS, [(0, call.plan, self.positions(call, call.rows, out.shape))], real)
        self.made = jnp.where(self.kept(call.rows, axis, rank), total, 0) if call.rows.mask else total

    def rows_of(self, table: Any, ids: Any, real: str) -> Any:
        """NaN for ids that the table does not have."""
        words = self.values[self.index(ids)]
        low, high = (_shaped(words[..., k], ids.shape) for k in range(2))
        inside = (high == 0) & (low >= 0) & (low < table.shape[0])
        rows = self.view(table).astype(real)[jnp.where(inside, low, 0)]
        return jnp.where(inside[..., None], rows, np.nan)

    def add_bias(self, call: AddToeplitz, done: int) -> int:
        """A bias added to the next rows of scores, ``done`` of which are; returns how many then are."""
        index, (count, columns) = self.index(call.out), call.x.shape[-2:]
        scores = self.values[index]
        x = scores[..., done : done + count, :] if count < scores.shape[-2] else scores
        queries, keys = self.ends("q_positions", call.rows.start, count, x.ndim), self.ends("k_positions", 0, columns, x.ndim)
        keys = Positions(*(None if one is None else jnp.swapaxes(one, -1, -2) for one in keys))
        real = portable.real_of(x)
        if call.values is None:
            values = portable.line(OPS, call.slopes, queries.whole, keys.whole, call.symmetric, real)
        elif call.by_column:
            values = jnp.asarray(call.values.array)
        else:
            distance = jnp.clip(keys.whole - queries.whole, call.low, call.high) - call.low
            values = jnp.asarray(call.values.array)[:, distance.reshape(distance.shape[-2:])]
        for one in (queries, keys):
            values = values if one.valid is None else jnp.where(one.valid, values, np.nan)
        made = portable.add(OPS, x, values, call.input_scale)
        if call.causal:
            hidden = keys.whole > queries.whole
            made = jnp.where(hidden if queries.valid is None else hidden & queries.valid, -np.inf, made)
        self.values[index] = made if count == scores.shape[-2] else scores.at[..., done : done + count, :].set(made)
        return done + count

    def ends(self, name: str, start: int, count: int, rank: int) -> Positions:
        """Of queries, or of keys, as a column, with the axes of scores."""
        if name not in self.call.names:
            return Positions(np.int32(start) + jnp.arange(count, dtype=jnp.int32)[:, None])
        words = self.named(name)
        axes = [rank - 2] if words.ndim == 2 else [0, rank - 2]
        return portable.of_words(OPS, *(_spread(words[..., k], axes, rank) for k in range(2)))


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
