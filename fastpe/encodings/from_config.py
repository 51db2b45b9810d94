"""Read a rotary encoding from a model's configuration, as Hugging Face's library writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import scaling
from .._core import checks
from .._core.checks import message
from . import config_models as models
from .config_view import BASE_KEYS, FUNCTION, LAYOUT_KEYS, SHARE_KEYS, Config

Fields = dict[str, Any]  # of Rotary


class DoesNotRotate(ValueError):
    """A type of layer without rotation."""


def fields(given: Any, part: str | None, layer_type: str | None, interleaved: bool | None) -> Fields:
    """The fields of the encoding that a configuration describes."""
    if part is not None and not isinstance(part, str):
        raise TypeError(message(FUNCTION, "part must be a name or None", checks.describe(part)))
    config = Config.of(given)
    config = config if part is None else config.named(part)
    found = {name: _of_layers(one, layer_type, interleaved) for name, one in config.rotating()}
    first = next(iter(found.values()))
    if any(one != first for one in found.values()):
        rule = f"part must be one of {', '.join(map(repr, sorted(found)))}, as their encodings differ"
        raise ValueError(message(FUNCTION, rule, repr(part)))
    return first


def _of_layers(config: Config, layer_type: str | None, interleaved: bool | None) -> Fields:
    """The encoding of a type of layer, or of all."""
    if config.model in models.REFUSED:
        raise _error(config, f"one encoding cannot say what it does: {models.REFUSED[config.model]}")
    config.check_keys()
    if config.off():
        raise _error(config, f"{config.off()} says that nothing rotates")
    if not config.names_base():
        remedy = "If it does rotate, add its base as rope_theta, or write Rotary(base)."
        keys = f"a configuration of model_type {config.get('model_type')!r}"
        raise ValueError(
            message(FUNCTION, "nothing in config describes a rotary encoding, as no key names a base", keys, remedy)
        )
    layers = config.layers()
    names = list(filter(None, layers))
    if layer_type is not None and not names:
        if layer_type not in config.layer_types():
            raise ValueError(message(FUNCTION, "layer_type is for dicts by layer type", f"{layer_type!r} for one dict"))
        sliding_only = config.model in models.SLIDING_ONLY and config.get("sliding_window") and not config.get("force_rope")
        if layer_type == "full_attention" and sliding_only:
            raise _error(config, f"layers of {layer_type!r} do not rotate", DoesNotRotate)
        return Layer(config, layers[None] or {}, layer_type).encoding(interleaved)
    if layer_type in layers:
        rule = layers[layer_type]
        if rule is None:
            raise _error(config, f"layers of {layer_type!r} do not rotate", DoesNotRotate)
        return Layer(config, rule, layer_type).encoding(interleaved)
    used = {name: rule for name, rule in layers.items() if rule is not None}
    if layer_type is None:
        present = {name: rule for name, rule in used.items() if name in config.layer_types()} or used
        found = [Layer(config, rule, name).encoding(interleaved) for name, rule in present.items()]
        if all(one == found[0] for one in found):
            return found[0]
    known = ", ".join(map(repr, sorted(map(str, used))))
    raise ValueError(message(FUNCTION, f"layer_type must be one of {known}, as layers differ", repr(layer_type)))


def _error(config: Config, rule: str, kind: type[ValueError] = ValueError) -> ValueError:
    return kind(message(FUNCTION, rule, f"model_type {config.get('model_type')!r}"))


class Layer:
    """The rule of a type of layer, and the configuration around it."""

    def __init__(self, config: Config, rule: Mapping[str, Any], layer_type: str | None) -> None:
        self.config, self.rule, self.layer_type = config, rule, layer_type
        stated = rule.get("rope_type") or rule.get("type")
        scaling_keys = {"factor", "short_factor", "alpha", "beta_fast", "low_freq_factor"} & rule.keys()
        if stated is None and scaling_keys:
            raise KeyError(message(FUNCTION, f"{sorted(scaling_keys)[0]} needs rope_type beside it", f"keys {sorted(rule)}"))
        self.type = str(stated or "default")
        if self.type == "yarn" and config.model in ("phi3", "phi4_multimodal"):
            self.type = "longrope"  # as their code reads it

    def find(self, *names: str, default: Any = None) -> Any:
        """The first of the keys, in the rule before the configuration, that is there and not None."""
        for name in names:
            for value in (self.rule.get(name), self.config.get(name)):
                if value is not None:
                    return value
        return default

    def need(self, *names: str) -> Any:
        """As ``find``; KeyError that names the key and the rule."""
        found = self.find(*names)
        if found is None:
            keys = f"keys {sorted(set(self.rule) - {'by_layer'})}"
            raise KeyError(message(FUNCTION, f"rope_type {self.type!r} needs {names[0]}", keys))
        return found

    def encoding(self, interleaved: bool | None) -> Fields:
        if self.config.model in models.AXIAL:
            return _axial(self)
        if self.type not in _RULES:
            known = ", ".join(map(repr, sorted(_RULES)))
            raise ValueError(message(FUNCTION, f"rope_type must be one of {known}", repr(self.type)))
        rule = _rule(self)
        width = None if isinstance(rule, scaling.Proportional) else self.width()
        found: Fields = {
            "base": self.base(),
            "interleaved": self.interleaved(interleaved),
            "rotary_dim": width,
            "scaling": rule,
        }
        if self.config.model == "deepseek_v4" and width is not None:
            found["rotary_offset"] = self.head() - width
        return found | _sections(self, width)

    def base(self) -> Any:
        stated = self.rule.get("rope_theta")
        named = {name: value for name in BASE_KEYS if (value := self.config.get(name)) is not None}
        if stated is None and len(set(map(str, named.values()))) > 1:
            raise ValueError(message(FUNCTION, "config must name one base", str(named)))
        base = next(iter(named.values()), None) if stated is None else stated
        by_layer = self.config.get("layer_rope_theta") or (base if isinstance(base, (list, tuple)) else None)
        if by_layer is not None:
            base = self._of_list("rope_theta", by_layer)
        if base is None and self.config.model in models.NO_BASE:
            raise _error(self.config, "its configuration must name a base")
        return models.BASES.get(self.config.model, 10000.0) if base is None else base

    def _of_list(self, name: str, values: Any) -> Any:
        """The value of this type of layer in a list with one for each layer; 0 stands for no rotation."""
        types = self.config.layer_types()
        if self.layer_type is not None and len(types) == len(values):
            values = [value for value, one in zip(values, types, strict=True) if one == self.layer_type]
        found = {value for value in values if value}
        if len(found) != 1:
            rule = f"{name} must be the same in all layers, or in those of one layer_type"
            raise ValueError(
                message(FUNCTION, rule, f"{sorted(found)}", "Read one layer: give its number in place of the list.")
            )
        return found.pop()

    def head(self) -> int:
        """The width of a head."""
        if self.layer_type == "full_attention" and self.config.get("global_head_dim") is not None:
            return int(self.config.get("global_head_dim"))
        found = self.config.of_layer("head_dim", self.layer_type) or self.config.get("kv_channels")
        if found is not None:
            return int(found)
        heads = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_num_attention_heads")
        hidden = ("hidden_size", "n_embd", "d_model", "dim")
        return int(self.need(*(("embed_dim",) if self.config.model == "qwen2_vl_vision" else hidden)) // self.need(*heads))

    def width(self) -> int | None:
        """How many channels rotate, None for all."""
        stated = self.find("rotary_dim")
        if self.config.model == "chatglm":
            stated = self.head() // 2
        share = self.find(*SHARE_KEYS, default=models.SHARES.get(self.config.model, 1.0 if stated is None else None))
        if isinstance(share, (list, tuple)):
            share = self._of_list("partial_rotary_factor", share)
        if share is None or (share == 1.0 and stated is None):
            return None if stated is None else int(stated)
        if self.config.model in models.KNOWN - models.PARTIAL and self.type == "default":
            raise _error(
                self.config, f"partial_rotary_factor {share} stands where the model's code rotates whole heads; leave it out"
            )
        found = int(self.head() * share)
        if stated is not None and stated != found:
            got = f"{stated} and {share} of {self.head()} channels"
            raise ValueError(message(FUNCTION, "rotary_dim and partial_rotary_factor must agree", got, "Leave one out."))
        if found % 2:
            rule = f"partial_rotary_factor must give an even number of channels of a head of {self.head()}"
            raise ValueError(message(FUNCTION, rule, f"{share} and {found}"))
        return found

    def interleaved(self, given: bool | None) -> bool:
        if given is not None:
            return given
        stated, model = self.config.first(*LAYOUT_KEYS), self.config.model
        if stated is not None:
            return bool(stated)
        if model and model not in models.KNOWN:
            remedy = "Give interleaved=False for pairs of channels i and i + d/2, True for 2i and 2i + 1, as its code has it."
            raise ValueError(message(FUNCTION, "interleaved must be given for a model that is not known", repr(model), remedy))
        return model in models.INTERLEAVED


# ---- rules -------------------------------------------------------------------------------------------------------------------


def _rule(layer: Layer) -> scaling.Scaling | None:
    unscaled = layer.config.get("rope_scaling_layers")
    if unscaled is not None and layer.type != "default" and len(unscaled) != layer.config.get("num_hidden_layers"):
        raise _error(
            layer.config, f"rope_scaling_layers says that only some layers have rope_type {layer.type!r}; read them apart"
        )
    factor = layer.config.get("rotary_scaling_factor")
    if factor is not None:  # Nomic's
        if layer.config.model != "nomic_bert" or layer.type != "default":
            raise _error(layer.config, "the key rotary_scaling_factor is understood in model_type 'nomic_bert' alone")
        return scaling.DynamicNTK(factor, int(layer.need("max_trained_positions")))
    if (
        layer.rule.get("mscale_all_dim")
        and layer.type not in ("yarn", "default")
        and layer.config.model in models.SOFTMAX_SCALED
    ):
        raise _error(layer.config, f"the key mscale_all_dim is understood with rope_type 'yarn' alone, not {layer.type!r}")
    if layer.rule.get("alpha") and layer.type != "dynamic":
        raise _error(layer.config, f"the key alpha is understood with rope_type 'dynamic' alone, not {layer.type!r}")
    found: scaling.Scaling | None = _RULES[layer.type](layer)
    return found


def _ratio(layer: Layer) -> float:
    """The factor that is given, or the new length over the original one."""
    factor = layer.rule.get("factor")
    if factor is not None:
        return float(factor)
    return float(layer.need("max_position_embeddings") / layer.need("original_max_position_embeddings"))


def _original(layer: Layer) -> int:
    """The model's key before the rule's, as its code; else the longest context."""
    names = ("original_max_position_embeddings", "max_position_embeddings")
    outer = None if layer.rule.get("by_layer") else layer.config.get(names[0])
    inner = layer.rule.get(names[0]) if outer is None else outer
    if inner is None:
        inner = layer.config.get(names[1])
    return int(layer.need(*names) if inner is None else inner)


def _yarn(layer: Layer) -> scaling.Scaling:
    names = ("mscale", "mscale_all_dim", "attention_factor")
    known = {name: value for name in names if (value := layer.rule.get(name)) is not None}
    known |= {name: value for name in ("beta_fast", "beta_slow") if (value := layer.rule.get(name))}
    found = scaling.YaRN(_ratio(layer), _original(layer), truncate=bool(layer.rule.get("truncate", True)), **known)
    if found.mscale_all_dim is None or layer.config.model not in models.KNOWN - models.SOFTMAX_SCALED:
        return found
    return replace(found, mscale=None, mscale_all_dim=None, attention_factor=found.temperature)


def _longrope(layer: Layer) -> scaling.Scaling:
    short, long = layer.need("short_factor"), layer.need("long_factor")
    factor = layer.rule.get("attention_factor")
    if layer.rule.get("short_mscale") is not None or layer.rule.get("long_mscale") is not None:
        factor = layer.need("short_mscale")
        if factor != layer.need("long_mscale"):
            got = f"{factor} and {layer.need('long_mscale')}"
            remedy = "Rotary has one attention factor: read each with the other's value."
            raise ValueError(message(FUNCTION, "short_mscale and long_mscale must be equal", got, remedy))
    return scaling.LongRoPE(short, long, _original(layer), _ratio(layer), factor)


def _llama3(layer: Layer) -> scaling.Scaling:
    low, high = layer.need("low_freq_factor"), layer.need("high_freq_factor")
    return scaling.Llama3(layer.need("factor"), low, high, _original(layer))


def _dynamic(layer: Layer) -> scaling.Scaling:
    if layer.rule.get("alpha"):
        return scaling.NTK(layer.rule["alpha"])  # HunYuan's
    return scaling.DynamicNTK(layer.need("factor"), int(layer.need("max_position_embeddings")))


_RULES: dict[str, Any] = {
    "default": lambda layer: None,
    "mrope": lambda layer: None,
    "linear": lambda layer: scaling.Linear(layer.need("factor")),
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
    "llama3": _llama3,
    "proportional": lambda layer: scaling.Proportional(
        layer.find("partial_rotary_factor", default=1.0), layer.rule.get("factor") or 1.0
    ),
}


# ---- several axes ------------------------------------------------------------------------------------------------------------


def _sections(layer: Layer, width: int | None) -> Fields:
    """The fields for positions with several axes, if there are."""
    stated, model = layer.rule.get("mrope_section"), layer.config.model
    layout, usual = models.SECTIONS.get(model, ("interleaved" if layer.rule.get("mrope_interleaved") else "contiguous", None))
    if model == "neomme":
        count = (width or layer.head()) // 2
        return {"sections": (count - count // 2, count // 2), "section_layout": layout}
    sections = tuple(stated or usual or ())
    if not sections:
        return {}
    if layout == "alternating":  # written (height, width, time)
        sections = (sections[2], sections[0], sections[1])
    if layout == "interleaved" and usual is not None:
        count = (width or layer.head()) // 2
        others = [len(range(axis, min(3 * sections[axis], count), 3)) for axis in (1, 2)]
        sections = (count - sum(others), *others)
    return {"sections": sections, "section_layout": layout}


def _axial(layer: Layer) -> Fields:
    """The encoding of a model that sees images: rows and columns of patches have channels of their own."""
    if layer.type not in ("default", "axial"):
        raise ValueError(message(FUNCTION, f"rope_type of {layer.config.model!r} must be 'axial'", repr(layer.type)))
    kind, base = models.AXIAL[layer.config.model], layer.base()
    if layer.config.get("memory_attention_hidden_size") is not None:
        divisor = layer.need("memory_attention_downsample_rate") * layer.need("memory_attention_num_attention_heads")
        head = layer.need("memory_attention_hidden_size") // divisor
    else:
        head = layer.head()
    if kind == "three":
        size = head // 6
        return {"base": base, "rotary_dim": 6 * size, "sections": (size,) * 3, "section_frequencies": "own"}
    if kind == "pixtral":  # rows have the even frequencies of a whole head, columns the odd ones
        plain = [base ** (-2 * i / head) for i in range(head // 2)]
        mixed = scaling.Custom((*plain[::2], *plain[1::2]))
        return {"base": base, "scaling": mixed, "sections": (len(plain[::2]), len(plain[1::2]))}
    found = {"base": base, "interleaved": kind == "interleaved", "sections": (head // 4,) * 2}
    return found | {"section_frequencies": "own"}
