"""Gradients that nobody else sees, and so may be written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from .._arrays.torch import is_batched
from .watching import in_transform

Tensor = torch.Tensor
Counts = tuple[int, ...]


def owned(grad: Tensor) -> bool:
    """Whether a gradient may be written because only this backward function, which calls this, can see it.

    As autograd's engine decides it when it adds gradients up in place: nothing else refers to the tensor or to its memory. What the counts
    of references are then was found out by a gradient that is known to be so. Memory that PyTorch did not allocate is not counted, nor is
    a gradient owned that will be differentiated itself.
    """
    if torch.is_grad_enabled() or type(grad) is not Tensor or in_transform() or is_batched(grad):
        return False
    return _OWNED is not None and _counts(grad) in _OWNED and grad.untyped_storage().resizable() and not _repeats(grad)


def _counts(grad: Tensor) -> Counts:
    """References to the tensor, its memory, and the objects that stand for them in Python; of a view those to its base too."""
    uses: int = grad._use_count()  # type: ignore[attr-defined]
    storage = grad.untyped_storage()
    found = uses, torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(grad), sys.getrefcount(storage)
    base: Any = grad._base if grad._is_view() else None
    return found if base is None else (*found, base._use_count(), sys.getrefcount(base))


def _repeats(grad: Tensor) -> bool:
    """Whether an element may stand in several places, as in an expanded tensor; a view with gaps is not told from one that does."""
    return torch._debug_has_internal_overlap(grad) != 0


class _Probe(torch.autograd.Function):
    """Notes the counts of the gradient that comes."""

    found: ClassVar[list[Counts]] = []

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        _note(grad)
        return grad


def _note(grad: Tensor) -> None:  # called as `owned` is
    _Probe.found.append(_counts(grad))


def _probe() -> tuple[Counts, ...] | None:
    """The counts of gradients that only their backward function sees: one that was made for it, and a view of one, as where queries were
    transposed. None where they cannot be told from those of one that is shared.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            found = [_alone(lambda y: y), _alone(lambda y: y.t())]
    except (AttributeError, RuntimeError, TypeError):
        return None
    return None if None in found else tuple(counts for counts in found if counts is not None)


def _alone(seen: Callable[[Any], Any]) -> Counts | None:
    """The counts of the gradient of y that comes through ``seen(y)``; None if somebody else's reference does not change them."""
    run: Any = _Probe.apply
    kept: list[Tensor] = []
    _Probe.found.clear()
    x = torch.zeros(2, 3, requires_grad=True)
    (seen(run(x)) * 2).sum().backward()
    (seen(run(x)) + seen(run(x))).mul(2).sum().backward()  # the first of the two shares its gradient with the second
    alone, shared, _ = _Probe.found
    for keep in (kept.append, lambda grad: kept.append(grad.detach())):
        for early in (False, True):
            y = run(x)
            z = seen(y)
            (z if early else y).register_hook(keep)
            (z * 2).sum().backward()
    return None if alone in (shared, *_Probe.found[3:]) else alone


_OWNED = _probe()
