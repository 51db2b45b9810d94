"""Copies of the tree, and processes that run tests in them.

The parent has loaded the libraries that tests need, but nothing of fastpe; a process forked from it starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import py_compile
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from coverage_map import Recorder, Test
from named_tests import LEFT_OUT

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("numpy", "numba", "torch", "hypothesis", "hypothesis.strategies", "ml_dtypes", "mpmath", "transformers", "cupy")
LOG = Path(tempfile.gettempdir()) / f"fastpe-mutants-{os.getpid()}.log"  # of the process that ran last
_QUIET = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # of libraries that are loaded already
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0", "--tb=line", *_QUIET)


def preload() -> None:
    """Load what tests import, and Numba's compiler, before any process is forked."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            __import__(name)
    import numba

    numba.njit("int64(int64)")(lambda x: x + 1)


def copy(place: Path) -> Path:
    """A copy of the tree's files with their compiled modules; those of fastpe are used only while the source has their hash."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    for folder in ("fastpe", "kernels"):
        for path in (place / folder).rglob("*.py"):
            py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    return place


def copy_kernels(place: Path) -> Path:
    """Compiled kernels to start with: mutated ones are added to the copy alone."""
    kept = Path(os.environ.get("FASTPE_CACHE_DIR") or ROOT / ".cache")
    for name in ("numba", "nvrtc", "ptx", "llvm"):
        if (kept / name).is_dir():
            shutil.copytree(kept / name, place / name)
    place.mkdir(mode=0o700, exist_ok=True)
    return place


class Selection:
    """A plugin of pytest that keeps the chosen tests, in their order, and stops when their time is over."""

    def __init__(self, tests: Sequence[Test], seconds: float, root: Path) -> None:
        self.order = {test.node: number for number, test in enumerate(tests)}
        self.seconds, self.root = seconds, root
        self.ran, self.failed, self.end = 0, "", float("inf")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        import fastpe

        assert Path(fastpe.__file__).parents[1] == self.root, fastpe.__file__
        items[:] = sorted((item for item in items if item.nodeid in self.order), key=lambda item: self.order[item.nodeid])
        self.end = time.monotonic() + self.seconds

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "call"
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.failed:
            self.failed = f"{report.nodeid}, while it was collected"

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self) -> None:
        if time.monotonic() > self.end:
            pytest.exit("time is over", returncode=0)


def run(place: Path, kernels: Path, tests: Sequence[Test], seconds: float) -> dict[str, Any]:
    """Run tests in a copy: whether they passed, and what failed first."""
    result = place.parent / f"{place.name}.json"
    result.unlink(missing_ok=True)
    files = sorted({test.file for test in tests})

    def work() -> int:
        selection = Selection(tests, seconds, place)
        code = int(pytest.main([*OPTIONS, *files], plugins=[selection]))
        result.write_text(json.dumps({"code": code, "failed": selection.failed, "ran": selection.ran}))
        return code

    start = time.monotonic()
    limit = 60 + 3 * min(seconds, sum(test.seconds for test in tests)) + seconds
    ended = forked(place, kernels, work, limit)
    found = json.loads(result.read_text()) if result.exists() else {"code": -1, "failed": ended, "ran": 0}
    if found["code"] not in (0, 1) and not found["failed"]:
        found["failed"] = "pytest, while it started"
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def record(place: Path, kernels: Path, file: str, path: Path) -> str:
    """Run a file of tests under coverage.py and write what it saw."""

    def work() -> int:
        import coverage

        measured = coverage.Coverage(data_file=None, config_file=False, source=[str(place / "fastpe")], messages=False)
        recorder = Recorder(measured, place)
        measured.start()
        code = int(pytest.main([*OPTIONS[1:], "-m", "not alone", file], plugins=[recorder]))
        measured.stop()
        recorder.write(path)
        return code

    return forked(place, kernels, work, 1800)


def files_of_tests(pattern: str) -> Iterator[str]:
    """The files of tests that tell something of mutants."""
    for path in sorted((ROOT / "tests").glob("*/test_*.py")):
        name = str(path.relative_to(ROOT))
        if fnmatch.fnmatch(name, pattern) and not any(fnmatch.fnmatch(name, one) for one in LEFT_OUT):
            yield name


def forked(place: Path, kernels: Path, work: Callable[[], int], limit: float) -> str:
    """Work in a new process with its own group, which is ended with all that it started; how it ended, in words."""
    process = os.fork()
    if process == 0:
        code = 99
        try:
            code = _as_child(place, kernels, work)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + limit
    status = None
    while status is None and time.monotonic() < end:
        found, value = os.waitpid(process, os.WNOHANG)
        status = value if found else None
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    if status is None:
        os.waitpid(process, 0)
        return f"no test ended it: stopped after {limit:.0f} s"
    code = os.waitstatus_to_exitcode(status)
    return f"the process: {signal.Signals(-code).name}" if code < 0 else f"exit {code}"


def _as_child(place: Path, kernels: Path, work: Callable[[], int]) -> int:
    os.setsid()
    output = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(place)
    here = str(Path(__file__).parent)
    sys.path[:] = [str(place), *(path for path in sys.path if path not in (here, "", str(ROOT)))]
    os.environ |= {"PYTHONPATH": str(place), "FASTPE_CACHE_DIR": str(kernels), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    return work()
