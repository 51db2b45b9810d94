"""Generators of positions: what papers and projects make, and libraries."""

from __future__ import annotations

import importlib
from pathlib import Path

import cases
import numpy as np
import pytest

import fastpe
from fastpe import Rotary, positions

DATA = dict(np.load(Path(__file__).parents[1] / "data" / "positions.npz"))
AXES = dict(np.load(Path(__file__).parents[1] / "data" / "axes.npz"))


def of_transformers(name):
    """A module of transformers."""
    cases.transformers()
    return importlib.import_module(f"transformers.{name}")


# ---- sequences ---------------------------------------------------------------------------------------------------------------


def test_from_mask():
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
    assert positions.from_mask(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 0, 0, 2], [0] * 5]
    assert positions.from_mask(mask[0], offset=7, fill=1).tolist() == [1, 1, 7, 8, 9]
    # The rows that a mask counts.
    x = cases.random((3, 5, 8), "float32")
    by_mask = fastpe.add_encoding(x.copy(), mask=mask, offset=4)
    by_positions = fastpe.add_encoding(x.copy(), mask=mask, positions=positions.from_mask(mask, offset=4))
    cases.assert_same_bits(by_positions, by_mask)


def test_packed():
    boundaries = np.array([0, 4, 4, 9, 10])
    expected = [0, 1, 2, 3, 0, 1, 2, 3, 4, 0]
    assert positions.packed(boundaries).tolist() == expected
    assert positions.packed(boundaries.astype(np.int32), total=10).tolist() == expected
    assert positions.packed([0]).tolist() == []
    unsigned = positions.packed(boundaries.astype(np.uint64))
    assert unsigned.dtype == np.int64
    assert unsigned.tolist() == expected


def test_fairseq():
    ids = np.array([[1, 1, 40, 41, 2], [40, 41, 2, 1, 1]])
    assert positions.fairseq(ids).tolist() == [[1, 1, 2, 3, 4], [2, 3, 4, 1, 1]]
    assert positions.fairseq(ids - 1, 0).tolist() == [[0, 0, 1, 2, 3], [1, 2, 3, 0, 0]]


def test_abacus():
    text = "12+345=357"
    digits = np.array([c.isdigit() for c in text])
    assert positions.abacus(digits).tolist() == [1, 2, 0, 1, 2, 3, 0, 1, 2, 3]
    assert positions.abacus(np.stack([digits, ~digits]), offset=10).tolist()[1] == [0, 0, 11, 0, 0, 0, 11, 0, 0, 0]


def test_mrope_by_hand():
    """Qwen2-VL's paper: text, an image of 2 x 3 tokens, text, a video of 2 frames of 2 x 2 tokens, text."""
    types = [0, 0, *[1] * 6, 0, *[2] * 8, 0]
    found = positions.mrope(types, [(1, 4, 6)], [(2, 4, 4)])
    time = [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 6, 6, 6, 7, 7, 7, 7, 8]
    rows = [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 6, 7, 7, 6, 6, 7, 7, 8]
    columns = [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 6, 7, 6, 7, 6, 7, 8]
    assert found.positions.tolist() == [time, rows, columns]
    assert found.deltas == 9 - len(types)
    # Seconds: floor(frame * interval).
    spaced = positions.mrope(types, [(1, 4, 6)], [(2, 4, 4)], time_intervals=[12.5])
    assert spaced.positions[0, 9:].tolist() == [6] * 4 + [18] * 4 + [19]
    spatial = positions.mrope(types, [(1, 4, 6)], [(2, 4, 4)], time_intervals=12.5, follows="spatial")
    assert spatial.positions[0, 9:].tolist() == [6] * 4 + [18] * 4 + [8]
    # Frames apart, and merged.
    apart = positions.mrope([2, 2, 0, 2, 2], None, [(2, 2, 4)], separate_frames=True)
    assert apart.positions.tolist() == [[0, 0, 2, 3, 3], [0, 0, 2, 3, 3], [0, 1, 2, 3, 4]]
    merged = positions.mrope([2] * 4, None, [(4, 2, 4)], temporal_merge=2)
    assert merged.positions.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]]


def test_mrope_of_a_batch_with_padding():
    types = np.array([[0, 1, 1, 1, 1, 0], [9, 9, 0, 0, 0, 0]])
    mask = types != 9
    types[types == 9] = 0
    found = positions.mrope(types, [(1, 4, 4)], mask=mask)
    assert found.positions.shape == (3, 2, 6)
    assert found.positions[1].tolist() == [[0, 1, 1, 2, 2, 3], [0, 0, 0, 1, 2, 3]]
    assert found.deltas.tolist() == [-2, 0]


FAMILIES = {
    "qwen2_vl": ("Qwen2VLModel", {"spatial_merge_size": 2}, {}),
    "qwen2_5_vl": ("Qwen2_5_VLModel", {"spatial_merge_size": 2, "tokens_per_second": 2}, {}),
    "qwen3_vl": ("Qwen3VLModel", {"spatial_merge_size": 2}, {"separate_frames": True}),
    "ernie4_5_vl_moe": ("Ernie4_5_VLMoeModel", {"spatial_merge_size": 2, "temporal_merge_size": 2}, {"temporal_merge": 2}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_mrope_as_hugging_face_has_it(family, monkeypatch):
    """The same ids as the models' own code makes of random layouts."""
    torch = pytest.importorskip("torch")
    module = of_transformers(f"models.{family}.modeling_{family}")
    from types import SimpleNamespace

    name, vision, options = FAMILIES[family]
    kind = getattr(module, name, None)
    if kind is None or "mm_token_type_ids" not in kind.get_rope_index.__code__.co_varnames:
        pytest.skip(f"this transformers has no {name}.get_rope_index of token types")
    model = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(**vision)))
    model.get_vision_position_ids = kind.get_vision_position_ids.__get__(model)
    rng = np.random.default_rng(0)
    for _ in range(5):
        images, videos, types = [], [], [0] * int(rng.integers(1, 5))
        for _ in range(4):
            is_video = bool(rng.integers(2))
            frames = 4 if is_video else 1
            grid = (frames, *(2 * rng.integers(1, 5, 2)).tolist())
            (videos if is_video else images).append(grid)
            count = grid[1] * grid[2] // 4
            if family == "qwen3_vl" and is_video:
                types += ([2] * count + [0] * 3) * frames
            else:
                merged = 2 if is_video and family.startswith("ernie") else 1
                types += [2 if is_video else 1] * (count * frames // merged)
            types += [0] * int(rng.integers(1, 6))
        padded = np.array([[0] * 3 + types])
        mask = np.arange(padded.shape[1])[None] >= 3
        ids = torch.zeros(padded.shape, dtype=torch.long)
        given = {
            "image_grid_thw": torch.tensor(images) if images else None,
            "video_grid_thw": torch.tensor(videos) if videos else None,
            "attention_mask": torch.tensor(mask).long(),
        }
        options_now = dict(options)
        if family == "qwen2_5_vl" and videos:
            seconds = rng.uniform(0.2, 3, len(videos)).tolist()
            given["second_per_grid_ts"] = seconds
            options_now["time_intervals"] = [2 * one for one in seconds]
        expected, deltas = kind.get_rope_index(model, ids, torch.tensor(padded), **given)
        found = positions.mrope(
            padded,
            np.array(images) if images else None,
            np.array(videos) if videos else None,
            mask=mask,
            follows="spatial",
            **options_now,
        )
        assert (found.positions == expected.numpy()).all()
        assert found.deltas.tolist() == deltas.ravel().tolist()


# ---- grids -------------------------------------------------------------------------------------------------------------------


def test_grid():
    assert (positions.grid((7, 5)) == np.indices((7, 5)).reshape(2, -1)).all()
    assert positions.grid((2, 2), start=(4, 1)).tolist() == [[4, 4, 5, 5], [1, 2, 1, 2]]
    assert (positions.grid((3, 6, 4)) == np.indices((3, 6, 4)).reshape(3, -1)).all()


@pytest.mark.parametrize("shape", [(4, 5), (1, 1), (7,), (2, 3, 4)])
def test_differences_of_windows_say_how_far_patches_are_apart(shape):
    where, places = positions.window(shape), np.indices(shape).reshape(len(shape), -1)
    between = places[:, :, None] - places[:, None]  # per axis
    sizes = [2 * size - 1 for size in shape]
    rows = np.ravel_multi_index([one + size - 1 for one, size in zip(between, shape, strict=True)], sizes)
    assert (where[:, None] - where == rows - np.prod(sizes) // 2).all()
    queries, keys = positions.window(shape, class_token=True)
    assert (queries[1:] == where).all()
    assert (keys[1:] == where).all()
    kinds = fastpe.RelativeTable(np.zeros((np.prod(sizes) + 3, 1)), class_token=True).buckets(queries[:, None] - keys)
    assert (kinds[1:, 1:] == rows).all()
    assert [set(part.tolist()) for part in (kinds[0, 1:], kinds[1:, 0], kinds[:1, 0])] == [
        {np.prod(sizes) + i} for i in range(3)
    ]


def turned(encoding, where, width):
    """Cosine and sine of every pair, by rotating unit vectors."""
    x = np.zeros((where.shape[-1], width), np.float32)
    x[:, slice(0, None, 2) if encoding.interleaved else slice(0, width // 2)] = 1
    fastpe.apply_rotary(x, None, encoding, positions=where)
    if encoding.interleaved:
        return x[:, ::2], x[:, 1::2]
    return x[:, : width // 2], x[:, width // 2 :]


def assert_table(encoding, where, name, *, every=1):
    cos, sin = AXES[f"{name}cos"], AXES[f"{name}sin"]
    for got, table in zip(turned(encoding, where, cos.shape[-1]), (cos, sin), strict=True):
        columns = slice(0, None, 2) if encoding.interleaved else slice(0, cos.shape[-1] // 2)
        assert np.abs(got - table[:, columns]).max() <= 1e-6 + 1.2e-7 * np.abs(where).max() * every


def test_coordinates_for_rotary_grids():
    own = Rotary(interleaved=True, sections=(16, 16), section_frequencies="own")
    assert_table(own, positions.grid((7, 5)), "timm_rotary2d__lang_")
    assert_table(own, positions.grid((7, 5), start=1), "timm_rotary2d__lang_offset1_")
    assert_table(own, positions.resized((7, 5), (16, 16)), "timm_rotary2d__lang_ref_")
    bands = np.pi * 2.0 ** np.linspace(0, np.log2(224.0) - 1, 16)
    pixels = Rotary(interleaved=True, sections=(16, 16), scaling=fastpe.scaling.Custom((*bands, *bands)))
    assert_table(pixels, positions.pixels((7, 5)), "timm_rotary2d__pixels_", every=352)
    centred = Rotary(100.0, sections=(16, 16), section_frequencies="own")
    assert_table(centred, positions.centred((7, 5)), "timm_rotary2d__centered_dinov3_")
    cog = Rotary(interleaved=True, sections=(8, 12, 12), section_frequencies="own")
    assert_table(cog, positions.grid((3, 6, 4)), "diffusers_rope3d__")
    hw = AXES["rope2d_qwen2vl_vision__hw"].T
    height, width = hw.max(axis=1) + 1
    assert (np.unique(hw, axis=1) == positions.grid((height, width))).all()


def test_dinov3_as_hugging_face_has_it():
    torch = pytest.importorskip("torch")
    module = of_transformers("models.dinov3_vit.modeling_dinov3_vit")
    config = module.DINOv3ViTConfig(hidden_size=128, num_attention_heads=2, image_size=112, patch_size=16)
    cos, sin = module.DINOv3ViTRopePositionEmbedding(config).eval()(torch.zeros(1, 3, 5 * 16, 7 * 16))
    encoding = Rotary(config.rope_theta, sections=(16, 16), section_frequencies="own")
    found = turned(encoding, positions.centred((5, 7), scale=2 * np.pi), 64)
    for got, table in zip(found, (cos, sin), strict=True):
        assert np.abs(got - table.numpy()[:, :32]).max() <= 3e-6


def test_llama4_as_hugging_face_has_it():
    pytest.importorskip("torch")
    module = of_transformers("models.llama4.modeling_llama4")
    config = module.Llama4VisionConfig(hidden_size=128, num_attention_heads=2, image_size=70, patch_size=14)
    table = module.Llama4VisionRotaryEmbedding(config).freqs_ci.numpy()[:, 0]
    encoding = Rotary(config.rope_parameters["rope_theta"], interleaved=True, sections=(16, 16), section_frequencies="own")
    cosines, sines = turned(encoding, positions.llama4(5), 64)
    assert np.abs(cosines + 1j * sines - table).max() <= 3e-6


def test_qwen2_vl_keeps_together_what_will_be_merged():
    found = positions.qwen2_vl([(1, 4, 4), (2, 2, 2)])
    assert found[:, :4].tolist() == [[0, 0, 1, 1], [0, 1, 0, 1]]
    assert found[:, 4:8].tolist() == [[0, 0, 1, 1], [2, 3, 2, 3]]
    assert found[:, 16:].tolist() == [[0, 0, 1, 1] * 2, [0, 1, 0, 1] * 2]
    assert positions.qwen2_vl([(2, 2, 2)], with_frames=True)[0].tolist() == [0] * 4 + [1] * 4
    vision = of_transformers("vision_utils")
    torch = pytest.importorskip("torch")
    grids = torch.tensor([[1, 8, 4], [3, 4, 12], [1, 2, 2]])
    assert (positions.qwen2_vl(grids) == vision.get_vision_position_ids(grids, 2).T).all()


def test_detr():
    mask = np.zeros((2, 4, 5), bool)
    mask[0, :3, :4], mask[1] = True, True
    counted = positions.detr(mask, normalize=False)
    assert counted.dtype == np.int64
    assert counted[0, 0, :, 0].tolist() == [1, 2, 3, 3]
    assert counted[1, 0, 0].tolist() == [1, 2, 3, 4, 4]
    full = positions.detr(mask)
    assert full.shape == (2, 2, 4, 5)
    assert full[0, 0, 2, 0] == pytest.approx(2 * np.pi, rel=1e-6)
    assert full[1, 1, 0].tolist() == pytest.approx((2 * np.pi * np.arange(1, 6) / (5 + 1e-6)).tolist())
    assert positions.detr(mask[1], scale=1.0, shift=0.5)[0, :, 0].tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875])
    assert positions.detr(mask, normalize=False, shift=0.5)[0, 1, 0, 0] == 0.5


# ---- random ------------------------------------------------------------------------------------------------------------------


def test_randomized():
    other = DATA["randomized"]
    for sample in (other, positions.randomized(40, 2048, rng=0)):
        assert sample.shape == (40,)
        assert (np.diff(sample) > 0).all()
        assert sample.min() >= 0
        assert sample.max() < 2048
    assert (positions.randomized(40, 2048, rng=3) == positions.randomized(40, 2048, rng=3)).all()
    assert positions.randomized(5, 5, rng=0).tolist() == list(range(5))
    batch = positions.randomized(40, 2048, batch=3, rng=np.random.default_rng(1))
    assert batch.shape == (3, 40)
    assert len({tuple(row) for row in batch.tolist()}) == 3
    mean = np.mean([positions.randomized(1, 100, rng=seed)[0] for seed in range(2000)])
    assert 46 < mean < 53  # uniform: 49.5, and its error 0.65


def test_shifted():
    drawn = {int(positions.shifted(3, 2, rng=seed)[0]) for seed in range(60)}
    assert drawn == {0, 1, 2}
    batch = positions.shifted(4, 1000, batch=5, rng=0)
    assert (np.diff(batch) == 1).all()
    assert len(set(batch[:, 0].tolist())) > 1


def test_skipped():
    seen = set()
    for seed in range(300):
        for chunks in (1, 2, 3):
            row = positions.skipped(8, 32, chunks=chunks, rng=seed)
            steps = np.diff(row)
            assert row[0] == 0
            assert row[-1] <= 31
            assert (steps >= 1).all()
            assert (steps > 1).sum() <= chunks - 1
            seen.add(int(row[-1]))
    assert {7, 31} <= seen
    assert positions.skipped(8, 32, batch=2, rng=0).shape == (2, 8)


def test_random_float():
    row = positions.random_float(50, 1000.0, rng=0)
    assert (np.diff(row) > 0).all()
    assert row.min() >= 0
    assert row.max() < 1000


# ---- remaps ------------------------------------------------------------------------------------------------------------------

REMAPS = {
    "rerope_w8": lambda n: positions.rerope(n, window=8),
    "leaky_rerope_w8_k4": lambda n: positions.leaky_rerope(n, window=8, factor=4),
    "selfextend_g4_w8": lambda n: positions.self_extend(n, group=4, window=8),
    "dca_c12_lw4": lambda n: positions.dual_chunk(n, chunk=12, local=4),
    "string_S26_W3": lambda n: positions.string(n, shift=26, window=3),
}


@pytest.mark.parametrize("name", REMAPS)
def test_remaps(name):
    """The distance that each query and key see, in every branch that attention code would compute."""
    expected, causal = DATA[name], DATA["causal"]
    remap = REMAPS[name](40)
    assert (remap.distance()[causal] == expected[causal]).all()
    # Queries decoded one by one, or in part, see the same.
    late = REMAPS[name](np.arange(33, 40))
    late = type(remap)(late.q, remap.k, remap.size, remap.bounds, late.queries, remap.keys)
    assert (late.distance()[causal[33:]] == expected[33:][causal[33:]]).all()


def test_remaps_as_rotations():
    """Scores of rotated queries and keys depend on the remapped distance only."""
    rng = np.random.default_rng(0)
    q, k = np.tile(rng.standard_normal(16), (40, 1)), np.tile(rng.standard_normal(16), (40, 1))
    remap = positions.self_extend(40, group=4, window=8)
    scores = []
    for where_q, where_k in zip(remap.q, remap.k, strict=True):
        rotated = fastpe.apply_rotary(q.copy(), positions=where_q), fastpe.apply_rotary(k.copy(), positions=where_k)
        scores.append(rotated[0] @ rotated[1].T)
    chosen = np.choose(remap.branch(), scores)
    by_distance = {}
    for distance, score in zip(remap.distance()[DATA["causal"]], chosen[DATA["causal"]], strict=True):
        by_distance.setdefault(int(distance), []).append(score)
    assert max(np.ptp(group) for group in by_distance.values()) < 1e-9
    assert max(by_distance) < 40


# ---- libraries ---------------------------------------------------------------------------------------------------------------


def test_tensors_in_tensors_out():
    torch = pytest.importorskip("torch")
    mask = np.array([[False, True, True], [True, True, True]])
    image = np.ones((1, 4, 5), bool)
    image[:, 3:] = False
    for made, expected in (
        (positions.from_mask(torch.tensor(mask), offset=2), positions.from_mask(mask, offset=2)),
        (positions.packed(torch.tensor([0, 3, 3, 5], dtype=torch.int32)), positions.packed([0, 3, 3, 5])),
        (positions.fairseq(torch.tensor([[1, 5, 6]])), positions.fairseq([[1, 5, 6]])),
        (positions.abacus(torch.tensor(mask)), positions.abacus(mask)),
        (positions.detr(torch.tensor(image)), positions.detr(image)),
        (positions.detr(torch.tensor(image), normalize=False), positions.detr(image, normalize=False)),
        (positions.window((2, 3), like=torch.zeros(1)), positions.window((2, 3))),
        (positions.mrope(torch.tensor([0, 1, 0]), [(1, 2, 2)]).positions, positions.mrope([0, 1, 0], [(1, 2, 2)]).positions),
        (positions.mrope(torch.tensor([0, 1, 0]), [(1, 2, 2)]).deltas, positions.mrope([0, 1, 0], [(1, 2, 2)]).deltas),
        (positions.qwen2_vl(torch.tensor([[1, 4, 4]])), positions.qwen2_vl([(1, 4, 4)])),
        (positions.grid((2, 3), like=torch.zeros(1)), positions.grid((2, 3))),
        (positions.llama4(2, like=torch.zeros(1)), positions.llama4(2)),
        (positions.randomized(5, 50, rng=0, like=torch.zeros(1)), positions.randomized(5, 50, rng=0)),
    ):
        assert isinstance(made, torch.Tensor)
        assert made.numpy().dtype == expected.dtype
        assert made.numpy().tolist() == expected.tolist()


def test_what_lies_on_a_gpu_is_not_checked(monkeypatch):
    """Reading it would wait; nothing raises, and an image of padding alone has coordinates of 0."""
    kept, bounds = np.zeros((2, 3, 4), bool), [1, 3]
    for call in (lambda: positions.detr(kept), lambda: positions.packed(bounds, total=3)):
        with pytest.raises(ValueError, match="must"):
            call()
    monkeypatch.setattr(positions.arrays, "is_on_host", lambda value: False)
    assert not positions.detr(kept).any()
    assert positions.packed(bounds, total=3).shape == (3,)
