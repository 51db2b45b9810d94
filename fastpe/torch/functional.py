"""Differentiable forms of the verbs that write new tensors, as ``torch.nn.functional`` has them.

Gradients are exact: addition passes them on, a rotation turns them back, an embedding adds them up by row. Backward of backward and
``torch.compile`` work, and ``torch.func``'s ``grad``, ``vmap`` over x or ids (everything else unmapped) and, but by tables, ``jvp``.
"""

from __future__ import annotations

from typing import Any

import torch

from .._arrays.dispatch import library_of
from .._core.checks import describe, message
from ..encodings import Learned
from . import direct, gradients, memory, ops, sums, watching
from .bias import with_bias

__all__ = ["add_bias", "add_encoding", "apply_rotary", "apply_rotary_qkv", "embed", "rerotate"]

Tensor = torch.Tensor
is_compiling = torch.compiler.is_compiling


def add_encoding(
    x: Tensor,
    encoding: Any = None,
    *,
    offset: Any = 0,
    positions: Any = None,
    cu_seqlens: Any = None,
    mask: Any = None,
    seq_axis: int = -2,
    input_scale: float = 1.0,
    seq_len: int | None = None,
    validate: bool = False,
) -> Tensor:
    """Return x with a positional encoding added; x is left alone.

    Parameters
    ----------
    x, encoding, offset, positions, cu_seqlens, mask, seq_axis, input_scale, seq_len, validate
        As ``fastpe.add_encoding``.

    Returns
    -------
    A new tensor like x. Its gradient is ``input_scale`` times that of the result (that of rows which the mask protects as it is); a
    ``Learned`` table gets the sum over the rows at each position.

    Raises
    ------
    TypeError, ValueError, IndexError
        As ``fastpe.add_encoding``. RuntimeError: real positions that require a gradient; there is none.

    Examples
    --------
    >>> import torch, fastpe.torch
    >>> x = torch.zeros(1, 2, 4, requires_grad=True)
    >>> fastpe.torch.functional.add_encoding(x, input_scale=3.0).sum().backward()
    >>> x.grad[0, 0]
    tensor([3., 3., 3., 3.])
    """
    if is_compiling():
        return ops.add_encoding(x, encoding, offset, positions, cu_seqlens, mask, seq_axis, input_scale, seq_len, validate)
    _check_tensor("add_encoding", "x", x)
    watching.refuse("add_encoding", positions=positions)
    table = encoding.table if isinstance(encoding, Learned) else None
    rest = gradients.Sum(encoding, seq_axis, input_scale, seq_len, validate, False)
    function = gradients.add_encoding if watching.watched(x, table) else gradients.AddEncoding.forward
    result: Tensor = function(x, table, offset, positions, cu_seqlens, mask, rest)
    return result


def add_bias(
    scores: Tensor,
    bias: Any,
    *,
    q_offset: Any = None,
    q_positions: Any = None,
    k_positions: Any = None,
    causal: bool = False,
    input_scale: float = 1.0,
    validate: bool = False,
) -> Tensor:
    """Return attention scores with a bias by distance added; they are left alone.

    Parameters
    ----------
    scores, bias, q_offset, q_positions, k_positions, causal, input_scale, validate
        As ``fastpe.add_bias``.

    Returns
    -------
    A new tensor like scores. Its gradient is ``input_scale`` times that of the result, 0 where ``causal`` wrote -inf. Tensors of the
    bias (tables, slopes, KERPLE's p and a, FIRE's layers, c and length) get sums over all scores by distance.

    Raises
    ------
    TypeError, ValueError
        As ``fastpe.add_bias``.

    Examples
    --------
    >>> import torch, fastpe.torch
    >>> table = torch.zeros(32, 2, requires_grad=True)
    >>> fastpe.torch.functional.add_bias(torch.zeros(2, 3, 3), fastpe.T5Bias(table), causal=True)[0, 0, 0].backward()
    >>> table.grad[:2, 0]
    tensor([1., 0.])
    """
    _check_tensor("add_bias", "scores", scores)
    return with_bias(scores, bias, q_offset, q_positions, k_positions, causal, input_scale, validate)


def apply_rotary(
    q: Any,
    k: Any = None,
    encoding: Any = None,
    *,
    offset: Any = 0,
    positions: Any = None,
    cu_seqlens: Any = None,
    mask: Any = None,
    seq_axis: int = -2,
    inverse: bool = False,
    seq_len: int | None = None,
    validate: bool = False,
) -> Any:
    """Return q and k rotated by their positions; they are left alone.

    Parameters
    ----------
    q, k, encoding, offset, positions, cu_seqlens, mask, seq_axis, inverse, seq_len, validate
        As ``fastpe.apply_rotary``.

    Returns
    -------
    New tensors: q, or (q, k), or k alone where q is None. Their gradient is rotated the other way.

    Raises
    ------
    TypeError, ValueError, IndexError
        As ``fastpe.apply_rotary``. RuntimeError: real positions, or a table, that require a gradient; there is none.
    """
    if is_compiling():
        return ops.apply_rotary(q, k, encoding, offset, positions, cu_seqlens, mask, seq_axis, inverse, seq_len, validate)
    function = "apply_rotary"
    arrays = {name: x for name, x in (("q", q), ("k", k)) if x is not None}
    if not arrays:
        raise TypeError(message(function, "q or k must be a tensor", "None"))
    for name, x in arrays.items():
        _check_tensor(function, name, x)
    watching.refuse(function, positions=positions)
    watching.refuse_tables(function, encoding)
    if not watching.watched(q, k):
        outs = [memory.new_like(x) for x in arrays.values()]
        out = outs[0] if len(outs) == 1 else tuple(outs)
        direct.apply_rotary(q, k, encoding, offset, positions, cu_seqlens, mask, seq_axis, inverse, seq_len, out, validate)
        return out
    found = []
    for name, x in arrays.items():
        rest = gradients.Turn(encoding, name == "k", seq_axis, inverse, seq_len, validate, False)
        found.append(gradients.apply_rotary(x, offset, positions, cu_seqlens, mask, rest))
    return found[0] if len(found) == 1 else tuple(found)


def apply_rotary_qkv(
    qkv: Tensor,
    heads: int | tuple[int, int],
    encoding: Any = None,
    *,
    offset: Any = 0,
    positions: Any = None,
    cu_seqlens: Any = None,
    mask: Any = None,
    seq_axis: int = -3,
    inverse: bool = False,
    seq_len: int | None = None,
    inplace: bool = False,
    validate: bool = False,
) -> Tensor:
    """Rotate the queries and keys of one packed tensor; its values stay.

    Parameters
    ----------
    qkv : (..., T, H, D) tensor
        The heads of q, then those of k, then those of v, as one linear layer writes them.
    heads : int or (int, int)
        How many heads q has, and k; one number for both.
    encoding, offset, positions, cu_seqlens, mask, inverse, seq_len, validate
        As ``fastpe.apply_rotary``.
    seq_axis
        The axis of T; the heads are the axis before the last, or where T is that, the one before it.
    inplace
        Write into qkv itself. Its slices could not be rotated one by one where autograd watches; the packed tensor can.

    Returns
    -------
    A new tensor like qkv, or with ``inplace`` qkv itself.

    Raises
    ------
    TypeError, ValueError, IndexError
        As ``fastpe.apply_rotary``; and where qkv has fewer heads than are to rotate. RuntimeError: ``inplace`` where PyTorch forbids it.
    """
    function = "apply_rotary_qkv"
    _check_tensor(function, "qkv", qkv)
    packing = _packing(function, qkv, heads, seq_axis)
    places = (offset, positions, cu_seqlens, mask)
    if is_compiling():
        return ops.apply_rotary_packed(qkv, packing, encoding, *places, seq_axis, inverse, seq_len, inplace, validate)
    watching.refuse(function, positions=positions)
    watching.refuse_tables(function, encoding)
    watched = watching.watched(qkv)
    rest = gradients.Turn(encoding, False, seq_axis, inverse, seq_len, validate, inplace, packing)
    if inplace:
        if watched:
            watching.check_in_place(function, qkv)
        gradients.rotate(qkv, None, rest, *places, counts_up=not watched)
    if not watched:
        return qkv if inplace else gradients.ApplyRotary.forward(qkv, *places, rest)
    result: Tensor = gradients.apply_rotary(qkv, *places, rest)
    return result


def _packing(function: str, qkv: Tensor, heads: Any, seq_axis: int) -> tuple[int, int, int]:
    """How many heads q and k have in a packed tensor, and the axis of the heads."""
    count = qkv.dim()
    if count < 3:
        raise ValueError(message(function, "qkv must have at least 3 axes, (..., T, H, D)", f"shape {tuple(qkv.shape)}"))
    q_heads, k_heads = (heads, heads) if isinstance(heads, int) else heads
    axis = count - 3 if seq_axis in (-2, count - 2) else count - 2
    if q_heads < 1 or k_heads < 0 or q_heads + k_heads > qkv.shape[axis]:
        got = f"{q_heads} + {k_heads} of {qkv.shape[axis]}"
        raise ValueError(message(function, "heads must be those of q and of k, in the axis of heads", got))
    return q_heads, k_heads, axis


def rerotate(
    k: Tensor,
    delta: Any = 0,
    encoding: Any = None,
    *,
    source: Any = None,
    target: Any = None,
    offset: Any = 0,
    positions: Any = None,
    cu_seqlens: Any = None,
    mask: Any = None,
    seq_axis: int = -2,
    seq_len: Any = None,
    validate: bool = False,
) -> Tensor:
    """Return rotated keys moved to other positions or another scaling rule; k is left alone.

    Parameters, errors as ``fastpe.rerotate``; delta and real positions have no gradient.

    Returns
    -------
    A new tensor like k. Its gradient is moved back.
    """
    function, encodings, places = "rerotate", (encoding, source, target), (offset, positions, cu_seqlens, mask)
    if is_compiling():
        return ops.rerotate(k, delta, encodings, *places, seq_axis, seq_len, validate)
    _check_tensor(function, "k", k)
    watching.refuse(function, delta=delta, positions=positions)
    rest = gradients.Move(encodings, seq_axis, seq_len, validate, False)
    run = gradients.rerotate if watching.watched(k) else gradients.Rerotate.forward
    result: Tensor = run(k, delta, *places, rest)
    return result


def embed(
    ids: Any,
    table: Tensor,
    encoding: Any = None,
    *,
    scale: float = 1.0,
    token_types: Any = None,
    row_scale: Any = None,
    padding_idx: int | None = None,
    offset: Any = 0,
    positions: Any = None,
    cu_seqlens: Any = None,
    mask: Any = None,
    dtype: Any = None,
    seq_len: int | None = None,
    validate: bool = False,
    sparse: bool = False,
    deterministic: bool = False,
    frozen_idx: int | None = None,
) -> Tensor:
    """Return token embeddings, scaled, with their positions.

    Parameters
    ----------
    ids, table, encoding, scale, token_types, row_scale, padding_idx, offset, positions, cu_seqlens, mask, dtype, seq_len, validate
        As ``fastpe.embed``. The table, that of the token types and a ``Learned`` one get gradients: sums over the rows that were read,
        of 16-bit tables in float32.
    sparse
        The table's gradient is a sparse COO tensor, as ``torch.nn.Embedding(sparse=True)`` makes it.
    deterministic
        Add the table's gradient up in a fixed order on CUDA too, where the quicker way depends on the threads' order. Always so under
        ``torch.use_deterministic_algorithms(True)``.
    frozen_idx
        The id whose row gets no gradient: the ``padding_idx`` of ``torch.nn.Embedding``.

    Returns
    -------
    A new tensor of shape ``ids.shape + (D,)``.

    Raises
    ------
    TypeError, ValueError, IndexError
        As ``fastpe.embed``. RuntimeError: a row_scale that requires a gradient; there is none.
    """
    function, places = "embed", (offset, positions, cu_seqlens, mask)
    if token_types is None:
        type_ids = types = None
    elif isinstance(token_types, (tuple, list)) and len(token_types) == 2:
        type_ids, types = token_types
    else:
        raise TypeError(message(function, "token_types must be a pair (ids, table)", describe(token_types)))
    if dtype is not None or not isinstance(table, Tensor) or not table.dtype.is_floating_point:
        _check_tensor(function, "table", table)
        dtype = torch.float32 if dtype is None else memory.dtype_of(function, dtype)
    kind = table.dtype if dtype is None else dtype
    learned = encoding.table if isinstance(encoding, Learned) else None
    if not is_compiling():
        if row_scale is not None:
            scales = row_scale if isinstance(row_scale, tuple) else (row_scale,)
            watching.refuse(function, **dict(zip(("row_scale", "zero_point"), scales, strict=False)))
        if not isinstance(ids, Tensor) and library_of(ids) is None:
            ids = torch.as_tensor(ids, device=table.device)
        if type_ids is not None and not isinstance(type_ids, Tensor) and library_of(type_ids) is None:
            type_ids = torch.as_tensor(type_ids, device=table.device)
        if not watching.watched(table, types, learned, positions):
            lookup = (scale, None if types is None else (type_ids, types), row_scale, padding_idx)
            return direct.embed(ids, table, encoding, *lookup, *places, seq_len, None, validate, kind)
        watching.refuse(function, positions=positions)
    rest = sums.Lookup(encoding, scale, padding_idx, kind, seq_len, validate, sparse, deterministic, frozen_idx)
    run = ops.embed if is_compiling() else gradients.embed
    result: Tensor = run(table, types, learned, ids, type_ids, row_scale, *places, rest)
    return result


def _check_tensor(function: str, name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        got = f"{type(x).__module__}.{type(x).__qualname__}"
        raise TypeError(message(f"fastpe.torch.functional.{function}", f"{name} must be a tensor", got))
