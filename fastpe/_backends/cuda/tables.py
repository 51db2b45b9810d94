"""Small tables on devices: those of plans, which stay, and those of one length or of some numbers, of which the latest stay.

What stays may be read by a captured graph. Nothing is allocated from the caller's allocator, which may give memory of a graph's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from ..._arrays.dtypes import ELEMENT_TYPES
from ..plans import RotaryPlan, SinusoidalPlan, TablePlan
from .available import require
from .compile import FIRST_CALL, is_capturing, lock, refuse_capture


class Uploaded(dict[str, int]):
    """Addresses of arrays by name. Whoever launches a kernel keeps it until then."""

    def __init__(self, arrays: dict[str, Any]) -> None:
        super().__init__((name, array.data.ptr) for name, array in arrays.items())
        self.arrays = arrays

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


MOST_PASSING = 256  # the oldest go first
MOST_BYTES = 1 << 25  # of all of them
_uploaded: dict[tuple[object, int], Uploaded] = {}
_passing: dict[tuple[object, int, int], Uploaded] = {}


def of(plan: SinusoidalPlan | RotaryPlan | TablePlan, device: int, dtype: str) -> dict[str, int]:
    """Addresses of a plan's tables for an element type, by their names in the argument block."""
    if not isinstance(plan, TablePlan):
        return (_pass if plan.of_length else _upload)(plan.key, device, plan.tables)
    if (device, ELEMENT_TYPES[dtype].arithmetic) not in plan.table._copies:
        refuse_capture(device, FIRST_CALL)
    from ..._arrays import cupy as cupy_arrays

    with _own_memory():
        return plan.addresses(cupy_arrays, device, dtype)[0]


def kept(key: Any, device: int, array: Any) -> int:
    """Address of a copy of an array on a device, made once."""
    return _upload(key, device, lambda: {"array": array})["array"]


def uploaded(array: Any, device: int) -> Any:
    """A copy of an array on a device, made anew only if the same values are not among the latest."""
    key = array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest()
    return _pass(key, device, lambda: {"array": array}).arrays["array"]


def _upload(key: Any, device: int, arrays: Callable[[], dict[str, Any]]) -> Uploaded:
    """Addresses of arrays on a device, uploaded once for a key."""
    with lock:
        if (key, device) not in _uploaded:
            import cupy

            require()
            refuse_capture(device, FIRST_CALL)
            with cupy.cuda.Device(device):
                _uploaded[key, device] = _copied(arrays())
                cupy.cuda.get_current_stream().synchronize()  # once: any stream may read them from now on
        return _uploaded[key, device]


def _pass(key: Any, device: int, arrays: Callable[[], dict[str, Any]]) -> Uploaded:
    """Arrays on a device for the current stream, on which they are uploaded and read in order, so nothing waits for them.

    What a graph is captured with stays. The call before the capture may have been on another stream: whoever captures waits for it.
    """
    import cupy

    with lock, cupy.cuda.Device(device):
        if (key, device) in _uploaded:
            return _uploaded[key, device]
        place = key, device, int(cupy.cuda.get_current_stream().ptr)
        if is_capturing(device):
            found = _passing.get(place) or next((one for other, one in _passing.items() if other[:2] == (key, device)), None)
            if found is None:
                refuse_capture(device, FIRST_CALL)
            else:
                _uploaded[key, device] = found
        else:
            found = _passing.pop(place, None)
            if found is None:
                require()
                found = _copied(arrays())
            if found.nbytes <= MOST_BYTES:
                _evict(found.nbytes)
                _passing[place] = found
        assert found is not None
        return found


def _evict(nbytes: int) -> None:
    """Give up the oldest of those that pass, until another of so many bytes may be kept."""
    while _passing and (len(_passing) >= MOST_PASSING or sum(one.nbytes for one in _passing.values()) + nbytes > MOST_BYTES):
        del _passing[next(iter(_passing))]


def clear() -> None:
    """Forget what passes. What plans and captured graphs read stays."""
    with lock:
        _passing.clear()


def _copied(arrays: dict[str, Any]) -> Uploaded:
    import cupy

    with _own_memory():
        return Uploaded({name: cupy.asarray(array) for name, array in arrays.items()})


def _own_memory() -> Any:
    """Where arrays are allocated from CuPy's pool, in the order of the current stream."""
    import cupy

    return cupy.cuda.using_allocator(cupy.get_default_memory_pool().malloc)
