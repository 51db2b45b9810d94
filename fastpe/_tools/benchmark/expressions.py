"""What users write without fastpe, the expressions of tutorials and models, and values to run them on."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formula import interleaved

Array = npt.NDArray[Any]
BLOCK = 1_000_003  # random values, which then repeat: a prime, so that no two pages are alike


def from_scratch(positions: Any, width: int, dtype: Any, xp: Any = np) -> Any:
    """The recipe of most tutorials: angles, then sines and cosines into alternate columns."""
    frequencies = (10000.0 ** -(xp.arange(0, width, 2) / width)).astype(dtype)
    angles = positions[..., None].astype(dtype) * frequencies
    return interleaved(xp, xp.sin(angles), xp.cos(angles), width, dtype)


def usual_rotation(library: Any, x: Any, cos: Any, sin: Any) -> Any:
    """The expression of most models; cosines and sines have every column twice."""
    half = x.shape[-1] // 2
    join = library.cat if hasattr(library, "cat") else library.concatenate
    return x * cos + join((-x[..., half:], x[..., :half]), -1) * sin


def usual_embedding(ids: Any, table: Any, out: Any, added: Any, scale: float, xp: Any = np) -> Any:
    """Gather, scale and add, all into the same memory; ``xp`` is NumPy or CuPy."""
    clipped = {"mode": "clip"} if xp is np else {}  # NumPy's other modes go through a buffer; CuPy's take has no modes
    xp.take(table, ids, axis=0, out=out, **clipped)
    xp.multiply(out, table.dtype.type(scale), out=out)
    return xp.add(out, added, out=out)


def usual_embedding_torch(ids: Any, table: Any, out: Any, added: Any, scale: float) -> Any:
    """The same in torch."""
    import torch

    torch.index_select(table, 0, ids.reshape(-1), out=out.view(-1, out.shape[-1]))
    return out.mul_(scale).add_(added)


# ---- values ------------------------------------------------------------------------------------------------------------------


def element(dtype: str) -> Any:
    """NumPy's dtype of this name; ImportError for bfloat16 without ml_dtypes."""
    if dtype != "bfloat16":
        return np.dtype(dtype)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


@functools.lru_cache(maxsize=4)
def _block(dtype: Any) -> Array:
    return np.random.default_rng(0).standard_normal(BLOCK, np.float32).astype(dtype).view(np.uint8)


def fill(x: Any, xp: Any = np) -> None:
    """Write the same random values into a contiguous array as ever, of variance 1.

    No two pages of it are alike: the host of a virtual machine may keep pages of one content once, in its caches.
    """
    flat = x.reshape(-1).view(np.uint8)  # as bytes: not every library copies every element type
    block = xp.asarray(_block(x.dtype)[: flat.size])
    for start in range(0, flat.size, max(block.size, 1)):
        part = flat[start : start + block.size]
        part[...] = block[: part.size]


def random_values(shape: tuple[int, ...], dtype: str, xp: Any = np) -> Any:
    """An array of such values."""
    x = xp.empty(math.prod(shape), element(dtype)).reshape(shape)
    fill(x, xp)
    return x


def as_tensor(x: Any) -> Any:
    """A tensor over the same memory, that of an array of NumPy or CuPy."""
    import torch

    if x.dtype.name == "bfloat16":
        return torch.utils.dlpack.from_dlpack(x.view(np.int16)).view(torch.bfloat16)
    return torch.utils.dlpack.from_dlpack(x)
