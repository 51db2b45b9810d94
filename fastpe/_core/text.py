"""Values written as text and read back: encodings, rules, biases and operations. A graph of PyTorch holds them so."""

from __future__ import annotations

import copyreg
import dataclasses
import functools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

from .._arrays import dispatch
from .._arrays.errors import message

TENSOR = "Tensor"  # stands for the caller's tensors, which lie beside a text
OBJECT = ' object"}'  # ends what is only named, as it holds what fastpe does not know; no class has such a name
_TENSOR_FIELD = f'": {{"type": "{TENSOR}"}}'
_kinds: dict[str, type] = {}


def register(kind: type) -> None:
    """Make a class known, so that its values can be read back. Another class of the same name gets a number: what it makes may differ."""
    plain = name = _plain_name(kind)
    count = 1
    while name in _kinds:
        count += 1
        name = f"{plain}#{count}"
    kind.name_in_text = name  # type: ignore[attr-defined]
    _kinds[name] = kind


def own_kinds() -> list[Any]:
    """fastpe's own classes, as far as they have been imported."""
    return [kind for name, kind in _kinds.items() if "." not in name]


def reduced(value: Any) -> tuple[Any, ...]:
    """What ``__reduce__`` returns of a value: copies, and values that are read from a file, are made from fields, with every check."""
    if not dataclasses.is_dataclass(value):
        return copyreg.__newobj__, (type(value),), vars(value)  # type: ignore[attr-defined]
    return type(value), tuple(getattr(value, field.name) for field in dataclasses.fields(value) if field.init)


def name_of(kind: type) -> str:
    """The name of a class in a text."""
    return getattr(kind, "name_in_text", "") or _plain_name(kind)


def _plain_name(kind: type) -> str:
    """Of fastpe's own classes the name, of others with their module."""
    return kind.__name__ if kind.__module__.partition(".")[0] == "fastpe" else f"{kind.__module__}.{kind.__qualname__}"


def write(value: Any) -> str:
    """A value of plain numbers and dataclasses as JSON; tensors, and what is of a class that is no dataclass, are only named.

    ``torch.compile`` follows this function where an encoding is made in a graph.
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true" if value else "false"
    if isinstance(value, int):
        return repr(operator.index(value))  # a compiler that leaves a number open fixes it here
    if isinstance(value, float):
        return repr(math.copysign(value, value))  # NumPy's numbers as Python's
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join([write(one) for one in value])}]"
    if dispatch.is_tensor(value):
        return f'{{"type": "{TENSOR}"}}'
    if not dataclasses.is_dataclass(value):
        return f'{{"type": "{name_of(type(value))}{OBJECT}'
    names = [field.name for field in dataclasses.fields(value) if field.init]
    fields = [f', "{name}": {write(getattr(value, name))}' for name in names]
    return f'{{"type": "{name_of(type(value))}"{"".join(fields)}}}'


def write_operation(operation: Any) -> str:
    """An operation as JSON, with the texts that its encodings have."""
    fields = [f', "{name}": {_field(value)}' for name, value in zip(operation._fields, operation)]  # noqa: B905 (traced)
    return f'{{"type": "{type(operation).__name__}"{"".join(fields)}}}'


def _field(value: Any) -> str:
    is_plain = value is None or isinstance(value, (int, float, str, tuple))
    return write(value) if is_plain or not hasattr(value, "text") else str(value.text)


def says_all(value: Any) -> bool:
    """Whether values of this text are equal: it names neither tensors nor objects."""
    said = getattr(value, "text", OBJECT)
    return OBJECT not in said and _TENSOR_FIELD not in said


def kinds_in(text: str) -> list[str]:
    """The names of the classes that a text consists of."""
    return [part.partition('"')[0] for part in text.split('"type": "')[1:]]


def refuse_unknown(function: str, text: str) -> None:
    """TypeError for a text that could not be read back."""
    for kind in kinds_in(text):
        if kind != TENSOR and kind not in _kinds:
            rule = "encodings and biases in a graph must consist of numbers, tensors and known classes"
            remedy = "Arrays must be tensors; classes of your own are dataclasses that derive from those of fastpe.encodings.protocol."
            raise TypeError(message(function, rule, f"a {kind}", remedy))


def tensors_in(value: Any) -> list[Any]:
    """The fields of a value that are tensors, in the order of its text. No other field is read: a compiler would guard on it too."""
    return [getattr(value, part.rpartition('"')[2]) for part in value.text.split(_TENSOR_FIELD)[:-1]]


def read(text: str, tensors: Sequence[Any] = ()) -> Any:
    """The value that a text describes; ``tensors`` take the places of those that were only named, in their order."""
    return _read(text) if not tensors and TENSOR not in text else _parsed(text, iter(tensors))


@functools.lru_cache(maxsize=256)
def _read(text: str) -> Any:
    return _parsed(text, iter(()))


def _parsed(text: str, tensors: Iterator[Any]) -> Any:
    import json

    return _made(json.loads(text), tensors)


def _made(value: Any, tensors: Iterator[Any]) -> Any:
    if isinstance(value, dict):
        name = value.pop("type")
        if name == TENSOR:
            return next(tensors)
        if name not in _kinds:
            rule = "a graph's classes must be known when it runs"
            raise TypeError(message("fastpe", rule, name, "Import their module first."))
        return _kinds[name](**{field: _made(one, tensors) for field, one in value.items()})
    return tuple(_made(one, tensors) for one in value) if isinstance(value, list) else value
