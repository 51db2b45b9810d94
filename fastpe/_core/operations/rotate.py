"""Rotating queries and keys by their positions, and keys that were rotated to other positions."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..._arrays import Memory, dispatch
from ..._arrays.dtypes import FLOAT8
from ..._backends.calls import Pair, RotaryRows, Rows
from ..._backends.calls import Rotate as RotateCall
from .. import checks
from ..arguments import Target, device_name, output, overlap
from ..checks import describe, message
from ..where import Where, resolve_moves
from .base import Job, Operation, offset_kind


class _Rotate(NamedTuple):
    encoding: Any
    inverse: bool = False
    seq_len: int | None = None
    head_dim: int | None = None
    transposed: bool = False
    packing: tuple[int, int, int] | None = None
    out_scale: float | tuple[float, float] | None = None


class Rotate(_Rotate, Operation):
    """Pairs of channels of q and k rotated by position * frequency, times the attention factor.

    ``head_dim``: the last axis holds heads of this width. ``transposed``: the adjoint, which rotates the other way and multiplies by the
    same factors. ``packing``: one array holds q, k and v; how many heads (or channels) q and k have, and the axis of these.
    ``out_scale``: what results in float8 are divided by, those of q and k.
    """

    __slots__ = ()
    function: ClassVar[str] = "apply_rotary"
    names: ClassVar[tuple[str, ...]] = ("q", "k")

    @property
    def writes(self) -> int:
        """Both q and k, or the one that holds both."""
        return 2 if self.packing is None else 1

    def check(self, arrays: tuple[Any, ...], where: Where, out: Any, validate: bool) -> Job:
        function, encoding = self.function, self.encoding
        checks.sequence_length(function, self.seq_len)
        checks.boolean(function, "validate", validate)
        checks.boolean(function, "inverse", self.inverse)
        narrow = FLOAT8 if self.packing is None else {}
        given = Arrays.check(
            function, dict(zip(self.names, arrays, strict=True)), out, where.seq_axis, self.head_dim, tuple(narrow)
        )
        factors = self._out_factors(given)
        rows = _rows(given, encoding, validate, where)
        plans = {}
        for name, (_, memory) in given.pairs.items():
            length = encoding.length(function, self.seq_len, rows, memory.shape[given.axes[name]])
            plans[name] = encoding.plan(memory.shape[-1], length)
            for factor in (plans[name].attention_factor, 1 / plans[name].attention_factor):
                checks.fits(function, "the encoding's attention factor", factor, memory.dtype)
        pairs = {name: pair for name, pair in given.pairs.items() if 0 not in pair.out.shape}
        layouts = {(plans[name].head_dim, pair.x.dtype, pair.out.dtype, given.axes[name]) for name, pair in pairs.items()}
        groups = (
            [pairs] if len(layouts) == 1 and not encoding.differs_for_keys else [{name: pair} for name, pair in pairs.items()]
        )
        calls = [self._call(group, rows, given.axes, plans)._replace(out_factors=factors) for group in groups]
        repeats = None
        if len(groups) == 1 and len(pairs) == len(given.pairs) and encoding.repeats(self.seq_len):
            repeats = tuple(pair.out for pair in pairs.values()) if out is None else sum(map(tuple, pairs.values()), ())
        present = tuple(array for array in arrays if array is not None)
        result = out if out is not None else present if len(present) > 1 else present[0]
        return Job(result, given.device, calls, repeats)

    def _call(self, group: dict[str, Pair], rows: RotaryRows, axes: dict[str, int], plans: dict[str, Any]) -> RotateCall:
        name = next(iter(group))
        plan = plans[name]
        back, factor = self.direction(plan.attention_factor)
        grows = (name == "k") != self.inverse
        return RotateCall(group.get("q"), group.get("k"), rows, axes[name], plan, back, factor, grows, plan.centre)

    def _out_factors(self, given: Arrays) -> tuple[float, float]:
        """What q and k are multiplied by before they become float8."""
        scales = self.out_scale
        if isinstance(scales, (tuple, list)) and len(scales) != 2:
            rule = "out_scale must be a number, or a pair of them, for q and for k"
            raise ValueError(message(self.function, rule, describe(scales)))
        pair = dict(zip(self.names, scales if isinstance(scales, (tuple, list)) else (scales, scales), strict=True))
        found = {name: checks.out_factor(self.function, pair[name], one.out.dtype) for name, one in given.pairs.items()}
        return found.get("q", 1.0), found.get("k", 1.0)

    def direction(self, factor: float) -> tuple[bool, float]:
        """Whether pairs are rotated back, and by what they are multiplied, for an encoding's attention factor."""
        return self.inverse != self.transposed, 1 / factor if self.inverse else factor

    def adjoint(self) -> Rotate:
        return self._replace(transposed=not self.transposed)

    def repeatable(self, where: Where) -> bool:
        encoding, inverse, seq_len, head_dim, _, packing, out_scale = self
        cu_seqlens, mask, axis = where[2:]
        return (
            cu_seqlens is mask is packing is None
            and (
                out_scale is None
                or type(out_scale) is float
                or (type(out_scale) is tuple and set(map(type, out_scale)) == {float})
            )
            and type(inverse) is bool
            and type(axis) is int
            and (seq_len is None or type(seq_len) is int)
            and (head_dim is None or type(head_dim) is int)
            and hasattr(encoding, "text")
        )

    def key(self, arrays: tuple[Any, ...], where: Where, out: Any) -> Any:
        if out is not None or self.out_scale is not None or not self.repeatable(where):
            return None
        (q, k), offset, axis = arrays, where[0], where[4]
        x = k if q is None else q
        if type(x) is not np.ndarray:
            return None
        kind = 0 if where[1] is None and type(offset) is int else offset_kind(where, x, axis)
        if kind is None:
            return None
        encoding, fields = self[0], self[1:5]
        if q is None or k is None:
            return Rotate, encoding.text, fields, x.dtype, x.shape, x.strides, axis, kind, q is None
        if type(k) is not np.ndarray:
            return None
        first, second = (q.dtype, q.shape, q.strides), (k.dtype, k.shape, k.strides)
        return Rotate, encoding.text, fields, first, second, axis, kind


class _Rerotate(NamedTuple):
    source: Any
    target: Any
    seq_len: Any = None
    head_dim: int | None = None
    transposed: bool = False


class Rerotate(_Rerotate, Operation):
    """Keys that stand at p in ``source`` become what they would be at p + delta in ``target``; ``transposed``: the adjoint."""

    __slots__ = ()
    function: ClassVar[str] = "rerotate"
    names: ClassVar[tuple[str, ...]] = ("k", "delta")

    def check(self, arrays: tuple[Any, ...], where: Where, out: Any, validate: bool) -> Job:
        function, (k, delta) = self.function, arrays
        checks.boolean(function, "validate", validate)
        source, target = self.source, self.target
        lengths = self._lengths()
        source.check_like(function, target)
        given = Arrays.check(function, {"k": k}, out, where.seq_axis, self.head_dim)
        pair, axis = given.pairs["k"], given.axes["k"]
        memory = pair.out
        before, after = (one.plan(memory.shape[-1], length) for one, length in zip((source, target), lengths, strict=True))
        change = None if before is after else source.difference(before, after)
        rows = _rows(given, target, validate, where)  # checked where they do not matter, too
        moves = not (type(delta) is int and delta == 0)
        moved = None
        if moves or change is None:
            near = _target(given, "k", validate)
            moved = _rotary_rows(near, resolve_moves(near, delta, where.mask))
        calls: list[RotateCall] = []
        if 0 not in memory.shape:
            if change is not None:
                factor = change.attention_factor
                checks.fits(function, "the attention factor's change", factor, memory.dtype)
                calls.append(RotateCall(None, pair, rows, axis, change, self.transposed, factor))
                pair = Pair(pair.out, pair.out)
            if moved is not None and (moves or pair.x is not pair.out):
                calls.append(RotateCall(None, pair, moved, axis, after, self.transposed, 1.0, True, 0))
        return Job(k if out is None else out, given.device, calls)

    def _lengths(self) -> tuple[int | None, int | None]:
        lengths = self.seq_len if isinstance(self.seq_len, (tuple, list)) else (self.seq_len, self.seq_len)
        if len(lengths) != 2:
            raise ValueError(message(self.function, "seq_len must be one length or a pair", describe(self.seq_len)))
        for length, one in zip(lengths, (self.source, self.target), strict=True):
            checks.sequence_length(self.function, length)
            if length is None and one.needs_length:
                raise ValueError(message(self.function, "seq_len must be given where the scaling rule depends on it", "None"))
        return lengths[0], lengths[1]

    def adjoint(self) -> Rerotate:
        return self._replace(transposed=not self.transposed)


# ---- arrays ------------------------------------------------------------------------------------------------------------------


class Arrays(NamedTuple):
    """q and k, checked: which there are, where they are read and written, and their axis of rows."""

    function: str
    library: ModuleType
    pairs: dict[str, Pair]
    axes: dict[str, int]
    channel_axes: int  # how many last axes are channels: 2 where ``head_dim`` divided them into heads

    @classmethod
    def check(
        cls, function: str, given: dict[str, Any], out: Any, seq_axis: Any, head_dim: Any, narrow: Sequence[str] = ()
    ) -> Arrays:
        libraries, sources, axes = {}, {}, {}
        for name, array in given.items():
            if array is not None:
                libraries[name], memory = dispatch.memory(function, name, array)
                checks.floating(function, name, memory.dtype, array)
                checks.has_rows(function, name, memory.shape)
                sources[name], axes[name] = memory, checks.axis(function, seq_axis, memory.shape)
        if not sources:
            raise TypeError(message(function, f"{' or '.join(given)} must be an array", "None"))
        if len({(id(libraries[name]), memory.device) for name, memory in sources.items()}) > 1:
            got = " and ".join(f"{libraries[name].NAME} on {device_name(memory.device)}" for name, memory in sources.items())
            remedy = "Nothing is copied between devices silently."
            raise TypeError(message(function, "q and k must be of one library and on one device", got, remedy))
        library = next(iter(libraries.values()))
        pairs = _pairs(function, out, library, sources, narrow)
        if head_dim is not None:
            pairs = {name: _by_head(function, name, pair, head_dim) for name, pair in pairs.items()}
        widths = [pair.x.shape[-1] for pair in pairs.values()]
        if len(set(widths)) > 1:
            got, remedy = f"{widths[0]} and {widths[1]}", "Where the last axis holds several heads, give head_dim=."
            raise ValueError(message(function, "q and k must have heads of the same width D", got, remedy))
        arrays = cls(function, library, pairs, axes, 1 if head_dim is None else 2)
        arrays._check_apart()
        return arrays

    @property
    def device(self) -> int | None:
        return next(iter(self.pairs.values())).out.device

    def _check_apart(self) -> None:
        """What is written must be writable and share no element with anything else."""
        for name, (x, target) in self.pairs.items():
            label = name if target is x else "out"
            checks.writable(self.function, label, target)
            others = [(other, pair.x) for other, pair in self.pairs.items() if other != name or x is not target]
            others += [("the other out", pair.out) for other, pair in self.pairs.items() if other != name]
            for other, memory in others:
                if overlap(target, memory) or (0 not in target.shape and target.same_elements(memory)):
                    got, remedy = f"{label} overlaps {other}", "Pass arrays that share no memory."
                    raise ValueError(message(self.function, "q, k and out must lie apart", got, remedy))


def _pairs(function: str, out: Any, library: ModuleType, sources: dict[str, Memory], narrow: Sequence[str]) -> dict[str, Pair]:
    """Each of q and k, and where it is written."""
    if out is None:
        return {name: Pair(source, source) for name, source in sources.items()}
    outs = (out,) if len(sources) == 1 else out
    if not isinstance(outs, (tuple, list)) or len(outs) != len(sources):
        raise TypeError(message(function, "out must be a pair of arrays, for q and for k", describe(out)))
    pairs = {}
    for one, (name, source) in zip(outs, sources.items(), strict=True):
        target = output(function, one, library, source.device, source.shape, source.dtype, narrow)
        pairs[name] = Pair(source, source if target.same_elements(source) else target)
    return pairs


def _by_head(function: str, name: str, pair: Pair, head_dim: Any) -> Pair:
    """q or k, whose last axis holds heads one behind the other, with an axis for the heads."""
    width, channels = checks.width(function, "head_dim", head_dim), pair.x.shape[-1]
    if channels % width:
        rule = f"the last axis of {name} must hold whole heads of head_dim = {width}"
        raise ValueError(message(function, rule, f"shape {pair.x.shape}"))

    def divided(memory: Memory) -> Memory:
        *leading, step = memory.strides
        shape = (*memory.shape[:-1], channels // width, width)
        return memory._replace(shape=shape, strides=(*leading, step * width, step))

    x = divided(pair.x)
    return Pair(x, x if pair.out is pair.x else divided(pair.out))


# ---- rows --------------------------------------------------------------------------------------------------------------------


def _target(arrays: Arrays, name: str, validate: bool) -> Target:
    """Batch, rows and channels of q or k, without heads: what positions belong to."""
    memory, axis = arrays.pairs[name].x, arrays.axes[name]
    batch = [other for other in range(len(memory.shape) - arrays.channel_axes) if other != axis][:1]
    kept = [*sorted([*batch, axis]), len(memory.shape) - 1]
    shape, strides = (tuple(values[i] for i in kept) for values in (memory.shape, memory.strides))
    return Target(arrays.function, arrays.library, memory._replace(shape=shape, strides=strides), kept.index(axis), validate)


def _rotary_rows(target: Target, rows: Rows, step: int = 0) -> RotaryRows:
    """With the strides of batch, rows and axes of positions."""
    batch, axis = target.batch_axis, target.seq_axis
    strides, mask_strides = (
        (0 if batch is None else values[batch], values[axis]) for values in (rows.table_strides, rows.mask_strides)
    )
    return RotaryRows(rows.start, rows.table, (*strides, step), rows.mask, mask_strides, *rows[5:])


def _rows(arrays: Arrays, encoding: Any, validate: bool, where: Where) -> RotaryRows:
    """The rows of q and k, which must agree."""
    targets = {name: _target(arrays, name, validate) for name in arrays.pairs}
    target = next(iter(targets.values()))
    rows = _rotary_rows(target, *encoding.resolve(target, where))
    for name, one in targets.items():
        if one.rows != target.rows:
            got, remedy = f"{target.rows} and {one.rows}", "Where heads come after rows, (..., T, H, D), give seq_axis=-3."
            raise ValueError(message(arrays.function, "q and k must have the same number of rows T", got, remedy))
        if rows.vary and one.batch != target.batch:
            got = f"q {arrays.pairs['q'].x.shape} and {name} {arrays.pairs[name].x.shape}"
            rule = "q and k must have the same batch B where positions, offsets or a mask differ between sequences"
            raise ValueError(message(arrays.function, rule, got))
    return rows
