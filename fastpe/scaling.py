"""Rules that stretch an encoding's frequencies to contexts longer than those it was trained on.

A rule is a frozen value of plain numbers. It takes the plain frequencies ``w_i = base^(-2i/d)``, i = 0 ... d/2 - 1, to others, and
returns a factor on cosines and sines, the attention factor. All of it is computed with 60 decimal digits, so that a frequency is rounded
once, whatever the rule. ``Rotary`` uses both; ``Sinusoidal`` uses the frequencies alone, as it has no attention to scale.

Rules that depend on the length of the sequence are stateless: the length is an argument, ``seq_len``.

    from fastpe.scaling import YaRN
    rotary = fastpe.Rotary(scaling=YaRN(factor=4.0, original_max_position=32768))
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, NamedTuple

from ._core import checks, text
from ._core.checks import message
from ._core.phase import TWO_PI

__all__ = ["NTK", "Custom", "DynamicNTK", "Linear", "Llama3", "LongRoPE", "NTKByParts", "Proportional", "Scaling", "YaRN"]

_TWO_PI = Decimal(TWO_PI)


class Plain(NamedTuple):
    """What a rule is given: base and width d of ``base^(-2i/d)``, the number of frequencies, and the length of the sequence if known."""

    base: float
    dim: float
    number: int
    seq_len: int | None

    def frequencies(self, base: Decimal | None = None) -> list[Decimal]:
        """The frequencies without a rule, for this base or another."""
        ratio = (-Decimal(2) / Decimal(self.dim) * (Decimal(self.base) if base is None else base).ln()).exp()
        found = [Decimal(1)]
        while len(found) < self.number:
            found.append(found[-1] * ratio)
        return found[: self.number]

    def stretched(self, factor: Decimal) -> list[Decimal]:
        """The frequencies for ``base * factor^(d/(d-2))``: the first is unchanged, the last is divided by ``factor``."""
        if self.number <= 1:
            return self.frequencies()
        return self.frequencies(Decimal(self.base) * factor ** (Decimal(self.dim) / (2 * self.number - 2)))

    def ramp(self, original: int, fast: float, slow: float, truncate: bool) -> list[Decimal]:
        """0 for frequencies that make more than ``fast`` turns in the original context, 1 for less than ``slow``, linear in between.

        Linear in the index, whose value at r turns is ``d ln(original / (2 pi r)) / (2 ln base)``; ``truncate`` widens to integers.
        """
        low, high = (
            Decimal(self.dim) * (original / (Decimal(turns) * _TWO_PI)).ln() / (2 * Decimal(self.base).ln())
            for turns in (fast, slow)
        )
        if truncate:
            low, high = low.to_integral_value("ROUND_FLOOR"), high.to_integral_value("ROUND_CEILING")
        low, high = max(low, Decimal(0)), min(high, Decimal(self.dim) - 1)
        if low == high:
            high += Decimal("0.001")
        return [_cut((i - low) / (high - low)) for i in range(self.number)]


def _cut(share: Decimal) -> Decimal:
    return min(max(share, Decimal(0)), Decimal(1))


class Scaling:
    """The base of all rules. A rule of your own is a frozen dataclass derived from it, with ``apply``."""

    softmax_scale: float = 1.0  # by what attention multiplies its scores, beside 1/sqrt(D)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        text.register(cls)

    def __reduce__(self) -> Any:
        return text.reduced(self)

    @property
    def needs_length(self) -> bool:
        """Whether the frequencies depend on the length of the sequence."""
        return False

    def apply(self, plain: Plain) -> tuple[list[Decimal], float]:
        """Return the frequencies as decimal numbers, and the attention factor. The decimal context has 60 digits."""
        raise NotImplementedError

    def _check(self, least_factor: float = 0.0) -> None:
        """Make fields that are declared as numbers plain ones: an int at least 1, a float greater than 0; ``factor`` may have a least."""
        name = type(self).__name__
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.type == "int":
                checked: Any = checks.width(name, field.name, value)
            elif field.type == "float" or (field.type == "float | None" and value is not None):
                checked = checks.positive_number(name, field.name, value)
            else:
                continue
            if field.name == "factor" and checked < least_factor:
                raise ValueError(message(name, f"factor must be at least {least_factor:g}", f"{checked:g}"))
            object.__setattr__(self, field.name, checked)


def check(name: str, rule: Any) -> None:
    """Raise TypeError for anything but a rule or None."""
    if rule is not None and not isinstance(rule, Scaling):
        raise TypeError(message(name, "scaling must be a rule of fastpe.scaling or None", checks.describe(rule)))


def _log_factor(factor: float, coefficient: float) -> float:
    """YaRN's temperature: ``0.1 c ln(factor) + 1``, or 1 if nothing is stretched."""
    return 1.0 if factor <= 1 else float(Decimal("0.1") * Decimal(coefficient) * Decimal(factor).ln() + 1)


@dataclass(frozen=True)
class Linear(Scaling):
    """Position interpolation: ``w_i / factor``, with ``factor`` >= 1.

    Chen et al., "Extending Context Window of Large Language Models via Positional Interpolation", 2023 (arXiv 2306.15595).
    """

    factor: float

    def __post_init__(self) -> None:
        self._check(least_factor=1.0)

    def apply(self, plain: Plain) -> tuple[list[Decimal], float]:
        return [w / Decimal(self.factor) for w in plain.frequencies()], 1.0


@dataclass(frozen=True)
class NTK(Scaling):
    """NTK-aware interpolation: the plain rule with ``base * factor^(d/(d-2))``, ``factor`` >= 1. Also HunYuan's ``alpha``.

    bloc97, "NTK-Aware Scaled RoPE", 2023; Peng et al., "YaRN", 2023 (arXiv 2309.00071), section 3.1.
    """

    factor: float

    def __post_init__(self) -> None:
        self._check(least_factor=1.0)

    def apply(self, plain: Plain) -> tuple[list[Decimal], float]:
        return plain.stretched(Decimal(self.factor)), 1.0


@dataclass(frozen=True)
class DynamicNTK(Scaling):
    """NTK-aware interpolation by the length at hand: ``factor * n/n0 - (factor - 1)`` with ``n = max(seq_len, n0)``.

    Up to ``original_max_position`` (n0) nothing is scaled. Without a length, which only ``Rotary.frequencies`` allows, n is n0.
    Hugging Face's module keeps the longest length so far; here the length is always that of the call.

    emozilla, "Dynamically Scaled RoPE", 2023; Peng et al., 2023 (arXiv 2309.00071), section 3.3.
    """

    factor: float
    original_max_position: int
    needs_length = True

    def __post_init__(self) -> None:
        self._check(least_factor=1.0)

    def apply(self, plain: Plain) -> tuple[list[Decimal], float]:
        length = max(plain.seq_len or 0, self.original_max_position)
        factor = Decimal(self.factor)
        return plain.stretched(factor * length / self.original_max_position - (factor - 1)), 1.0


@dataclass(frozen=True)
class YaRN(Scaling):
    """Interpolate slow frequencies, keep fast ones, and blend between, linearly in the frequency's index.

    A frequency that makes r turns within ``original_max_position`` (n0) has the index ``d ln(n0 / (2 pi r)) / (2 ln base)``.
    Frequencies below the index of ``beta_fast`` turns (rounded down if ``truncate``) are kept; those above the index of ``beta_slow``
    turns (rounded up) are divided by ``factor``. The attention factor is ``attention_factor`` if it is given, else
    ``g(mscale) / g(mscale_all_dim)`` if both are given, else ``g(1)``; ``g(c) = 0.1 c ln(factor) + 1``, or 1 for a factor up to 1.
    ``mscale`` alone is ignored, as in Hugging Face's library. ``mscale_all_dim`` scales all channels, not only those that rotate: attention
    multiplies its scores by ``softmax_scale``, ``g(mscale_all_dim)^2``, as DeepSeek's code does.

    This is the rule of the authors' code and of every implementation. ``ramp="turns"`` is the paper's own formula, which blends linearly in
    the number of turns.

    Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023 (arXiv 2309.00071), equations 18 to 20.
    """

    factor: float
    original_max_position: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    attention_factor: float | None = None
    ramp: str = "index"

    def __post_init__(self) -> None:
        checks.one_of("YaRN", "ramp", self.ramp, ("index", "turns"))
        for name in ("mscale", "mscale_all_dim"):  # 0 stands for none in the models' configurations
            if getattr(self, name) == 0:
                object.__setattr__(self, name, None)
        self._check()
        checks.boolean("YaRN", "truncate", self.truncate)
        if self.beta_fast < self.beta_slow or (self.beta_fast == self.beta_slow and self.ramp == "turns"):
            got = f"{self.beta_fast:g} and {self.beta_slow:g}"
            rule = "beta_fast must be greater than beta_slow, or equal to it with the ramp by index"
            raise ValueError(message("YaRN", rule, got))

    def apply(self, plain: Plain) -> tuple[list[Decimal], float]:
        frequencies = plain.frequencies()
        if self.ramp == "index":
            ramp = plain.ramp(self.original_max_position, self.beta_fast, self.beta_slow, self.truncate)
        else:
            ramp = _ramp_in_turns(frequencies, self.original_max_position, self.beta_fast, self.beta_slow)
        factor = Decimal(self.factor)
        return [w / factor * share + w * (1 - share) for w, share in zip(frequencies, ramp, strict=True)], self.temperature

    @property
    def softmax_scale(self) -> float:  # type: ignore[override]
        return 1.0 if self.mscale_all_dim is None else _log_factor(self.factor, self.mscale_all_dim) ** 2

    @property
    def temperature(self) -> float:
        """The attention factor, a factor on cosines and sines."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale is not None and self.mscale_all_dim is not None:
            return _log_factor(self.factor, self.mscale) / _log_factor(self.factor, self.mscale_all_dim)
        return _log_factor(self.factor, 1.0)


@dataclass(frozen=True)
class NTKByParts(Scaling):
    """YaRN's forerunner: fast frequencies as they are, medium ones NTK-aware, slow ones interpolated, blended as in ``YaRN``.

    Frequencies above ``beta[0]`` turns within ``original_max_position`` are NTK-aware, those below ``beta[1]`` linear. Between ``gamma[1]``
    and ``gamma[0]`` turns the result then blends into the plain frequencies. The defaults are the authors' values for Llama.

    bloc97 and Peng, ``LlamaPartNTKScaledRotaryEmbedding`` in the authors' repository, 2023.
    """

    factor: float
    original_max_position: int = 2048
    beta: tuple[float, float] = (1.25, 0.75)
    gamma: tuple[float, float] = (16.0, 2.0)

    def __post_init__(self) -> None:
        for name in ("beta", "gamma"):
            pair = _numbers("NTKByParts", name, getattr(self, name))
            if len(pair) != 2 or pair[0] <= pair[1]:
                raise ValueError(message("NTKByParts", f"{name} must be two numbers, the greater one first", str(pair)))
            object.__setattr__(self, name, pair)
        self._check(least_factor=1.0)

    def apply(self, plain: Plain) -> tuple[list[Decimal], float]:
        factor, frequencies = Decimal(self.factor), plain.frequencies()
        slow = plain.ramp(self.original_max_position, *self.beta, truncate=True)
        medium = plain.ramp(self.original_max_position, *self.gamma, truncate=True)
        mixed = [w / factor * s + v * (1 - s) for w, v, s in zip(frequencies, plain.stretched(factor), slow, strict=True)]
        return [m * s + w * (1 - s) for w, m, s in zip(frequencies, mixed, medium, strict=True)], 1.0


def _ramp_in_turns(frequencies: list[Decimal], original: int, fast: float, slow: float) -> list[Decimal]:
    """0 for frequencies that make more than ``fast`` turns in the original context, 1 for less than ``slow``, linear in the turns."""
    if fast == slow:  # a step: Llama 4
        return [Decimal(original * w / _TWO_PI < Decimal(slow)) for w in frequencies]
    return [_cut((Decimal(fast) - original * w / _TWO_PI) / (Decimal(fast) - Decimal(slow))) for w in frequencies]


@dataclass(frozen=True)
class Llama3(Scaling):
    """Llama 3.1: keep wavelengths below n0/high, divide the frequencies of those above n0/low by ``factor``, and blend by turns between.

    n0 is ``original_max_position``, low and high are ``low_freq_factor`` and ``high_freq_factor``, as in the models' configurations.

    Meta, ``llama_models`` (``apply_scaling``), 2024; "The Llama 3 Herd of Models" (arXiv 2407.21783).
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192

    def __post_init__(self) -> None:
        self._check(least_factor=1.0)
        if self.high_freq_factor < self.low_freq_factor:
            got = f"{self.high_freq_factor:g} and {self.low_freq_factor:g}"
            raise ValueError(message("Llama3", "high_freq_factor must be at least low_freq_factor", got))

    def apply(self, plain: Plain) -> tuple[list[Decimal], float]:
        frequencies = plain.frequencies()
        ramp = _ramp_in_turns(frequencies, self.original_max_position, self.high_freq_factor, self.low_freq_factor)
        return [w / Decimal(self.factor) * s + w * (1 - s) for w, s in zip(frequencies, ramp, strict=True)], 1.0


@dataclass(frozen=True)
class LongRoPE(Scaling):
    """A divisor for each frequency, found by search: ``long_factor`` beyond ``original_max_position``, ``short_factor`` up to it.

    The attention factor is ``attention_factor`` if it is given, else ``sqrt(1 + ln(factor) / ln(original_max_position))``, or 1 for a
    factor up to 1; ``factor`` is the ratio of the longest context to the original one. The length decides for all positions of a call.
    So keys that were cached with the short divisors do not fit queries with the long ones: give the final ``seq_len`` from the start.

    Ding et al., "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens", 2024 (arXiv 2402.13753).
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position: int
    factor: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        for name in ("short_factor", "long_factor"):
            object.__setattr__(self, name, _numbers("LongRoPE", name, getattr(self, name)))
        self._check()
        if len(self.short_factor) != len(self.long_factor):
            got = f"{len(self.short_factor)} and {len(self.long_factor)} numbers"
            raise ValueError(message("LongRoPE", "short_factor and long_factor must have the same length", got))

    @property
    def needs_length(self) -> bool:
        return self.short_factor != self.long_factor

    def apply(self, plain: Plain) -> tuple[list[Decimal], float]:
        divisors = self.long_factor if (plain.seq_len or 0) > self.original_max_position else self.short_factor
        plain_ones = plain.frequencies()
        if len(divisors) != len(plain_ones):
            rule = f"short_factor and long_factor need a number for each of {len(plain_ones)} frequencies"
            raise ValueError(message("LongRoPE", rule, f"{len(divisors)} numbers"))
        found = [w / Decimal(divisor) for w, divisor in zip(plain_ones, divisors, strict=True)]
        if self.attention_factor is not None:
            return found, self.attention_factor
        if self.factor <= 1:
            return found, 1.0
        return found, float((1 + Decimal(self.factor).ln() / Decimal(self.original_max_position).ln()).sqrt())


@dataclass(frozen=True)
class Proportional(Scaling):
    """p-RoPE: the fastest ``fraction`` of the frequencies, divided by ``factor``; the others are 0, so that their pairs stand still.

    The exponent counts over the whole rotary width. Partial rotary (``Rotary.rotary_dim``) has other frequencies.

    Barbero et al., "Round and Round We Go! What makes Rotary Positional Encodings useful?", 2024 (arXiv 2410.06205); Gemma 4.
    """

    fraction: float
    factor: float = 1.0

    def __post_init__(self) -> None:
        self._check()
        if self.fraction > 1:
            raise ValueError(message("Proportional", "fraction must lie in (0, 1]", f"{self.fraction:g}"))

    def apply(self, plain: Plain) -> tuple[list[Decimal], float]:
        count = int(self.fraction * plain.dim // 2)
        return [w / Decimal(self.factor) if i < count else Decimal(0) for i, w in enumerate(plain.frequencies())], 1.0


@dataclass(frozen=True)
class Custom(Scaling):
    """Inverse frequencies of your own, in radians a position, and an attention factor. The base is not used."""

    inverse_frequencies: tuple[float, ...]
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        found = _numbers("Custom", "inverse_frequencies", self.inverse_frequencies, zero=True)
        object.__setattr__(self, "inverse_frequencies", found)
        self._check()

    def apply(self, plain: Plain) -> tuple[list[Decimal], float]:
        if len(self.inverse_frequencies) != plain.number:
            rule = f"inverse_frequencies needs a number for each of {plain.number} frequencies"
            raise ValueError(message("Custom", rule, f"{len(self.inverse_frequencies)} numbers"))
        return [Decimal(w) for w in self.inverse_frequencies], self.attention_factor


def _numbers(name: str, field: str, values: Any, zero: bool = False) -> tuple[float, ...]:
    """A sequence or array of positive numbers as a tuple."""
    found = checks.numbers(name, field, values)
    for i, value in enumerate(found):
        if value < 0 or (value == 0 and not zero):
            rule = f"{field} must be {'0 or more' if zero else 'greater than 0'}"
            raise ValueError(message(name, rule, f"{value:g} at index {i}"))
    return found
