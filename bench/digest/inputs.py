"""Inputs of cases: random arrays and tensors in several memory layouts, determined by a case's name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

try:
    import torch
except ImportError:
    torch: Any = None  # type: ignore[no-redef]
    F: Any = None
else:
    from fastpe.torch import functional as F

__all__ = ["DTYPES", "TENSOR_VIEWS", "VIEWS", "F", "Given", "Inputs", "torch"]

DTYPES = {name: np.dtype(getattr(ml_dtypes, name, None) or name) for name in ("float16", "bfloat16", "float32", "float64")}
Given = dict[str, Any]


def _gaps(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.full(shape, 7, dtype)


def _sliced(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    whole = _gaps((*x.shape[:-2], x.shape[-2] + 3, x.shape[-1] + 8), x.dtype)
    return whole, whole[..., 1:-2, 4:-4]


def _columns(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    whole = _gaps((*x.shape[:-1], 2 * x.shape[-1] + 1), x.dtype)
    return whole, whole[..., 1::2]


def _misaligned(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    whole = _gaps((*x.shape[:-1], x.shape[-1] + 1), x.dtype)
    return whole, whole[..., 1:]


def _swapped(x: np.ndarray, one: int, other: int) -> tuple[np.ndarray, np.ndarray]:
    whole = np.ascontiguousarray(x.swapaxes(one, other))
    return whole, whole.swapaxes(one, other)


# Each makes memory for an array, and the view of it with the array's shape; the caller writes the values into the view.
VIEWS: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "plain": lambda x: (x, x),
    "sliced": _sliced,
    "strided_columns": _columns,
    "misaligned": _misaligned,
    "channels_first": lambda x: _swapped(x, -1, -2),
    "batch_inside": lambda x: _swapped(x, 0, -2),
    "rows_reversed": lambda x: (x, x[..., ::-1, :]),
    "columns_reversed": lambda x: (x, x[..., ::-1]),
}
TENSOR_VIEWS = [view for view in VIEWS if "reversed" not in view]  # PyTorch has no negative strides


class Inputs:
    """Fresh arrays or tensors for one run of a case; their values depend only on the case's name."""

    def __init__(self, name: str, tensors: bool) -> None:
        self.rng = np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:12], 16))
        self.tensors = tensors
        self.buffers: list[np.ndarray] = []  # the memory of all inputs, hashed after the call
        self.passed: list[Any] = []  # the arrays or tensors themselves
        self.leaves: list[Any] = []  # tensors that require gradients

    def __call__(self, *shape: int, dtype: str = "float32", view: str = "plain", grad: bool = False) -> Any:
        """Normally distributed numbers."""
        values = self.rng.standard_normal(shape, np.float64 if dtype == "float64" else np.float32).astype(DTYPES[dtype])
        whole, seen = VIEWS[view](values)
        seen[...] = values.copy()
        self.buffers.append(whole)
        self.passed.append(self.of(seen))
        if grad:
            self.leaves.append(self.passed[-1].requires_grad_())
        return self.passed[-1]

    def ints(self, low: int, high: int, *shape: int, dtype: str = "int64") -> Any:
        """Integers from low to high - 1."""
        self.buffers.append(self.rng.integers(low, high, shape).astype(dtype))
        self.passed.append(self.of(self.buffers[-1]))
        return self.passed[-1]

    def of(self, value: Any) -> Any:
        """A NumPy array as an array of the library that the case runs with; anything else unchanged."""
        if not self.tensors or not isinstance(value, np.ndarray):
            return value
        if value.dtype == DTYPES["bfloat16"]:
            return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(value)

    def given(self, arguments: Given) -> Given:
        """Arguments with their arrays converted."""
        return {name: self.of(value) for name, value in arguments.items()}
