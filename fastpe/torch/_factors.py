"""Factors that are trained. PyTorch multiplies by them, so that they have gradients; numbers are factors of the kernels."""

from __future__ import annotations

from typing import Any

import torch

from .._core import checks
from .._core.checks import message
from ._gather_sum import on_rows

Tensor = torch.Tensor


def is_trained(function: str, name: str, factor: Any) -> bool:
    """Whether a factor is a tensor that requires a gradient, which must then have one element."""
    found = isinstance(factor, Tensor) and factor.requires_grad
    if found and factor.numel() != 1:
        raise ValueError(message(function, f"{name} must be one number", f"shape {tuple(factor.shape)}"))
    return found


def check(module: str, name: str, factor: Any, inplace: bool = False) -> Any:
    """Return a factor of a module; it is refused if it is no number, or trained where the module writes in place."""
    if not is_trained(module, name, factor):
        checks.number(module, name, factor)
    elif inplace:
        rule = f"{name} must be a number where x is written in place, as its gradient needs x"
        raise ValueError(message(module, rule, "a tensor that requires a gradient"))
    return factor


def shown(factor: Any) -> Any:
    """A factor in the text of a module."""
    return "trained" if isinstance(factor, Tensor) and factor.requires_grad else factor


def times(x: Tensor, factor: Any, mask: Any = None, seq_axis: int = -2) -> Tensor:
    """x times one factor, but for the rows that a mask protects."""
    if isinstance(factor, Tensor):
        factor = factor.reshape(())
    elif factor == 1:
        return x
    return x * factor if mask is None else torch.where(on_rows(mask, x, seq_axis)[..., None], x * factor, x)
