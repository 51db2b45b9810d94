"""The verbs as operators of PyTorch, ``torch.ops.fastpe.*``: what ``torch.compile`` and ``torch.export`` put into a graph.

Only while compiling: an operator costs microseconds that a direct call does not. Those without an underscore make new tensors and have
gradients; those with one write, and are used where no gradient can be asked for. An encoding is a string in a graph, so that a graph
means the same in another process; tensors in it are arguments of their own.
"""

from __future__ import annotations

import functools
import json
import types
from typing import Any

import torch

from .. import scaling
from .._core.arguments import named_encoding
from .._core.checks import message
from ..encodings import Fourier, Grid, Learned, Rotary, RotaryTable, Sinusoidal
from . import direct, gradients, memory, repeated, sums, watching

Tensor = torch.Tensor

_registry: Any = torch.library  # in part without types
library = _registry.Library("fastpe", "DEF")
_PLACES = "SymInt offset, Tensor? offsets, Tensor? positions, Tensor? cu_seqlens, Tensor? mask"
_ADD = f"Tensor? table, str encoding, {_PLACES}, int seq_axis, float input_scale, SymInt? seq_len, bool validate"
_TURN = (
    f"Tensor? cos, Tensor? sin, str encoding, {_PLACES}, bool is_key, int seq_axis, bool inverse, bool transposed, SymInt? seq_len, "
    "int[]? packing, bool validate"
)
_MOVE = (
    f"SymInt steps, float? delta, Tensor? deltas, str[] encodings, {_PLACES}, int seq_axis, SymInt[]? seq_len, bool transposed, "
    "bool validate"
)
_LOOKUP = (
    f"Tensor? types, Tensor? learned, Tensor ids, Tensor? type_ids, Tensor? row_scale, Tensor? zero_point, {_PLACES}, str encoding, "
    "float scale, int? padding_idx, ScalarType dtype, SymInt? seq_len, bool sparse, bool deterministic, int? frozen_idx, bool validate"
)
# A graph must not be captured with a call whose table of positions would not outlive it.
_TAGS = tuple(getattr(torch.Tag, name) for name in ("pt2_compliant_tag", "cudagraph_unsafe") if hasattr(torch.Tag, name))


def define(schema: str, run: Any, fake: Any) -> Any:
    name = schema.partition("(")[0]
    library.define(schema, tags=_TAGS)
    library.impl(name, run, "CompositeExplicitAutograd")
    _registry.register_fake(f"fastpe::{name}", fake, lib=library)
    return getattr(torch.ops.fastpe, name).default


def leave_out(*modules: Any) -> None:
    """Keep the compiler out of what runs where it gave up on a caller's code: it would take NumPy's arrays for tensors."""
    try:
        from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
    except ImportError:  # an older PyTorch
        return
    skip = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)  # this frame and those below it
    for module in modules:
        for function in vars(module).values():
            if isinstance(function, types.FunctionType) and function.__module__ == module.__name__:
                set_code_exec_strategy(function.__code__, skip)


leave_out(direct, repeated)


# ---- encodings as strings ----------------------------------------------------------------------------------------------------


_VALUES = (Sinusoidal, Grid, Fourier, Rotary)
_KINDS = {kind.__name__: kind for kind in (*_VALUES, *scaling.Scaling.__subclasses__())}


def _text(encoding: Any) -> str:
    """An encoding as text; empty for None.

    What is read here, the compiler puts into the conditions of a graph: it serves encodings of the same text, whichever object they are.
    """
    if encoding is None:
        return ""
    if isinstance(encoding, str):
        encoding = named_encoding("torch.compile", encoding, learned=False)
    if type(encoding) not in _VALUES:
        kind = type(encoding)  # and not `describe`, which the compiler cannot follow
        got = f"a {kind.__module__}.{kind.__qualname__}"
        raise TypeError(message("torch.compile", "an encoding must be one of fastpe's", got))
    for kind in [part.partition('"')[0] for part in encoding.text.split('"type": "')[1:]]:
        if kind not in _KINDS:
            rule = "an encoding must be made of numbers and rules of fastpe.scaling"
            raise TypeError(message("torch.compile", rule, f"a {kind}"))
    return str(encoding.text)


@functools.lru_cache(maxsize=256)
def _read(text: str) -> Any:
    return None if text == "" else _made(json.loads(text))


def _made(value: Any) -> Any:
    if isinstance(value, dict):
        kind = _KINDS[value.pop("type")]
        return kind(**{name: _made(one) for name, one in value.items()})
    return tuple(_made(one) for one in value) if isinstance(value, list) else value


_CLIP, _ERROR = "clip", "error"  # of a learned table, in place of an encoding


def _added(encoding: Any) -> tuple[Any, str]:
    """The table and the string of an encoding that is added."""
    if isinstance(encoding, Learned):
        return encoding.table, _CLIP if encoding.out_of_range == "clip" else _ERROR
    return None, _text(encoding)


def _summand(table: Any, text: str) -> Any:
    return _read(text) if table is None else Learned(table, text)


def _turning(encoding: Any) -> tuple[Any, Any, str]:
    """Tables and string of a rotary encoding."""
    if isinstance(encoding, RotaryTable):
        return encoding.cos, encoding.sin, f"{int(encoding.interleaved)} {encoding.rotary_offset}"
    return None, None, _text(encoding)


def _rotation(cos: Any, sin: Any, text: str) -> Any:
    if cos is None:
        return _read(text)
    interleaved, rotary_offset = text.split()
    return RotaryTable(cos, sin, interleaved == "1", int(rotary_offset))


# ---- what is common to them --------------------------------------------------------------------------------------------------


def _placed(offset: Any, positions: Any, cu_seqlens: Any, mask: Any, x: Tensor) -> tuple[Any, ...]:
    """Arguments of an operator; lists become tensors of the graph."""
    if isinstance(offset, (list, tuple)):
        offset = torch.tensor(offset, device=x.device)
    others = (
        torch.tensor(value, device=x.device) if isinstance(value, (list, tuple, range)) else value
        for value in (positions, cu_seqlens, mask)
    )
    return (0, offset, *others) if isinstance(offset, Tensor) else (offset, None, *others)


def _offset(offset: int, offsets: Any) -> Any:
    return offset if offsets is None else offsets


# ---- add_encoding ------------------------------------------------------------------------------------------------------------


def add_encoding(x: Tensor, encoding: Any, offset: Any, positions: Any, cu_seqlens: Any, mask: Any, *rest: Any) -> Tensor:
    """A new tensor, in a graph."""
    watching.refuse("add_encoding", positions=positions)
    result: Tensor = _add_encoding(x, *_added(encoding), *_placed(offset, positions, cu_seqlens, mask, x), *rest)
    return result


def add_encoding_in_place(
    x: Tensor,
    encoding: Any,
    offset: Any,
    positions: Any,
    cu_seqlens: Any,
    mask: Any,
    seq_axis: int,
    scale: float,
    seq_len: Any,
    out: Any,
    validate: bool,
) -> Tensor:
    """x or out, written in a graph."""
    places = (offset, positions, cu_seqlens, mask)
    table, text = _added(encoding)
    if watching.requires_gradient(x, table):
        watching.check_no_out("add_encoding", out)
        return x.copy_(add_encoding(x, encoding, *places, seq_axis, scale, seq_len, validate))
    watching.refuse("add_encoding", positions=positions)
    target, source = (x, None) if out is None or out is x else (out, x)
    _add_encoding_(target, source, table, text, *_placed(*places, x), seq_axis, scale, seq_len, validate)
    return target


def _run_add(x: Tensor, table: Any, text: str, offset: int, offsets: Any, *rest: Any) -> Tensor:
    out = memory.new_like(x)
    _run_add_(out, x, table, text, offset, offsets, *rest)
    return out


def _run_add_(out: Tensor, x: Any, table: Any, text: str, offset: int, offsets: Any, *rest: Any) -> None:
    positions, cu_seqlens, mask, seq_axis, scale, seq_len, validate = rest
    source, target = (out, None) if x is None else (x, out)
    places = (_offset(offset, offsets), positions, cu_seqlens, mask)
    direct.add_encoding(source, _summand(table, text), *places, seq_axis, scale, seq_len, target, validate)


def _keep_add(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, table, text, offset, offsets, positions, cu_seqlens, mask, seq_axis, scale, seq_len, _ = inputs
    ctx.save_for_backward(offsets, positions, cu_seqlens, mask)
    ctx.rows = None if table is None else table.shape[0]
    ctx.offset, ctx.clips = offset, text == _CLIP
    ctx.rest = gradients.Sum(None, seq_axis, scale, seq_len, False, False)


def _adjoint_add(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    offsets, positions, cu_seqlens, mask = ctx.saved_tensors
    of_x = gradients.scaled(grad, mask, ctx.rest, False) if ctx.needs_input_grad[0] else None
    of_table = None
    if ctx.needs_input_grad[1]:
        places = _row_positions(grad, ctx.offset, offsets, positions, cu_seqlens, mask, ctx.rest.seq_axis)
        of_table = sums.by_position(grad, places, ctx.rows, ctx.clips, ctx.rest.seq_axis, mask)
    return of_x, of_table, *(None,) * 10


_add_encoding = define(f"add_encoding(Tensor x, {_ADD}) -> Tensor", _run_add, lambda x, *rest: torch.empty_like(x))
_add_encoding_ = define(f"add_encoding_(Tensor(a!) out, Tensor? x, {_ADD}) -> ()", _run_add_, lambda *rest: None)
_registry.register_autograd("fastpe::add_encoding", _adjoint_add, setup_context=_keep_add, lib=library)


# ---- apply_rotary ------------------------------------------------------------------------------------------------------------


def apply_rotary(
    q: Any,
    k: Any,
    encoding: Any,
    offset: Any,
    positions: Any,
    cu_seqlens: Any,
    mask: Any,
    seq_axis: int,
    inverse: bool,
    seq_len: Any,
    validate: bool,
) -> Any:
    """New tensors, in a graph."""
    _refuse_turning("apply_rotary", encoding, positions)
    if q is None and k is None:
        raise TypeError(message("apply_rotary", "q or k must be a tensor", "None"))
    tables = _turning(encoding)
    found = []
    for x, is_key in ((q, False), (k, True)):
        if x is not None:
            places = _placed(offset, positions, cu_seqlens, mask, x)
            found.append(_apply_rotary(x, *tables, *places, is_key, seq_axis, inverse, False, seq_len, None, validate))
    return found[0] if len(found) == 1 else tuple(found)


def apply_rotary_in_place(
    q: Any,
    k: Any,
    encoding: Any,
    offset: Any,
    positions: Any,
    cu_seqlens: Any,
    mask: Any,
    seq_axis: int,
    inverse: bool,
    seq_len: Any,
    out: Any,
    validate: bool,
) -> Any:
    """q and k, or out, written in a graph."""
    places = (offset, positions, cu_seqlens, mask)
    _refuse_turning("apply_rotary", encoding, positions)
    tables = _turning(encoding)
    outs = out if isinstance(out, (tuple, list)) else (out, out) if q is None or k is None else (None, None)
    for x, is_key, to in ((q, False, outs[0]), (k, True, outs[-1])):
        if x is None:
            continue
        if watching.requires_gradient(x):
            watching.check_no_out("apply_rotary", to)
            one, other = (None, x) if is_key else (x, None)
            x.copy_(apply_rotary(one, other, encoding, *places, seq_axis, inverse, seq_len, validate))
            continue
        target, source = (x, None) if to is None or to is x else (to, x)
        rest = (is_key, seq_axis, inverse, False, seq_len, None, validate)
        _apply_rotary_(target, source, *tables, *_placed(*places, x), *rest)
    if out is not None:
        return out
    return q if k is None else k if q is None else (q, k)


def apply_rotary_packed(
    qkv: Tensor,
    packing: tuple[int, int, int],
    encoding: Any,
    offset: Any,
    positions: Any,
    cu_seqlens: Any,
    mask: Any,
    seq_axis: int,
    inverse: bool,
    seq_len: Any,
    inplace: bool,
    validate: bool,
) -> Tensor:
    """A packed tensor, new or in place, in a graph."""
    _refuse_turning("apply_rotary_qkv", encoding, positions)
    places = _placed(offset, positions, cu_seqlens, mask, qkv)
    arguments = (*_turning(encoding), *places, False, seq_axis, inverse, False, seq_len, packing, validate)
    if inplace and not watching.requires_gradient(qkv):
        _apply_rotary_(qkv, None, *arguments)
        return qkv
    found: Tensor = _apply_rotary(qkv, *arguments)
    return qkv.copy_(found) if inplace else found


def _refuse_turning(function: str, encoding: Any, positions: Any) -> None:
    watching.refuse(function, positions=positions)
    watching.refuse_tables(function, encoding)


def _run_rotary(x: Tensor, *rest: Any) -> Tensor:
    out = memory.new_like(x)
    _run_rotary_(out, x, *rest)
    return out


def _run_rotary_(out: Tensor, x: Any, cos: Any, sin: Any, text: str, offset: int, offsets: Any, *rest: Any) -> None:
    *places, is_key, seq_axis, inverse, transposed, seq_len, packing, validate = rest
    packing = None if packing is None else tuple(packing)
    turn = gradients.Turn(_rotation(cos, sin, text), is_key, seq_axis, inverse, seq_len, validate, False, packing, transposed)
    source, target = (out, None) if x is None else (x, out)
    gradients.rotate(source, target, turn, _offset(offset, offsets), *places)


def _keep_rotary(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, text, offset, offsets, positions, cu_seqlens, mask, *rest = inputs
    ctx.save_for_backward(cos, sin, offsets, positions, cu_seqlens, mask)
    ctx.text, ctx.offset, ctx.rest = text, offset, rest


def _adjoint_rotary(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    cos, sin, *places = ctx.saved_tensors
    is_key, seq_axis, inverse, transposed, seq_len, packing, _ = ctx.rest
    rest = (is_key, seq_axis, inverse, not transposed, seq_len, packing, False)
    return _apply_rotary(grad, cos, sin, ctx.text, ctx.offset, *places, *rest), *(None,) * 15


_apply_rotary = define(f"apply_rotary(Tensor x, {_TURN}) -> Tensor", _run_rotary, lambda x, *rest: torch.empty_like(x))
_apply_rotary_ = define(f"apply_rotary_(Tensor(a!) out, Tensor? x, {_TURN}) -> ()", _run_rotary_, lambda *rest: None)
_registry.register_autograd("fastpe::apply_rotary", _adjoint_rotary, setup_context=_keep_rotary, lib=library)


# ---- rerotate ----------------------------------------------------------------------------------------------------------------


def rerotate(k: Tensor, delta: Any, encodings: tuple[Any, Any, Any], *rest: Any) -> Tensor:
    """A new tensor, in a graph."""
    found: Tensor = _rerotate(k, *_moving(k, delta, encodings, *rest))
    return found


def rerotate_in_place(k: Tensor, delta: Any, encodings: tuple[Any, Any, Any], *rest: Any) -> Tensor:
    """k or out, written in a graph."""
    offset, positions, cu_seqlens, mask, seq_axis, seq_len, out, validate = rest
    arguments = (delta, encodings, offset, positions, cu_seqlens, mask, seq_axis, seq_len, validate)
    if watching.requires_gradient(k):
        watching.check_no_out("rerotate", out)
        return k.copy_(rerotate(k, *arguments))
    target, source = (k, None) if out is None or out is k else (out, k)
    _rerotate_(target, source, *_moving(k, *arguments))
    return target


def _moving(
    k: Tensor,
    delta: Any,
    encodings: tuple[Any, Any, Any],
    offset: Any,
    positions: Any,
    cu_seqlens: Any,
    mask: Any,
    seq_axis: int,
    seq_len: Any,
    validate: bool,
) -> tuple[Any, ...]:
    """Arguments of the operators."""
    watching.refuse("rerotate", positions=positions, delta=delta)
    moves = (
        (0, None, delta) if isinstance(delta, Tensor) else (delta, None, None) if isinstance(delta, int) else (0, delta, None)
    )
    lengths = None if seq_len is None else list(seq_len) if isinstance(seq_len, (tuple, list)) else [seq_len, seq_len]
    places = _placed(offset, positions, cu_seqlens, mask, k)
    return *moves, [_text(one) for one in encodings], *places, seq_axis, lengths, False, validate


def _run_rerotate(k: Tensor, *rest: Any) -> Tensor:
    out = memory.new_like(k)
    _run_rerotate_(out, k, *rest)
    return out


def _run_rerotate_(
    out: Tensor, k: Any, steps: int, delta: Any, deltas: Any, texts: list[str], offset: int, offsets: Any, *rest: Any
) -> None:
    positions, cu_seqlens, mask, seq_axis, seq_len, transposed, validate = rest
    moved = next(one for one in (deltas, delta, steps) if one is not None)
    lengths = None if seq_len is None else tuple(seq_len)
    source, target = (out, None) if k is None else (k, out)
    encoding, before, after = (_read(text) for text in texts)
    places = (_offset(offset, offsets), positions, cu_seqlens, mask)
    direct.rerotate(source, moved, encoding, before, after, *places, seq_axis, lengths, target, validate, transposed)


def _keep_rerotate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, steps, delta, deltas, texts, offset, offsets, positions, cu_seqlens, mask, *rest = inputs
    ctx.save_for_backward(deltas, offsets, positions, cu_seqlens, mask)
    ctx.plain = steps, delta, texts, offset, rest


def _adjoint_rerotate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    deltas, *places = ctx.saved_tensors
    steps, delta, texts, offset, (seq_axis, seq_len, transposed, _) = ctx.plain
    rest = (seq_axis, seq_len, not transposed, False)
    return _rerotate(grad, steps, delta, deltas, texts, offset, *places, *rest), *(None,) * 13


_rerotate = define(f"rerotate(Tensor k, {_MOVE}) -> Tensor", _run_rerotate, lambda k, *rest: torch.empty_like(k))
_rerotate_ = define(f"rerotate_(Tensor(a!) out, Tensor? k, {_MOVE}) -> ()", _run_rerotate_, lambda *rest: None)
_registry.register_autograd("fastpe::rerotate", _adjoint_rerotate, setup_context=_keep_rerotate, lib=library)


# ---- embed -------------------------------------------------------------------------------------------------------------------


def embed(
    table: Tensor,
    types: Any,
    learned: Any,
    ids: Any,
    type_ids: Any,
    row_scale: Any,
    offset: Any,
    positions: Any,
    cu_seqlens: Any,
    mask: Any,
    rest: sums.Lookup,
) -> Tensor:
    """A new tensor, in a graph."""
    scales, zeros = row_scale if isinstance(row_scale, tuple) else (row_scale, None)
    watching.refuse("embed", positions=positions, row_scale=scales, zero_point=zeros)
    ids, type_ids = (
        torch.tensor(one, device=table.device) if isinstance(one, (list, tuple, int)) else one for one in (ids, type_ids)
    )
    text = (_CLIP if rest.encoding.out_of_range == "clip" else _ERROR) if learned is not None else _text(rest.encoding)
    result: Tensor = _embed(
        table,
        *(types, learned, ids, type_ids, scales, zeros),
        *_placed(offset, positions, cu_seqlens, mask, table),
        text,
        *(
            rest.scale,
            rest.padding_idx,
            rest.dtype,
            rest.seq_len,
            rest.sparse,
            rest.deterministic,
            rest.frozen_idx,
            rest.validate,
        ),
    )
    return result


def _run_embed(
    table: Tensor, types: Any, learned: Any, ids: Tensor, type_ids: Any, scales: Any, zeros: Any, *rest: Any
) -> Tensor:
    offset, offsets, positions, cu_seqlens, mask, text, scale, padding_idx, dtype, seq_len, _, _, _, validate = rest
    row_scale = scales if zeros is None else (scales, zeros)
    token_types = None if types is None else (type_ids, types)
    places = (_offset(offset, offsets), positions, cu_seqlens, mask)
    encoding = _summand(learned, text)
    return direct.embed(
        ids, table, encoding, scale, token_types, row_scale, padding_idx, *places, seq_len, None, validate, dtype
    )


def _fake_embed(table: Tensor, types: Any, learned: Any, ids: Tensor, *rest: Any) -> Tensor:
    return table.new_empty((*ids.shape, table.shape[1]), dtype=rest[11])


def _keep_embed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    table, types, learned, ids, type_ids, _, _, offset, offsets, positions, cu_seqlens, mask, text, *rest = inputs
    scale, padding_idx, dtype, seq_len, sparse, deterministic, frozen_idx, _ = rest
    ctx.save_for_backward(ids, type_ids, offsets, positions, cu_seqlens, mask)
    ctx.offset, ctx.clips = offset, text == _CLIP
    ctx.tables = [None if one is None else (one.shape[0], one.dtype) for one in (table, types, learned)]
    ctx.rest = sums.Lookup(None, scale, padding_idx, dtype, seq_len, False, sparse, deterministic, frozen_idx)


def _adjoint_embed(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    ids, type_ids, offsets, positions, cu_seqlens, mask = ctx.saved_tensors

    def locate(grad: Tensor, alive: Any) -> Tensor:
        result: Tensor = _row_positions(grad, ctx.offset, offsets, positions, cu_seqlens, alive, -2)
        return result

    needed = ctx.needs_input_grad[:3]
    found = sums.embed_gradients(grad, ctx.tables, needed, ids, type_ids, mask, ctx.rest, ctx.clips, locate)
    return *found, *(None,) * 18


_embed = define(f"embed(Tensor table, {_LOOKUP}) -> Tensor", _run_embed, _fake_embed)
_registry.register_autograd("fastpe::embed", _adjoint_embed, setup_context=_keep_embed, lib=library)


# ---- encode and positions ----------------------------------------------------------------------------------------------------


def encode(positions: Tensor, dim: int, encoding: Any, dtype: torch.dtype, seq_len: Any, validate: bool) -> Tensor:
    """A new tensor, in a graph."""
    watching.refuse("encode", positions=positions)
    found: Tensor = _encode(positions, dim, _text(encoding), dtype, seq_len, validate)
    return found


def _run_encode(positions: Tensor, dim: int, text: str, dtype: torch.dtype, seq_len: Any, validate: bool) -> Tensor:
    encoding = _read(text)
    where = None if _is_whole(encoding, positions) else positions
    shape = direct.encoded_shape(encoding, where if where is None else where.shape)
    out = memory.new((*shape, dim), dtype, positions.device)
    direct.encode(where, dim, encoding, seq_len, out, validate)
    return out


def _is_whole(encoding: Any, positions: Tensor) -> bool:
    """Whether no positions stand for all rows of a grid, which always has positions of an axis or more."""
    return isinstance(encoding, Grid) and tuple(positions.shape) == (0,)


def _fake_encode(positions: Tensor, dim: int, text: str, dtype: torch.dtype, seq_len: Any, validate: bool) -> Tensor:
    encoding = _read(text)
    shape = direct.encoded_shape(encoding, None if _is_whole(encoding, positions) else positions.shape)
    return positions.new_empty((*shape, dim), dtype=dtype)


def _run_row_positions(
    x: Tensor, offset: int, offsets: Any, positions: Any, cu_seqlens: Any, mask: Any, seq_axis: int
) -> Tensor:
    found = sums.row_positions(x, seq_axis, _offset(offset, offsets), positions, cu_seqlens, mask)
    return found.clone(memory_format=torch.contiguous_format)


_encode = define(
    "encode(Tensor positions, SymInt dim, str encoding, ScalarType dtype, SymInt? seq_len, bool validate) -> Tensor",
    _run_encode,
    _fake_encode,
)
_row_positions = define(
    f"row_positions(Tensor x, {_PLACES}, int seq_axis) -> Tensor",
    _run_row_positions,
    lambda x, *rest: x.new_empty(x.shape[:-1], dtype=torch.int64),
)
