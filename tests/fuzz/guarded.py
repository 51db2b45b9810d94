"""Arrays between pages that may not be touched, in memory of which every other byte is watched.

A load or store that leaves the pages ends the process. A store to any byte that belongs to no element of the view is found by comparing.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np

PAGE = mmap.PAGESIZE
NOISE = np.random.default_rng(99).integers(0, 256, 1 << 20, dtype=np.uint8)
PLACES = ("start", "end", "between")

_protect = ctypes.CDLL(None, use_errno=True).mprotect
_protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Region:
    """So many pages, with a page before and a page behind them that may not be touched."""

    def __init__(self, pages: int) -> None:
        whole = np.frombuffer(mmap.mmap(-1, (pages + 2) * PAGE), np.uint8)
        for page in (0, pages + 1):
            if _protect(whole.ctypes.data + page * PAGE, PAGE, 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
        self.bytes = whole[PAGE:-PAGE]


class View:
    """An array of these strides (in bytes) in guarded memory, its lowest byte at the start of a page or its highest at the end of one."""

    def __init__(
        self, region: Region, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...], place: str, gap: int
    ) -> None:
        dtype = np.dtype(dtype)
        low, need = extent(shape, strides, dtype.itemsize)
        spare = region.bytes.size - need
        start = {"start": 0, "end": spare, "between": min(gap, spare)}[place] - low if need else 0
        self.region, self._whole = region, (start, strides)
        region.bytes[...] = np.resize(NOISE, region.bytes.size)
        self.array = np.ndarray(shape, dtype, region.bytes, start, strides)
        self.snapshot()

    def snapshot(self) -> None:
        """What is here now is what must stay."""
        self._before = self.region.bytes.copy()

    def belongs(self) -> np.ndarray:
        """Which bytes of the region belong to an element."""
        found = np.zeros(self.region.bytes.size, bool)
        start, strides = self._whole
        if self.array.size:
            shape = (*self.array.shape, self.array.itemsize)
            np.ndarray(shape, bool, found, start, (*strides, 1))[...] = True
        return found

    def assert_only_elements_written(self, *others: View) -> None:
        """No byte has changed but those of this view's elements, and of others in the same region."""
        touched = self.region.bytes != self._before
        if touched.any():
            for view in (self, *others):
                touched &= ~view.belongs()
        assert not touched.any(), f"{touched.sum()} bytes around the elements were written, first at {touched.argmax()}"

    def assert_unchanged(self) -> None:
        touched = self.region.bytes != self._before
        assert not touched.any(), f"{touched.sum()} bytes were written, first at {touched.argmax()}"


class Arena:
    """Regions to be used again by the next example."""

    def __init__(self) -> None:
        self._free: dict[int, list[Region]] = {}
        self._used: list[tuple[int, Region]] = []

    def region(self, nbytes: int) -> Region:
        pages = 1
        while pages * PAGE < nbytes:
            pages *= 2
        free = self._free.setdefault(pages, [])
        region = free.pop() if free else Region(pages)
        self._used.append((pages, region))
        return region

    def release(self) -> None:
        """All regions may be used again; arrays in them are gone."""
        for pages, region in self._used:
            if len(self._free[pages]) < (16 if pages < 256 else 4):
                self._free[pages].append(region)
        self._used = []

    def view(self, shape: tuple[int, ...], dtype: Any, strides: Any = None, place: str = "end", gap: int = 0) -> View:
        """A new view; without strides its elements are contiguous."""
        dtype = np.dtype(dtype)
        strides = contiguous(shape, dtype.itemsize) if strides is None else strides
        _, need = extent(shape, strides, dtype.itemsize)
        return View(self.region(max(1, need + (gap if place == "between" else 0))), shape, dtype, strides, place, gap)

    def copy(self, values: Any, strides: Any = None, place: str = "end", gap: int = 0) -> View:
        """A view with these values."""
        values = np.asarray(values)
        view = self.view(values.shape, values.dtype, strides, place, gap)
        view.array[...] = values
        view.snapshot()
        return view


def contiguous(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides = [itemsize]
    for size in shape[:0:-1]:
        strides.insert(0, strides[0] * max(size, 1))
    return tuple(strides[: len(shape)])


def extent(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """The lowest byte of a view relative to its first element, and how many bytes it spans."""
    if 0 in shape:
        return 0, 0
    spans = [stride * (size - 1) for stride, size in zip(strides, shape, strict=True)]
    low = sum(span for span in spans if span < 0)
    return low, sum(abs(span) for span in spans) + itemsize
