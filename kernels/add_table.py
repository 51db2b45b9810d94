"""Learned positions: x*input_scale + learned[position], in place or out of place, for the CPU.

See `gather_sum.py` for everything else. A masked row keeps x unscaled.
"""

from __future__ import annotations

from typing import Any

from . import gather_sum


def build(x: str, learned: str) -> Any:
    """Return the kernel, not compiled yet, of these element types; the result has that of x."""
    return gather_sum.build("add_table", x, None, learned, x, gather_sum.LEARNED)
