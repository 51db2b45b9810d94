"""Does autograd watch, and may a tensor be written then? What PyTorch would say, before anything is written."""

from __future__ import annotations

from typing import Any

import torch

from .._core.checks import message
from ..encodings import Learned, RotaryTable

Tensor = torch.Tensor


def watched(*values: Any) -> bool:
    """Whether a gradient, in either direction, may be asked of a result that depends on these."""
    return requires_gradient(*values) or forward_mode() or in_transform()


def requires_gradient(*values: Any) -> bool:
    """Whether backward may be called on a result that depends on these: all that can be asked while compiling."""
    if torch.is_grad_enabled():
        for value in values:
            if isinstance(value, Tensor) and value.requires_grad:
                return True
    return False


def forward_mode() -> bool:
    """Whether forward-mode differentiation is going on."""
    return torch.autograd.forward_ad._current_level >= 0


def in_transform() -> bool:
    """Whether a transform of ``torch.func`` is going on."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def tables_of(encoding: Any) -> tuple[Any, ...]:
    """Tensors of the caller's in an encoding."""
    if isinstance(encoding, Learned):
        return (encoding.table,)
    return (encoding.cos, encoding.sin) if isinstance(encoding, RotaryTable) else ()


def refuse(function: str, **values: Any) -> None:
    """RuntimeError for an argument that needs a gradient which there is none of."""
    for name, value in values.items():
        if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
            rule = f"there is no gradient for {name}"
            raise RuntimeError(message(function, rule, "a tensor that requires one", f"Pass {name}.detach()."))


def refuse_tables(function: str, encoding: Any) -> None:
    """As ``refuse``, for the tables of a rotary encoding."""
    for name, table in zip(("cos", "sin"), tables_of(encoding), strict=False):
        refuse(function, **{name: table})


def check_in_place(function: str, *written: Tensor) -> None:
    """The error that PyTorch would raise, before anything is written."""
    if forward_mode() or in_transform():
        rule = "forward-mode differentiation and torch.func need functions that do not write in place"
        raise RuntimeError(message(function, rule, "a tensor in place", f"Call fastpe.torch.functional.{function}."))
    for x in written:
        found = _forbidden(x)
        if found is not None:
            remedy = f"Call fastpe.torch.functional.{function}, which writes a new tensor, or work under torch.no_grad()."
            raise RuntimeError(f"{function}: {found} {remedy}")


_CREATION = {
    "MULTI_OUTPUT_NODE": "This view is the output of a function that returns multiple views. Such functions do not allow the output "
    "views to be modified inplace.",
    "NO_GRAD_MODE": "A view was created in no_grad mode and is being modified inplace with grad mode enabled.",
    "INFERENCE_MODE": "A view was created in inference mode and is being modified inplace in normal mode.",
    "MULTI_OUTPUT_SAFE": "This view was created by a custom Function that returns views; it must not be modified inplace.",
    "IN_CUSTOM_FUNCTION": "This view was created inside a custom Function and must not be modified inplace.",
}


def _forbidden(x: Tensor) -> str | None:
    if x.is_inference():
        return None  # has no history; whether it may be written is another matter
    if x._is_view():
        creation = torch._C._autograd._get_creation_meta(x).name
        if creation != "DEFAULT":
            return _CREATION.get(creation, f"A view made by {creation} must not be modified inplace.")
        if x.requires_grad and x._base is not None and x._base.is_leaf:
            return "a view of a leaf Variable that requires grad is being used in an in-place operation."
    if x.requires_grad and x.is_leaf:
        return "a leaf Variable that requires grad is being used in an in-place operation."
    return None


def check_no_out(function: str, out: Any) -> None:
    """As PyTorch's own functions: what is written to ``out`` has no history."""
    if out is not None:
        rule = "functions with out=... arguments don't support automatic differentiation"
        raise RuntimeError(
            message(function, rule, "an argument that requires grad", f"Call fastpe.torch.functional.{function}.")
        )
