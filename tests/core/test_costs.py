"""What imports and calls cost in time: to be measured while nothing else runs."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from fresh_python import python
from scenario_processes import check

import fastpe

pytestmark = pytest.mark.alone


def test_import_is_quick(tmp_path):
    """At most 30 ms on top of NumPy, from bytecode, which the first process writes."""
    code = "import numpy, time; t = time.perf_counter(); import fastpe; print(time.perf_counter() - t)"
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    seconds = (float(python(code, **bytecode)) for _ in range(40))
    assert any(one < 0.030 for one in seconds)  # the least of so many: other work on the machine only adds


@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)) < 2, reason="one core")
def test_a_busy_neighbour_costs_at_most_its_share():
    """With a process that spins on a core of this one's, a call takes less than twice as long as one thread alone."""
    check("busy_neighbour")


OVERHEAD = 60e-6  # 5 us on an idle machine; ten times that shows a path that converts or compiles


def least(call, repeats=5, count=200):
    """The best mean of some repeats, in seconds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(count):
            call()
        best = min(best, (time.perf_counter() - start) / count)
    return best


@pytest.mark.parametrize("shape", [(1, 1024), (32, 1, 1024)])
def test_overhead_is_small(shape):
    torch = pytest.importorskip("torch")
    array = np.zeros(shape, np.float32)
    x = torch.zeros(shape)
    assert least(lambda: fastpe.add_encoding(x, offset=9)) < least(lambda: fastpe.add_encoding(array, offset=9)) + OVERHEAD
