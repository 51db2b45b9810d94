"""Contenders of this repository's benchmarks, beside those of ``python -m fastpe bench``: other results and other ways to compute them."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastpe
from fastpe._tools.benchmark.expressions import as_tensor
from fastpe._tools.benchmark.verbs import Adding, Biasing
from fastpe._tools.benchmark.verbs.add_encoding import adding_from_scratch
from fastpe._tools.benchmark.workload import FLOAT32_ANGLE, Call, Contender

# ---- add_encoding ------------------------------------------------------------------------------------------------------------


class AddingAndEncoding(Adding):
    """Adds in place, into another array, or returns the encoding alone."""

    def alone(self, before: list[Any]) -> list[Any]:
        """The encoding without x."""
        return [self.expected([np.zeros_like(before[0])])[0]]

    def unchanged(self, before: list[Any]) -> list[Any]:
        """The sum, and x as it was."""
        return [*self.expected(before), before[0]]


def fastpe_out(work: AddingAndEncoding) -> Call:
    x, out, offset = work.x, work.output(work.case.shape), work.offset
    return lambda: (fastpe.add_encoding(x, offset=offset, out=out), x)


def fastpe_encode(work: AddingAndEncoding) -> Call:
    positions, width = work.xp.asarray(work.case.positions), work.width
    out = work.output((*positions.shape, width))
    return lambda: fastpe.encode(positions, width, out=out)


OUT = Contender(fastpe_out, expected="unchanged")
ENCODE = Contender(fastpe_encode, expected="alone")
SCRATCH_FLOAT32 = Contender(adding_from_scratch(np.float32), angle_error=FLOAT32_ANGLE)

# ---- add_bias ----------------------------------------------------------------------------------------------------------------


def causal(work: Biasing) -> Call:
    scores, bias = work.scores, work.bias
    return lambda: fastpe.add_bias(scores, bias, causal=True)


def causal_cached(work: Biasing) -> Call:
    scores, matrix, future, xp = work.scores, work.matrix, work.future, work.xp
    return lambda: (xp.copyto(xp.add(scores, matrix, out=scores), -np.inf, where=future), scores)[1:]


def causal_torch(work: Biasing) -> Call:
    import torch

    scores, matrix, future = as_tensor(work.scores), as_tensor(work.matrix), as_tensor(work.future)
    return lambda: scores.add_(matrix).masked_fill_(future, -torch.inf)


CAUSAL = Contender(causal, expected="expected_causal")
CAUSAL_CACHED = Contender(causal_cached, expected="expected_causal")
CAUSAL_TORCH = Contender(causal_torch, expected="expected_causal", torch=True)
