"""What patched modules hand to a model's layers in place of cosines and sines, and the functions that rotate by it."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch

from .._core.checks import message
from ..encodings import Rotary
from ..scaling import DynamicNTK, LongRoPE
from ..verbs import apply_rotary
from . import functional
from ._grad_state import in_forward_mode_or_transform, is_scripted, requires_gradient
from ._rotary_modules import FUNCTION, Site, functions, special

Tensor = torch.Tensor
Module = torch.nn.Module
is_compiling = torch.compiler.is_compiling
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # since PyTorch 2.7


class Rotation:
    """What a model hands to its layers in place of cosines and sines: an encoding, and the positions of this call's rows."""

    shape = (1, 1, 1)  # GPT-J reads the width of its table

    negated = False  # whether these are negated sines, which rotate back

    def __init__(
        self, sites: dict[str, Site], encodings: Any, offset: Any, positions: Any, seq_len: int | None, remap: Any = None
    ) -> None:
        self.sites, self.encodings, self.offset, self.positions, self.seq_len = sites, encodings, offset, positions, seq_len
        self.remap = remap  # the caller's, by which attention rotates later
        self.groups: list[Any] = []  # what the first layer that does has found out, for all

    def __neg__(self) -> Rotation:
        back = Rotation(self.sites, self.encodings, self.offset, self.positions, self.seq_len, self.remap)
        back.negated = not self.negated
        return back

    def rotate(self, name: str, given: tuple[Any, ...], heads: int | None, back: bool) -> Any:
        """Rotate q and k, or one of them, as the function of this name does; ``heads`` is their axis, if the call says it.

        Into new tensors if a gradient may be needed, or for an exported graph, else in place, as they are fresh outputs of projections.
        ``torch.jit.trace`` compares graphs of runs with and without gradients, which must be equal.
        """
        site = self.sites.get(name)
        if site is None:
            raise AttributeError(_unknown(name))
        q, k = given if len(given) > 1 else (given[0], None)
        seq_axis = site.seq_axis if heads is None else -2 if heads == 1 else -3
        encoding, back = self.encodings[name], back != site.back
        if site.at_end or back:
            encoding = special(encoding, q.shape[-1], site.at_end, back)
        # A graph cannot be traced through the question whether forward mode is on
        new = (
            is_exporting()
            or requires_gradient(q, k)
            or (not is_compiling() and (in_forward_mode_or_transform() or is_scripted()))
        )
        run = functional.apply_rotary if new else apply_rotary
        where: Any = {"offset": self.offset, "positions": self.positions, "seq_axis": seq_axis}
        found = run(q, k, encoding, inverse=back, seq_len=self.seq_len, **where)
        return (found, None) if k is None and len(given) > 1 else found

    def to(self, *target: Any, device: Any = None, **options: Any) -> Rotation:
        """Move to another device, if a model's layers are on several. A dtype, meant for cosines, is ignored."""
        if target and device is None:
            device = target[0]
        if not isinstance(device, (str, int, torch.device)):
            return self
        offset, positions = (one.to(device) if isinstance(one, Tensor) else one for one in (self.offset, self.positions))
        return Rotation(self.sites, self.encodings, offset, positions, self.seq_len, self.remap)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        """GPT-J gathers rows of its table and splits them into sines and cosines."""
        if function is torch.gather:
            return arguments[0]
        if function is torch.split:
            return arguments[0], arguments[0]
        raise TypeError(_unknown(getattr(function, "__name__", str(function))))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(_unknown(name))


def rotated(x: Tensor, is_key: bool, encoding: Rotary, back: bool, positions: Any, seq_len: int | None = None) -> Tensor:
    """New queries or keys (B, H, T, D), at positions (T,)."""
    given: Any = (None, x) if is_key else (x, None)
    places = torch.as_tensor(positions, device=x.device)
    found: Tensor = functional.apply_rotary(given[0], given[1], encoding, positions=places, seq_len=seq_len, inverse=back)
    return found


def _unknown(what: str) -> str:
    rule = "a patched model's positions must reach its apply_rotary_pos_emb"
    remedy = "Something replaced that function after patch_transformers, or undid it while the model ran."
    return message(FUNCTION, rule, f"{what} of them elsewhere", remedy)


class Source:
    """Replaces the method of a model's module that computes cosines and sines.

    While any instance lives, the functions of the modelling module are wrapped. A copy or an unpickled one counts, too; until a
    ``Patched`` takes it over, it has no text.
    """

    def __init__(
        self,
        modelling: str,
        encodings: dict[str | None, dict[str, Rotary]],
        sites: dict[str, Site],
        outputs: int,
        described: str,
        previous: Any = None,
        remap: Any = None,
    ) -> None:
        self.modelling, self.encodings, self.sites, self.outputs = modelling, encodings, sites, outputs
        self.described, self.previous, self.remap = described, previous, remap
        self.module: Any = None
        self.attentions: list[tuple[str, Any, bool]] = []  # that a remap was given to: ``Place`` of _remapping
        self.scaled: list[tuple[str, Any]] = []  # whose softmax scale is another now
        self.method = self.text = ""
        self.release = weakref.finalize(self, _release, modelling, _hold(modelling))  # runs once at most
        self.release.atexit = False

    def forward(self, x: Any, position_ids: Any, layer_type: str | None = None) -> Any:
        """What the layers get in place of (cos, sin), or of complex numbers."""
        rotation = self.table(position_ids, layer_type)
        return rotation if self.outputs == 1 else (rotation, rotation)

    def table(self, position_ids: Any, layer_type: str | None = None) -> Rotation:
        """What GPT-J's layers get in place of their table."""
        encodings, seq_len, offset = self.encodings[layer_type], None, None
        encoding = next(iter(encodings.values()))
        # A graph cannot read a length; on the CPU each operator reads it when it runs
        if encoding.needs_length and not (is_compiling() and position_ids.device.type == "cpu"):
            seq_len = int(position_ids.max()) + 1 if position_ids.numel() else 1
            found = {name: settled(one, seq_len) for name, one in encodings.items()}
            encodings, seq_len = {name: one for name, (one, _) in found.items()}, next(iter(found.values()))[1]
        axes = encoding.position_axes
        if axes is not None and position_ids.dim() == 2:
            position_ids = position_ids.expand(axes, *position_ids.shape)
        if position_ids.dim() > 1 and position_ids.shape[-2] == 1:
            position_ids = position_ids.squeeze(-2)
        if axes is None and not is_compiling() and position_ids.device.type == "cpu":
            offset = _offset(position_ids)
        if offset is not None:
            return Rotation(self.sites, encodings, offset, None, seq_len, self.remap)
        return Rotation(self.sites, encodings, 0, position_ids, seq_len, self.remap)

    def __reduce__(self) -> Any:
        return Source, (self.modelling, self.encodings, self.sites, self.outputs, self.described, self.previous, self.remap)


def settled(encoding: Rotary, seq_len: int) -> tuple[Rotary, int | None]:
    """An encoding that needs no length, if one serves for many lengths: repeated calls are then faster."""
    rule = encoding.scaling
    if isinstance(rule, LongRoPE):
        return _one_sided(encoding, seq_len > rule.original_max_position), None
    if isinstance(rule, DynamicNTK) and seq_len <= rule.original_max_position:
        return dataclasses.replace(encoding, scaling=None), None
    return encoding, seq_len


@functools.lru_cache(maxsize=64)
def _one_sided(encoding: Rotary, is_long: bool) -> Rotary:
    rule: Any = encoding.scaling
    chosen = rule.long_factor if is_long else rule.short_factor
    return dataclasses.replace(encoding, scaling=dataclasses.replace(rule, short_factor=chosen, long_factor=chosen))


def _offset(positions: Tensor) -> Any:
    """The offset, or offsets (B,), if positions (T,) or (B, T) count up by one, which is faster in every layer; else None."""
    count = positions.shape[-1]
    if count == 0 or positions.is_floating_point():
        return None
    first = positions[..., :1]
    if count > 1 and not torch.equal(positions, first + torch.arange(count, dtype=positions.dtype)):
        return None
    lowest, highest = first.aminmax()
    return int(lowest) if bool(lowest == highest) else first[..., 0].contiguous()


def source_of(module: Module, method: str) -> Source | None:
    """What patch_transformers set on this module, or on the one that it is a copy of."""
    found = getattr(module.__dict__.get(method), "__self__", None)
    return found if isinstance(found, Source) else None


# ---- functions that rotate ---------------------------------------------------------------------------------------------------

lock = threading.RLock()  # for what follows; reentrant, as garbage collection may release a source at any point
_holders: dict[str, set[object]] = {}  # sets, not counts: a collection amid an addition would lose one
_wrapped: dict[tuple[str, str], tuple[Any, Any]] = {}  # the wrapper of a function, and the function


def _hold(modelling: str) -> object:
    """Wrap a modelling module's functions, until the result is released."""
    module, holder = importlib.import_module(modelling), object()
    with lock:
        _holders.setdefault(modelling, set()).add(holder)  # first, lest a source that is collected takes the wrappers off
        for name, (current, place) in functions(modelling).items():
            if _wrapped.get((modelling, name), (None, None))[0] is not current:
                wrapper = _wrapper(name, current, place)
                _wrapped[modelling, name] = wrapper, current
                setattr(module, name, wrapper)
    return holder


def _release(modelling: str, holder: object) -> None:
    with lock:
        _holders[modelling].discard(holder)
        if _holders[modelling]:
            return
        module = sys.modules.get(modelling)
        for key in [key for key in _wrapped if key[0] == modelling]:
            wrapper, original = _wrapped.pop(key)
            if getattr(module, key[1], None) is wrapper:  # else it was wrapped again, and passes calls on
                setattr(module, key[1], original)


def _wrapper(name: str, original: Callable[..., Any], place: int) -> Callable[..., Any]:
    """A function that rotates with fastpe where it gets a ``Rotation`` in place of cosines, its argument at this place."""

    @functools.wraps(original)
    def rotate(*given: Any, **options: Any) -> Any:
        rotation = given[place] if len(given) > place else options.get("cos")
        if not isinstance(rotation, Rotation):
            return original(*given, **options)
        heads = next((one for one in given[place + 1 :] if isinstance(one, int)), options.get("unsqueeze_dim"))
        back = any(isinstance(one, Rotation) and one.negated for one in given[place : place + 2])
        return rotation.rotate(name, given[:place], heads, back)

    return rotate
