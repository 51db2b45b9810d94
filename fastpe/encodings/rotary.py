"""The rotary encoding: its frequencies, its pairs, and what models' configurations say of it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import checks, phase, scaling
from ..checks import message

SECTION_LAYOUTS = ("contiguous", "interleaved")


@dataclass(frozen=True)
class Rotary:
    """Rotations of pairs of channels by an angle proportional to the position, for queries and keys.

    ``(u, v) -> m (u cos a - v sin a, v cos a + u sin a)``, ``a = p * w_i``, ``w_i = base^(-2i/d)`` for i = 0 ... d/2 - 1, d =
    ``rotary_dim``, m the attention factor.

    Parameters
    ----------
    base
        A finite number > 0: 10 000 in most models, 500 000 in Llama 3. Models call it ``rope_theta``.
    interleaved
        False: pair i is channels i and i + d/2 (GPT-NeoX, and all Llama-like models in Hugging Face's layout). True: channels 2i and
        2i + 1 (the paper, GPT-J, Meta's Llama). The weights of one do not fit the other.
    rotary_dim
        How many channels rotate; even. None: all from ``rotary_offset`` on.
    rotary_offset
        The first channel that rotates. Others are left as they are.
    scaling
        A rule of ``fastpe.scaling`` for contexts longer than those trained on, or None.
    sections
        For positions with several axes (time, height, width): how many of the d/2 frequencies each axis has. Their sum is d/2.
    section_layout
        ``"contiguous"``: the first axis has the first frequencies, and so on (Qwen2-VL). ``"interleaved"``: frequency i has axis
        i mod A while that axis still has some left, else the first axis (Qwen3-VL).
    attention_factor
        m, in place of the scaling rule's own.
    xpos_scale_base
        xPos: queries are also multiplied by ``z_i^(p/xpos_scale_base)`` and keys divided by it, ``z_i = (2i/d + 0.4) / 1.4``; 512 in
        the paper. The centre is position 0, so that cached keys stay valid.

    References
    ----------
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021 (arXiv 2104.09864). Sun et al., "A
    Length-Extrapolatable Transformer", 2022 (arXiv 2212.10554), for xPos.
    """

    base: float = 10000.0
    interleaved: bool = False
    rotary_dim: int | None = None
    rotary_offset: int = 0
    scaling: scaling.Scaling | None = None
    sections: tuple[int, ...] | None = None
    section_layout: str = "contiguous"
    attention_factor: float | None = None
    xpos_scale_base: float | None = None

    def __post_init__(self) -> None:
        found: dict[str, Any] = {"base": checks.positive_number("Rotary", "base", self.base)}
        checks.boolean("Rotary", "interleaved", self.interleaved)
        if self.rotary_dim is not None:
            found["rotary_dim"] = checks.width("Rotary", "rotary_dim", self.rotary_dim)
            if found["rotary_dim"] % 2:
                raise ValueError(message("Rotary", "rotary_dim must be even", str(found["rotary_dim"])))
        found["rotary_offset"] = checks.integer("Rotary", "rotary_offset", self.rotary_offset)
        if found["rotary_offset"] < 0:
            raise ValueError(message("Rotary", "rotary_offset must be 0 or more", str(found["rotary_offset"])))
        if self.scaling is not None and not isinstance(self.scaling, scaling.Scaling):
            raise TypeError(
                message("Rotary", "scaling must be a rule of fastpe.scaling or None", checks.describe(self.scaling))
            )
        if self.sections is not None:
            found["sections"] = _sections(self.sections)
        checks.one_of("Rotary", "section_layout", self.section_layout, SECTION_LAYOUTS)
        for name in ("attention_factor", "xpos_scale_base"):
            if getattr(self, name) is not None:
                found[name] = checks.positive_number("Rotary", name, getattr(self, name))
        for name, value in found.items():
            object.__setattr__(self, name, value)

    @property
    def needs_length(self) -> bool:
        """Whether the frequencies depend on the length of the sequence."""
        return self.scaling is not None and self.scaling.needs_length

    def frequencies(self, head_dim: int, seq_len: int | None = None) -> tuple[npt.NDArray[np.float64], float]:
        """Return the inverse frequencies for a head width and the attention factor.

        Parameters
        ----------
        head_dim
            Width D of a head.
        seq_len
            Length of the sequence, for a rule that depends on it; None is the length that the model was trained on.

        Returns
        -------
        frequencies : (rotary_dim / 2,) float64
            Radians a position, rounded once.
        attention_factor : float

        Examples
        --------
        >>> import fastpe
        >>> fastpe.Rotary().frequencies(4)
        (array([1.  , 0.01]), 1.0)
        >>> fastpe.Rotary(scaling=fastpe.scaling.Linear(4)).frequencies(4)
        (array([0.25  , 0.0025]), 1.0)
        """
        checks.width("Rotary.frequencies", "head_dim", head_dim)
        checks.sequence_length("Rotary.frequencies", seq_len)
        plan = self.plan(head_dim, seq_len)
        return plan.angular.copy(), plan.attention_factor

    def plan(self, head_dim: int, seq_len: int | None = None) -> RotaryPlan:
        """Return what the kernels need; cached by value."""
        return _plan(self, head_dim, seq_len if self.needs_length else None)

    def width(self, head_dim: int) -> int:
        """How many channels of a head rotate."""
        found = head_dim - self.rotary_offset if self.rotary_dim is None else self.rotary_dim
        if self.rotary_offset + found > head_dim or found < 2:
            got = f"rotary_dim {self.rotary_dim} and rotary_offset {self.rotary_offset} for a head of {head_dim}"
            raise ValueError(message("Rotary", "the channels that rotate must lie in the head", got))
        if found % 2:
            got = f"{found} of a head of {head_dim}"
            raise ValueError(message("Rotary", "the number of channels that rotate must be even", got, "Give rotary_dim."))
        return found

    @classmethod
    def from_config(cls, config: Any, *, layer_type: str | None = None, interleaved: bool = False) -> Rotary:
        """Return the encoding that a Hugging Face configuration describes.

        Parameters
        ----------
        config : a configuration object or its dict
            ``rope_parameters`` or ``rope_scaling`` (None for none), ``rope_theta``, ``head_dim`` or ``hidden_size`` and
            ``num_attention_heads``, ``partial_rotary_factor`` and ``max_position_embeddings`` are read, each where its rule needs it.
        layer_type
            Which of the dicts, where ``rope_parameters`` has one for each type of layer.
        interleaved
            The configuration does not say it; most models' code in Hugging Face's library has False.

        Raises
        ------
        KeyError
            The rule needs a key that is not there; the message names it.
        ValueError
            The rule (``rope_type``) is unknown; the message lists the known ones.

        Notes
        -----
        As Hugging Face does: ``yarn`` ignores ``mscale`` without ``mscale_all_dim``; a missing ``factor`` of ``yarn`` and ``longrope`` is
        ``max_position_embeddings / original_max_position_embeddings``; ``dynamic`` scales from ``max_position_embeddings``. Where it warns
        (a factor below 1, keys that no rule knows), the factor is refused and the keys are ignored.

        Examples
        --------
        >>> import fastpe
        >>> config = {"rope_theta": 10000.0, "head_dim": 128, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
        >>> fastpe.Rotary.from_config(config)
        Rotary(base=10000.0, interleaved=False, rotary_dim=None, rotary_offset=0, scaling=Linear(factor=4.0), sections=None, ...
        """
        return _from_config(cls, _Config(config, layer_type), interleaved)


def _sections(sections: Any) -> tuple[int, ...]:
    if not isinstance(sections, (tuple, list)) or len(sections) < 2:
        raise TypeError(message("Rotary", "sections must be a sequence of 2 or more integers", checks.describe(sections)))
    found = tuple(checks.integer("Rotary", f"sections[{i}]", size) for i, size in enumerate(sections))
    if min(found) < 0:
        raise ValueError(message("Rotary", "sections must be 0 or more", str(found)))
    return found


@dataclass(frozen=True, eq=False)
class RotaryPlan:
    """Exact frequencies and layout for one head width; F = rotary_dim / 2. ``axes`` is the axis of each frequency's position."""

    key: tuple[Rotary, int, int | None]
    head_dim: int
    rotary_dim: int
    angular: npt.NDArray[np.float64]
    turns: phase.Turns
    axes: npt.NDArray[np.int64]
    attention_factor: float


@functools.lru_cache(maxsize=128)
def _plan(encoding: Rotary, head_dim: int, seq_len: int | None) -> RotaryPlan:
    width = encoding.width(head_dim)
    rule = encoding.scaling if encoding.scaling is not None else scaling.Linear(1.0)
    with phase.precise():
        frequencies, factor = rule.apply(scaling.Plain(encoding.base, width, seq_len))
        try:
            angular, turns = phase.rounded(frequencies)
        except OverflowError as error:
            text = f"{error} for {encoding} and a head of {head_dim}"
            raise ValueError(message("Rotary", "frequencies must lie below 2^32 turns a position", text)) from None
    return RotaryPlan(
        key=(encoding, head_dim, seq_len),
        head_dim=head_dim,
        rotary_dim=width,
        angular=angular,
        turns=turns,
        axes=_axes(encoding, width // 2),
        attention_factor=factor if encoding.attention_factor is None else encoding.attention_factor,
    )


def _axes(encoding: Rotary, count: int) -> npt.NDArray[np.int64]:
    """Which axis of the positions turns each frequency."""
    if encoding.sections is None:
        return np.zeros(count, np.int64)
    if sum(encoding.sections) != count:
        got = f"{encoding.sections}, {sum(encoding.sections)} in all"
        raise ValueError(message("Rotary", f"sections must add up to the number of frequencies, {count}", got))
    if encoding.section_layout == "contiguous":
        return np.repeat(np.arange(len(encoding.sections)), encoding.sections)
    axes = np.arange(count) % len(encoding.sections)
    limits = np.asarray(encoding.sections)[axes] * len(encoding.sections)
    return np.where(np.arange(count) < limits, axes, 0)


# ---- configurations ----------------------------------------------------------------------------------------------------------


class _Config:
    """A configuration and, in it, the dict of the rule."""

    def __init__(self, config: Any, layer_type: str | None) -> None:
        self._config = config
        found = self.get("rope_parameters") or self.get("rope_scaling") or {}
        if not isinstance(found, Mapping):
            raise TypeError(message(_FROM_CONFIG, "rope_parameters must be a dict", checks.describe(found)))
        by_layer = {name: value for name, value in found.items() if isinstance(value, Mapping)}
        if by_layer and layer_type not in by_layer:
            rule = f"layer_type must be one of {', '.join(map(repr, sorted(by_layer)))}"
            raise ValueError(message(_FROM_CONFIG, rule, repr(layer_type)))
        if layer_type is not None and not by_layer:
            raise ValueError(message(_FROM_CONFIG, "layer_type is for dicts by layer type", f"{layer_type!r} for one dict"))
        self.rule: Mapping[str, Any] = by_layer[layer_type] if by_layer else found

    def get(self, name: str) -> Any:
        """A key of the configuration; None if it is not there."""
        if isinstance(self._config, Mapping):
            return self._config.get(name)
        return getattr(self._config, name, None)

    def find(self, *names: str, default: Any = None) -> Any:
        """The first of the keys, in the rule's dict before the configuration, that is there and not None."""
        for name in names:
            for value in (self.rule.get(name), self.get(name)):
                if value is not None:
                    return value
        return default

    def need(self, *names: str) -> Any:
        """As ``find``; KeyError that names the key and the rule."""
        found = self.find(*names)
        if found is None:
            raise KeyError(message(_FROM_CONFIG, f"rope_type {self.type!r} needs {names[0]}", f"keys {sorted(self.rule)}"))
        return found

    @property
    def type(self) -> str:
        return str(self.rule.get("rope_type") or self.rule.get("type") or "default")


_FROM_CONFIG = "Rotary.from_config"


def _ratio(config: _Config) -> float:
    """The factor, or by how much the context was lengthened."""
    factor = config.rule.get("factor")
    if factor is not None:
        return float(factor)
    return float(config.need("max_position_embeddings") / config.need("original_max_position_embeddings"))


def _original(config: _Config) -> int:
    return int(config.need("original_max_position_embeddings", "max_position_embeddings"))


def _yarn(config: _Config) -> scaling.Scaling:
    rule = config.rule
    known = {name: rule[name] for name in ("mscale", "mscale_all_dim", "attention_factor") if rule.get(name) is not None}
    known |= {name: rule[name] for name in ("beta_fast", "beta_slow", "truncate") if rule.get(name) is not None}
    return scaling.YaRN(_ratio(config), _original(config), **known)


def _longrope(config: _Config) -> scaling.Scaling:
    short, long = config.need("short_factor"), config.need("long_factor")
    return scaling.LongRoPE(short, long, _original(config), _ratio(config), config.rule.get("attention_factor"))


def _llama3(config: _Config) -> scaling.Scaling:
    low, high = config.need("low_freq_factor"), config.need("high_freq_factor")
    return scaling.Llama3(config.need("factor"), low, high, int(config.need("original_max_position_embeddings")))


_RULES: dict[str, Any] = {
    "default": lambda config: None,
    "mrope": lambda config: None,
    "linear": lambda config: scaling.Linear(config.need("factor")),
    "dynamic": lambda config: scaling.DynamicNTK(config.need("factor"), int(config.need("max_position_embeddings"))),
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
    "llama3": _llama3,
    "proportional": lambda config: scaling.Proportional(
        config.find("partial_rotary_factor", default=1.0), config.rule.get("factor") or 1.0
    ),
}


def _from_config(cls: type[Rotary], config: _Config, interleaved: bool) -> Rotary:
    if config.type not in _RULES:
        known = ", ".join(map(repr, sorted(_RULES)))
        raise ValueError(message(_FROM_CONFIG, f"rope_type must be one of {known}", repr(config.type)))
    base = config.find("rope_theta", "rotary_emb_base", default=10000.0)
    rule = _RULES[config.type](config)
    partial, rotary_dim = config.find("partial_rotary_factor", "rotary_pct", default=1.0), config.find("rotary_dim")
    if rotary_dim is None and partial != 1.0 and not isinstance(rule, scaling.Proportional):
        head = config.find("head_dim")
        if head is None:
            head = config.need("hidden_size") // config.need("num_attention_heads")
        rotary_dim = int(head * partial)
    sections = config.rule.get("mrope_section")
    layout = "interleaved" if config.rule.get("mrope_interleaved") else "contiguous"
    return cls(base, interleaved, rotary_dim, scaling=rule, sections=sections and tuple(sections), section_layout=layout)
