"""Recipes against the numbers of the models that they are named after, made by the models' own functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from catalog_cases import DATA, recipe

import fastpe
from fastpe.encodings import recipes as catalog


def close(found: Any, expected: Any, angle: float, factor: float = 1.0) -> None:
    """Other projects' float32 angles err by 1.2e-7 of the largest."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=(1e-6 + 1.2e-7 * angle) * factor)


# ---- added to embeddings -----------------------------------------------------------------------------------------------------


def table(name: str, key: str, first: int = 0) -> None:
    expected = DATA[key]
    rows = DATA.get(f"{key}_rows", np.arange(len(expected))) + first
    close(fastpe.encode(rows, expected.shape[1], recipe(name).encoding), expected, rows.max())


def model(name: str, key: str) -> None:
    """What a model's module makes of token ids: rows of padding are zero, and are not counted."""
    ids, expected, found = DATA["recipes/transformers/ids"], DATA[key], recipe(name)
    assert "padding_idx=1" in found.padding
    words = np.zeros((9, expected.shape[-1]), np.float32)
    made = fastpe.embed(ids, words, found.encoding, padding_idx=1, offset=found.offset)
    close(made, expected, 10)
    x = np.zeros_like(made)
    close(fastpe.add_encoding(x, found.encoding, mask=ids != 1, offset=found.offset), expected, 10)


def scaled(name: str, key: str, axis: int = 1) -> None:
    """What a model's module makes of embeddings: times the square root of their width, plus the encoding."""
    x = DATA["recipes/others/x"].copy()
    assert fastpe.add_encoding(x, **recipe(name).arguments(64), seq_axis=axis) is x
    close(x, DATA[key], 10, 3)


def xglm() -> None:
    expected = DATA["recipes/transformers/xglm"][0]
    close(fastpe.encode(np.arange(5) + recipe("xglm").offset, 64, recipe("xglm").encoding), expected, 10)


def vaswani() -> None:
    x = np.ones((1, 4, 16), np.float32)
    fastpe.add_encoding(x, **recipe("vaswani").arguments(16))
    expected = [[math.sin(p / 10000 ** (2 * (c // 2) / 16) + (c % 2) * math.pi / 2) + 4 for c in range(16)] for p in range(4)]
    close(x[0], expected, 4, 2)


def relative(name: str, key: str) -> None:
    expected = DATA[key]
    count = len(expected) // 2 + 1
    close(fastpe.encode(np.arange(count - 1, -count, -1), expected.shape[1], recipe(name).encoding), expected, count)


def transformer_xl() -> None:
    """Its own expression: cat([sin, cos]) of positions klen - 1 ... -klen times 1 / 10000^(2i/D)."""
    positions, angles = np.arange(4, -5, -1.0), 10000.0 ** -(np.arange(0, 16, 2) / 16)
    expected = np.concatenate([np.sin(np.outer(positions, angles)), np.cos(np.outer(positions, angles))], -1)
    close(fastpe.encode(positions, 16, recipe("transformer-xl").encoding), expected, 4)


def timesteps(name: str, *keys: str) -> None:
    for key in keys:
        expected = DATA[f"recipes/diffusers/{key}"]
        found = fastpe.encode(DATA["recipes/diffusers/t"], expected.shape[1], recipe(name).encoding)
        close(found, expected, 999)


ADDED: dict[str, Callable[[], None]] = {
    "vaswani": vaswani,
    "t2t": lambda: table("t2t", "tables/tensor2tensor_512x64"),
    "fairseq": lambda: table("fairseq", "tables/fairseq_64x33"),
    "fsmt": lambda: model("fsmt", "recipes/transformers/fsmt"),
    "m2m100": lambda: model("m2m100", "recipes/transformers/m2m100"),
    "xglm": xglm,
    "speech-to-text": lambda: model("speech-to-text", "recipes/transformers/speech-to-text"),
    "marian": lambda: table("marian", "tables/marian_512x64"),
    "pegasus": lambda: table("pegasus", "recipes/transformers/pegasus"),
    "musicgen": lambda: table("musicgen", "recipes/transformers/musicgen"),
    "opennmt": lambda: scaled("opennmt", "recipes/others/opennmt"),
    "espnet": lambda: scaled("espnet", "recipes/others/espnet"),
    "whisper": lambda: table("whisper", "tables/whisper_1500x384"),
    "xlm": lambda: table("xlm", "tables/xlm_512x64"),
    "videomae": lambda: table("videomae", "tables/videomae_512x64"),
    "transformer-xl": transformer_xl,
    "conformer": lambda: relative("conformer", "recipes/transformers/conformer"),
    "keras-hub": lambda: table("keras-hub", "recipes/others/keras-hub"),
    "ddpm": lambda: timesteps("ddpm", "ddpm", "ddpm_odd"),
    "ldm": lambda: timesteps("ldm", "ldm"),
}

# ---- grids -------------------------------------------------------------------------------------------------------------------


def grid(name: str, key: str, **fields: Any) -> None:
    expected = DATA[key]
    chosen = recipe(name, **fields).encoding
    rows: Any = DATA.get(f"{key}_rows", slice(None))
    if name == "mae":  # whose first row is the class token's
        assert not expected[0].any()
        rows, expected = rows[1:] - 1, expected[1:]
    found = fastpe.encode(None, expected.shape[-1], chosen).reshape(-1, expected.shape[-1])[rows]
    close(found, expected.reshape(-1, expected.shape[-1]), max(chosen.shape) + 7)
    x = np.ones((2, chosen.rows, expected.shape[-1]), np.float32)
    assert fastpe.add_encoding(x, **recipe(name, **fields).arguments(expected.shape[-1])) is x
    close(x[1][rows] - 1, expected.reshape(-1, expected.shape[-1]), max(chosen.shape) + 7, 2)


def dab_detr() -> None:
    expected = np.moveaxis(DATA["recipes/transformers/dab-detr"], 0, -1)  # channels first
    close(fastpe.encode(None, 64, recipe("dab-detr").encoding), expected, 2 * math.pi)


def detr() -> None:
    mask = DATA["grids/detr_mask"] == 1
    chosen = fastpe.Grid.detr()
    assert recipe("detr").encoding == fastpe.Grid.detr((5, 7))
    x = np.zeros((*mask.shape, 256), np.float32)
    fastpe.add_encoding(x, chosen, positions=fastpe.positions.detr(mask))
    expected = np.moveaxis(DATA["grids/detr_normalized"], 1, -1)
    close(x[:, :, ::2], expected, 2 * math.pi)


GRIDS: dict[str, Callable[[], None]] = {
    "mae": lambda: grid("mae", "grids/mae_14x14", shape=(14, 14)),
    "dit": lambda: grid("dit", "recipes/diffusers/dit", shape=(5, 5)),
    "timm-2d": lambda: grid("timm-2d", "recipes/others/timm-2d"),
    "detr": detr,
    "dab-detr": dab_detr,
    "rt-detr": lambda: grid("rt-detr", "recipes/transformers/rt-detr"),
    "omdet": lambda: grid("omdet", "recipes/transformers/omdet"),
    "cogvideox": lambda: grid("cogvideox", "recipes/diffusers/cogvideox", shape=(3, 4, 6)),
    "positional-encodings": lambda: grid("positional-encodings", "grids/package_d2_10", shape=(6, 5)),
    "t2t-nd": lambda: grid("t2t-nd", "grids/t2t_3", shape=(4, 3, 5)),
}

# ---- rotations ---------------------------------------------------------------------------------------------------------------


def inverse_frequencies(name: str, head_dim: int) -> None:
    """The model's inverse frequencies are float32, from float32 powers."""
    expected = DATA[f"recipes/transformers/{name}_inv"]
    found, factor = recipe(name).encoding.frequencies(head_dim)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=4e-7, atol=0)
    assert factor == pytest.approx(float(DATA[f"recipes/transformers/{name}_factor"]), rel=1e-12)


def rotations(encoding: Any, positions: Any, width: int) -> np.ndarray:
    """The cosines and sines of each channel's pair, (T, pairs, 2), as they turn a unit vector."""
    q = np.zeros((1, np.shape(positions)[-1], width), np.float32)
    first = slice(0, None, 2) if encoding.interleaved else slice(0, width // 2)
    second = slice(1, None, 2) if encoding.interleaved else slice(width // 2, None)
    q[..., first] = 1
    fastpe.apply_rotary(q, None, encoding, positions=positions)
    return np.stack([q[0][:, first], q[0][:, second]], -1)


def cosines(name: str, key: str, positions: Any, twice: str, angle: float = 1.0, **fields: Any) -> None:
    """Cosines and sines of all channels, each twice: as halves or side by side."""
    cos, sin = DATA[f"{key}_cos"], DATA[f"{key}_sin"]
    chosen = slice(0, cos.shape[-1] // 2) if twice == "halves" else slice(0, None, 2)
    found = rotations(recipe(name, **fields).encoding, positions, cos.shape[-1])
    close(found[..., 0], cos[:, chosen], angle)
    close(found[..., 1], sin[:, chosen], angle)


def roformer() -> None:
    q = DATA["recipes/transformers/roformer_q"].copy()
    close(fastpe.apply_rotary(q, None, recipe("roformer").encoding), DATA["recipes/transformers/roformer_out"], 9, 4)


def gptj() -> None:
    sine, cosine = np.split(DATA["recipes/transformers/gptj_table"], 2, -1)
    encoding = recipe("gptj").encoding
    assert encoding.interleaved
    assert encoding.rotary_dim == 64
    found = rotations(fastpe.Rotary(interleaved=True), np.arange(16), 64)
    close(found[..., 0], cosine, 16)
    close(found[..., 1], sine, 16)
    np.testing.assert_allclose(encoding.frequencies(256)[0], fastpe.Rotary().frequencies(64)[0], rtol=1e-15)


def xpos() -> None:
    """torchscale centres on the sequence; the centre is a field."""
    count = DATA["recipes/others/xpos_q"].shape[1]
    chosen = recipe("xpos", xpos_centre=(count + 1) // 2).encoding
    q, k = (DATA["recipes/others/xpos_q"].copy() for _ in "qk")
    fastpe.apply_rotary(q, k, chosen)
    close(q, DATA["recipes/others/xpos_q_out"], count, 4)
    close(k, DATA["recipes/others/xpos_k_out"], count, 4)


def qwen2_vl() -> None:
    q, k, positions = (DATA[f"rotated/mrope_qwen2vl__{key}"] for key in ("q", "k", "position_ids"))
    q, k = q.copy(), k.copy()
    fastpe.apply_rotary(q, k, recipe("qwen2-vl").encoding, positions=positions)
    close(q, DATA["rotated/mrope_qwen2vl__q_out"], positions.max(), 5)


def ernie() -> None:
    q, k = DATA["axes/ernie__q"].copy(), DATA["axes/ernie__k"].copy()
    fastpe.apply_rotary(q, k, recipe("ernie4.5-vl").encoding, positions=DATA["axes/ernie__positions"])
    close(q, DATA["axes/ernie__q_out"], DATA["axes/ernie__positions"].max(), 5)
    close(k, DATA["axes/ernie__k_out"], DATA["axes/ernie__positions"].max(), 5)


def llama4() -> None:
    expected = DATA["recipes/transformers/llama4-vision"]  # 4 x 4 patches, 48 channels
    encoding = recipe("llama4-vision", sections=(12, 12)).encoding
    close(rotations(encoding, fastpe.positions.llama4(4), 48), expected, 4)


ROTATIONS: dict[str, Callable[[], None]] = {
    "roformer": roformer,
    **{
        name: lambda name=name, width=width: inverse_frequencies(name, width)  # type: ignore[misc]
        for name, width in {
            **dict.fromkeys(("hf-llama", "llama3", "llama3.1", "codellama", "qwen2", "glm4"), 128),
            "neox": 96,
            "phi2": 80,
            "phi3": 96,
            "gpt-oss": 64,
            "deepseek-v3": 64,
            "gemma4": 512,
            "gemma4-sliding": 256,
        }.items()
    },
    "gptj": gptj,
    "xpos": xpos,
    "qwen2-vl": qwen2_vl,
    "qwen3-vl": lambda: cosines(
        "qwen3-vl", "recipes/transformers/qwen3-vl", DATA["recipes/transformers/mrope_positions"], "halves", 9
    ),
    "ernie4.5-vl": ernie,
    "qwen2-vl-vision": lambda: cosines(
        "qwen2-vl-vision", "axes/rope2d_qwen2vl_vision_", DATA["axes/rope2d_qwen2vl_vision__hw"].T, "halves", 9
    ),
    "dinov3": lambda: cosines(
        "dinov3", "recipes/transformers/dinov3", fastpe.positions.centred((5, 7), scale=2 * math.pi), "halves", 7
    ),
    "llama4-vision": llama4,
    "flux": lambda: cosines("flux", "recipes/diffusers/flux", DATA["recipes/diffusers/flux_ids"].T, "pairs", 31),
    "cogvideox-rotary": lambda: cosines(
        "cogvideox-rotary", "recipes/diffusers/cogvideox-rotary", fastpe.positions.grid((3, 4, 6)), "pairs", 6
    ),
}

# ---- biases ------------------------------------------------------------------------------------------------------------------


def last_row(name: str) -> None:
    """The model's bias is that of the last query, for all: softmax sees no difference under a causal mask."""
    scores = np.zeros((12, 9, 9), np.float32)
    fastpe.add_bias(scores, **recipe(name).arguments())
    close(scores[:, -1:], DATA[f"recipes/biases/{name}"], 9)


def bloom() -> None:
    scores = np.zeros((12, 1, 9), np.float32)
    fastpe.add_bias(scores, **recipe("bloom").arguments(), q_offset=0)  # slope * key
    close(scores, DATA["recipes/biases/bloom"], 9)


def alibi(name: str) -> None:
    slopes, distances = DATA["biases/slopes_bloom_12"], np.arange(-5, 9)
    expected = -slopes[:, None] * (np.abs(distances) if name == "alibi-symmetric" else distances)
    close(recipe(name).encoding.values(distances), expected, 9)


def buckets(name: str) -> None:
    np.testing.assert_array_equal(
        recipe(name).encoding.buckets(DATA["recipes/biases/distances"]), DATA[f"recipes/biases/{name}"]
    )


def kerple(name: str) -> None:
    distances = np.arange(9.0)
    expected = -np.log1p(0.5 * distances) if name == "kerple" else -0.5 * distances
    close(recipe(name).encoding.values(np.arange(9)), np.tile(expected, (4, 1)), 9)


def sandwich() -> None:
    frequencies, distances = 10000.0 ** (-2 * np.arange(1, 65) / 128), np.arange(9)
    of_distance = np.cos(distances[:, None] * frequencies).sum(1) - 64
    expected = of_distance / (8 * np.arange(1, 13)[:, None] / 12)
    close(recipe("sandwich").encoding.values(distances), expected, 9, 60)


def fire() -> None:
    chosen = recipe("fire", c=float(DATA["biases/fire_c"]), length=float(DATA["biases/fire_L"])).encoding
    scores = np.zeros((6, 16, 16), np.float32)
    fastpe.add_bias(scores, chosen)
    causal = np.tri(16, dtype=bool)[-8:]
    close(scores[:, -8:][:, causal], DATA["biases/fire_bias_16_last8rows"][:, causal], 16)


BIASES: dict[str, Callable[[], None]] = {
    "alibi": lambda: alibi("alibi"),
    "alibi-symmetric": lambda: alibi("alibi-symmetric"),
    "bloom": bloom,
    "mpt": lambda: last_row("mpt"),
    **{name: lambda name=name: buckets(name) for name in ("t5", "t5-decoder", "deberta", "wavlm")},  # type: ignore[misc]
    "kerple": lambda: kerple("kerple"),
    "kerple-power": lambda: kerple("kerple-power"),
    "sandwich": sandwich,
    "fire": fire,
}

GOLDEN = {**ADDED, **GRIDS, **ROTATIONS, **BIASES}


@pytest.mark.parametrize("name", [*catalog.CATALOGUE])
def test_numbers_of_the_model(name):
    GOLDEN[name]()


def test_every_recipe_has_numbers():
    assert set(GOLDEN) == set(fastpe.recipes())
