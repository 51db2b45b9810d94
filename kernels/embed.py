"""Token embedding: rows of a table by id, scaled, with token types and positions added, for the CPU.

    build(table, types, learned, out, adds): element types, None where there is none; int8 and uint8 tables have row_scales and zero_points,
        (V,) f64 each

See `gather_sum.py` for everything else. A masked row becomes zero.
"""

from __future__ import annotations

from typing import Any

from . import gather_sum


def build(table: str, types: str | None, learned: str | None, out: str, adds: str) -> Any:
    """Return the kernel, not compiled yet."""
    return gather_sum.build("embed", table, types, learned, out, adds)
