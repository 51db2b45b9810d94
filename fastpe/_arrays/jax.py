"""JAX arrays: read-only memory on the host, for errors and examples; ``fastpe.jax`` runs operations on them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from . import Memory, Outline
from . import numpy as host
from .errors import message

NAME = "jax"


def memory(array: Any) -> Memory:
    if isinstance(array, jax.core.Tracer):
        rule, remedy = "an array beside NumPy's must have values", "Pass the array that is encoded as a JAX array, too."
        raise TypeError(message("fastpe", rule, f"a traced {array.dtype} of shape {array.shape}", remedy))
    return host.memory(np.asarray(array))._replace(writeable=False)


def outline(function: str, name: str, array: Any) -> Outline:
    """What is known of an array, also while it is traced."""
    return Outline(tuple(array.shape), str(array.dtype), (NAME, None), True)


def empty(shape: tuple[int, ...], dtype: str, device: int | None) -> Any:
    """Allocate a new array."""
    return jax.numpy.empty(shape, dtype)


def from_host(array: Any, device: int | None) -> Any:
    """Copy a host array."""
    return jax.numpy.asarray(array)


def as_host(array: Any) -> Any:
    """Copy an array to the host."""
    return np.asarray(array)


on = host.on
