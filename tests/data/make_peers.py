"""Writes peers.npz: what the calls on the left of docs/migration.md return, by the libraries' own functions.

    python tests/data/make_peers.py SOURCES

SOURCES is a folder with two files that are executed in part: flash-attention 0251105a2fb1 ``flash_attn/layers/rotary.py`` and flashinfer
fb28d7242b35 ``tests/test_helpers/rope_reference.py``, whose ``RotaryEmbedding`` is vLLM's. The rest is imported: transformers 5.23.0,
diffusers 0.42.1, keras-hub 0.32.0 (keras 3.15.1 on torch), positional-encodings 6.0.3, rotary-embedding-torch 0.9.1, timm 1.0.31.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import os
import sys
import types
import typing
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import einops
import numpy as np
import torch
from torch import nn

D, HEADS, KEY_HEADS, T = 32, 2, 1, 6
POSITIONS = [3, 0, 250, 17, 1000, 41]
RANDOM = np.random.default_rng(2026)
Arrays = dict[str, Any]


def normal(*shape: int) -> torch.Tensor:
    return torch.from_numpy(RANDOM.standard_normal(shape, dtype=np.float32))


def run_definitions(path: Path, *names: str, **given: Any) -> types.SimpleNamespace:
    """Execute some functions and classes of a file, without what the file imports."""
    tree = ast.parse(path.read_text())
    kinds = ast.FunctionDef | ast.ClassDef
    body: list[ast.stmt] = [node for node in tree.body if isinstance(node, kinds) and (not names or node.name in names)]
    for node in body:
        node.decorator_list = []  # type: ignore[attr-defined]
    known = {"math": math, "torch": torch, "nn": nn, "F": nn.functional, "Tensor": torch.Tensor, **vars(typing), **given}
    exec(compile(ast.Module(body, []), str(path), "exec"), known)
    return types.SimpleNamespace(**known)


# ---- Hugging Face ------------------------------------------------------------------------------------------------------------


def transformers_rotary() -> Arrays:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    rule = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rule["original_max_position_embeddings"] = 8192
    widths = {"hidden_size": D * HEADS, "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS}
    config = LlamaConfig(**widths, max_position_embeddings=131072, rope_parameters=rule)
    q, k = normal(2, HEADS, T, D), normal(2, KEY_HEADS, T, D)
    position_ids = torch.tensor([POSITIONS, POSITIONS[::-1]])
    q_out, k_out = apply_rotary_pos_emb(q, k, *LlamaRotaryEmbedding(config)(q, position_ids))
    attention_mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    q_masked, k_masked = apply_rotary_pos_emb(q, k, *LlamaRotaryEmbedding(config)(q, ids))
    made = {"q": q, "k": k, "position_ids": position_ids, "q_out": q_out, "k_out": k_out, "attention_mask": attention_mask}
    return {**made, "q_masked": q_masked, "k_masked": k_masked}


def transformers_mrope() -> Arrays:
    from transformers import Qwen2VLConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

    token_types = torch.tensor([[0, 0, 0, *[1] * 6, 0, 0, *[1] * 4, 0]])
    grids = torch.tensor([(1, 4, 6), (1, 4, 4)])
    model = types.SimpleNamespace(config=Qwen2VLConfig())
    model.get_vision_position_ids = types.MethodType(Qwen2VLModel.get_vision_position_ids, model)
    found, deltas = Qwen2VLModel.get_rope_index(model, torch.ones_like(token_types), token_types, image_grid_thw=grids)
    return {"token_types": token_types, "image_grids": grids, "positions": found, "deltas": deltas}


def transformers_biases() -> Arrays:
    from transformers import T5Config
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.t5.modeling_t5 import T5Attention

    mask = torch.ones(2, 9, dtype=torch.int64)
    alibi = build_alibi_tensor(mask, HEADS, torch.float32).view(2, HEADS, 1, 9)
    weight = normal(32, HEADS)
    made = {"scores": normal(2, HEADS, 9, 9), "mask": mask, "alibi": alibi, "weight": weight}
    for name, decoder in (("encoder", False), ("decoder", True)):
        config = T5Config(d_model=32, num_heads=HEADS, is_decoder=decoder)
        attention = T5Attention(config, has_relative_attention_bias=True)
        attention.relative_attention_bias.weight = nn.Parameter(weight)
        made[name] = attention.compute_bias(9, 9).detach()
    return made


def whisper() -> Arrays:
    from transformers.models.whisper.modeling_whisper import sinusoids

    return {"table": sinusoids(1500, D)[::100]}


# ---- flash-attn, vLLM, flashinfer --------------------------------------------------------------------------------------------


def cosines(base: float = 10000.0, length: int = 1001, width: int = D) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.arange(length)[:, None] * base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return angles.cos().float(), angles.sin().float()


def flash_attn(sources: Path) -> Arrays:
    peer = run_definitions(
        sources / "rotary.py",
        *("rotate_half", "apply_rotary_emb_torch", "RotaryEmbedding"),
        rearrange=einops.rearrange,
        repeat=einops.repeat,
    )
    x, lengths, (cos, sin) = normal(2, T, HEADS, D), torch.tensor([7, 900]), cosines()
    offset = torch.stack([torch.arange(T) + start for start in lengths])
    cu = torch.tensor([0, 2, 5, 6])
    packed = torch.tensor([0, 1, 0, 1, 2, 0])
    made = {"x": x, "lengths": lengths, "cu_seqlens": cu, "qkv": normal(2, T, 8 + 2 + 2, D)}
    for name, interleaved in (("half", False), ("pairs", True)):
        made[name] = peer.apply_rotary_emb_torch(x, cos[:T], sin[:T], interleaved)
    made["offset"] = peer.apply_rotary_emb_torch(x, cos[offset], sin[offset])
    made["packed"] = peer.apply_rotary_emb_torch(x[:1], cos[packed], sin[packed])[0]
    rotated = [peer.apply_rotary_emb_torch(made["qkv"][..., part, :], cos[:T], sin[:T]) for part in (slice(8), slice(8, 10))]
    made["qkv_out"] = torch.cat([*rotated, made["qkv"][..., 10:, :]], dim=-2)
    xpos = peer.RotaryEmbedding(D, scale_base=512)
    xpos._update_cos_sin_cache(T, dtype=torch.float32)
    q = peer.apply_rotary_emb_torch(x, xpos._cos_cached, xpos._sin_cached)
    made["k"] = normal(2, T, HEADS, D)
    k = peer.apply_rotary_emb_torch(made["k"], xpos._cos_k_cached, xpos._sin_k_cached)
    return {**made, "xpos_scores": torch.einsum("bthd,bshd->bhts", q, k)}


def vllm_and_flashinfer(sources: Path) -> Arrays:
    peer = run_definitions(sources / "rope_reference.py")
    positions, q, k = torch.tensor(POSITIONS), normal(T, HEADS * 2 * D), normal(T, KEY_HEADS * 2 * D)
    made = {"positions": positions, "q": q, "k": k, "indptr": torch.tensor([0, 2, 6]), "offsets": torch.tensor([5, 900])}
    for name, neox in (("neox", True), ("gptj", False)):
        rotary = peer.RotaryEmbedding(2 * D, D, 1001, 10000, neox, torch.float32, device="cpu")
        made["cache"] = rotary.cos_sin_cache[:1]
        made[f"{name}_q"], made[f"{name}_k"] = rotary.forward_native(positions, q.clone(), k.clone())
    heads = {"q": q.view(T, HEADS, 2 * D), "k": k.view(T, KEY_HEADS, 2 * D)}
    for name, neox in (("pos_ids_half", True), ("pos_ids_pairs", False)):
        rotary = peer.RotaryEmbedding(2 * D, 2 * D, 1001, 10000, neox, torch.float32, device="cpu")
        made[f"{name}_q"], made[f"{name}_k"] = rotary.forward_native(positions, *heads.values())
    cos, sin = peer.generate_cos_sin_f32_cache(1000, 2 * D, 5e5, use_scaled=True, device="cpu")
    rows = torch.cat([torch.arange(2) + 5, torch.arange(4) + 900])
    made["llama31_q"], made["llama31_k"] = peer.apply_rotary_pos_emb(*heads.values(), cos[rows], sin[rows])
    return made


# ---- diffusers, timm ---------------------------------------------------------------------------------------------------------


def diffusers() -> Arrays:
    from diffusers.models import embeddings
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    t = torch.tensor([0.0, 1.0, 250.5, 999.0])
    made = {"t": t, "timesteps": embeddings.get_timestep_embedding(t, 320, flip_sin_to_cos=True, downscale_freq_shift=0)}
    made["sincos_2d"] = embeddings.get_2d_sincos_pos_embed(32, 14)
    made["sincos_2d_scaled"] = embeddings.get_2d_sincos_pos_embed(32, (6, 4), base_size=8, interpolation_scale=2.0)
    made["sincos_3d"] = embeddings.get_3d_sincos_pos_embed(64, (4, 6), 3)  # columns, rows; frames
    ids = torch.tensor([[0, 0, 0], [0, 1, 7], [0, 5, 2], [1, 9, 31]])
    q, k = normal(1, HEADS, 4, 128), normal(1, HEADS, 4, 128)
    freqs = FluxPosEmbed(10000, [16, 56, 56])(ids)
    made |= {
        "ids": ids,
        "q": q,
        "k": k,
        "flux_q": embeddings.apply_rotary_emb(q, freqs),
        "flux_k": embeddings.apply_rotary_emb(k, freqs),
    }
    for name, dim in (("pairs", -1), ("half", -2)):
        freqs = embeddings.get_1d_rotary_pos_embed(128, np.arange(4), use_real=True, repeat_interleave_real=dim == -1)
        made[name] = embeddings.apply_rotary_emb(q, freqs, use_real_unbind_dim=dim)
    freqs = embeddings.get_1d_rotary_pos_embed(128, np.arange(4), use_real=True, ntk_factor=2)
    made["ntk"] = embeddings.apply_rotary_emb(q, freqs)
    return made


def timm() -> Arrays:
    specification = importlib.util.find_spec("timm")
    assert specification is not None
    assert specification.submodule_search_locations is not None
    layers = Path(specification.submodule_search_locations[0], "layers")
    given = {
        "register_notrace_function": lambda one: one,
        "_logger": None,
        "_assert": lambda *_: None,
        "is_exporting": lambda: False,
    }
    ndgrid = run_definitions(layers / "grid.py", "ndgrid").ndgrid
    peer = run_definitions(layers / "pos_embed_sincos.py", ndgrid=ndgrid, Real=float, **given)
    table = normal(1, 1 + 8 * 8, 4)
    made = {"sincos": peer.build_sincos2d_pos_embed([14, 14], 32), "table": table}
    made["resampled"] = run_definitions(layers / "pos_embed.py", **given).resample_abs_pos_embed(table, [24, 32])
    x = torch.zeros(1, 1, 5, 7)
    return {**made, "fourier": peer.FourierEmbed(max_res=224, num_bands=8)(x)[0, :, 1:]}


# ---- keras-hub, positional-encodings, rotary-embedding-torch ---------------------------------------------------------------


def keras_hub() -> Arrays:
    from keras_hub import layers

    x, q, ids = normal(2, T, D), normal(2, T, HEADS, D), torch.tensor([[3, 1, 4, 1, 5, 9]])
    sine, both = layers.SinePositionEncoding(), layers.TokenAndPositionEmbedding(12, T, 16)
    made = {"x": x, "sine": x + sine(x), "sine_7": x + sine(x, start_index=7), "ids": ids, "embedded": both(ids)}
    made["words"], made["places"] = (weight.value for weight in both.weights)
    made |= {"q": q, "rotated": layers.RotaryEmbedding()(q, start_index=40)}
    for name, options in (
        ("linear", {"scaling_factor": 4.0}),
        ("dynamic", {"scaling_factor": 4.0}),
        ("yarn", {"scaling_factor": 4.0, "original_max_position_embeddings": 2048}),
    ):
        made[name] = layers.RotaryEmbedding(rope_type=name, **options)(q, start_index=1000)
    whole = {"scaling_factor": 4.0, "original_max_position_embeddings": 2048, "truncate": False}
    made["yarn_whole"] = layers.RotaryEmbedding(rope_type="yarn", **whole)(q, start_index=1000)
    return {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in made.items()}


def positional_encodings() -> Arrays:
    from positional_encodings.torch_encodings import PositionalEncoding1D, PositionalEncoding2D, Summer

    x, grid = normal(2, T, D), normal(2, 5, 3, D)
    made = {"x": x, "grid": grid, "grid_out": Summer(PositionalEncoding2D(D))(grid.clone())}
    return {**made, "x_out": Summer(PositionalEncoding1D(D))(x.clone())}


def rotary_embedding_torch() -> Arrays:
    from rotary_embedding_torch import RotaryEmbedding

    q = normal(1, HEADS, T, D)
    made = {"q": q}
    for name, options in (
        ("plain", {}),
        ("rescaled", {"theta_rescale_factor": 4.0}),
        ("interpolated", {"interpolate_factor": 4.0}),
    ):
        made[name] = RotaryEmbedding(D, cache_if_possible=False, **options).rotate_queries_or_keys(q, offset=7).detach()
    return made


def main(sources: Path) -> None:
    torch.manual_seed(2026)
    peers = {
        "transformers": {**transformers_rotary(), **transformers_mrope()},
        "biases": transformers_biases(),
        "whisper": whisper(),
        "flash_attn": flash_attn(sources),
        "vllm": vllm_and_flashinfer(sources),
        "diffusers": diffusers(),
        "timm": timm(),
        "keras_hub": keras_hub(),
        "positional_encodings": positional_encodings(),
        "rotary_embedding_torch": rotary_embedding_torch(),
    }
    arrays = {f"{peer}/{name}": np.asarray(value) for peer, made in peers.items() for name, value in made.items()}
    np.savez_compressed(Path(__file__).with_name("peers.npz"), **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
