"""Models of Hugging Face's ``transformers`` that rotate queries and keys with fastpe."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from .._core.checks import describe, message
from ..encodings import Rotary
from ..scaling import DynamicNTK, LongRoPE
from ..verbs import apply_rotary
from . import functional
from ._grad_state import in_forward_mode_or_transform, is_scripted, requires_gradient
from ._memory import wrong_type

__all__ = ["Patched", "patch_transformers"]

Tensor = torch.Tensor
Module = torch.nn.Module
is_compiling = torch.compiler.is_compiling

_FUNCTION = "patch_transformers"


# ---- models that are known ---------------------------------------------------------------------------------------------------


class _Family(NamedTuple):
    """How the models of one modelling module of ``transformers`` rotate.

    ``classes`` are the modules, as ``_plain`` writes them, whose ``method`` computes cosines and sines. ``cut``: q and k hold only the
    channels that rotate.
    """

    modelling: str
    classes: tuple[str, ...]
    method: str = "forward"
    cut: bool = False


def _plain(name: str) -> str:
    """A name without what modules and classes write differently: ``gpt_neox`` and ``GPTNeoX``."""
    return name.replace("_", "").lower()


def _family(name: str) -> _Family:
    modelling = f"transformers.models.{name}.modeling_{name}"
    if name == "gptj":
        return _Family(modelling, ("gptjattention", "gptjflashattention2"), _TABLE, cut=True)
    return _Family(modelling, (_plain(f"{name}RotaryEmbedding"),), cut=name in ("phi", "stablelm"))


_TABLE = "_get_embed_positions"
_NAMES = (
    "cohere cohere2 deepseek_v3 ernie4_5 gemma gemma2 gemma3 glm glm4 gpt_neox gptj granite helium llama mistral mixtral olmo2 phi phi3 "
    "qwen2 qwen2_moe qwen3 qwen3_moe smollm3 stablelm starcoder2"
)
_FAMILIES = {family.modelling: family for family in map(_family, _NAMES.split())}
_ROTATING = ("apply_rotary_pos_emb", "apply_rotary_pos_emb_interleave")


# ---- the public function -----------------------------------------------------------------------------------------------------


def patch_transformers(model: Module) -> Patched:
    """Make a Hugging Face model rotate its queries and keys with fastpe.

    Angles are then exact at any position, no tables of cosines and sines are made, and without gradients q and k are rotated in place.

    Parameters
    ----------
    model : torch.nn.Module
        A model of ``transformers``, or a module that contains one, such as a compiled model or an adapter's. Known are the decoders of
        Llama, Mistral, Mixtral, Qwen2 (2.5), Qwen2-MoE, Qwen3, Qwen3-MoE, Phi, Phi-3 and 4 (LongRoPE too), Gemma, Gemma 2 and 3, GPT-NeoX,
        GPT-J, DeepSeek-V3, Cohere (1, 2), ERNIE 4.5, GLM (4), Granite, Helium, OLMo 2, SmolLM3, StableLM and StarCoder2. All of them
        in the module are patched, even if they have no weights yet (the meta device).

    Returns
    -------
    Patched
        It lists the ``changes``; ``undo()`` undoes them, and so does leaving ``with patch_transformers(model): ...``. Without either the
        model stays patched. Patching a model again changes nothing: ``changes`` is then empty and ``undo()`` does nothing.

    Raises
    ------
    TypeError
        The model is not a module, or contains no model of ``transformers``.
    ValueError
        It contains no known decoder; or its configuration describes other frequencies than it has, for example because ``inv_freq`` was
        changed by hand. KeyError: the configuration lacks what its rule needs. Nothing has been changed.

    Notes
    -----
    The encoding is ``Rotary.from_config`` of the decoder's configuration. Frequencies that ``model.to(torch.bfloat16)`` rounded count as
    equal; fastpe takes the exact ones, and rounds once, to the dtype of q and k.

    Each model has its own encoding. Only ``apply_rotary_pos_emb`` of its modelling module is wrapped for the whole process, as long as any
    patched model lives; calls of other models are passed on. Do not undo while a model runs in another thread.

    A deep copy of a patched model, or a pickled one that was loaded, is patched too; ``patch_transformers`` of the copy takes it over, so
    that it can be undone.

    Rules that depend on the length take the largest position of the call + 1 (on a GPU it is read back, once a call). So does
    ``transformers`` with LongRoPE. Its dynamic NTK keeps the longest length so far, until a call within the original one; fastpe keeps
    nothing, so a step of generation beyond the original length has the frequencies of its own length.

    DeepSeek-V3's code moves rotated pairs to half layout; here they stay interleaved. Scores and logits are the same, cached
    keys are not: fill and use a cache on one side of a patch.

    Without gradients the outputs of the projections are written: a forward hook that keeps one has to clone it. Under autocast q and k
    keep their dtype, where ``transformers`` returns float32.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from fastpe.torch import patch_transformers
    >>> size = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 32}
    >>> model = LlamaForCausalLM(LlamaConfig(**size))
    >>> with patch_transformers(model) as patched:
    ...     print(patched)
    ...     logits = model(torch.tensor([[1, 2, 3]])).logits
    Patched, 2 changes
      model.rotary_emb.forward: Rotary(base=10000.0)
      transformers.models.llama.modeling_llama.apply_rotary_pos_emb
    >>> logits.shape
    torch.Size([1, 3, 32])
    """
    if not isinstance(model, Module):
        raise TypeError(message(_FUNCTION, "model must be a torch.nn.Module", describe(model)))
    with _lock:
        found = list(_known_modules(model))
        if not found:
            _refuse(model)
        patched = Patched()
        try:
            for path, module, family in found:
                patched._take(path, module, family)
        except BaseException:
            patched.undo()
            raise
    return patched


class Patched:
    """What ``patch_transformers`` changed. ``undo()`` puts everything back; so does leaving it as a context manager.

    It keeps no model alive.

    Attributes
    ----------
    changes : tuple of str
        The patched modules, each with its encoding, and the functions that rotate. Empty for a model that was
        patched already, and after ``undo()``.
    """

    def __init__(self) -> None:
        self._taken: list[weakref.ref[_Source]] = []  # weak, so that neither modules nor wrappers live longer because of it

    @property
    def changes(self) -> tuple[str, ...]:
        sources = [source for source, _ in self._living()]
        sites = dict.fromkeys(source.modelling for source in sources)
        return (
            *(source.text for source in sources),
            *(f"{name}.{function}" for name in sites for function in _functions(name)),
        )

    def _living(self) -> list[tuple[_Source, Module]]:
        """What has been set and still is there, and the module of each."""
        sources = [source for one in self._taken if (source := one()) is not None]
        return [(source, module) for source in sources if (module := source.module()) is not None]

    def undo(self) -> None:
        """Put everything back as it was; a second time does nothing.

        Raises
        ------
        RuntimeError
            Something else has replaced a method of the model since. Undo that first.
        """
        with _lock:
            living = self._living()
            for source, module in living:
                if _source_of(module, source.method) is not source:
                    rule = f"{source.method} must be what patch_transformers set"
                    raise RuntimeError(
                        message("Patched.undo", rule, f"another at {source.text}", "Undo that first, then this.")
                    )
            self._taken.clear()
            for source, module in reversed(living):
                delattr(module, source.method)
                if source.previous is not None:
                    setattr(module, source.method, source.previous)
                source.release()  # its wrappers are taken off now, if no other source needs them

    def _take(self, path: str, module: Module, family: _Family) -> None:
        """Patch one module. A copy of a patched one is taken over; one that already has an owner is left alone."""
        source = _source_of(module, family.method)
        if source is None:
            encodings = _encodings(path, module, family)
            source = _Source(family.modelling, encodings, module.__dict__.get(family.method))
            setattr(module, family.method, source.table if family.method == _TABLE else source.forward)
        elif source.text:
            return
        names = ", ".join(_brief(one) if kind is None else f"{kind} {_brief(one)}" for kind, one in source.encodings.items())
        source.text = f"{path or type(module).__name__}.{family.method}: {names}"
        source.module, source.method = weakref.ref(module), family.method
        self._taken.append(weakref.ref(source))

    def __enter__(self) -> Patched:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        return "\n  ".join((f"{type(self).__name__}, {len(self.changes)} changes", *self.changes))

    def __reduce__(self) -> Any:
        rule, remedy = "it cannot be copied or pickled", "Copy the model; patch_transformers of the copy takes it over."
        raise TypeError(message("Patched", rule, "an attempt", remedy))


def _known_modules(model: Module) -> Iterator[tuple[str, Module, _Family]]:
    for path, module in model.named_modules():
        family = _FAMILIES.get(type(module).__module__)
        if family is not None and _plain(type(module).__name__) in family.classes:
            yield path, module, family


def _refuse(model: Module) -> None:
    """Raise the error that says why there is nothing to patch."""
    library = sys.modules.get("transformers.modeling_utils")
    models = [one for one in model.modules() if library is not None and isinstance(one, library.PreTrainedModel)]
    if not models:
        raise wrong_type(_FUNCTION, "model must be, or contain, a model of transformers", model)
    kinds = ", ".join(dict.fromkeys(f"model_type {one.config.model_type!r}" for one in models))
    known = ", ".join(_NAMES.split())
    raise ValueError(message(_FUNCTION, f"model must have a decoder of one of these types: {known}", kinds))


# ---- encodings ---------------------------------------------------------------------------------------------------------------

_TOLERANCE = 1e-5  # relative: float32 powers and divisions of several rules


def _encodings(path: str, module: Any, family: _Family) -> dict[str | None, Rotary]:
    """The encoding for each type of layer (None if there is one for all). ValueError if the module has other frequencies."""
    config = module.config
    by_layer = isinstance(getattr(module, "rope_type", None), Mapping)
    found: dict[str | None, Rotary] = {}
    for kind in sorted(module.rope_type) if by_layer else (None,):
        encoding = Rotary.from_config(config, layer_type=kind)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        _check_frequencies(path or type(module).__name__, module, encoding, head_dim, kind)
        found[kind] = dataclasses.replace(encoding, rotary_dim=None) if family.cut else encoding
    return found


def _brief(encoding: Rotary) -> str:
    """An encoding as text, without default values."""
    fields = ((field.name, getattr(encoding, field.name), field.default) for field in dataclasses.fields(encoding))
    return f"Rotary({', '.join(f'{name}={value!r}' for name, value, default in fields if value != default or name == 'base')})"


def _check_frequencies(name: str, module: Any, encoding: Rotary, head_dim: int, kind: str | None) -> None:
    prefix = "" if kind is None else f"{kind}_"
    lengths: list[int | None] = [None]
    if encoding.scaling is not None and encoding.needs_length:  # the module keeps frequencies of the longest length so far
        lengths += [int(module.max_seq_len_cached), encoding.scaling.original_max_position + 1]  # type: ignore[attr-defined]
    expected = [encoding.frequencies(head_dim, length) for length in lengths]
    if hasattr(module, "embed_positions"):  # GPT-J: a table of sines and cosines, whose row 1 is of the frequencies
        own, factor = module.embed_positions[1].chunk(2)[0], 1.0
        expected = [(np.sin(frequencies), 1.0) for frequencies, _ in expected]
    else:
        own, factor = getattr(module, f"{prefix}inv_freq"), getattr(module, f"{prefix}attention_scaling")
    if own.is_meta:
        return
    limits, found = torch.finfo(own.dtype), own.detach().cpu().double().numpy()
    rtol, atol = max(_TOLERANCE, limits.eps), limits.smallest_normal * limits.eps
    for wanted, wanted_factor in expected:
        if wanted.shape == found.shape and np.allclose(found, wanted, rtol, atol) and abs(factor - wanted_factor) <= _TOLERANCE:
            return
    wanted, wanted_factor = expected[0]
    rule = f"{name} must have the frequencies and attention factor that its configuration describes, {_brief(encoding)}"
    got = f"{found.size} from {found.max():.7g} to {found.min():.7g} and {factor:.7g}"
    text = f"for {wanted.size} from {wanted.max():.7g} to {wanted.min():.7g} and {wanted_factor:.7g}"
    remedy = "Change config.rope_parameters and build the model from that, or leave it unpatched."
    raise ValueError(message(_FUNCTION, rule, f"{got} {text}", remedy))


# ---- what a model's modules return -------------------------------------------------------------------------------------------


class _Rotation:
    """What a model hands to its layers in place of cosines and sines: an encoding, and the positions of this call's rows."""

    shape = (1, 1, 1)  # GPT-J reads the width of its table

    def __init__(self, encoding: Rotary, offset: Any, positions: Any, seq_len: int | None) -> None:
        self.encoding, self.offset, self.positions, self.seq_len = encoding, offset, positions, seq_len

    def rotate(self, q: Any, k: Any, seq_axis: int) -> Any:
        """Rotate q and k: into new tensors if a gradient may be needed, else in place, as they are fresh outputs of projections.

        ``torch.jit.trace`` compares graphs of runs with and without gradients, which must be equal.
        """
        # A graph cannot be traced through the question whether forward mode is on
        new = requires_gradient(q, k) or (not is_compiling() and (in_forward_mode_or_transform() or is_scripted()))
        run = functional.apply_rotary if new else apply_rotary
        return run(q, k, self.encoding, offset=self.offset, positions=self.positions, seq_axis=seq_axis, seq_len=self.seq_len)

    def to(self, *target: Any, device: Any = None, **options: Any) -> _Rotation:
        """Move to another device, if a model's layers are on several. A dtype, meant for cosines, is ignored."""
        if target and device is None:
            device = target[0]
        if not isinstance(device, (str, int, torch.device)):
            return self
        offset, positions = (one.to(device) if isinstance(one, Tensor) else one for one in (self.offset, self.positions))
        return _Rotation(self.encoding, offset, positions, self.seq_len)

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


def _unknown(what: str) -> str:
    rule = "a patched model's positions must reach its apply_rotary_pos_emb"
    remedy = "Something replaced that function after patch_transformers, or undid it while the model ran."
    return message(_FUNCTION, rule, f"{what} of them elsewhere", remedy)


class _Source:
    """Replaces the method of a model's module that computes cosines and sines.

    While any instance lives, the functions of the modelling module are wrapped. A copy or an unpickled one counts, too; until a
    ``Patched`` takes it over, it has no text.
    """

    def __init__(self, modelling: str, encodings: dict[str | None, Rotary], previous: Any = None) -> None:
        self.modelling, self.encodings, self.previous = modelling, encodings, previous
        self.module: Any = None
        self.method = self.text = ""
        self.release = weakref.finalize(self, _release, modelling, _hold(modelling))  # runs once at most
        self.release.atexit = False

    def forward(self, x: Any, position_ids: Any, layer_type: str | None = None) -> tuple[_Rotation, _Rotation]:
        """What the layers get in place of (cos, sin)."""
        rotation = self.table(position_ids, layer_type)
        return rotation, rotation

    def table(self, position_ids: Any, layer_type: str | None = None) -> _Rotation:
        """What GPT-J's layers get in place of their table."""
        encoding, seq_len = self.encodings[layer_type], None
        # A graph cannot read a length; on the CPU each operator reads it when it runs
        if encoding.needs_length and not (is_compiling() and position_ids.device.type == "cpu"):
            encoding, seq_len = _settled(encoding, int(position_ids.max()) + 1 if position_ids.numel() else 1)
        if position_ids.dim() == 2 and position_ids.shape[0] == 1:
            position_ids = position_ids[0]
        if is_compiling() or position_ids.device.type != "cpu":
            return _Rotation(encoding, 0, position_ids, seq_len)
        offset = _offset(position_ids)
        return _Rotation(encoding, 0, position_ids, seq_len) if offset is None else _Rotation(encoding, offset, None, seq_len)

    def __reduce__(self) -> Any:
        return _Source, (self.modelling, self.encodings, self.previous)


def _settled(encoding: Rotary, seq_len: int) -> tuple[Rotary, int | None]:
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


def _source_of(module: Module, method: str) -> _Source | None:
    """What patch_transformers set on this module, or on the one that it is a copy of."""
    found = getattr(module.__dict__.get(method), "__self__", None)
    return found if isinstance(found, _Source) else None


# ---- functions that rotate ---------------------------------------------------------------------------------------------------

_lock = threading.RLock()  # for what follows; reentrant, as garbage collection may release a source at any point
_holders: dict[str, set[object]] = {}  # sets, not counts: a collection amid an addition would lose one
_wrapped: dict[tuple[str, str], tuple[Any, Any]] = {}  # the wrapper of a function, and the function


def _functions(modelling: str) -> list[str]:
    return [name for name in _ROTATING if hasattr(sys.modules[modelling], name)]


def _hold(modelling: str) -> object:
    """Wrap a modelling module's functions, until the result is released."""
    module, holder = importlib.import_module(modelling), object()
    with _lock:
        _holders.setdefault(modelling, set()).add(holder)  # first, lest a source that is collected takes the wrappers off
        for name in _functions(modelling):
            current = getattr(module, name)
            if _wrapped.get((modelling, name), (None, None))[0] is not current:
                wrapper = (_single if _FAMILIES[modelling].method == _TABLE else _pair)(current)
                _wrapped[modelling, name] = wrapper, current
                setattr(module, name, wrapper)
    return holder


def _release(modelling: str, holder: object) -> None:
    with _lock:
        _holders[modelling].discard(holder)
        if _holders[modelling]:
            return
        module = sys.modules.get(modelling)
        for name in _ROTATING:
            wrapper, original = _wrapped.pop((modelling, name), (None, None))
            if wrapper is not None and getattr(module, name, None) is wrapper:  # else it was wrapped again, and passes calls on
                setattr(module, name, original)


def _pair(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def rotate(q: Any, k: Any, cos: Any, *rest: Any, **options: Any) -> Any:
        if not isinstance(cos, _Rotation):
            return original(q, k, cos, *rest, **options)
        heads = next((one for one in rest if isinstance(one, int)), options.get("unsqueeze_dim", 1))  # their axis
        return cos.rotate(q, k, -2 if heads == 1 else -3)

    return rotate


def _single(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def rotate(tensor: Any, sin: Any, cos: Any) -> Any:
        return sin.rotate(tensor, None, -3) if isinstance(sin, _Rotation) else original(tensor, sin, cos)

    return rotate
