"""Adding the sinusoidal encoding: fastpe and its rivals. Every benchmark checks its result first, then times.

``pytest bench --benchmark-only --benchmark-enable``; ``FASTPE_BENCH_SMALL=1`` shrinks the arrays, ``FASTPE_NUM_THREADS`` sets the
threads of fastpe, torch and the roofline. The time shown is that of one call.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import Any

import contenders
import pytest
from contenders import CONTENDERS, CUDA_CONTENDERS, Case, Contender, Timed, Work

from fastpe._backends import cuda

MOST_ROUNDS = 301
FIRST_CALLS = 3  # processes

pytestmark = pytest.mark.timeout(1800)


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
_current: dict[tuple[Case, str], Work] = {}


def work_of(case: Case, library: str) -> Work:
    """The arrays of a case; those of the last case are dropped first, for they may fill the memory."""
    if (case, library) not in _current:
        _current.clear()
        _current[case, library] = Work(case, importlib.import_module(library))
    return _current[case, library]


def run(benchmark: Any, work: Work, contender: Contender, seconds: float, clock: Any = contenders.seconds_per_call) -> None:
    """Check, then time."""
    call = contender.prepare(work)
    contenders.check(work, contender, call)
    timed = Timed(call, work.spend, clock)
    benchmark.group = f"{work.case} {work.library.__name__}"
    rounds = timed.rounds_in(seconds, MOST_ROUNDS)
    benchmark.pedantic(lambda: stopwatch.add(timed.round()), rounds=rounds)


def record(benchmark: Any, case: Case, contender: Contender, roofline: float, **more: Any) -> None:
    """Write beside the times what they mean."""
    benchmark.extra_info.update(
        contender=contender.name,
        shape=list(case.shape),
        dtype=case.dtype,
        array_bytes=case.nbytes,
        bytes=contender.bytes_moved(case),
        roofline_bandwidth=roofline,
        **more,
    )
    if benchmark.stats is not None:  # not with --benchmark-disable
        bandwidth = contender.bytes_moved(case) / benchmark.stats.stats.median
        benchmark.extra_info.update(bandwidth=bandwidth, share_of_roofline=bandwidth / roofline)


def _parameters(known: dict[str, Contender]) -> list[Any]:
    """All cases, each with the contenders that suit it; a case's contenders stand together."""
    return [
        pytest.param(case, contender, id=f"{contender.name}-{case}")
        for case in contenders.all_cases(contenders.is_small())
        for contender in known.values()
        if contender.suits(case)
    ]


# ---- host --------------------------------------------------------------------------------------------------------------------


@pytest.mark.benchmark(timer=stopwatch)
@pytest.mark.parametrize(("case", "contender"), _parameters(CONTENDERS))
def test_add_sinusoidal(benchmark: Any, roofline: Any, threads: int, seconds: float, case: Case, contender: Contender) -> None:
    if contender.missing():
        pytest.skip(f"{contender.missing()} is not installed")
    run(benchmark, work_of(case, "numpy"), contender, seconds)
    record(benchmark, case, contender, roofline.bandwidth(case.nbytes), device="cpu", threads=threads)


FIRST_CALL = """
import json, time
start = time.perf_counter()
import numpy, fastpe
imported = time.perf_counter()
x = numpy.zeros((1, 128, 768), "float32")
ready = time.perf_counter()
fastpe.add_encoding(x)
called = time.perf_counter()
fastpe.add_encoding(x)
print(json.dumps({"import": imported - start, "first": called - ready, "second": time.perf_counter() - called}))
"""


@pytest.mark.benchmark(timer=stopwatch, group="first call")
def test_first_call(benchmark: Any) -> None:
    """The first call of a process, which imports Numba and compiles; the import of NumPy and fastpe is in ``extra_info``."""

    def first_call() -> None:
        output = subprocess.run([sys.executable, "-c", FIRST_CALL], check=True, capture_output=True, text=True).stdout
        found = json.loads(output)
        assert found["second"] < found["first"]
        benchmark.extra_info.update(import_seconds=found["import"], second_call_seconds=found["second"])
        stopwatch.add(found["first"])

    benchmark.pedantic(first_call, rounds=FIRST_CALLS)


# ---- GPU ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def gpu() -> str:
    """The GPU and its library in words; skips where there is none, fails where one was asked for."""
    found = cuda.problem()
    if found is not None:
        (pytest.fail if os.environ.get("FASTPE_REQUIRE_CUDA") == "1" else pytest.skip)(f"no GPU: {found}")
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    return f"{name}, CuPy {cupy.__version__}"


@pytest.mark.cuda
@pytest.mark.benchmark(timer=stopwatch)
@pytest.mark.parametrize(("case", "contender"), _parameters(CUDA_CONTENDERS))
def test_add_sinusoidal_cuda(
    benchmark: Any, gpu: str, cuda_roofline: Any, seconds: float, case: Case, contender: Contender
) -> None:
    run(benchmark, work_of(case, "cupy"), contender, seconds, contenders.cuda_seconds_per_call)
    record(benchmark, case, contender, cuda_roofline.bandwidth(case.nbytes), device="cuda", device_name=gpu)
