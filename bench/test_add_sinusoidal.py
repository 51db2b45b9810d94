"""Adding the sinusoidal encoding: fastpe and its rivals. Every benchmark checks its result first, then times.

``pytest bench --benchmark-only --benchmark-enable``; ``FASTPE_BENCH_SMALL=1`` shrinks the arrays, ``FASTPE_NUM_THREADS`` sets the
threads of fastpe, torch and the roofline. The time shown is that of one call.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from .suite import MARKS, Suite, parameters, stopwatch

FIRST_CALLS = 3  # processes

pytestmark = MARKS


@parameters("add_encoding")
def test_add_sinusoidal(benchmark: Any, suite: Suite, contender: str, shape: str, dtype: str, device: str) -> None:
    suite.measure(benchmark, "add_encoding", contender, shape, dtype, device)


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


@pytest.mark.benchmark(group="first call", timer=stopwatch)
def test_first_call(benchmark: Any) -> None:
    """The first call of a process, which imports Numba and compiles; the import of NumPy and fastpe is in ``extra_info``."""

    def first_call() -> None:
        output = subprocess.run([sys.executable, "-c", FIRST_CALL], check=True, capture_output=True, text=True).stdout
        seconds = json.loads(output)
        assert seconds["second"] < seconds["first"]
        benchmark.extra_info.update(import_seconds=seconds["import"], second_call_seconds=seconds["second"])
        stopwatch.add(seconds["first"])

    benchmark.pedantic(first_call, rounds=FIRST_CALLS)
