"""The adjoints of the operations, for autograd: adding passes a gradient on, a rotation turns it back, an embedding scatters it.

One ``autograd.Function`` for each operation serves both forms. In place (``in_place``), the memory has been written already, and the
function only tells autograd so, which counts the tensor's version up; else it makes a new tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .._core.checks import message
from ..encodings import Learned
from . import direct, memory
from .ownership import owned
from .sums import Lookup, by_position, embed_gradients, on_rows, row_positions
from .watching import tables_of

Tensor = torch.Tensor


# ---- what a function keeps for the way back ----------------------------------------------------------------------------------


def keep(ctx: Any, *values: Any) -> None:
    """Tensors in autograd's own way, which sees whether they are written until then; anything else as it is."""
    tensors = [value if isinstance(value, Tensor) else None for value in values]
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.plain = [None if isinstance(value, Tensor) else value for value in values]


def kept(ctx: Any) -> list[Any]:
    return [plain if tensor is None else tensor for tensor, plain in zip(ctx.saved_tensors, ctx.plain, strict=True)]


def _insert_axis(in_dims: Any, x: Tensor, axis: int) -> tuple[Tensor, int]:
    """x with vmap's axis before the last one, where it is one more axis of heads; and the axis of T."""
    if _is_mapped(in_dims[1:-1]) or in_dims[0] is None:
        raise RuntimeError("fastpe.torch.functional: vmap needs an x with the mapped axis, and everything else without it.")
    count = x.dim() - 1
    return x.movedim(in_dims[0], -2), axis + count if axis < 0 else axis


def _is_mapped(in_dims: Any) -> bool:
    """Whether any of some arguments, lists among them, has an axis that vmap maps."""
    return any(map(_is_mapped, in_dims)) if isinstance(in_dims, (tuple, list)) else in_dims is not None


# ---- additions ---------------------------------------------------------------------------------------------------------------


class Sum(NamedTuple):
    """What an addition is, tensors aside."""

    encoding: Any
    seq_axis: int
    input_scale: float
    seq_len: int | None
    validate: bool
    in_place: bool


class AddEncoding(torch.autograd.Function):
    """x*input_scale + PE: linear in x, and in the rows of a learned table."""

    @staticmethod
    def forward(x: Tensor, table: Any, offset: Any, positions: Any, cu_seqlens: Any, mask: Any, rest: Sum) -> Tensor:
        if rest.in_place:
            return x
        encoding = rest.encoding if table is None else Learned(table, rest.encoding.out_of_range)
        out = memory.new_like(x)
        places = (offset, positions, cu_seqlens, mask)
        direct.add_encoding(x, encoding, *places, rest.seq_axis, rest.input_scale, rest.seq_len, out, rest.validate)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, table, *places, rest = inputs
        if rest.in_place:
            ctx.mark_dirty(x)
        ctx.rest, ctx.table = rest, None if table is None else (table.shape[0], table.dtype)
        keep(ctx, *places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        places, rest = kept(ctx), ctx.rest
        may_write = owned(grad)
        of_x = of_table = None
        if ctx.needs_input_grad[1]:
            count, dtype = ctx.table
            rows = row_positions(grad, rest.seq_axis, *places)
            of_table = by_position(grad, rows, count, rest.encoding.clips, rest.seq_axis, places[3]).to(dtype)
        if ctx.needs_input_grad[0]:
            of_x = scaled(grad, places[3], rest, may_write)
        return of_x, of_table, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, table: Tensor | None, *others: Any) -> Any:
        if table is not None:
            raise NotImplementedError("fastpe.torch.functional.add_encoding: no forward-mode derivative by a learned table.")
        return None if x is None else scaled(x, kept(ctx)[3], ctx.rest, False).clone()

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, *given: Any) -> tuple[Tensor, int]:
        *others, rest = given
        moved, axis = _insert_axis(in_dims, x, rest.seq_axis)
        return add_encoding(moved, *others, rest._replace(seq_axis=axis)), moved.dim() - 2


add_encoding: Callable[..., Tensor] = AddEncoding.apply


def scaled(grad: Tensor, mask: Any, rest: Sum, may_write: bool) -> Tensor:
    """What the rows' factor, which masked rows do not have, makes of a gradient."""
    if rest.input_scale == 1:
        return grad
    if mask is None:
        return grad.mul_(rest.input_scale) if may_write else grad * rest.input_scale
    return torch.where(on_rows(mask, grad, rest.seq_axis)[..., None], grad * rest.input_scale, grad)


# ---- rotations ---------------------------------------------------------------------------------------------------------------


class Turn(NamedTuple):
    """What a rotation of q, or of k, is, tensors aside."""

    encoding: Any
    is_key: bool
    seq_axis: int
    inverse: bool
    seq_len: int | None
    validate: bool
    in_place: bool
    packing: tuple[int, int, int] | None = None  # heads of q and of k in a packed tensor, and the axis of heads
    transposed: bool = False


class ApplyRotary(torch.autograd.Function):
    """A rotation is linear: its adjoint is its transpose, and a gradient that nobody else sees is turned where it lies."""

    @staticmethod
    def forward(x: Tensor, offset: Any, positions: Any, cu_seqlens: Any, mask: Any, rest: Turn) -> Tensor:
        if rest.in_place:
            return x
        out = memory.new_like(x)
        rotate(x, out, rest, offset, positions, cu_seqlens, mask)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *places, rest = inputs
        if rest.in_place:
            ctx.mark_dirty(x)
        ctx.rest = rest
        keep(ctx, *places, *tables_of(rest.encoding))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        places, rest = kept(ctx)[:4], ctx.rest
        rest = rest._replace(transposed=not rest.transposed, in_place=False)
        if owned(grad):
            rotate(grad, None, rest, *places)
            return grad, None, None, None, None, None
        return apply_rotary(grad.resolve_neg(), *places, rest), None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, *others: Any) -> Any:
        return None if x is None else apply_rotary(x, *kept(ctx)[:4], ctx.rest)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, *others: Any) -> tuple[Tensor, int]:
        *places, rest = others
        moved, axis = _insert_axis(in_dims, x, rest.seq_axis)
        return apply_rotary(moved, *places, rest._replace(seq_axis=axis)), moved.dim() - 2


apply_rotary: Callable[..., Tensor] = ApplyRotary.apply


def rotate(
    x: Tensor, out: Tensor | None, rest: Turn, offset: Any, positions: Any, cu_seqlens: Any, mask: Any, counts_up: bool = True
) -> None:
    """Rotate q, or k, or those of a packed tensor, whose values are copied."""
    q, k = _parts(x, rest)
    outs = None
    if out is not None:
        outs = tuple(one for one in _parts(out, rest) if one is not None)
    result = outs[0] if outs is not None and len(outs) == 1 else outs
    places = (offset, positions, cu_seqlens, mask)
    options = {"transposed": rest.transposed, "counts_up": False}
    with torch.no_grad():
        direct.apply_rotary(
            q, k, rest.encoding, *places, rest.seq_axis, rest.inverse, rest.seq_len, result, rest.validate, **options
        )
        if out is not None and rest.packing is not None:
            q_heads, k_heads, axis = rest.packing
            values = x.shape[axis] - q_heads - k_heads
            out.narrow(axis, q_heads + k_heads, values).copy_(x.narrow(axis, q_heads + k_heads, values))
    if counts_up:
        direct.count_up(x if out is None else out)


def _parts(x: Tensor, rest: Turn) -> tuple[Tensor | None, Tensor | None]:
    if rest.packing is None:
        return (None, x) if rest.is_key else (x, None)
    q_heads, k_heads, axis = rest.packing
    with torch.no_grad():
        return x.narrow(axis, 0, q_heads), x.narrow(axis, q_heads, k_heads)


class Move(NamedTuple):
    """What ``rerotate`` does, tensors aside."""

    encodings: tuple[Any, Any, Any]
    seq_axis: int
    seq_len: Any
    validate: bool
    in_place: bool
    transposed: bool = False


class Rerotate(torch.autograd.Function):
    """As ``ApplyRotary``."""

    @staticmethod
    def forward(x: Tensor, delta: Any, offset: Any, positions: Any, cu_seqlens: Any, mask: Any, rest: Move) -> Tensor:
        if rest.in_place:
            return x
        out = memory.new_like(x)
        places = (offset, positions, cu_seqlens, mask)
        given = (x, delta, *rest.encodings, *places, rest.seq_axis, rest.seq_len, out, rest.validate)
        direct.rerotate(*given, transposed=rest.transposed)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *places, rest = inputs
        if rest.in_place:
            ctx.mark_dirty(x)
        ctx.rest = rest
        keep(ctx, *places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        rest = ctx.rest._replace(transposed=not ctx.rest.transposed, in_place=False)
        return rerotate(grad.resolve_neg(), *kept(ctx), rest), None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, *others: Any) -> Any:
        return None if x is None else rerotate(x, *kept(ctx), ctx.rest)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, *others: Any) -> tuple[Tensor, int]:
        *places, rest = others
        moved, axis = _insert_axis(in_dims, x, rest.seq_axis)
        return rerotate(moved, *places, rest._replace(seq_axis=axis)), moved.dim() - 2


rerotate: Callable[..., Tensor] = Rerotate.apply


# ---- embeddings --------------------------------------------------------------------------------------------------------------


class Embed(torch.autograd.Function):
    """Rows of tables: the adjoint adds each row's gradient to the row that it came from."""

    @staticmethod
    def forward(
        table: Tensor,
        types: Any,
        learned: Any,
        ids: Tensor,
        type_ids: Any,
        row_scale: Any,
        offset: Any,
        positions: Any,
        cu_seqlens: Any,
        mask: Any,
        rest: Lookup,
    ) -> Tensor:
        encoding = rest.encoding if learned is None else Learned(learned, rest.encoding.out_of_range)
        token_types = None if types is None else (type_ids, types)
        places = (offset, positions, cu_seqlens, mask)
        lookup = (rest.scale, token_types, row_scale, rest.padding_idx)
        return direct.embed(ids, table, encoding, *lookup, *places, rest.seq_len, None, rest.validate, rest.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        table, types, learned, ids, type_ids, _, *places, rest = inputs
        ctx.rest = rest
        ctx.tables = [None if one is None else (one.shape[0], one.dtype) for one in (table, types, learned)]
        keep(ctx, ids, type_ids, *places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        ids, type_ids, *places, mask = kept(ctx)

        def locate(grad: Tensor, kept: Any) -> Tensor:
            offset, positions, cu_seqlens = places
            return row_positions(grad, -2, offset, positions, cu_seqlens, kept)

        clips = isinstance(ctx.rest.encoding, Learned) and ctx.rest.encoding.clips
        needed = ctx.needs_input_grad[:3]
        found = embed_gradients(grad, ctx.tables, needed, ids, type_ids, mask, ctx.rest, clips, locate)
        return *found, *(None,) * 8

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError("fastpe.torch.functional.embed: no forward-mode derivative by a table.")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *given: Any) -> tuple[Tensor, int]:
        """The mapped axis of the ids is one more axis of heads, or of two axes the first one."""
        table, types, learned, ids, type_ids, *others = given
        if _is_mapped((in_dims[:3], in_dims[5:-1])) or in_dims[3] is None or ids.dim() < 2:
            rule = "vmap needs ids of (..., T) with the mapped axis, and everything but token types without it"
            raise RuntimeError(message("embed", rule, "others"))
        ids = ids.movedim(in_dims[3], -2)
        if type_ids is not None:
            dim = in_dims[4]
            type_ids = type_ids.unsqueeze(-2).expand(ids.shape) if dim is None else type_ids.movedim(dim, -2)
        return embed(table, types, learned, ids, type_ids, *others), ids.dim() - 2


embed: Callable[..., Tensor] = Embed.apply
