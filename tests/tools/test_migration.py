"""The tables of docs/migration.md and of the Keras page: the right column, run as it is printed, gives what the left one returned."""

from __future__ import annotations

import inspect
import re
from typing import Any

import cases
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from migration_checks import (  # noqa: E402
    PEERS,
    ROOT,
    Check,
    D,
    H,
    Spans,
    T,
    V,
    as_tensors,
    close,
    equals,
    of,
    pair,
    rotates,
    rows,
    run,
    softmax,
)

import fastpe  # noqa: E402

# ---- by hand: the left column runs, too -------------------------------------------------------------------------------------


def by_hand() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    angles = torch.arange(40, dtype=torch.float64)[:, None] * 10000.0 ** (-torch.arange(0, D, 2) / D)
    table = torch.stack([angles.sin(), angles.cos()], -1).flatten(1).float()
    distance = torch.arange(T)[:, None] - torch.arange(T)
    slopes = torch.tensor([2.0**-4, 2.0**-8])[:, None, None]
    names = {"pe": table[None], "table": table, "start": 7, "s": 5.5, "alpha": torch.tensor(0.25, requires_grad=True)}
    names |= {"x": torch.randn(3, T, D, generator=generator), "scores": torch.randn(3, H, T, T, generator=generator)}
    names |= {"ids": torch.randint(V, (3, T), generator=generator), "segments": torch.randint(2, (3, T), generator=generator)}
    names |= {"position_ids": torch.randint(40, (3, T), generator=generator), "V": V}
    tables = {name: torch.randn(size, D, generator=generator) for name, size in (("words", V), ("types", 2), ("places", T))}
    return {**names, **tables, "alibi": torch.where(distance < 0, -torch.inf, -slopes * distance)}


def both(**changed: Any) -> Check:
    """Run the left cell's code and the right one's on the same values."""

    def check(right: Spans, left: str) -> None:
        code = re.findall(r"`([^`]+)`", left)[0]
        results = []
        for one in (code, right[0]):
            torch.manual_seed(3)  # of the weights that both sides make
            results.append(run(one, **{**by_hand(), **changed}))
        close(results[1], results[0].detach())

    return check


def bicubic(right: Spans, left: str) -> None:
    table = torch.from_numpy(cases.random((1, 8 * 8, 16), "float32"))
    grid = table.reshape(1, 8, 8, 16).permute(0, 3, 1, 2)
    names = {"rows": 12, "columns": 10}
    expected = run(re.findall(r"`([^`]+)`", left)[0], F=torch.nn.functional, table=grid, **names)
    close(run(right[0], table=table, **names), expected.permute(0, 2, 3, 1).reshape(1, 120, 16))
    with_token = torch.cat([table[:, :1], table], 1)
    close(
        run(f"{right[0][:-1]}, {right[1]})", table=with_token, **names)[:, 1:], expected.permute(0, 2, 3, 1).reshape(1, 120, 16)
    )


BY_HAND: dict[str, Check] = {
    "`x = x + pe[:, : x.size(1)]` (the tutorial's `PositionalEncoding`)": both(),
    "`x * math.sqrt(D) + pe[:T]`": both(pe=by_hand()["table"]),
    "`x += table[start : start + T]`": both(),
    "`x += table[position_ids]`": both(),
    "`nn.Embedding(V, D)(ids) * s + pe[:T]`": both(pe=by_hand()["table"]),
    "`words[ids] + types[segments] + places[:T]`": both(),
    "`x * s + alpha * pe[:T]` with a trained `alpha` (ESPnet's `ScaledPositionalEncoding`)": both(pe=by_hand()["table"]),
    "`scores + alibi` with an (H, T, T) tensor, minus infinity where a key comes after its query": both(),
    '`F.interpolate(table, (rows, columns), mode="bicubic")` after a permutation to (1, D, H, W)': bicubic,
}

# ---- Hugging Face ------------------------------------------------------------------------------------------------------------


def llama() -> Any:
    rule = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rule["original_max_position_embeddings"] = 8192
    return {"rope_parameters": rule, "head_dim": D, "max_position_embeddings": 131072}


def patched(right: Spans, left: str) -> None:
    cases.transformers()
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
    model = LlamaForCausalLM(LlamaConfig(**size)).eval()
    ids = torch.arange(20)[None]
    before = model(ids).logits
    run(right[0], model=model)
    close(model(ids).logits, before.detach(), 20)


def read(right: Spans, left: str) -> None:
    given = of("transformers", "q", "position_ids")
    rotated = fastpe.apply_rotary(given["q"], encoding=run(right[0], config=llama()), positions=given["position_ids"])
    close(rotated, PEERS["transformers/q_out"], 1000)


def padded(right: Spans, left: str) -> None:
    given = of("transformers", "q", "k", "attention_mask")
    before, rows_kept = given["q"].copy(), given["attention_mask"] != 0
    q, k = run(right[0], rotary=fastpe.Rotary.from_config(llama()), **given)
    for found, expected in ((q, PEERS["transformers/q_masked"]), (k, PEERS["transformers/k_masked"])):
        close(np.moveaxis(found, 1, 2)[rows_kept], np.moveaxis(expected, 1, 2)[rows_kept])
    assert np.array_equal(np.moveaxis(q, 1, 2)[~rows_kept], np.moveaxis(before, 1, 2)[~rows_kept])


def numbered(right: Spans, left: str) -> None:
    mask = PEERS["transformers/attention_mask"]
    found = run(right[0], attention_mask=mask)
    assert np.array_equal(found[mask != 0], (mask.cumsum(-1) - 1)[mask != 0])


def multimodal(right: Spans, left: str) -> None:
    found, deltas = run(right[0], **of("transformers", "token_types", "image_grids"))
    assert np.array_equal(found, PEERS["transformers/positions"])
    assert np.array_equal(deltas, PEERS["transformers/deltas"][:, 0])


def alibi(right: Spans, left: str) -> None:
    scores = PEERS["biases/scores"]
    found = run(right[0], scores=scores.copy(), heads=H)
    close(softmax(found), softmax(scores + PEERS["biases/alibi"]))


def swin(right: Spans, left: str) -> None:
    """The row of the table is how far two pixels of a window of 7 by 7 are apart, query minus key, counted from -6 (Liu et al. 2021)."""
    table, scores = cases.random((169, 3), "float32"), cases.random((2, 3, 49, 49), "float32")
    y, x = np.divmod(np.arange(49), 7)
    index = (y[:, None] - y + 6) * 13 + x[:, None] - x + 6
    expected = scores + table[index].transpose(2, 0, 1)
    close(run(right[0], scores=scores, table=table, w=run(right[1])), expected)


def t5(kind: str) -> Check:
    def check(right: Spans, left: str) -> None:
        scores, weight = (torch.from_numpy(PEERS[f"biases/{name}"].copy()) for name in ("scores", "weight"))
        bias = torch.nn.Embedding.from_pretrained(weight)
        found = run(right[0], scores=scores.clone(), relative_attention_bias=bias)
        close(found, scores + torch.from_numpy(PEERS[f"biases/{kind}"]))

    return check


def whisper(right: Spans, left: str) -> None:
    close(run(right[0])[::100], PEERS["whisper/table"], 1500)


HUGGING_FACE: dict[str, Check] = {
    "the model as it is": patched,
    "`cos, sin = rotary_emb(x, position_ids)`, then `apply_rotary_pos_emb(q, k, cos, sin)`": pair(
        "transformers", "", "_out", "position_ids", rotary=fastpe.Rotary.from_config(llama())
    ),
    "`config.rope_parameters`, `config.rope_scaling`": read,
    "`position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)`": padded,
    "the same, as numbers": numbered,
    "`position_ids, deltas = get_rope_index(...)` of Qwen2-VL": multimodal,
    "`scores + build_alibi_tensor(mask, heads, dtype)`": alibi,
    "`scores + compute_bias(T, T)` of T5's encoder": t5("encoder"),
    "the same of its decoder": t5("decoder"),
    "`relative_position_bias_table[relative_position_index]` of Swin and BEiT": swin,
    "`sinusoids(1500, D)` of Whisper": whisper,
}


# ---- flash-attn, vLLM, flashinfer --------------------------------------------------------------------------------------------


def xpos(right: Spans, left: str) -> None:
    q, k = of("flash_attn", "x", "k").values()
    fastpe.apply_rotary(q, k, run(right[0]), seq_axis=-3)
    close(np.einsum("bthd,bshd->bhts", q, k), PEERS["flash_attn/xpos_scores"])


def packed(right: Spans, left: str) -> None:
    x, c = (torch.from_numpy(PEERS[f"flash_attn/{name}"].copy()) for name in ("x", "cu_seqlens"))
    close(run(right[0], x=x[0], c=c), PEERS["flash_attn/packed"])


def serving(*settings: tuple[str, dict[str, Any]], heads: bool = True) -> Check:
    """Tokens of (T, H, D), or of (T, H * D), under each setting."""

    def check(right: Spans, left: str) -> None:
        for kind, names in settings:
            given = of("vllm", "q", "k", "positions", "indptr", "offsets", "cache")
            if heads:
                given |= {name: given[name].reshape(T, -1, 64) for name in "qk"}
            found = run(right[0], **given, pos_ids=given["positions"], base=10000, head_size=64, **names)
            for one, part in zip(found, "qk", strict=True):
                close(one, PEERS[f"vllm/{kind}_{part}"], 1000)

    return check


SERVING: dict[str, Check] = {
    "`apply_rotary_emb(x, cos, sin)` (flash-attn)": as_tensors("half", "x"),
    "the same with `interleaved=True`": as_tensors("pairs", "x"),
    "with `inplace=True`": as_tensors("half", "x"),
    "with `seqlen_offsets=lengths`": as_tensors("offset", "x", "lengths", angle=1000),
    "with `cu_seqlens=c, max_seqlen=m`, x of (tokens, H, D)": packed,
    "`apply_rotary_emb_qkv_(qkv, cos, sin, num_heads_q=8)`, 8 heads of queries and 2 of keys": as_tensors("qkv_out", "qkv"),
    "`RotaryEmbedding(dim, scale_base=512)` (xPos)": xpos,
    "`rotary_embedding(positions, q, k, head_size, cache, is_neox)` (vLLM), q of (tokens, H * D)": serving(
        ("neox", {"is_neox": True}), ("gptj", {"is_neox": False}), heads=False
    ),
    "`apply_rope_pos_ids_inplace(q, k, pos_ids, interleave=i)` (flashinfer)": serving(
        ("pos_ids_half", {"i": False}), ("pos_ids_pairs", {"i": True})
    ),
    "`apply_llama31_rope_inplace(q, k, indptr, offsets)` (flashinfer)": serving(("llama31", {})),
}


# ---- diffusers, timm ---------------------------------------------------------------------------------------------------------


def grid(key: str, angle: float = 20.0) -> Check:
    def check(right: Spans, left: str) -> None:
        expected = PEERS[key]
        found = run(right[0], D=expected.shape[-1], frames=3, rows=6, columns=4)
        close(found.reshape(expected.shape), expected, angle)

    return check


def authors_grid(right: Spans, left: str) -> None:
    """Rows that MAE's own function made, after the class token's."""
    with np.load(ROOT / "tests" / "data" / "grids.npz") as known:
        expected, kept = known["mae_14x14"], known["mae_14x14_rows"]
    close(run(right[0], D=768).reshape(196, 768)[kept[1:] - 1], expected[1:], 14)


IMAGES: dict[str, Check] = {
    "`get_timestep_embedding(t, 320, flip_sin_to_cos=True, downscale_freq_shift=0)`": equals(
        "diffusers", "timesteps", "t", angle=999
    ),
    "`get_2d_sincos_pos_embed(D, 14)` (diffusers, whose `base_size` is 16 unless you say so)": grid("diffusers/sincos_2d"),
    "the same of MAE's and DiT's authors": authors_grid,
    "`get_2d_sincos_pos_embed(D, (6, 4), base_size=8, interpolation_scale=2)`": grid("diffusers/sincos_2d_scaled"),
    "`get_3d_sincos_pos_embed(D, (columns, rows), frames)`": grid("diffusers/sincos_3d"),
    "`apply_rotary_emb(q, FluxPosEmbed(10000, [16, 56, 56])(ids))`, ids of (T, 3)": pair("diffusers", "flux_", "", "ids"),
    "`apply_rotary_emb(q, freqs)`, `use_real_unbind_dim=-1`": equals("diffusers", "pairs", "q"),
    "`apply_rotary_emb(q, freqs, use_real_unbind_dim=-2)`": equals("diffusers", "half", "q"),
    "`get_1d_rotary_pos_embed(..., ntk_factor=2)`": rotates("diffusers", "ntk", 0),
    "`build_sincos2d_pos_embed((14, 14), D)` (timm)": grid("timm/sincos"),
    "`resample_abs_pos_embed(table, (24, 32))` (timm)": equals("timm", "resampled", "table"),
    "`FourierEmbed(max_res=224, num_bands=8)` (timm)": equals("timm", "fourier", angle=352),
}

# ---- keras-hub, positional-encodings, rotary-embedding-torch -----------------------------------------------------------------


def two_axes(right: Spans, left: str) -> None:
    x, expected = of("positional_encodings", "grid", "grid_out").values()
    close(run(right[0], x=x, H=5, W=3), expected)


OTHERS: dict[str, Check] = {
    "`SinePositionEncoding()(x, start_index=7)` (keras-hub)": equals("keras_hub", "sine_7", "x"),
    "`TokenAndPositionEmbedding(...)` (keras-hub)": equals("keras_hub", "embedded", "ids", "words", "places"),
    "`Summer(PositionalEncoding1D(D))(x)` (positional-encodings)": equals("positional_encodings", "x_out", "x"),
    "`Summer(PositionalEncoding2D(D))(x)`": two_axes,
    "`rotate_queries_or_keys(q, offset=7)` (rotary-embedding-torch)": equals("rotary_embedding_torch", "plain", "q"),
    "`RotaryEmbedding(D, theta_rescale_factor=4)` (rotary-embedding-torch)": rotates("rotary_embedding_torch", "rescaled", 7),
    "`RotaryEmbedding(D, interpolate_factor=4)` (rotary-embedding-torch)": rotates("rotary_embedding_torch", "interpolated", 7),
}


def stretched(right: Spans, left: str) -> None:
    """keras-hub has no call for it; PyTorch's linear interpolation has the numbers."""
    table = cases.random((8, 4), "float32")
    expected = torch.nn.functional.interpolate(torch.from_numpy(table).T[None], 20, mode="linear")[0].T
    close(run(right[0], table=table, length=20), expected)


KERAS: dict[str, Check] = {
    "`SinePositionEncoding(max_wavelength=10000)(x)`": equals("keras_hub", "sine", "x"),
    "the same with `start_index=7`": equals("keras_hub", "sine_7", "x"),
    "`RotaryEmbedding(max_wavelength=10000)`": rotates("keras_hub", "rotated", 40, axis=-3),
    '`RotaryEmbedding(rope_type="linear", scaling_factor=4)`': rotates("keras_hub", "linear", 1000, axis=-3),
    '`RotaryEmbedding(rope_type="dynamic", scaling_factor=4)`': rotates("keras_hub", "dynamic", 1000, axis=-3),
    '`RotaryEmbedding(rope_type="yarn", scaling_factor=4, original_max_position_embeddings=2048)`': rotates(
        "keras_hub", "yarn", 1000, -3
    ),
    "the same with `truncate=False`": rotates("keras_hub", "yarn_whole", 1000, axis=-3),
    "`PositionEmbedding(sequence_length)` at another length": stretched,
}


SECTIONS = {
    ("migration.md", "PyTorch, NumPy, by hand"): BY_HAND,
    ("migration.md", "Hugging Face transformers"): HUGGING_FACE,
    ("migration.md", "flash-attn, vLLM, flashinfer"): SERVING,
    ("migration.md", "diffusers, timm"): IMAGES,
    ("migration.md", "keras-hub, positional-encodings, rotary-embedding-torch"): OTHERS,
    ("how-to/keras.md", "What keras-hub's layers compute"): KERAS,
}
ALL = [(page, heading, left) for (page, heading), checks in SECTIONS.items() for left in checks]


@pytest.mark.parametrize(("page", "heading", "left"), ALL, ids=[left for *_, left in ALL])
def test_a_row_gives_the_other_librarys_numbers(page: str, heading: str, left: str) -> None:
    SECTIONS[page, heading][left](rows(page, heading)[left], left)


@pytest.mark.parametrize(("page", "heading"), SECTIONS)
def test_every_row_is_checked(page: str, heading: str) -> None:
    assert [*rows(page, heading)] == [*SECTIONS[page, heading]]


def test_every_table_is_checked() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "docs" / "migration.md").read_text(), re.M)
    checked = [heading for page, heading in SECTIONS if page == "migration.md"]
    assert [*checked, "Names", "It does the same, and here is the check"] == headings


def test_names_are_those_of_fastpe() -> None:
    verbs = (fastpe.apply_rotary, fastpe.add_encoding, fastpe.Rotary)
    known = {name for verb in verbs for name in inspect.signature(verb).parameters}
    names = [left.strip("`") for left in rows("migration.md", "Names")]
    assert len(names) == 9
    assert {*names} <= known
