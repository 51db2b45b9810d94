"""Fourier features and timestep embeddings: published tables, the formula, layouts, errors."""

from __future__ import annotations

from pathlib import Path

import cases
import numpy as np
import pytest
import reference

import fastpe
from fastpe import Fourier, Sinusoidal, positions

DATA = dict(np.load(Path(__file__).parents[1] / "data" / "fourier.npz"))
TABLES = dict(np.load(Path(__file__).parents[1] / "data" / "tables.npz"))


def test_sam():
    coords, matrix = DATA["sam_coords"], DATA["sam_matrix"]
    fourier = Fourier.random(matrix)
    got = fastpe.encode(np.moveaxis(coords, -1, 0), 128, fourier)
    angles = 2 * np.pi * (2 * coords.astype(float) - 1) @ matrix.astype(float)
    assert got.shape == DATA["sam_out"].shape
    assert np.abs(got - DATA["sam_out"]).max() <= 1e-6 + 1.2e-7 * np.abs(angles).max()
    exact = reference.fourier(coords, matrix)
    assert np.abs(got - exact).max() <= 6e-8  # one rounding
    assert np.abs(fastpe.encode(np.moveaxis(coords, -1, 0), 128, fourier, dtype="float64") - exact).max() <= 1e-11


def test_bands_of_timm():
    assert np.abs(np.array(Fourier.timm(16).bands) / DATA["timm_pixel_linear16"] - 1).max() <= 4e-7
    assert np.abs(np.array(Fourier.timm(16, linear_bands=False).bands) / DATA["timm_pixel_log16"] - 1).max() <= 4e-7
    language = Fourier.timm(len(DATA["timm_freq_bands16"]), temperature=10000.0).bands
    if len(DATA["timm_freq_bands16"]) == 16:
        assert np.abs(np.array(language) / DATA["timm_freq_bands16"] - 1).max() <= 4e-7


def test_timm_puts_axes_last():
    """For the grid, then the sine and then the cosine of each band: all axes, of 4 x 3 patches."""
    where = positions.pixels((4, 3))
    got = fastpe.encode(where, 2 + 2 * 2 * 5, Fourier.timm(5, max_res=32.0))
    bands = np.pi * np.linspace(1, 16, 5)
    angles = where.T[:, :, None] * bands  # (T, axes, bands)
    expected = np.concatenate([where.T[:, :, None], np.sin(angles), np.cos(angles)], axis=-1).swapaxes(1, 2).reshape(12, -1)
    cases.assert_close(got, expected, "float32")
    without = fastpe.encode(where, 20, Fourier.timm(5, max_res=32.0, include_grid=False))
    cases.assert_same_bits(without, np.ascontiguousarray(got[:, 2:]))


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_nerf(platform, dtype):
    points = np.random.default_rng(0).uniform(-1, 1, (3, 5, 7))
    fourier = Fourier.nerf(3, 10, include_input=True)
    got = fastpe.encode(platform.array(points), fourier.width, fourier, dtype=dtype)
    last = np.moveaxis(points, 0, -1)
    parts = [last]
    for octave in range(10):
        turns = np.remainder(last * 2.0**octave / 2, 1)  # exact: the sine of pi times it is not NumPy's at large angles
        parts += [np.sin(2 * np.pi * turns), np.cos(2 * np.pi * turns)]
    # float64: coordinates are rounded to 2^-48, times the largest band
    cases.assert_close(platform.host(got), np.concatenate(parts, axis=-1), dtype, position_error=512 * np.pi * 2.0**-49)
    assert Fourier.nerf(3, 4, with_pi=False).bands == (1.0, 2.0, 4.0, 8.0)
    assert Fourier.nerf(3, 4).width == 24


ORDERS = {
    ("axis", "band", "function"): (0, 1, 2),
    ("axis", "function", "band"): (0, 2, 1),
    ("band", "function", "axis"): (1, 2, 0),
    ("function", "axis", "band"): (2, 0, 1),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("cos_first", [False, True])
def test_orders(order, cos_first):
    points = np.random.default_rng(1).uniform(-3, 3, (2, 6))
    bands = (0.5, 3.0, 7.0)
    fourier = Fourier(2, bands, order=order, cos_first=cos_first)
    angles = points.T[:, :, None] * np.array(bands)
    both = [np.cos(angles), np.sin(angles)] if cos_first else [np.sin(angles), np.cos(angles)]
    stacked = np.stack(both, axis=-1)  # (points, axis, band, function)
    expected = stacked.transpose(0, *(1 + place for place in ORDERS[order])).reshape(6, -1)
    cases.assert_close(fastpe.encode(points, 12, fourier), expected, "float32")


def test_a_matrix_of_any_sign_and_scale():
    rng = np.random.default_rng(2)
    matrix, points = rng.normal(0, 30, (3, 9)), rng.uniform(-100, 100, (3, 40))
    matrix[0, :3] = 0.0
    fourier = Fourier(3, matrix=matrix, order=("axis", "function", "band"), position_scale=0.5, position_shift=-1.0)
    got = fastpe.encode(points, 18, fourier, dtype="float64")
    expected = reference.fourier(points.T, matrix / (2 * np.pi), scale=0.5, shift=-1.0)
    assert np.abs(got - expected).max() <= 3 * 90 * 2.0**-49 + 1e-12
    frequencies, _ = fourier.frequencies(18)
    assert (frequencies == matrix).all()


def test_large_arrays_go_piece_by_piece(monkeypatch):
    from fastpe._core import fourier_features

    points = np.random.default_rng(3).uniform(0, 1, (2, 101))
    fourier = Fourier.random(np.random.default_rng(4).normal(size=(2, 8)))
    whole = fastpe.encode(points, 16, fourier)
    monkeypatch.setattr(fourier_features, "PIECE_BYTES", 16 * 8 * 7)
    cases.assert_same_bits(fastpe.encode(points, 16, fourier), whole)
    out = np.zeros((101, 32), np.float32)[:, ::2]
    assert fastpe.encode(points, 16, fourier, out=out) is out
    cases.assert_same_bits(np.ascontiguousarray(out), whole)
    assert fastpe.encode(points[:, 5], 16, fourier).shape == (16,)
    cases.assert_same_bits(fastpe.encode(points[:, 5], 16, fourier), whole[5])
    assert fastpe.encode(points[:, :0], 16, fourier).shape == (0, 16)


def test_a_fourier_is_a_value():
    matrix = np.arange(6.0).reshape(2, 3)
    assert Fourier(2, matrix=matrix) == Fourier(2, matrix=((0, 1, 2), (3, 4, 5)))
    assert hash(Fourier(2, [1, 2])) == hash(Fourier(2, (1.0, 2.0)))


BAD = {
    "neither": (lambda: Fourier(2), ValueError, "bands or matrix must be given, got neither"),
    "both": (lambda: Fourier(1, (1.0,), ((1.0,),)), ValueError, "got both"),
    "rows": (lambda: Fourier(3, matrix=((1.0,), (2.0,))), ValueError, "3 rows"),
    "ragged": (lambda: Fourier(2, matrix=((1.0,), (2.0, 3.0))), ValueError, "one length"),
    "bands": (lambda: Fourier(2, "x"), TypeError, "sequence of numbers"),
    "nan": (lambda: Fourier(2, (np.nan,)), ValueError, "finite"),
    "order": (lambda: Fourier(2, (1.0,), order=("axis", "band")), ValueError, "each once"),
    "dim": (lambda: fastpe.encode(np.zeros((3, 2)), 12, Fourier.nerf(3, 4)), ValueError, "dim must be 24"),
    "axes": (lambda: fastpe.encode(np.zeros((2, 3)), 24, Fourier.nerf(3, 4)), ValueError, r"numpy.moveaxis\(points, -1, 0\)"),
    "far": (lambda: fastpe.encode([[40000.0]], 8, Fourier.nerf(1, 4)), ValueError, r"\(-32768, 32768\), got 40000.0 at index"),
    "inf": (lambda: fastpe.encode([[np.inf]], 8, Fourier.nerf(1, 4)), ValueError, "finite"),
    "random": (lambda: Fourier.random([1.0, 2.0]), ValueError, r"shape \(axes, F\)"),
    "adding": (lambda: fastpe.add_encoding(np.zeros((2, 8)), Fourier.nerf(1, 4)), TypeError, "encoding must be an encoding"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    make, error, text = BAD[name]
    with pytest.raises(error, match=text):
        make()


# ---- timesteps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TABLES if name.startswith("diffusers_c") and not name.endswith("_rows")])
def test_diffusers_timesteps(name):
    given = dict(_setting(part) for part in _settings(name))
    encoding = Sinusoidal.timesteps(
        flip_sin_to_cos=given["flip"] == 1, downscale_freq_shift=given["shift"], scale=given["scale"], max_period=given["maxp"]
    )
    steps, table = TABLES["diffusers_t"], TABLES[name]
    got = fastpe.encode(steps, table.shape[-1], encoding)
    assert np.abs(got - table).max() <= 1e-6 + 1.2e-7 * np.abs(steps).max() * given["scale"]


def _settings(name):
    return [part for part in name.split("_") if part.startswith(("dim", "flip", "shift", "scale", "maxp"))]


def _setting(part):
    letters = part.rstrip("0123456789.")
    return letters, float(part[len(letters) :])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 0.5, 1])
@pytest.mark.parametrize("dim", [1, 2, 5, 8, 33])
def test_timesteps_of_any_width(dim, flip, shift):
    """diffusers' formula in float64; an odd width ends with zero, whatever the shift."""
    steps, half = np.array([0, 0.25, 17.5, 999.0]), dim // 2
    exponents = np.arange(half) / max(half - shift, 1) if half - shift < 1 else np.arange(half) / (half - shift)
    angles = 2.5 * steps[:, None] * 300.0**-exponents
    both = [np.cos(angles), np.sin(angles)] if flip else [np.sin(angles), np.cos(angles)]
    expected = np.concatenate([*both, np.zeros((4, dim % 2))], axis=-1)
    encoding = Sinusoidal.timesteps(flip_sin_to_cos=flip, downscale_freq_shift=shift, scale=2.5, max_period=300.0)
    cases.assert_close(fastpe.encode(steps, dim, encoding), expected, "float32", position_error=2.5 * 2.0**-33)


def test_zero_pad_is_of_no_account_for_even_widths():
    cases.assert_same_bits(fastpe.encode(range(9), 8, Sinusoidal(zero_pad=True)), fastpe.encode(range(9), 8))
    odd = fastpe.encode(range(9), 7, Sinusoidal(zero_pad=True))
    assert not odd[:, 6].any()
    cases.assert_same_bits(np.ascontiguousarray(odd[:, :6]), fastpe.encode(range(9), 6))
    with pytest.raises(TypeError, match="zero_pad must be True or False"):
        Sinusoidal(zero_pad=1)
