"""A rule that scales attention's scores (``softmax_scale``), in a model whose own attention has another scale or none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .._core.checks import message
from ..encodings import Rotary
from ._rotary_modules import FUNCTION

_KEPT = "_fastpe_own_scaling"  # on an attention module, so that a copy of it can be put back, too


def by_what(own: Iterable[Rotary], chosen: Iterable[Rotary]) -> float:
    """What the model's scores must be multiplied by; ValueError if types of layers differ."""
    found = {new.softmax_scale / old.softmax_scale for old, new in zip(own, chosen, strict=True)}
    if len(found) > 1:
        raise _refused(f"one factor for all types of layers, not {sorted(found)}")
    return found.pop()


def scaled(attentions: Iterable[tuple[str, Any]], ratio: float) -> None:
    """Multiply the scale of attention modules; ValueError, before anything is changed, if one has none that can be."""
    modules = list(attentions)
    if not modules:
        raise _refused("attention modules that get position_embeddings")
    for path, module in modules:
        if not isinstance(getattr(module, "scaling", None), float) or _KEPT in vars(module):
            raise _refused(f"a scaling of its own in {path}")
    for _, module in modules:
        setattr(module, _KEPT, module.scaling)
        module.scaling *= ratio


def changed(attentions: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Those whose scale was changed, here or before they were copied."""
    return [(path, module) for path, module in attentions if _KEPT in vars(module)]


def restore(module: Any) -> None:
    """Give an attention module its own scale back."""
    module.scaling = vars(module).pop(_KEPT)


def _refused(lacking: str) -> ValueError:
    rule = "the model's attention must be one whose softmax scale can follow the rule's (mscale_all_dim)"
    return ValueError(message(FUNCTION, rule, f"a model without {lacking}", "Leave mscale and mscale_all_dim out."))
