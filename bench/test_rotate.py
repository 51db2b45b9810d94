"""Rotating queries and keys: fastpe, and the usual expression in torch and NumPy. Checked first, then timed."""

from __future__ import annotations

from typing import Any

from .suite import MARKS, Suite, parameters

pytestmark = MARKS


@parameters("apply_rotary")
def test_rotate(benchmark: Any, suite: Suite, contender: str, shape: str, dtype: str, device: str) -> None:
    suite.measure(benchmark, "apply_rotary", contender, shape, dtype, device)
