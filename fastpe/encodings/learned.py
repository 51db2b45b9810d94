"""A learned table of positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._arrays import Outline, dispatch
from .._core import checks
from .._core.checks import message


@dataclass(frozen=True, eq=False)
class Learned:
    """Learned positions: row p of a table is added at position p (BERT, GPT-2, ViT, Whisper's decoder).

    Parameters
    ----------
    table : (P, D) float16, bfloat16, float32 or float64 array of NumPy or CuPy, or tensor
        Rows of contiguous elements; not copied, so what is written into it later counts. ``fastpe.resample`` makes longer ones.
    out_of_range
        What a position outside [0, P) means. ``"error"``: IndexError before anything is written; where positions lie on a GPU and
        ``validate`` is False, a NaN row. ``"clip"``: the first or the last row.

    References
    ----------
    Gehring et al., "Convolutional Sequence to Sequence Learning", 2017 (arXiv 1705.03122); Devlin et al., "BERT", 2019.
    """

    table: Any
    out_of_range: str = "error"

    def __post_init__(self) -> None:
        checks.one_of("Learned", "out_of_range", self.out_of_range, ("error", "clip"))
        found = dispatch.outline("Learned", "table", self.table)
        checks.floating("Learned", "table", found.dtype, self.table)
        check_table("Learned", "table", found)

    @property
    def clips(self) -> bool:
        """Whether positions outside the table mean its ends."""
        return self.out_of_range == "clip"

    @property
    def needs_length(self) -> bool:
        """False: the table is what it is."""
        return False


def check_table(function: str, name: str, table: Outline) -> None:
    """Refuse what is no (rows, D) array of contiguous rows."""
    if len(table.shape) != 2 or 0 in table.shape:
        raise ValueError(message(function, f"{name} must have shape (rows, D), at least 1 of each", f"shape {table.shape}"))
    if not table.contiguous_rows:
        raise ValueError(
            message(function, f"{name} must have rows of contiguous elements", "others", f"Pass a copy of {name}.")
        )
