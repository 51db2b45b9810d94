"""Learned positions: x*input_scale + learned[position], in place or out of place, for the CPU.

`sum_rows.py` says the rest. A masked row keeps x unscaled.
"""

from __future__ import annotations

from typing import Any

from . import sum_rows

SIGNATURE = sum_rows.SIGNATURE


def build(x: str, learned: str) -> Any:
    """Return the kernel, not compiled yet, of these element types; the result has that of x."""
    return sum_rows.build("add_table", x, None, learned, x, sum_rows.LEARNED)
