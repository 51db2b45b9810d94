"""The CUDA result equals the CPU result bit for bit, whatever the element type, layout, view and way of giving the positions."""

from __future__ import annotations

import cases
import numpy as np
import pytest

import fastpe
from fastpe import Rotary


def both(platform, view, encoding, given, **options):
    """Add on the host and on a GPU; return both results as NumPy arrays."""
    here, there = view.copy(), platform.array(view)
    assert fastpe.add_encoding(here, encoding, **given, **options) is here
    assert fastpe.add_encoding(there, encoding, **platform.arguments(given), **options) is there
    return platform.host(there), here


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", cases.ENCODINGS)
def test_encodings(gpu, dtype, name):
    for shape in ((2, 11, 32), (1, 3, 33)):
        got, expected = both(gpu, cases.random(shape, dtype), cases.encoding(name), {"offset": 1_000_003})
        cases.assert_same_bits(got, expected)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("mode", cases.POSITION_MODES)
def test_position_modes(gpu, dtype, mode):
    given = cases.POSITION_MODES[mode](3, 21)
    for layout in cases.LAYOUTS:
        encoding = fastpe.Sinusoidal(layout=layout)
        got, expected = both(gpu, cases.random((3, 21, 16), dtype), encoding, given, input_scale=4.5)
        cases.assert_same_bits(got, expected)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("view", cases.VIEWS)
def test_views(gpu, dtype, view):
    for width in (16, 7):
        x = cases.VIEWS[view](cases.random((3, 10, width), dtype))
        got, expected = both(gpu, x, None, {"offset": -5})
        cases.assert_same_bits(got, expected)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("offset", cases.OFFSETS)
def test_offsets(gpu, dtype, offset):
    got, expected = both(gpu, cases.random((1, 64, 8), dtype), None, {"offset": offset})
    cases.assert_same_bits(got, expected)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_special_values(gpu, dtype):
    """Subnormal numbers survive, infinities stay, NaN stays NaN, sums overflow alike."""
    info = np.finfo(np.float32) if dtype in ("bfloat16", "float32") else np.finfo(cases.DTYPES[dtype])
    values = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        float(info.max),
        -float(info.max),
        float(info.tiny),
        float(info.tiny) / 3,
        1.0,
    ]
    x = np.tile(np.array(values, np.float64), (1, 3, 4)).astype(cases.DTYPES[dtype])
    got, expected = both(gpu, x, fastpe.Sinusoidal(amplitude=1e-42), {})
    cases.assert_same_bits(got, expected)
    got, expected = both(gpu, x, None, {}, input_scale=1.5)
    cases.assert_same_bits(got, expected)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_heads_and_sequence_axis(gpu, dtype):
    """(T, B, H, D), positions for every head, out of place."""
    x = cases.random((9, 2, 3, 16), dtype)
    positions = np.random.default_rng(5).integers(-1000, 1000, (9, 2, 3))
    for given in (
        {"offset": 3},
        {"positions": positions},
        {"positions": positions[:, :, 0].copy()},
        {"mask": positions[:, :, 1] > 0},
    ):
        here = np.empty_like(x)
        fastpe.add_encoding(x.copy(), seq_axis=0, out=here, **given)
        source, there = gpu.array(x), gpu.array(np.empty_like(x))
        assert fastpe.add_encoding(source, seq_axis=0, out=there, **gpu.arguments(given)) is there
        cases.assert_same_bits(gpu.host(there), here)
        cases.assert_same_bits(gpu.host(source), x)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_encode(gpu, dtype):
    for positions in (np.array(7), np.arange(20), np.array([[0.25, -1e9], [3.5, 2.0**31 - 1]])):
        expected = fastpe.encode(positions, 17, dtype=dtype)
        cases.assert_same_bits(gpu.host(fastpe.encode(gpu.array(positions), 17, dtype=dtype)), expected)


def test_encode_into_an_out_of_many_axes(gpu):
    """Several kernel calls, none of which has an x: its address stays 0."""
    positions, spare = np.arange(2 * 3 * 2 * 3).reshape(2, 3, 2, 3), np.zeros((4, 4, 6, 3, 12), np.float32)

    def out(array):
        return array.transpose(1, 2, 0, 3, 4)[::2, ::2, ::2]

    expected, there = fastpe.encode(positions, 12), gpu.array(spare)
    for array in (spare, there):
        place = out(array)
        own = positions if array is spare else gpu.array(positions)
        assert fastpe.encode(own, 12, out=place) is place
    cases.assert_same_bits(np.ascontiguousarray(out(spare)), expected)
    cases.assert_same_bits(np.ascontiguousarray(out(gpu.host(there))), expected)


def test_not_a_position(gpu):
    """Values on a GPU are not read back: what is no position makes a NaN row, on a GPU only."""
    positions = np.array([1.0, np.nan, np.inf, 2.0**31, -(2.0**31), 5.0])
    for dtype in cases.DTYPES:
        x = gpu.array(np.zeros((1, 6, 8), cases.DTYPES[dtype]))
        fastpe.add_encoding(x, positions=gpu.array(positions))
        nan = np.isnan(gpu.host(x).astype(np.float64))
        assert nan.all(axis=(0, 2)).tolist() == [False, True, True, True, False, False]
        assert not nan[0, [0, 4, 5]].any()
    x = gpu.array(np.zeros((1, 3, 8), np.float32))
    fastpe.add_encoding(x, positions=gpu.array(np.array([2**31 - 1, 2**31, -(2**31) - 1])))
    assert np.isnan(gpu.host(x)).all(axis=(0, 2)).tolist() == [False, True, True]


# ---- grids and Fourier features ---------------------------------------------------------------------------------------------

GRIDS = {
    "mae": fastpe.Grid.mae((3, 5)),
    "timm": fastpe.Grid.timm((3, 5)),
    "detr": fastpe.Grid.detr((3, 5)),
    "truncated": fastpe.recipe("positional-encodings", shape=(3, 5)).encoding,
    "left_over": fastpe.recipe("t2t-nd", shape=(3, 5)).encoding,
}


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", GRIDS)
def test_grids(gpu, dtype, name):
    for width in (64, 21) if name in ("truncated", "left_over") else (64, 20):
        got, expected = both(gpu, cases.random((2, 15, width), dtype), GRIDS[name], {}, input_scale=1.5)
        cases.assert_same_bits(got, expected)
        mask = np.random.default_rng(0).random((2, 3, 5)) < 0.5
        got, expected = both(gpu, cases.random((2, 3, 5, width), dtype), GRIDS[name], {"mask": mask})
        cases.assert_same_bits(got, expected)
        positions = np.random.default_rng(1).uniform(-9, 9, (2, 2, 15))
        got, expected = both(gpu, cases.random((2, 15, width), dtype), GRIDS[name], {"positions": positions})
        cases.assert_same_bits(got, expected)


def test_fourier_features(gpu):
    points = np.random.default_rng(0).uniform(-1, 1, (3, 9))
    for fourier in (fastpe.Fourier.nerf(3, 4, include_input=True), fastpe.Fourier.random(points[:, :4] * 3)):
        for dtype in ("float32", "float64", "float16"):
            expected = fastpe.encode(points, fourier.width, fourier, dtype=dtype)
            got = fastpe.encode(gpu.array(points), fourier.width, fourier, dtype=dtype)
            cases.assert_same_bits(gpu.host(got), expected)


# ---- rotations ---------------------------------------------------------------------------------------------------------------

ROTARIES = {
    "half": Rotary(),
    "interleaved": Rotary(interleaved=True, base=5e5),
    "partial": Rotary(rotary_dim=16, rotary_offset=8),
    "partial_interleaved": Rotary(rotary_dim=6, rotary_offset=3, interleaved=True),
    "attention_factor": Rotary(scaling=fastpe.scaling.YaRN(8.0, 64)),
    "xpos": Rotary(xpos_scale_base=512, interleaved=True, xpos_centre=20),
    "xpos_steep": Rotary(xpos_scale_base=2),
}


def rotated(platform, q, k, encoding, given, **options):
    """Rotate on the host and on a GPU; return q and k of both as NumPy arrays."""
    here = q.copy(), None if k is None else k.copy()
    there = platform.array(q), None if k is None else platform.array(k)
    fastpe.apply_rotary(*here, encoding, **given, **options)
    fastpe.apply_rotary(*there, encoding, **platform.arguments(given), **options)
    return [(platform.host(a), b) for a, b in zip(there, here, strict=True) if b is not None]


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", ROTARIES)
def test_rotary_encodings(gpu, dtype, name):
    q, k = cases.random((2, 3, 9, 32), dtype), cases.random((2, 2, 9, 32), dtype, 1)
    for given in ({"offset": 1_000_003 if "xpos" not in name else 11}, {"offset": -4, "inverse": True}):
        for got, expected in rotated(gpu, q, k, ROTARIES[name], given):
            cases.assert_same_bits(got, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", cases.POSITION_MODES)
def test_rotary_position_modes(gpu, dtype, mode):
    given = cases.POSITION_MODES[mode](3, 21)
    for encoding in (Rotary(), Rotary(interleaved=True, rotary_dim=16)):
        q, k = cases.random((3, 4, 21, 24), dtype), cases.random((3, 1, 21, 24), dtype, 1)
        for got, expected in rotated(gpu, q, k, encoding, given):
            cases.assert_same_bits(got, expected)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("view", cases.VIEWS)
def test_rotary_views(gpu, dtype, view):
    for shape in ((2, 3, 10, 16), (5, 12)):
        x = cases.VIEWS[view](cases.random(shape, dtype))
        for got, expected in rotated(gpu, x, None, Rotary(interleaved=len(shape) == 2), {"offset": -5}):
            cases.assert_same_bits(got, expected)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_rotary_heads_inside_out_of_place_and_masked(gpu, dtype):
    """(B, T, H, D), packed, to other arrays; partial, so that channels are copied."""
    packed = cases.random((2, 7, 6, 32), dtype)
    mask = np.arange(7) >= np.array([0, 3])[:, None]
    for encoding in (Rotary(), Rotary(rotary_dim=16), Rotary(rotary_dim=10, rotary_offset=1, interleaved=True)):
        here = np.empty((2, 7, 4, 32), packed.dtype), np.empty((2, 7, 2, 32), packed.dtype)
        fastpe.apply_rotary(packed[:, :, :4], packed[:, :, 4:], encoding, seq_axis=-3, mask=mask, out=here)
        there, source = tuple(gpu.array(np.zeros_like(x)) for x in here), gpu.array(packed)
        q, k = source[:, :, :4], source[:, :, 4:]
        assert fastpe.apply_rotary(q, k, encoding, seq_axis=-3, mask=gpu.array(mask), out=there) is there
        for got, expected in zip(there, here, strict=True):
            cases.assert_same_bits(gpu.host(got), expected)
        cases.assert_same_bits(gpu.host(source), packed)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_rotary_axes_of_positions(gpu, dtype):
    positions = np.random.default_rng(0).integers(0, 5000, (3, 2, 7))
    for layout in ("contiguous", "interleaved"):
        encoding = Rotary(1e6, sections=(4, 6, 6), section_layout=layout)
        for given in ({"positions": positions}, {"positions": positions[:, 0].copy()}, {"offset": 5}):
            x = cases.random((2, 3, 7, 32), dtype)
            for got, expected in rotated(gpu, x, None, encoding, given):
                cases.assert_same_bits(got, expected)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("table_dtype", ["float32", "float64", "float16"])
def test_rotary_tables(gpu, dtype, table_dtype):
    """On the host or on the GPU; beyond it a GPU makes NaN rows."""
    cos, sin = cases.random((40, 8), table_dtype), cases.random((40, 8), table_dtype, 1)
    positions = np.random.default_rng(0).integers(0, 40, (2, 7))
    x = cases.random((2, 3, 7, 24), dtype)
    expected = fastpe.apply_rotary(x.copy(), None, Rotary.tabulated(cos, sin), positions=positions)
    for on_gpu in (False, True):
        tables = (gpu.array(cos), gpu.array(sin)) if on_gpu else (cos, sin)
        there = gpu.array(x)
        fastpe.apply_rotary(there, None, Rotary.tabulated(*tables), positions=gpu.array(positions))
        cases.assert_same_bits(gpu.host(there), expected)
    beyond = gpu.array(cases.random((1, 3, 16), dtype))
    fastpe.apply_rotary(beyond, None, Rotary.tabulated(cos, sin), positions=gpu.array(np.array([39, 40, -1])))
    assert np.isnan(gpu.host(beyond).astype(float)).all(axis=(0, 2)).tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_rerotate(gpu, dtype):
    x = cases.random((2, 3, 7, 32), dtype)
    for given in cases.REROTATIONS:
        here, there = x.copy(), gpu.array(x)
        assert fastpe.rerotate(here, **given) is here
        assert fastpe.rerotate(there, **gpu.arguments(given)) is there
        cases.assert_same_bits(gpu.host(there), here)


# ---- biases ------------------------------------------------------------------------------------------------------------------

TABLE = np.random.default_rng(7).standard_normal((32, 3)).astype(np.float32)
LAYERS = [np.random.default_rng(8).standard_normal(shape).astype(np.float32) for shape in ((8, 1), 8, (3, 8), 3)]
BIASES = {
    "alibi": lambda array: fastpe.ALiBi(3),
    "alibi_symmetric": lambda array: fastpe.ALiBi(3, symmetric=True),
    "t5": lambda array: fastpe.T5Bias(array(TABLE)),
    "t5_causal": lambda array: fastpe.T5Bias(array(TABLE), False, 20),
    "deberta": lambda array: fastpe.LogBuckets(array(TABLE), max_distance=20),
    "relative": lambda array: fastpe.RelativeTable(array(TABLE[:28]), class_token=True),
    "kerple": lambda array: fastpe.Kerple([1.5, 0.5, 0.25], [0.3, 0.2, 0.1], "power"),
    "fire": lambda array: fastpe.FIRE(*(array(layer) for layer in LAYERS), length=8),
}


def biased(platform, scores, name, given, **options):
    """Add a bias on the host and on a GPU; return both results as NumPy arrays."""
    here, there = scores.copy(), platform.array(scores)
    fastpe.add_bias(here, BIASES[name](np.array), **given, **options)
    bias = BIASES[name](platform.array)
    assert fastpe.add_bias(there, bias, **platform.arguments(given), validate=name in ("kerple", "fire"), **options) is there
    return platform.host(there), here


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", BIASES)
def test_biases(gpu, dtype, name):
    rng = np.random.default_rng(0)
    for shape in ((2, 3, 9, 16), (1, 3, 5, 13)):
        batch, _, rows, columns = shape
        for given in (
            {},
            {"q_offset": np.arange(batch) * 9},
            {"q_positions": rng.integers(-9, 40, (batch, rows)), "k_positions": rng.integers(0, 40, columns)},
        ):
            for causal in (False, True):
                got, expected = biased(gpu, cases.random(shape, dtype), name, given, causal=causal, input_scale=0.3)
                cases.assert_same_bits(got, expected)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("view", cases.VIEWS)
def test_bias_views(gpu, dtype, view):
    scores = cases.VIEWS[view](cases.random((2, 3, 10, 16), dtype))
    got, expected = biased(gpu, scores, "t5", {"q_offset": 3}, causal=True)
    cases.assert_same_bits(got, expected)
    got, expected = biased(gpu, scores, "alibi", {"k_positions": np.arange(16)[::-1].copy()})
    cases.assert_same_bits(got, expected)


def test_biases_out_of_place(gpu):
    scores = cases.random((2, 3, 5, 8), "float16")
    out, source = gpu.array(np.zeros_like(scores)), gpu.array(scores)
    assert fastpe.add_bias(source, fastpe.ALiBi(3), out=out, causal=True) is out
    cases.assert_same_bits(gpu.host(out), fastpe.add_bias(scores.copy(), fastpe.ALiBi(3), causal=True))
    cases.assert_same_bits(gpu.host(source), scores)


def test_biases_of_any_position(gpu):
    """Values on a GPU are not read back: what is no position makes NaN, and no value reads beyond the bias's values."""
    queries = np.array([0, 2**31, -(2**63), 5, 2**31 - 1])
    keys = np.array([0, 2**62, 7, -(2**31), 2**63 - 1, 3, 1, 2])
    lost = (np.abs(queries.astype(float)) > 2**31 - 1)[:, None] | (np.abs(keys.astype(float)) > 2**31)
    for name in ("alibi", "alibi_symmetric", "t5", "t5_causal", "deberta"):
        for causal in (False, True):
            there = gpu.array(np.zeros((1, 3, 5, 8), np.float32))
            given = {"q_positions": gpu.array(queries), "k_positions": gpu.array(keys)}
            fastpe.add_bias(there, BIASES[name](gpu.array), causal=causal, **given)
            found = gpu.host(there)
            hidden = np.isneginf(found)
            assert (np.isnan(found) | (hidden & causal) == np.broadcast_to(lost, found.shape) | hidden).all()
            assert np.isfinite(found[..., 0, [0, 5]]).all() or causal
    for name in ("kerple", "fire"):
        with pytest.raises(ValueError, match="validate must be True where positions lie on a GPU"):
            fastpe.add_bias(
                gpu.array(np.zeros((1, 3, 5, 8), np.float32)), BIASES[name](gpu.array), k_positions=gpu.array(np.arange(8))
            )
