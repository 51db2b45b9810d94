"""What PyTorch is doing: does it trace, may a gradient be asked for, and what must be refused then, before anything is written.

Last, what functions of autograd have in common: how they keep what the way back needs.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from .._arrays.dtypes import FLOAT8
from .._core.checks import message
from .._core.operations import Rotate

Tensor = torch.Tensor


def is_traced() -> bool:
    """Whether what runs now is recorded into a graph, or watched by a mode that must see every operator."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None  # torch.jit.trace
    )


def is_scripted() -> bool:
    """Whether ``torch.jit.trace`` records: it does not see that an operator writes the tensors of a list."""
    return not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None


def is_watched(operation: Any, arrays: tuple[Any, ...], where: Any, out: Any) -> bool:
    """Whether a gradient, in either direction, may be asked of what this call makes."""
    if torch.autograd.forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None:
        return True  # as `in_forward_mode_or_transform`, written out for each call's sake
    if not torch.is_grad_enabled():
        return False
    for x in arrays:
        if isinstance(x, Tensor) and x.requires_grad:
            return True
    if getattr(operation[0], "holds_arrays", False) and requires_gradient(*operation[0].arrays.values()):
        return True
    if where is not None and where[1] is not None and requires_gradient(where[1]):  # positions of rows, or of queries
        return True
    return out is not None and requires_gradient(*(out if isinstance(out, (tuple, list)) else (out,)))


def requires_gradient(*values: Any) -> bool:
    """Whether backward may be called on a result that depends on these: all that can be asked while compiling."""
    if torch.is_grad_enabled():
        for value in values:
            if isinstance(value, Tensor) and value.requires_grad:
                return True
    return False


def has_tangent(x: Tensor) -> bool:
    """Whether forward-mode differentiation follows this tensor."""
    if not in_forward_mode_or_transform():
        return False
    unpack: Any = torch.autograd.forward_ad.unpack_dual
    return unpack(x).tangent is not None


def in_transform() -> bool:
    """Whether a transform of ``torch.func`` is going on."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def in_forward_mode_or_transform() -> bool:
    return torch.autograd.forward_ad._current_level >= 0 or in_transform()


_AUTOGRAD = [
    getattr(torch._C.DispatchKey, name) for name in ("AutogradFunctionality", "AutogradOther", "AutogradCPU", "AutogradCUDA")
]


def recording() -> Any:
    """Autograd as outside of operators, as a context: where a mode calls an operator, it is switched off in there."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in _AUTOGRAD:
        excluded = excluded.remove(key)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded)


def refuse(operation: Any, arrays: tuple[Any, ...], where: Any) -> None:
    """RuntimeError for what requires a gradient that there is none of: positions, tables of rotations, all that becomes float8."""
    if not torch.is_grad_enabled():
        return
    packed = getattr(operation, "packing", None) is not None
    function, named = "apply_rotary_qkv" if packed else operation.function, []
    if where is not None and len(where) == 5:
        named.append(("positions", where.positions))
    if function == "encode":
        named.append(("positions", arrays[1]))
    elif function == "rerotate":
        named.append(("delta", arrays[1]))
    elif function == "embed":
        named += [("row_scale", arrays[4]), ("zero_point", arrays[5])]
        if operation.dtype in FLOAT8:
            learned = getattr(operation.encoding, "arrays", {})
            named += [("table", arrays[0]), ("the table of token_types", arrays[3]), *learned.items()]
    elif isinstance(operation, Rotate):
        named += list(operation.encoding.arrays.items())
    for name, value in named:
        if isinstance(value, Tensor) and value.requires_grad:
            rule = f"there is no gradient for {name}"
            raise RuntimeError(message(function, rule, "a tensor that requires one", f"Pass {name}.detach()."))


def refuse_out(function: str, out: Any) -> None:
    """As PyTorch's own functions: what is written to ``out`` has no history."""
    if out is not None:
        rule = "functions with out=... arguments don't support automatic differentiation"
        remedy = f"Call fastpe.torch.functional.{function}."
        raise RuntimeError(message(function, rule, "an argument that requires grad", remedy))


def check_in_place(function: str, *targets: Tensor) -> None:
    """The error that PyTorch would raise for tensors that must not be written, before anything is written."""
    if in_forward_mode_or_transform():
        rule = "forward-mode differentiation and torch.func need functions that do not write in place"
        raise RuntimeError(message(function, rule, "a tensor in place", f"Call fastpe.torch.functional.{function}."))
    for x in targets:
        reason = _forbidden(x)
        if reason is not None:
            remedy = f"Call fastpe.torch.functional.{function}, which writes a new tensor, or work under torch.no_grad()."
            raise RuntimeError(f"{function}: {reason} {remedy}")


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


# ---- what functions of autograd have in common --------------------------------------------------------------------------------


def caller(function: Any) -> Any:
    """What calls a function of autograd. PyTorch asks for the signature of ``forward`` each time, which is slow unless it is kept there."""
    function.forward.__signature__ = inspect.signature(function.forward)
    return function.apply


def keep(ctx: Any, *values: Any) -> None:
    """Tensors in autograd's own way, which sees whether they are written until then; anything else as it is."""
    tensors = [value if isinstance(value, Tensor) else None for value in values]
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.plain = [None if isinstance(value, Tensor) else value for value in values]


def kept(ctx: Any) -> list[Any]:
    return [plain if tensor is None else tensor for tensor, plain in zip(ctx.saved_tensors, ctx.plain, strict=True)]


def is_mapped(in_dims: Any) -> bool:
    """Whether any of some arguments, lists among them, has an axis that vmap maps."""
    return any(map(is_mapped, in_dims)) if isinstance(in_dims, (tuple, list)) else in_dims is not None
