"""Token embedding, scaled and encoded: fastpe, and gathering, scaling and adding in torch and NumPy. Checked first, then timed."""

from __future__ import annotations

from typing import Any

from .suite import MARKS, Suite, parameters

pytestmark = MARKS


@parameters("embed")
def test_embed(benchmark: Any, suite: Suite, contender: str, shape: str, dtype: str, device: str) -> None:
    suite.measure(benchmark, "embed", contender, shape, dtype, device)
