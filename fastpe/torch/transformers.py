"""Models of Hugging Face's ``transformers`` that rotate queries and keys with fastpe."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._core.checks import describe, message
from . import _softmax_scale as softmax
from ._memory import wrong_type
from ._remapped_attention import called, checked
from ._remapping import attentions, places, replace, replaced, restore
from ._rotary_modules import FUNCTION, brief, chosen, described_by, functions, laid_out, sites_of
from ._rotation import Source, lock, source_of

if TYPE_CHECKING:
    from ..encodings import Rotational
    from ..positions import Remap
    from ..scaling import Scaling

__all__ = ["Patched", "patch_transformers"]

Module = torch.nn.Module
_TABLE = "_get_embed_positions"  # of GPT-J's attention


# ---- the public function -----------------------------------------------------------------------------------------------------


def patch_transformers(
    model: Module,
    encoding: Rotational | Mapping[str, Rotational] | None = None,
    *,
    scaling: Scaling | Mapping[str, Scaling] | None = None,
    remap: Callable[[Any, Any], Remap] | None = None,
) -> Patched:
    """Make a Hugging Face model rotate its queries and keys with fastpe.

    Angles are then exact at any position, no tables of cosines and sines are made, and without gradients q and k are rotated in place.

    Parameters
    ----------
    model : torch.nn.Module
        A model of ``transformers``, or a module that contains one, such as a compiled model or an adapter's. Every module that makes
        cosines and sines of positions, ``forward(x, position_ids)``, is patched, even if it has no weights yet (the meta device), and
        GPT-J's attention. How the functions beside it rotate is found out by rotating random queries and keys both ways.
    encoding
        A ``Rotary`` in place of the one that the configuration describes; its pairs and channels are the model's. With several types of
        layers also a dict of them, by type.
    scaling
        A rule of ``fastpe.scaling`` in place of the configuration's own, to stretch the model; or a dict, by type of layer. Where its
        ``softmax_scale`` is another than the model's (``YaRN`` with ``mscale_all_dim``), the ``scaling`` of its attention follows.
    remap : callable, optional
        ``remap(queries, keys)`` makes a ``fastpe.positions.Remap`` of (T,) positions, such as
        ``functools.partial(fastpe.positions.self_extend, group=8, window=1024)``: attention then takes its distances.

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
        No module of it makes cosines and sines of positions, or no function rotates by them as fastpe does; or its configuration describes
        other frequencies than it has, for example because ``inv_freq`` was changed by hand. With a remap: its attention is not causal and
        over all keys (a sliding window, a softcap), or not that of ``transformers``, eager or sdpa, which calls functions of
        ``ALL_ATTENTION_FUNCTIONS``. KeyError: the configuration lacks what its rule needs. Nothing has been changed.

    Notes
    -----
    The encoding is ``Rotary.from_config`` of the module's configuration, and not of its ``inv_freq``, which is garbage after
    ``to_empty`` (it belongs to no state dict). Frequencies that ``model.to(torch.bfloat16)`` rounded count as
    equal; fastpe takes the exact ones, and rounds once, to the dtype of q and k.

    Each model has its own encoding. Only ``apply_rotary_pos_emb`` of its modelling module is wrapped for the whole process, as long as any
    patched model lives; calls of other models are passed on. Do not undo while a model runs in another thread.

    A deep copy of a patched model, or a pickled one that was loaded, is patched too; ``patch_transformers`` of the copy takes it over, so
    that it can be undone.

    Rules that depend on the length take the largest position of the call + 1 (on a GPU it is read back, once a call). So does
    ``transformers`` with LongRoPE. Its dynamic NTK keeps the longest length so far, until a call within the original one; fastpe keeps
    nothing, so a step of generation beyond the original length has the frequencies of its own length.

    Some code (DeepSeek-V3's) moves rotated pairs to half layout; here they stay interleaved. Scores and logits are the same, cached
    keys are not: fill and use a cache on one side of a patch.

    With a remap, keys are cached as they are; attention rotates them and the queries for each branch, and computes 1024 queries at a time.
    Fill and use a cache on one side of such a patch. A text within the first branch takes PyTorch's attention as before, a longer one
    two to three times as long with two branches. Keys of earlier calls are taken to stand one after another, as far as the mask shows
    them. Attention weights are not returned (``output_attentions``), and ``torch.compile`` breaks its graph at each attention.

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

    Stretch it to four times the length:

    >>> import fastpe
    >>> patch_transformers(model, scaling=fastpe.scaling.Linear(4.0)).changes[0]
    'model.rotary_emb.forward: Rotary(base=10000.0, scaling=Linear(factor=4.0))'
    """
    if not isinstance(model, Module):
        raise TypeError(message(FUNCTION, "model must be a torch.nn.Module", describe(model)))
    if remap is not None:
        checked(remap, np.arange(2), np.arange(2))  # raises if it is of another kind
    with lock:
        found = list(_rotary_modules(model))
        if not found:
            _refuse(model)
        patched = Patched()
        try:
            for path, module, method in found:
                patched._take(model, path, module, method, (encoding, scaling, remap))
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
        self._taken: list[weakref.ref[Source]] = []  # weak, so that neither modules nor wrappers live longer because of it

    @property
    def changes(self) -> tuple[str, ...]:
        sources = [source for source, _ in self._living()]
        sites = dict.fromkeys(source.modelling for source in sources)
        return (
            *(source.text for source in sources),
            *(f"{path}: {called(source.remap)}" for source in sources for path, _, _ in source.attentions),
            *(f"{path}.scaling: {one().scaling:.6g}" for source in sources for path, one in source.scaled),
            *(f"{name}.{function}" for name in sites for function in functions(name)),
        )

    def _living(self) -> list[tuple[Source, Module]]:
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
        with lock:
            living = self._living()
            for source, module in living:
                if source_of(module, source.method) is not source:
                    rule = f"{source.method} must be what patch_transformers set"
                    raise RuntimeError(
                        message("Patched.undo", rule, f"another at {source.text}", "Undo that first, then this.")
                    )
            self._taken.clear()
            for source, module in reversed(living):
                delattr(module, source.method)
                if source.previous is not None:
                    setattr(module, source.method, source.previous)
                for _, attention, _ in source.attentions:
                    restore(attention())
                for _, attention in source.scaled:
                    softmax.restore(attention())
                source.release()  # its wrappers are taken off now, if no other source needs them

    def _take(self, model: Module, path: str, module: Module, method: str, asked: tuple[Any, Any, Any]) -> None:
        """Patch one module. A copy of a patched one is taken over; one that already has an owner is left alone."""
        source, own = source_of(module, method), {}
        if source is None:
            given, scaling, remap = asked
            own = described_by(path, module)
            sites, outputs = sites_of(path, module, own)
            described = {kind: (chosen(one, kind, given, scaling), width) for kind, (one, width) in own.items()}
            encodings = {kind: laid_out(one, width, sites) for kind, (one, width) in described.items()}
            first = next(iter(sites.values()))
            shown = (
                brief(dataclasses.replace(one, interleaved=first.interleaved), kind) for kind, (one, _) in described.items()
            )
            previous = module.__dict__.get(method)
            source = Source(type(module).__module__, encodings, sites, outputs, ", ".join(shown), previous, remap)
            if remap is not None:
                source.attentions = places(model, module, source, own)
            ratio = softmax.by_what((one for one, _ in own.values()), (one for one, _ in described.values()))
            if ratio != 1:
                softmax.scaled(_beside(path, model, source), ratio)
            setattr(module, method, source.table if method == _TABLE else source.forward)
        elif source.text:
            return
        elif source.remap is not None:
            source.attentions = replaced(model, source.modelling)
        source.text = f"{path or type(module).__name__}.{method}: {source.described}"
        source.module, source.method = weakref.ref(module), method
        source.scaled = [(name, weakref.ref(one)) for name, one in softmax.changed(_beside(path, model, source))]
        self._taken.append(weakref.ref(source))
        for _, attention, at_end in source.attentions:
            replace(attention(), at_end)

    def __enter__(self) -> Patched:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        return "\n  ".join((f"{type(self).__name__}, {len(self.changes)} changes", *self.changes))

    def __reduce__(self) -> Any:
        rule, remedy = "it cannot be copied or pickled", "Copy the model; patch_transformers of the copy takes it over."
        raise TypeError(message("Patched", rule, "an attempt", remedy))


def _beside(path: str, model: Module, source: Source) -> Iterator[tuple[str, Any]]:
    """The attention modules that a module which makes cosines and sines serves: those of its parent."""
    parent = path.rpartition(".")[0]
    return ((name, one) for name, one in attentions(model, source.modelling) if f".{name}".startswith(f".{parent}"))


def _rotary_modules(model: Module) -> Iterator[tuple[str, Module, str]]:
    """The modules of a model that make cosines and sines of positions, and the method that does."""
    for path, module in model.named_modules():
        kind = type(module)
        if hasattr(kind, _TABLE) and hasattr(module, "embed_positions"):
            yield path, module, _TABLE
        elif hasattr(module, "config") and list(inspect.signature(kind.forward).parameters)[1:] in _FORWARDS:
            yield path, module, "forward"


_FORWARDS = (["x", "position_ids"], ["x", "position_ids", "layer_type"])


def _refuse(model: Module) -> None:
    """Raise the error that says why there is nothing to patch."""
    library = sys.modules.get("transformers.modeling_utils")
    models = [one for one in model.modules() if library is not None and isinstance(one, library.PreTrainedModel)]
    if not models:
        raise wrong_type(FUNCTION, "model must be, or contain, a model of transformers", model)
    kinds = ", ".join(dict.fromkeys(f"model_type {one.config.model_type!r}" for one in models))
    rule = "model must have modules that make cosines and sines of positions, with forward(x, position_ids)"
    raise ValueError(message(FUNCTION, rule, kinds))
