"""What the tests of tensors share: tensors over NumPy views and over copies of them."""

from __future__ import annotations

from typing import Any

import cases
import ml_dtypes
import numpy as np
import torch

from fastpe._arrays.dtypes import FLOAT8

DTYPES = {name: getattr(torch, name) for name in cases.DTYPES}
VIEWS = {name: view for name, view in cases.VIEWS.items() if "reversed" not in name}  # PyTorch has no negative strides


def shared(view: np.ndarray) -> torch.Tensor:
    """A tensor over the memory of an array."""
    if view.dtype == cases.DTYPES["bfloat16"]:
        return torch.from_numpy(view.view(np.int16)).view(torch.bfloat16)
    if view.dtype.name in FLOAT8:
        return torch.from_numpy(view.view(np.int8)).view(getattr(torch, view.dtype.name))
    return torch.from_numpy(view)


def tensor(view: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """A tensor with the values and strides of a view, in memory of its own."""
    raw, offset = cases.memory_of(view)
    whole = torch.from_numpy(np.array(raw)).to(device)
    strides = [stride // view.itemsize for stride in view.strides]
    if view.size == 0:
        return torch.empty(view.shape, dtype=shared(np.empty(0, view.dtype)).dtype, device=device)
    dtype = shared(np.empty(0, view.dtype)).dtype
    aligned = torch.empty(raw.size, dtype=torch.uint8, device=device).copy_(whole)
    return aligned.view(dtype).as_strided(view.shape, strides, offset // view.itemsize)


def host(x: torch.Tensor) -> np.ndarray:
    """The values of a tensor as an array of its own."""
    x = x.detach().cpu()
    if x.dtype == torch.bfloat16:
        return x.contiguous().view(torch.int16).numpy().view(cases.DTYPES["bfloat16"]).copy()
    name = str(x.dtype).removeprefix("torch.")
    if name in FLOAT8:
        return x.contiguous().view(torch.int8).numpy().view(getattr(ml_dtypes, name)).copy()
    return x.numpy().copy()


def arguments(given: dict[str, Any], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Arrays among arguments as tensors."""
    return {
        name: torch.tensor(value, device=device) if isinstance(value, np.ndarray) else value for name, value in given.items()
    }


def memory(x: torch.Tensor) -> bytes:
    """All bytes of the storage that a tensor lies in."""
    return bytes(x.untyped_storage().cpu().tolist()) if x.numel() else b""


def outside(x, view):
    """The bytes of a tensor's storage with its elements blanked: what must not be written."""
    whole = x.detach().cpu() if x.is_cpu else torch.empty(0)
    if view.size == 0 or not x.is_cpu:
        return np.zeros(0, np.float32)
    copy = torch.empty_like(torch.tensor([], dtype=torch.uint8)).set_(whole.untyped_storage()).clone()
    copy.view(x.dtype).as_strided(x.shape, x.stride(), x.storage_offset()).zero_()
    return copy.numpy().astype(np.float32)
