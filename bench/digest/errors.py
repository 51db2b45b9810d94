"""Errors of bad calls: bad arguments, and arrays that a verb refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastpe
from fastpe import ALiBi

from .errors_of_values import bad_biases, bad_values
from .errors_of_verbs import X, bad_additions, bad_embeddings, bad_rotations
from .recording import NUMPY, Recorder


class Jax:
    """An object that claims to come from JAX."""

    def __repr__(self) -> str:
        return "Jax()"


Jax.__module__ = "jaxlib._jax"


def frozen(x: np.ndarray) -> np.ndarray:
    """The array, read-only."""
    x.flags.writeable = False
    return x


VERBS: dict[str, Callable[[Any], Any]] = {
    "add": fastpe.add_encoding,
    "rotary": fastpe.apply_rotary,
    "rerotate": lambda x: fastpe.rerotate(x, 3),
    "bias": lambda x: fastpe.add_bias(x, ALiBi(2)),
    "embed": lambda x: fastpe.embed([0], x),
    "convert_layout": lambda x: fastpe.convert_layout(x, "half", "interleaved", 2),
}


def errors(record: Recorder) -> None:
    """Bad arguments with both libraries, and NumPy arrays that are refused."""
    groups = {"add": bad_additions, "rotary": bad_rotations, "embed": bad_embeddings, "bias": bad_biases, "value": bad_values}
    for group, make in groups.items():
        for name, run in make().items():
            record.error(f"{group}/{name}", run)
    arrays: dict[str, Callable[[], Any]] = {
        "list": lambda: [[1.0, 2.0]],
        "none": lambda: None,
        "text": lambda: "text",
        "scalar": lambda: np.float32(1),
        "masked": lambda: np.ma.zeros((2, 3)),
        "jax": lambda: Jax(),
        "big_endian": lambda: np.zeros((2, 3), ">f4"),
        "longdouble": lambda: np.zeros((2, 3), np.longdouble),
        "object": lambda: np.zeros((2, 3), object),
        "read_only": lambda: frozen(np.zeros(X, np.float32)),
        "broadcast": lambda: np.broadcast_to(np.float32(1), X),
        "overlapping": lambda: np.lib.stride_tricks.as_strided(np.zeros(32, np.float32), X, (32, 16, 4)),
    }
    for verb, call in VERBS.items():
        for name, make in arrays.items():
            record.error(f"array/{verb}/{name}", lambda r: call(make()), NUMPY)
