"""Encodings written out as text, which is what a graph of PyTorch holds of them."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

from .._arrays import dispatch

TENSOR = "Tensor"  # stands for the caller's tensors


def written(value: Any) -> str:
    """A value of plain numbers and fastpe's own classes as JSON; tensors, and what is of anybody else's class, are only named.

    ``torch.compile`` follows this function where an encoding is made in a graph.
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true" if value else "false"
    if isinstance(value, int):
        return repr(operator.index(value))  # a compiler that leaves a number open fixes it here
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join([written(one) for one in value])}]"
    if dispatch.is_tensor(value):
        return f'{{"type": "{TENSOR}"}}'
    kind = type(value)
    if kind.__module__.partition(".")[0] != "fastpe":
        return f'{{"type": "{kind.__module__}.{kind.__qualname__}"}}'
    names = [field.name for field in dataclasses.fields(value) if field.init]
    fields = [f', "{name}": {written(getattr(value, name))}' for name in names]
    return f'{{"type": "{kind.__name__}"{"".join(fields)}}}'
