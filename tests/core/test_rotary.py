"""The rotary value: its configurations, sections and errors."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from fastpe import Rotary
from fastpe.scaling import DynamicNTK, Linear, Llama3, LongRoPE, Proportional, YaRN

# ---- configurations ----------------------------------------------------------------------------------------------------------

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 8192


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rope_theta": 500000.0}, Rotary(500000.0)),
        ({"rope_theta": 10000, "rope_scaling": None}, Rotary()),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}}, Rotary(scaling=Linear(4.0))),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, Rotary(1e6)),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, Rotary(5e5, scaling=Llama3(8.0, 1.0, 4.0, 8192))),
        (
            {"rope_theta": 1e4, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 2048},
            Rotary(scaling=DynamicNTK(2.0, 2048)),
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
            Rotary(scaling=YaRN(4.0, 32768)),
        ),
        (
            {
                "rope_theta": 1e4,
                "rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 4096, "truncate": False},
                "max_position_embeddings": 131072,
            },
            Rotary(scaling=YaRN(32.0, 4096, truncate=False)),
        ),
        (
            {
                "rope_theta": 1e4,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0, 3.0]},
                "original_max_position_embeddings": 4096,
                "max_position_embeddings": 131072,
            },
            Rotary(scaling=LongRoPE((1.0, 1.0), (2.0, 3.0), 4096, 32.0)),
        ),
        ({"rope_theta": 1e4, "partial_rotary_factor": 0.25, "head_dim": 64}, Rotary(rotary_dim=16)),
        ({"rotary_pct": 0.25, "rotary_emb_base": 10000, "hidden_size": 512, "num_attention_heads": 8}, Rotary(rotary_dim=16)),
        ({"rope_theta": 1e4, "rotary_dim": 64}, Rotary(rotary_dim=64)),
        (
            {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}},
            Rotary(1e6, scaling=Proportional(0.25)),
        ),
        (
            {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
            Rotary(1e6, sections=(16, 24, 24)),
        ),
        (
            {
                "rope_theta": 1e4,
                "rope_parameters": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
            },
            Rotary(sections=(24, 20, 20), section_layout="interleaved"),
        ),
    ],
)
def test_configurations(config, expected):
    assert Rotary.from_config(config) == expected
    assert Rotary.from_config(SimpleNamespace(**config)) == expected
    assert Rotary.from_config(config, interleaved=True) == dataclasses.replace(expected, interleaved=True)


def test_a_dict_for_each_type_of_layer():
    config = {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        }
    }
    assert Rotary.from_config(config, layer_type="full_attention") == Rotary(1e6, scaling=Linear(8.0))
    assert Rotary.from_config(config, layer_type="sliding_attention") == Rotary()
    with pytest.raises(ValueError, match=r"layer_type must be one of 'full_attention', 'sliding_attention'.*got None"):
        Rotary.from_config(config)
    with pytest.raises(ValueError, match="layer_type is for dicts by layer type"):
        Rotary.from_config({"rope_theta": 10000.0}, layer_type="full_attention")


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        (
            {"rope_theta": 1e4, "rope_scaling": {"rope_type": "spiral"}},
            ValueError,
            "rope_type must be one of 'default', 'dynamic', .*got 'spiral'",
        ),
        ({"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear"}}, KeyError, "rope_type 'linear' needs factor"),
        (
            {"rope_theta": 1e4, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            KeyError,
            "'dynamic' needs max_position_embeddings",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            KeyError,
            "'yarn' needs original_max_position_embeddings",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"rope_type": "longrope", "long_factor": [1.0]}},
            KeyError,
            "'longrope' needs short_factor",
        ),
        ({"rope_theta": 1e4, "rope_scaling": {**LLAMA3, "low_freq_factor": None}}, KeyError, "'llama3' needs low_freq_factor"),
        (
            {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 0.5}},
            ValueError,
            "Linear: factor must be at least 1",
        ),
        ({"rope_theta": 1e4, "rope_scaling": [1]}, TypeError, "rope_parameters must be a dict"),
        ({"rope_theta": 1e4, "partial_rotary_factor": 0.5}, KeyError, "needs hidden_size"),
    ],
)
def test_bad_configurations(config, error, text):
    with pytest.raises(error, match=text):
        Rotary.from_config(config)


@pytest.mark.parametrize("given", ["llama", None, [], object(), 10000.0, SimpleNamespace(config="llama")])
def test_what_is_no_configuration(given):
    with pytest.raises(TypeError, match=r"Rotary.from_config: config must be a configuration, .*rope_theta.* got .*Rotary\(\)"):
        Rotary.from_config(given)


def test_a_model_has_a_configuration():
    config = SimpleNamespace(model_type="gptj", rotary_dim=8)
    assert Rotary.from_config(SimpleNamespace(config=config)) == Rotary(rotary_dim=8, interleaved=True)


# ---- the value ---------------------------------------------------------------------------------------------------------------


def test_partial_rotary_counts_its_own_width():
    whole, partial = Rotary().frequencies(16)[0], Rotary(rotary_dim=16).frequencies(64)[0]
    assert (whole == partial).all()
    trailing = Rotary(rotary_offset=48)
    assert (trailing.frequencies(64)[0] == whole).all()
    assert trailing.plan(64).rotary_dim == 16


def test_sections_give_each_frequency_an_axis():
    assert Rotary(sections=(2, 3, 3)).plan(16).axes.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    for sections in ((24, 20, 20), (8, 12, 12)):  # Qwen3-VL: h if i % 3 == 1 and i < 3 sections[1], w if i % 3 == 2 ..., else t
        expected = [
            1 if i % 3 == 1 and i < 3 * sections[1] else 2 if i % 3 == 2 and i < 3 * sections[2] else 0
            for i in range(sum(sections))
        ]
        found = Rotary(sections=sections, section_layout="interleaved").plan(2 * sum(sections)).axes
        assert found.tolist() == expected
    assert not Rotary().plan(16).axes.any()


def test_attention_factor_wins():
    assert Rotary(scaling=YaRN(8.0, 4096), attention_factor=0.25).frequencies(64)[1] == 0.25
    assert Rotary().frequencies(64)[1] == 1.0


def test_it_is_a_value():
    rotary = Rotary(500000, scaling=Llama3(), sections=[4, 2, 2])
    assert rotary == Rotary(500000.0, scaling=Llama3(), sections=(4, 2, 2))
    assert {rotary: 1}[dataclasses.replace(rotary)] == 1
    assert rotary.plan(16) is rotary.plan(16, 4096), "no rule here depends on the length"
    found = rotary.frequencies(16)[0]
    found[:] = 0
    assert rotary.frequencies(16)[0][0] == 1.0


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Rotary(base=0), ValueError, "Rotary: base"),
        (lambda: Rotary(interleaved=1), TypeError, "interleaved"),
        (lambda: Rotary(rotary_dim=7), ValueError, "rotary_dim must be even.*got 7"),
        (lambda: Rotary(rotary_dim=16).frequencies(8), ValueError, "the channels that rotate must lie in the head.*head of 8"),
        (lambda: Rotary(rotary_dim=8, rotary_offset=4).frequencies(8), ValueError, "must lie in the head"),
        (lambda: Rotary(rotary_offset=-2), ValueError, "rotary_offset must be 0 or more"),
        (lambda: Rotary().frequencies(7), ValueError, "the number of channels that rotate must be even.*Give rotary_dim"),
        (lambda: Rotary(scaling="yarn"), TypeError, r"scaling must be a rule of fastpe.scaling"),
        (
            lambda: Rotary(sections=(2, 3)).frequencies(16),
            ValueError,
            r"add up to the number of frequencies, 8.*got \(2, 3\), 5 in all",
        ),
        (lambda: Rotary(sections=(8,)), TypeError, "sections must be a sequence of 2 or more integers"),
        (lambda: Rotary(sections=(9, -1)), ValueError, "sections must be 0 or more"),
        (lambda: Rotary(section_layout="zigzag"), ValueError, "section_layout must be one of"),
        (lambda: Rotary(attention_factor=0), ValueError, "attention_factor"),
        (lambda: Rotary().frequencies(64, -1), ValueError, "seq_len"),
        (lambda: Rotary(scaling=Linear(1.0), base=1e-300).frequencies(64), ValueError, "below 2\\^32 turns"),
    ],
)
def test_bad_values(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_largest_frequency_is_the_first():
    found, _ = Rotary().frequencies(128)
    assert found[0] == 1.0
    assert (np.diff(found) < 0).all()
