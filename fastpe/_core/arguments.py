"""Arrays that are arguments: the one whose rows are encoded, those beside it, and results, which must lie apart from them."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from .._arrays import Memory, dispatch
from .._arrays.errors import way_round
from .._arrays.exported import plain
from . import checks
from .checks import describe, message


class Target(NamedTuple):
    """The array whose rows are encoded, and who asks."""

    function: str
    library: ModuleType
    memory: Memory
    seq_axis: int
    validate: bool

    @property
    def rows(self) -> int:
        return self.memory.shape[self.seq_axis]

    @property
    def batch_axis(self) -> int | None:
        """The first axis that is neither seq_axis nor the last."""
        return None if len(self.memory.shape) == 2 else 1 if self.seq_axis == 0 else 0

    @property
    def batch(self) -> int:
        return 1 if self.batch_axis is None else self.memory.shape[self.batch_axis]


def is_known(value: Any) -> bool:
    """Whether this is an array of a library that fastpe knows."""
    return dispatch.library_of(value) is not None


def either(shapes: Sequence[tuple[int, ...]]) -> str:
    """Shapes, of which one is wanted, as an error lists them."""
    return " or ".join(str(shape) for shape in dict.fromkeys(shapes))


def output(
    function: str,
    out: Any,
    library: ModuleType,
    device: int | None,
    shape: tuple[int, ...],
    dtype: str | None,
    others: Sequence[str] = (),
) -> Memory:
    """The memory of ``out``: of the same library, device, shape and, unless it is open, dtype, or one of ``others``."""
    own_library, given = dispatch.memory(function, "out", out)
    if own_library is not library or given.device != device:
        rule = f"out must be an array of {library.NAME} on {device_name(device)}, as the input is"
        remedy = "Arrays of JAX cannot be written." if own_library.NAME == "jax" else "Nothing is copied silently between them."
        raise TypeError(message(function, rule, f"one of {own_library.NAME} on {device_name(given.device)}", remedy))
    checks.floating(function, "out", given.dtype, out, (*checks.FLOATS, *others))
    if given.shape != shape:
        raise ValueError(message(function, f"out must have shape {shape}", f"{given.shape}"))
    if dtype is not None and given.dtype not in (dtype, *others):
        raise TypeError(message(function, f"out must have dtype {dtype}", given.dtype))
    return given


def device_name(device: int | None) -> str:
    return "the host" if device is None else f"device {device}"


def overlap(a: Memory, b: Memory) -> bool:
    """Whether two arrays share an element without being the same view."""
    if a.device != b.device or 0 in a.shape or 0 in b.shape:
        return False
    if a.same_elements(b):
        return False
    return bool(np.shares_memory(_shadow(a), _shadow(b)))


def check_apart(function: str, target: Memory, others: dict[str, Memory | None]) -> None:
    """Refuse a result that shares an element with a table or anything else that is read by rows."""
    for name, memory in others.items():
        if memory is not None and 0 not in target.shape and (overlap(memory, target) or target.same_elements(memory)):
            raise ValueError(message(function, f"the result must lie apart from {name}", "an array that overlaps it"))


def _shadow(memory: Memory) -> Any:
    """A NumPy array over the same addresses, never read: NumPy knows exactly whether two views overlap."""
    interface = {
        "version": 3,
        "data": (memory.address, True),
        "shape": memory.shape,
        "strides": memory.strides,
        "typestr": f"|V{np.dtype(memory.array.dtype).itemsize}",
    }
    return np.asarray(SimpleNamespace(__array_interface__=interface))


# ---- arrays beside the one that is written -----------------------------------------------------------------------------------


def kind_of(given: Memory) -> str:
    return str(given.array.dtype.kind)


WANTED = {"iu": "integers", "b": "booleans", "iuf": "integers or real numbers"}


def argument(target: Target, name: str, value: Any, kinds: str) -> Memory:
    """An argument as an array of x's library on x's device; lists are taken when x is on the host."""
    function, device = target.function, target.memory.device
    library = dispatch.library_of(value)
    if library is None and device is None:
        value = host_numbers(function, name, value)
        library = dispatch.library_of(value)
    if library is not target.library:
        got = f"{type(value).__module__}.{type(value).__qualname__}"
        remedy = f"x is a {target.library.NAME} array; nothing is copied between libraries or devices silently."
        raise TypeError(message(function, f"{name} must be a {target.library.NAME} array", got, remedy))
    given = dispatch.memory(function, name, value)[1]
    if given.device != device:
        raise TypeError(message(function, f"{name} must be on x's device {device}", f"device {given.device}"))
    if kind_of(given) not in kinds:
        remedy = f"Did you mean {name} = ({name} != 0)?" if kinds == "b" else ""
        if given.dtype == "bfloat16":
            remedy = "bfloat16 holds integers only up to 256; use int64 or float32."
        raise TypeError(message(function, f"{name} must be {WANTED[kinds]}", describe(value), remedy))
    return given


def array_of(function: str, name: str, value: Any) -> Any:
    """An array as it is, of any library and lazy ones too, or the numbers of a sequence; None as it is."""
    return value if value is None or hasattr(value, "reshape") else host_numbers(function, name, value)


def host_numbers(function: str, name: str, value: Any) -> Any:
    """Numbers, sequences and ranges as a NumPy array; arrays as they are, or over the memory of what exports it."""
    if is_known(value):
        return plain(function, name, value)
    if not isinstance(value, (int, float, list, tuple, range)) and not isinstance(value, np.generic):
        got = f"{type(value).__module__}.{type(value).__qualname__}"
        rule = f"{name} must be a number, a sequence of numbers or an array"
        raise TypeError(message(function, rule, got, way_round(name, value)))
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(message(function, f"{name} must be a regular array of numbers", describe(value), str(error))) from None
    if array.size == 0 and array.dtype == np.float64:
        array = array.astype(np.int64 if name != "mask" else np.bool_)
    return array
