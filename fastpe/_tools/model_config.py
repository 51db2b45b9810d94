"""What the configuration of a model says of its encodings: one entry for each part of it and type of layer."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._core.checks import describe, message
from ..encodings import Rotary, from_config
from ..encodings.config_view import Config

FUNCTION = "model"
LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "max_trained_positions",
)


@dataclass(frozen=True)
class Entry:
    """The encoding of a type of layer (None: of all) of a part ("": the model itself); None where it does not rotate or ``error`` is.

    ``layers``: how many of its layers are of the type, and of how many in all, where the configuration lists them.
    """

    model_type: str
    part: str
    layer_type: str | None
    layers: tuple[int, int] | None
    encoding: Rotary | None = None
    head_dim: int | None = None
    longest: int | None = None
    error: str | None = None

    @property
    def trained(self) -> int | None:
        """The length of the training: that before the rule, or without a rule the longest that the configuration allows."""
        rule = None if self.encoding is None else self.encoding.scaling
        without = self.longest if getattr(rule, "factor", 1.0) == 1.0 else None
        found: int | None = getattr(rule, "original_max_position", without)
        return found


def load(path: str) -> dict[str, Any]:
    """The configuration in a file, in the folder of a model, or, for ``-``, on the standard input."""
    name = os.path.join(path, "config.json") if os.path.isdir(path) else path
    with contextlib.nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as file:
        text = file.read()
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(message(FUNCTION, "CONFIG must be JSON", f"{name!r}: {error}")) from None
    if not isinstance(found, dict):
        raise ValueError(message(FUNCTION, "CONFIG must be a JSON object, as models' config.json", describe(found)))
    return found


def entries(config: dict[str, Any], interleaved: bool | None) -> list[Entry]:
    """The encodings of all that rotates in a configuration."""
    whole = Config.of(config)
    inside = [(".".join(path), one) for path, one in whole.parts() if one.rotates()]
    own = whole.names_base() and not whole.off()
    parts = [("", whole), *inside] if own or not inside else inside
    return [entry for part, one in parts for entry in _layers(part, one, interleaved)]


def _layers(part: str, config: Config, interleaved: bool | None) -> list[Entry]:
    """One entry if all types of layer have the same encoding."""
    listed = config.layer_types()
    with contextlib.suppress(ValueError, TypeError):
        named = [name for name in config.layers() if name is not None]
        names = [name for name in named if name in listed] or named or list(dict.fromkeys(listed))
        found = [_entry(part, config, name, interleaved) for name in names]
        if any((one.encoding, one.error) != (found[0].encoding, found[0].error) for one in found):
            return found
    return [_entry(part, config, None, interleaved)]


def _entry(part: str, config: Config, layer_type: str | None, interleaved: bool | None) -> Entry:
    listed = config.layer_types()
    layers = (listed.count(layer_type), len(listed)) if layer_type in listed else None
    kind = str(config.get("model_type") or "")
    longest = next((int(value) for name in LENGTHS if (value := config.get(name)) and isinstance(value, (int, float))), None)
    try:
        encoding = Rotary.from_config(config.source, layer_type=layer_type, interleaved=interleaved)
        head = _head(config, layer_type, encoding)
        if head is not None:
            encoding.frequencies(head)
    except from_config.DoesNotRotate:
        return Entry(kind, part, layer_type, layers, longest=longest)
    except (KeyError, TypeError, ValueError) as error:
        return Entry(kind, part, layer_type, layers, longest=longest, error=str(error.args[0]))
    return Entry(kind, part, layer_type, layers, encoding, head, longest)


def _head(config: Config, layer_type: str | None, encoding: Rotary) -> int | None:
    """The width of what is given to ``apply_rotary``: a head, or the part of it that lies apart (DeepSeek's ``q_pe``)."""
    if encoding.rotary_dim is None:
        if encoding.sections is not None:
            return 2 * sum(encoding.sections)
        apart = config.get("qk_rope_head_dim")
        if apart is not None:
            return int(apart)
    rule: Mapping[str, Any] = config.layers().get(layer_type) or {}
    try:
        return from_config.Layer(config, rule, layer_type).head()
    except KeyError:
        return None
