"""Which cores lie nearest to the same memory: NUMA nodes. The helpers of a small call stay on its caller's node."""

from __future__ import annotations

import contextlib
import functools
import os

Cores = frozenset[int]
FOLDER = "/sys/devices/system/node"


@functools.lru_cache(maxsize=1)
def here() -> tuple[Cores, ...]:
    """The cores that this process may run on, by node; none where they are all on one node, or the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    return read(FOLDER, frozenset(os.sched_getaffinity(0)))


def read(folder: str, allowed: Cores) -> tuple[Cores, ...]:
    """The same, of a folder that describes nodes as Linux does."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for name in sorted(os.listdir(folder)):
            if name.startswith("node") and name[4:].isdigit():
                with open(f"{folder}/{name}/cpulist") as file:
                    found.append(_cores(file.read()) & allowed)
    found = [cores for cores in found if cores]
    return tuple(found) if len(found) > 1 else ()


def _cores(text: str) -> Cores:
    """The cores of a list like ``0-3,8``."""
    ends = [part.split("-") for part in text.strip().split(",") if part]
    return frozenset(core for first, *last in ends for core in range(int(first), int(last[0] if last else first) + 1))


def of(core: int) -> Cores | None:
    """The cores of a core's node; None where there is one node, or it is not known."""
    return next((cores for cores in here() if core in cores), None)
