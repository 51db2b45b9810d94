"""Where queries and keys stand, as tensors, and sums over all scores at the same distance: the adjoint of adding a bias."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from .._core.operations import Between

Tensor = torch.Tensor


class Standing(NamedTuple):
    """Positions of queries and keys, int64 (Tq,) or (B, Tq), and (Tk,) or (B, Tk); whether both just count, all sequences alike."""

    queries: Tensor
    keys: Tensor
    counts: bool

    def visible(self, grad: Tensor, causal: bool) -> Tensor:
        """A gradient (..., H, Tq, Tk) without those of scores that ``causal`` hid, whose key comes after the query."""
        if not causal:
            return grad
        later = self.keys[..., None, :] > self.queries[..., :, None]
        return grad.masked_fill(later if later.dim() == 2 else later[:, None], 0)


def standing(shape: Any, device: torch.device, where: Between) -> Standing:
    """Where the queries and keys of scores of this shape stand."""

    def as_tensor(value: Any) -> Tensor:
        return torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value), device=device).to(torch.int64)

    q_offset, q_positions, k_positions = where
    rows, columns = shape[-2:]
    keys = torch.arange(columns, device=device) if k_positions is None else as_tensor(k_positions)
    if q_positions is not None:
        return Standing(as_tensor(q_positions), keys, False)
    if q_offset is None and k_positions is not None:
        return Standing(keys[..., columns - rows :], keys, False)
    start = columns - rows if q_offset is None else q_offset
    counted = torch.arange(rows, device=device)
    if not isinstance(start, (int, torch.SymInt)):
        start = as_tensor(start)
        start = start[:, None] if start.dim() else start
    queries = counted + start
    return Standing(queries, keys, k_positions is None and queries.dim() == 1)


def by_distance(grad: Tensor, at: Standing, span: tuple[int, int]) -> Tensor:
    """Sums over all that is at the same distance, (H, high - low + 1)."""
    low, high = span
    heads, rows, columns = grad.shape[-3:]
    real = torch.float64 if grad.dtype == torch.float64 else torch.float32
    total = torch.zeros((heads, high - low + 1), dtype=real, device=grad.device)
    if grad.numel() == 0:
        return total
    sequences = 1 if at.queries.dim() == at.keys.dim() == 1 else grad.shape[0]
    sums = grad.reshape(sequences, -1, heads, rows, columns).sum(1, dtype=real)
    if at.counts:
        return _by_diagonal(sums[0], at.queries[0], low, high, total)
    distances = at.keys[..., None, :] - at.queries[..., :, None]
    places = (distances.clamp(low, high) - low).expand(sequences, rows, columns)
    return total.index_add(1, places.reshape(-1), sums.transpose(0, 1).reshape(heads, -1))


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
