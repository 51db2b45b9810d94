"""One process a core, each with one thread: jobs go to whichever is free, in the order given, once the jobs they need are done."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any

import torch

import fastpe

from .jobs import Job, Plan, run

__all__ = ["cores", "run_all"]

_tell: Callable[[int], None] = lambda units: None  # noqa: E731 (each process sets its own)


def cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(
    todo: list[Job],
    plan: Plan,
    processes: int,
    bar: Any,
    worth_it: Callable[[Job], bool] = lambda job: True,
    done: Callable[[Job, float], None] = lambda job, seconds: None,
) -> list[Job]:
    """Run all jobs; return those left out: where ``worth_it`` returned False when they were due, or for a job they need.

    ``done`` is called with each job and its seconds. The first error is raised once the jobs under way have ended.
    """
    context = multiprocessing.get_context("spawn")  # a fork would take Numba's and torch's threads along
    line = context.SimpleQueue()
    waiting, running, left = list(todo), dict[Future[float], Job](), set[Job]()
    with ProcessPoolExecutor(processes, context, _begin, (line,)) as pool:
        while waiting or running:
            while len(running) < processes and (job := _next(waiting, running)) is not None:
                waiting.remove(job)
                if job.needs in left or not worth_it(job):
                    left.add(job)
                else:
                    running[pool.submit(_run, job, plan)] = job
                    bar.set_postfix_str(", ".join(map(str, running.values())))
            finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            while not line.empty():
                bar.update(line.get())
            for future in finished:
                job = running.pop(future)
                done(job, future.result())
    return [job for job in todo if job in left]


def _next(waiting: list[Job], running: dict[Future[float], Job]) -> Job | None:
    """The first job whose needs are met."""
    unfinished = {*waiting, *running.values()}
    return next((job for job in waiting if job.needs not in unfinished), None)


def _begin(line: Any) -> None:
    global _tell
    torch.set_num_threads(1)
    fastpe.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    _tell = line.put


def _run(job: Job, plan: Plan) -> float:
    began = time.perf_counter()
    told, last = 0, began

    def tell(units: int) -> None:  # a few times a second is enough
        nonlocal told, last
        told += units
        if (now := time.perf_counter()) > last + 0.3:
            _tell(told)
            told, last = 0, now

    try:
        return run(job, plan, tell)
    finally:
        _tell(told)
