"""Differentiable verbs that return new tensors, as ``torch.nn.functional`` has functions.

Gradients are exact: an addition passes them on, a rotation rotates them back, an embedding adds them up by row. Backward of backward and
``torch.compile`` work. Of ``torch.func``, ``grad`` works, ``vmap`` over x or ids (all else unmapped), and ``jvp`` except by tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast, overload

import torch

from .._arrays.dtypes import FLOAT8
from .._core import checks
from .._core.checks import message
from .._core.operations import Add, AddBias, Between, Embed, Rerotate, Rotate
from .._core.operations.embed import pair, quantisation
from .._core.where import where_of
from ..encodings import additive, rotational, source_and_target
from ._factors import check_tensor, is_trained, times
from ._gather_sum import on_rows
from ._memory import wrong_type
from ._run import embedded, new, run

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._core.annotations import Integers, Reals
    from .._core.operations.add_bias import BetweenArguments
    from .._core.where import RowArguments, WhereArguments
    from ..encodings import Additive, Rotational
    from ..encodings.bias import Bias

    class _Rotated(WhereArguments, total=False):
        head_dim: int | None
        inverse: bool
        seq_len: int | None
        validate: bool


__all__ = ["add_bias", "add_encoding", "apply_rotary", "apply_rotary_qkv", "embed", "rerotate"]

Tensor = torch.Tensor


def add_encoding(
    x: Tensor,
    encoding: Additive | str | None = None,
    *,
    input_scale: float | Tensor = 1.0,
    amplitude: Tensor | None = None,
    seq_len: int | None = None,
    validate: bool = False,
    **where: Unpack[WhereArguments],
) -> Tensor:
    """Return x with a positional encoding added; x is left alone.

    Parameters and errors that are not named here are those of ``fastpe.add_encoding``; ``where`` stands for its ``offset``,
    ``positions``, ``cu_seqlens``, ``mask`` and ``seq_axis``. RuntimeError: real positions that require a gradient; there is none.

    Parameters
    ----------
    input_scale, amplitude
        Factors on x and on the encoding. Tensors of one element that require a gradient get it: then PyTorch multiplies by them, and each
        product is rounded to x's dtype. An amplitude that is not trained is a field of ``Sinusoidal``. Li et al., "Neural Speech Synthesis
        with Transformer Network", 2019 (arXiv 1809.08895), equation 3.

    Returns
    -------
    A new tensor like x. Its gradient is ``input_scale`` times that of the result (that of rows which the mask protects as it is); a
    ``Learned`` table gets the sum over the rows at each position.

    Examples
    --------
    >>> import torch, fastpe.torch
    >>> x = torch.zeros(1, 2, 4, requires_grad=True)
    >>> fastpe.torch.functional.add_encoding(x, input_scale=3.0).sum().backward()
    >>> x.grad[0, 0]
    tensor([3., 3., 3., 3.])
    """
    _check_tensors("add_encoding", x=x)
    function, rows = "add_encoding", where_of("add_encoding", where)
    scale: Any = input_scale
    if is_trained(function, "input_scale", scale) or amplitude is not None:
        x, scale = times(x, scale, rows.mask, rows.seq_axis), 1.0
    operation = Add(additive(function, encoding), scale, seq_len)
    if amplitude is None:
        result: Tensor = new(operation, (x,), rows, validate)
        return result
    check_tensor(function, "amplitude", amplitude)
    return x + times(new(operation, (torch.zeros_like(x),), rows, validate), amplitude)


def add_bias(
    scores: Tensor,
    bias: Bias,
    *,
    causal: bool = False,
    input_scale: float | Tensor = 1.0,
    validate: bool = False,
    **between: Unpack[BetweenArguments],
) -> Tensor:
    """Return attention scores with a bias by distance added; they are left alone.

    Parameters and errors are those of ``fastpe.add_bias``; ``between`` stands for its ``q_offset``, ``q_positions`` and ``k_positions``.
    An ``input_scale`` that requires a gradient gets it, as in ``add_encoding``; the scores are then read where ``causal`` writes -inf, too.

    Returns
    -------
    A new tensor like scores. Its gradient is ``input_scale`` times that of the result, 0 where ``causal`` wrote -inf. Tensors of the
    bias (tables, slopes, KERPLE's p and a, FIRE's layers, c and length) get sums over all scores by distance.

    Examples
    --------
    >>> import torch, fastpe.torch
    >>> table = torch.zeros(32, 2, requires_grad=True)
    >>> fastpe.torch.functional.add_bias(torch.zeros(2, 3, 3), fastpe.T5Bias(table), causal=True)[0, 0, 0].backward()
    >>> table.grad[:2, 0]
    tensor([1., 0.])
    """
    _check_tensors("add_bias", scores=scores)
    scale: Any = input_scale
    if is_trained("add_bias", "input_scale", scale):
        scores, scale = times(scores, scale), 1.0
    result: Tensor = new(AddBias(bias, causal, scale), (scores,), where_of("add_bias", between, Between), validate)
    return result


@overload
def apply_rotary(q: None, k: Tensor, encoding: Rotational | None = None, **options: Unpack[_Rotated]) -> Tensor: ...
@overload
def apply_rotary(q: Tensor, k: None = None, encoding: Rotational | None = None, **options: Unpack[_Rotated]) -> Tensor: ...
@overload
def apply_rotary(
    q: Tensor, k: Tensor, encoding: Rotational | None = None, **options: Unpack[_Rotated]
) -> tuple[Tensor, Tensor]: ...
def apply_rotary(
    q: Any,
    k: Any = None,
    encoding: Rotational | None = None,
    *,
    head_dim: int | None = None,
    inverse: bool = False,
    seq_len: int | None = None,
    validate: bool = False,
    **where: Unpack[WhereArguments],
) -> Any:
    """Return q and k rotated by their positions; they are left alone.

    Parameters and errors are those of ``fastpe.apply_rotary``; ``where`` stands for its ``offset``, ``positions``, ``cu_seqlens``,
    ``mask`` and ``seq_axis``. RuntimeError: real positions, or a table, that require a gradient; there is none.

    Returns
    -------
    New tensors: q, or (q, k), or k alone where q is None. Their gradient is rotated the other way.
    """
    if q is None and k is None:
        raise TypeError(message("apply_rotary", "q or k must be a tensor", "None"))
    _check_tensors("apply_rotary", q=q, k=k)
    operation = Rotate(rotational("apply_rotary", encoding), inverse, seq_len, head_dim)
    return new(operation, (q, k), where_of("apply_rotary", where), validate)


def apply_rotary_qkv(
    qkv: Tensor,
    heads: int | tuple[int, int],
    encoding: Rotational | None = None,
    *,
    head_dim: int | None = None,
    inverse: bool = False,
    seq_len: int | None = None,
    inplace: bool = False,
    validate: bool = False,
    **where: Unpack[WhereArguments],
) -> Tensor:
    """Rotate the queries and keys of one packed tensor; its values stay.

    Parameters that are not named here, and errors, are those of ``fastpe.apply_rotary``.

    Parameters
    ----------
    qkv : (..., T, H, D) or, with ``head_dim``, (..., T, H * D) tensor
        The heads of q, then those of k, then those of v, as one linear layer writes them.
    heads : int or (int, int)
        How many heads q has, and k; one number for both.
    head_dim
        Width D of a head where the last axis holds all heads, one behind the other.
    inplace
        Write into qkv itself. Where autograd watches, its slices could not be rotated one by one; the packed tensor can.
    **where
        ``offset``, ``positions``, ``cu_seqlens``, ``mask``, and ``seq_axis``, the axis of T, -3 if it is not given, with ``head_dim`` -2.
        The heads are the axis before the last or, where that is T, the one before it.

    Returns
    -------
    A new tensor like qkv, or with ``inplace`` qkv itself.

    Raises
    ------
    ValueError
        qkv has fewer heads than are to rotate, or may be (B, T, H * D). RuntimeError: ``inplace`` where PyTorch forbids it.
    """
    function = "apply_rotary_qkv"
    _check_tensors(function, qkv=qkv)
    rows = where_of(function, {"seq_axis": -3 if head_dim is None else -2, **where})
    packing = _packing(function, qkv, heads, head_dim, rows.seq_axis)
    operation = Rotate(rotational("apply_rotary", encoding), inverse, seq_len, head_dim, packing=packing)
    result: Tensor = (
        run(operation, (qkv, None), rows, None, validate) if inplace else new(operation, (qkv, None), rows, validate)
    )
    return result


def _packing(function: str, qkv: Tensor, heads: Any, head_dim: Any, seq_axis: int) -> tuple[int, int, int]:
    """How many heads (with ``head_dim``: channels) q and k have in a packed tensor, and their axis."""
    count, width = qkv.dim(), 1 if head_dim is None else checks.width(function, "head_dim", head_dim)
    got = f"shape {tuple(qkv.shape)}"
    if count < (3 if head_dim is None else 2):
        rule, remedy = "qkv must have at least 3 axes, (..., T, H, D)", "With head_dim= it is (..., T, H * D)."
        raise ValueError(message(function, rule, got, remedy))
    q_heads, k_heads = (heads, heads) if isinstance(heads, int) else heads
    axis = count - 1 if head_dim is not None else count - 3 if seq_axis in (-2, count - 2) else count - 2
    found = qkv.shape[axis] // width
    if qkv.shape[axis] % width:
        raise ValueError(message(function, f"the last axis of qkv must hold whole heads of head_dim = {width}", got))
    if q_heads < 1 or k_heads < 0 or q_heads + k_heads > found:
        rule = "heads must be those of q and of k, in the axis of heads"
        raise ValueError(message(function, rule, f"{q_heads} + {k_heads} of {found}"))
    if count == 3 and head_dim is None and found not in (q_heads + k_heads, q_heads + 2 * k_heads):
        rule = f"qkv of 3 axes is (T, H, D), with {q_heads} + {k_heads} heads and as many of v as of k, or none"
        raise ValueError(message(function, rule, got, "If it is (B, T, H * D), give head_dim=."))
    return q_heads * width, k_heads * width, axis


def rerotate(
    k: Tensor,
    delta: Reals = 0,
    encoding: Rotational | None = None,
    *,
    source: Rotational | None = None,
    target: Rotational | None = None,
    head_dim: int | None = None,
    seq_len: int | tuple[int, int] | None = None,
    validate: bool = False,
    **where: Unpack[WhereArguments],
) -> Tensor:
    """Return rotated keys moved to other positions or another scaling rule; k is left alone.

    Parameters and errors are those of ``fastpe.rerotate``. delta and real positions have no gradient.

    Returns
    -------
    A new tensor like k. Its gradient is moved back.
    """
    _check_tensors("rerotate", k=k)
    operation = Rerotate(*source_and_target(encoding, source, target), seq_len, head_dim)
    result: Tensor = new(operation, (k, delta), where_of("rerotate", where), validate)
    return result


def embed(
    ids: Integers,
    table: Tensor,
    encoding: Additive | str | None = None,
    *,
    scale: float | Tensor = 1.0,
    token_types: tuple[Integers, Tensor] | None = None,
    row_scale: Reals | None = None,
    padding_idx: int | None = None,
    dtype: torch.dtype | str | None = None,
    seq_len: int | None = None,
    out_scale: float | None = None,
    validate: bool = False,
    sparse: bool = False,
    deterministic: bool = False,
    frozen_idx: int | None = None,
    **where: Unpack[RowArguments],
) -> Tensor:
    """Return token embeddings, scaled, with their positions.

    Parameters that are not named here, and errors, are those of ``fastpe.embed``; ``where`` stands for its ``offset``, ``positions``,
    ``cu_seqlens`` and ``mask``. RuntimeError: a row_scale that requires a gradient, or anything where ``dtype`` is a float8; there is none.

    Parameters
    ----------
    scale
        Factor on the embedding. A tensor of one element that requires a gradient gets it, as the ``input_scale`` of ``add_encoding``.
    sparse
        The table's gradient is a sparse COO tensor, as ``torch.nn.Embedding(sparse=True)`` makes it.
    deterministic
        Add the table's gradient up in a fixed order on CUDA too, where the quicker way depends on the threads' order. Always so under
        ``torch.use_deterministic_algorithms(True)``.
    frozen_idx
        The id whose row gets no gradient: the ``padding_idx`` of ``torch.nn.Embedding``.

    Returns
    -------
    A new tensor of shape ``ids.shape + (D,)``. The table, that of the token types and a ``Learned`` one get gradients: sums over the rows
    that were read, of 16-bit tables in float32.
    """
    _check_tensors("embed", table=table)
    if is_trained("embed", "scale", scale):
        if out_scale is not None or str(dtype).removeprefix("torch.") in FLOAT8:
            rule, remedy = "there is no gradient for scale where the result is float8", "Pass scale.item()."
            raise RuntimeError(message("embed", rule, "a tensor that requires one", remedy))
        where_of("embed", where, seq_axis=-2)
        options: Any = {"row_scale": row_scale, "dtype": dtype, "validate": validate, "sparse": sparse}
        options.update(deterministic=deterministic, frozen_idx=frozen_idx, **({} if encoding is not None else where))
        rows, ids = times(embed(ids, table, **options), scale), torch.as_tensor(ids, device=table.device)
        return with_positions(rows, ids, encoding, token_types, padding_idx, seq_len, validate, where)
    chosen, factor = None if encoding is None else additive("embed", encoding, "embeds"), cast(float, scale)
    operation = Embed(chosen, factor, padding_idx, dtype, seq_len, out_scale, sparse, deterministic, frozen_idx)
    arrays = (table, ids, *pair(token_types), *quantisation(row_scale))
    result: Tensor = new(*embedded(operation, arrays), where_of("embed", where, seq_axis=-2), validate)
    return result


def with_positions(
    rows: Tensor, ids: Tensor, encoding: Any, token_types: Any, padding_idx: Any, seq_len: Any, validate: bool, where: Any
) -> Tensor:
    """Embedded rows with what ``embed`` adds to them; masked ones and those of padding become zero."""
    if token_types is not None:
        rows = rows + embed(*pair(token_types), dtype=rows.dtype)
    mask = where.get("mask")
    if padding_idx is not None:
        tokens = ids != padding_idx
        mask = tokens if mask is None else tokens & torch.as_tensor(mask, device=ids.device)
    if mask is not None and ids.dim() > 2:
        rule = "ids must have shape (T,) or (B, T) where the scale is trained and rows are masked"
        raise ValueError(message("embed", rule, f"shape {tuple(ids.shape)}"))
    if encoding is not None:
        rows = add_encoding(rows, encoding, seq_len=seq_len, validate=validate, **{**where, "mask": mask})
    return rows if mask is None else rows.masked_fill(~on_rows(mask, rows, -2)[..., None], 0)


def _check_tensors(function: str, **given: Any) -> None:
    for name, x in given.items():
        if x is not None and not isinstance(x, Tensor):
            raise wrong_type(f"fastpe.torch.functional.{function}", f"{name} must be a tensor", x)
