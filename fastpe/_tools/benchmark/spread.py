"""How far measured values lie apart, and whether a ratio says more than that."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

FEWEST_HALVED = 8  # of fewer values all count, not their middle half
ALIKE = 0.10  # a difference up to this is none; and rounds that lie further apart than this are noisy
LOOK_SECONDS = 0.3


class Span(NamedTuple):
    """The median of several values, and between what the middle half of them lies.

    Rounds of one process are not independent, so a test that takes them as such, as Student's does, finds differences that another run does
    not. The middle half does not shrink as rounds are added.
    """

    low: float
    middle: float
    high: float

    @property
    def share(self) -> float:
        """Half the width, as a share of the median."""
        return (self.high - self.low) / 2 / self.middle

    @property
    def is_clear(self) -> bool:
        """Of a ratio: whether it is further from 1 than its values are from each other."""
        low, middle, high = self if self.middle >= 1 else (1 / self.high, 1 / self.middle, 1 / self.low)
        return high - low < middle - 1

    @property
    def is_alike(self) -> bool:
        """Of a ratio: whether all of it is so near to 1 that there is no difference."""
        return self.low >= 1 - ALIKE and self.high <= 1 + ALIKE

    def over(self, other: Span) -> Span:
        """The ratio of two values that were measured apart, as wide as both allow."""
        return Span(self.low / other.high, self.middle / other.middle, self.high / other.low)


def span(values: Sequence[float]) -> Span:
    """The median and the middle half."""
    if len(values) < FEWEST_HALVED:
        return Span(min(values), statistics.median(values), max(values))
    return Span(*statistics.quantiles(values, n=4, method="inclusive"))


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Span:
    """The ratio of values of the same rounds: what slows both down is not in it."""
    both = one.keys() & other.keys()
    return span([one[i] / other[i] for i in both]) if both else span([*one.values()]).over(span([*other.values()]))


def busy_cores() -> float | None:
    """How many cores other work takes just now; without psutil what the system says of the last minute, or None."""
    with contextlib.suppress(ImportError):
        import psutil

        return float(psutil.cpu_percent(interval=LOOK_SECONDS)) / 100 * (psutil.cpu_count() or 1)
    with contextlib.suppress(OSError, AttributeError):
        return min(os.getloadavg()[0], float(os.cpu_count() or 1))  # what waits for a core is in it, too
    return None


def warnings(machine: Mapping[str, Any], noisy: int, lines: int) -> list[str]:
    """What makes a run's figures doubtful, in words: other work at its beginning, and lines in which ``x += 1`` itself varied."""
    said = []
    busy, cores, threads = machine.get("busy_cores"), machine["cores"], machine["threads"]
    if busy is not None and cores is not None and busy + threads > cores + 0.5:
        said.append(
            f"Other work took {busy:.1f} of {cores} cores as this began, and fastpe uses {threads}: stop it and measure again."
        )
    if noisy:
        said.append(f"In {noisy} of {lines} lines x += 1 itself varied by more than {ALIKE:.0%}: their figures are doubtful.")
    return said
