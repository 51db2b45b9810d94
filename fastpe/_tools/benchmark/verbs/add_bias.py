"""``add_bias``: a bias of every head, at hand or made anew, added to attention scores."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ....encodings.bias import ALiBi
from ....verbs import add_bias
from ..case import Case
from ..expressions import Array, as_tensor
from ..workload import CACHED, FASTPE, SCRATCH, TORCH, Call, Contender, Workload, sampled


class Biasing(Workload):
    """``add_bias`` of scores (B, H, Tq, Tk); the queries are the last of the keys' positions."""

    roundings = 6

    def __init__(self, case: Case, xp: Any = None) -> None:
        super().__init__(case, xp)
        self.heads, self.queries, self.keys = case.shape[1:]
        self.scores = self.array(case.shape)
        self.bias = ALiBi(self.heads)

    @property
    def sampled(self) -> tuple[list[int], list[int]]:
        return sampled(self.case.shape[0], self.queries, self.heads * self.keys)

    def sample(self, array: Array) -> Array:
        sequences, rows = self.sampled
        return array[sequences][:, :, rows]

    @functools.cached_property
    def distances(self) -> Array:
        """(Tq, Tk): query minus key."""
        return np.arange(self.keys - self.queries, self.keys)[:, None] - np.arange(self.keys)

    @functools.cached_property
    def matrix(self) -> Any:
        """(H, Tq, Tk): the bias of every head."""
        return self.rounded(self.bias.values(self.distances))

    @functools.cached_property
    def future(self) -> Any:
        """(Tq, Tk): the keys after each query."""
        return self.xp.asarray(self.distances < 0)

    def expected(self, before: list[Array]) -> list[Array]:
        return [before[0] + self.bias.values(self.distances[self.sampled[1]])]

    def size(self, right: Array) -> Any:
        return np.abs(right) + np.abs(self.bias.values(self.distances[self.sampled[1]]))  # a sum may cancel

    def expected_causal(self, before: list[Array]) -> list[Array]:
        """The same, with -inf for keys after the query."""
        return [np.where(self.distances[self.sampled[1]] < 0, -np.inf, self.expected(before)[0])]


def _biasing(work: Biasing) -> Call:
    scores, bias = work.scores, work.bias
    return lambda: add_bias(scores, bias)


def _biasing_cached(work: Biasing) -> Call:
    scores, matrix, add = work.scores, work.matrix, work.xp.add
    return lambda: add(scores, matrix, out=scores)


def _biasing_from_scratch(work: Biasing) -> Call:
    scores, xp, queries, keys = work.scores, work.xp, work.queries, work.keys
    slopes = xp.asarray(-np.array(work.bias.slopes_of, np.float32).reshape(-1, 1, 1))

    def call() -> Any:
        distances = xp.arange(keys - queries, keys)[:, None] - xp.arange(keys)
        return xp.add(scores, (slopes * distances.astype(np.float32)).astype(scores.dtype), out=scores)

    return call


def _biasing_torch(work: Biasing) -> Call:
    scores, matrix = as_tensor(work.scores), as_tensor(work.matrix)
    return lambda: scores.add_(matrix)


Biasing.contenders = {
    FASTPE: Contender(_biasing),
    CACHED: Contender(_biasing_cached),
    SCRATCH: Contender(_biasing_from_scratch),
    TORCH: Contender(_biasing_torch, torch=True),
}
