"""Claims of ``add_bias``."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import numpy as np

import fastpe
from fastpe._tools.benchmark.expressions import random_values
from fastpe._tools.benchmark.verbs import Biasing
from fastpe._tools.benchmark.workload import FASTPE, TORCH

from .. import contenders, registry
from ..registry import MB
from .table import Call, Claim, Measuring, at_least, at_most, chosen, milliseconds

TARGETS = {"float32": 0.90, "bfloat16": 0.75}


def bias(measuring: Measuring) -> Iterator[Claim]:
    """``add_bias(scores, ALiBi or T5Bias)``: share of the roofline; over torch adding a cached bias of every head, and masking; memory."""
    for case in registry.CLAIMED["bias"](measuring.shrink):
        work = Biasing(case)
        table = random_values((32, work.heads), "float32") * np.float32(1e-4)
        t5 = fastpe.T5Bias(table, bidirectional=False)
        calls: dict[str, Call] = {
            "alibi": work.call(FASTPE),
            "t5": lambda x=work.scores, t5=t5: fastpe.add_bias(x, t5),
            "causal": contenders.CAUSAL.make(work),
            **chosen(work, {"torch": work.contenders[TORCH], "torch causal": contenders.CAUSAL_TORCH}),
        }
        medians, roofline = measuring.over_roofline(calls, work.scores.nbytes)
        detail, what = milliseconds(medians), f"{case.dtype} {case.shape}"
        for name in ("alibi", "t5"):
            yield at_least(f"{what} {name}: roofline", roofline / medians[name], TARGETS[case.dtype], detail)
        if "torch" in medians:
            yield at_least(f"{what}: over torch's cached bias", medians["torch"] / medians["alibi"], 1.2)
            yield at_least(f"{what} causal: over torch's, then masked", medians["torch causal"] / medians["causal"], 3.0)
        yield at_most(f"{what}: memory of a call, MB", _peak(work), 4.0)
        del work, calls
        gc.collect()


def _peak(work: Biasing) -> float:
    """MB that NumPy and Python allocate for a call that finds no cache filled."""
    fastpe.clear_caches()
    tracemalloc.start()
    fastpe.add_bias(work.scores, work.bias)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / MB
