"""The largest set of encodings that a time allows, from the time each took on another machine and the speed of this one."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .encodings import ENCODINGS, TRAININGS, Size
from .files import read_json
from .jobs import Job, Plan, jobs
from .model import Decoder
from .sources import LabError
from .training import BATCH

__all__ = ["Costs", "choose", "makespan", "seconds", "step_seconds"]

MEASURED = Path(__file__).resolve().parent.parent / "results" / "extrapolation" / "seed0.json"
MARGIN = 0.95  # of the time: processes start, and the report is drawn


def seconds(text: str) -> float:
    """``90s``, ``15m`` or ``1h`` as seconds; LabError for anything else."""
    number, unit = text[:-1], {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    try:
        limit = float(number) * (unit or 0)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise LabError(f"lab: --budget must be a time such as 90s, 15m or 1h, got {text!r}.")
    return limit


def step_seconds(size: Size, repeats: int = 20) -> float:
    """Seconds of a training step of a small model here, on one thread: the median of several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = Decoder(96, 96, TRAININGS["rotary"].make(size), size)
        ids = torch.from_numpy(np.random.default_rng(0).integers(0, 96, (BATCH, size.length)))
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
            times.append(time.perf_counter() - began)
        return float(np.median(times))
    finally:
        torch.set_num_threads(threads)


class Costs:
    """Estimates the seconds of a job here, from a file of results of any machine; each job that ends corrects the speed."""

    def __init__(self, plan: Plan, step: float, measured: Path = MEASURED) -> None:
        self.plan, results = plan, read_json(measured)
        self.known, self.speed = results, step / results["step_seconds"]
        self.expected = self.spent = 0.0

    def __call__(self, job: Job) -> float:
        """Seconds that a job will take; 0 if it is done."""
        return 0.0 if job.is_done(self.plan) else self._before(job) * self.speed * self.correction

    @property
    def correction(self) -> float:
        return self.spent / self.expected if self.expected else 1.0

    def learn(self, job: Job, took: float) -> None:
        """Correct the speed by the seconds that a job took."""
        self.expected, self.spent = self.expected + self._before(job) * self.speed, self.spent + took

    def _before(self, job: Job) -> float:
        """Seconds it took there, scaled to the units of this plan: fewer steps, other lengths."""
        entry = self.known["tasks"][job.task]["jobs"]
        there = entry[f"{'train' if job.trains else 'read'} {job.name}"]
        return float(there["seconds"] * job.units(self.plan) / there["units"])


def choose(tasks: list[str], encodings: list[str], costs: Any, processes: int, limit: float) -> dict[str, list[str]]:
    """Return for each task the encodings to take, as many in all as the limit in seconds allows.

    It finds the cheapest set for each number of encodings, and takes the largest number whose schedule ends in time.
    """
    cheapest: list[tuple[float, list[tuple[str, str]]]] = [(0.0, [])]  # for each number of encodings
    for task in tasks:
        for options in _groups(task, encodings, costs):
            longer = [(float("inf"), [])] * (len(cheapest) + len(options) - 1)
            for n, (work, chosen) in enumerate(cheapest):
                for m, (more, added) in enumerate(options):
                    if work + more < longer[n + m][0]:
                        longer[n + m] = (work + more, chosen + added)
            cheapest = longer
    for _, chosen in reversed(cheapest):
        sets = {task: [name for name in encodings if (task, name) in chosen] for task in tasks}
        todo = [job for task, names in sets.items() for job in jobs([task], names)]
        if makespan(todo, costs, processes) <= limit * MARGIN:
            return sets
    return {task: [] for task in tasks}


def _groups(task: str, encodings: list[str], costs: Any) -> Iterable[list[tuple[float, list[tuple[str, str]]]]]:
    """For each model trained from nothing: the work of its 0, 1, 2, ... cheapest encodings, and which they are."""
    groups: dict[str, list[str]] = {}
    for name in encodings:
        training = ENCODINGS[name].training
        groups.setdefault(TRAININGS[training].start or training, []).append(name)
    for root, names in groups.items():
        own = {name: jobs([task], [name]) for name in names}
        first = Job(task, root, True)
        prices = {name: sum(costs(job) for job in needed if job != first) for name, needed in own.items()}
        options: list[tuple[float, list[tuple[str, str]]]] = [(0.0, [])]
        for name in sorted(names, key=lambda name: prices[name]):
            work, chosen = options[-1]
            options.append((work + prices[name] + (costs(first) if len(options) == 1 else 0.0), [*chosen, (task, name)]))
        yield options


def makespan(todo: list[Job], costs: Any, processes: int) -> float:
    """When the last job ends, if each free process takes the next job."""
    ready = [0.0] * processes
    ends: dict[Job, float] = {}
    for job in todo:
        free = heapq.heappop(ready)
        start = max(free, ends.get(job.needs, 0.0)) if job.needs is not None else free
        ends[job] = start + costs(job)
        heapq.heappush(ready, ends[job])
    return max(ends.values(), default=0.0)
