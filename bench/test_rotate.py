"""Rotating queries and keys: fastpe, and the usual expression in torch and NumPy. Checked first, then timed."""

from __future__ import annotations

from typing import Any

import pytest

from fastpe._tools.benchmark.case import Case

from .suite import MARKS, Suite, parameters

pytestmark = MARKS


@pytest.mark.parametrize(("case", "contender"), parameters("apply_rotary"))
def test_rotate(benchmark: Any, suite: Suite, case: Case, contender: str) -> None:
    suite.measure(benchmark, case, contender)
