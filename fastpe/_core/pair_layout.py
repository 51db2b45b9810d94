"""The two layouts of rotary pairs, and weights permuted from one to the other."""

from __future__ import annotations

from typing import Any

from .._arrays import dispatch
from .._arrays.exported import plain
from . import checks
from .checks import describe, message

LAYOUTS = ("half", "interleaved")


def permuted(weights: Any, from_: str, to: str, head_dim: int, rotary_dim: int | None, rotary_offset: int) -> Any:
    """What ``fastpe.convert_layout`` returns."""
    function = "convert_layout"
    checks.one_of(function, "from_", from_, LAYOUTS)
    checks.one_of(function, "to", to, LAYOUTS)
    head_dim = checks.width(function, "head_dim", head_dim)
    weights = plain(function, "weights", weights)
    if dispatch.library_of(weights) is None:
        raise TypeError(message(function, "weights must be a NumPy or CuPy array or a PyTorch tensor", describe(weights)))
    if weights.ndim < 1 or weights.shape[0] % head_dim:
        rule = f"weights must have a first axis of heads * head_dim, a multiple of {head_dim}"
        raise ValueError(message(function, rule, f"shape {weights.shape}"))
    width = _width(function, head_dim, rotary_dim, rotary_offset)
    result = weights.clone() if dispatch.is_tensor(weights) else weights.copy()
    if from_ == to:
        return result
    heads, rest = weights.shape[0] // head_dim, weights.shape[1:]
    rotating = slice(rotary_offset, rotary_offset + width)
    pairs = (2, width // 2) if from_ == "half" else (width // 2, 2)
    pairs_swapped = weights.reshape(heads, head_dim, *rest)[:, rotating].reshape(heads, *pairs, *rest).swapaxes(1, 2)
    result.reshape(heads, head_dim, *rest)[:, rotating] = pairs_swapped.reshape(heads, width, *rest)
    return result


def _width(function: str, head_dim: int, rotary_dim: int | None, rotary_offset: int) -> int:
    """How many channels of a head rotate."""
    width = head_dim - rotary_offset if rotary_dim is None else checks.width(function, "rotary_dim", rotary_dim)
    if width % 2 or width < 2 or not 0 <= rotary_offset <= head_dim - width:
        rule = "the channels that rotate must lie in the head and be of an even number"
        raise ValueError(message(function, rule, f"rotary_dim {rotary_dim} and rotary_offset {rotary_offset} for {head_dim}"))
    return width
