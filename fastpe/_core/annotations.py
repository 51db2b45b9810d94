"""Types of arguments and results, for type checkers and editors: no program imports them when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from typing_extensions import TypeVar


class AnyArray(Protocol):
    """An array of any library, or a number of NumPy's."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def ndim(self) -> int: ...


class Sized(Protocol):
    """An element type of NumPy or PyTorch."""

    @property
    def itemsize(self) -> int: ...


Integers: TypeAlias = int | Sequence[int] | Sequence[Sequence[int]] | AnyArray
Reals: TypeAlias = float | Sequence[float] | Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]] | AnyArray
Lists: TypeAlias = Sequence[int] | Sequence[Sequence[int]] | Sequence[bool] | Sequence[Sequence[bool]] | npt.NDArray[Any]
Booleans: TypeAlias = Sequence[bool] | Sequence[Sequence[bool]] | AnyArray
Shape: TypeAlias = tuple[int, ...] | list[int]
DType: TypeAlias = str | type | Sized
Random: TypeAlias = int | np.random.Generator | None
Int64: TypeAlias = npt.NDArray[np.int64]
Float64: TypeAlias = npt.NDArray[np.float64]

Array = TypeVar("Array")
Like = TypeVar("Like", default=Int64)  # of the array that is given as an example, or int64 of NumPy
RealLike = TypeVar("RealLike", default=Float64)
