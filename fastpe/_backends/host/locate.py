"""Tables of positions in host memory."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from ..._arrays import Memory
from ..._arrays import numpy as numpy_arrays
from ...kernels import locate_rows


def locate_rows_given(library: ModuleType, positions: Memory) -> Memory:
    return numpy_arrays.memory(locate_rows.locate_rows_given(positions.array))


def locate_rows_ragged(library: ModuleType, rows: int, offsets: Memory | int, boundaries: Memory | None) -> Memory:
    return numpy_arrays.memory(locate_rows.locate_rows_ragged(rows, _int64(offsets), _int64(boundaries)))


def locate_rows_counted(library: ModuleType, mask: Memory, offsets: Memory | int, boundaries: Memory | None) -> Memory:
    kept = np.atleast_2d(mask.array)
    return numpy_arrays.memory(locate_rows.locate_rows_counted(kept, _int64(offsets), _int64(boundaries)))


def _int64(value: Memory | int | None) -> Any:
    if isinstance(value, Memory):
        return value.array.astype(np.int64, copy=False)
    return None if value is None else np.array([value], np.int64)
