"""What is measured: a verb on arrays of a shape and an element type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..machine import is_small

# One row a sequence has an offset of its own, as in decoding; all other positions count from 0.
LAST_DECODED, DECODED_APART, ROTARY_APART = 4095, 61, 7

Shapes = dict[str, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class Case:
    """An operation on arrays of a shape and an element type, on the host or a GPU.

    ``shape``: add_encoding (B, T, D); apply_rotary (B, heads of q, heads of k, T, D); embed (B, T, V, D); add_bias (B, H, Tq, Tk).
    """

    operation: str
    shape: tuple[int, ...]
    dtype: str
    device: str = "cpu"

    @property
    def id(self) -> str:
        """Shape and element type, as in ``8x1024x512-float32``."""
        return f"{'x'.join(map(str, self.shape))}-{self.dtype}"

    def __str__(self) -> str:
        return f"{self.operation} {'x'.join(map(str, self.shape))} {self.dtype} {self.device}"

    @property
    def offset(self) -> Any:
        """Position of the first row: an int, or (B,) integers."""
        batch, last, apart = self.shape[0], LAST_DECODED, DECODED_APART
        if self.operation == "apply_rotary":
            return 0 if batch == 1 else np.arange(batch) * ROTARY_APART
        if self.operation != "add_encoding" or self.shape[1] > 1:
            return 0
        return last if batch == 1 else last - apart * np.arange(batch)

    @property
    def positions(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Position of every row: (T,), or (B, T) where the sequences differ."""
        rows = self.shape[3] if self.operation == "apply_rotary" else self.shape[1]
        return np.asarray(self.offset, np.int64)[..., None] + np.arange(rows)


SHAPES: Shapes = {
    "add_encoding": ((1, 1, 1024), (32, 1, 1024), (8, 1024, 512), (32, 1024, 1024)),
    "apply_rotary": ((32, 32, 8, 1, 128), (1, 32, 8, 4096, 128)),
    "embed": ((32, 1, 32_000, 1024), (8, 2048, 32_000, 1024)),
    "add_bias": ((8, 32, 1, 4096), (1, 32, 1024, 1024)),
}
QUICK_SHAPES: Shapes = {
    "add_encoding": ((32, 1, 1024), (8, 1024, 512)),
    "apply_rotary": ((32, 32, 8, 1, 128), (1, 32, 8, 512, 128)),
    "embed": ((32, 1, 4000, 1024), (8, 256, 4000, 1024)),
    "add_bias": ((8, 32, 1, 4096), (1, 32, 256, 256)),
}
SMALL_SHAPES: Shapes = {
    "add_encoding": ((3, 1, 64), (2, 9, 64)),
    "apply_rotary": ((3, 4, 2, 1, 16), (1, 4, 2, 8, 16)),
    "embed": ((2, 9, 50, 32),),
    "add_bias": ((2, 4, 1, 9), (1, 4, 7, 9)),
}


def cases(quick: bool, devices: tuple[str, ...], dtypes: tuple[str, ...]) -> list[Case]:
    """Every line of the table, in its order."""
    shapes = SMALL_SHAPES if is_small() else QUICK_SHAPES if quick else SHAPES
    return [
        Case(operation, shape, dtype, device)
        for device in devices
        for operation, several in shapes.items()
        for shape in several
        for dtype in dtypes
    ]
