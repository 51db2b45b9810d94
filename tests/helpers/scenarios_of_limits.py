"""Scenarios of calls inside calls, from finalizers and signal handlers, and of memory and threads that are not to be had."""

from __future__ import annotations

import contextlib
import functools
import gc
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
from scenario_tools import LARGE, SMALL, helpers, in_threads, pair, prepare, renew_pool, same, scenario, work

import fastpe

# ---- calls inside calls ------------------------------------------------------------------------------------------------------


class CallsWhenCollected:
    """A cycle that calls when the collector finds it, wherever its thread then is; as does the callback of a weak reference to it."""

    calls = 0
    wrong: list[str] = []  # noqa: RUF012  (of all of them)

    def __init__(self, references: list[Any]) -> None:
        self.itself = self
        references.append(weakref.ref(self, CallsWhenCollected.call))

    def __del__(self) -> None:
        CallsWhenCollected.call(None)

    @classmethod
    def call(cls, _: Any) -> None:
        cls.calls += 1
        try:
            work(1, (SMALL, LARGE) if cls.calls % 16 == 0 else (SMALL,))
            if sys.version_info >= (3, 12):  # before, decimal itself crashes where the collector runs what uses it, in threads
                fastpe.add_encoding(np.zeros((1, 2, 8), np.float32), fastpe.Sinusoidal(base=2.0 + cls.calls % 300))
        except BaseException as error:
            cls.wrong.append(repr(error))


@scenario
def finalizers_call() -> None:
    """The collector runs amid a call's own Python code, and what it runs calls."""
    prepare()
    references: list[Any] = []

    def churn(seed: int) -> None:
        for turn in range(60):
            CallsWhenCollected(references)
            x = np.zeros((1, 2, 16), np.float32)
            fastpe.add_encoding(x, fastpe.Sinusoidal(base=1000.0 * seed + turn + 2))
            expected = fastpe.add_encoding(np.zeros((1, 2, 16), np.float32), fastpe.Sinusoidal(base=1000.0 * seed + turn + 2))
            assert same(x, expected)
            work(1)

    before = gc.get_threshold()
    gc.set_threshold(20, 2, 2)
    try:
        in_threads([functools.partial(churn, seed) for seed in range(1, 4)])
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert not CallsWhenCollected.wrong, CallsWhenCollected.wrong[:3]
    assert CallsWhenCollected.calls > 180, CallsWhenCollected.calls
    work()


@scenario
def signal_handlers_call() -> None:
    """A handler runs between two steps of a call in the main thread, and calls itself."""
    prepare()
    calls = 0

    def handle(number: int, frame: Any) -> None:
        nonlocal calls
        calls += 1
        work(1, (SMALL,))
        if calls % 8 == 0:
            work(1, (LARGE,))

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        for _ in range(40):
            work(2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert calls > 10, calls
    work()


# ---- what is not to be had ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def limited_memory(spare: int) -> Iterator[None]:
    """Let the process map so many more bytes."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + spare, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@scenario
def low_memory() -> None:
    """A call ends well or raises MemoryError, and then x is as it was: memory is asked for before the first write."""
    prepare()
    work()
    given, expected = pair(LARGE)
    x, wide = given.copy(), np.zeros((4, 1 << 20), np.float32)
    positions = np.arange(1 << 20, dtype=np.int32)
    failed = ended = 0
    for kibibytes in (2048, 4096, 9000, 20_000, 100_000):  # less, and the stack cannot grow, which ends any program
        for width in (4, 64, 4096, 1 << 18):
            fastpe.clear_caches()
            rows = wide.reshape(-1, width)
            try:
                with limited_memory(kibibytes << 10):
                    fastpe.add_encoding(rows, fastpe.Sinusoidal(base=77.0 + kibibytes), positions=positions[: rows.shape[0]])
                ended += 1
            except MemoryError:
                failed += 1
                assert not wide.any(), "a call that failed has written"
            wide[...] = 0
        wanted = expected
        try:
            with limited_memory(kibibytes << 10):
                fastpe.add_encoding(x)
        except MemoryError:
            wanted = given
        assert same(x, wanted)
        x[...] = given
    assert failed, "memory was never short: this tests nothing"
    assert ended, "no call ended: this tests nothing"
    work()


@scenario
def no_threads_to_be_had() -> None:
    """The system refuses a thread's stack: the caller works alone, and later not."""
    prepare()
    renew_pool()
    before = len(helpers())  # of the pool before
    threading.stack_size(1 << 30)
    try:
        with limited_memory(256 << 20):
            work()
            assert len(helpers()) == before, "a thread was started: this tests nothing"
    finally:
        threading.stack_size(0)
    work()
    assert len(helpers()) > before
