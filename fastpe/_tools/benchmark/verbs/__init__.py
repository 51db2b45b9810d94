"""The workload of each verb, and its contenders."""

from __future__ import annotations

from typing import Any

from ..case import Case
from ..workload import Workload
from .add_bias import Biasing
from .add_encoding import Adding
from .apply_rotary import Rotating
from .embed import Embedding

__all__ = ["WORKLOADS", "Adding", "Biasing", "Embedding", "Rotating", "prepare"]

WORKLOADS: dict[str, type[Workload]] = {
    "add_encoding": Adding,
    "apply_rotary": Rotating,
    "embed": Embedding,
    "add_bias": Biasing,
}


def prepare(case: Case, xp: Any = None) -> Workload:
    """The arrays of a case; ``xp`` where they are not those of its device's own library."""
    return WORKLOADS[case.operation](case, xp)
