"""Factors that are trained. PyTorch multiplies by them, so that they have gradients; numbers are factors of the kernels."""

from __future__ import annotations

from typing import Any

import torch

from .._core import checks
from .._core.checks import describe, message
from ._gather_sum import on_rows

Tensor = torch.Tensor


def is_trained(function: str, name: str, factor: Any) -> bool:
    """Whether a factor is a tensor that requires a gradient, which must then have one element."""
    found = isinstance(factor, Tensor) and factor.requires_grad
    if found:
        check_tensor(function, name, factor)
    return found


def check_tensor(function: str, name: str, factor: Any, inplace: bool = False) -> Any:
    """Return a factor that PyTorch multiplies by; it is refused if it is no tensor of one element, or where x is written in place."""
    if not isinstance(factor, Tensor):
        raise TypeError(
            message(function, f"{name} must be a tensor", describe(factor), "Sinusoidal(amplitude=...) takes numbers.")
        )
    if factor.numel() != 1:
        raise ValueError(message(function, f"{name} must be one number", f"shape {tuple(factor.shape)}"))
    if inplace:
        rule = f"{name} must be a number where x is written in place, as its gradient needs x"
        raise ValueError(message(function, rule, "a tensor"))
    return factor


def check(module: str, name: str, factor: Any, inplace: bool = False) -> Any:
    """Return a factor of a module; it is refused if it is no number, or trained where the module writes in place."""
    if is_trained(module, name, factor):
        return check_tensor(module, name, factor, inplace)
    checks.number(module, name, factor)
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
