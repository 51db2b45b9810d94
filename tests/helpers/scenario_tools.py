"""What the scenarios of concurrency share: their list, calls whose result is known, threads, children."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

import fastpe
from fastpe._backends.host import pool

SECONDS = 100  # for all scenarios of a process
CHILD_SECONDS = 50  # for a forked child
THREADS = 4  # more than the cores of a small machine: helpers run late
SMALL = (3, 5, 64)  # 4 KB: the caller alone
LARGE = (4, 1024, 512)  # 8 MB, 64 chunks: three helpers
HUGE = (8, 2048, 512)  # 32 MB: long enough to be interrupted

SCENARIOS: dict[str, Callable[[], None]] = {}


def scenario(function: Callable[[], None]) -> Callable[[], None]:
    SCENARIOS[function.__name__] = function
    return function


@functools.lru_cache
def pair(shape: tuple[int, ...], dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """An array and what a single thread makes of it."""
    before = pool._chosen
    given = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    fastpe.set_num_threads(1)
    expected = fastpe.add_encoding(given.copy())
    fastpe.set_num_threads(before)
    return given, expected


def same(got: np.ndarray, expected: np.ndarray) -> bool:
    return got.dtype == expected.dtype and got.shape == expected.shape and got.tobytes() == expected.tobytes()


def work(rounds: int = 5, shapes: tuple[tuple[int, ...], ...] = (SMALL, LARGE)) -> bool:
    """Add to fresh copies and compare."""
    for _ in range(rounds):
        for shape in shapes:
            given, expected = pair(shape)
            x = given.copy()
            assert fastpe.add_encoding(x) is x
            assert same(x, expected), f"{np.count_nonzero(x != expected)} of {x.size} elements differ for {shape}"
    return True


def prepare() -> None:
    """Compile, compute what is expected, and let calls use helpers."""
    for shape in (SMALL, LARGE):
        pair(shape)
    fastpe.set_num_threads(THREADS)


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastpe-")]


def in_threads(functions: list[Callable[[], Any]]) -> None:
    """Run functions at once, one thread each; raise what they raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], Any]) -> None:
        try:
            barrier.wait()
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def fork(function: Callable[[], Any]) -> int:
    """Run a function in a forked child; return the child's process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def wait_for(child: int, seconds: float = CHILD_SECONDS) -> None:
    """Raise unless the child ends by itself, and well."""
    limit = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            break
        if time.monotonic() > limit:
            os.kill(child, signal.SIGUSR1)  # shows its stacks
            time.sleep(1)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("a forked child hangs")
        time.sleep(0.002)
    assert status == 0, f"a forked child ended with status {status}"


class Background:
    """Threads that repeat a function until the block ends."""

    def __init__(self, function: Callable[[], Any], count: int) -> None:
        self._function, self._stop, self._errors = function, threading.Event(), []
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._function()
        except BaseException as error:
            self._errors.append(error)

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]


def renew_pool() -> None:
    """A pool without threads, when the helpers of the one before have left their spin slots: a call would go on finding them there."""
    limit = time.monotonic() + 30
    while any(slots.waiting() for slots in pool._spin_slots.values()) and time.monotonic() < limit:
        time.sleep(0.01)
    pool._pool = pool.Pool()
