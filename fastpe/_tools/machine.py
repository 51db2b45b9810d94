"""The machine that figures were measured on, and how figures are written."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from typing import Any

PACKAGES = (("NumPy", "numpy"), ("Numba", "numba"), ("torch", "torch"), ("fastpe", "fastpe"))


def is_small() -> bool:
    """Whether the environment asks for tiny arrays, which only show that everything runs."""
    return os.environ.get("FASTPE_BENCH_SMALL") == "1"


def cpu_name() -> str | None:
    """The processor's name, as the operating system gives it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or None


def machine(threads: int, command: str) -> dict[str, Any]:
    """Everything that a figure depends on: processor, cores, threads, versions, command."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {"Python": platform.python_version()}
    for title, package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[title] = importlib.metadata.version(package)
    small = "FASTPE_BENCH_SMALL=1 " if is_small() else ""
    return {"cpu": cpu_name(), "cores": cores, "threads": threads, "versions": versions, "command": small + command}


def describe(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['cpu']}, {_count(machine['cores'], 'core')}, {_count(machine['threads'], 'thread')}; {versions}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


# ---- numbers -----------------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """A time as three digits and a unit."""
    unit, scale = ("s", 1.0) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-3 else ("us", 1e-6)
    return f"{_three_digits(seconds / scale)} {unit}"


def speedup(ratio: float | None) -> str:
    """A ratio as three digits, such as ``1.15x``; "-" where it was not measured."""
    return "-" if ratio is None else f"{_three_digits(ratio)}x"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def size(shape: tuple[int, ...], nbytes: int) -> str:
    """A shape and its bytes."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= scale:
            return f"({', '.join(map(str, shape))}), {nbytes / scale:.3g} {unit}"
    return f"({', '.join(map(str, shape))}), {nbytes} B"
