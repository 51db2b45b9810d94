"""Read a rotary encoding from a model's configuration, as Hugging Face's library writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import scaling
from .._core import checks
from .._core.checks import message


class _Config:
    """A configuration and, in it, the dict of the rule."""

    def __init__(self, config: Any, layer_type: str | None) -> None:
        self._config = config
        if not self._is_known():
            self._config = getattr(config, "config", None)  # of a model
            if not self._is_known():
                rule = f"config must be a configuration, or a dict, with some of {', '.join(sorted(_KEYS))}"
                got = f"a dict of {sorted(map(str, config))}" if isinstance(config, Mapping) else checks.describe(config)
                raise TypeError(message(_FROM_CONFIG, rule, got, "For usual frequencies write Rotary()."))
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
        self._by_layer = bool(by_layer)

    def _is_known(self) -> bool:
        return any(self.get(key) is not None for key in _KEYS)

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

    def check(self) -> None:
        """Refuse what would be left out in silence: a factor of no rule, and bases for other layers or in other units."""
        if not (self.rule.get("rope_type") or self.rule.get("type")) and self.rule.get("factor") is not None:
            raise KeyError(message(_FROM_CONFIG, "a dict with a factor needs rope_type", f"keys {sorted(self.rule)}"))
        other = [] if self._by_layer else [name for name in _OTHER_BASES if self.get(name) not in (None, 1)]
        if other:
            remedy = "Give rope_parameters, a dict for each type of layer, or rope_theta alone."
            raise ValueError(message(_FROM_CONFIG, "a configuration must have one base", other[0], remedy))

    @property
    def type(self) -> str:
        return str(self.rule.get("rope_type") or self.rule.get("type") or "default")


_FROM_CONFIG = "Rotary.from_config"
# One of these is in every configuration of a model that rotates.
_KEYS = {
    *("rope_parameters", "rope_scaling", "rope_theta", "rotary_emb_base", "rotary_dim", "rotary_pct"),
    *("partial_rotary_factor", "max_position_embeddings", "model_type"),
}
_OTHER_BASES = ("rope_local_base_freq", "global_rope_theta", "local_rope_theta", "rope_ratio")


def _ratio(config: _Config) -> float:
    """The factor that is given, or the new length over the original one."""
    factor = config.rule.get("factor")
    if factor is not None:
        return float(factor)
    return float(config.need("max_position_embeddings") / config.need("original_max_position_embeddings"))


def _original(config: _Config) -> int:
    return int(config.need("original_max_position_embeddings", "max_position_embeddings"))


def _yarn(config: _Config) -> scaling.Scaling:
    names = ("mscale", "mscale_all_dim", "attention_factor", "beta_fast", "beta_slow", "truncate")
    known = {name: config.rule[name] for name in names if config.rule.get(name) is not None}
    return scaling.YaRN(_ratio(config), _original(config), **known)


def _longrope(config: _Config) -> scaling.Scaling:
    short, long = config.need("short_factor"), config.need("long_factor")
    return scaling.LongRoPE(short, long, _original(config), _ratio(config), config.rule.get("attention_factor"))


def _mrope(config: _Config) -> None:
    config.need("mrope_section")


def _llama3(config: _Config) -> scaling.Scaling:
    low, high = config.need("low_freq_factor"), config.need("high_freq_factor")
    return scaling.Llama3(config.need("factor"), low, high, int(config.need("original_max_position_embeddings")))


_RULES: dict[str, Any] = {
    "default": lambda config: None,
    "mrope": _mrope,
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


# Models whose code rotates adjacent pairs and whose configuration does not say so (transformers 5.23.0).
_INTERLEAVED = {
    *("codegen", "gptj", "helium", "moonshine", "moonshine_streaming", "roformer"),
    *("cohere", "cohere2", "cohere2_moe", "deepseek_v2", "llama4", "llama4_text"),
    *("ernie4_5", "ernie4_5_moe", "ernie4_5_vl_moe", "ernie4_5_vl_moe_text"),
    *("glm", "glm4", "glm4v", "glm4v_text", "glm_ocr", "glm_ocr_text"),
}


def fields(given: Any, layer_type: str | None, interleaved: bool | None) -> dict[str, Any]:
    """The fields of ``Rotary`` that a configuration describes."""
    config = _Config(given, layer_type)
    config.check()
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
    sections = tuple(sections) if sections else None
    layout = "interleaved" if config.rule.get("mrope_interleaved") else "contiguous"
    model = str(config.get("model_type"))
    if sections is not None and model.startswith("ernie4_5_vl"):
        sections, layout = (sections[2], sections[0], sections[1]), "alternating"  # written (height, width, time)
    if interleaved is None:
        said = config.get("rope_interleave")
        interleaved = model in _INTERLEAVED if said is None else bool(said)
    found = {"base": base, "interleaved": interleaved, "rotary_dim": rotary_dim, "scaling": rule}
    return found | {"sections": sections, "section_layout": layout}
