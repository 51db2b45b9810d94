"""``add_encoding``: a cached table, or sines and cosines made anew, added to x."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ....encodings import Sinusoidal
from ....verbs import add_encoding
from ... import formula
from ..case import Case
from ..expressions import Array, as_tensor, from_scratch
from ..workload import CACHED, FASTPE, FLOAT64_ANGLE, SCRATCH, TORCH, Call, Contender, Workload


class Adding(Workload):
    """``add_encoding`` of x (B, T, D)."""

    roundings = 4

    def __init__(self, case: Case, xp: Any = None) -> None:
        super().__init__(case, xp)
        self.x = self.array(case.shape)
        self.width = case.shape[-1]

    @functools.cached_property
    def table(self) -> Any:
        """The encoding of every position up to the last."""
        return self.rounded(from_scratch(np.arange(int(self.case.positions.max()) + 1), self.width, np.float64))

    def rows_of(self, table: Any) -> Callable[[], Any]:
        """What looks up the rows of the case's positions in a table."""
        start, rows = self.case.offset, self.case.shape[1]
        if np.ndim(start):
            starts = self.xp.asarray(start)
            if not hasattr(table, "get") and not isinstance(table, np.ndarray):
                starts = as_tensor(starts)
            return lambda: table[starts][:, None]
        return lambda: table[start : start + rows]

    def sample_positions(self) -> Array:
        """(chosen sequences, chosen rows)."""
        return np.broadcast_to(self.case.positions, self.case.shape[:2])[np.ix_(*self.sampled)]

    def broadcast(self, result: Array) -> Array:
        return np.broadcast_to(result, self.case.shape)

    def expected(self, before: list[Array]) -> list[Array]:
        return [before[0] + formula.exact(self.sample_positions(), self.width)]


def _adding(work: Adding) -> Call:
    x, encoding, offset = work.x, Sinusoidal(), work.offset
    return lambda: add_encoding(x, encoding, offset=offset)


def _adding_cached(work: Adding) -> Call:
    x, add, rows = work.x, work.xp.add, work.rows_of(work.table)
    return lambda: add(x, rows(), out=x)


def adding_from_scratch(dtype: Any) -> Callable[[Adding], Call]:
    """x plus sines and cosines of angles of a type, made in each call."""

    def make(work: Adding) -> Call:
        x, xp, width, positions = work.x, work.xp, work.width, work.xp.asarray(work.case.positions)
        return lambda: xp.add(x, from_scratch(positions, width, dtype, xp).astype(x.dtype, copy=False), out=x)

    return make


def _adding_torch(work: Adding) -> Call:
    x, rows = as_tensor(work.x), work.rows_of(as_tensor(work.table))
    return lambda: x.add_(rows())


Adding.contenders = {
    FASTPE: Contender(_adding),
    CACHED: Contender(_adding_cached, angle_error=FLOAT64_ANGLE),
    SCRATCH: Contender(adding_from_scratch(np.float64), angle_error=FLOAT64_ANGLE),
    TORCH: Contender(_adding_torch, angle_error=FLOAT64_ANGLE, torch=True),
}
