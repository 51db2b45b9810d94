"""What every operation is: a frozen value that checks a call, says what it makes, and knows the operation that carries gradients back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple, Protocol


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


class Operation(Protocol):
    """What a verb does, apart from the arrays and from where their rows stand.

    Operations are named tuples of plain values and encodings, so they are hashable, and ``_core.text`` writes them as JSON and reads them
    back: that is how graphs carry them. One class serves every library.
    """

    function: ClassVar[str]  # the verb, as errors name it
    names: ClassVar[tuple[str, ...]]  # of the arrays
    in_place: ClassVar[bool]  # whether the verb writes arrays, where no out is given
    written: ClassVar[int]  # how many of the first ones, if it does

    def check(self, arrays: tuple[Any, ...], where: Any, out: Any, validate: bool) -> Job:
        """Raise every argument error, or return what is to be done. ``arrays`` are NumPy's or CuPy's; nothing is written."""

    def result(self, specs: tuple[Spec, ...]) -> Spec:
        """What a call that writes a new array makes of arrays of these shapes and types."""

    def adjoint(self) -> Any:
        """The operation that takes the gradient of what is written to that of what was read."""

    def repeatable(self, where: Any) -> bool:
        """Whether equal operations, on arrays of equal layout, need no more checks than addresses and offsets."""
