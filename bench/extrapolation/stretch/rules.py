"""The ways to stretch the model: what ``patch_transformers`` is given for a length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import fastpe
from fastpe import scaling
from fastpe._tools import smollm

__all__ = ["FACTORS", "RULES", "Piece", "Rule", "pieces"]

FACTORS = (2, 4)  # times the trained length
TRAINED = smollm.LENGTH
DYNAMIC = 2.0  # the usual factor; the length does the rest
Options = Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class Rule:
    """``options`` are arguments of ``patch_transformers`` for a factor. ``own`` rules have other ones for each factor.

    ``work`` is how much longer a reading takes than with no rule.
    """

    label: str
    options: Options
    own: bool = True
    work: float = 1.0
    sliding: bool = False  # only the last tokens, up to the trained length, are read


def _scaled(rule: Callable[[int], scaling.Scaling]) -> Options:
    return lambda factor: {"scaling": rule(factor)}


def dynamic(factor: int) -> scaling.Scaling:
    """Dynamic NTK for a length that is known beforehand: all of a text's keys are rotated alike, whichever step reads them."""
    return scaling.NTK(DYNAMIC * factor - (DYNAMIC - 1))


RULES = {
    "sliding": Rule("none, but only the last 4096 to 8192 tokens", lambda factor: {}, own=False, sliding=True),
    "none": Rule("none", lambda factor: {}, own=False),
    "linear": Rule("position interpolation", _scaled(scaling.Linear)),
    "ntk": Rule("NTK-aware", _scaled(scaling.NTK)),
    "dynamic_ntk": Rule("dynamic NTK", _scaled(dynamic)),
    "llama3": Rule("Llama 3's rule", _scaled(lambda factor: scaling.Llama3(factor, original_max_position=TRAINED))),
    "yarn": Rule("YaRN", _scaled(lambda factor: scaling.YaRN(factor, TRAINED))),
    "self_extend": Rule(
        "Self-Extend", lambda factor: {"remap": partial(fastpe.positions.self_extend, group=8, window=1024)}, False, 2.2
    ),
    "rerope": Rule("ReRoPE", lambda factor: {"remap": partial(fastpe.positions.rerope, window=TRAINED // 2)}, False, 1.7),
}


@dataclass(frozen=True)
class Piece:
    """One reading: a rule, and how many times the trained length is read."""

    name: str
    factor: int

    def __str__(self) -> str:
        return f"{self.name}-{self.factor}x"


def pieces(names: list[str], factors: tuple[int, ...]) -> list[Piece]:
    """The readings, those to short lengths first. A rule that is the same for all factors is read once, to the longest."""
    once = [Piece(name, factors[-1]) for name in names if not RULES[name].own]
    own = [[Piece(name, factor) for name in names if RULES[name].own] for factor in factors]
    return [*own[0], *once, *(piece for more in own[1:] for piece in more)]
