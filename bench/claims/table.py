"""A claim, and how its figures are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastpe._tools.benchmark.clock import Timed, interleave
from fastpe._tools.benchmark.probes import host_probes
from fastpe._tools.benchmark.workload import Contender, Workload

Call = Callable[[], Any]
MOST_ROUNDS = 61
MOST_PROBED = 1 << 30  # bytes that x += 1 runs over; for larger arrays its time is scaled


class Claim(NamedTuple):
    """A measured figure and its target, if it has one."""

    what: str
    figure: float
    target: float | None
    at_least: bool
    detail: str

    @property
    def holds(self) -> bool:
        return self.target is None or (self.figure >= self.target if self.at_least else self.figure <= self.target)

    def __str__(self) -> str:
        if self.target is None:
            return f"{self.what:<58} {self.figure:7.2f} {self.detail}".rstrip()
        sign = ">=" if self.at_least else "<="
        return f"{self.what:<58} {self.figure:7.2f} {sign} {self.target:<6g} {'' if self.holds else 'MISSED':<7}{self.detail}"


def at_least(what: str, figure: float, target: float | None, detail: str = "") -> Claim:
    """A figure that must reach its target; None: no target."""
    return Claim(what, figure, target, True, detail)


def at_most(what: str, figure: float, target: float | None, detail: str = "") -> Claim:
    """A figure that must not exceed its target; None: no target."""
    return Claim(what, figure, target, False, detail)


def milliseconds(medians: Mapping[str, float]) -> str:
    """All medians in a line."""
    return ", ".join(f"{name} {seconds * 1e3:.3g}" for name, seconds in medians.items()) + " ms"


def microseconds(medians: Mapping[str, float], digits: int = 1) -> str:
    """All medians in a line."""
    return ", ".join(f"{name} {seconds * 1e6:.{digits}f}" for name, seconds in medians.items()) + " us"


def chosen(work: Workload, contenders: Mapping[str, Contender]) -> dict[str, Call]:
    """The calls of contenders, without those that need torch where there is none."""
    return {name: contender.make(work) for name, contender in contenders.items() if not contender.missing()}


class Measuring(NamedTuple):
    """How many threads, how long for each contender, and how many times smaller than real."""

    threads: int
    seconds: float
    shrink: int

    def medians(self, calls: Mapping[str, Call], spend: Callable[[int], None] = lambda calls: None) -> dict[str, float]:
        """Seconds of each call; ``spend`` is called with the number of calls before they happen."""
        for call in calls.values():  # compiles, and fills the caches that later calls read
            for _ in range(3):
                call()
        timed = {name: Timed(call, spend) for name, call in calls.items()}
        return interleave(timed, self.seconds * len(calls) / 3, MOST_ROUNDS)

    def over_roofline(
        self, calls: Mapping[str, Call], nbytes: int, spend: Callable[[int], None] = lambda calls: None
    ) -> tuple[dict[str, float], float]:
        """The medians, with those of ``x += 1``, and the seconds of the fastest ``x += 1`` over so many bytes."""
        ones = np.zeros(min(nbytes, MOST_PROBED) // 4, np.float32)
        probes = {f"{name} +1": call for name, call in host_probes(ones, self.threads).items()}
        medians = self.medians({**calls, **probes}, spend)
        return medians, min(medians[name] for name in probes) * (nbytes / ones.nbytes)
