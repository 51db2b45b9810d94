"""The public verbs for tensors: while compiling, an operator; where a gradient may be asked for, with its history; else the memory at once.

``fastpe.add_encoding`` and the others come here when they are given a tensor.
"""

from __future__ import annotations

from typing import Any

import torch

from .._arrays import dispatch
from .._arrays.torch import as_array
from .._core import checks, rows
from .._core.checks import describe, message
from ..encodings import Learned
from . import direct, functional, gradients, memory, ops, repeated, watching

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
    out: Any = None,
    validate: bool = False,
) -> Tensor:
    """``fastpe.add_encoding`` of a tensor."""
    function = "add_encoding"
    if is_compiling():
        rest = (seq_axis, input_scale, seq_len, out, validate)
        return ops.add_encoding_in_place(x, encoding, offset, positions, cu_seqlens, mask, *rest)
    table = encoding.table if isinstance(encoding, Learned) else None
    watched = watching.watched(x, table, positions, out)
    plain = positions is cu_seqlens is mask is seq_len is out is None and validate is False  # one chain
    if plain and not watched and repeated.add_encoding(x, encoding, offset, seq_axis, input_scale):
        return x
    if watched:
        watching.refuse(function, positions=positions)
        watching.check_no_out(function, None if out is x else out)
        watching.check_in_place(function, x)
    places = (offset, positions, cu_seqlens, mask)
    direct.add_encoding(x, encoding, *places, seq_axis, input_scale, seq_len, out, validate, counts_up=not watched)
    if watched:
        addition = gradients.Sum(encoding, seq_axis, input_scale, seq_len, validate, True)
        gradients.add_encoding(x, table, *places, addition)
    return x if out is None else out


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
    out: Any = None,
    validate: bool = False,
) -> Any:
    """``fastpe.apply_rotary`` of tensors."""
    function = "apply_rotary"
    if is_compiling():
        rest = (seq_axis, inverse, seq_len, out, validate)
        return ops.apply_rotary_in_place(q, k, encoding, offset, positions, cu_seqlens, mask, *rest)
    watched = watching.watched(
        q, k, positions, *watching.tables_of(encoding), *(out if isinstance(out, (tuple, list)) else (out,))
    )
    plain = positions is cu_seqlens is mask is seq_len is out is None and validate is False
    if plain and not watched and repeated.apply_rotary(q, k, encoding, offset, seq_axis, inverse):
        return q if k is None else k if q is None else (q, k)
    moving: list[Tensor] = []
    if watched:
        watching.refuse(function, positions=positions)
        watching.refuse_tables(function, encoding)
        watching.check_no_out(function, out)
        moving = [x for x in (q, k) if isinstance(x, Tensor) and x.requires_grad]
        watching.check_in_place(function, *moving)
    places = (offset, positions, cu_seqlens, mask)
    direct.apply_rotary(q, k, encoding, *places, seq_axis, inverse, seq_len, out, validate, counts_up=not moving)
    if moving:
        direct.count_up(*(x for x in (q, k) if x is not None and not x.requires_grad))
    for x in moving:
        turn = gradients.Turn(encoding, x is k, seq_axis, inverse, seq_len, validate, True)
        gradients.apply_rotary(x, *places, turn)
    if out is not None:
        return out
    return q if k is None else k if q is None else (q, k)


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
    out: Any = None,
    validate: bool = False,
) -> Tensor:
    """``fastpe.rerotate`` of a tensor."""
    function, encodings = "rerotate", (encoding, source, target)
    if is_compiling():
        rest = (seq_axis, seq_len, out, validate)
        return ops.rerotate_in_place(k, delta, encodings, offset, positions, cu_seqlens, mask, *rest)
    watched = watching.watched(k, delta, positions, out)
    if watched:
        watching.refuse(function, delta=delta, positions=positions)
        watching.check_no_out(function, out)
        watching.check_in_place(function, k)
    places = (offset, positions, cu_seqlens, mask)
    direct.rerotate(k, delta, *encodings, *places, seq_axis, seq_len, out, validate, counts_up=not watched)
    if watched:
        move = gradients.Move(encodings, seq_axis, seq_len, validate, True)
        gradients.rerotate(k, delta, *places, move)
    return k if out is None else out


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
    out: Any = None,
    validate: bool = False,
) -> Tensor:
    """``fastpe.embed`` of tensors; differentiable, as the result is a new tensor, but with ``out``."""
    plain = (
        token_types is row_scale is padding_idx is positions is cu_seqlens is mask is dtype is out is None  # one chain
        and isinstance(ids, Tensor)
        and table.is_floating_point()
        and not isinstance(encoding, Learned)
    )
    if plain and not is_compiling() and not watching.watched(table):
        known = None if seq_len is not None or validate is not False else repeated.embed(ids, table, encoding, scale, offset)
        if known is not None:
            return known
        return direct.embed(
            ids, table, encoding, scale, None, None, None, offset, None, None, None, seq_len, None, validate, table.dtype
        )
    if out is None or is_compiling():
        found = functional.embed(
            ids,
            table,
            encoding,
            scale=scale,
            token_types=token_types,
            row_scale=row_scale,
            padding_idx=padding_idx,
            offset=offset,
            positions=positions,
            cu_seqlens=cu_seqlens,
            mask=mask,
            dtype=dtype if out is None else out.dtype,
            seq_len=seq_len,
            validate=validate,
        )
        written: Tensor = found if out is None else out.copy_(found)
        return written
    out = direct.as_result("embed", out)
    types = token_types[1] if isinstance(token_types, (tuple, list)) and len(token_types) == 2 else None
    if watching.watched(table, types, out, *watching.tables_of(encoding)):
        watching.check_no_out("embed", out)
    if dtype is not None and memory.dtype_of("embed", dtype) is not out.dtype:
        raise TypeError(message("embed", "out must have the dtype that is asked for", describe(out)))
    places = (offset, positions, cu_seqlens, mask)
    return direct.embed(ids, table, encoding, scale, token_types, row_scale, padding_idx, *places, seq_len, out, validate)


def encode(
    positions: Any,
    dim: int,
    encoding: Any = None,
    *,
    dtype: Any = None,
    like: Any = None,
    seq_len: int | None = None,
    out: Any = None,
    validate: bool = False,
) -> Tensor:
    """``fastpe.encode`` into a tensor."""
    function = "encode"
    example = next(array for array in (like, out, positions) if isinstance(array, Tensor))
    for name, array in (("like", like), ("out", out)):
        if array is not None and not isinstance(array, Tensor):
            raise TypeError(message(function, f"{name} must be a tensor like the others", describe(array)))
    if positions is not None and not isinstance(positions, Tensor):  # None: all rows of a grid
        positions = _numbers(function, positions)
    if positions is not None and positions.device != example.device and positions.device.type == "cpu":
        if not is_compiling():
            as_array(function, "out" if like is None else "like", example)  # before anything is copied there
        positions = positions.to(example.device)
    chosen = None if dtype is None else memory.dtype_of(function, dtype)
    width = checks.width(function, "dim", dim) if not is_compiling() else dim
    if is_compiling():
        where = example.new_empty(0) if positions is None else positions
        found = ops.encode(where, width, encoding, chosen or (torch.float32 if out is None else out.dtype), seq_len, validate)
        written: Tensor = found if out is None else out.copy_(found)
        return written
    if watching.watched(positions, out):
        watching.refuse(function, positions=positions)
        watching.check_no_out(function, out)
    if out is None:
        shape = direct.encoded_shape(encoding, None if positions is None else positions.shape)
        out = memory.new((*shape, width), chosen or torch.float32, example.device)
    elif chosen is not None and chosen is not out.dtype:
        raise TypeError(message(function, f"out must have dtype {chosen}", describe(out)))
    result: Tensor = out
    direct.encode(positions, width, encoding, seq_len, result, validate)
    return result


def _numbers(function: str, positions: Any) -> Tensor:
    """Numbers or an array of NumPy as a tensor; real ones in float64, as NumPy has them."""
    if is_compiling():
        found = torch.as_tensor(positions)
        return torch.as_tensor(positions, dtype=torch.float64) if found.is_floating_point() else found
    if dispatch.library_of(positions) is None:
        positions = rows.host_numbers(function, "positions", positions)
    return torch.as_tensor(positions)


def resample(table: Tensor, new_size: Any, **options: Any) -> Tensor:
    """``fastpe.resample`` of a tensor."""
    watching.refuse("resample", table=table)
    made: Tensor = direct.resample(table, new_size, options)
    return made
