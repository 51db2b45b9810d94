"""Hugging Face's models, small and random, for the tests of patching."""

from __future__ import annotations

import copy
import sys
from typing import Any

import cases
import numpy as np
import pytest

torch = pytest.importorskip("torch")

transformers = cases.transformers()

VOCABULARY = 101
SIZE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEAD = SIZE | {"head_dim": 16}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
ROUTED = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 64, "mscale": 1.0}
YARN |= {"mscale_all_dim": 0.8, "beta_fast": 4, "beta_slow": 1}
SHORT, LONG = [1 + i / 8 for i in range(8)], [2.0 + i for i in range(8)]
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": SHORT, "long_factor": LONG}

FAMILIES: dict[str, dict[str, Any]] = {
    "cohere": SIZE | {"logit_scale": 1.0},
    "cohere2": SIZE | {"logit_scale": 1.0, "sliding_window": 8},
    "deepseek_v3": SIZE
    | LATENT
    | ROUTED
    | {"num_key_value_heads": 4, "first_k_dense_replace": 1, "max_position_embeddings": 2560, "rope_parameters": YARN},
    "ernie4_5": SIZE,
    "gemma": HEAD,
    "gemma2": HEAD | {"query_pre_attn_scalar": 16, "sliding_window": 8},
    "gemma3_text": HEAD | {"query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 6},
    "glm": HEAD,
    "glm4": HEAD,
    "gpt_neox": SIZE | {"rotary_pct": 0.25},
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "vocab_size": VOCABULARY, "n_positions": 4096}
    | {"bos_token_id": 1, "eos_token_id": 2},
    "granite": SIZE,
    "helium": HEAD,
    "llama": SIZE,
    "mistral": SIZE | {"sliding_window": 8},
    "mixtral": SIZE | {"num_local_experts": 4},
    "olmo2": SIZE,
    "phi": SIZE | {"partial_rotary_factor": 0.5},
    "phi3": SIZE | {"partial_rotary_factor": 0.5},
    "qwen2": SIZE,
    "qwen2_moe": SIZE | EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3": HEAD,
    "qwen3_moe": HEAD | EXPERTS,
    "smollm3": SIZE | {"no_rope_layers": [1, 0]},
    "stablelm": SIZE | {"partial_rotary_factor": 0.25},
    "starcoder2": SIZE,
}
MAIN = ["llama", "qwen2", "qwen3", "mistral", "phi3", "gemma", "gemma3_text", "gpt_neox", "gptj", "deepseek_v3"]
LOGITS = 1e-4  # of float32 logits up to 5 at positions below 100: measured 1e-5


def build(name: str, **other: Any) -> Any:
    """A model whose attention looks far: with initial weights it would hardly see positions."""
    config = transformers.CONFIG_MAPPING[name](**copy.deepcopy(FAMILIES[name] | other))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for weights in model.parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, std=0.15)
    return model


def tokens(*shape: int, seed: int = 1) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).integers(3, VOCABULARY, shape))


def logits(model: Any, ids: Any, **options: Any) -> Any:
    with torch.no_grad():
        return model(ids, use_cache=False, **options).logits


def error(found: Any, expected: Any) -> float:
    return float((found - expected).detach().abs().max())


def modelling(name: str) -> Any:
    return sys.modules[f"transformers.models.{name}.modeling_{name}"]


def long_phi3() -> Any:
    return build(
        "phi3",
        partial_rotary_factor=1.0,
        max_position_embeddings=256,
        original_max_position_embeddings=32,
        rope_parameters=LONGROPE,
    )
