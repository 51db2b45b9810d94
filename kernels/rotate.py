"""Rotary positions: pairs of channels of q and k turned by position * frequency, in place or out of place, for the CPU.

c = factor cos(p w_f), s = factor sin(p w_f); with growths (xPos) both times 2^(+-(p - centre) growth_f), + where `grows`.

    frequencies, whole_turns: (F + MARGIN,) uint64, the fraction (2^-64 turn) and the integer part of a frequency in turns
    axes: (F,) int64, which of the A axes of the positions turns a frequency, or 0 where there is one
    growths: (F + MARGIN,) uint64 in units of 2^-64, or 0 for none; centre: a position in units of 2^-32

The polynomials are evaluated at the position itself, in float32 for 16- and 32-bit arrays and in float64 for float64, and multiplied by the
factor. `rotate_pairs.py` says the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import arithmetic as a
from . import blocks as at
from . import rotate_pairs, rows, sharing
from .rotate_pairs import rotary_position_of
from .sharing import number, word

SIGNATURE = rotate_pairs.SIGNATURE


def build(dtype: str, mode: int) -> Any:
    """Return the kernel, not compiled yet, of an element type and a mode."""
    element = a.ELEMENTS[dtype]
    real = element.number
    evaluate_angles, scale_angles = rows.angle_evaluator(element), rows.angle_scaler(element)
    inline = sharing.inline_as(f"rotate_{element.suffix}_{rotate_pairs.MODES[mode]}")

    @inline
    def make_angles(call, b, t, cosines_at, sines_at):
        """Cosines and sines of all frequencies for one row."""
        axes, pairs, factor = word(call, at.R_AXES), word(call, at.R_PAIRS), real(number(call, at.R_FACTOR))
        f = np.int64(0)
        while f < pairs:  # a run of frequencies of one axis; what it makes beyond is made again by the next
            axis, end = np.int64(0), pairs
            if axes != 0:
                axis, end = word(axes, f), f + 1
                while end < pairs and word(axes, end) == axis:
                    end += 1
            position = rotary_position_of(call, b, t, axis)
            evaluate_angles(call, position, factor, f, end, cosines_at, sines_at)
            if word(call, at.R_GROWTHS) != 0:
                scale_angles(call, position - word(call, at.R_CENTRE), f, end, cosines_at, sines_at)
            f = end

    return rotate_pairs.build("rotate", dtype, mode, make_angles)
