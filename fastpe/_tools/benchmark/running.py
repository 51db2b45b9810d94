"""One line of the table: prepare, check, time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..._backends import cuda
from ..machine import is_small
from .case import Case
from .clock import Timed, cuda_seconds_per_call, rounds, seconds_per_call
from .probes import bandwidth, host_probes
from .spread import paired, span
from .verbs import prepare
from .workload import FASTPE, Contender, Workload, WrongResult

SECONDS, QUICK_SECONDS, SMALL_SECONDS = 4.0, 1.0, 0.02  # a line; all that take part have equal parts of it
MOST_ROUNDS = 101
PROBE = "add_one_"

Result = dict[str, Any]


def devices() -> tuple[str, ...]:
    """The host, and the GPU where there is one that can be used."""
    return ("cpu",) if cuda.problem() is not None else ("cpu", "cuda")


def measure_line(case: Case, threads: int, quick: bool = False) -> Result:
    """Time the contenders of the command's table. What fails has its reason in ``failures``, a wrong result of fastpe too."""
    seconds = SMALL_SECONDS if is_small() else QUICK_SECONDS if quick else SECONDS
    try:
        work = prepare(case)
        contenders = {name: one for name, one in work.contenders.items() if _suits(name, one, work)}
        return measure(work, contenders, threads, seconds / (len(contenders) + 3), MOST_ROUNDS)
    except Exception as error:  # such as memory that does not suffice
        return {**_named(case), "seconds": {}, "spreads": {}, "failures": {FASTPE: reason(error)}, "speedups": {}}


def _suits(name: str, contender: Contender, work: Workload) -> bool:
    """Whether a contender can run; NumPy computes 16-bit types in software, a hundred times slower."""
    in_software = work.xp is np and work.dtype.itemsize == 2 and name != FASTPE and not contender.torch
    return not in_software and not contender.missing(work.xp)


def measure(work: Workload, contenders: Mapping[str, Contender], threads: int, seconds: float, most: int) -> Result:
    """Time contenders and the roofline, interleaved, each for so many seconds and rounds at most.

    WrongResult if fastpe's result is wrong; any other contender that fails has its reason in ``failures``.
    """
    case = work.case
    clock = seconds_per_call if case.device == "cpu" else cuda_seconds_per_call
    timed: dict[str, Timed] = {}
    failures: dict[str, str] = {}
    for name, contender in contenders.items():
        try:
            call = contender.make(work)
            work.check(name, contender, call)
            timed[name] = Timed(call, work.spend, clock)
        except Exception as error:
            if name == FASTPE and isinstance(error, WrongResult):
                raise
            failures[name] = reason(error)
    probes = {f"{PROBE}{name}": Timed(call, clock=clock) for name, call in _probes(work, threads).items()}

    late: dict[str, Exception] = {}
    found = rounds({**timed, **probes}, seconds, most, late.__setitem__)
    if not found.keys() & probes.keys():
        raise next(error for name, error in late.items() if name in probes)
    failures |= {name: reason(error) for name, error in late.items() if name in timed}
    return {**_named(case), "bytes": work.moved, **figures(found, work.moved), "failures": failures}


def figures(found: Mapping[str, Mapping[int, float]], moved: int) -> Result:
    """What the rounds of fastpe, its contenders and ``x += 1`` say: medians, spreads, and ratios of the same rounds."""
    spans = {name: span([*seconds.values()]) for name, seconds in found.items()}
    fastest = min((name for name in found if name.startswith(PROBE)), key=lambda name: spans[name].middle)
    roofline = bandwidth(moved // 2, [spans[fastest].middle])
    result: Result = {
        "seconds": {name: one.middle for name, one in spans.items()},
        "spreads": spans,
        "fastest": fastest,
        "roofline_bandwidth": roofline,
        "speedups": {},
    }
    if FASTPE in found:
        result["share_of_roofline"] = moved / spans[FASTPE].middle / roofline
        ratios = {name: paired(found[name], found[FASTPE]) for name in found if name != FASTPE and not name.startswith(PROBE)}
        result["speedups"] = {name: ratio.middle for name, ratio in ratios.items()}
        result["spreads_of_speedups"] = ratios
        result["over_add_one"] = paired(found[FASTPE], found[fastest])
    return result


def _named(case: Case) -> Result:
    return {"operation": case.operation, "shape": list(case.shape), "dtype": case.dtype, "device": case.device}


def reason(error: Exception) -> str:
    """Why a contender failed, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _probes(work: Workload, threads: int) -> dict[str, Any]:
    """Ways to read and write half as many bytes as fastpe's call moves."""
    count = max(work.moved // 8, 1)
    if work.case.device == "cpu":
        return host_probes(np.zeros(count, np.float32), threads)
    ones = work.xp.zeros(count, "float32")
    return {"cupy": lambda: work.xp.add(ones, 1, out=ones)}
