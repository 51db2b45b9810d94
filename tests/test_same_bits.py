"""The CUDA result equals the CPU result bit for bit, whatever the element type, layout, view and way of giving the positions."""

from __future__ import annotations

import cases
import numpy as np
import pytest

import fastpe


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
