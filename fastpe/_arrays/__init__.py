"""An array library's arrays as memory: one small file per library."""

from __future__ import annotations

from typing import Any, NamedTuple

from .dtypes import ITEMSIZE as ITEMSIZE


class Memory(NamedTuple):
    """Where an array lies. Strides are in bytes; ``device`` is None on the host, else the CUDA device's number.

    ``array`` keeps the memory alive.
    """

    array: Any
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: int | None
    writeable: bool

    @property
    def is_aligned(self) -> bool:
        """Whether every element lies at a multiple of its size."""
        size, steps = self.array.dtype.itemsize, zip(self.strides, self.shape, strict=True)
        return not any(value % size for value in (self.address, *(stride for stride, count in steps if count > 1)))

    def same_elements(self, other: Memory) -> bool:
        """Whether both are the same view: axes of one element may have any stride."""
        if (self.address, self.shape, self.dtype) != (other.address, other.shape, other.dtype):
            return False
        pairs = zip(self.strides, other.strides, self.shape, strict=True)
        return self.strides == other.strides or all(a == b or size == 1 for a, b, size in pairs)


class Outline(NamedTuple):
    """What is known of an array without looking at its memory. ``place``: its library and device."""

    shape: tuple[int, ...]
    dtype: str
    place: Any
    contiguous_rows: bool

    @classmethod
    def of_memory(cls, library: Any, memory: Memory) -> Outline:
        """The outline of an array of a library, which has memory."""
        contiguous = memory.shape[-1:] == (1,) or memory.strides[-1:] == (memory.array.dtype.itemsize,)
        return cls(memory.shape, memory.dtype, (library.NAME, memory.device), contiguous)
