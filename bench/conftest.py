"""What the benchmarks share: how a case is measured, and the machine in the results."""

from __future__ import annotations

from typing import Any

import pytest

from fastpe._tools.benchmark.probes import settle_threads
from fastpe._tools.machine import is_small

from . import report
from .suite import Suite


@pytest.fixture(scope="session")
def suite() -> Suite:
    """Measures each benchmark for two seconds; torch has fastpe's threads."""
    return Suite(settle_threads(), 0.01 if is_small() else 2.0)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["fastpe"] = report.machine(settle_threads())
