"""Configurations that are refused: they contradict themselves, or say what no rotation or no known rule is."""

from __future__ import annotations

import pytest

from fastpe import Rotary

LONG = {"type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0, 3.0]}


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        (
            {"model_type": "mystery", "rope_theta": 1e4},
            ValueError,
            "interleaved must be given for a model that is not known, got 'mystery'",
        ),
        ({"rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn", "speed": 2}}, ValueError, "the key speed is not understood"),
        ({"rope_theta": 1e4, "rope_scaling": {"factor": 2.0}}, KeyError, "factor needs rope_type beside it"),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 2.0, "alpha": 3}},
            ValueError,
            "alpha is understood with",
        ),
        ({"rope_theta": 1e4, "rotary_emb_base": 1e5}, ValueError, "config must name one base"),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "default"}, "rope_parameters": {"type": "mrope"}},
            ValueError,
            "must be the same",
        ),
        ({"rope_theta": 1e4, "rope_scaling": {"rope_type": "axial"}}, ValueError, "rope_type must be one of .*got 'axial'"),
        (
            {"model_type": "llama", "rope_theta": 1e4, "rotary_pct": 0.5, "head_dim": 64},
            ValueError,
            "the model's code rotates whole heads",
        ),
        ({"model_type": "nanochat", "rope_theta": 1e4}, ValueError, "it turns the other way"),
        ({"model_type": "hunyuan_vl", "rope_theta": 1e4}, ValueError, "which is not a rotation"),
        ({"model_type": "falcon", "alibi": True, "rope_theta": 1e4}, ValueError, "alibi=True says that nothing rotates"),
        (
            {"model_type": "esm", "position_embedding_type": "absolute", "rope_theta": 1e4},
            ValueError,
            "='absolute' says that nothing",
        ),
        (
            {"rope_theta": 1e4, "layer_rope_theta": [1e4, 1e5, 0]},
            ValueError,
            r"rope_theta must be the same in all layers.*100000",
        ),
        ({"model_type": "gpt_oss", "rope_scaling": {"rope_type": "yarn"}}, ValueError, "nothing in config describes"),
        (
            {"rope_theta": 1e4, "rotary_dim": 64, "rotary_pct": 0.25, "head_dim": 128},
            ValueError,
            "rotary_dim and partial_rotary_factor",
        ),
        ({"rope_theta": 1e4, "rotary_pct": 0.33, "head_dim": 64}, ValueError, "must give an even number .* got 0.33 and 21"),
        (
            {"rope_theta": 1e4, "rotary_scaling_factor": 2},
            ValueError,
            "rotary_scaling_factor is understood in model_type 'nomic_bert'",
        ),
        (
            {
                "rope_theta": 1e4,
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_scaling_layers": [0],
                "num_hidden_layers": 2,
            },
            ValueError,
            "only some layers have rope_type 'linear'",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {**LONG, "short_mscale": 1.0, "long_mscale": 1.2, "factor": 4.0}},
            ValueError,
            "short_mscale and long_mscale must be equal, got 1.0 and 1.2",
        ),
    ],
)
def test_refusals(config, error, text):
    with pytest.raises(error, match=text):
        Rotary.from_config(config)
