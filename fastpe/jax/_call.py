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
from .._core.arguments import Target
from .._core.operations import AddBias, Spec
from .._core.parts import axes_in_front, axes_of_rows, outline
from .._core.where import Where

Shape = tuple[int, ...]
Axes = list[str]  # the names of an array's axes
BATCH, ROWS, HEADS = "batch", "rows", "heads"  # rows of scores are those of queries
WIDE = "int64"  # the type of operands of two words


class Call(NamedTuple):
    """``arrays``: names of the element types of the operation's arrays, None for one that is not given. ``places``: fields of what says
    where rows stand that are operands; ``fixed``: those that are numbers. ``apart``: operands that are not donated,
    beside which results lie.
    """

    operation: Any
    arrays: Sequence[str | None]
    places: Sequence[str]
    fixed: dict[str, Any]
    apart: Sequence[int] = ()

    @property
    def text(self) -> str:
        return f"{text.write_operation(self.operation)}\n{json.dumps(self[1:])}"

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
        """The operands that results are like."""
        if not self.operation.in_place:
            return []
        return list(range(sum(dtype is not None for dtype in self.arrays[: self.operation.writes])))

    @property
    def aliases(self) -> dict[int, int]:
        """Of operands whose memory results take, the numbers of these."""
        return {index: index for index in self.replaced if index not in self.apart}

    def positions_of(self, kernel_call: Any) -> str | None:
        """The operand that has the positions of a kernel call's rows; None where they are always the same."""
        moves = self.operation.function == "rerotate" and kernel_call.grows
        name = "delta" if moves else "positions"
        return name if name in self.names else None

    def logical(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Shapes of operands without the axis of words."""
        pairs = zip(self.dtypes, shapes, strict=True)
        return [tuple(shape[:-1]) if dtype == WIDE else tuple(shape) for dtype, shape in pairs]

    @property
    def encoding(self) -> Any:
        """That which says where rows stand; a bias does not."""
        return None if isinstance(self.operation, AddBias) else self.operation[0]

    @property
    def axes_in_front(self) -> int:
        """Of positions, before those of rows."""
        return axes_in_front(self.encoding)

    def target(self, shape: Shape) -> Target:
        """The array of this shape whose rows stand somewhere."""
        return outline(self.operation.function, Where(seq_axis=self.fixed.get("seq_axis", -2)), shape)

    def axes(self, shapes: Sequence[Shape]) -> tuple[list[Axes], list[Axes]]:
        """The names of the axes of operands and of results. Axes of one name are divided alike; those of "whole..." are not divided."""
        made, shapes, front = [spec.shape for spec in self.results(shapes)], self.logical(shapes), self.axes_in_front
        results = [self._of_array(shape, f"own{index}") for index, shape in enumerate(made)]
        lead = results[0][:-1]
        sizes = dict(zip(self.names, shapes, strict=True)).get("positions", ())[front:]

        def of_place(name: str, rank: int) -> Axes:
            if name in ("q_positions", "k_positions"):
                return [BATCH, ROWS if name[0] == "q" else "wholek"][2 - rank :]
            if name == "delta":
                return [BATCH, ROWS][:rank]
            own = rank - front if name == "positions" else rank
            stands = axes_of_rows(self.target(made[0]), self.encoding, sizes, own) if own and ROWS in lead else []
            rows = [lead[axis] for axis in stands]
            return [f"whole{name}{axis}" for axis in range(rank - len(rows))] + rows

        operands = list(results) if self.operation.in_place else []
        for name, dtype, one in list(zip(self.names, self.dtypes, shapes, strict=True))[len(operands) :]:
            is_table = dtype != WIDE and name in ("table", "token_types")
            found = [f"whole{len(operands)}", "whole"] if is_table else of_place(name, len(one))
            operands.append([*found, "wholeword"] if dtype == WIDE else found)
        return operands, results

    def _of_array(self, shape: Shape, own: str) -> Axes:
        """Of x, q, k or scores, or of what is made."""
        rank, axis = len(shape), self.target(shape).seq_axis
        names = [f"{own}axis{axis}" for axis in range(rank)]
        if isinstance(self.operation, AddBias):
            return [*[BATCH, *(f"whole{axis}" for axis in range(1, rank - 3))][: rank - 3], HEADS, ROWS, "wholek"]
        if rank > 2:
            names[1 if axis == 0 else 0] = BATCH
        names[axis], names[-1] = ROWS, f"whole{own}"
        return names

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
        return arrays, self.operation.where_type(**self.fixed, **placed)

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
    return Call(text.read(operation), *json.loads(rest))
