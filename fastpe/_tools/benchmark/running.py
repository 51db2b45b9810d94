"""One line of the table: prepare, check, time."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..._backends import cuda
from ..machine import is_small
from . import races
from .clock import Timed, cuda_seconds_per_call, interleave, seconds_per_call
from .probes import bandwidth, host_probes
from .races import FASTPE, Case, Race

SECONDS, QUICK_SECONDS, SMALL_SECONDS = 4.0, 1.0, 0.02  # a line; all that take part have equal shares
MOST_ROUNDS = 101

Result = dict[str, Any]


def devices() -> tuple[str, ...]:
    """The host, and the GPU where there is one that can be used."""
    return ("cpu",) if cuda.problem() is not None else ("cpu", "cuda")


def measure(case: Case, threads: int, quick: bool = False) -> Result:
    """Time fastpe, its rivals and the roofline in turns; WrongResult if one of them computes something else."""
    race = races.prepare(case)
    for name in race.calls:
        races.check(case, race, name)
    clock = seconds_per_call if case.device == "cpu" else cuda_seconds_per_call
    spend = races.Spending(race.restore)
    timed = {name: Timed(call, spend, clock) for name, call in race.calls.items()}
    probes = {f"add_one_{name}": Timed(call, clock=clock) for name, call in _probes(case, race, threads).items()}
    seconds = SMALL_SECONDS if is_small() else QUICK_SECONDS if quick else SECONDS
    every = {**timed, **probes}
    medians = interleave(every, seconds / len(every), MOST_ROUNDS)
    roofline = bandwidth(race.moved // 2, (medians[name] for name in probes))
    ours = medians[FASTPE]
    return {
        "operation": case.operation,
        "shape": list(case.shape),
        "dtype": case.dtype,
        "device": case.device,
        "seconds": medians,
        "bytes": race.moved,
        "roofline_bandwidth": roofline,
        "share_of_roofline": race.moved / ours / roofline,
        "speedups": {name: medians[name] / ours for name in race.calls if name != FASTPE},
    }


def _probes(case: Case, race: Race, threads: int) -> dict[str, Any]:
    """Ways to read and write half as many bytes as fastpe's call moves."""
    count = max(race.moved // 8, 1)
    if case.device == "cpu":
        return host_probes(np.zeros(count, np.float32), threads)
    import cupy

    ones = cupy.zeros(count, "float32")
    return {"cupy": lambda: cupy.add(ones, 1, out=ones)}
