"""What the benchmarks share: the bandwidth of the machine, and the machine in the results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import contenders
import numpy as np
import pytest
import report


class Roofline:
    """Bandwidth of the fastest ``x += 1`` over so many bytes; measured once for each size."""

    def __init__(self, probes: Callable[[int], dict[str, contenders.Timed]], seconds: float) -> None:
        self._probes, self._seconds = probes, seconds
        self._found: dict[int, float] = {}

    def bandwidth(self, nbytes: int) -> float:
        """Bytes read and written per second."""
        if nbytes not in self._found:
            medians = contenders.interleave(self._probes(nbytes), self._seconds, 301)
            self._found[nbytes] = contenders.bandwidth(nbytes, medians.values())
        return self._found[nbytes]


@pytest.fixture(scope="session")
def threads() -> int:
    """Threads of every contender that can use several."""
    return contenders.settle_threads()


@pytest.fixture(scope="session")
def seconds() -> float:
    """How long a benchmark runs."""
    return 0.01 if contenders.is_small() else 2.0


@pytest.fixture(scope="session")
def roofline(threads: int, seconds: float) -> Roofline:
    """Of the host, with the threads of this run."""

    def probes(nbytes: int) -> dict[str, contenders.Timed]:
        x = np.zeros(nbytes // 4, np.float32)
        return {name: contenders.Timed(call) for name, call in contenders.host_probes(x, threads).items()}

    return Roofline(probes, seconds / 2)


@pytest.fixture(scope="session")
def cuda_roofline(seconds: float) -> Roofline:
    """Of the GPU, timed by events."""

    def probes(nbytes: int) -> dict[str, contenders.Timed]:
        import cupy

        x = cupy.zeros(nbytes // 4, "float32")
        return {"cupy": contenders.Timed(lambda: cupy.add(x, 1, out=x), clock=contenders.cuda_seconds_per_call)}

    return Roofline(probes, seconds / 2)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["fastpe"] = report.machine(contenders.settle_threads())
