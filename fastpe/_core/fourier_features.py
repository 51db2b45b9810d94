"""How Fourier features are made: the angles of one axis rotated by those of the others, in float64, then put in order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from .._arrays import Memory
from .._backends.calls import AddSinusoidal, Pair, RotaryRows, Rotate, Rows
from .checks import first_index, message
from .where import position_table

PIECE_BYTES = 1 << 25  # of cosines and sines made at a time


def features(function: str, fourier: Any, library: ModuleType, positions: Memory, out: Memory, validate: bool) -> Iterator[Any]:
    """Check positions (axes, ...), and return the kernel calls between which the features are written to ``out``."""
    kind = str(positions.array.dtype.kind)
    if kind not in "iuf" or positions.dtype == "bfloat16":
        rule = "positions must be integers, float16, float32 or float64"
        raise TypeError(message(function, rule, f"{positions.dtype} of shape {positions.shape}"))
    with library.on(positions.device):
        coordinates = positions.array.astype(np.float64) * fourier.position_scale + fourier.position_shift
        if positions.device is None or validate:
            values = np.asarray(library.as_host(coordinates))
            bad = first_index(~(np.abs(values) < fourier.limit))
            if bad is not None:
                rule = "coordinates must be finite and lie in (-32768, 32768)"
                raise ValueError(message(function, rule, f"{values[bad]} at index {bad}"))
        table = position_table(function, library, library.memory(coordinates * fourier.steps), False)
    return _pieces(fourier, library, coordinates, table, positions.shape[1:], out.array)


def _pieces(
    fourier: Any, library: ModuleType, coordinates: Any, table: Memory, shape: tuple[int, ...], out: Any
) -> Iterator[Any]:
    """Piece by piece, where points are one axis of the result."""
    with library.on(table.device):
        pairs = fourier.angles
        first = fourier.axes if fourier.include_input else 0
        if first:
            out[..., :first] = coordinates.transpose(*range(1, len(shape) + 1), 0)
        count = math.prod(shape)
        contiguous = out.flags.c_contiguous
        step = max(1, PIECE_BYTES // (16 * pairs)) if contiguous else max(count, 1)
        for begin in range(0, count, step):
            rows = min(step, count - begin)
            made = library.empty((rows, 2 * pairs), "float64", table.device)
            yield from _calls(fourier, library.memory(made), table, begin)
            angles = made.reshape(rows, 2, pairs).transpose(1, 0, 2)
            if contiguous:
                piece = out.reshape(count, fourier.width)[begin : begin + rows]
            else:
                piece, angles = out, angles.reshape(2, *shape, pairs)
            arranged = fourier.arranged(angles)
            channels = piece[..., first:]
            channels.reshape(*channels.shape[:-1], *arranged.shape[-3:])[...] = arranged  # a view: an axis is split


def _calls(fourier: Any, made: Memory, table: Memory, begin: int) -> Iterator[Any]:
    """What makes cosines and sines (rows, 2, angles) of the points from ``begin`` on."""
    address = table.address + 8 * begin
    first, others = fourier.plans()
    yield AddSinusoidal(None, made, Rows(0, address, (8,), 0, (0,), (table,)), 0, first, 1.0)
    for axis, plan in enumerate(others, 1):
        rows = RotaryRows(0, address + axis * table.strides[0], (0, 8, 0), 0, (0, 0), (table,))
        yield Rotate(Pair(made, made), None, rows, 0, plan, False, 1.0)
