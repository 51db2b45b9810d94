"""Gradients of tables: rows of a gradient are added up by the row of the table that each came from."""

from __future__ import annotations

import functools
from typing import Any

import torch

from .._core.arguments import Target
from .._core.operations import Add, Embed, Scatter
from .._core.where import Where, resolve
from ._grad_state import in_transform, is_traced
from ._packing import pack
from ._tensors import on_stream, outline, shared_where, zeros

Tensor = torch.Tensor


def embed_gradients(
    grad: Tensor, tables: list[Any], needed: Any, ids: Tensor, type_ids: Any, places: list[Any], scatter: Scatter
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of the table, of that of token types and of the learned positions, each told by its rows and dtype."""
    operation, (*where, mask) = scatter.embed, places
    if ids.dim() == 0:  # a single row
        grad, ids, type_ids = grad[None], ids[None], None if type_ids is None else type_ids[None]
    kept = None if mask is None else on_rows(mask, grad, -2).expand(ids.shape)
    if operation.padding_idx is not None:
        mask = kept = ids != operation.padding_idx if kept is None else (ids != operation.padding_idx) & kept
    if kept is not None:
        grad = torch.where(kept[..., None], grad, 0)
    of_table = of_types = of_learned = None
    if needed[0]:
        of_table = _scatter(grad, ids, tables[0], operation, operation.scale, operation.frozen_idx)
    if needed[1]:
        of_types = _scatter(grad, type_ids, tables[1], operation._replace(sparse=False))
    if needed[2]:
        of_learned = by_position(grad, row_positions(grad, -2, [*where, mask]), tables[2], operation.encoding.clips, -2, None)
    return of_table, of_types, of_learned


def _scatter(
    grad: Tensor, ids: Tensor, table: tuple[int, torch.dtype], operation: Embed, scale: float = 1.0, frozen: int | None = None
) -> Tensor:
    """Sums of rows by id, (rows of the table, D). 16-bit gradients are scaled and added up in float32."""
    count, dtype = table
    flat, rows = ids.reshape(-1).long(), grad.reshape(-1, grad.shape[-1])
    if flat.is_cuda:  # ids that are in no table made NaN rows
        inside = (flat >= 0) & (flat < count)
        flat, rows = torch.where(inside, flat, 0), torch.where(inside[:, None], rows, 0)
    if frozen is not None:
        rows = torch.where((flat != frozen)[:, None], rows, 0)
    real = _real(rows)
    if scale != 1:
        rows = rows.to(real) * scale
    if operation.sparse:
        return torch.sparse_coo_tensor(flat[None], rows.to(dtype), (count, rows.shape[1]), check_invariants=False)
    if operation.deterministic or torch.are_deterministic_algorithms_enabled():
        summed: Tensor = torch.ops.aten.embedding_dense_backward(rows.to(real), flat, count, -1, False)
        return summed.to(dtype)
    return _added_up(rows, flat, count, dtype)


def by_position(
    grad: Tensor, positions: Tensor, table: tuple[int, torch.dtype], clips: bool, seq_axis: int, mask: Any
) -> Tensor:
    """Sums of rows by their positions, (rows of the table, D)."""
    count, dtype = table
    kept = None if mask is None else on_rows(mask, grad, seq_axis)
    if not clips:
        inside = (positions >= 0) & (positions < count)
        kept = inside if kept is None else kept & inside
    if kept is not None:
        grad = torch.where(kept[..., None], grad, 0)
    flat, rows = positions.clamp(0, count - 1).reshape(-1), grad.reshape(-1, grad.shape[-1])
    return _added_up(rows, flat, count, dtype)


def _real(rows: Tensor) -> torch.dtype:
    """In which type rows are added up."""
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def _added_up(rows: Tensor, index: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Sums of rows by index, (count, D), in float32, or in float64 where the rows are, rounded once to ``dtype``.

    Large tables on the CPU are touched only where a row falls. (8, 128) rows of bfloat16, 512 wide, into 32,000 take 0.5 ms where PyTorch
    adds them up by itself, and 0.7 in its own gradient, which rounds every sum (AMD EPYC, Zen 5; `python -m bench.claims --only tensors`).
    """
    shape, real = (count, rows.shape[1]), _real(rows)
    if not rows.is_cpu or is_traced() or in_transform():
        return rows.new_zeros(shape, dtype=real).index_add(0, index, rows.to(real)).to(dtype)
    if rows.dtype == dtype == real:
        return zeros(shape, dtype).index_add_(0, index, rows)
    if rows.dtype == dtype and shape[1] >= 16 and _rounds_once(dtype):
        # PyTorch sorts contiguous rows of 16 elements or more where it has FBGEMM; else it copies the whole table to float32.
        return zeros(shape, dtype).index_add_(0, index, rows.contiguous())
    found, place = torch.unique(index, return_inverse=True)
    sums = rows.new_zeros((found.shape[0], shape[1]), dtype=real).index_add_(0, place, rows.to(real))
    return zeros(shape, dtype).index_copy_(0, found, sums.to(dtype))


@functools.lru_cache(maxsize=16)
def _rounds_once(dtype: torch.dtype) -> bool:
    """Whether PyTorch adds up rows of 16-bit elements in float32, as some versions do."""
    half = torch.finfo(dtype).eps / 2  # 1 + half + half is 1 where every sum is rounded
    rows = torch.tensor([[1.0], [half], [half]], dtype=dtype, device="cpu").expand(3, 16).contiguous()
    made = torch.zeros(2, 16, dtype=dtype, device="cpu").index_add_(0, torch.ones(3, dtype=torch.long, device="cpu"), rows)
    return bool((made[1] > 1).all())


def on_rows(mask: Any, x: Tensor, seq_axis: int) -> Tensor:
    """A (T,) or (B, T) mask, as broadcast along the leading axes of x."""
    mask = torch.as_tensor(mask, device=x.device)
    count = x.dim() - 1
    axis = seq_axis % x.dim()
    axes = [axis] if mask.dim() == 1 else sorted((axis, 1 if axis == 0 else 0))
    spread: Tensor = mask.reshape([mask.shape[axes.index(i)] if i in axes else 1 for i in range(count)])
    return spread


def row_positions(x: Tensor, seq_axis: int, places: list[Any], function: str = "add_encoding") -> Tensor:
    """The integer position of every row of x, of shape x.shape[:-1]; only the shape and device of x count."""
    offset, positions, cu_seqlens, mask = places
    where = Where(offset, positions, cu_seqlens, mask, seq_axis)
    if not is_traced():
        return positions_of(x, where, function)
    _, _, *packed = pack(Add(None), (x,), where, False, writes=1)
    made: Tensor = torch.ops.fastpe.row_positions.default(x, *packed)
    return made


def positions_of(x: Tensor, where: Where, function: str = "add_encoding") -> Tensor:
    """As ``row_positions``, from the memory of what says where rows stand."""
    target = Target(function, *outline(x), where.seq_axis % x.dim(), False)
    shared = shared_where(function, where, x.device)
    sizes = x.shape[:-1]
    with on_stream(x.device):
        rows = resolve(target, shared, tabulates=True)
        if rows.table == 0:
            counting = torch.arange(target.rows, device=x.device) + (rows.start >> 32)
            return counting.reshape([-1 if i == target.seq_axis else 1 for i in range(len(sizes))]).expand(sizes)
        table = rows.keepalive[0].array
        shown = torch.from_numpy(table) if x.is_cpu else torch.utils.dlpack.from_dlpack(table)
        return shown.as_strided(sizes, [stride // 8 for stride in rows.table_strides]) >> 32
