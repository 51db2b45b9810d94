"""A view of a model's configuration, object or dict: its keys, its parts, the rules of its layers, and what is not understood."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .._core import checks
from .._core.checks import message
from . import config_models as models

FUNCTION = "Rotary.from_config"
BASE_KEYS = (
    "rope_theta",
    "global_rope_theta",
    "rotary_emb_base",
    "rotary_embedding_base",
    "rope_embedding_base",
    "rotary_base",
)
SHARE_KEYS = ("partial_rotary_factor", "rotary_pct", "rope_pct", "rotary_percent", "rotary_emb_fraction")
LAYOUT_KEYS = ("rope_interleave", "rope_interleaved", "rotary_emb_interleaved", "rotary_interleaved", "rope_traditional")
# The base of layers of sliding attention, and whether the rule is theirs too.
LOCAL_KEYS = {"rope_local_base_freq": False, "swa_rope_theta": False, "local_rope_theta": True}
_READ = {*BASE_KEYS, *SHARE_KEYS, *LAYOUT_KEYS, *LOCAL_KEYS, "rope_parameters", "rope_scaling", "rotary_dim"}
_READ |= {"compress_rope_theta", "layer_rope_theta", "rope_scaling_layers", "rotary_scaling_factor", "use_mem_rope"}
# These do not change how queries and keys rotate: values, other modules, widths of projections, layers without rotation.
_OTHER = {
    "rotary_value",
    "qk_rope_head_dim",
    "no_rope_layers",
    "no_rope_layer_interval",
    "indexer_rope_interleave",
    "original_rope",
}
_OTHER |= {"ignore_keys_at_rope_validation", "memory_attention_rope_dropout", "memory_attention_rope_feat_sizes"}
_OTHER |= {"memory_attention_rope_k_sizes", "force_rope"}
_NEUTRAL = {
    "rope_ratio": 1,
    "rope_position_scale": 1,
    "extrapolation_factor": 1,
    "attn_factor": 1,
    "use_rope": 1,
    "rope": 1,
    "rotary": 1,
}
_RULE_KEYS = {
    *("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "max_position_embeddings", "alpha"),
    *(
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "finetuned",
        "llama_4_scaling_beta",
    ),
    *("short_factor", "long_factor", "short_mscale", "long_mscale", "low_freq_factor", "high_freq_factor"),
    *("partial_rotary_factor", "mrope_section", "mrope_interleaved"),
}
_ROTATION = re.compile(r"(^|_)[a-z0-9]{0,3}rope(?!rt)|rotary|(^|_)theta$|ntk|yarn|mscale|^alpha$|rope_?theta", re.IGNORECASE)
_TEXT = {"text", "language", "llm", "thinker", "vlm", "text_model", "language_model"}


def _entry(source: Any, name: str) -> Any:
    if isinstance(source, Mapping):
        return source.get(name)
    try:
        return getattr(source, name, None)
    except RuntimeError:  # transformers: differs by layer
        return None


def _entries(source: Any) -> Mapping[str, Any]:
    return source if isinstance(source, Mapping) else getattr(source, "__dict__", {})


class Config:
    """A configuration, or a part of one."""

    def __init__(self, source: Any) -> None:
        self.source = source
        own = str(self.get("model_type") or "")
        self.model_type = own
        text = f"{own}_text"  # as the flat configurations of models with several parts say it
        self.model = text if own not in models.KNOWN and text in models.KNOWN | models.REFUSED.keys() else own

    @staticmethod
    def of(given: Any) -> Config:
        """A configuration that a user gave, or that of a model."""
        inner = None if isinstance(given, Mapping) else _entry(given, "config")
        for one in (inner, given):
            if isinstance(one, Mapping) or (hasattr(one, "__dict__") and Config(one)._is_one()):
                return Config(one)
        rule = (
            f"config must be a configuration, or a dict, with some of {', '.join(BASE_KEYS[:3])}, rope_parameters, model_type"
        )
        raise TypeError(message(FUNCTION, rule, checks.describe(given), "For usual frequencies write Rotary()."))

    def _is_one(self) -> bool:
        return any(isinstance(self.get(name), (str, int, float, Mapping)) for name in (*_READ, "model_type"))

    def get(self, name: str) -> Any:
        """A key, also of ``attn_config``; None if it is not there."""
        found = _entry(self.source, name)
        return _entry(_entry(self.source, "attn_config"), name) if found is None else found

    def first(self, *names: str) -> Any:
        """The first of the keys that is there and not None."""
        return next((value for name in names if (value := self.get(name)) is not None), None)

    @property
    def rules(self) -> Mapping[str, Any]:
        """What the configuration says of the rule: a dict, or a dict of dicts by type of layer."""
        found = [one for name in ("rope_parameters", "rope_scaling") if (one := self.get(name))]
        for one in found:
            if not isinstance(one, Mapping):
                raise TypeError(message(FUNCTION, "rope_parameters must be a dict", checks.describe(one)))
        if len(found) == 2 and found[0] != found[1]:
            raise ValueError(
                message(FUNCTION, "rope_parameters and rope_scaling must be the same", f"{found[0]} and {found[1]}")
            )
        return found[0] if found else {}

    def names_base(self) -> bool:
        """Whether a base stands in it, or its code has one."""
        rules = self.rules
        by_layer = any(isinstance(one, Mapping) and one.get("rope_theta") is not None for one in rules.values())
        named = self.first(*BASE_KEYS, *LOCAL_KEYS, "layer_rope_theta") is not None
        coded = self.model_type in models.KNOWN - models.NO_BASE or self.model_type in models.AXIAL
        return rules.get("rope_theta") is not None or by_layer or named or coded

    def rotates(self) -> bool:
        return (self.names_base() or self.model_type in models.REFUSED) and not self.off()

    def off(self) -> str:
        """The key that says that nothing rotates, and its value; empty if there is none."""
        if self.get("alibi"):
            return "alibi=True"
        switch = models.SWITCHES.get(self.model)
        value = None if switch is None else self.get(switch)
        return "" if switch is None or value in (True, "rope", "rotary") else f"{switch}={value!r}"

    # ---- parts ---------------------------------------------------------------------------------------------------------------

    def parts(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Config]]:
        """The configurations inside, at any depth, and their names without ``_config``."""
        for name, value in _entries(self.source).items():
            typed = isinstance(value, Mapping) or isinstance(_entry(value, "model_type"), str)
            if not typed or name in ("attn_config", "per_layer_config", "rope_parameters", "rope_scaling") or name[:1] == "_":
                continue
            if name.endswith("_config") or _entry(value, "model_type") is not None:
                inner = (*path, name.removesuffix("_config"))
                yield inner, Config(value)
                yield from Config(value).parts(inner)

    def named(self, part: str) -> Config:
        """The part of a name, as ``vision`` or ``thinker.vision``, with or without ``_config``."""
        wanted = tuple(one.removesuffix("_config") for one in part.split("."))
        known = list(self.parts())
        found = [one for one in known if one[0][-len(wanted) :] == wanted]
        found = [one for one in found if set(one[0]) <= _TEXT] or found
        if len(found) != 1:
            names = ", ".join(".".join(path) for path, _ in found or known) or "none"
            raise ValueError(message(FUNCTION, f"part must be the name of one sub-configuration: {names}", repr(part)))
        return found[0][1]

    def rotating(self) -> list[tuple[str, Config]]:
        """This configuration, or those of its parts that rotate: of the text if there is one, else all."""
        inside = list(self.parts())
        found = [(".".join(path), one) for path, one in inside if one.rotates()]
        if (self.names_base() or self.model in models.REFUSED or not found) and not (self.off() and found):
            return [("", self)]
        texts = [one for one in found if set(one[0].split(".")) <= _TEXT]
        if len(texts) == 1:
            return texts
        if len(texts) > 1 or any(set(path) <= _TEXT for path, _ in inside):
            names = ", ".join(name for name, _ in found)
            rule = "part must be one of the sub-configurations that rotate, as that of the text does not say which"
            raise ValueError(message(FUNCTION, rule, f"None for {names}"))
        return found

    # ---- layers --------------------------------------------------------------------------------------------------------------

    def layers(self) -> dict[str | None, Mapping[str, Any] | None]:
        """The rule of each type of layer, or of all (None); a type of layer without rotation has None."""
        rules = self.rules
        by_layer = {name: one for name, one in rules.items() if isinstance(one, Mapping)}
        if by_layer:
            named = by_layer | {name: None for name, one in rules.items() if one is None and name.endswith("attention")}
            outer = {"truncate": rules.get("truncate", True)}
            return {name: None if one is None else {**one, **outer, "by_layer": True} for name, one in named.items()}
        local = next((name for name in LOCAL_KEYS if self.get(name) is not None), None)
        if local is not None or self.model in models.LAYER_BASES:
            bases = models.LAYER_BASES.get(self.model, (None, None))
            full = {"rope_theta": bases[0] if self.first(*BASE_KEYS) is None else self.first(*BASE_KEYS), **rules}
            scaled = LOCAL_KEYS[local or "rope_local_base_freq"] or self.model.startswith("modernbert")
            base = bases[1] if local is None else self.get(local)
            return {"full_attention": full, "sliding_attention": {**(rules if scaled else {}), "rope_theta": base}}
        if self.model == "olmo3":
            return {"full_attention": rules, "sliding_attention": {"rope_theta": rules.get("rope_theta")}}
        if self.model == "deepseek_v4":
            yarn = {"attention_factor": 1.0} if (rules.get("rope_type") or rules.get("type")) == "yarn" else {}
            return {"main": {}, "compress": {**yarn, **rules, "rope_theta": self.get("compress_rope_theta")}}
        return {None: rules}

    def layer_types(self) -> list[str]:
        return list(self.get("layer_types") or ())

    def of_layer(self, name: str, layer_type: str | None) -> Any:
        """A key that may differ by layer."""
        by_layer = self.get("per_layer_config")
        if layer_type is None or not by_layer:
            return self.get(name)
        if isinstance(by_layer, Mapping):  # by the number of the layer, as text
            first = next((i for i, one in enumerate(self.layer_types()) if one == layer_type), None)
            layer = next((one for number, one in by_layer.items() if str(number).isdigit() and int(number) == first), None)
        else:
            try:
                layer = by_layer[layer_type]
            except (KeyError, ValueError):  # its layers differ, but in other keys
                layer = None
        found = None if layer is None else _entry(layer, name)
        return self.get(name) if found is None else found

    # ---- keys that are not understood ----------------------------------------------------------------------------------------

    def check_keys(self) -> None:
        """Raise ValueError for a key that says something of rotation and is not understood."""
        for name, value in {**_entries(_entry(self.source, "attn_config")), **_entries(self.source)}.items():
            if name in _READ or name in _OTHER or name[:1] == "_" or not _ROTATION.search(name):
                continue
            _check_key(name, value)
        for rule in self.layers().values():
            for name, value in (rule or {}).items():
                if name not in _RULE_KEYS and name != "by_layer":
                    _check_key(name, value)


def _check_key(name: str, value: Any) -> None:
    """Switched off, or a factor of 1: nothing is left out."""
    if value is None or value is False or value in ("", [], (), {}) or (name in _NEUTRAL and value == _NEUTRAL[name]):
        return
    rule = f"the key {name} is not understood and may change the rotation"
    remedy = "Leave it out if it does not, else write Rotary(...) as the model's code computes."
    raise ValueError(
        message(FUNCTION, rule, checks.describe(value) if not isinstance(value, (str, int, float)) else repr(value), remedy)
    )
