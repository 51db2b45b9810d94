"""The verbs on Dask arrays: lazy, chunk by chunk, with the bits of the whole. Dask may keep a chunk or make it anew: none is written."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import delayed
from dask.layers import ArrayBlockIdDep

from ._arrays import dispatch
from ._core.checks import message
from ._core.operations import AddBias, Embed, Encode, Resample, Spec
from ._core.parts import outline, phantom, refuse_open_length, rows_beside, settled, stand_in
from ._core.run import plain_where
from ._core.run import run as run_on_memory
from ._core.where import Where, row_axes

__all__ = ["run"]


def run(operation: Any, arrays: tuple[Any, ...], where: Any, out: Any, validate: bool) -> Any:
    """Run a verb's operation later, on Dask arrays. All errors but those that depend on lazy values are raised now."""
    function, where = operation.function, plain_where(operation, where)
    if out is not None:
        remedy = "The result is a new array: write it with dask.array.store(result, target)."
        raise TypeError(message(function, "out must be None where an array is a Dask array", type(out).__name__, remedy))
    if isinstance(operation, Encode):
        return _encoded(operation, da.asarray(arrays[1]), validate)
    if isinstance(operation, Embed):
        return _embedded(operation, arrays, where, validate)
    count = operation.writes
    targets, others = arrays[:count], arrays[count:]
    if isinstance(operation, Resample):
        raise TypeError(message(function, "table must lie in memory", "a Dask array", "Pass table.compute()."))
    if not all(x is None or isinstance(x, da.Array) for x in targets):
        got = " and ".join(f"{name} of {type(x).__module__}" for name, x in zip(operation.names, targets, strict=False))
        remedy = "Pass dask.array.asarray(...) of the one in memory, or the other's compute()."
        raise TypeError(message(function, "all arrays must be Dask arrays, or all in memory", got, remedy))
    like = [None if x is None else _like(operation, name, x) for name, x in zip(operation.names, targets, strict=False)]
    operation.check((*like, *map(stand_in, others)), _on_host(function, where), None, validate)
    empty, slots = (None,) * len(arrays), range(count, len(arrays))
    made = [_mapped(operation, where, x, like[i], empty, (i, *slots), others) for i, x in enumerate(targets) if x is not None]
    return made[0] if len(made) == 1 else tuple(made)


def _embedded(operation: Embed, arrays: tuple[Any, ...], where: Where, validate: bool) -> Any:
    function, (table, ids, kinds, *tables) = operation.function, arrays
    words, ids, padding = dispatch.outline(function, "table", table), da.asarray(ids), operation.padding_idx
    if padding is not None:
        where = where._replace(mask=(ids != padding) if where.mask is None else (ids != padding) & da.asarray(where.mask))
    made = phantom(*operation.result((Spec(words.shape, words.dtype), Spec(_shape(function, "ids", ids), "int64"))))
    operation.check((table, *map(stand_in, (ids, kinds)), *tables), _on_host(function, where), made, validate)
    operation = operation._replace(padding_idx=None)
    return _mapped(operation, where, ids, made, (table, None, None, *tables), (1, 2), (kinds,))


def _encoded(operation: Encode, positions: Any, validate: bool) -> Any:
    refuse_open_length(operation)
    ndim = positions.ndim
    front = ndim + 1 - len(operation.shape(_shape(operation.function, "positions", positions)))
    example = np.zeros(positions.shape[:front] + (1,) * (ndim - front), positions.dtype)
    made = operation.check((None, example), None, None, validate).result
    positions, index = positions.rechunk(dict.fromkeys(range(front), -1)), (*range(front, ndim), ndim)
    more = {"new_axes": {ndim: operation.dim}, "concatenate": True, "dtype": made.dtype, "meta": made[(slice(0),) * made.ndim]}
    held = _held(operation, (None, None), (1,), None, None)
    return da.blockwise(_run, index, held, None, positions, tuple(range(ndim)), *[None] * 6, **more)


# ---- chunks and where their rows stand ---------------------------------------------------------------------------------------


def _mapped(operation: Any, where: Any, x: Any, made: Any, arrays: Any, slots: Sequence[int], beside: Any) -> Any:
    """The operation on each chunk of x and of what is beside it, which take these slots among its arrays."""
    shape, axes, aligned, counts = made.shape, tuple(range(x.ndim)), [None] * 4, True
    if isinstance(where, Where):
        operation, where = _settled(operation, where, shape)
        target, counts = outline(operation.function, where, shape), where.positions is None
        by_sequence = (target.batch_axis, target.seq_axis) if operation.in_place else axes
        rows = [*rows_beside(target, operation[0], where), *((value, by_sequence) for value in beside)]
        aligned = [one for value, own in rows for one in _aligned(value, own, x)]
        where = where._replace(positions=None, mask=None)
    cut = (shape, [np.cumsum((0, *sizes)).tolist() for sizes in x.chunks]) if counts else None
    more = {"new_axes": dict(enumerate(shape[x.ndim :], x.ndim)), "align_arrays": False, "concatenate": True}
    more |= {"dtype": made.dtype, "meta": x._meta if made.ndim == x.ndim else np.empty((0,) * made.ndim, made.dtype)}
    held, blocks = _held(operation, arrays, slots, where, cut), ArrayBlockIdDep(x.chunks)
    return da.blockwise(_run, tuple(range(made.ndim)), held, None, x, axes, blocks, axes, *aligned, **more)


def _held(*common: Any) -> Any:
    """What all tasks have in common, as one key of the graph: tables are not sent with each of them."""
    return delayed(partial(_at, *common), traverse=False, pure=True)


def _run(function: Any, *blocks: Any) -> Any:
    return function(*blocks)


def _at(operation: Any, arrays: Any, slots: Sequence[int], where: Any, cut: Any, x: Any, block: Any, *beside: Any) -> Any:
    """The operation on a chunk, whose numbers say where its rows stand, and on what is beside it."""
    out, (positions, mask, *others) = None, beside
    if cut is not None:
        shape, own = cut[0], [(begins[number], begins[number + 1]) for begins, number in zip(cut[1], block, strict=True)]
        where = operation.part(where, shape, own + [(0, size) for size in shape[len(own) :]])[1]
    if isinstance(where, Where):
        where = where._replace(positions=positions, mask=mask)
    if operation.in_place:
        library, memory = dispatch.memory(operation.function, "x", x)
        out = library.empty(memory.shape, memory.dtype, memory.device)
    given = dict(zip(slots, (x, *others), strict=True))
    return run_on_memory(operation, tuple(given.get(i, array) for i, array in enumerate(arrays)), where, out)


def _aligned(value: Any, axes: Any, x: Any) -> list[Any]:
    """An array whose last axes are these of x, in chunks like x's, and the numbers of its axes; a number as it is."""
    if np.ndim(value) == 0:
        return [value, None]
    value, axes = da.asarray(value), axes[: np.ndim(value)]
    front = value.ndim - len(axes)
    return [value.rechunk((-1,) * front + tuple(x.chunks[axis] for axis in axes)), (*range(-front, 0), *axes)]


def _settled(operation: Any, where: Where, shape: tuple[int, ...]) -> tuple[Any, Where]:
    """The call as parts are made of it; rows of a lazy mask are counted over its chunks."""
    mask = where.mask
    is_lazy = isinstance(where.positions, da.Array) or isinstance(mask, da.Array)
    if not is_lazy or not (operation[0] is None or operation[0].counts):
        return settled(operation, where, shape)
    refuse_open_length(operation)
    if isinstance(where.positions, da.Array):
        return operation, where
    operation, where = settled(operation, where._replace(mask=None), shape)
    if where.positions is None and operation[0] is not None:
        target, offset = outline(operation.function, where, shape), np.asarray(where.offset)
        counts = da.maximum(mask.astype("int64").cumsum(row_axes(target, mask.ndim).index(target.seq_axis)) - 1, 0)
        if offset.ndim:
            batch_last = target.seq_axis == 0
            offset = offset if batch_last else offset[:, None]
            counts = counts if mask.ndim == 2 else counts[:, None] if batch_last else counts[None]
        where = where._replace(offset=0, positions=counts + offset)
    return operation, where._replace(mask=mask)


# ---- what is refused now -----------------------------------------------------------------------------------------------------


def _like(operation: Any, name: str, x: Any) -> Any:
    """What checks look at of a Dask array, which is chunked along its rows only (scores: not along their heads)."""
    axis, what = (-3, "heads") if isinstance(operation, AddBias) else (-1, "channels")
    if x.ndim >= -axis and x.numblocks[axis] > 1:
        rule, got = f"{name} must not be chunked along its {what}", f"chunks {x.chunks[axis]} along axis {axis}"
        raise ValueError(message(operation.function, rule, got, f"Pass {name}.rechunk({{{axis}: -1}})."))
    return phantom(_shape(operation.function, name, x), str(x.dtype), operation.names.index(name))


def _shape(function: str, name: str, x: Any) -> Any:
    if any(size != size for size in x.shape):
        rule, remedy = f"{name} must have known chunk sizes", f"Call {name}.compute_chunk_sizes() first."
        raise ValueError(message(function, rule, f"chunks {x.chunks}", remedy))
    return x.shape


def _on_host(function: str, where: Any) -> Any:
    """Where rows stand, with stand-ins for lazy positions and a lazy mask; what else is lazy is refused."""
    lazy_may_be = ("positions", "mask") if isinstance(where, Where) and where.cu_seqlens is None else ()
    for name, value in zip(where._fields, where, strict=True):
        if isinstance(value, da.Array) and name not in lazy_may_be:
            raise TypeError(message(function, f"{name} must lie in memory", "a Dask array", f"Pass {name}.compute()."))
    return where._make(map(stand_in, where))
