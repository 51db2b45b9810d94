"""Threads that help to run kernels, and how many of them a call may use.

A kernel is serial code that releases the GIL, claims chunks from atomic counters in a control block and, for the caller, returns when every
chunk is finished. The caller always works; helpers only make it faster. A helper that is late, busy, dead (after a fork) or was never
started costs speed and nothing else: it finds all chunks claimed and touches no array. No lock is held while a kernel runs, and an
exception (Ctrl-C) reaches the caller only when all writes have stopped.

Numba's own threading layers are not used: measured on this operation, one aborts when two Python threads call at once, another kills
the child of a fork, and the third is not found where pip installs it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import operator
import os
import queue
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ..._arrays import errors
from ...kernels import abi
from . import nodes, tuning

USUAL_THREADS = (
    16  # unless a program or FASTPE_NUM_THREADS asks for more: they saturate most memory, and more take longer to wake
)

SECONDS_BETWEEN_CALLS = 0.005  # of a thread that calls again and again
WAITING_SECONDS = 3e-4  # how long a helper waits for the next call: SPINS of `kernels/scheduler.py`

_chosen: int | None = None
_callers: dict[int, float] = {}  # threads, and until when each counts as a caller; those of small calls do not matter


class Job:
    """A call in the queue. Its caller replaces the work when it is done, so that a job that no helper took keeps no array alive."""

    __slots__ = ("taken", "work")

    def __init__(self, kernel: Callable[..., None], addresses: tuple[int, ...], keepalive: Any) -> None:
        self.work: tuple[Callable[..., None], tuple[int, ...], Any] | None = (kernel, addresses, keepalive)
        self.taken = False


class Pool:
    """Daemon threads that serve one queue of jobs, on these cores where they must stay together."""

    def __init__(self, cores: nodes.Cores | None = None) -> None:
        self._cores = cores
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._avoided = -1  # the core that the helpers keep off
        self._lock = threading.RLock()  # a finalizer that calls fastpe may run while this thread holds it

    def offer(self, job: Job, helpers: int) -> None:
        """Offer a job to so many helpers."""
        self._start(helpers)
        self._avoid(_current_core())
        for _ in range(min(helpers, len(self._threads))):
            self._jobs.put(job)

    def _avoid(self, core: int) -> None:
        """Keep the helpers off the caller's core.

        There Linux likes to leave a thread that the caller wakes, until the caller sleeps or its time slice of 3 ms ends. After pauses of
        20 ms, calls on 1 to 8 MB on two threads then took 1.2 to 2.1 times as long as on one, as no helper came (AMD EPYC, Zen 5, 2 cores).
        """
        if core in (self._avoided, -1) or not hasattr(os, "sched_setaffinity"):
            return
        self._avoided = core
        with contextlib.suppress(OSError, TypeError):  # not allowed here, or a helper has not yet started
            allowed = frozenset(os.sched_getaffinity(os.getpid()))
            cores = (allowed if self._cores is None else allowed & self._cores) - {core}
            for thread in self._threads if cores else ():
                os.sched_setaffinity(thread.native_id, cores)  # type: ignore[arg-type]

    def _start(self, wanted: int) -> None:
        if len(self._threads) >= wanted or sys.is_finalizing():  # at the end of the interpreter a new thread would never begin
            return
        with self._lock:
            while len(self._threads) < wanted:
                number = 1 + len(self._threads)
                thread = threading.Thread(target=_serve, args=(self._jobs, number), name=f"fastpe-{number}", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads, or the interpreter is shutting down: the caller works alone
                    return
                self._threads.append(thread)
                self._avoided = -1


def _serve(jobs: queue.SimpleQueue[Job], number: int) -> None:
    while True:
        job = jobs.get()
        job.taken = True
        work = job.work  # one step: the caller may replace it at any moment
        if work is not None:
            work[0](*work[1], number)
        del job, work


_pool = Pool()
_pools: dict[nodes.Cores, Pool] = {}  # of NUMA nodes


# ---- helpers that wait -------------------------------------------------------------------------------------------------------


class SpinSlots:
    """Where helpers wait for the next call of one kernel, for some microseconds, on the processor and without the GIL.

    A thread that sleeps in a queue begins to work after 40 to 300 us, in which two cores add 2 to 10 MB. Calls of 1 to 4 MiB, one after
    the other, took 1.2 to 2.8 times as long without spin slots in 8 of 12 runs, as long in 4 (AMD EPYC, Zen 4, 2 cores).

    ``idle`` is the address of a control block for a helper that came too late for the call that woke it: it only waits for the next.
    ``cores`` are those on which the helpers stay; None: any.
    """

    def __init__(self, cores: nodes.Cores | None = None) -> None:
        self.cores = cores
        idle = np.frombuffer(bytearray(abi.CONTROL.nbytes), np.int64)
        step = abi.SPIN_SLOT.words
        words = np.zeros(step * (abi.SPIN_SLOTS + 1), np.int64)
        words = words[-words.ctypes.data % abi.SPIN_SLOT.nbytes // abi.WORD_BYTES :]  # on cache lines of their own
        self._states = words[abi.SPIN_SLOT.index.state : step * abi.SPIN_SLOTS : step].data
        self.address: int = words.ctypes.data
        self.idle: int = idle.ctypes.data
        abi.CONTROL.pack_into(idle.data, 0, {"spin_slots": self.address, "yield_function": yield_function()})
        self._owners = idle, words
        self._kept: dict[int, Any] = {}

    def waiting(self) -> int:
        """How many helpers wait."""
        return self._states.tolist().count(abi.WAITS)

    def keep(self, blocks: Any) -> None:
        """Keep the blocks of a call alive until it and all whom it calls have left, whatever becomes of the caller."""
        self._kept[id(blocks)] = blocks
        if len(self._kept) > abi.SPIN_SLOTS:
            for old in list(self._kept.values()):
                self.release(old)

    def release(self, blocks: Any) -> bool:
        """Keep them no longer; False if a thread may still read them."""
        if blocks.words[abi.CONTROL.index.called] != blocks.words[abi.CONTROL.index.left]:
            return False
        self._kept.pop(id(blocks), None)
        return True


_spin_slots: dict[Any, SpinSlots] = {}


def spin_slots(kernel: Callable[..., None], cores: nodes.Cores | None = None) -> SpinSlots:
    """The spin slots of a kernel, for helpers on these cores."""
    try:
        return _spin_slots[kernel, cores]
    except KeyError:
        return _spin_slots.setdefault((kernel, cores), SpinSlots(cores))


def _renew() -> None:
    global _pool
    _pool = Pool()
    _pools.clear()
    _spin_slots.clear()
    _callers.clear()
    _settings.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def run(
    kernel: Callable[..., None], addresses: tuple[int, ...], helpers: int, keepalive: Any, slots: SpinSlots | None = None
) -> None:
    """Run ``kernel(*addresses, number)`` on the caller's thread and on up to ``helpers`` others that sleep.

    ``keepalive`` owns the memory at the addresses: a helper that took the job late still reads it, and finds nothing to do.
    """
    job = Job(kernel, addresses, keepalive)
    cores = None if slots is None else slots.cores
    pool = _pool if cores is None else _pools.setdefault(cores, Pool(cores))
    try:
        pool.offer(job, helpers)
    finally:  # even when interrupted: the kernel waits for the helpers that have begun
        try:
            kernel(*addresses, abi.CALLER)
        finally:
            job.work = None if slots is None else (kernel, (0, slots.idle), slots)


def _current_core() -> int:
    try:
        return int(_getcpu()())
    except (OSError, AttributeError):
        return -1


@functools.lru_cache(maxsize=1)
def _getcpu() -> Any:
    return ctypes.CDLL(None).sched_getcpu


@functools.lru_cache(maxsize=1)
def yield_function() -> int:
    """Address of the C function that gives up the processor while the caller waits for a helper's last chunk; 0 to spin."""
    with contextlib.suppress(OSError, AttributeError):
        if sys.platform == "win32":
            return ctypes.cast(ctypes.windll.kernel32.SwitchToThread, ctypes.c_void_p).value or 0
        return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
    return 0


# ---- who calls ---------------------------------------------------------------------------------------------------------------


def enter(wanted: int, nbytes: int) -> tuple[int, bool, nodes.Cores | None]:
    """How many of so many helpers a call on so many bytes takes, whether to wake them, and on which cores they must be (None: any).

    Threads that call by turns share the cores: with more, each waits for another's helper. Dask's two threads on two cores encode chunks of
    4 MB 1.06 times as fast with it (`python -m bench.claims --only dask`).

    Helpers that sleep are woken for a large call, or for one that follows another at once, as the next one will. Waking takes the caller 10
    to 100 us, the longer the more the processor has forgotten meanwhile: after 20 ms, calls on 2, 8 and 16 MB took 388, 621 and 895 us
    with a helper that slept, and 269, 530 and 1026 alone; after 2 ms 85, 274 and 468, and 70, 263 and 691 (AMD EPYC, Zen 5, 2 cores of
    a virtual machine).
    """
    now, caller = time.perf_counter(), threading.get_ident()
    follows = now < _callers.get(caller, 0.0) - SECONDS_BETWEEN_CALLS + WAITING_SECONDS
    _callers[caller] = math.inf
    for other, end in _callers.copy().items():
        if end < now:
            _callers.pop(other, None)
    helpers = min(wanted, threads() // max(1, len(_callers)) - 1)
    cores = node_of_caller(nbytes) if helpers > 0 else None
    if cores is not None:
        helpers = min(helpers, len(cores) - 1)
    return max(0, helpers), follows or nbytes >= tuning.here().wake, cores


def leave() -> None:
    """A call is over; its thread counts for a while, in which it does other work."""
    _callers[threading.get_ident()] = time.perf_counter() + SECONDS_BETWEEN_CALLS


def node_of_caller(nbytes: int) -> nodes.Cores | None:
    """The cores on which a call on so many bytes must find its helpers; None: any.

    What fits into the last-level cache came from the caller's NUMA node, and would go to another one and back. What is larger takes
    all cores: its pages may lie on any node.
    """
    if not nodes.here() or nbytes > tuning.here().stream_above:
        return None
    return nodes.of(_current_core())


# ---- how many threads --------------------------------------------------------------------------------------------------------


def set_num_threads(count: int | None) -> None:
    """Set how many threads a call on the host may use, the caller's among them; None goes back to the default.

    Raises
    ------
    TypeError, ValueError
        If ``count`` is no integer of at least 1.

    Notes
    -----
    A call takes no more than 64, and none that would get less than 768 KiB of x.
    """
    global _chosen
    if count is None:
        _chosen = None
        return
    try:
        if isinstance(count, bool) or getattr(getattr(count, "dtype", None), "kind", "") == "b":
            raise TypeError
        number = operator.index(count)
    except TypeError:
        rule = "count must be an integer"
        raise TypeError(errors.message("set_num_threads", rule, errors.describe(count))) from None
    if number < 1:
        raise ValueError(errors.message("set_num_threads", "count must be at least 1", str(number)))
    _chosen = number


def get_num_threads() -> int:
    """Return how many threads a call on the host may use.

    The first of: ``set_num_threads``; the environment variable ``FASTPE_NUM_THREADS`` (a text that is no such number is ignored, with one
    warning); torch's number up to 16, when torch is loaded; the smallest of ``OMP_NUM_THREADS``, the cores this process may run on, the
    container's CPU quota, and 16. This function and a process's first call read the environment and the cores.
    """
    _settings.cache_clear()
    return threads()


def threads() -> int:
    """What ``get_num_threads`` returned last, or torch's number now: asking the system takes longer (4 us) than adding 256 KiB."""
    if _chosen is not None:
        return _chosen
    wanted, default = _settings()
    if wanted is not None:
        return wanted
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return min(USUAL_THREADS, max(1, int(torch.get_num_threads())))
    return default


_ignored: set[str] = set()  # texts of the environment that a warning was given of


@functools.lru_cache(maxsize=1)
def _settings() -> tuple[int | None, int]:
    """FASTPE_NUM_THREADS, and the number without it and torch."""
    limits = [USUAL_THREADS, _cores(), _quota(), _positive(os.environ.get("OMP_NUM_THREADS"))]
    text = os.environ.get("FASTPE_NUM_THREADS", "").strip()
    wanted = _positive(text)
    if text and wanted is None and text not in _ignored:
        _ignored.add(text)
        rule = "the environment's FASTPE_NUM_THREADS must be an integer of at least 1"
        warnings.warn(errors.message("fastpe", rule, repr(text), "It is ignored."), RuntimeWarning, stacklevel=2)
    return wanted, min(limit for limit in limits if limit is not None)


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


@functools.lru_cache(maxsize=1)
def _quota() -> int | None:
    """The container's CPU quota in whole CPUs (cgroup v2, then v1), read once."""
    return _read_quota("/sys/fs/cgroup")


def _read_quota(root: str) -> int | None:
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # the other version, or nothing that makes sense
            quota, period = " ".join(_read(f"{root}/{name}") for name in files).split()
            return max(1, int(quota) // int(period)) if quota != "max" and int(quota) > 0 else None
    return None


def _read(path: str) -> str:
    with open(path) as file:  # importing pathlib would take 4 ms, a seventh of importing fastpe
        return file.read()
