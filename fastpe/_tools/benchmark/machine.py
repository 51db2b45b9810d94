"""What a figure depends on, and figures in words."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from ..cli import cpu_name
from .clock import is_small


def machine(threads: int, command: str) -> dict[str, Any]:
    """Processor, cores, threads, versions, command."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {"Python": platform.python_version()}
    for title, package in (("NumPy", "numpy"), ("Numba", "numba"), ("torch", "torch"), ("fastpe", "fastpe")):
        try:
            versions[title] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    small = "FASTPE_BENCH_SMALL=1 " if is_small() else ""
    return {"cpu": cpu_name(), "cores": cores, "threads": threads, "versions": versions, "command": small + command}


def describe(found: dict[str, Any]) -> str:
    """The machine in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{found['cpu']}, {_count(found['cores'], 'core')}, {_count(found['threads'], 'thread')}; {versions}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


# ---- numbers -----------------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    unit, scale = ("s", 1.0) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-3 else ("us", 1e-6)
    value = seconds / scale
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def speedup(ratio: float | None) -> str:
    """How many times faster; "-" if it was not measured."""
    return "-" if ratio is None else f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}x"


def size(shape: tuple[int, ...], nbytes: int) -> str:
    """A shape and what it weighs."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= scale:
            return f"({', '.join(map(str, shape))}), {nbytes / scale:.3g} {unit}"
    return f"({', '.join(map(str, shape))}), {nbytes} B"
