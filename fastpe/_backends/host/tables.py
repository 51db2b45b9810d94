"""The small tables of plans in host memory: their addresses, and the arrays that own them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ..._arrays import numpy as numpy_arrays
from ..._arrays.dtypes import ELEMENT_TYPES
from ...kernels.abi import MARGIN
from ..calls import CallerTable, RotaryTables, Tables
from ..plans import RotaryPlan, SinusoidalPlan, TablePlan


@functools.lru_cache(maxsize=64)
def sinusoidal(plan: SinusoidalPlan) -> tuple[Tables, Any]:
    cosines, sines = plan.rotations
    fraction, whole = (np.pad(turns, (0, MARGIN)) for turns in (plan.turns.fraction, plan.turns.whole))
    arrays = fraction, whole, cosines, sines
    return Tables(*(array.ctypes.data for array in arrays)), arrays


@functools.lru_cache(maxsize=64)
def rotary(plan: RotaryPlan) -> tuple[RotaryTables, Any]:
    fraction, whole = (np.pad(turns, (0, MARGIN)) for turns in (plan.turns.fraction, plan.turns.whole))
    axes = np.ascontiguousarray(plan.axes, np.int64) if plan.axes.any() else None
    growths = None if plan.growths is None else np.pad(plan.growths, (0, MARGIN))
    arrays = fraction, whole, axes, growths
    return RotaryTables(*(0 if array is None else array.ctypes.data for array in arrays)), arrays


def caller_table(plan: TablePlan, dtype: str) -> tuple[CallerTable, Any]:
    cosines, sines = plan.table.on(numpy_arrays, None, ELEMENT_TYPES[dtype].arithmetic)
    return CallerTable(cosines.address, sines.address, plan.table.rows, cosines.strides[0]), (cosines, sines)
