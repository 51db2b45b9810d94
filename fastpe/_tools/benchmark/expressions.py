"""What users write without fastpe: the expressions of tutorials and models, and values to run them on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def from_scratch(positions: Any, width: int, dtype: Any, xp: Any = np) -> Any:
    """The recipe of most tutorials: angles, then sines and cosines into alternate columns."""
    frequencies = (10000.0 ** -(xp.arange(0, width, 2) / width)).astype(dtype)
    angles = positions[..., None].astype(dtype) * frequencies
    table = xp.empty((*positions.shape, width), dtype)
    table[..., 0::2] = xp.sin(angles)
    table[..., 1::2] = xp.cos(angles[..., : width // 2])
    return table


def usual_rotation(library: Any, x: Any, cos: Any, sin: Any) -> Any:
    """The expression of most models: cosines and sines have every column twice."""
    half = x.shape[-1] // 2
    join = library.cat if hasattr(library, "cat") else library.concatenate
    return x * cos + join((-x[..., half:], x[..., :half]), -1) * sin


def numpy_embed(ids: Any, table: Any, out: Any, added: Any, scale: float, xp: Any = np) -> None:
    """Gather, scale and add, all into the same memory; ``xp`` is NumPy or CuPy."""
    xp.take(table, ids, axis=0, out=out, mode="clip")
    xp.multiply(out, table.dtype.type(scale), out=out)
    xp.add(out, added, out=out)


def torch_embed(table: Any, out: Any, ids: Any, added: Any, scale: float) -> None:
    """The same in torch."""
    import torch

    torch.index_select(table, 0, ids.reshape(-1), out=out.view(-1, out.shape[-1]))
    out.mul_(scale)
    out.add_(added)


def element(dtype: str) -> Any:
    """NumPy's dtype of this name; ImportError for bfloat16 without ml_dtypes."""
    if dtype != "bfloat16":
        return np.dtype(dtype)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def random_values(shape: tuple[int, ...], dtype: str) -> Array:
    """Values of which no two pages are alike: the host of a virtual machine may keep pages of one content once, in its caches."""
    block = np.random.default_rng(0).standard_normal(min(math.prod(shape), 1_000_003), np.float32)
    return np.resize(block.astype(element(dtype)), shape)


def as_tensor(x: Array) -> Any:
    """A tensor over the same memory."""
    import torch

    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)
