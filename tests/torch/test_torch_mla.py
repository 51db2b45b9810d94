"""Multi-head latent attention: DeepSeek's own module beside its scores with fastpe, and the scale of the scores of every model."""

from __future__ import annotations

import copy
import importlib
import re
from pathlib import Path
from typing import Any

import cases
import pytest

import fastpe
from fastpe.encodings.config_models import KNOWN, SOFTMAX_SCALED

torch = pytest.importorskip("torch")
from small_models import LOGITS, YARN, build, error, logits, tokens  # noqa: E402

from fastpe.torch import patch_transformers  # noqa: E402

transformers = cases.transformers()

RULE = {"type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 64}
SIZE: dict[str, Any] = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4, "qk_nope_head_dim": 12}
SIZE |= {"qk_rope_head_dim": 8, "v_head_dim": 10, "q_lora_rank": 20, "kv_lora_rank": 16, "max_position_embeddings": 2560}


@pytest.mark.parametrize("scaling", [None, RULE, RULE | {"mscale": 0.707}, RULE | {"mscale_all_dim": 0.707}])
def test_the_attention_of_deepseek_v3(scaling):
    module = importlib.import_module("transformers.models.deepseek_v3.modeling_deepseek_v3")
    config = transformers.DeepseekV3Config(**SIZE, rope_scaling=None if scaling is None else dict(scaling))
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    attention, rows = module.DeepseekV3Attention(config, 0).double().eval(), 9
    encoding = fastpe.Rotary.from_config(config)
    assert attention.scaling == pytest.approx(20**-0.5 * encoding.softmax_scale, rel=1e-15)
    assert (encoding.softmax_scale == 1) is (scaling is None)
    x, positions = torch.randn(2, rows, 48, dtype=torch.double), torch.arange(100, 100 + rows)[None].expand(2, -1)
    with torch.no_grad():
        cos, sin = module.DeepseekV3RotaryEmbedding(config)(x.float(), positions)
        expected, _ = attention(x, (cos.double(), sin.double()), None)
        q = attention.q_b_proj(attention.q_a_layernorm(attention.q_a_proj(x))).view(2, rows, 4, 20)
        latent = attention.kv_a_proj_with_mqa(x)
        fastpe.apply_rotary(q[..., 12:], latent[:, :, None, 16:], encoding, offset=100, seq_axis=-3)
        both = attention.kv_b_proj(attention.kv_a_layernorm(latent[..., :16])).view(2, rows, 4, 22)
        k = torch.cat([both[..., :12], latent[:, :, None, 16:].expand(-1, -1, 4, -1)], dim=-1)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) * 20**-0.5 * encoding.softmax_scale
        got = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), both[..., 12:]).flatten(2)
        assert (attention.o_proj(got) - expected).abs().max() < 1e-5  # their angles are float32


def test_which_models_scale_their_scores():
    folder = Path(transformers.__file__).parent / "models"
    found = set()
    for path in folder.rglob("modeling_*.py"):
        if re.search(r"self\.scaling = yarn_apply_mscale\(", path.read_text()):
            found.add(path.stem.removeprefix("modeling_"))
    assert found - {"mistral_large4"} == SOFTMAX_SCALED - {"kimi_k2"}  # one is refused, one runs the code of deepseek_v3
    assert SOFTMAX_SCALED <= KNOWN


# ---- a rule that scales scores, in a patched model ---------------------------------------------------------------------------

TWICE = {"factor": 80.0, "original_max_position": 64, "mscale": 1.0, "mscale_all_dim": 0.8, "beta_fast": 4.0, "beta_slow": 1.0}


def stretched(name: str) -> Any:
    """The model that is built of a configuration with the rule, its scores scaled as DeepSeek's are."""
    rule = YARN | {"factor": 80.0}
    model = build(name, rope_parameters=rule)
    if name != "deepseek_v3":
        for layer in model.model.layers:
            layer.self_attn.scaling *= fastpe.scaling.YaRN(**TWICE).softmax_scale
    return model


@pytest.mark.parametrize("name", ["deepseek_v3", "llama"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_rule_that_scales_scores(name, attention):
    model, wanted, ids = build(name), stretched(name), tokens(2, 40)
    for one in (model, wanted):
        one.set_attn_implementation(attention)
    own, before = [layer.self_attn.scaling for layer in model.model.layers], logits(model, ids)
    patched = patch_transformers(model, scaling=fastpe.scaling.YaRN(**TWICE))
    lines = [line for line in patched.changes if ".scaling: " in line]
    assert [line.partition(":")[0] for line in lines] == [f"model.layers.{i}.self_attn.scaling" for i in range(2)]
    assert error(logits(model, ids), logits(wanted, ids)) < LOGITS
    assert error(logits(model, ids), before) > 100 * LOGITS
    twin = copy.deepcopy(model)
    patched.undo()
    assert [layer.self_attn.scaling for layer in model.model.layers] == own
    assert torch.equal(logits(model, ids), before)
    with patch_transformers(twin):
        assert error(logits(twin, ids), logits(wanted, ids)) < LOGITS
    assert torch.equal(logits(twin, ids), before)


def test_a_rule_that_scales_scores_is_refused_where_they_cannot_be():
    model = build("gptj")
    with pytest.raises(ValueError, match=r"whose softmax scale can follow the rule's .* Leave mscale and mscale_all_dim out"):
        patch_transformers(model, scaling=fastpe.scaling.YaRN(**TWICE))
    assert "_get_embed_positions" not in vars(model.transformer.h[0].attn)
    model = build("llama")
    model.model.layers[1].self_attn.scaling = torch.tensor(0.25)
    own = model.model.layers[0].self_attn.scaling
    with pytest.raises(ValueError, match=r"got a model without a scaling of its own in model.layers.1.self_attn"):
        patch_transformers(model, scaling=fastpe.scaling.YaRN(**TWICE))
    assert model.model.layers[0].self_attn.scaling == own
    assert "forward" not in vars(model.model.rotary_emb)
