"""A rotary encoding whose cosines and sines come from the caller."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .._arrays import Memory, dispatch
from .._backends import backend_of
from .._backends.calls import Rows
from .._backends.plans import TablePlan
from .._core import checks
from .._core.arguments import Target
from .._core.checks import message
from .._core.where import Where, check_in_table, refuse_real_positions
from .protocol import Rotational

if TYPE_CHECKING:
    from .._core.annotations import AnyArray

_FUNCTION = "Rotary.tabulated"


@dataclass(frozen=True, eq=False)
class RotaryTable(Rotational):
    """Rotations by a table: ``(u, v) -> (u cos[p, i] - v sin[p, i], v cos[p, i] + u sin[p, i])``.

    For models whose weights have learnt the errors of their own float32 tables, and for tables that no formula gives.
    ``fastpe.Rotary.tabulated(cos, sin)`` makes one.

    Arithmetic is float32 for 16- and 32-bit arrays and float64 for float64; the table is converted once. A table on the host also serves
    arrays on a GPU: it is copied there once. Positions must be integers in [0, P). Others raise IndexError or, if they lie on a GPU and
    ``validate`` is False, make NaN rows.

    Parameters
    ----------
    cos, sin : (P, F) or (B, T, F) float16, bfloat16, float32 or float64 arrays or tensors
        Row p is for position p; F pairs of channels rotate. (B, T, F): row (b, t) is for row t of sequence b, and positions are not
        given (ONNX's operator ``RotaryEmbedding``, version 23, without ``position_ids``). Of a table with each column twice, as Hugging
        Face's models make it, pass ``cos[..., :F]``. Do not change the tables afterwards.
    interleaved, rotary_offset
        As in ``Rotary``.
    """

    cos: AnyArray
    sin: AnyArray
    interleaved: bool = False
    rotary_offset: int = 0

    holds_arrays: ClassVar[bool] = True

    _copies: dict[tuple[int | None, str], tuple[Memory, Memory]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        known = []
        for name, table in (("cos", self.cos), ("sin", self.sin)):
            outline = dispatch.outline(_FUNCTION, name, table)
            checks.floating(_FUNCTION, name, outline.dtype, table)
            if len(outline.shape) not in (2, 3) or outline.shape[-1] < 1:
                rule = f"{name} must have shape (P, F) or (B, T, F)"
                raise ValueError(message(_FUNCTION, rule, f"shape {outline.shape}"))
            known.append((*outline.place, outline.shape))
        if known[0] != known[1]:
            got = " and ".join(f"{library} on device {device}, shape {shape}" for library, device, shape in known)
            raise ValueError(message(_FUNCTION, "cos and sin must be of one library, device and shape", got))
        checks.boolean(_FUNCTION, "interleaved", self.interleaved)
        if checks.integer(_FUNCTION, "rotary_offset", self.rotary_offset) < 0:
            raise ValueError(message(_FUNCTION, "rotary_offset must be 0 or more", str(self.rotary_offset)))
        super().__post_init__()

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the converted tables: what a copy holds lies elsewhere."""
        return RotaryTable, (self.cos, self.sin, self.interleaved, self.rotary_offset)

    @property
    def arrays(self) -> dict[str, Any]:
        return {"cos": self.cos, "sin": self.sin}

    @property
    def sequences(self) -> tuple[int, int] | None:
        """(B, T) of a table that has rows of its own for each sequence."""
        return tuple(self.cos.shape[:2]) if self.cos.ndim == 3 else None

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return int(np.prod(self.cos.shape[:-1]))

    def plan(self, head_dim: int, seq_len: int | None = None) -> TablePlan:
        """Return what the kernels need."""
        pairs = self.cos.shape[-1]
        if self.rotary_offset + 2 * pairs > head_dim:
            got = f"{pairs} pairs from channel {self.rotary_offset} on for a head of {head_dim}"
            remedy = f"A table with every column twice is cos[..., :{pairs // 2}]." if pairs % 2 == 0 else ""
            raise ValueError(message(_FUNCTION, "the channels that rotate must lie in the head", got, remedy))
        return TablePlan(self, head_dim, 2 * pairs, self.rotary_offset, self.interleaved)

    def resolve(self, target: Target, where: Where) -> tuple[Rows, int]:
        """The positions of the rows; a table with rows for each sequence has its own."""
        refuse_real_positions(target.function, where.positions)
        if self.sequences is not None:
            where = where._replace(offset=self._offset(target, where))
        rows, step = super().resolve(target, where)
        check_in_table(target, rows, self.rows)
        return rows, step

    def _offset(self, target: Target, where: Where) -> Any:
        counts = type(where.offset) is int and where.offset == 0
        if where.positions is not None or where.cu_seqlens is not None or not counts:
            rule = "a table with rows for each sequence takes no positions, offset or cu_seqlens"
            raise ValueError(message(target.function, rule, "some"))
        batch = 1 if target.batch_axis is None else target.batch
        if self.sequences not in ((batch, target.rows), (1, target.rows)):
            rule = f"the table must have B and T of q and k, {(batch, target.rows)}"
            raise ValueError(message(target.function, rule, f"{self.sequences}"))
        if self.sequences[0] == 1:
            return 0
        # Kept beside the kernels, as a captured graph reads them again
        return backend_of(target.memory).uploaded(np.arange(batch, dtype=np.int64) * target.rows, target.memory.device)

    def on(self, library: ModuleType, device: int | None, real: str) -> tuple[Memory, Memory]:
        """Cosines and sines as (rows, F) of a type on a device."""
        try:
            return self._copies[device, real]
        except KeyError:
            cos, sin = (_converted(table, library, device, real, self.rows) for table in (self.cos, self.sin))
            self._copies[device, real] = cos, sin
            return cos, sin


def _converted(table: Any, library: ModuleType, device: int | None, real: str, rows: int) -> Memory:
    own_library, memory = dispatch.memory(_FUNCTION, "cos", table, tensors=True)
    if memory.device is None:
        array = np.asarray(memory.array, real)
        if array.strides[-1] != array.itemsize:
            array = np.ascontiguousarray(array)
        converted: Memory = library.memory(library.from_host(array.reshape(rows, -1), device))
        return converted
    if memory.device != device:
        got = f"a table on device {memory.device} and an array on {'the host' if device is None else f'device {device}'}"
        raise TypeError(message("apply_rotary", "a table on a GPU must be on the device of q and k", got, "Copy it first."))
    converted = own_library.memory(own_library.contiguous(memory.array, real).reshape(rows, -1))
    own_library.synchronize(device)  # once: any stream may read it from now on
    return converted
