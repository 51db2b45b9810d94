"""``embed``: gathering, scaling and adding, with the encoding at hand or made anew."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ....encodings import Sinusoidal
from ....verbs import embed
from ... import formula
from ..case import Case
from ..expressions import Array, as_tensor, from_scratch, random_values, usual_embedding, usual_embedding_torch
from ..workload import CACHED, FASTPE, FLOAT64_ANGLE, SCRATCH, TORCH, Call, Contender, Workload, on_host

SCALE = 32.0


class Embedding(Workload):
    """``embed`` of ids (B, T) from a table (V, D) into an array (B, T, D), scaled, with the sinusoidal encoding."""

    roundings = 24

    def __init__(self, case: Case, xp: Any = None) -> None:
        super().__init__(case, xp)
        batch, rows, words, width = case.shape
        self.rows, self.width = rows, width
        self.table = random_values((words, width), case.dtype, self.xp)
        self.ids = self.xp.asarray(np.random.default_rng(0).integers(0, words, (batch, rows)))
        self.out = self.output((batch, rows, width))

    @functools.cached_property
    def added(self) -> Any:
        """(T, D): the encoding of every position."""
        return self.rounded(formula.exact(np.arange(self.rows), self.width))

    @property
    def moved(self) -> int:
        return int(2 * self.out.nbytes + self.ids.nbytes)

    def expected(self, before: list[Array]) -> list[Array]:
        _, rows = self.sampled
        words = on_host(self.table[self.xp.asarray(self.sample(on_host(self.ids)))])
        return [words.astype(np.float64) * SCALE + formula.exact(np.array(rows), self.width)]


def _embedding(work: Embedding) -> Call:
    ids, table, out, encoding = work.ids, work.table, work.out, Sinusoidal()
    return lambda: embed(ids, table, encoding, scale=SCALE, out=out)


def _embedding_cached(work: Embedding) -> Call:
    ids, table, out, added, xp = work.ids, work.table, work.out, work.added, work.xp
    return lambda: usual_embedding(ids, table, out, added, SCALE, xp)


def _embedding_from_scratch(work: Embedding) -> Call:
    ids, table, out, xp, width = work.ids, work.table, work.out, work.xp, work.width
    positions = xp.arange(work.rows)
    return lambda: usual_embedding(ids, table, out, from_scratch(positions, width, np.float64, xp).astype(out.dtype), SCALE, xp)


def _embedding_torch(work: Embedding) -> Call:
    ids, table, out, added = (as_tensor(array) for array in (work.ids, work.table, work.out, work.added))
    return lambda: usual_embedding_torch(ids, table, out, added, SCALE)


Embedding.contenders = {
    FASTPE: Contender(_embedding),
    CACHED: Contender(_embedding_cached, angle_error=FLOAT64_ANGLE),
    SCRATCH: Contender(_embedding_from_scratch, angle_error=FLOAT64_ANGLE),
    TORCH: Contender(_embedding_torch, angle_error=FLOAT64_ANGLE, torch=True),
}
