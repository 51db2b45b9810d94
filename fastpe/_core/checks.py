"""Every argument error, in one voice: function, argument and rule, what came, what to do."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._arrays import ITEMSIZE, Memory, Outline
from .._arrays.dtypes import FLOAT8
from .._arrays.errors import describe as describe
from .._arrays.errors import message as message

FLOATS = ("float16", "bfloat16", "float32", "float64")
RESULTS = (*FLOATS, *FLOAT8)  # of the verbs that write float8
POSITION_LIMIT = 2**31
LARGEST_FLOAT32 = 2.0**128 - 2.0**103  # from here on float32 rounds to infinity
LEAST_FLOAT32 = 2.0**-126  # without losing bits
NOT_A_POSITION = -(2**63) + 1  # in units of 2^-32; its row is NaN


# ---- single values -----------------------------------------------------------------------------------------------------------


def integer(function: str, name: str, value: Any, remedy: str = "") -> int:
    """An int or anything that is one (NumPy integers, 0-d integer arrays on the host); never a bool."""
    if type(value) is int:
        return value
    try:
        if isinstance(value, bool) or _is_boolean(value):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(message(function, f"{name} must be an integer", describe(value), remedy)) from None


def number(function: str, name: str, value: Any) -> float:
    """A finite real number of any kind, as a float."""
    # `copysign` and `index` change nothing, but a compiler that leaves a number open fixes it there.
    if type(value) is float:
        found = math.copysign(value, value)
        if math.isfinite(found):
            return found
    _no_gradient(function, f"{name} must be a real number", value, "item")
    try:
        if type(value) is int:
            result = float(operator.index(value))
        elif isinstance(value, (bool, str, bytes)) or getattr(value, "ndim", 0) != 0 or _is_boolean(value):
            raise TypeError
        else:
            result = float(value)
    except (TypeError, ValueError):
        raise TypeError(message(function, f"{name} must be a real number", describe(value))) from None
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise ValueError(message(function, f"{name} must be finite", describe(value)))
    return result


def numbers(function: str, name: str, values: Any) -> tuple[float, ...]:
    """A sequence or array of finite real numbers as a tuple."""
    found = listed(function, name, values)
    if not isinstance(found, (tuple, list)) or not found:
        raise TypeError(message(function, f"{name} must be a sequence of numbers", describe(found)))
    return tuple(number(function, f"{name}[{i}]", value) for i, value in enumerate(found))


def listed(function: str, name: str, values: Any) -> Any:
    """An array as nested lists; anything else as it is."""
    _no_gradient(function, f"{name} must be numbers", values, "detach")
    return values.tolist() if hasattr(values, "tolist") else values


def _no_gradient(function: str, rule: str, value: Any, method: str) -> None:
    """Refuse a parameter that would be kept as numbers, and never trained."""
    if type(value) is not int and getattr(value, "requires_grad", False):
        rule = f"{rule}, not a tensor that requires a gradient, as there is none for it"
        remedy = f"Pass value.{method}(). Scales and amplitudes that are trained go to fastpe.torch.functional."
        raise TypeError(message(function, rule, describe(value), remedy))


def _is_boolean(value: Any) -> bool:
    return getattr(getattr(value, "dtype", None), "kind", "") == "b"


def fits(function: str, name: str, value: float, dtype: str) -> None:
    """Refuse a finite factor that the arithmetic of an element type would round to infinity."""
    if dtype != "float64" and abs(value) >= LARGEST_FLOAT32:
        raise ValueError(message(function, f"{name} must be finite in float32, the arithmetic of {dtype} arrays", f"{value}"))


def out_factor(function: str, scale: Any, dtype: str) -> float:
    """What a result is multiplied by before it becomes float8: the reciprocal of ``out_scale``."""
    if scale is None:
        return 1.0
    if dtype not in FLOAT8:
        rule, remedy = "out_scale is for results in float8", f"Leave it out, or pass out in {' or '.join(FLOAT8)}."
        raise ValueError(message(function, rule, f"one for a result in {dtype}", remedy))
    value = positive_number(function, "out_scale", scale)
    if not LEAST_FLOAT32 <= value <= 1 / LEAST_FLOAT32:
        raise ValueError(message(function, "out_scale must lie in [2^-126, 2^126]", describe(scale)))
    return 1 / value


def positive_number(function: str, name: str, value: Any) -> float:
    result = number(function, name, value)
    if result <= 0:
        raise ValueError(message(function, f"{name} must be greater than 0", describe(value)))
    return result


def boolean(function: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(message(function, f"{name} must be True or False", describe(value)))


def one_of(function: str, name: str, value: Any, known: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in known:
        names = ", ".join(repr(item) for item in known)
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(message(function, f"{name} must be one of {names}", describe(value)))


def width(function: str, name: str, value: Any) -> int:
    result = integer(function, name, value)
    if result < 1:
        raise ValueError(message(function, f"{name} must be at least 1", str(result)))
    return result


def positions(function: str, first: int, count: int, got: str) -> None:
    """Refuse so many rows from a first position on, of which one stands at no position."""
    if first < -POSITION_LIMIT or first + max(count - 1, 0) >= POSITION_LIMIT:
        raise ValueError(message(function, "every position must lie in [-2^31, 2^31)", got))


def sequence_length(function: str, value: Any) -> None:
    if value is not None:
        width(function, "seq_len", value)


def axis(function: str, value: Any, shape: tuple[int, ...]) -> int:
    """Normalise ``seq_axis``; the last axis is the width."""
    ndim = len(shape)
    result = integer(function, "seq_axis", value)
    normal = result + ndim if result < 0 else result
    if not 0 <= normal < ndim - 1:
        rule = f"seq_axis must be an axis of x other than the last ({-ndim} ... -2 or 0 ... {ndim - 2})"
        raise ValueError(message(function, rule, f"{result} for shape {shape}"))
    return normal


def dtype_name(function: str, dtype: Any, known: Sequence[str] = FLOATS) -> str:
    """Name of a floating-point dtype given as a name, a NumPy dtype or a scalar type."""
    name = dtype if isinstance(dtype, str) else None
    if name not in known and dtype is not None:
        with contextlib.suppress(TypeError):
            name = np.dtype(dtype).name if np.dtype(dtype).isnative else None
    if name not in known:
        raise TypeError(message(function, f"dtype must be one of {', '.join(known)}", describe(dtype)))
    return str(name)


# ---- arrays ------------------------------------------------------------------------------------------------------------------


def first_index(bad: Any) -> tuple[int, ...] | None:
    """Where the first True is; None if there is none."""
    return tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape)) if bad.any() else None


def floating(function: str, name: str, dtype: str, array: Any, known: Sequence[str] = FLOATS) -> None:
    if dtype in known:
        return
    remedy = "Convert it first, e.g. to float32."
    if dtype.startswith(("complex", "clongdouble")):
        remedy = f"Encode its real view instead, e.g. {name}.view of the real type."
    rule = f"{name} must be a floating-point array ({', '.join(known)})"
    raise TypeError(message(function, rule, describe(array), remedy))


def has_rows(function: str, name: str, shape: tuple[int, ...]) -> None:
    if len(shape) < 2:
        remedy = f"A single row is {name}[None, :]." if len(shape) == 1 else ""
        raise ValueError(message(function, f"{name} must have at least 2 axes, (..., T, D)", f"shape {shape}", remedy))
    if shape[-1] < 1:
        raise ValueError(message(function, f"{name} must have a last axis D of at least 1", f"shape {shape}"))


def writable(function: str, name: str, memory: Memory) -> None:
    """Refuse memory that cannot be written element by element."""
    shape, strides, span = memory.shape, memory.strides, ITEMSIZE[memory.dtype]
    if not memory.writeable:
        got = f"a read-only array of shape {shape}"
        raise ValueError(message(function, f"{name} must be writable", got, "Pass a copy, or out=."))
    if 0 in shape or _is_dense(shape, strides, span):
        return
    for stride, size in sorted((abs(stride), size) for stride, size in zip(strides, shape, strict=True) if size > 1):
        if stride < span:
            what = "a broadcast view" if stride == 0 else "a view whose elements overlap"
            got = f"{what} of shape {shape}, strides {strides}"
            remedy = "Write to an array of its own, such as a copy, or to out=."
            raise ValueError(message(function, f"{name} must not hold one element twice", got, remedy))
        span += stride * (size - 1)


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether the elements lie one behind the other in C order: the usual case, decided without sorting."""
    expected = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if stride != expected:
            return False
        expected *= size
    return True


def is_table(function: str, name: str, table: Outline) -> None:
    """Refuse what is no (rows, D) array of contiguous rows."""
    if len(table.shape) != 2 or 0 in table.shape:
        raise ValueError(message(function, f"{name} must have shape (rows, D), at least 1 of each", f"shape {table.shape}"))
    if not table.contiguous_rows:
        rule = f"{name} must have rows of contiguous elements"
        raise ValueError(message(function, rule, "others", f"Pass a copy of {name}."))
