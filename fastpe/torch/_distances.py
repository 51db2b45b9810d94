"""Where queries and keys stand, as tensors, and sums over all scores at the same distance: the adjoint of adding a bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Tensor = torch.Tensor


def standing(shape: Any, device: torch.device, q_offset: Any, q_positions: Any, k_positions: Any) -> tuple[Tensor, Tensor]:
    """Positions of queries and keys, int64 (Tq,) or (B, Tq), and (Tk,) or (B, Tk)."""

    def as_tensor(value: Any) -> Tensor:
        return torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value), device=device).to(torch.int64)

    rows, columns = shape[-2:]
    keys = torch.arange(columns, device=device) if k_positions is None else as_tensor(k_positions)
    if q_positions is not None:
        return as_tensor(q_positions), keys
    if q_offset is None and k_positions is not None:
        return keys[..., columns - rows :], keys
    start = columns - rows if q_offset is None else q_offset
    counted = torch.arange(rows, device=device)
    if isinstance(start, (int, torch.SymInt)):
        from_start: Any = counted + start
        return from_start, keys
    start = as_tensor(start)
    return (counted + start[:, None] if start.dim() else counted + start), keys


def hidden(queries: Tensor, keys: Tensor) -> Tensor:
    """Where the key comes after the query, as broadcast along (..., H, Tq, Tk)."""
    later = keys[..., None, :] > queries[..., :, None]
    return later if queries.dim() == keys.dim() == 1 else later[:, None]


def by_distance(grad: Tensor, queries: Tensor, keys: Tensor, span: tuple[int, int], affine: bool) -> Tensor:
    """Sums over all that is at the same distance, (H, high - low + 1)."""
    low, high = span
    heads, rows, columns = grad.shape[-3:]
    real = torch.float64 if grad.dtype == torch.float64 else torch.float32
    total = torch.zeros((heads, high - low + 1), dtype=real, device=grad.device)
    if grad.numel() == 0:
        return total
    if queries.dim() == keys.dim() == 1:
        grad = grad.reshape(-1, heads, rows, columns).sum(0, dtype=real)
        if affine:
            return _by_diagonal(grad, queries[0], low, high, total)
        places = (keys[None, :] - queries[:, None]).clamp(low, high) - low
        return total.index_add(1, places.reshape(-1), grad.reshape(heads, -1))
    batch = grad.shape[0]
    grad = grad.reshape(batch, -1, heads, rows, columns).sum(1, dtype=real)
    places = ((keys[..., None, :] - queries[..., :, None]).clamp(low, high) - low).expand(batch, rows, columns)
    return total.index_add(1, places.reshape(-1), grad.transpose(0, 1).reshape(heads, -1))


_DIAGONAL_BYTES = 1 << 23


def _by_diagonal(grad: Tensor, start: Tensor, low: int, high: int, total: Tensor) -> Tensor:
    """Of (H, Tq, Tk), whose rows stand at start + i: rows padded by one more than they are shift by one when they are read one shorter."""
    heads, rows, columns = grad.shape
    step = max(1, min(rows, _DIAGONAL_BYTES // (8 * heads * max(columns, 64))))
    for first in range(0, rows, step):
        part = grad[:, first : first + step].flip(1)
        count = part.shape[1]
        width = columns + count
        padded = torch.nn.functional.pad(part, (0, count)).reshape(heads, -1)
        sums = padded[:, : count * (width - 1)].reshape(heads, count, width - 1).sum(1)
        distances = torch.arange(width - 1, device=grad.device) - (count - 1 + first) - start
        total = total.index_add(1, distances.clamp(low, high) - low, sums)
    return total
