"""Machines of more cores, simulated: what claiming chunks and calling helpers cost there.

What one and two cores do is measured here, and two simulated cores are compared with the two that are there. The rest is assumed.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np

import fastpe
from fastpe._backends.host import chunking, pool
from fastpe._tools.benchmark.expressions import random_values

from ..registry import MB
from .table import Claim, Measuring, at_least

SIZES = (256 << 10, 1 << 20, 4 << 20, 16 << 20, 256 << 20)
SETTLED_SECONDS = 0.002  # helpers that wait go to sleep after 0.3 ms
ROUNDS = 41
# Assumed of machines that are not here.
CLAIM_SECONDS = 1e-7  # an atomic addition that other cores want too, one after the other
HAND_OVER_SECONDS = 1e-7  # of the caller, for a helper that waits in its spin slot
CORES_OF_MEMORY = 8  # so many cores have all that memory gives
SLOW = 0.5  # speed of an efficiency core beside the others


class Costs(NamedTuple):
    """Of one array: seconds, and bytes of x a second that can be added to."""

    wake: float  # of the caller, for a helper that sleeps
    come: float  # until that one comes
    core: float  # one core
    together: float  # all cores


def simulate(nbytes: int, speeds: Sequence[float], costs: Costs, asleep: bool) -> float:
    """Seconds of a call on cores of these speeds, the caller's first: helpers come one after the other; claims are served one at a time."""
    chunk = chunking.CHUNK_BYTES
    chunks = -(-nbytes // chunk)
    helpers = max(0, min(chunks - 1, nbytes // chunking.BYTES_PER_HELPER, min(len(speeds), pool.USUAL_THREADS) - 1))
    calling, coming = (costs.wake, costs.come) if asleep else (HAND_OVER_SECONDS, 0.0)
    free = [calling * helpers, *(calling * (number + 1) + coming for number in range(helpers))]
    rates = [speed * min(costs.core, costs.together / sum(speeds[: helpers + 1])) for speed in speeds]
    counter, end = 0.0, 0.0
    for number in range(chunks):
        worker = min(range(len(free)), key=free.__getitem__)
        counter = max(counter, free[worker]) + (CLAIM_SECONDS if helpers else 0.0)
        free[worker] = counter + min(chunk, nbytes - number * chunk) / rates[worker]
        end = max(end, free[worker])
    return end


def cores(measuring: Measuring) -> Iterator[Claim]:
    """Simulated: machines with more cores than this one, with costs that are measured here."""
    wake, come = _waking()
    for nbytes in (size // measuring.shrink for size in SIZES):
        x = random_values((1, nbytes >> 12, 1024), "float32")
        for asleep in (False, True):
            pause = SETTLED_SECONDS if asleep else 0.0
            one, both = (_seconds(x, threads, pause) for threads in (1, 2))
            core = nbytes / one
            two = Costs(wake, come, core, max(core, nbytes / both))
            many = two._replace(together=CORES_OF_MEMORY * core)
            what = f"{nbytes / MB:g} MB, helpers {'asleep' if asleep else 'waiting'}"
            costs = f"{core / 1e9:.1f} GB/s a core, woken in {wake * 1e6:.0f} us, there in {come * 1e6:.0f} us"
            yield at_least(f"{what}: two cores over one, measured", one / both, 0.8 if asleep else 1.0, costs)
            yield at_least(f"{what}: two cores, simulated over measured", simulate(nbytes, (1, 1), two, asleep) / both, None)
            alone = simulate(nbytes, (1,), many, asleep)
            speedups = {count: alone / simulate(nbytes, (1,) * count, many, asleep) for count in (2, 4, 16, 64)}
            detail = ", ".join(f"{count} cores {value:.2f}x" for count, value in speedups.items())
            yield at_least(f"{what}: slowest of 2 to 64 cores over one", min(speedups.values()), 0.8 if asleep else 1.0, detail)
            fast = {count: (1.0,) * count for count in (2, 4, 8)}
            slower = {count: simulate(nbytes, (*speeds, *(SLOW,) * count), many, asleep) for count, speeds in fast.items()}
            mixed = {count: simulate(nbytes, speeds, many, asleep) / slower[count] for count, speeds in fast.items()}
            detail = ", ".join(f"{count} and {count} {value:.2f}x" for count, value in mixed.items())
            yield at_least(f"{what}: with as many slow cores, over without", min(mixed.values()), 0.75, detail)


def _seconds(x: np.ndarray, threads: int, pause: float) -> float:
    """The median of calls on so many threads, after pauses."""
    fastpe.set_num_threads(threads)
    try:
        for _ in range(3):
            fastpe.add_encoding(x)
        return statistics.median(_timed(lambda: fastpe.add_encoding(x), pause) for _ in range(ROUNDS))
    finally:
        fastpe.set_num_threads(None)


def _timed(call: Callable[[], object], pause: float) -> float:
    if pause:
        time.sleep(pause)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _waking() -> tuple[float, float]:
    """What it takes a thread to wake another one that sleeps in a queue, and until that one is there."""
    jobs: SimpleQueue[bool] = SimpleQueue()
    arrivals: SimpleQueue[float] = SimpleQueue()

    def serve() -> None:
        while jobs.get():
            arrivals.put(time.perf_counter())

    helper = threading.Thread(target=serve, daemon=True)
    helper.start()
    waking, coming, busy = [], [], np.ones(1 << 20)
    for _ in range(ROUNDS):
        time.sleep(SETTLED_SECONDS)
        start = time.perf_counter()
        jobs.put(True)
        waking.append(time.perf_counter() - start)
        np.add.reduce(busy)  # without the GIL, as a kernel is
        coming.append(arrivals.get() - start)
    jobs.put(False)
    helper.join()
    return statistics.median(waking), statistics.median(coming)
