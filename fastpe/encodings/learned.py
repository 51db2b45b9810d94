"""A learned table of positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .._arrays import Memory, dispatch
from .._backends.calls import GatherSum, Rows
from .._core import checks
from .._core.arguments import Target, check_apart, device_name
from .._core.checks import message
from .._core.where import Where, check_in_table, refuse_real_positions, resolve
from .protocol import Additive

if TYPE_CHECKING:
    from .._core.annotations import AnyArray


@dataclass(frozen=True, eq=False)
class Learned(Additive):
    """Learned positions: row p of a table is added at position p (BERT, GPT-2, ViT, Whisper's decoder).

    Gehring et al., "Convolutional Sequence to Sequence Learning", 2017 (arXiv 1705.03122); Devlin et al., "BERT", 2019.

    Parameters
    ----------
    table : (P, D) float16, bfloat16, float32 or float64 array of NumPy or CuPy, or tensor
        Rows of contiguous elements. It is not copied: what is written into it later is used. ``fastpe.resample`` makes longer tables.
    out_of_range
        What happens at a position outside [0, P). ``"error"``: IndexError before anything is written; if positions lie on a GPU and
        ``validate`` is False, a NaN row instead. ``"clip"``: the first or the last row is added.
    """

    table: AnyArray
    out_of_range: str = "error"

    encodes: ClassVar[bool] = False
    holds_arrays: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.one_of("Learned", "out_of_range", self.out_of_range, ("error", "clip"))
        outline = dispatch.outline("Learned", "table", self.table)
        checks.floating("Learned", "table", outline.dtype, self.table)
        checks.is_table("Learned", "table", outline)
        super().__post_init__()

    @property
    def clips(self) -> bool:
        """Whether positions outside the table take its first or last row."""
        return self.out_of_range == "clip"

    @property
    def arrays(self) -> dict[str, Any]:
        return {"table": self.table}

    def additions(self, target: Target, where: Where, out: Memory, scale: float, seq_len: int | None) -> Sequence[Any]:
        rows, summand = self.summand(target, where, out, seq_len)
        if 0 in out.shape:
            return ()
        return (GatherSum("add_table", target.memory, out, rows, target.seq_axis, scale, **summand),)

    def summand(self, target: Target, where: Where, out: Memory, seq_len: int | None) -> tuple[Rows, dict[str, Any]]:
        rows, function = resolve(target, where), target.function
        refuse_real_positions(function, where.positions)
        library, table = dispatch.memory(function, "the encoding's table", self.table, tensors=True)
        if library is not target.library or table.device != target.memory.device:
            rule = "a Learned table must be of the array's library and on its device"
            got = f"{library.NAME} on {device_name(table.device)}"
            raise TypeError(message(function, rule, got, "Nothing is copied between devices silently."))
        if table.shape[1] != target.memory.shape[-1]:
            rule = f"a Learned table must have the width of the array, {target.memory.shape[-1]}"
            raise ValueError(message(function, rule, f"shape {table.shape}"))
        if not self.clips:
            check_in_table(target, rows, table.shape[0])
        check_apart(function, out, {"the learned table": table})
        return rows, {"learned": table, "clips": self.clips}
