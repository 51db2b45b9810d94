"""Runs scenarios of concurrency in processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import concurrency_scenarios
import pytest

SCRIPT = Path(concurrency_scenarios.__file__)
SECONDS = concurrency_scenarios.SECONDS + 30  # the script ends itself first, and shows where it stood

# Scenarios of a kernel that is being compiled; the others load theirs.
COMPILING = {"first_call_from_eight_threads", "fork_while_a_thread_compiles", "fork_during_the_first_call"}


def run(*names: str) -> subprocess.CompletedProcess[str]:
    """Run scenarios in a process of their own, and end what they leave behind."""
    environment = {name: value for name, value in os.environ.items() if name not in ("FASTPE_NUM_THREADS", "OMP_NUM_THREADS")}
    if COMPILING & set(names):
        environment |= {"FASTPE_CACHE_DIR": os.devnull, "NUMBA_OPT": "0"}  # no folder, and half the time
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *names],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        end(process)
        output, errors = process.communicate()
        pytest.fail(f"{names} did not end; standard output:\n{output}\nstandard error:\n{errors}")
    finally:
        end(process)
    return subprocess.CompletedProcess(names, process.returncode, output, errors)


def end(process: subprocess.Popen[str]) -> None:
    """End a process and its children."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its session is its group
    else:
        process.kill()


def check(*names: str, later: tuple[str, ...] = ()) -> None:
    """Every scenario reports success, then whatever is said ``later``; and no thread has failed silently."""
    result = run(*names)
    report = f"standard output:\n{result.stdout}\nstandard error:\n{result.stderr}"
    assert result.returncode == 0, f"{names} ended with {result.returncode}; {report}"
    assert result.stdout.splitlines() == [*(f"ok {name}" for name in names), *later], report
    assert "Traceback" not in result.stderr, report
