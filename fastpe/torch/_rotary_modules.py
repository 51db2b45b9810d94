"""How a model's modules rotate: what their configuration describes, checked against them, and how functions do, found out by a probe."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import re
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from .._core.checks import describe, message
from ..encodings import Rotary
from . import functional

Tensor = torch.Tensor
FUNCTION = "patch_transformers"


# ---- encodings ---------------------------------------------------------------------------------------------------------------

_TOLERANCE = 1e-5  # relative: float32 powers and divisions of several rules


def described_by(path: str, module: Any) -> dict[str | None, tuple[Rotary, int]]:
    """For each type of layer (None if there is one for all) the encoding, and how many channels rotate.

    ValueError if the module has other frequencies than its configuration describes.
    """
    by_layer = isinstance(getattr(module, "rope_type", None), Mapping)
    found: dict[str | None, tuple[Rotary, int]] = {}
    for kind in sorted(module.rope_type) if by_layer else (None,):
        encoding = _read(module.config, kind)
        count = _check_frequencies(path or type(module).__name__, module, encoding, kind)
        found[kind] = encoding, 2 * count
    return found


def _read(config: Any, kind: str | None) -> Rotary:
    """The encoding that a configuration describes, where pairs are seen later.

    What is refused for its type is read without it, as the frequencies are compared and the functions probed: nanochat turns the other way.
    """
    try:
        return Rotary.from_config(config, layer_type=kind, interleaved=False)
    except ValueError:
        plain = {name: value for name, value in config.to_dict().items() if name != "model_type"}
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return Rotary.from_config(plain, layer_type=kind, interleaved=False)
        raise


def chosen(own: Rotary, kind: str | None, given: Any, scaling: Any) -> Rotary:
    """The encoding for a type of layer, as the caller wants it."""
    given, scaling = (one.get(kind) if isinstance(one, Mapping) else one for one in (given, scaling))
    if given is not None and (not isinstance(given, Rotary) or given.position_axes != own.position_axes):
        rule = "encoding must be a Rotary, with sections as the model's own, or None"
        raise TypeError(message(FUNCTION, rule, describe(given), f"The model's own is {brief(own)}."))
    encoding = own if given is None else given
    return encoding if scaling is None else dataclasses.replace(encoding, scaling=scaling, attention_factor=None)


def brief(encoding: Rotary, kind: str | None = None) -> str:
    """An encoding as text, without default values, after the type of layer that it is for."""
    fields = ((field.name, getattr(encoding, field.name), field.default) for field in dataclasses.fields(encoding))
    shown = (f"{name}={value!r}" for name, value, default in fields if value != default or name == "base")
    return f"{'' if kind is None else f'{kind} '}Rotary({', '.join(shown)})"


def _check_frequencies(name: str, module: Any, encoding: Rotary, kind: str | None) -> int:
    """How many frequencies a module has, which must be those of the encoding."""
    prefix, factor = "" if kind is None else f"{kind}_", 1.0
    is_table = hasattr(module, "embed_positions")  # GPT-J: sines and cosines, whose row 1 is of the frequencies
    if is_table:
        own: Any = module.embed_positions[1].chunk(2)[0]
    else:
        own, factor = getattr(module, f"{prefix}inv_freq"), getattr(module, f"{prefix}attention_scaling", 1.0)
    count: int = own.numel()
    if own.is_meta:
        return count
    lengths: list[int | None] = [None]
    if encoding.scaling is not None and encoding.needs_length:  # the module keeps frequencies of the longest length so far
        lengths += [int(module.max_seq_len_cached), encoding.scaling.original_max_position + 1]  # type: ignore[attr-defined]
    whole = dataclasses.replace(encoding, rotary_dim=None, rotary_offset=0)
    expected = [whole.frequencies(2 * count, length) for length in lengths]
    if is_table:
        expected = [(np.sin(frequencies), 1.0) for frequencies, _ in expected]
    limits, found = torch.finfo(own.dtype), own.detach().cpu().double().numpy()
    rtol, atol = max(_TOLERANCE, limits.eps), limits.smallest_normal * limits.eps
    for wanted, wanted_factor in expected:
        if np.allclose(found, wanted, rtol, atol) and abs(factor - wanted_factor) <= _TOLERANCE:
            return count
    if not (np.isfinite(found).all() and found.max() > 0 and (np.diff(found) <= 0).all() and found[-1] >= 0):
        return count  # memory that nothing was written to, after to_empty: the configuration says what it would be
    wanted, wanted_factor = expected[0]
    rule = f"{name} must have the frequencies and attention factor that its configuration describes, {brief(encoding)}"
    got = f"{found.size} from {found.max():.7g} to {found.min():.7g} and {factor:.7g}"
    text = f"for {wanted.size} from {wanted.max():.7g} to {wanted.min():.7g} and {wanted_factor:.7g}"
    remedy = "Change config.rope_parameters and build the model from that, or leave it unpatched."
    raise ValueError(message(FUNCTION, rule, f"{got} {text}", remedy))


# ---- how functions rotate ----------------------------------------------------------------------------------------------------


class Site(NamedTuple):
    """How one function of a modelling module rotates: found out by a probe, not by its name."""

    interleaved: bool
    seq_axis: int
    at_end: bool  # whether the channels that rotate are the last ones
    back: bool  # whether they rotate the other way, as nanochat's do


def laid_out(encoding: Rotary, width: int, sites: dict[str, Site]) -> dict[str, Rotary]:
    """An encoding as each function has it."""
    return {name: dataclasses.replace(encoding, rotary_dim=width, interleaved=site.interleaved) for name, site in sites.items()}


_ROTATES = re.compile(r"_?apply_\w*(rot|rope)")


def functions(modelling: str) -> dict[str, tuple[Any, int]]:
    """The functions of a modelling module that take cosines and sines, and at which place."""
    found = {}
    for name, function in vars(sys.modules[modelling]).items():
        if _ROTATES.match(name) and inspect.isfunction(function):
            parameters = inspect.signature(function).parameters
            names = list(parameters)
            place = next((names.index(one) for one in ("cos", "freqs_cis") if one in names), 0)
            if "sin" in names:
                place = min(place, names.index("sin"))  # GPT-J's comes first
            if any(one.kind is one.VAR_POSITIONAL for one in parameters.values()):  # somebody's wrapper
                place = 2
            if place in (1, 2):
                found[name] = function, place
    return found


def sites_of(path: str, module: Any, described: dict[str | None, tuple[Rotary, int]]) -> tuple[dict[str, Site], int]:
    """How each function of its modelling module rotates with what this module makes, and of how many tensors that consists.

    ValueError if none rotates as fastpe does.
    """
    kind, (encoding, width) = next(iter(described.items()))
    found, candidates = {}, functions(type(module).__module__)
    with torch.device("cpu"), torch.no_grad():
        made, positions = made_by(module, kind, encoding, width)
        for name, (function, place) in candidates.items():
            site = _probe(inspect.unwrap(function), place, made, positions, dataclasses.replace(encoding, rotary_dim=width))
            if site is not None:
                found[name] = site
    if not found:
        rule = (
            f"a function beside {path or type(module).__name__} must rotate by its cosines and sines as {brief(encoding)} does"
        )
        raise ValueError(message(FUNCTION, rule, ", ".join(candidates) or "none"))
    return found, len(made)


def made_by(module: Any, kind: str | None, encoding: Rotary, width: int) -> tuple[Any, Tensor]:
    """What a new module of the same configuration makes of some positions, and these."""
    positions = torch.tensor([[0, 1, 2, 5, 11, 3]])
    if hasattr(module, "embed_positions"):
        angles = positions[0, :, None] * torch.from_numpy(encoding.frequencies(width)[0]).float()
        return (angles.sin()[None], angles.cos()[None]), positions[0]
    compute, options = type(module)(module.config), {} if kind is None else {"layer_type": kind}
    several = torch.stack([(positions * (axis + 1)) % 13 for axis in range(encoding.position_axes or 3)])
    made, other = (_tried(compute, torch.zeros(1, 6, 8), one, **options) for one in (positions, several))
    if encoding.position_axes is not None and other is not None:
        return other, several[:, 0]
    if made is None or (other is not None and other[0].shape == made[0].shape):
        rule = f"{type(module).__name__} must make cosines and sines of positions with as many axes as {brief(encoding)} has"
        raise ValueError(message(FUNCTION, rule, "others"))
    return made, positions[0]


def _probe(function: Any, place: int, made: tuple[Any, ...], positions: Tensor, encoding: Rotary) -> Site | None:
    """How a function rotates random queries and keys; None if in no way that fastpe has, or not these."""
    width, draw = encoding.rotary_dim or 0, torch.Generator().manual_seed(0)
    where: Any = {"positions": positions, "seq_len": int(positions.max()) + 1}
    for seq_axis, heads in ((-2, (1, 2, 6)), (-3, (1, 6, 2))):
        for extra in (8, 0):  # channels that do not rotate
            given = [torch.randn(*heads, width + extra, generator=draw) for _ in range(place)]
            theirs = _tried(function, *given, *made)
            if theirs is None or [getattr(one, "shape", None) for one in theirs] != [one.shape for one in given]:
                continue
            for interleaved, at_end, back in itertools.product((False, True), repeat=3):
                own = special(dataclasses.replace(encoding, interleaved=interleaved), width + extra, at_end, back)
                options = {**where, "seq_axis": seq_axis, "inverse": back}
                ours = [functional.apply_rotary(one, None, own, **options) for one in given]
                if _same_scores(ours, theirs, seq_axis):
                    return Site(interleaved, seq_axis, at_end, back)
            return None
    return None


def _tried(function: Any, *given: Tensor, **options: Any) -> tuple[Any, ...] | None:
    """What a function makes of copies of tensors; None if it takes other shapes."""
    try:
        found = function(*(one.clone() for one in given), **options)
    except Exception:
        return None
    return found if isinstance(found, tuple) else (found,)


def _same_scores(ours: list[Tensor], theirs: Any, seq_axis: int) -> bool:
    """Whether attention is the same: a function may leave channels in another order, the same for queries and keys."""
    found, wanted = (torch.movedim(torch.stack(pair), seq_axis, -2) for pair in (ours, theirs))
    own, scores = (one[0] @ one[-1].mT for one in (found, wanted))
    return torch.allclose(own, scores, rtol=1e-4, atol=1e-4)


@functools.lru_cache(maxsize=256)
def special(encoding: Rotary, head_dim: int, at_end: bool, back: bool) -> Rotary:
    """An encoding of the last channels; or one for negated sines, which multiply by the attention factor: ``inverse`` divides by it."""
    offset = head_dim - (encoding.rotary_dim or head_dim) if at_end else 0
    factor = 1 / encoding.frequencies(head_dim, 1)[1] if back else encoding.attention_factor
    return dataclasses.replace(encoding, rotary_offset=offset, attention_factor=factor)
