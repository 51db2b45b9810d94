"""``apply_rotary``: the expression of most models, with cosines and sines at hand or made anew."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ....encodings import Rotary
from ....verbs import apply_rotary
from ..case import Case
from ..expressions import Array, as_tensor, usual_rotation
from ..workload import CACHED, FASTPE, FLOAT32_ANGLE, SCRATCH, TORCH, Call, Contender, Workload, sampled


class Rotating(Workload):
    """``apply_rotary`` of q (B, heads of q, T, D) and k (B, heads of k, T, D)."""

    roundings = 24

    def __init__(self, case: Case, xp: Any = None) -> None:
        super().__init__(case, xp)
        batch, q_heads, k_heads, rows, width = case.shape
        self.q, self.k = self.array((batch, q_heads, rows, width)), self.array((batch, k_heads, rows, width))
        self.encoding = Rotary()

    @property
    def sampled(self) -> tuple[list[int], list[int]]:
        batch, q_heads, _, rows, width = self.case.shape
        return sampled(batch, rows, q_heads * width)

    def sample(self, array: Array) -> Array:
        sequences, rows = self.sampled
        return array[sequences][:, :, rows]

    @functools.cached_property
    def frequencies(self) -> Array:
        """(D,), each twice."""
        return np.tile(self.encoding.frequencies(self.case.shape[-1])[0], 2)

    @functools.cached_property
    def column(self) -> Array:
        """Positions as (B or 1, 1, T, 1)."""
        positions = self.case.positions
        return positions.reshape(-1, 1, positions.shape[-1], 1)

    @functools.cached_property
    def tables(self) -> tuple[Any, Any]:
        """Cosines and sines (B or 1, 1, T, D) of every position."""
        angles = self.column * self.frequencies
        return self.rounded(np.cos(angles)), self.rounded(np.sin(angles))

    def size(self, right: Array) -> Any:
        return np.abs(right).max()  # a pair's sum may cancel

    def expected(self, before: list[Array]) -> list[Array]:
        batch = self.case.shape[0]
        column = np.broadcast_to(self.column, (batch, *self.column.shape[1:]))
        angles = self.sample(column) * self.frequencies
        return [usual_rotation(np, x, np.cos(angles), np.sin(angles)) for x in before]


def _rotating(work: Rotating) -> Call:
    q, k, encoding, offset = work.q, work.k, work.encoding, work.offset
    return lambda: apply_rotary(q, k, encoding, offset=offset)


def _rotating_cached(work: Rotating) -> Call:
    q, k, xp, tables = work.q, work.k, work.xp, work.tables
    return lambda: (usual_rotation(xp, q, *tables), usual_rotation(xp, k, *tables))


def _rotating_from_scratch(work: Rotating) -> Call:
    q, k, xp = work.q, work.k, work.xp
    column, frequencies = (xp.asarray(one.astype(np.float32)) for one in (work.column, work.frequencies))

    def call() -> Any:
        angles = column * frequencies
        tables = xp.cos(angles).astype(q.dtype), xp.sin(angles).astype(q.dtype)
        return usual_rotation(xp, q, *tables), usual_rotation(xp, k, *tables)

    return call


def _rotating_torch(work: Rotating) -> Call:
    import torch

    q, k, *tables = (as_tensor(array) for array in (work.q, work.k, *work.tables))
    return lambda: (usual_rotation(torch, q, *tables), usual_rotation(torch, k, *tables))


Rotating.contenders = {
    FASTPE: Contender(_rotating),
    CACHED: Contender(_rotating_cached),
    SCRATCH: Contender(_rotating_from_scratch, angle_error=FLOAT32_ANGLE),
    TORCH: Contender(_rotating_torch, torch=True),
}
