"""Configurations as models publish them, in the keys of every generation: what is read, and what is refused and why."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fastpe import Rotary
from fastpe.encodings import config_models
from fastpe.scaling import NTK, DynamicNTK, Linear, Llama3, LongRoPE, YaRN

DEEPSEEK = {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}
KIMI = {"type": "yarn", "factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
KIMI["original_max_position_embeddings"] = 4096
LONG = {"type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0, 3.0]}
MODERNBERT = {"model_type": "modernbert", "hidden_size": 768, "num_attention_heads": 12, "global_rope_theta": 160000.0}
MODERNBERT["local_rope_theta"] = 10000.0
GEMMA3 = {"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4}
GEMMA3["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
OLMO3 = {"model_type": "olmo3", "rope_theta": 5e5, "rope_scaling": {"rope_type": "yarn", "factor": 8.0}}
OLMO3["rope_scaling"]["original_max_position_embeddings"] = 8192
QWEN = {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
VISION = {"model_type": "qwen2_5_vl_vision", "hidden_size": 1280, "num_heads": 16}
V4 = {
    "model_type": "deepseek_v4",
    "head_dim": 512,
    "rope_theta": 1e4,
    "compress_rope_theta": 1.6e5,
    "partial_rotary_factor": 0.125,
}


def read(config, **keywords):
    """The encoding of a dict, which an object with the same entries must have too."""
    found = Rotary.from_config(config, **keywords)
    assert Rotary.from_config(SimpleNamespace(**config), **keywords) == found
    return found


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "deepseek_v3", "qk_rope_head_dim": 64, "rope_theta": 10000}, Rotary(interleaved=True)),
        ({"model_type": "kimi_k2", "rope_theta": 5e4}, Rotary(5e4, interleaved=True)),
        ({"model_type": "deepseek_v3", "rope_theta": 1e4, "rope_interleave": False}, Rotary()),
        ({"model_type": "llama", "max_position_embeddings": 4096}, Rotary()),
        ({"model_type": "smollm3"}, Rotary(2e6)),
        ({"model_type": "gptj", "rotary_dim": 64}, Rotary(interleaved=True, rotary_dim=64)),
        ({"model_type": "roformer", "rotary_value": True}, Rotary(interleaved=True)),
        ({"model_type": "glm", "head_dim": 128, "rope_theta": 1e4}, Rotary(interleaved=True, rotary_dim=64)),
        ({"model_type": "dbrx", "attn_config": {"kv_n_heads": 8, "rope_theta": 5e5}}, Rotary(5e5)),
        (
            {"model_type": "chatglm", "kv_channels": 128, "rope_ratio": 1, "rope_theta": 1e4},
            Rotary(interleaved=True, rotary_dim=64),
        ),
        ({"rope_pct": 0.25, "rope_theta": 1e4, "hidden_size": 2560, "num_attention_heads": 32}, Rotary(rotary_dim=20)),
        ({"rotary_emb_base": 1e3, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": True}, Rotary(1e3, interleaved=True)),
        ({"rotary_embedding_base": 10000}, Rotary()),
        ({"rope_embedding_base": 1e6, "rope_position_scale": 1.0}, Rotary(1e6)),
        ({"rope_theta": 1e4, "use_dynamic_ntk": False, "rope_ratio": None}, Rotary()),
        (
            {"model_type": "nomic_bert", "rotary_emb_base": 1000, "rotary_scaling_factor": 2, "max_trained_positions": 2048},
            Rotary(1e3, scaling=DynamicNTK(2.0, 2048)),
        ),
        ({**QWEN, "model_type": "qwen2_5_vl", "vision_config": VISION}, Rotary(1e6, sections=(16, 24, 24))),
        ({"model_type": "qwen2_vl_text", "rope_theta": 1e6}, Rotary(1e6, sections=(16, 24, 24))),
        (
            {
                "model_type": "qwen3_vl_text",
                "head_dim": 128,
                "rope_theta": 5e6,
                "rope_scaling": {"mrope_section": [24, 20, 20]},
            },
            Rotary(5e6, sections=(24, 20, 20), section_layout="interleaved"),
        ),
    ],
)
def test_what_published_models_say(config, expected):
    assert read(config) == expected


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({"rope_theta": 1e4, "rope_scaling": DEEPSEEK}, YaRN(40.0, 4096, mscale=1.0, mscale_all_dim=1.0)),
        ({"rope_theta": 1e4, "rope_scaling": {**DEEPSEEK, "beta_fast": None, "attention_factor": None}}, None),
        ({"rope_theta": 1e4, "rope_scaling": {**DEEPSEEK, "factor": 0.5}}, YaRN(0.5, 4096, mscale=1.0, mscale_all_dim=1.0)),
        (
            {
                "rope_theta": 1e4,
                "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
                "max_position_embeddings": 32768,
            },
            NTK(1000.0),
        ),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 2.0}, "max_position_embeddings": 64}, YaRN(2.0, 64)),
        (  # the model's key goes before the rule's
            {
                "rope_theta": 1e4,
                "rope_scaling": {**LONG, "original_max_position_embeddings": 8192, "factor": 4.0},
                "original_max_position_embeddings": 4096,
            },
            LongRoPE((1.0, 1.0), (2.0, 3.0), 4096, 4.0),
        ),
        (
            {
                "rope_theta": 1e4,
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
                "max_position_embeddings": 131072,
            },
            Llama3(8.0, 1.0, 4.0, 131072),
        ),
        (
            {
                "rope_theta": 1e4,
                "rope_scaling": {**LONG, "short_mscale": 1.243163121016122, "long_mscale": 1.243163121016122},
                "original_max_position_embeddings": 4096,
                "max_position_embeddings": 131072,
            },
            LongRoPE((1.0, 1.0), (2.0, 3.0), 4096, 32.0, 1.243163121016122),
        ),
    ],
)
def test_rules(config, scaling):
    scaling = YaRN(40.0, 4096, mscale=1.0, mscale_all_dim=1.0) if scaling is None else scaling
    assert read(config) == Rotary(scaling=scaling)


def test_deepseek_v3():
    """Its pairs lie side by side, and its two factors of attention cancel out."""
    config = {"model_type": "deepseek_v3", "qk_rope_head_dim": 64, "rope_theta": 10000}
    found = read(config | {"rope_scaling": DEEPSEEK | {"beta_fast": 32, "beta_slow": 1}})
    assert found == Rotary(interleaved=True, scaling=YaRN(40.0, 4096, mscale=1.0, mscale_all_dim=1.0))
    assert found.frequencies(64)[1] == 1
    assert found.softmax_scale == pytest.approx((0.1 * np.log(40) + 1) ** 2, rel=1e-15)


def test_the_scale_of_scores_is_that_of_the_models_code():
    yarn = DEEPSEEK | {"mscale": 0.707}
    for config in ({"model_type": "kimi_k2"}, {"model_type": "minicpm3"}, {}):  # also where the model is not known
        found = read(config | {"rope_theta": 1e4, "rope_scaling": yarn}, interleaved=False)
        assert found.softmax_scale == pytest.approx((0.1 * np.log(40) + 1) ** 2, rel=1e-15)
        assert found.frequencies(64)[1] == pytest.approx((0.0707 * np.log(40) + 1) / (0.1 * np.log(40) + 1), rel=1e-15)
    found = read({"model_type": "llama", "rope_theta": 1e4, "rope_scaling": yarn})
    assert found.softmax_scale == 1
    assert found.frequencies(64)[1] == pytest.approx((0.0707 * np.log(40) + 1) / (0.1 * np.log(40) + 1), rel=1e-15)
    found = read({"model_type": "llama", "rope_theta": 1e4, "rope_scaling": yarn | {"attention_factor": 1.5}})
    assert (found.softmax_scale, found.frequencies(64)[1]) == (1, 1.5)
    with pytest.raises(ValueError, match="mscale_all_dim is understood with rope_type 'yarn' alone, not 'linear'"):
        read({"model_type": "deepseek_v3", "rope_theta": 1e4, "rope_scaling": yarn | {"type": "linear"}})


def test_mscales_of_longrope():
    """Phi-3.5-MoE: they stand for the factor that the lengths would give."""
    config = {"rope_theta": 1e4, "original_max_position_embeddings": 4096, "max_position_embeddings": 131072}
    given = LONG | {"short_mscale": 1.243163121016122, "long_mscale": 1.243163121016122}
    assert read(config | {"rope_scaling": given}).frequencies(4, 4097)[1] == 1.243163121016122
    assert read(config | {"rope_scaling": LONG}).frequencies(4, 4097)[1] == pytest.approx(1.190238, abs=1e-6)


def test_yarn_with_equal_betas():
    """Kimi K2: one frequency between those kept and those divided."""
    found, factor = read({"rope_theta": 5e4, "rope_scaling": KIMI}).frequencies(64)
    assert found[18:21] == pytest.approx([2.27420e-3, 1.62176e-3, 3.61405e-5], rel=3e-6)
    assert found[31] == pytest.approx(8.76441e-7, rel=3e-6)
    assert factor == 1
    untruncated = read({"rope_theta": 5e4, "rope_scaling": {**KIMI, "truncate": False}}).frequencies(64)[0]
    assert (np.isclose(untruncated, 5e4 ** (-np.arange(32) / 32)).sum(), untruncated[31]) == (20, found[31])


def test_llama3_with_equal_factors():
    """Llama 4: a step, without frequencies between those kept and those divided."""
    rule = {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0}
    rule["original_max_position_embeddings"] = 8192
    found = read({"rope_theta": 5e5, "rope_scaling": rule}).frequencies(128)[0]
    plain = Rotary(5e5).frequencies(128)[0]
    assert found == pytest.approx(np.where(2 * np.pi / plain > 8192, plain / 16, plain), rel=1e-15)
    assert 0 < (found < plain).sum() < 64


def test_ntk_by_alpha():
    config = {
        "rope_theta": 1e4,
        "max_position_embeddings": 32768,
        "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
    }
    assert read(config).frequencies(128)[0][1] == pytest.approx(0.776034, abs=1e-6)


# ---- layers and parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "full", "sliding"),
    [
        (MODERNBERT, Rotary(160000.0), Rotary()),
        ({"model_type": "modernbert"}, Rotary(160000.0), Rotary()),
        (GEMMA3, Rotary(1e6, scaling=Linear(8.0)), Rotary()),
        ({"model_type": "gemma3_text", "rope_scaling": GEMMA3["rope_scaling"]}, Rotary(1e6, scaling=Linear(8.0)), Rotary()),
        (OLMO3, Rotary(5e5, scaling=YaRN(8.0, 8192)), Rotary(5e5)),
        (
            {"model_type": "mimo_v2_flash", "head_dim": 192, "rope_theta": 5e6, "swa_rope_theta": 1e4},
            Rotary(5e6, rotary_dim=64),
            Rotary(rotary_dim=64),
        ),
        (
            {
                "model_type": "step3p5",
                "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
                "rope_theta": [5e6, 1e4, 1e4],
            },
            None,
            None,
        ),
    ],
)
def test_layers_in_keys_of_their_own(config, full, sliding):
    if full is None:
        full, sliding = Rotary(5e6), Rotary()
    assert read(config, layer_type="full_attention") == full
    assert read(config, layer_type="sliding_attention") == sliding
    with pytest.raises(ValueError, match=r"Rotary.from_config: (layer_type|rope_theta) must be .*layer"):
        Rotary.from_config(config)


def test_deepseek_v4_turns_the_last_channels():
    assert read(V4, layer_type="main") == Rotary(interleaved=True, rotary_dim=64, rotary_offset=448)
    assert read(V4, layer_type="compress") == Rotary(1.6e5, interleaved=True, rotary_dim=64, rotary_offset=448)


def test_layers_that_do_not_rotate():
    config = {"rope_parameters": {"full_attention": None, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}
    assert read(config) == read(config, layer_type="sliding_attention") == Rotary()
    cohere = {
        "model_type": "cohere2",
        "rope_theta": 5e4,
        "sliding_window": 4096,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    assert read(cohere, layer_type="sliding_attention") == Rotary(5e4, interleaved=True)
    for one in (config, cohere):
        with pytest.raises(ValueError, match="layers of 'full_attention' do not rotate"):
            Rotary.from_config(one, layer_type="full_attention")


def test_layers_that_agree_need_no_name():
    same = {"rope_type": "default", "rope_theta": 1e5}
    assert read({"rope_parameters": {"full_attention": same, "sliding_attention": same}}) == Rotary(1e5)


def test_truncate_stands_beside_the_layers():
    """As the models' code, which does not look for it in the rule of a layer."""
    rule = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 4096}
    config = {"rope_parameters": {"full_attention": rule, "truncate": False}}
    assert read(config) == Rotary(scaling=YaRN(8.0, 4096, truncate=False))
    assert read({"rope_parameters": {"full_attention": rule | {"truncate": False}}}) == Rotary(scaling=YaRN(8.0, 4096))


@pytest.mark.parametrize("key", ["text_config", "language_config", "llm_config"])
def test_a_composite_is_its_text(key):
    config = {"model_type": "some_vl", key: {"model_type": "llama", "rope_theta": 5e5}, "vision_config": VISION}
    assert Rotary.from_config(config) == Rotary.from_config(config, part=key) == Rotary(5e5)
    inside = {name: SimpleNamespace(**one) if isinstance(one, dict) else one for name, one in config.items()}
    assert Rotary.from_config(SimpleNamespace(**inside)) == Rotary(5e5)
    vision = Rotary(sections=(20, 20), section_frequencies="own")
    assert Rotary.from_config(config, part="vision") == Rotary.from_config(config, part="vision_config") == vision


def test_parts_within_parts():
    config = {
        "model_type": "qwen2_5_omni",
        "talker_config": {"model_type": "qwen2_5_omni_talker", "rope_theta": 2e6},
        "thinker_config": {"model_type": "qwen2_5_omni_thinker", "text_config": QWEN, "vision_config": VISION},
    }
    text = Rotary(1e6, sections=(16, 24, 24))
    assert Rotary.from_config(config) == Rotary.from_config(config, part="thinker") == text
    assert Rotary.from_config(config, part="thinker.vision").section_frequencies == "own"
    assert Rotary.from_config(config, part="talker").base == 2e6


def test_parts_without_a_text():
    encoder, decoder = {"model_type": "dia_encoder", "rope_theta": 1e4}, {"model_type": "dia_decoder", "rope_theta": 1e4}
    config = {"model_type": "dia", "encoder_config": encoder, "decoder_config": decoder}
    assert Rotary.from_config(config) == Rotary()
    config["decoder_config"] = decoder | {"rope_theta": 2e4}
    with pytest.raises(ValueError, match="part must be one of 'decoder', 'encoder', as their encodings differ, got None"):
        Rotary.from_config(config)
    with pytest.raises(ValueError, match=r"part must be the name of one sub-configuration: encoder, decoder, got 'text'"):
        Rotary.from_config(config, part="text")
    with pytest.raises(ValueError, match=r"part must be one of the sub-configurations that rotate.*got None for vision"):
        Rotary.from_config({"text_config": {"model_type": "bert"}, "vision_config": VISION})
    with pytest.raises(TypeError, match="part must be a name or None, got"):
        Rotary.from_config(config, part=1)


# ---- what is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [{}, {"model_type": "gpt2"}, {"model_type": "bert", "hidden_size": 768}, {"rope_scaling": None}, {"rotary_dim": 64}],
)
def test_no_base(config):
    with pytest.raises(ValueError, match=r"nothing in config describes a rotary encoding, as no key names a base.*rope_theta"):
        read(config)


@pytest.mark.parametrize(
    "key",
    ["theta", "rope_freq_base", "rope_ratio", "rotary_scale", "use_dynamic_ntk", "ntk_alpha", "yarn_factor", "mscale", "alpha"],
)
def test_keys_that_are_not_understood(key):
    with pytest.raises(ValueError, match=f"the key {key} is not understood and may change the rotation, got 2.5.*Rotary"):
        read({"rope_theta": 1e4, key: 2.5})
    assert read({"rope_theta": 1e4, key: None}) == Rotary()


@pytest.mark.parametrize("key", ["properties", "dropout", "swiglu_alpha", "attention_bias", "rope_parameters"])
def test_keys_of_other_things(key):
    assert read({"rope_theta": 1e4, key: {} if key == "rope_parameters" else 2.5}) == Rotary()


def test_an_unknown_model_is_read_if_its_layout_is_given():
    config = {"model_type": "mystery", "rope_theta": 1e4}
    assert Rotary.from_config(config, interleaved=True) == Rotary(interleaved=True)
    assert Rotary.from_config(config | {"rope_interleave": False}) == Rotary()


def test_a_model_has_one_layout():
    assert not config_models.HALF & config_models.INTERLEAVED
    assert not config_models.KNOWN & (config_models.AXIAL.keys() | config_models.REFUSED.keys())
    tables = (
        config_models.BASES,
        config_models.SHARES,
        config_models.SECTIONS,
        config_models.LAYER_BASES,
        config_models.SWITCHES,
    )
    known = config_models.KNOWN | config_models.AXIAL.keys()
    assert not [name for table in (*tables, dict.fromkeys(config_models.NO_BASE)) for name in table if name not in known]
