"""How the suite measures a case: check, time in rounds, and write beside the times what they mean."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from fastpe._backends import cuda
from fastpe._tools.benchmark.case import Case
from fastpe._tools.benchmark.clock import Timed, cuda_seconds_per_call, interleave, seconds_per_call
from fastpe._tools.benchmark.probes import bandwidth, host_probes
from fastpe._tools.benchmark.workload import Workload
from fastpe._tools.machine import is_small

from . import registry
from .registry import Entry

MOST_ROUNDS = 301


class Stopwatch:
    """A clock that shows the seconds put on it. Restoring x, or starting a process, takes no time on it."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __call__(self) -> float:
        return self._seconds

    def __repr__(self) -> str:
        return "Stopwatch"

    def add(self, seconds: float) -> None:
        """Let time pass."""
        self._seconds += seconds


stopwatch = Stopwatch()
MARKS = [pytest.mark.timeout(1800), pytest.mark.benchmark(timer=stopwatch)]


NAMES = ("contender", "shape", "dtype", "device")


def parameters(operation: str) -> Any:
    """All cases of a verb, each with the contenders that suit it, the usual expression of NumPy or CuPy first; those of the GPU last.

    Parameters are texts, so that ``--benchmark-group-by=param:contender`` and the saved JSON name them.
    """
    every = [
        pytest.param(
            *(name, "x".join(map(str, case.shape)), case.dtype, device),
            id=f"{'cuda-' * (device == 'cuda')}{name}-{case.id}",
            marks=marks,
        )
        for device, marks in (("cpu", ()), ("cuda", pytest.mark.cuda))
        for case in registry.suite(operation, is_small(), device)
        for name in registry.entries(case)
    ]
    return pytest.mark.parametrize(NAMES, every)


class Suite:
    """Measures cases, and keeps the arrays of the last one and the roofline of each size."""

    def __init__(self, threads: int, seconds: float) -> None:
        self.threads, self.seconds = threads, seconds
        self._last: tuple[Case, Workload] | None = None
        self._rooflines: dict[tuple[str, int], float] = {}
        self._baselines: dict[Case, float] = {}

    def measure(self, benchmark: Any, operation: str, name: str, shape: str, dtype: str, device: str) -> None:
        """Check a contender, then time it."""
        case = Case(operation, tuple(map(int, shape.split("x"))), dtype, device)
        entry, where = registry.entries(case)[name], {"device": "cpu", "threads": self.threads}
        if case.device == "cuda":
            where = {"device": "cuda", "device_name": require_gpu()}
        if entry.contender.missing():
            pytest.skip("torch is not installed")
        work = self.workload(case)
        call = entry.contender.make(work)
        work.check(name, entry.contender, call)
        timed = Timed(call, work.spend, cuda_seconds_per_call if case.device == "cuda" else seconds_per_call)
        benchmark.group = str(case)
        rounds = timed.rounds_in(self.seconds, MOST_ROUNDS)
        benchmark.pedantic(lambda: stopwatch.add(timed.round()), rounds=rounds)
        self._record(benchmark, work, name, entry, where)

    def workload(self, case: Case) -> Workload:
        """The arrays of a case; those of the last case are dropped first, for they may fill the memory."""
        if self._last is None or self._last[0] != case:
            self._last = None
            self._last = case, registry.workload(case)
        return self._last[1]

    def roofline(self, device: str, nbytes: int) -> float:
        """Bytes read and written per second by the fastest ``x += 1`` over so many bytes."""
        if (device, nbytes) not in self._rooflines:
            medians = interleave(self._probes(device, nbytes), self.seconds / 2, MOST_ROUNDS)
            self._rooflines[device, nbytes] = bandwidth(nbytes, medians.values())
        return self._rooflines[device, nbytes]

    def _probes(self, device: str, nbytes: int) -> dict[str, Timed]:
        if device == "cpu":
            ones = np.zeros(nbytes // 4, np.float32)
            return {name: Timed(call) for name, call in host_probes(ones, self.threads).items()}
        import cupy

        x = cupy.zeros(nbytes // 4, "float32")
        return {"cupy": Timed(lambda: cupy.add(x, 1, out=x), clock=cuda_seconds_per_call)}

    def _record(self, benchmark: Any, work: Workload, name: str, entry: Entry, where: dict[str, Any]) -> None:
        case = work.case
        moved, roofline = entry.bytes_moved(case, work), self.roofline(case.device, work.moved // 2)
        benchmark.extra_info.update(
            operation=case.operation,
            contender=name,
            shape=list(case.shape),
            dtype=case.dtype,
            array_bytes=work.moved // 2,
            bytes=moved,
            roofline_bandwidth=roofline,
            **where,
        )
        if benchmark.stats is not None:  # not with --benchmark-disable
            median = benchmark.stats.stats.median
            benchmark.extra_info.update(bandwidth=moved / median, share_of_roofline=moved / median / roofline)
            if name in registry.BASELINES:
                self._baselines[case] = median
            if case in self._baselines:
                benchmark.extra_info.update(times_as_fast_as_the_baseline=self._baselines[case] / median)


def require_gpu() -> str:
    """The GPU and its library in words; skips where there is none, fails where one was asked for."""
    problem = cuda.problem()
    if problem is not None:
        (pytest.fail if os.environ.get("FASTPE_REQUIRE_CUDA") == "1" else pytest.skip)(f"no GPU: {problem}")
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    return f"{name}, CuPy {cupy.__version__}"
