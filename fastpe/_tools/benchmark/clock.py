"""The clock: rounds of all contenders interleave."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

from ..machine import is_small

Call = Callable[[], object]

ROUND_SECONDS = 2e-4  # calls are repeated to fill a round: far above the clock's resolution
RESTORE_AFTER = 1000  # calls; each adds at most 1 to an element, and float16 ends at 65504
FEWEST_ROUNDS = 3
WARMED_SECONDS = 0.2  # rounds up to this long are preceded by calls that are not counted,
WARMING_CALLS = 8  # so many
WARMING_SECONDS = 0.01  # or for so long,
QUIET_SECONDS = 0.012  # and by a pause: OpenMP's threads, torch's for one, spin for 10 ms after a call


def seconds_per_call(call: Call, calls: int) -> float:
    """Wall time of a call, from so many in a row."""
    repeats = itertools.repeat(None, calls)
    start = time.perf_counter()
    for _ in repeats:
        call()
    return (time.perf_counter() - start) / calls


def cuda_seconds_per_call(call: Call, calls: int) -> float:
    """Time of a call on the GPU, from so many in a row, between two events on the current stream."""
    import cupy

    repeats = itertools.repeat(None, calls)
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    for _ in repeats:
        call()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, end)) * 1e-3 / calls


class Timed:
    """A call that is timed in rounds. ``spend`` is called with the number of calls before they happen, outside the timed region."""

    def __init__(
        self,
        call: Call,
        spend: Callable[[int], None] = lambda calls: None,
        clock: Callable[[Call, int], float] = seconds_per_call,
    ) -> None:
        self._call, self._spend, self._clock = call, spend, clock
        self.calls, self._warming = 1, 0
        first = self.round()
        self.calls = max(1, min(RESTORE_AFTER // 2, int(ROUND_SECONDS / max(first, 1e-9))))
        self._round_seconds = max((first if self.calls == 1 else self.round()) * self.calls, 1e-9)
        if self._round_seconds < WARMED_SECONDS:
            self._warming = max(1, min(WARMING_CALLS, int(WARMING_SECONDS * self.calls / self._round_seconds)))

    def round(self) -> float:
        """Seconds per call, after calls that are not counted.

        They find the caches, the processor and the threads as the previous contender left them.
        """
        self._spend(self.calls + self._warming)
        if self._warming:
            if not is_small():
                time.sleep(QUIET_SECONDS)
            for _ in range(self._warming):
                self._call()
        return self._clock(self._call, self.calls)

    def rounds_in(self, seconds: float, most: int) -> int:
        """How many rounds, with what precedes them, fit into a time, within limits."""
        quiet = QUIET_SECONDS if self._warming and not is_small() else 0.0
        whole = quiet + self._round_seconds * (1 + self._warming / self.calls)
        return max(min(FEWEST_ROUNDS, most), min(most, int(seconds / whole)))


def rounds(
    timed: dict[str, Timed], seconds: float, most: int, failed: Callable[[str, Exception], None] | None = None
) -> dict[str, dict[int, float]]:
    """Run rounds of all in alternation; return the seconds a call took in each, by the number of the round.

    A slow contender, with fewer rounds, has them spread over the run. One that fails is told to ``failed`` and left out from then on.
    """
    planned = {name: one.rounds_in(seconds, most) for name, one in timed.items()}
    total = max(planned.values(), default=0)
    found: dict[str, dict[int, float]] = {name: {} for name in timed}
    for i in range(total):
        for name in [*found]:
            if (i + 1) * planned[name] // total > i * planned[name] // total:
                try:
                    found[name][i] = timed[name].round()
                except Exception as error:
                    if failed is None:
                        raise
                    failed(name, error)
                    del found[name]
    return found


def interleave(timed: dict[str, Timed], seconds: float, most: int) -> dict[str, float]:
    """Run rounds of all in alternation; return the median of each."""
    return {name: statistics.median(values.values()) for name, values in rounds(timed, seconds, most).items()}
