"""The tasks, one a module: what a model reads, what it must predict, and its metrics."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from ..model import Decoder

__all__ = ["FACTORS", "IGNORED", "TASKS", "Batch", "Task", "load", "task_class"]

FACTORS = (1, 2, 4, 8, 16)  # lengths that may be asked for, times the short one
IGNORED = -100  # the target of a token that is not scored: torch's ignore_index


class Batch(NamedTuple):
    """ids (B, T) that a model reads, and the targets (B, T) to predict at each of them; int64, IGNORED where nothing is scored."""

    ids: torch.Tensor
    targets: torch.Tensor


class Task(ABC):
    """A task, read from a folder where ``prepare`` left its data.

    ``tokens`` and ``outputs`` are the sizes of a model's table and of its last layer. Texts of up to ``length`` tokens are short.
    """

    title: ClassVar[str]
    metrics: ClassVar[dict[str, str]]  # name of each: "lower" or "higher" is better; the first one is drawn
    sampled: ClassVar[tuple[int, ...]] = ()  # lengths at which a sample of the output is kept
    steps: ClassVar[int]  # of training, 32 texts each
    tokens: int
    outputs: int

    @classmethod
    @abstractmethod
    def prepare(cls, folder: Path) -> None:
        """Make the task's data in a folder of its own; fetch what is missing. Later calls return at once."""

    @abstractmethod
    def __init__(self, folder: Path, length: int) -> None: ...

    @abstractmethod
    def batch(self, rng: np.random.Generator, count: int, factor: int = 1) -> Batch:
        """Draw a batch of training texts, up to ``factor`` times the short length. Nothing depends on earlier calls."""

    @abstractmethod
    def evaluate(self, model: Decoder, factor: int, count: int) -> dict[str, float]:
        """Return each metric on ``count`` held-out texts of about ``factor`` times the short length: the same ones for every model."""

    def sample(self, model: Decoder, factor: int) -> str:
        """Return what was read, "> " and what the model writes, at one of the lengths that are ``sampled``."""
        raise TypeError(f"{self.title} writes nothing, and must have no lengths that are sampled")


TASKS = {"text": "Text", "sentiment": "Sentiment", "translation": "Translation"}  # module -> class


def task_class(name: str) -> type[Task]:
    """The class of a task; what it needs is imported only now."""
    task: type[Task] = getattr(importlib.import_module(f"{__name__}.{name}"), TASKS[name])
    return task


@lru_cache(maxsize=1)
def load(name: str, data: Path, length: int) -> Task:
    """A task with its data; a process keeps the last one."""
    return task_class(name)(data / name, length)
