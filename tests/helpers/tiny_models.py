"""A small random model of any type that transformers has for text: from its configuration's own fields, made small."""

from __future__ import annotations

from typing import Any

import cases
import pytest

torch = pytest.importorskip("torch")
transformers = cases.transformers()

VOCABULARY = 101
LARGEST = 20e6  # weights
_SIZES = {  # of fields by any of the names that configurations have for them
    64: "hidden_size n_embd d_model dim intermediate_size ffn_hidden_size n_inner",
    16: "head_dim attention_head_dim global_head_dim swa_head_dim index_head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim "
    "mamba_d_head linear_key_head_dim linear_value_head_dim hidden_size_per_layer_input",
    2: "num_hidden_layers n_layer n_layers num_layers num_key_value_heads multi_query_group_num num_global_key_value_heads "
    "linear_num_key_heads num_experts_per_tok num_experts_per_token n_group index_n_heads moe_k moe_topk eos_token_id",
    4: "num_attention_heads n_head n_heads num_heads linear_num_value_heads num_experts num_local_experts n_routed_experts moe_num_experts",
    32: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size kv_lora_rank",
    VOCABULARY: "vocab_size vocab_size_per_layer_input",
    256: "max_position_embeddings n_positions",
    0: "num_kv_shared_layers zero_expert_num pad_token_id",
    1: "topk_group first_k_dense_replace bos_token_id mamba_n_groups",
    8: "rotary_dim sliding_window index_topk mamba_n_heads",
    24: "q_lora_rank",
    128: "mamba_d_ssm",
}
_SMALL = {name: value for value, names in _SIZES.items() for name in names.split()}
_UNSET = {"head_dim", "num_key_value_heads"}  # set even where None is usual
_OTHER: dict[str, Any] = {
    "mimo_v2_flash": {"head_dim": 24, "v_head_dim": 24},  # a third of the channels rotate, which must be even
    "dots1": {"first_k_dense_replace": 1, "n_routed_experts": 4, "moe_intermediate_size": 32, "n_shared_experts": 1},
    "zaya": {"num_experts_per_tok": 1},
}
_auto = transformers.models.auto.modeling_auto
KINDS = {**_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, **_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
_PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


def configuration(kind: str) -> Any:
    """The configuration of a small model."""
    make = transformers.CONFIG_MAPPING[kind]
    usual = make().to_dict()
    small = {name: value for name, value in _SMALL.items() if usual.get(name) is not None or (name in _UNSET and name in usual)}
    if "kv_lora_rank" in usual and "num_key_value_heads" in small:  # every head has keys of its own
        small["num_key_value_heads"] = small["num_attention_heads"]
    kinds = list(dict.fromkeys(usual.get("layer_types") or ()))
    if kinds:
        layers = max(2, len(kinds))
        small |= {"layer_types": (kinds * 2)[:layers], "num_hidden_layers": layers}
    if usual.get("mlp_layer_types"):
        first, last = usual["mlp_layer_types"][0], usual["mlp_layer_types"][-1]
        small["mlp_layer_types"] = [first] * (small["num_hidden_layers"] - 1) + [last]
    rule = usual.get("rope_parameters", _PLAIN) or {}
    if rule.get("rope_theta") is None and not any(isinstance(one, dict) for one in rule.values()):
        small["rope_parameters"] = _PLAIN
    return make(**small | _OTHER.get(kind, {}))


def build(kind: str) -> Any:
    """A small model whose attention looks far: with initial weights it would hardly see positions."""
    names = KINDS[kind]
    model_class, config = getattr(transformers, names if isinstance(names, str) else names[0]), configuration(kind)
    with torch.device("meta"):
        if sum(weights.numel() for weights in model_class(config).parameters()) > LARGEST:
            raise ValueError("too large")
    torch.manual_seed(0)
    model = model_class._from_config(config).eval()
    for weights in model.parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, std=0.15)
    return model
