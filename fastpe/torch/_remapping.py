"""Attention of ``transformers`` with the distances of a ``Remap``: keys are cached unrotated, and rotated when they are attended to."""

from __future__ import annotations

import functools
import importlib
import inspect
import weakref
from collections.abc import Iterator
from typing import Any

import torch

from ..encodings import Rotary
from ._remapped_attention import GIVEN, Passing, Reached, attend, refused
from ._rotary_modules import laid_out, made_by, special
from ._rotation import Rotation, rotated

Tensor = torch.Tensor
NAME = "fastpe_remap"  # of the attention, in the table of transformers


class View:
    """A configuration that names another attention; all else is what it is."""

    _attn_implementation = NAME

    def __init__(self, config: Any, at_end: bool) -> None:
        self.config, self.at_end = config, at_end
        # Whoever does not name it is not concerned; a model that was loaded needs it, too
        importlib.import_module("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS.register(NAME, _attention())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)

    def __reduce__(self) -> Any:
        return View, (self.config, self.at_end)


@functools.lru_cache(maxsize=1)
def _attention() -> Any:
    """``attend`` outside of graphs. Made late: it loads PyTorch's compiler, which would be a third of the import of fastpe.torch."""
    return torch.compiler.disable(attend)  # type: ignore[no-untyped-call]


# ---- a model's modules --------------------------------------------------------------------------------------------------------


def attentions(model: Any, modelling: str) -> Iterator[tuple[str, Any]]:
    """The attention modules of a modelling module that get cosines and sines."""
    for path, module in model.named_modules():
        parameters = inspect.signature(type(module).forward).parameters
        if type(module).__module__ == modelling and "position_embeddings" in parameters and hasattr(module, "is_causal"):
            yield path, module


def replace(module: Any, at_end: bool) -> None:
    """Let a module attend by a remap; nothing happens to one that does."""
    if not isinstance(module.config, View):
        module.config = View(module.config, at_end)
        module.register_forward_pre_hook(_hand_over, with_kwargs=True)


def restore(module: Any) -> None:
    """Take that back; nothing happens to one that was not, or is gone."""
    if module is not None and isinstance(module.config, View):
        module.config = module.config.config
        hooks = module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is _hand_over]:
            del hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def _hand_over(module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Before an attention module runs: give it a rotation that passes, also as the keyword that its attention gets."""
    given = [*arguments, *options.values()]
    found = next(
        (one for some in given for one in (some if isinstance(some, tuple) else ()) if isinstance(one, Rotation)), None
    )
    if found is None or found.remap is None:
        return None
    passing = Passing(found.sites, found.encodings, found.offset, found.positions, found.seq_len, found.remap)
    passing.rotation = found
    cache = next((one for one in given if hasattr(one, "get_seq_length")), None)
    if cache is not None:
        passing.past = int(cache.get_seq_length(module.layer_idx))

    def replaced(value: Any) -> Any:
        return tuple(passing if one is found else one for one in value) if isinstance(value, tuple) else value

    options = {name: replaced(value) for name, value in options.items()}
    return tuple(map(replaced, arguments)), options | {GIVEN: passing}


# ---- which modules can -------------------------------------------------------------------------------------------------------


Place = tuple[str, Any, bool]  # path of an attention module, weak reference to it, whether its last channels rotate


def places(model: Any, module: Any, source: Any, own: dict[str | None, tuple[Rotary, int]]) -> list[Place]:
    """The attention modules that a remap changes; ValueError if it cannot change one of them. ``own`` is what the model describes."""
    kind, (encoding, width) = next(iter(own.items()))
    found = list(attentions(model, source.modelling))
    if not found or len(own) > 1 or encoding.position_axes is not None:
        several = f"{len(own)} types of layers and {encoding.position_axes or 1} axes of positions"
        raise refused("model", several if found else "no attention module that gets position_embeddings")
    with torch.device("cpu"):
        made, positions = made_by(module, kind, encoding, width)
    described, known = laid_out(encoding, width, source.sites), dict[type, bool]()
    for path, one in found:
        problem = _problem(one)
        if problem is not None:
            raise refused(path, problem)
        if type(one) not in known and (at_end := _probe(one, source.sites, described, made, positions)) is not None:
            known[type(one)] = at_end
    for path, one in found:
        if type(one) not in known:
            raise refused(path, "attention that is its own code, or attends by more than what its positions rotate")
    return [(path, weakref.ref(one), known[type(one)]) for path, one in found]


def replaced(model: Any, modelling: str) -> list[Place]:
    """The attention modules of a copy that were changed before it was made."""
    found = attentions(model, modelling)
    return [(path, weakref.ref(one), one.config.at_end) for path, one in found if isinstance(one.config, View)]


def _problem(module: Any) -> str | None:
    """Why a remap cannot be of this attention, as far as its settings say."""
    config = module.config
    kind = getattr(config, "_attn_implementation", None) or "eager"
    if kind not in ("eager", "sdpa"):
        return f"attn_implementation={kind!r}"
    if not module.is_causal:
        return "attention that is not causal"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return f"layers of type {', '.join(sorted(kinds))}"
    for name in ("sliding_window", "attention_chunk_size"):
        value = getattr(module, name, None) or getattr(config, name, None)
        if value is not None and getattr(config, "use_sliding_window", True) is not False:
            return f"{name}={value}"
    return None


def _probe(module: Any, sites: Any, own: dict[str, Any], made: tuple[Any, ...], positions: Tensor) -> bool | None:
    """Whether a new module of its kind rotates its heads' last channels; None if not all that it attends by is rotated, as fastpe does."""
    passing = Passing(sites, own, 0, positions, int(positions.max()) + 1)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        try:
            one = type(module)(module.config, module.layer_idx).float().eval()
            one.config = View(one.config, False)
            hidden = torch.randn(1, positions.shape[-1], module.config.hidden_size)
            taken, wanted = (_reach(one, hidden, given, passing) for given in ((passing,) * len(made), made))
        except Exception:  # of whatever kind: its code is its own
            return None
    if passing.asked is None or passing.count != 2:
        return None
    name, back = passing.asked
    for at_end in (False, True):
        encoding = special(own[name], taken[0].shape[-1], at_end, back)
        ours = [rotated(x, bool(is_key), encoding, back, positions=positions) for is_key, x in enumerate(taken)]
        found, expected = (q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT for q, k in (ours, wanted))
        if torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
            return at_end
    return None


def _reach(module: Any, hidden: Tensor, given: tuple[Any, ...], passing: Passing) -> Any:
    """The queries and keys with which a module calls its attention."""
    try:
        module(hidden, position_embeddings=given if len(given) > 1 else given[0], attention_mask=None, **{GIVEN: passing})
    except Reached as reached:
        return reached.args[0]
    return None
