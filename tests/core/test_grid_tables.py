"""Grid encodings beside published tables."""

from __future__ import annotations

import sys
from pathlib import Path

import cases
import numpy as np
import pytest
import reference

import fastpe
from fastpe import Grid

DATA = dict(np.load(Path(__file__).parents[1] / "data" / "grids.npz"))


def named(name, shape):
    """The grid of a published model."""
    return fastpe.recipe(name, shape=shape).encoding


def assert_table(grid, table, largest, got=None):
    """Tables of other projects carry the error of their float32 angles."""
    got = fastpe.encode(None, table.shape[-1], grid) if got is None else got
    assert got.dtype == np.float32
    assert np.abs(got.reshape(table.shape) - table).max() <= 1e-6 + 1.2e-7 * largest


def test_mae():
    table = fastpe.encode(None, 768, Grid.mae((14, 14))).reshape(-1, 768)
    rows = DATA["mae_14x14_rows"]
    assert rows[0] == 0
    assert not DATA["mae_14x14"][0].any()  # the class token has none: a view leaves it out
    assert_table(None, DATA["mae_14x14"][1:], 13, table[rows[1:] - 1])
    assert_table(Grid.mae((5, 5)), DATA["mae_5x5"], 4)
    assert named("dit", (5, 5)) == named("mae", (5, 5)) == Grid.mae((5, 5))


def test_diffusers():
    assert_table(Grid.mae((6, 4), base_size=16), DATA["diffusers_sd3"], 16)
    assert_table(Grid.mae((8, 8), base_size=4, interpolation_scale=2.0), DATA["diffusers_pixart"], 2)


@pytest.mark.parametrize("name", [name for name in DATA if name.startswith("package_")])
def test_positional_encodings(name):
    table = DATA[name]
    assert_table(named("positional-encodings", table.shape[:-1]), table, max(table.shape[:-1]))


@pytest.mark.parametrize("name", ["t2t_2", "t2t_3"])
def test_tensor2tensor(name):
    table = DATA[name]
    assert_table(named("t2t-nd", table.shape[:-1]), table, 6)


def test_tensor2tensor_leaves_what_is_left_over():
    x = cases.random((2, 3, 4, 10), "float32")
    before = x.copy()
    fastpe.add_encoding(x, named("t2t-nd", (3, 4)))
    cases.assert_same_bits(x[..., 8:], before[..., 8:])
    assert (x[..., :8] != before[..., :8]).mean() > 0.8


def detr(name):
    """Channels last, and every second column of pixels, as the data has them."""
    return np.moveaxis(DATA[name], 1, -1)


def test_detr():
    mask = DATA["detr_mask"]
    for name, npf, normalize, temperature in (("normalized", 128, True, 10000.0), ("temperature20", 64, False, 20.0)):
        positions = fastpe.positions.detr(mask, normalize=normalize)
        table = detr(f"detr_{name}")
        got = fastpe.encode(positions, 2 * npf, Grid.detr(temperature=temperature, normalize=normalize))
        assert_table(None, table, float(positions.max()), got[: len(table), :, ::2])
        x = np.zeros((*mask.shape, 2 * npf), np.float32)
        grid = Grid.detr(temperature=temperature, normalize=normalize)
        assert fastpe.add_encoding(x, grid, positions=positions) is x
        cases.assert_same_bits(x, got)
    sixteen = fastpe.encode(fastpe.positions.detr(mask[:1]), 256, Grid.detr(), dtype="bfloat16")[:, :, ::2]
    # Theirs adds up the mask in bfloat16: a coordinate is off by 2^-9 of it.
    assert np.abs(sixteen.astype(float) - detr("detr_bfloat16")).max() <= 0.06


def test_detr_without_padding_is_a_grid_of_its_own():
    full = np.ones((1, 13, 17), bool)
    by_mask = fastpe.encode(fastpe.positions.detr(full), 64, Grid.detr(), dtype="float64")[0]
    by_shape = fastpe.encode(None, 64, Grid.detr((13, 17)), dtype="float64")
    assert np.abs(by_mask - by_shape).max() <= 2.0**-32  # coordinates rounded to 2^-32 there
    counted = fastpe.encode(None, 64, Grid.detr((13, 17), normalize=False, temperature=20.0))
    positions = fastpe.positions.detr(full, normalize=False)
    cases.assert_same_bits(fastpe.encode(positions, 64, Grid.detr(normalize=False, temperature=20.0))[0], counted)


def test_timm_orders():
    """Sines of rows, sines of columns, cosines of rows, cosines of columns; or the functions of each axis together."""
    y, x = np.mgrid[:3, :4]
    rows, columns = (reference.sinusoidal(one, 8, layout="concatenated") for one in (y, x))
    got = fastpe.encode(None, 16, Grid.timm((3, 4)))
    expected = np.concatenate([rows[..., :4], columns[..., :4], rows[..., 4:], columns[..., 4:]], axis=-1)
    cases.assert_close(got, expected, "float32")
    got = fastpe.encode(None, 16, Grid.timm((3, 4), interleave_sin_cos=True))
    cases.assert_close(got, np.concatenate([rows, columns], axis=-1), "float32")
    # Reversed: the grid is that of the shape's other order.
    for interleave in (False, True):
        got = fastpe.encode(None, 16, Grid.timm((3, 4), reverse_coord=True, interleave_sin_cos=interleave))
        turned = fastpe.encode(None, 16, Grid.timm((4, 3), interleave_sin_cos=interleave))
        cases.assert_same_bits(got.reshape(12, 16), turned.reshape(12, 16))


def test_rt_detr_and_omdet():
    y, x = np.mgrid[:3, :4]
    rows, columns = (reference.sinusoidal(one, 8, layout="concatenated") for one in (y, x))
    rt_detr, omdet = (fastpe.encode(None, 16, named(name, (3, 4))) for name in ("rt-detr", "omdet"))
    cases.assert_close(rt_detr, np.concatenate([rows, columns], axis=-1), "float32")
    # OmDet's tokens go down the columns.
    tokens = np.concatenate([columns, rows], axis=-1).swapaxes(0, 1).reshape(12, 16)
    cases.assert_close(omdet.reshape(12, 16), tokens, "float32")
    square = [fastpe.encode(None, 16, named(name, (5, 5))) for name in ("rt-detr", "omdet")]
    cases.assert_same_bits(*square)


def test_rt_detr_and_omdet_as_hugging_face_has_them(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setitem(
        sys.modules, "kernels", None
    )  # transformers looks for a package that is called as a folder of the checkout is
    rt_detr = pytest.importorskip("transformers.models.rt_detr.modeling_rt_detr")
    omdet = pytest.importorskip("transformers.models.omdet_turbo.modeling_omdet_turbo")
    if not hasattr(rt_detr, "RTDetrSinePositionEmbedding"):
        pytest.skip("this transformers has no RTDetrSinePositionEmbedding")
    table = rt_detr.RTDetrSinePositionEmbedding(64)(width=5, height=3, device=torch.device("cpu"), dtype=torch.float32)
    assert_table(named("rt-detr", (3, 5)), table.numpy()[0], 4)
    table = omdet.OmDetTurboHybridEncoder.build_2d_sincos_position_embedding(5, 3, 64)
    assert_table(named("omdet", (3, 5)), table.numpy()[0], 4)


def test_cogvideox():
    t, y, x = np.mgrid[:2, :3, :4]
    widths = ((t / 2, 16), (x / 1.5, 24), (y / 1.5, 24))
    expected = np.concatenate([reference.sinusoidal(one, width, layout="concatenated") for one, width in widths], axis=-1)
    grid = Grid.cogvideox((2, 3, 4), spatial_interpolation_scale=1.5, temporal_interpolation_scale=2.0)
    cases.assert_close(fastpe.encode(None, 64, grid), expected, "float32")
