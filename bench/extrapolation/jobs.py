"""The jobs of a run, each done by one process: train a model, or evaluate one on longer texts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .encodings import ENCODINGS, FINE_TUNED, TRAININGS, Size
from .files import read_json, write_json
from .tasks import Task, load, task_class
from .training import TUNING_BATCH, TUNING_STEPS, build, train

__all__ = ["Job", "Plan", "Settings", "jobs", "run"]


@dataclass(frozen=True)
class Settings:
    """Everything results depend on; results of other settings are never mixed in."""

    seed: int = 0
    steps: int | None = None  # None: each task's own
    texts: int = 100  # that each length is evaluated on
    size: Size = field(default_factory=Size)


@dataclass(frozen=True)
class Plan:
    """Where a run keeps its data and its results, its settings, and the lengths to evaluate."""

    data: Path
    out: Path
    settings: Settings
    lengths: tuple[int, ...]  # times the trained one

    def model(self, task: str, training: str) -> Path:
        return self.out / task / f"{training}.pt"

    def result(self, task: str, encoding: str) -> Path:
        return self.out / task / f"{encoding}.json"


@dataclass(frozen=True)
class Job:
    """A training, or the evaluation of an encoding: ``name`` is that of either."""

    task: str
    name: str
    trains: bool

    def __str__(self) -> str:
        return f"{self.task}: {'train' if self.trains else 'read'} {self.name}"

    @property
    def needs(self) -> Job | None:
        """The training that must be done first."""
        before = TRAININGS[self.name].start if self.trains else ENCODINGS[self.name].training
        return None if before is None else Job(self.task, before, True)

    def is_done(self, plan: Plan) -> bool:
        if self.trains:
            return plan.model(self.task, self.name).exists()
        path = plan.result(self.task, self.name)
        return path.exists() and {str(factor) for factor in plan.lengths} <= read_json(path)["lengths"].keys()

    def units(self, plan: Plan) -> int:
        """The amount of work, in units of about a training step."""
        if not self.trains:
            return sum(1 + plan.settings.texts * factor // 96 for factor in plan.lengths)
        if TRAININGS[self.name].start is not None:
            return TUNING_STEPS * TUNING_BATCH * FINE_TUNED // 32
        return plan.settings.steps or task_class(self.task).steps


def jobs(tasks: list[str], encodings: list[str]) -> list[Job]:
    """All jobs of these tasks and encodings, trainings first, each after the jobs it needs."""
    needed: dict[Job, None] = {}
    for task in tasks:
        wanted = {ENCODINGS[name].training for name in encodings}
        wanted |= {start for name in wanted if (start := TRAININGS[name].start) is not None}
        needed |= {Job(task, name, True): None for name in TRAININGS if name in wanted}
        needed |= {Job(task, name, False): None for name in ENCODINGS if name in encodings}
    return list(needed)


def run(job: Job, plan: Plan, tell: Callable[[int], None]) -> float:
    """Run a job whose result is missing and whose needs are met; return the seconds. ``tell`` is called with units done."""
    task = load(job.task, plan.data, plan.settings.size.length)
    return (_train if job.trains else _evaluate)(job, task, plan, tell)


def _train(job: Job, task: Task, plan: Plan, tell: Callable[[int], None]) -> float:
    settings, before = plan.settings, job.needs
    steps = TUNING_STEPS if before is not None else settings.steps or task.steps
    start = None if before is None else plan.model(job.task, before.name)
    return train(task, TRAININGS[job.name], settings.size, settings.seed, steps, plan.model(job.task, job.name), start, tell)


def _evaluate(job: Job, task: Task, plan: Plan, tell: Callable[[int], None]) -> float:
    began, entry, settings = time.perf_counter(), ENCODINGS[job.name], plan.settings
    model = build(task, TRAININGS[entry.training], settings.size, settings.seed).eval()
    model.load_state_dict(torch.load(plan.model(job.task, entry.training)))
    trained, path = model.encoding, plan.result(job.task, job.name)
    result: dict[str, Any] = {"label": entry.label, "lengths": {}}
    if path.exists():
        result = read_json(path)
    with torch.inference_mode():
        for factor in plan.lengths:
            if str(factor) in result["lengths"]:
                continue
            model.encoding = entry.at(trained, factor, settings.size)
            metrics: dict[str, Any] = dict(task.evaluate(model, factor, settings.texts))
            if factor in task.sampled:
                metrics["sample"] = task.sample(model, factor)
            result["lengths"][str(factor)] = metrics
            write_json(path, result)
            tell(1 + settings.texts * factor // 96)
    return time.perf_counter() - began
