"""Scenarios of dying interpreters and of interrupted calls."""

from __future__ import annotations

import atexit
import gc
import os
import random
import signal
import threading
import time
from typing import Any

import numpy as np
from scenario_tools import HUGE, LARGE, helpers, pair, prepare, renew_pool, same, scenario, work

import fastpe
from fastpe._backends.host import pool

# ---- the end of the interpreter ----------------------------------------------------------------------------------------------


class CallsWhenDestroyed:
    """Calls in ``__del__``; says so on the standard output, whose Python object may be gone by then."""

    def __init__(self, name: str) -> None:
        self.name, self.given, self.expected = name, *pair(LARGE)
        self.add_encoding, self.same, self.write = fastpe.add_encoding, same, os.write

    def __del__(self) -> None:
        x = self.given.copy()
        self.add_encoding(x)
        self.write(1, f"{self.name} {'ok' if self.same(x, self.expected) else 'wrong'}\n".encode())


def _calls_at_exit() -> None:
    work(1)
    os.write(1, b"atexit ok\n")


@scenario
def calls_at_exit() -> None:
    """An exit handler makes the first call that wants helpers; an object destroyed still later calls when they are gone."""
    prepare()
    atexit.register(_calls_at_exit)
    gc.set_threshold(0)  # the last collection finds the object, not an earlier one by chance
    cycle = CallsWhenDestroyed("cycle")
    cycle.itself = cycle


@scenario
def first_helpers_wanted_at_the_end() -> None:
    """No thread can be started any more when an object is destroyed by the last collection."""
    prepare()
    cycle = CallsWhenDestroyed("cycle")
    cycle.itself = cycle


@scenario
def destroyed_with_its_module() -> None:
    """So late that nothing can be imported any more: the call may fail (Python reports it) but it must not hang."""
    prepare()
    global _kept
    _kept = CallsWhenDestroyed("module")


@scenario
def exit_while_daemon_threads_call() -> None:
    """Neither idle nor working helpers keep the process alive."""
    prepare()
    work()
    assert helpers()
    for _ in range(2):
        threading.Thread(target=lambda: [work(1) for _ in range(10**9)], daemon=True).start()
    time.sleep(0.1)


# ---- interruption ------------------------------------------------------------------------------------------------------------


def interrupt() -> None:
    """Ctrl-C, as if typed."""
    if os.name == "posix":
        os.kill(os.getpid(), signal.SIGINT)
    else:
        import _thread

        _thread.interrupt_main()


@scenario
def interrupted_calls() -> None:
    """Ctrl-C at random moments: once the caller has the exception, nothing writes to x any more."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    prepare()
    x = np.zeros(HUGE, np.float32)
    fastpe.add_encoding(x)
    armed, moments = threading.Semaphore(0), random.Random(2)

    def press() -> None:
        while True:
            armed.acquire()
            time.sleep(moments.uniform(0, 0.02))
            interrupt()

    threading.Thread(target=press, daemon=True).start()
    for _ in range(40):
        try:
            armed.release()
            while True:
                fastpe.add_encoding(x)
        except KeyboardInterrupt:
            after = x.copy()
        time.sleep(0.02)
        assert same(x, after), "x changed after KeyboardInterrupt"
    work()


@scenario
def interrupted_while_helpers_are_called() -> None:
    """Ctrl-C after a job was queued and before the caller has begun its own part."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    renew_pool()
    jobs, taken = pool._pool._jobs, threading.Event()

    class Interrupting:
        """A queue that lets a helper begin and then interrupts whoever offered the job."""

        get = staticmethod(jobs.get)

        @staticmethod
        def put(job: list[Any]) -> None:
            jobs.put(job)
            assert taken.wait(30)
            signal.raise_signal(signal.SIGINT)

    lock, left, writes = threading.Lock(), list(range(20)), []

    def kernel(number: int) -> None:
        """The protocol of a real kernel, slowly: claim chunks, and as the caller wait until all are finished."""
        while True:
            with lock:
                if not left:
                    break
                chunk = left.pop()
            taken.set()
            time.sleep(0.02)
            writes.append(chunk)
        while number == 0 and len(writes) < 20:
            time.sleep(0.001)

    pool._pool._jobs = Interrupting
    try:
        pool.run(kernel, (), 1, None)
    except KeyboardInterrupt:
        seen = len(writes)
    else:
        raise AssertionError("not interrupted")
    time.sleep(0.5)
    assert len(writes) == seen, f"{len(writes) - seen} chunks were written after KeyboardInterrupt"
