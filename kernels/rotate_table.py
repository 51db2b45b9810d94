"""Rotary positions by a caller's table: pairs of channels of q and k rotated by the cosines and sines of row p, for the CPU.

    cosines, sines: (table_rows, F) float32 for 16- and 32-bit arrays, float64 for float64; rows table_row_stride bytes apart

A position outside [0, table_rows) makes a NaN row. See `rotate_pairs.py` for everything else.
"""

from __future__ import annotations

from typing import Any

from . import abi, rotate_pairs, scheduler
from . import arithmetic as a
from . import rotate_loops as loops
from .scheduler import position_of, word

at = abi.ROTATE_TABLE.index


def build(dtype: str, mode: int, out_dtype: str | None = None) -> Any:
    """Return the kernel, not compiled yet, of an element type, a mode and, where out has another element type, that."""
    element = a.ELEMENTS[dtype]
    copy_angles = loops.copy_angles(element)
    inline = scheduler.inline_as(rotate_pairs.variant_of("rotate_table", dtype, mode, out_dtype))

    @inline
    def make_angles(call, b, t, cosines_at, sines_at):
        """Cosines and sines of one row, from the table."""
        row = position_of(call, b, t, 0) >> 32
        valid = 0 <= row < word(call, at.table_rows)
        skipped = row * word(call, at.table_row_stride) if valid else 0
        copy_angles(call, skipped, valid, cosines_at, sines_at)

    return rotate_pairs.build("rotate_table", dtype, mode, out_dtype, make_angles)
