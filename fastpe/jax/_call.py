"""A call as a program of XLA holds it: one text that says all but shapes and values; and the same call on arrays of NumPy.

Operands are the operation's arrays, then what says where rows stand. Of integers that kernels read as int64 (positions in units of 2^-32,
ids) each has two 32-bit words, the lower one first, on a last axis of its own: JAX has no int64 unless it is asked for.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .._arrays.numpy import empty
from .._core import text
from .._core.operations import Spec

Shape = tuple[int, ...]
WIDE = "int64"  # the type of operands of two words


class Call(NamedTuple):
    """``arrays``: names of the element types of the operation's arrays, None for one that is not given. ``places``: fields of what says
    where rows stand that are operands; ``fixed``: those that are numbers, with their names.
    """

    operation: Any
    arrays: tuple[str | None, ...]
    places: tuple[str, ...]
    fixed: tuple[tuple[str, Any], ...]

    def text(self) -> str:
        """All of it; padded to whole words, as the handler takes it in such."""
        whole = f"{text.write_operation(self.operation)}\n{json.dumps(self[1:])}"
        return whole + " " * (-len(whole.encode()) % 8)

    @property
    def names(self) -> list[str]:
        """Of operands."""
        given = zip(self.operation.names, self.arrays, strict=True)
        return [*(name for name, dtype in given if dtype is not None), *self.places]

    @property
    def dtypes(self) -> list[str]:
        """Of operands."""
        kinds = {"start": "int32", "mask": "bool"}
        return [*(dtype for dtype in self.arrays if dtype is not None), *(kinds.get(place, WIDE) for place in self.places)]

    @property
    def replaced(self) -> list[int]:
        """Which operands results take the place of."""
        if not self.operation.in_place:
            return []
        return list(range(sum(dtype is not None for dtype in self.arrays[: self.operation.writes])))

    def positions_of(self, kernel_call: Any) -> str | None:
        """The operand that has the positions of a kernel call's rows; None where they are always the same."""
        moves = self.operation.function == "rerotate" and kernel_call.grows
        name = "delta" if moves else "positions"
        return name if name in self.names else None

    def logical(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Shapes of operands without the axis of words."""
        pairs = zip(self.dtypes, shapes, strict=True)
        return [tuple(shape[:-1]) if dtype == WIDE else tuple(shape) for dtype, shape in pairs]

    def results(self, shapes: Sequence[Shape]) -> list[Spec]:
        """What the call makes of operands of these shapes."""
        found = [Spec(shape, dtype) for shape, dtype in zip(self.logical(shapes), self.dtypes, strict=True)]
        if self.operation.in_place:
            return [found[index] for index in self.replaced]
        given = iter(found)
        specs = tuple(None if dtype is None else next(given) for dtype in self.arrays)
        return [self.operation.result(specs)]

    def arguments(self, operands: Sequence[Any]) -> tuple[tuple[Any, ...], Any]:
        """The operation's arrays, and where rows stand, of operands without the axis of words; a start goes without saying."""
        given = iter(operands)
        arrays = tuple(None if dtype is None else next(given) for dtype in self.arrays)
        if self.operation.function == "encode":
            return arrays, None
        placed = {name: array for name, array in zip(self.places, given, strict=True) if name != "start"}
        return arrays, self.operation.where_type(**dict(self.fixed), **placed)

    def on_host(self, shapes: Sequence[Shape]) -> list[Any]:
        """Arrays of NumPy in place of the operands. Their values mean nothing, and most of their memory is never touched."""
        return [
            np.zeros(shape, dtype) if dtype in (WIDE, "bool", "int32") else empty(shape, dtype, None)
            for shape, dtype in zip(self.logical(shapes), self.dtypes, strict=True)
        ]


@functools.lru_cache(maxsize=256)
def read(whole: str) -> Call:
    """The call that a text describes."""
    operation, rest = whole.split("\n")
    arrays, places, fixed = json.loads(rest)
    return Call(text.read(operation), tuple(arrays), tuple(places), tuple((name, value) for name, value in fixed))
