"""Gradients of tables: rows of a gradient are added up by the row of the table that each came from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch

from .._arrays import Memory
from .._arrays import numpy as numpy_arrays
from .._core import rows as rows_of
from . import direct

Tensor = torch.Tensor


class Lookup(NamedTuple):
    """What an embedding is, tensors aside. ``frozen_idx``: the id whose row gets no gradient."""

    encoding: Any
    scale: float
    padding_idx: int | None
    dtype: torch.dtype
    seq_len: int | None
    validate: bool
    sparse: bool
    deterministic: bool
    frozen_idx: int | None


def embed_gradients(
    grad: Tensor,
    tables: list[Any],
    needed: Any,
    ids: Tensor,
    type_ids: Any,
    mask: Any,
    rest: Lookup,
    clips: bool,
    locate: Callable[[Tensor, Any], Tensor],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of the table, of that of token types and of the learned positions, which ``locate`` finds."""
    if ids.dim() == 0:  # a single row
        grad, ids, type_ids = grad[None], ids[None], None if type_ids is None else type_ids[None]
    alive = None if mask is None else on_rows(mask, grad, -2).expand(ids.shape)
    if rest.padding_idx is not None:
        mask = alive = ids != rest.padding_idx if alive is None else (ids != rest.padding_idx) & alive
    if alive is not None:
        grad = torch.where(alive[..., None], grad, 0)
    of_table = of_types = of_learned = None
    if needed[0]:
        count, dtype = tables[0]
        of_table = _scatter(grad, ids, count, dtype, rest, rest.scale, rest.frozen_idx)
    if needed[1]:
        count, dtype = tables[1]
        of_types = _scatter(grad, type_ids, count, dtype, rest._replace(sparse=False))
    if needed[2]:
        count, dtype = tables[2]
        of_learned = by_position(grad, locate(grad, mask), count, clips, -2, None).to(dtype)
    return of_table, of_types, of_learned


def _scatter(
    grad: Tensor, ids: Tensor, count: int, dtype: torch.dtype, rest: Lookup, scale: float = 1.0, frozen: int | None = None
) -> Tensor:
    """Sums of rows by id, (count, D). 16-bit gradients are scaled and added up in float32."""
    flat, rows = ids.reshape(-1).long(), grad.reshape(-1, grad.shape[-1])
    if flat.is_cuda:  # ids that are in no table made NaN rows
        inside = (flat >= 0) & (flat < count)
        flat, rows = torch.where(inside, flat, 0), torch.where(inside[:, None], rows, 0)
    if frozen is not None:
        rows = torch.where((flat != frozen)[:, None], rows, 0)
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    if scale != 1:
        rows = rows * scale
    if rest.sparse:
        return torch.sparse_coo_tensor(flat[None], rows.to(dtype), (count, rows.shape[1]), check_invariants=False)
    if rest.deterministic or torch.are_deterministic_algorithms_enabled():
        summed: Tensor = torch.ops.aten.embedding_dense_backward(rows, flat, count, -1, False)
    else:
        summed = rows.new_zeros((count, rows.shape[1])).index_add(0, flat, rows)
    return summed.to(dtype)


def by_position(grad: Tensor, places: Tensor, count: int, clips: bool, seq_axis: int, mask: Any) -> Tensor:
    """Sums of rows by their positions, (count, D), in float32, or in float64 where the gradient is."""
    kept = None if mask is None else on_rows(mask, grad, seq_axis)
    if not clips:
        inside = (places >= 0) & (places < count)
        kept = inside if kept is None else kept & inside
    if kept is not None:
        grad = torch.where(kept[..., None], grad, 0)
    flat, rows = places.clamp(0, count - 1).reshape(-1), grad.reshape(-1, grad.shape[-1])
    real = torch.float64 if rows.dtype == torch.float64 else torch.float32
    return torch.zeros((count, rows.shape[1]), dtype=real, device=grad.device).index_add(0, flat, rows.to(real))


def on_rows(mask: Any, x: Tensor, seq_axis: int) -> Tensor:
    """A (T,) or (B, T) mask, as broadcast along the leading axes of x."""
    mask = torch.as_tensor(mask, device=x.device)
    count = x.dim() - 1
    axis = seq_axis % x.dim()
    axes = [axis] if mask.dim() == 1 else sorted((axis, 1 if axis == 0 else 0))
    placed: Tensor = mask.reshape([mask.shape[axes.index(i)] if i in axes else 1 for i in range(count)])
    return placed


def _library(x: Tensor) -> ModuleType:
    """The array library that a tensor's memory is seen as."""
    if x.is_cpu:
        return numpy_arrays
    from .._arrays import cupy as cupy_arrays

    return cupy_arrays


def row_positions(x: Tensor, seq_axis: int, offset: Any, positions: Any, cu_seqlens: Any, mask: Any) -> Tensor:
    """The integer position of every row of x, of shape x.shape[:-1]; only the shape and device of x count."""
    function = "add_encoding"
    library = _library(x)
    outline = Memory(None, 0, tuple(x.shape), (0,) * x.dim(), "float32", None if x.is_cpu else x.device.index, True)
    target = rows_of.Target(function, library, outline, seq_axis % x.dim(), False)
    given = {"offset": offset, "positions": positions, "cu_seqlens": cu_seqlens, "mask": mask}
    places = {name: direct.seen(function, name, value, x.device) for name, value in given.items()}
    sizes = x.shape[:-1]
    with contextlib.nullcontext() if x.is_cpu else direct.on_stream(x.device):
        rows = rows_of.resolve(target, **places)
        if rows.table == 0:
            counting = torch.arange(target.rows, device=x.device) + (rows.start >> 32)
            return counting.reshape([-1 if i == target.seq_axis else 1 for i in range(len(sizes))]).expand(sizes)
        table = rows.keepalive[0].array
        found = torch.from_numpy(table) if library is numpy_arrays else torch.utils.dlpack.from_dlpack(table)
        return found.as_strided(sizes, [stride // 8 for stride in rows.table_strides]) >> 32
