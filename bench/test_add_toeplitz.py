"""Adding a bias to attention scores: fastpe, and a cached bias of every head in torch and NumPy. Checked first, then timed."""

from __future__ import annotations

from typing import Any

import pytest

from fastpe._tools.benchmark.case import Case

from .suite import MARKS, Suite, parameters

pytestmark = MARKS


@pytest.mark.parametrize(("case", "contender"), parameters("add_bias"))
def test_add_toeplitz(benchmark: Any, suite: Suite, case: Case, contender: str) -> None:
    suite.measure(benchmark, case, contender)
