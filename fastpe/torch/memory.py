"""New tensors to be written."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from .._core import checks
from .._core.checks import message

Tensor = torch.Tensor

HUGE_BYTES = 1 << 22  # from here on NumPy asks for huge pages


def new(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor to be written. Large ones on the CPU in memory of NumPy's: in huge pages the first write takes less than half as long."""
    if device.type != "cpu" or math.prod(shape) * dtype.itemsize < HUGE_BYTES:
        return torch.empty(shape, dtype=dtype, device=device)
    if dtype is torch.bfloat16:
        return torch.from_numpy(np.empty(shape, np.int16)).view(dtype)
    return torch.from_numpy(np.empty(shape, str(dtype).removeprefix("torch.")))


def new_like(x: Tensor) -> Tensor:
    """As ``torch.empty_like``, with the strides that it chooses."""
    if x.device.type != "cpu" or x.numel() * x.element_size() < HUGE_BYTES:
        return torch.empty_like(x)
    strides = torch.empty_like(x, device="meta").stride()
    return new((x.numel(),), x.dtype, x.device).as_strided(x.shape, strides)


_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def dtype_of(function: str, dtype: Any) -> torch.dtype:
    """A floating-point dtype of torch, given as one, as a name or as NumPy's."""
    if isinstance(dtype, torch.dtype):
        if dtype not in _DTYPES.values():
            raise TypeError(message(function, f"dtype must be one of {', '.join(_DTYPES)}", str(dtype)))
        return dtype
    return _DTYPES[checks.dtype_name(function, dtype)]
