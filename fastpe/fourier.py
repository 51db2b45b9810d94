"""What ``encode`` does for Fourier features: the angles of one axis turned by the others, in float64, then put in order."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np

from ._arrays import Memory, dispatch
from ._backends.calls import AddSinusoidal, Pair, RotaryRows, Rotate, Rows
from ._core import rows as rows_of
from ._core.checks import message
from .encodings import Fourier
from .encodings.fourier import FINE, LIMIT

ROOM_BYTES = 1 << 25  # of cosines and sines made at a time


def write(function: str, fourier: Fourier, library: ModuleType, positions: Memory, out: Any, validate: bool) -> None:
    """Write the features of positions (axes, ...) to ``out``, an array of the same library."""
    kind = str(positions.array.dtype.kind)
    if kind not in "iuf" or positions.dtype == "bfloat16":
        rule = "positions must be integers, float16, float32 or float64"
        raise TypeError(message(function, rule, f"{positions.dtype} of shape {positions.shape}"))
    with library.on(positions.device):
        coordinates = positions.array.astype(np.float64) * fourier.position_scale + fourier.position_shift
        if positions.device is None or validate:
            _check(function, library, coordinates)
        table = rows_of.located(function, library, library.memory(coordinates * 2.0**FINE), False)
        shape, pairs = positions.shape[1:], fourier.angles
        first = fourier.axes if fourier.include_input else 0
        if first:
            out[..., :first] = coordinates.transpose(*range(1, len(shape) + 1), 0)
        count = math.prod(shape)
        # Piece by piece, where points are one axis of the result.
        made = out.reshape(count, fourier.width) if out.flags.c_contiguous else out
        step = max(1, ROOM_BYTES // (16 * pairs)) if out.flags.c_contiguous else max(count, 1)
        for begin in range(0, count, step):
            rows = min(step, count - begin)
            angles = _turned(fourier, library, table, begin, rows)
            if out.flags.c_contiguous:
                place = made[begin : begin + rows]
            else:
                place, angles = made, angles.reshape(2, *shape, pairs)
            arranged = fourier.arranged(angles)
            channels = place[..., first:]
            channels.reshape(*channels.shape[:-1], *arranged.shape[-3:])[...] = arranged  # a view: an axis is split


def _turned(fourier: Fourier, library: ModuleType, table: Memory, begin: int, rows: int) -> Any:
    """Cosines and sines (2, rows, angles) of the points from ``begin`` on."""
    pairs = fourier.angles
    made = library.empty((rows, 2 * pairs), "float64", table.device)
    memory = library.memory(made)
    backend = dispatch.backend(memory)
    first, others = fourier.plans()
    where = table.address + 8 * begin
    backend.run(AddSinusoidal(None, memory, Rows(0, where, (8,), 0, (0,), (table,)), 0, first, 1.0))
    for axis, plan in enumerate(others, 1):
        stands = RotaryRows(0, where + axis * table.strides[0], (0, 8, 0), 0, (0, 0), (table,))
        backend.run(Rotate(Pair(memory, memory), None, stands, 0, plan, False, 1.0))
    return made.reshape(rows, 2, pairs).transpose(1, 0, 2)


def _check(function: str, library: ModuleType, coordinates: Any) -> None:
    values = np.asarray(library.as_host(coordinates))
    bad = ~(np.abs(values) < LIMIT)
    if bad.any():
        where = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        rule = "coordinates must be finite and lie in (-32768, 32768)"
        raise ValueError(message(function, rule, f"{values[where]} at index {where}"))
