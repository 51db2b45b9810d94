"""Attention with the distances of a ``Remap``, for modules of ``transformers`` that pass their queries and keys on unrotated."""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from .._core.checks import describe, message
from ..positions.remaps import Remap
from ._rotary_modules import FUNCTION, special
from ._rotation import Rotation, rotated

Tensor = torch.Tensor
GIVEN = "fastpe_rotation"  # the keyword by which an attention module hands its rotation on
_ROWS = 1024  # queries at a time: their mask is the largest thing that is made


class Passing(Rotation):
    """A rotation that leaves q and k as they are, and notes that it was asked; attention rotates them later."""

    past = 0  # keys of earlier calls
    rotation: Any = None  # that of the call, which all layers share
    asked: tuple[str, bool] | None = None
    count = 0  # of tensors

    def rotate(self, name: str, given: tuple[Any, ...], heads: int | None, back: bool) -> Any:
        self.asked, self.count = (name, back != self.sites[name].back), self.count + len(given)
        return given if len(given) > 1 else given[0]

    def to(self, *target: Any, device: Any = None, **options: Any) -> Rotation:
        """Stay: attention reads the positions on the host."""
        return self


class Reached(Exception):  # an answer, not an error
    """The attention was called, with these queries and keys."""


def refused(path: str, problem: str) -> ValueError:
    rule = f"with a remap, {path} must be causal attention to all keys, by transformers' interface, eager or sdpa"
    return ValueError(message(FUNCTION, rule, problem, "Patch it without remap, with scaling= for example."))


# ---- attention ---------------------------------------------------------------------------------------------------------------


class _Rows(NamedTuple):
    """Sequences of a batch with the same positions."""

    rows: Any
    remap: Remap
    first: int  # the slot of the first query among the keys

    def columns(self, branch: int, start: int, stop: int, end: int) -> tuple[int, int, int, int]:
        """Which of the first ``end`` keys these queries attend to by a branch, and which of those not all of them do: two slices."""
        low, high = self.remap.bounds[branch] or 0, self.remap.bounds[branch + 1]
        own, keys = self.remap.queries[start:stop] // self.remap.size, self.remap.keys[:end] // self.remap.size
        nearest, farthest = own.min() - keys, own.max() - keys
        needed, pure = np.ones(end, bool), np.arange(end) <= self.first + start
        if branch:
            needed, pure = farthest >= low, pure & (nearest >= low)
        if high is not None:
            needed, pure = needed & (nearest < high), pure & (farthest < high)
        a, b = _span(needed)
        c, d = _span(~pure[a:b])
        return a, b, a + c, a + d

    def allowed(self, branch: int, start: int, stop: int, a: int, b: int, causal: bool) -> Tensor:
        """Which queries (rows) attend to which keys (columns) by a branch."""
        own, keys = (torch.from_numpy(one // self.remap.size) for one in (self.remap.queries[start:stop], self.remap.keys[a:b]))
        low, high = self.remap.bounds[branch] or 0, self.remap.bounds[branch + 1]
        apart = own[:, None] - keys[None, :]
        found = apart >= low if branch else torch.ones_like(apart, dtype=torch.bool)
        if high is not None:
            found &= apart < high
        if causal:
            found &= torch.arange(a, b)[None, :] <= torch.arange(self.first + start, self.first + stop)[:, None]
        return found


def _span(marked: Any) -> tuple[int, int]:
    """The slice from the first that is marked to the last."""
    places = np.flatnonzero(marked)
    return (int(places[0]), int(places[-1]) + 1) if places.size else (0, 0)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention of ``transformers`` for modules that ``patch_transformers`` gave a remap; B, H, T, D tensors, (B, T, H, D) out."""
    given = options.pop(GIVEN, None)
    unknown = [name for name in ("sliding_window", "softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if attention_mask is not None and attention_mask.dim() != 4:
        unknown.append("a mask of another implementation")
    if unknown or options.get("is_causal") is False or not isinstance(given, Passing):
        raise refused(type(module).__name__, f"attention with {', '.join(unknown) or 'no positions of a patched model'}")
    if given.rotation is None:
        raise Reached((query, key))
    plain: Any = sys.modules["transformers.modeling_utils"].ALL_ATTENTION_FUNCTIONS["sdpa"]
    if given.asked is None:  # a layer without positions
        found: tuple[Tensor, None] = plain(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return found
    end = given.past + query.shape[2]
    key, value = key[:, :, :end], value[:, :, :end]
    mask = None if attention_mask is None else attention_mask[..., :end]
    groups = given.rotation.groups
    if not groups:
        groups += _groups(given, query, mask)
    blocks = [_attend(module, given, one, query, key, value, mask, scaling, dropout) for one in groups]
    if len(blocks) == 1:
        return blocks[0].transpose(1, 2).contiguous(), None
    order = torch.from_numpy(np.argsort(np.concatenate([one.rows for one in groups]))).to(query.device)
    return torch.cat(blocks)[order].transpose(1, 2).contiguous(), None


def _groups(given: Passing, query: Tensor, mask: Tensor | None) -> list[_Rows]:
    """The sequences of a batch by their positions. Keys of earlier calls stand one after another, as far as the mask shows them."""
    count, past = query.shape[2], given.past
    offset, positions = given.offset, given.positions
    own: Any = np.arange(count) if positions is None else positions.cpu().numpy()
    own = np.atleast_2d(own + (np.asarray(offset.cpu())[:, None] if isinstance(offset, Tensor) else offset))
    visible = np.ones((1, past), bool)
    if mask is not None:
        visible = _visible(mask[:, :1, 0, :past]).any(1).cpu().numpy()
    before = own[:, :1] - np.cumsum(visible[:, ::-1], 1)[:, ::-1]
    rows = max(len(own), len(before))
    own, before = (np.broadcast_to(one, (rows, one.shape[-1])) for one in (own, before))
    every, which = np.unique(np.maximum(np.concatenate((before, own), 1), 0), axis=0, return_inverse=True)
    found = []
    for index, keys in enumerate(every):
        remap = checked(given.remap, keys[past:], keys)
        found.append(_Rows(np.flatnonzero(which.reshape(-1) == index) if len(every) > 1 else slice(None), remap, past))
    return found


def _visible(mask: Tensor) -> Tensor:
    """Which keys a mask lets through; one that is added has the lowest number, or -inf, for the others."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def checked(remap: Any, queries: Any, keys: Any) -> Remap:
    """What a caller's function makes of positions, which must be a Remap."""
    if not callable(remap):
        raise TypeError(message(FUNCTION, "remap must be a function of positions of queries and keys", describe(remap)))
    found = remap(queries, keys)
    if not isinstance(found, Remap):
        raise TypeError(message(FUNCTION, "remap must return a fastpe.positions.Remap", describe(found)))
    return found


def called(remap: Any) -> str:
    """A caller's function as text."""
    if isinstance(remap, functools.partial):
        return (
            f"{called(remap.func)}({', '.join([*map(repr, remap.args), *(f'{k}={v!r}' for k, v in remap.keywords.items())])})"
        )
    return str(getattr(remap, "__name__", type(remap).__name__))


def _attend(
    module: Any,
    given: Passing,
    group: _Rows,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """Attention of some sequences, a block of queries at a time."""
    if not isinstance(group.rows, slice):
        q, k, v = q[group.rows], k[group.rows], v[group.rows]
        mask = mask if mask is None or len(mask) == 1 else mask[group.rows]
    branches: dict[int, tuple[Tensor, Tensor, int]] = {}
    for branch in range(len(group.remap.q)):
        a, b, *_ = group.columns(branch, 0, q.shape[2], k.shape[2])
        if a < b:
            branches[branch] = *_rotated(module, given, group.remap, branch, q, k[:, :, a:b], a), a
    blocks = []
    for start in range(0, q.shape[2], _ROWS):
        stop = min(start + _ROWS, q.shape[2])
        keys, values, queries, masks = [], [], [], []
        end = _end(mask, group.first, start, stop, k.shape[2])
        parts = [(one, *group.columns(one, start, stop, end)) for one in branches]
        parts = [part for part in parts if part[1] < part[2]]
        width, several = q.shape[-1], len(parts)
        for place, (branch, a, b, c, d) in enumerate(parts):
            own, others, first = branches[branch]
            queries.append(own[:, :, start:stop])
            keys.append(pad(others[:, :, a - first : b - first], (place * width, (several - 1 - place) * width)))
            values.append(v[:, :, a:b])
            masks.append(_mask(group, branch, start, stop, (a, b, c, d), mask, q))
        blocks.append(_joined(queries, keys, values, masks, scaling, dropout))
    return torch.cat(blocks, 2)


def _rotated(module: Any, given: Passing, remap: Remap, branch: int, q: Tensor, k: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """New queries, and keys from the first that this branch needs, at its positions."""
    assert given.asked is not None
    name, back = given.asked
    encoding = special(given.encodings[name], q.shape[-1], module.config.at_end, back)
    length = given.seq_len
    if length is None and encoding.needs_length:
        length = int(max(remap.queries.max(), remap.keys.max())) + 1
    keys = remap.k[branch][first : first + k.shape[2]]
    pairs = [(q, remap.q[branch]), (k, keys)]
    ours = [rotated(x, bool(is_key), encoding, back, positions=at, seq_len=length) for is_key, (x, at) in enumerate(pairs)]
    return ours[0], ours[1]


def _end(mask: Tensor | None, first: int, start: int, stop: int, count: int) -> int:
    """How many keys some of these queries attend to, the last of them included."""
    if mask is None:
        return first + stop
    visible = _visible(mask[..., start:stop, :]).flatten(0, -2).any(0).nonzero()
    return int(visible[-1]) + 1 if len(visible) else count


def _mask(group: _Rows, branch: int, start: int, stop: int, span: Any, mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Which of a span of keys the queries see by a branch, to be added if the model's mask is; None for all of them."""
    a, b, c, d = span
    found = None
    if c < d:
        found = torch.ones(stop - start, b - a, dtype=torch.bool)
        found[:, c - a : d - a] = group.allowed(branch, start, stop, c, d, mask is None)
        found = found.to(like.device)
    if mask is None:
        return found
    mask = mask[..., start:stop, a:b] if mask.dtype == torch.bool else mask[..., start:stop, a:b].to(like.dtype)
    if found is None:
        return mask
    return mask & found if mask.dtype == torch.bool else mask.masked_fill(~found, torch.finfo(mask.dtype).min)


def _joined(queries: Any, keys: Any, values: Any, masks: Any, scaling: float | None, dropout: float) -> Tensor:
    """Attention over several branches at once: each has channels of its own, in which the others' keys are zero."""
    q, k, v = torch.cat(queries, -1), torch.cat(keys, 2), torch.cat(values, 2)
    width, scale = v.shape[-1], queries[0].shape[-1] ** -0.5 if scaling is None else scaling
    v = pad(v, (0, max(0, q.shape[-1] - width)))  # PyTorch's fast kernels want one width
    mask = None
    if any(one is not None for one in masks):
        empty = [
            q.new_ones(q.shape[2], one.shape[2], dtype=torch.bool) if m is None else m
            for m, one in zip(masks, keys, strict=True)
        ]
        shape = torch.broadcast_shapes(*(one.shape[:-1] for one in empty))  # type: ignore[no-untyped-call]
        mask = torch.cat([one.expand(*shape, one.shape[-1]) for one in empty], -1)
    heads = q.shape[1] // k.shape[1]
    if heads > 1:
        k, v = k.repeat_interleave(heads, 1), v.repeat_interleave(heads, 1)
    found: Tensor = scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale)
    return found[..., :width]
