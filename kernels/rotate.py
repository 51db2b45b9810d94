"""Rotary positions: pairs of channels of q and k rotated by position * frequency, in place or out of place, for the CPU.

c = factor cos(p w_f), s = factor sin(p w_f); with growths (xPos) both times 2^(+-(p - centre) growth_f), + where `grows`.

    frequencies, whole_turns: (F + MARGIN,) uint64, the fraction (2^-64 turn) and the integer part of a frequency in turns
    axes: (F,) int64, which of the A axes of the positions belongs to a frequency, or 0 where there is one
    growths: (F + MARGIN,) uint64 in units of 2^-64, or 0 for none; centre: a position in units of 2^-32

The polynomials are evaluated at the position itself, in float32 for 16- and 32-bit arrays and in float64 for float64, and multiplied by the
factor. See `rotate_pairs.py` for everything else.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import abi, rotate_pairs, scheduler
from . import arithmetic as a
from . import rotate_loops as loops
from .scheduler import number, position_of, word

at = abi.ROTATE.index


def build(dtype: str, mode: int, out_dtype: str | None = None) -> Any:
    """Return the kernel, not compiled yet, of an element type, a mode and, where out has another element type, that."""
    element = a.ELEMENTS[dtype]
    real = element.number
    evaluate_angles, scale_angles = loops.evaluate_angles(element), loops.scale_angles(element)
    inline = scheduler.inline_as(rotate_pairs.variant_of("rotate", dtype, mode, out_dtype))

    @inline
    def make_angles(call, b, t, cosines_at, sines_at):
        """Cosines and sines of all frequencies for one row."""
        axes, pairs, factor = word(call, at.axes), word(call, at.pairs), real(number(call, at.factor))
        f = np.int64(0)
        while f < pairs:  # the frequencies of one axis; the next ones overwrite the margin
            axis, end = np.int64(0), pairs
            if axes != 0:
                axis, end = word(axes, f), f + 1
                while end < pairs and word(axes, end) == axis:
                    end += 1
            position = position_of(call, b, t, axis)
            evaluate_angles(call, position, factor, f, end, cosines_at, sines_at)
            if word(call, at.growths) != 0:
                scale_angles(call, position - word(call, at.centre), f, end, cosines_at, sines_at)
            f = end

    return rotate_pairs.build("rotate", dtype, mode, out_dtype, make_angles)
