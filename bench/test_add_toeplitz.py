"""Adding a bias to attention scores: fastpe, and a cached bias of every head in torch and NumPy. Checked first, then timed."""

from __future__ import annotations

from typing import Any

from .suite import MARKS, Suite, parameters

pytestmark = MARKS


@parameters("add_bias")
def test_add_toeplitz(benchmark: Any, suite: Suite, contender: str, shape: str, dtype: str, device: str) -> None:
    suite.measure(benchmark, "add_bias", contender, shape, dtype, device)
