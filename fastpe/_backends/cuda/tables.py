"""The small tables of plans on devices: their addresses. What is uploaded stays, because a captured graph may hold its address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..._arrays.dtypes import ELEMENT_TYPES
from ..calls import CallerTable, RotaryTables, Tables
from ..plans import RotaryPlan, SinusoidalPlan, TablePlan
from .available import require
from .compile import FIRST_CALL, lock, refuse_capture

_uploaded: dict[tuple[object, int], tuple[list[int], Any]] = {}


def sinusoidal(plan: SinusoidalPlan, device: int) -> Tables:
    return Tables(*upload(plan.key, device, lambda: (plan.turns.fraction, plan.turns.whole, *plan.rotations)))


def kept(key: Any, device: int, array: Any) -> int:
    """Address of a copy of an array on a device, made once."""
    return upload(key, device, lambda: (array,))[0]


def upload(key: Any, device: int, arrays: Callable[[], tuple[Any, ...]]) -> list[int]:
    """Addresses of arrays on a device, uploaded once for a key; 0 for None."""
    with lock:
        if (key, device) not in _uploaded:
            import cupy

            require()
            refuse_capture(device, FIRST_CALL)
            with cupy.cuda.Device(device):
                uploaded = [None if array is None else cupy.asarray(array) for array in arrays()]
                cupy.cuda.get_current_stream().synchronize()  # once: any stream may read them from now on
            _uploaded[key, device] = [0 if array is None else array.data.ptr for array in uploaded], uploaded
        return _uploaded[key, device][0]


def rotary(plan: RotaryPlan, device: int) -> RotaryTables:
    axes = plan.axes if plan.axes.any() else None
    return RotaryTables(*upload(plan.key, device, lambda: (plan.turns.fraction, plan.turns.whole, axes, plan.growths)))


def caller_table(plan: TablePlan, device: int, dtype: str) -> CallerTable:
    real = ELEMENT_TYPES[dtype].arithmetic
    if (device, real) not in plan.table._copies:
        refuse_capture(device, FIRST_CALL)
    from ..._arrays import cupy as cupy_arrays

    cosines, sines = plan.table.on(cupy_arrays, device, real)
    return CallerTable(cosines.address, sines.address, plan.table.rows, cosines.strides[0])
