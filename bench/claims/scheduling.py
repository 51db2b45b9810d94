"""A simulation of many cores: what claiming chunks and calling helpers cost."""

from __future__ import annotations

from collections.abc import Iterator

from fastpe._backends.host import chunking, pool

from ..registry import MB
from .table import Claim, Measuring, at_least

# Assumed, from what one core and two cores were measured to do.
CLAIM_SECONDS = 1e-7  # an atomic addition that other cores want too, one after the other
HAND_OVER_SECONDS = 1e-7  # of the caller, for a helper that waits in its spin slot
WAKE_SECONDS, COME_SECONDS = 5e-6, 5e-5  # of the caller, for one that sleeps; until it comes
CORE_BYTES, SOCKET_BYTES = 25e9, 200e9  # bytes of x a second that a core and all cores together can add to


def simulate(nbytes: int, cores: int, asleep: bool) -> float:
    """Seconds of a call on so many cores: helpers come one after the other, and claims are served one at a time."""
    chunk = chunking.CHUNK_BYTES
    chunks = -(-nbytes // chunk)
    helpers = max(0, min(chunks - 1, nbytes // chunking.BYTES_PER_HELPER, min(cores, pool.USUAL_THREADS) - 1))
    calling = WAKE_SECONDS if asleep else HAND_OVER_SECONDS
    coming = COME_SECONDS if asleep else 0.0
    free = [calling * helpers, *(calling * (number + 1) + coming for number in range(helpers))]
    rate = min(CORE_BYTES, SOCKET_BYTES / (helpers + 1))
    counter, end = 0.0, 0.0
    for number in range(chunks):
        worker = min(range(len(free)), key=free.__getitem__)
        counter = max(counter, free[worker]) + (CLAIM_SECONDS if helpers else 0.0)
        free[worker] = counter + min(chunk, nbytes - number * chunk) / rate
        end = max(end, free[worker])
    return end


def cores(measuring: Measuring) -> Iterator[Claim]:
    """Simulated: what claims and calling helpers cost on machines with more cores than this one."""
    for nbytes in (256 << 10, 1 << 20, 4 << 20, 16 << 20, 256 << 20):
        for asleep in (False, True):
            alone = simulate(nbytes, 1, asleep)
            speedups = {count: alone / simulate(nbytes, count, asleep) for count in (2, 4, 16, 64)}
            what = f"{nbytes / MB:g} MB, helpers {'asleep' if asleep else 'waiting'}: slowest of 2 to 64 cores over one"
            detail = ", ".join(f"{count} cores {value:.2f}x" for count, value in speedups.items())
            yield at_least(what, min(speedups.values()), 0.8 if asleep else 1.0, detail)
