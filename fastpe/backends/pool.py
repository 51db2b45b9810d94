"""Threads for kernels that share out their own work.

A kernel is serial code that releases the GIL, claims chunks from an atomic counter in a control block and, for the caller, returns
when every chunk is finished. The caller always works; helpers only make it faster. A helper that is late, busy, dead (after a fork)
or was never started costs speed and nothing else: it finds the counter exhausted and touches no array. No lock is held while a
kernel runs, and an exception (Ctrl-C) reaches the caller only when all writes have stopped.

Numba's own threading layers are not used: measured on this operation, one aborts when two Python threads call at once, another kills
the child of a fork, and the third is not found where pip installs it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import checks

MOST_THREADS = 16  # the operation is bound by memory, which a few cores saturate; more helpers only take longer to wake

_chosen: int | None = None


# A list of one call (kernel, addresses, alive), which its caller empties when it is done, so that no job keeps an array alive.
Job = list[tuple[Callable[..., None], tuple[int, ...], Any]]


class Pool:
    """Daemon threads that serve one queue of jobs."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._started = 0
        self._lock = threading.RLock()  # a finalizer that calls fastpe may run while this thread holds it

    def share(self, job: Job, helpers: int) -> None:
        """Offer a job to so many helpers."""
        self._start(helpers)
        for _ in range(min(helpers, self._started)):
            self._jobs.put(job)

    def _start(self, wanted: int) -> None:
        if self._started >= wanted or sys.is_finalizing():  # at the end of the interpreter a new thread would never begin
            return
        with self._lock:
            while self._started < wanted:
                thread = threading.Thread(target=_serve, args=(self._jobs,), name=f"fastpe-{self._started}", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads, or the interpreter is shutting down: the caller works alone
                    return
                self._started += 1


def _serve(jobs: queue.SimpleQueue[Job]) -> None:
    while True:
        job = jobs.get()
        try:
            kernel, addresses, alive = job[0]  # one step: the caller may empty the list at any moment
        except IndexError:  # it has finished without us
            continue
        kernel(*addresses, False)
        del job, kernel, addresses, alive


_pool = Pool()


def _renew() -> None:
    global _pool
    _pool = Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def run(kernel: Callable[..., None], addresses: tuple[int, ...], helpers: int, alive: Any) -> None:
    """Run ``kernel(*addresses, waits)`` on the caller's thread and on up to ``helpers`` others.

    ``alive`` owns the memory at the addresses: a helper that took the job late still reads it, and finds nothing to do.
    """
    job: Job = [(kernel, addresses, alive)]
    try:
        _pool.share(job, helpers)
    finally:  # even when interrupted: the kernel waits for the helpers that have begun
        try:
            kernel(*addresses, True)
        finally:
            job.clear()


# ---- how many threads --------------------------------------------------------------------------------------------------------


def set_num_threads(count: int | None) -> None:
    """Set how many threads a call on the host may use, the caller's among them; None goes back to the default.

    Raises
    ------
    TypeError, ValueError
        If ``count`` is no integer of at least 1.
    """
    global _chosen
    if count is not None:
        count = checks.integer("set_num_threads", "count", count)
        if count < 1:
            raise ValueError(checks.message("set_num_threads", "count must be at least 1", str(count)))
    _chosen = count


def get_num_threads() -> int:
    """Return how many threads a call on the host may use.

    The first of: ``set_num_threads``; the environment variable ``FASTPE_NUM_THREADS``; torch's number, when torch is loaded; the
    smallest of ``OMP_NUM_THREADS``, the cores this process may run on, the container's CPU quota, and 16.
    """
    if _chosen is not None:
        return _chosen
    wanted = _positive(os.environ.get("FASTPE_NUM_THREADS"))
    if wanted is not None:
        return wanted
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return max(1, int(torch.get_num_threads()))
    limits = [MOST_THREADS, _cores(), _quota(), _positive(os.environ.get("OMP_NUM_THREADS"))]
    return min(limit for limit in limits if limit is not None)


def _positive(text: str | None) -> int | None:
    """The number in an environment variable; None if there is none (OMP_NUM_THREADS may be a list: its first)."""
    try:
        number = int((text or "").split(",")[0])
    except ValueError:
        return None
    return number if number >= 1 else None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_quota_found: list[int | None] = []


def _quota() -> int | None:
    """The container's CPU quota in whole CPUs (cgroup v2, then v1), read once."""
    if not _quota_found:
        _quota_found.append(_read_quota("/sys/fs/cgroup"))
    return _quota_found[0]


def _read_quota(root: str) -> int | None:
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # the other version, or nothing that makes sense
            quota, period = " ".join(Path(root, name).read_text() for name in files).split()
            return max(1, int(quota) // int(period)) if quota != "max" and int(quota) > 0 else None
    return None
