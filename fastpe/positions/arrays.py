"""Arrays of any library, by the few methods that all have."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays import dispatch
from .._arrays.exported import plain
from .._core import checks
from .._core.checks import describe, message

if TYPE_CHECKING:
    from .._core.annotations import Like


def array(function: str, name: str, value: Any, kinds: str, ndims: tuple[int, ...]) -> Any:
    """An array of NumPy, CuPy or PyTorch of one of these kinds ("b", "i", "f") and numbers of axes; sequences become NumPy's."""
    value = plain(function, name, value)
    if dispatch.library_of(value) is None:
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise ValueError(message(function, f"{name} must be a regular array", describe(value), str(error))) from None
    wanted = {"b": "booleans", "i": "integers", "f": "real numbers"}
    if kind(value) not in kinds:
        remedy = f"Did you mean {name} = ({name} != 0)?" if kinds == "b" else ""
        raise TypeError(message(function, f"{name} must be {' or '.join(wanted[k] for k in kinds)}", describe(value), remedy))
    if value.ndim not in ndims:
        counts = " or ".join(str(n) for n in ndims)
        raise ValueError(message(function, f"{name} must have {counts} axes", describe(value)))
    return value


def kind(value: Any) -> str:
    """b, i or f, unsigned integers being integers; "" for what is neither."""
    letter = getattr(value.dtype, "kind", None)
    if letter is None:  # a tensor
        name = str(value.dtype)
        letter = "b" if name == "torch.bool" else "f" if value.is_floating_point() else "c" if value.is_complex() else "i"
    return {"u": "i"}.get(letter, letter) if letter in "biuf" else ""


def is_on_host(value: Any) -> bool:
    """Whether values can be looked at without waiting for a GPU."""
    return isinstance(value, np.ndarray) or getattr(getattr(value, "device", None), "type", None) == "cpu"


def module(value: Any) -> Any:
    """The library that an array is of."""
    name = type(value).__module__.partition(".")[0]
    return sys.modules["torch" if dispatch.is_tensor(value) else name]


def integers(value: Any) -> Any:
    """As int64."""
    return value.long() if dispatch.is_tensor(value) else value.astype(np.int64)


def reals(value: Any) -> Any:
    """As float64."""
    return value.double() if dispatch.is_tensor(value) else value.astype(np.float64)


def host(value: Any) -> Any:
    """As a NumPy array; waits for a GPU."""
    if dispatch.is_tensor(value):
        return value.detach().cpu().numpy()
    return value if isinstance(value, np.ndarray) else value.get()


def like(function: str, given: Like | None, made: Any) -> Like:
    """A NumPy array in the library and on the device of an example."""
    example: Any = given
    if dispatch.is_tensor(example):
        made = module(example).from_numpy(np.array(made, order="C")).to(example.device)
    elif example is not None and not isinstance(example, np.ndarray):
        library, memory = dispatch.memory(function, "like", example)
        made = library.from_host(made, memory.device)
    found: Like = made
    return found


def sizes(function: str, name: str, value: Any) -> tuple[int, ...]:
    """A tuple of sizes of at least 1."""
    if not isinstance(value, (tuple, list)) or not value:
        raise TypeError(message(function, f"{name} must be a sequence of integers such as (H, W)", describe(value)))
    return tuple(checks.width(function, f"{name}[{i}]", size) for i, size in enumerate(value))


def natural(function: str, name: str, value: Any) -> int:
    """An integer of 0 or more."""
    found = checks.integer(function, name, value)
    if found < 0:
        raise ValueError(message(function, f"{name} must be 0 or more", str(found)))
    return found
