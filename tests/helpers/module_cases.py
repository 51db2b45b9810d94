"""Modules to test, and what they are called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from fastpe import Rotary, Sinusoidal, scaling  # noqa: E402
from fastpe.torch import LearnedEncoding, RotaryEmbedding, SinusoidalEncoding, TokenEmbedding  # noqa: E402

CONCATENATED = Sinusoidal(layout="concatenated", amplitude=0.5)
YARN = Rotary(base=500.0, scaling=scaling.YaRN(4.0, 16))
COSINES, SINES = torch.linspace(-1, 1, 160).reshape(40, 4), torch.linspace(0, 1, 160).reshape(40, 4)
FAR = 10**6

MODULES: dict[str, Callable[..., Any]] = {
    "sinusoidal": lambda **options: SinusoidalEncoding(CONCATENATED, input_scale=2.0, **options),
    "rotary": lambda **options: RotaryEmbedding(YARN, **options),
    "rotary_table": lambda **options: RotaryEmbedding(Rotary.tabulated(COSINES, SINES), **options),
    "learned": lambda **options: LearnedEncoding(40, 8, **options),
    "tokens": lambda **options: TokenEmbedding(11, 8, "sinusoidal", scale=2.0, **options),
    "tokens_learned": lambda **options: TokenEmbedding(
        11, 8, LearnedEncoding(40, 8, **options), num_token_types=2, padding_idx=3, **options
    ),
}
IDS = torch.tensor([[3, 4, 0, 10, 3, 7], [1, 2, 3, 4, 5, 6]])
X = torch.linspace(-2, 2, 96).reshape(2, 6, 8)


def make(name: str, **options: Any) -> Any:
    torch.manual_seed(7)
    return MODULES[name](**options)


def call(module: Any, x: Any = None, **places: Any) -> Any:
    """A module's result for the tests' input."""
    if isinstance(module, TokenEmbedding):
        types = {} if module.types is None else {"token_types": IDS % 2}
        return module(IDS, **types, **places)
    return module(X if x is None else x, **places)
