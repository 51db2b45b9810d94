"""The rules for longer contexts: against other projects' numbers, against long arithmetic, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import mpmath
import numpy as np
import pytest

import fastpe
from fastpe import Rotary, scaling
from fastpe._core import phase
from fastpe.scaling import NTK, Custom, DynamicNTK, Linear, Llama3, LongRoPE, NTKByParts, Proportional, YaRN

KNOWN = json.loads((Path(__file__).parents[1] / "data" / "rotary.json").read_text())
CONFIGURED = [case for case in KNOWN["frequencies"] if "config" in case]
RULED = [case for case in KNOWN["frequencies"] if "rule" in case]
FACTORS = tuple(1.0 + 0.25 * i for i in range(16))
RULES = [
    Linear(4.0),
    NTK(8.0),
    DynamicNTK(2.0, 100),
    YaRN(16.0, 4096),
    YaRN(40.0, 4096, mscale=1.0, mscale_all_dim=0.5, truncate=False),
    YaRN(8.0, 2048, ramp="turns"),
    NTKByParts(4.0),
    Llama3(),
    LongRoPE(FACTORS, FACTORS[::-1], 4096, 32.0),
    Proportional(0.25, 2.0),
    Custom(FACTORS),
]


def compare(case, found):
    frequencies, factor = found
    expected = np.array(case["frequencies"])
    assert frequencies.shape == expected.shape
    assert ((frequencies == 0) == (expected == 0)).all()
    assert np.abs(frequencies - expected).max() <= 4e-7 * expected.max()
    moving = expected > 0
    assert np.abs(frequencies[moving] / expected[moving] - 1).max() <= 4e-7
    assert factor == pytest.approx(case["attention_factor"], rel=1e-12)


# ---- other projects' numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CONFIGURED, ids=lambda case: case["name"])
def test_frequencies_of_configurations(case):
    rotary = Rotary.from_config(case["config"])
    compare(case, rotary.frequencies(case["config"]["head_dim"], case["seq_len"]))


@pytest.mark.parametrize("case", RULED, ids=lambda case: case["name"])
def test_frequencies_of_the_authors_of_yarn(case):
    rule = getattr(scaling, case["rule"])(**case["arguments"])
    compare(case, Rotary(scaling=rule).frequencies(case["head_dim"]))


def test_attention_factors():
    original = KNOWN["attention_factors"]["original_max_position"]
    for factor, yarn, longrope in KNOWN["attention_factors"]["rows"]:
        assert Rotary(scaling=YaRN(factor, original)).frequencies(8)[1] == pytest.approx(yarn, rel=1e-12)
        rule = LongRoPE((1,) * 4, (2,) * 4, original, factor)
        assert Rotary(scaling=rule).frequencies(8)[1] == pytest.approx(longrope, rel=1e-12)


# ---- long arithmetic ---------------------------------------------------------------------------------------------------------


def plain(base, dim):
    return [mpmath.mpf(base) ** (-mpmath.mpf(2 * i) / dim) for i in range(dim // 2)]


def cut(value):
    return min(max(value, mpmath.mpf(0)), mpmath.mpf(1))


def expected_frequencies(rule, base, dim, seq_len):
    """The formulas of the papers once more, one frequency at a time, in 400 bits."""
    w, two_pi = plain(base, dim), 2 * mpmath.pi
    if isinstance(rule, Linear):
        return [v / rule.factor for v in w]
    if isinstance(rule, NTK):
        return plain(mpmath.mpf(base) * mpmath.mpf(rule.factor) ** (mpmath.mpf(dim) / (dim - 2)), dim)
    if isinstance(rule, DynamicNTK):
        n0 = rule.original_max_position
        by = mpmath.mpf(rule.factor) * max(seq_len or 0, n0) / n0 - (mpmath.mpf(rule.factor) - 1)
        return plain(mpmath.mpf(base) * by ** (mpmath.mpf(dim) / (dim - 2)), dim)
    if isinstance(rule, YaRN) and rule.ramp == "index":
        ends = [
            dim * mpmath.log(rule.original_max_position / (r * two_pi)) / (2 * mpmath.log(base))
            for r in (rule.beta_fast, rule.beta_slow)
        ]
        low, high = (mpmath.floor(ends[0]), mpmath.ceil(ends[1])) if rule.truncate else ends
        low, high = max(low, 0), min(high, dim - 1)
        shares = [cut((i - low) / (high - low)) for i in range(dim // 2)]
        return [v / rule.factor * share + v * (1 - share) for v, share in zip(w, shares, strict=True)]
    if isinstance(rule, (YaRN, Llama3)):
        fast, slow = (
            (rule.beta_fast, rule.beta_slow) if isinstance(rule, YaRN) else (rule.high_freq_factor, rule.low_freq_factor)
        )
        kept = [cut((rule.original_max_position * v / two_pi - slow) / (mpmath.mpf(fast) - slow)) for v in w]
        return [(1 - g) * v / rule.factor + g * v for v, g in zip(w, kept, strict=True)]
    if isinstance(rule, LongRoPE):
        divisors = rule.long_factor if (seq_len or 0) > rule.original_max_position else rule.short_factor
        return [v / divisor for v, divisor in zip(w, divisors, strict=True)]
    if isinstance(rule, Proportional):
        return [v / rule.factor if i < int(rule.fraction * dim // 2) else mpmath.mpf(0) for i, v in enumerate(w)]
    assert isinstance(rule, Custom)
    return [mpmath.mpf(v) for v in rule.inverse_frequencies]


@pytest.mark.parametrize("seq_len", [None, 64, 5000, 1_000_000])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("rule", [rule for rule in RULES if not isinstance(rule, NTKByParts)], ids=repr)
def test_turns_are_rounded_once(rule, base, seq_len):
    """Exact to half a unit of 2^-64 turn a position, whatever the rule."""
    plan = Rotary(base, scaling=rule).plan(32, seq_len)
    with mpmath.workprec(400):
        for f, w in enumerate(expected_frequencies(rule, base, 32, seq_len)):
            ours = (int(plan.turns.whole[f]) << 64) + int(plan.turns.fraction[f])
            assert abs(w / (2 * mpmath.pi) * mpmath.mpf(2) ** 64 - ours) <= mpmath.mpf("0.500001")
            assert plan.angular[f] == float(w)


# ---- what follows from the papers --------------------------------------------------------------------------------------------


def test_nothing_stretched_is_the_plain_rule():
    expected = Rotary().frequencies(64)[0]
    for rule in (
        Linear(1),
        NTK(1),
        DynamicNTK(1, 100),
        YaRN(1, 4096),
        NTKByParts(1),
        Llama3(1),
        Proportional(1.0),
        DynamicNTK(9, 100),
    ):
        found, factor = Rotary(scaling=rule).frequencies(64, 100)
        assert np.abs(found / expected - 1).max() < 1e-15, rule
        assert factor == 1.0


def test_ntk_keeps_the_first_frequency_and_divides_the_last():
    plain_ones, found = Rotary().frequencies(128)[0], Rotary(scaling=NTK(8.0)).frequencies(128)[0]
    assert found[0] == plain_ones[0]
    assert found[-1] == pytest.approx(plain_ones[-1] / 8, rel=1e-14)
    assert (found <= plain_ones).all()


@pytest.mark.parametrize("rule", [YaRN(8.0, 4096), YaRN(8.0, 4096, ramp="turns"), Llama3(8.0), NTKByParts(8.0)], ids=repr)
def test_blends_lie_between_plain_and_interpolated(rule):
    plain_ones, found = Rotary().frequencies(128)[0], Rotary(scaling=rule).frequencies(128)[0]
    assert (found <= plain_ones * (1 + 1e-15)).all()
    assert (found >= plain_ones / 8 * (1 - 1e-15)).all()
    assert found[0] == plain_ones[0]
    assert found[-1] == pytest.approx(plain_ones[-1] / 8, rel=1e-14)
    assert (np.diff(found) < 0).all()


def test_length_counts_where_the_rule_says_so():
    for rule in RULES:
        rotary = Rotary(scaling=rule)
        same = (rotary.frequencies(32, 50)[0] == rotary.frequencies(32, 1_000_000)[0]).all()
        assert rotary.needs_length == (not same), rule
    dynamic = Rotary(scaling=DynamicNTK(2.0, 100))
    assert (dynamic.frequencies(32, 30)[0] == dynamic.frequencies(32)[0]).all()
    once = dynamic.frequencies(32, 400)[0]
    dynamic.frequencies(32, 50)
    assert (dynamic.frequencies(32, 400)[0] == once).all(), "a rule has no state"


@pytest.mark.parametrize(("fraction", "turn"), [(0.25, 2), (0.3, 2), (0.374, 2), (0.376, 3), (0.01, 0), (1.0, 8)])
def test_a_share_is_cut_to_whole_frequencies(fraction, turn):
    found, _ = Rotary(scaling=Proportional(fraction)).frequencies(16)
    assert (found[:turn] == Rotary().frequencies(16)[0][:turn]).all()
    assert not found[turn:].any()


def test_yarn_reads_mscale_as_the_models_do():
    for arguments, expected in (
        ({}, 0.1 * np.log(40) + 1),
        ({"mscale": 0.707}, 0.1 * np.log(40) + 1),
        ({"mscale": 0.707, "mscale_all_dim": 0.707}, 1.0),
        ({"mscale": 1.0, "mscale_all_dim": 0}, 0.1 * np.log(40) + 1),
        ({"mscale": 1.0, "mscale_all_dim": 0.5}, (0.1 * np.log(40) + 1) / (0.05 * np.log(40) + 1)),
        ({"attention_factor": 0.5, "mscale": 1.0, "mscale_all_dim": 0.5}, 0.5),
    ):
        assert Rotary(scaling=YaRN(40, 4096, **arguments)).frequencies(64)[1] == pytest.approx(expected, rel=1e-12)


# ---- values ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rules_are_values(rule):
    assert rule == dataclasses.replace(rule)
    assert hash(rule) == hash(dataclasses.replace(rule))
    assert eval(repr(rule)) == rule
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.factor = 3.0


def test_arrays_and_integers_become_plain_numbers():
    rule = LongRoPE(np.arange(1, 5), [1, 2, 3, np.float32(4)], np.int64(4096), 32)
    assert rule == LongRoPE((1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 3.0, 4.0), 4096, 32.0)
    assert type(Linear(np.float32(4)).factor) is float
    assert type(rule.original_max_position) is int


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Linear(0.5), ValueError, r"Linear: factor must be at least 1.*got 0.5"),
        (lambda: Linear(True), TypeError, "Linear: factor must be a real number"),
        (lambda: Linear("4"), TypeError, "Linear: factor must be a real number"),
        (lambda: Linear(float("nan")), ValueError, "Linear: factor"),
        (lambda: NTK(0.9), ValueError, "NTK: factor must be at least 1"),
        (lambda: DynamicNTK(0.5, 100), ValueError, "DynamicNTK: factor must be at least 1"),
        (lambda: DynamicNTK(2.0, 0), ValueError, "original_max_position must be at least 1"),
        (lambda: DynamicNTK(2.0, 99.5), TypeError, "original_max_position"),
        (lambda: YaRN(-1.0, 4096), ValueError, "YaRN: factor"),
        (lambda: YaRN(8.0, 4096, beta_fast=1.0, beta_slow=32.0), ValueError, "beta_fast must be greater than beta_slow"),
        (lambda: YaRN(8.0, 4096, truncate=1), TypeError, "truncate"),
        (lambda: YaRN(8.0, 4096, ramp="paper"), ValueError, "ramp must be one of 'index', 'turns'"),
        (lambda: NTKByParts(8.0, beta=(0.75, 1.25)), ValueError, "beta must be two numbers, the greater one first"),
        (lambda: Llama3(8.0, 4.0, 1.0), ValueError, "high_freq_factor must be at least low_freq_factor"),
        (lambda: Llama3(0.5), ValueError, "Llama3: factor must be at least 1"),
        (lambda: LongRoPE((1, 2), (1, 2, 3), 4096), ValueError, "the same length.*got 2 and 3 numbers"),
        (lambda: LongRoPE((1, 0), (1, 2), 4096), ValueError, r"short_factor must be greater than 0.*got 0 at index 1"),
        (lambda: LongRoPE(3.0, (1, 2), 4096), TypeError, "short_factor must be a sequence of numbers"),
        (
            lambda: Rotary(scaling=LongRoPE((1, 2), (1, 2), 4096)).frequencies(8),
            ValueError,
            "a number for each of 4 frequencies",
        ),
        (lambda: Proportional(1.5), ValueError, r"fraction must lie in \(0, 1\]"),
        (lambda: Custom(()), TypeError, "inverse_frequencies must be a sequence of numbers"),
        (lambda: Custom((1.0, -1.0)), ValueError, "inverse_frequencies must be 0 or more.*index 1"),
        (lambda: Rotary(scaling=Custom((1.0,))).frequencies(8), ValueError, "a number for each of 4 frequencies"),
    ],
)
def test_bad_rules(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_public_names():
    assert fastpe.scaling is scaling
    for name in scaling.__all__:
        assert getattr(scaling, name).__doc__
    assert issubclass(YaRN, scaling.Scaling)
    assert phase.DIGITS >= 60


def test_the_scale_of_scores():
    """DeepSeek's: YaRN's temperature, squared, once for queries and once for keys; of all other rules 1."""
    for factor, all_dim, expected in (
        (40.0, 1.0, 1.8738542071),
        (40.0, 0.707, 1.5896261651),
        (40.0, None, 1.0),
        (0.5, 1.0, 1.0),
    ):
        rule = YaRN(factor, 4096, mscale=1.0, mscale_all_dim=all_dim)
        assert fastpe.Rotary(scaling=rule).softmax_scale == pytest.approx(expected, rel=1e-7)
    for rule in (None, Linear(4.0), YaRN(4.0, 4096), YaRN(4.0, 4096, mscale=2.0)):
        assert fastpe.Rotary(scaling=rule).softmax_scale == 1
    assert fastpe.Rotary.tabulated(np.ones((2, 2)), np.ones((2, 2))).softmax_scale == 1
