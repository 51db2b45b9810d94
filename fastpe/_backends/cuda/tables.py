"""The small tables of plans on devices: their addresses. What is uploaded stays, because a captured graph may hold its address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..._arrays.dtypes import ELEMENT_TYPES
from ..plans import RotaryPlan, SinusoidalPlan, TablePlan
from .available import require
from .compile import FIRST_CALL, lock, refuse_capture

_uploaded: dict[tuple[object, int], tuple[dict[str, int], Any]] = {}


def of(plan: SinusoidalPlan | RotaryPlan | TablePlan, device: int, dtype: str) -> dict[str, int]:
    """Addresses of a plan's tables for an element type, by their names in the argument block."""
    if not isinstance(plan, TablePlan):
        return _upload(plan.key, device, plan.tables)
    if (device, ELEMENT_TYPES[dtype].arithmetic) not in plan.table._copies:
        refuse_capture(device, FIRST_CALL)
    from ..._arrays import cupy as cupy_arrays

    return plan.addresses(cupy_arrays, device, dtype)[0]


def kept(key: Any, device: int, array: Any) -> int:
    """Address of a copy of an array on a device, made once."""
    return _upload(key, device, lambda: {"array": array})["array"]


def _upload(key: Any, device: int, arrays: Callable[[], dict[str, Any]]) -> dict[str, int]:
    """Addresses of arrays on a device, uploaded once for a key."""
    with lock:
        if (key, device) not in _uploaded:
            import cupy

            require()
            refuse_capture(device, FIRST_CALL)
            with cupy.cuda.Device(device):
                uploaded = {name: cupy.asarray(array) for name, array in arrays().items()}
                cupy.cuda.get_current_stream().synchronize()  # once: any stream may read them from now on
            _uploaded[key, device] = {name: array.data.ptr for name, array in uploaded.items()}, uploaded
        return _uploaded[key, device][0]
