"""Which tests run which lines of fastpe, and how long they take: recorded once for each file of tests, then read.

What runs in processes that tests start, and what Numba compiled, is not seen; `named_tests.py` names tests for it.
"""

from __future__ import annotations

import fnmatch
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mutations import Mutation
from named_tests import patterns_of


class Test(NamedTuple):
    seconds: float
    node: str

    @property
    def file(self) -> str:
        return self.node.partition("::")[0]

    @property
    def is_near(self) -> bool:
        """Whether it is a test of the core or of kernels, which need fewer libraries."""
        return self.node.startswith(("tests/core/", "tests/kernels/"))


class Recorder:
    """A plugin of pytest that says which test runs while coverage.py measures."""

    def __init__(self, coverage: Any, root: Path) -> None:
        self.coverage, self.root = coverage, root
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        start = time.perf_counter()
        result = yield
        self.seconds[item.nodeid] = time.perf_counter() - start
        self.coverage.switch_context("")
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.failed.add(report.nodeid)

    def write(self, path: Path) -> None:
        """The tests that passed, and the lines of each, as JSON."""
        names = [name for name in self.seconds if name not in self.failed]
        numbers = {name: number for number, name in enumerate(names)}
        lines: dict[str, dict[int, list[int]]] = {}
        data = self.coverage.get_data()
        for file in data.measured_files():
            found = data.contexts_by_lineno(file).items()
            of_line = {line: sorted(numbers[name] for name in contexts if name in numbers) for line, contexts in found}
            lines[str(Path(file).relative_to(self.root))] = {line: tests for line, tests in of_line.items() if tests}
        record = {"tests": [(self.seconds[name], name) for name in names], "lines": lines, "failed": sorted(self.failed)}
        path.write_text(json.dumps(record))


class Map:
    """The records of a folder together."""

    def __init__(self, folder: Path) -> None:
        self.tests: dict[str, list[Test]] = {}  # of each file
        self.lines: dict[str, dict[int, set[Test]]] = defaultdict(lambda: defaultdict(set))
        for path in sorted(folder.glob("*.json")):
            record = json.loads(path.read_text())
            tests = [Test(*one) for one in record["tests"]]
            if tests:
                self.tests[tests[0].file] = tests
            for file, lines in record["lines"].items():
                for line, numbers in lines.items():
                    self.lines[file][int(line)] |= {tests[number] for number in numbers}

    def tests_of(self, file: str, mutation: Mutation) -> list[Test]:
        """The tests to run for a mutant, quickest first: those of its statement, else of its function, else of its file.

        Those that are named come last, but before those of the whole file: what runs as a file is imported is seen by few.
        """
        lines = self.lines.get(file, {})
        chosen: set[Test] = set()
        for first, last in (mutation.lines, mutation.block):
            chosen = chosen or {test for line, tests in lines.items() if first <= line <= last for test in tests}
        every = {test for tests in lines.values() for test in tests} if not chosen else set()
        return list(dict.fromkeys([*sorted(chosen), *self._named(file), *sorted(every)]))

    def _named(self, file: str) -> Iterator[Test]:
        """The tests that are named for a file, the quickest of each pattern first."""
        every = sorted(test for tests in self.tests.values() for test in tests)
        found = (test for pattern in patterns_of(file) for test in every if fnmatch.fnmatch(test.node, pattern))
        yield from dict.fromkeys(found)
