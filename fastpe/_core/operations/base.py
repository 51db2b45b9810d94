"""What every operation is: a frozen value that checks a call, says what it makes, and knows the operation that carries gradients back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..parts import Block, part
from ..where import Where

MOST_POSITIONS = 1 << 12  # that a prepared call has room for: with more, checks are a small part of a call


class Spec(NamedTuple):
    """The shape and the element type's name of an array: all that is known of one that is traced, or not made yet."""

    shape: tuple[Any, ...]
    dtype: str


class Job(NamedTuple):
    """A call whose arguments passed every check: what it returns, and the kernel calls that are left to do.

    ``arrays`` is the memory that a repeated call gives to the prepared kernel call, in its order (for scores all that was checked); None
    where a call like this one must be checked again.
    """

    result: Any
    device: int | None
    calls: Iterable[Any]
    arrays: Any = None


class Operation:
    """What a verb does, apart from the arrays and from where their rows stand.

    Operations are named tuples of plain values and encodings, so they are hashable, and ``_core.text`` writes them as JSON and reads them
    back: that is how graphs carry them. One class serves every library.
    """

    __slots__ = ()
    function: ClassVar[str]  # the verb, as errors name it
    where_type: ClassVar[Any] = Where  # the class of what says where its rows stand
    names: ClassVar[tuple[str, ...]]  # of the arrays
    in_place: ClassVar[bool] = True  # whether the verb writes arrays, where no out is given

    @property
    def writes(self) -> int:
        """How many of the first arrays are written where no out is given."""
        return int(self.in_place)

    def check(self, arrays: tuple[Any, ...], where: Any, out: Any, validate: bool) -> Job:
        """Raise every argument error, or return what is to be done. ``arrays`` are NumPy's or CuPy's; nothing is written."""
        raise NotImplementedError

    def result(self, specs: tuple[Spec, ...]) -> Spec:
        """What a call that writes a new array makes of arrays of these shapes and types."""
        return specs[0]

    def adjoint(self) -> Any:
        """The operation that takes the gradient of what is written to that of what was read; None where no operation does."""

    def part(self, where: Any, shape: tuple[int, ...], block: Block) -> tuple[Any, Any]:
        """The operation on a block (begin and end along each axis) of an array of this shape, and where its rows stand."""
        return part(self, where, shape, block)

    def key(self, arrays: tuple[Any, ...], where: Any, out: Any) -> Any:
        """Under which key a prepared call on NumPy's arrays is kept: all that checks depend on but addresses, flags, offsets and ids.

        None for a call that must be checked each time. Types are compared where values of several types are equal.
        """


def offset_kind(where: Any, x: Any, axis: int) -> Any:
    """The type and shape of the array that says where rows stand: positions, or an offset for each sequence, of one row.

    None for what no prepared call takes. ``where`` has no ``cu_seqlens`` and no mask.
    """
    offset, positions = where[0], where[1]
    if positions is not None:
        if type(offset) is int and offset == 0 and type(positions) is np.ndarray and positions.size <= MOST_POSITIONS:
            return "positions", positions.dtype, positions.shape
    elif type(offset) is np.ndarray and has_single_rows(x, axis):
        return offset.dtype, offset.shape
    return None


def has_single_rows(x: Any, axis: int) -> bool:
    """Whether every sequence of an array, or of a tensor, has one row."""
    return bool(x.ndim > 2 and -x.ndim <= axis < x.ndim and x.shape[axis] == 1)
