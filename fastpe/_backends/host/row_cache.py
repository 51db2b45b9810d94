"""The row cache: the first rows of an encoding, ready to be added, for calls so small that making them is most of the work.

Time without the cache over time with it, x in place, 512 columns, one sequence / eight, one thread of an AMD EPYC (family 25, model 17):
float32 1.5 / 1.1 at 0.25 MiB, 1.4 / 1.2 at 4 MiB; float64 2.5 / 1.2 and 2.5 / 1.6; bfloat16 1.4 / 1.1 and 1.2 / 1.1. Twice the rows of
MOST_BYTES are slower to read than to make: 0.5 to 0.8 at 8 MiB of float32 and 16 MiB of float64 rows.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import mmap
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..._arrays.dtypes import ELEMENT_TYPES
from ..plans import SinusoidalPlan

MOST_BYTES = {"float32": 1 << 22, "float64": 1 << 23}  # of a plan's rows
MOST_BYTES_OF_ALL = 1 << 24  # of the rows of all plans
BYTES_PER_CALL = 1 << 20  # one call makes no more rows than these


class CachedRows(NamedTuple):
    """So many rows of the positions 0, 1, ... at an address; ``array`` owns the memory."""

    address: int
    number: int
    array: Any


class RowCache:
    """The rows of one plan.

    A single call does not pay for them: the second one begins to make them, and each call makes some until all that it needs are there.
    When plans together hold too much, those that began first lose their rows.
    """

    MOST_BYTES_OF_X = 1 << 24  # calls on larger arrays do not use the cache

    def __init__(self, width: int, real: str) -> None:
        self._row_bytes, self._most_bytes = width * ELEMENT_TYPES[real].itemsize, MOST_BYTES[real]
        self._was_wanted = False
        self._rows = CachedRows(0, 0, None)

    @property
    def nbytes(self) -> int:
        return self._rows.number * self._row_bytes

    def rows(self, start: int, number: int, fill: Callable[[int, int, int], None]) -> CachedRows | None:
        """The cached rows, if all that a call from ``start`` on (in units of 2^-32) needs are among them.

        ``fill(address, first, number)`` makes rows.
        """
        if start < 0 or start & 0xFFFFFFFF:
            return None
        cached, needed = self._rows, (start >> 32) + number
        if needed <= cached.number:
            return cached
        # For a decoder's single row far into a sequence, all rows before it would be made.
        if needed * self._row_bytes > self._most_bytes or needed > 8 * number:
            return None
        if not self._was_wanted:
            self._was_wanted = True
            return None
        cached = self._make(min(1 << (needed - 1).bit_length(), self._most_bytes // self._row_bytes), fill)
        return cached if needed <= cached.number else None

    def _make(self, wanted: int, fill: Callable[[int, int, int], None]) -> CachedRows:
        """Make some more of the rows wanted."""
        address, number, array = self._rows
        if array is None:
            own = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}  # not a fork's
            array = np.frombuffer(mmap.mmap(-1, self._most_bytes, **own), np.uint8)  # takes memory only as it is written
            address = array.ctypes.data
        more = min(wanted - number, max(1, BYTES_PER_CALL // self._row_bytes))
        fill(address, number, more)
        self._rows = cached = CachedRows(address, number + more, array)
        if self not in _filled.copy():  # copies: other threads lengthen and shorten it
            _filled.append(self)
        with contextlib.suppress(IndexError):  # another thread has removed the last ones
            while sum(other.nbytes for other in _filled.copy()) > MOST_BYTES_OF_ALL:
                _filled.popleft()._rows = CachedRows(0, 0, None)
        return cached


_filled: collections.deque[RowCache] = collections.deque()  # caches that hold rows, in the order in which they began to


@functools.lru_cache(maxsize=64)
def of(plan: SinusoidalPlan, real: str) -> RowCache:
    """The row cache of a plan, whose rows are of this type of the arithmetic."""
    return RowCache(plan.width, real)
