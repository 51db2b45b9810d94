"""Packages that a tool needs and the library does not."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path


def problem(packages: Sequence[str], install: str) -> str | None:
    """Which of the packages is missing, and how to install it; None if all are there."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{missing[0]} is not installed: {install}" if missing else None


def folder(package: str) -> Path:
    """Where the files of an installed package are."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
