"""The encodings that are compared, all of them fastpe's: what each is trained as, and how it is applied to longer texts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

import fastpe
import fastpe.torch
from fastpe import scaling
from fastpe.torch import functional

__all__ = ["ENCODINGS", "FINE_TUNED", "TRAININGS", "Entry", "PositionEncoding", "Size", "Training"]

Tensor = torch.Tensor


@dataclass(frozen=True)
class Size:
    """What encodings must know of a model: the trained length, the width, the heads, and the longest length asked for."""

    length: int = 64
    width: int = 96
    heads: int = 4
    longest: int = 1024


# ---- the interface of an encoding --------------------------------------------------------------------------------------------


class PositionEncoding(torch.nn.Module):
    """None, and what the others are made of.

    ``begin(length, rng)`` before a pass over sequences of that length, ``embed(ids, table, start)`` in the first layer, ``attend(q, k, v)``
    in each: q (B, H, Tq, D) are the last rows of k and v, (B, H, T, D), and see what is not ahead of them.
    """

    absolute: Any = None

    def begin(self, length: int, rng: np.random.Generator | int) -> None:
        """Prepare for sequences of a length; rng draws what is random."""

    def embed(self, ids: Tensor, table: Tensor, start: int = 0) -> Tensor:
        """Return the embeddings (B, T, width) of tokens at positions start, start + 1, ..., with the encoding added."""
        position = {} if self.absolute is None else {"offset": start}
        return functional.embed(ids, table, self.absolute, scale=math.sqrt(table.shape[-1]), **position)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the mixture of v for each query, of q's shape."""
        return scaled_dot_product_attention(q, k, v, is_causal=q.shape[-2] > 1)


class Absolute(PositionEncoding):
    """A sinusoid, or any encoding that is added to the rows of tokens."""

    def __init__(self, encoding: Any) -> None:
        super().__init__()
        self.absolute = encoding


class LearnedTable(PositionEncoding):
    """A row for each position; positions beyond the table take its last row."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(rows, width) * width**-0.5)

    @property
    def absolute(self) -> Any:  # type: ignore[override]
        return fastpe.Learned(self.weight, out_of_range="clip")

    def resampled(self, rows: int) -> Absolute:
        """Return the table stretched to a number of rows."""
        return Absolute(fastpe.Learned(fastpe.resample(self.weight.detach(), rows)))


class Rotated(PositionEncoding):
    """Rotary, by positions as they are."""

    def __init__(self, rotary: fastpe.Rotary) -> None:
        super().__init__()
        self.rotary = rotary
        self.positions: Any = None
        self.length = 0

    def begin(self, length: int, rng: np.random.Generator | int) -> None:
        self.positions, self.length = torch.arange(length), length

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rotate = partial(functional.apply_rotary, encoding=self.rotary, seq_len=self.length)
        rows = self.positions[: k.shape[-2]]
        return super().attend(rotate(q, positions=rows[-q.shape[-2] :]), rotate(None, k, positions=rows), v)


class Randomized(Rotated):
    """Rotary, at positions drawn from a longer range, in training and after it."""

    def __init__(self, rotary: fastpe.Rotary, longest: int) -> None:
        super().__init__(rotary)
        self.longest = longest

    def begin(self, length: int, rng: np.random.Generator | int) -> None:
        self.positions = torch.from_numpy(fastpe.positions.randomized(length, max(length, self.longest), rng=rng))
        self.length = self.longest


class Remapped(PositionEncoding):
    """Rotary, with distant keys at distances that occurred in training."""

    def __init__(self, rotary: fastpe.Rotary, remap: Callable[..., fastpe.positions.Remap]) -> None:
        super().__init__()
        self.rotary, self.remap = rotary, remap

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = np.arange(k.shape[-2])
        remapped = self.remap(rows[-q.shape[-2] :], rows)
        branch = torch.from_numpy(remapped.branch())
        scores = None
        for b, (queries, keys) in enumerate(zip(remapped.q, remapped.k, strict=True)):
            rotated = functional.apply_rotary(q, encoding=self.rotary, positions=torch.from_numpy(queries))
            products = rotated @ functional.apply_rotary(None, k, self.rotary, positions=torch.from_numpy(keys)).mT
            scores = products if scores is None else torch.where(branch == b, products, scores)
        ahead = torch.from_numpy(rows[-q.shape[-2] :, None] < rows[None, :])
        return scores.mul_(q.shape[-1] ** -0.5).masked_fill_(ahead, -math.inf).softmax(-1) @ v


class Biased(PositionEncoding):
    """A bias by distance, added to the scores in place."""

    def __init__(self, make: Callable[..., Any], **learned: Tensor) -> None:
        super().__init__()
        self.make = make
        self.learned = torch.nn.ParameterDict({name: torch.nn.Parameter(value) for name, value in learned.items()})

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT
        fastpe.add_bias(scores, self.make(**self.learned), causal=True, input_scale=q.shape[-1] ** -0.5)
        return scores.softmax(-1) @ v


# ---- what is trained -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """A model to train, from nothing, or for a short while from another one at ``FINE_TUNED`` times the length."""

    make: Callable[[Size], PositionEncoding]
    start: str | None = None


FINE_TUNED = 8  # times the trained length: what rules are set to, and how long the texts are, when a trained model goes on


def _t5(size: Size) -> Biased:
    make = partial(fastpe.T5Bias, bidirectional=False, max_distance=size.length)
    return Biased(make, table=torch.zeros(32, size.heads))


def _kerple(size: Size) -> Biased:
    return Biased(fastpe.Kerple, p=2 * torch.rand(size.heads), a=torch.rand(size.heads))


def _fire(size: Size, hidden: int = 32) -> Biased:
    first, last = torch.nn.Linear(1, hidden), torch.nn.Linear(hidden, size.heads)
    layers = {"w1": first.weight, "b1": first.bias, "w2": last.weight, "b2": last.bias}
    start = {name: value.detach().clone() for name, value in layers.items()}
    # The paper starts its threshold at a quarter of the trained length.
    return Biased(fastpe.FIRE, c=torch.tensor(0.1), length=torch.tensor(size.length / 4), **start)


def _linear(factor: float, size: Size) -> scaling.Scaling:
    return scaling.Linear(factor)


def _ntk(factor: float, size: Size) -> scaling.Scaling:
    return scaling.NTK(factor)


def _dynamic(factor: float, size: Size) -> scaling.Scaling:
    return scaling.DynamicNTK(2.0, size.length)  # the usual factor; it takes the length from the call


def _llama3(factor: float, size: Size) -> scaling.Scaling:
    return scaling.Llama3(factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=size.length)


def _yarn(factor: float, size: Size) -> scaling.Scaling:
    return scaling.YaRN(factor, size.length)


RULES: dict[str, tuple[str, Callable[[float, Size], scaling.Scaling]]] = {
    "linear": ("position interpolation", _linear),
    "ntk": ("NTK-aware", _ntk),
    "dynamic": ("dynamic NTK", _dynamic),
    "llama3": ("Llama 3's rule", _llama3),
    "yarn": ("YaRN", _yarn),
}


def _tuned(rule: Callable[[float, Size], scaling.Scaling] | None) -> Training:
    def make(size: Size) -> PositionEncoding:
        return Rotated(fastpe.Rotary(scaling=rule and rule(FINE_TUNED, size)))

    return Training(make, start="rotary")


TRAININGS: dict[str, Training] = {
    "rotary": Training(lambda size: Rotated(fastpe.Rotary())),
    "kerple": Training(_kerple),
    "fire": Training(_fire),
    "t5": Training(_t5),
    "alibi": Training(lambda size: Biased(partial(fastpe.ALiBi, size.heads))),
    "xpos": Training(lambda size: Rotated(fastpe.Rotary(interleaved=True, xpos_scale_base=512.0))),
    "rotary_randomized": Training(lambda size: Randomized(fastpe.Rotary(), size.longest)),
    "sinusoidal": Training(lambda size: Absolute(fastpe.Sinusoidal())),
    "learned": Training(lambda size: LearnedTable(size.length, size.width)),
    "none": Training(lambda size: PositionEncoding()),
    "rotary_tuned": _tuned(None),
    **{f"rotary_{name}_tuned": _tuned(rule) for name, (_, rule) in RULES.items()},
}


# ---- what is evaluated ---------------------------------------------------------------------------------------------------------

At = Callable[[Any, int, Size], PositionEncoding]


def _as_trained(trained: PositionEncoding, factor: int, size: Size) -> PositionEncoding:
    return trained


@dataclass(frozen=True)
class Entry:
    """A line of the table: which model, and the encoding with which it reads texts of ``factor`` times the trained length."""

    label: str
    training: str
    longer: At = _as_trained

    def at(self, trained: PositionEncoding, factor: int, size: Size) -> PositionEncoding:
        """Return the encoding for a factor; at 1 that of the training, whatever comes after."""
        return trained if factor == 1 else self.longer(trained, factor, size)


def _scaled(rule: Callable[[float, Size], scaling.Scaling]) -> At:
    return lambda trained, factor, size: Rotated(replace(trained.rotary, scaling=rule(factor, size)))


def _rerope(trained: Rotated, factor: int, size: Size) -> PositionEncoding:
    return Remapped(trained.rotary, partial(fastpe.positions.rerope, window=size.length // 2))


def _self_extend(trained: Rotated, factor: int, size: Size) -> PositionEncoding:
    window = size.length // 2
    group = -(-(factor * size.length - window) // (size.length - window - 1))  # so that no distance exceeds those trained on
    return Remapped(trained.rotary, partial(fastpe.positions.self_extend, group=group, window=window))


ENCODINGS: dict[str, Entry] = {
    "none": Entry("none", "none"),
    "learned_clipped": Entry("learned, last row repeated", "learned"),
    "learned_resampled": Entry(
        "learned, resampled", "learned", lambda trained, factor, size: trained.resampled(factor * size.length)
    ),
    "sinusoidal": Entry("sinusoidal", "sinusoidal"),
    "sinusoidal_linear": Entry(
        "sinusoidal, position interpolation",
        "sinusoidal",
        lambda trained, factor, size: Absolute(replace(trained.absolute, position_scale=1 / factor)),
    ),
    "rotary": Entry("rotary", "rotary"),
    **{f"rotary_{name}": Entry(f"rotary, {label}", "rotary", _scaled(rule)) for name, (label, rule) in RULES.items()},
    "rotary_self_extend": Entry("rotary, Self-Extend", "rotary", _self_extend),
    "rotary_rerope": Entry("rotary, ReRoPE", "rotary", _rerope),
    "rotary_randomized": Entry("rotary, randomised positions", "rotary_randomized"),
    "xpos": Entry("xPos", "xpos"),
    "t5": Entry("T5 bias", "t5"),
    "fire": Entry("FIRE", "fire"),
    "kerple": Entry("KERPLE, logarithmic", "kerple"),
    "alibi": Entry("ALiBi", "alibi"),
    "rotary_tuned": Entry("rotary, fine-tuned", "rotary_tuned"),
    **{
        f"rotary_{name}_tuned": Entry(f"rotary, {label}, fine-tuned", f"rotary_{name}_tuned")
        for name, (label, _) in RULES.items()
    },
}
