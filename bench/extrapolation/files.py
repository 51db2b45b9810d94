"""Files are written whole or not at all, so that a killed run resumes from what it had."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .sources import LabError

__all__ = ["claim", "read_json", "write_arrays", "write_json", "write_text", "write_torch"]


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to the target, which replaces it on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with _replacing(path) as beside:
        beside.write_text(text, "utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def write_arrays(path: Path, **arrays: npt.NDArray[Any]) -> None:
    with _replacing(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays)


def write_torch(path: Path, value: Any) -> None:
    with _replacing(path) as beside:
        torch.save(value, beside)


def claim(folder: Path, asked: dict[str, Any]) -> None:
    """Make a folder of results this run's own: results already there must have the same settings."""
    mine = folder / "settings.json"
    if not mine.exists():
        write_json(mine, asked)
    elif (known := read_json(mine)) != asked:
        differ = ", ".join(f"{name} {known.get(name)}, not {asked[name]}" for name in asked if known.get(name) != asked[name])
        raise LabError(f"lab: --out must be a folder of this run's own, got {folder}, which has {differ}. Name another one.")
