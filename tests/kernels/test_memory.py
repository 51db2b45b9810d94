"""No kernel of the CPU reads or writes outside its arrays: they lie between pages at which the process ends."""

from __future__ import annotations

import os
import subprocess
import sys

import kept
import memory_cases
import pytest

ON_THE_GPU_ONLY = {"locate_rows"}  # NumPy does it on the host; the tables that it makes are guarded here


def test_every_kernel_has_cases():
    folder = kept.ROOT / "kernels"
    assert {path.stem for path in folder.glob("*.cu")} - ON_THE_GPU_ONLY == set(memory_cases.KERNELS)


@pytest.mark.parametrize("kernel", memory_cases.KERNELS)
def test_no_access_outside_the_arrays(kernel):
    places = [str(kept.ROOT), str(kept.ROOT / "tests" / "helpers"), str(kept.ROOT / "tests" / "fuzz")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "FASTPE_NUM_THREADS": "1"}
    command = [sys.executable, "-X", "faulthandler", memory_cases.__file__, kernel]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    last = ended.stdout.splitlines()[-1:]
    assert (ended.returncode, last) == (0, ["all cases ran"]), f"{last}\n{ended.stderr}"
