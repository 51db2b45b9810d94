"""Plans: an encoding's frequencies and layout for one width, as the kernels need them, and the arithmetic of its small tables."""

from __future__ import annotations

import decimal
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._arrays.dtypes import ELEMENT_TYPES

DIGITS = 60
TWO_PI = "6.28318530717958647692528676655900576839433879875021164194988918461563281"
TAYLOR_TERMS = 10

UInt64s = npt.NDArray[np.uint64]
Float64s = npt.NDArray[np.float64]
ANCHOR_ROWS = 8  # rows that share one evaluation of the polynomials; part of the definition of the bits


class Turns(NamedTuple):
    """Frequencies of shape (F,) in turns per position: ``whole + fraction / 2^64``."""

    fraction: UInt64s
    whole: UInt64s


@dataclass(eq=False, repr=False)  # never written; frozen, with a repr, they would take 2 ms to import
class SinusoidalPlan:
    """Exact frequencies and column layout for one width D; F = ceil(D/2).

    ``second_half`` is the first column of the second block of the concatenated layout. ``tail_column`` is the column without a
    partner (-1 if D is even); its frequency is the last one. ``of_length``: of one length of a sequence, of many.
    """

    key: tuple[Any, ...]
    width: int
    turns: Turns
    interleaved: bool
    cosine_first: bool
    second_half: int
    tail_column: int
    tail_is_cosine: bool
    amplitude: float
    of_length: bool = False

    @property
    def columns(self) -> dict[str, int | float]:
        """The layout and the amplitude, by the names that they have in the kernels' argument block."""
        return {
            "interleaved": self.interleaved,
            "cosine_first": self.cosine_first,
            "second_half": self.second_half,
            "tail_column": self.tail_column,
            "tail_is_cosine": self.tail_is_cosine,
            "amplitude": self.amplitude,
        }

    # Nothing here is a cached_property: before Python 3.12 it holds a lock, which a fork could leave locked. Backends keep what they need.
    def tables(self) -> dict[str, Any]:
        """The kernels' tables, by the names that their addresses have in the argument block.

        The last two are cos(j w_f) and sin(j w_f), each (8, F) float32, for j = 0 ... 7. The sines are negated where the cosine comes
        first: then one rotation serves both orders, ``first' = first cos + second sin`` and ``second' = second cos - first sin``.
        """
        rows = np.arange(ANCHOR_ROWS, dtype=np.uint64)[:, None]
        sine, cosine = sine_cosine(rows * self.turns.fraction[None, :])
        return {
            "frequencies": self.turns.fraction,
            "whole_turns": self.turns.whole,
            "cosines": cosine.astype(np.float32),
            "sines": (-sine if self.cosine_first else sine).astype(np.float32),
        }


class GridPart(NamedTuple):
    """The channels from ``first_column`` on that follow one axis of the grid; those of ``plan`` may lie in two blocks."""

    axis: int
    first_column: int
    plan: SinusoidalPlan


class GridPlan(NamedTuple):
    """The parts of a row of a grid's encoding, for one width D."""

    width: int
    parts: tuple[GridPart, ...]


@dataclass(eq=False, repr=False)  # never written; frozen, with a repr, they would take 2 ms to import
class RotaryPlan:
    """Exact frequencies and layout for one head width; F = rotary_dim / 2.

    ``axes`` is the axis of each frequency's position; ``growths`` are xPos's in octaves a position, in units of 2^-64, None without it,
    and ``centre`` is where they are 1. ``of_length``: of one length of a sequence, of many.
    """

    key: tuple[Any, ...]
    head_dim: int
    rotary_dim: int
    angular: npt.NDArray[np.float64]
    turns: Turns
    axes: npt.NDArray[np.int64]
    first_channel: int = 0
    interleaved: bool = False
    attention_factor: float = 1.0
    growths: npt.NDArray[np.uint64] | None = None
    centre: int = 0
    of_length: bool = False

    kernel = "rotate"

    def tables(self) -> dict[str, Any]:
        """The kernels' tables, by the names that their addresses have in the argument block."""
        tables: dict[str, Any] = {"frequencies": self.turns.fraction, "whole_turns": self.turns.whole}
        if self.axes.any():
            tables["axes"] = np.asarray(self.axes, np.int64)
        if self.growths is not None:
            tables["growths"] = self.growths
        return tables


@dataclass(eq=False, repr=False)  # never written; frozen, with a repr, they would take 2 ms to import
class TablePlan:
    """Table and layout for one head width."""

    table: Any
    head_dim: int
    rotary_dim: int
    first_channel: int
    interleaved: bool

    kernel = "rotate_table"
    attention_factor = 1.0
    growths = None
    centre = 0

    def addresses(self, library: ModuleType, device: int | None, dtype: str) -> tuple[dict[str, int], Any]:
        """What the argument block says of the table on a device, for an element type, and what owns that memory."""
        cosines, sines = self.table.on(library, device, ELEMENT_TYPES[dtype].arithmetic)
        fields = {
            "cosines": cosines.address,
            "sines": sines.address,
            "table_rows": self.table.rows,
            "table_row_stride": cosines.strides[0],
        }
        return fields, (cosines, sines)


def sine_cosine(phase: UInt64s) -> tuple[Float64s, Float64s]:
    """Sine and cosine of ``phase / 2^64`` turns in float64, error at most 4e-16.

    Only multiplications and additions, one at a time: the same bits on every machine, which a C library's sine is not.
    """
    shifted = phase + np.uint64(1 << 61)
    centred = (shifted & np.uint64((1 << 62) - 1)).astype(np.int64) - np.int64(1 << 61)
    turns = centred.astype(np.float64) * 2.0**-64
    squared = turns * turns
    with decimal.localcontext(decimal.Context(prec=DIGITS)):
        term, coefficients = decimal.Decimal(1), []
        for k in range(1, 2 * TAYLOR_TERMS + 1):
            coefficients.append(float(term))
            term *= decimal.Decimal(TWO_PI) / k
    sine, cosine = np.zeros_like(turns), np.zeros_like(turns)
    for k in reversed(range(TAYLOR_TERMS)):
        sign = -1.0 if k % 2 else 1.0
        sine = sine * squared + sign * coefficients[2 * k + 1]
        cosine = cosine * squared + sign * coefficients[2 * k]
    sine *= turns
    quadrant = shifted >> np.uint64(62)
    odd = (quadrant & np.uint64(1)).astype(bool)
    negative_sine, negative_cosine = quadrant >= 2, (quadrant == 1) | (quadrant == 2)
    rotated_sine, rotated_cosine = np.where(odd, cosine, sine), np.where(odd, sine, cosine)
    return np.where(negative_sine, -rotated_sine, rotated_sine), np.where(negative_cosine, -rotated_cosine, rotated_cosine)
