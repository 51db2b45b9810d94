"""Grids: published tables, the formula, shapes, positions from masks, errors."""

from __future__ import annotations

import math

import cases
import numpy as np
import pytest
import reference

import fastpe
from fastpe import Grid, Sinusoidal

BLOCKS = Sinusoidal(layout="concatenated")


def named(name, shape):
    """The grid of a published model."""
    return fastpe.recipe(name, shape=shape).encoding


# Grids as fields, and the same for the reference.
GRIDS = {
    "rows_first": (Grid((5, 3)), {"axes": (0, 1), "sinusoid_layout": "concatenated"}),
    "columns_first": (Grid((5, 3), axes=(1, 0)), {"axes": (1, 0), "sinusoid_layout": "concatenated"}),
    "interleaved": (Grid((5, 3), sinusoid=Sinusoidal()), {"axes": (0, 1)}),
    "functions": (Grid((5, 3), layout="functions"), {"axes": (0, 1), "layout": "functions", "sinusoid_layout": "concatenated"}),
    "functions_cos_first": (
        Grid((5, 3), sinusoid=Sinusoidal(layout="concatenated", cos_first=True, amplitude=0.5), layout="functions"),
        {"axes": (0, 1), "layout": "functions", "sinusoid_layout": "concatenated", "cos_first": True, "amplitude": 0.5},
    ),
    "each_its_own": (
        Grid((5, 3), sinusoid=(Sinusoidal(100.0), Sinusoidal(20.0, cos_first=True))),
        {"axes": (0, 1), "base": (100.0, 20.0), "cos_first": (False, True)},
    ),
    "three": (Grid((5, 3, 1), remainder="zero"), {"axes": (0, 1, 2), "remainder": "zero", "sinusoid_layout": "concatenated"}),
    "shares": (Grid.cogvideox((5, 1, 3)), {"axes": (0, 2, 1), "shares": (2, 3, 3), "sinusoid_layout": "concatenated"}),
    "truncated": (
        Grid((5, 3), sinusoid=Sinusoidal(), remainder="truncate"),
        {"axes": (0, 1), "remainder": "truncate"},
    ),
    "shifted": (Grid((5, 3), start=0.5), {"axes": (0, 1), "sinusoid_layout": "concatenated"}),
    "stretched": (Grid((5, 3), extent=(7.0, 2 * math.pi)), {"axes": (0, 1), "sinusoid_layout": "concatenated"}),
    "detr": (Grid.detr((5, 3)), {"axes": (0, 1)}),
}


# ---- the formula -------------------------------------------------------------------------------------------------------------


def reference_of(name, dim, coordinates=None):
    grid, given = GRIDS[name]
    where = np.asarray(grid.coordinates() if coordinates is None else coordinates)
    return reference.grid(where, dim, **given)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", GRIDS)
def test_formula(platform, dtype, name):
    dim = 38 if name in ("truncated", "three") else 48
    grid, expected = GRIDS[name][0], reference_of(name, dim)
    x = cases.random((2, *grid.shape, dim), dtype)
    array = platform.array(x)
    assert fastpe.add_encoding(array, grid, input_scale=0.5) is array
    amplitude = GRIDS[name][1].get("amplitude", 1.0)
    wide = np.asarray(x, np.float64) * 0.5 + expected
    cases.assert_close(platform.host(array), wide, dtype, amplitude=amplitude, position_error=0.0)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", ["columns_first", "functions", "each_its_own", "truncated"])
def test_an_axis_has_the_bits_that_it_has_alone(dtype, name):
    grid = GRIDS[name][0]
    dim = 48
    got = fastpe.encode(None, dim, grid, dtype=dtype)
    (first, second), widths = grid.axes, grid.widths(dim)
    for axis, width, columns in ((first, widths[0], slice(0, 24)), (second, widths[1], slice(24, 48))):
        alone = fastpe.encode(grid.coordinates()[axis], width, grid.sinusoids[axis], dtype=dtype)
        if name == "functions":
            columns = np.r_[slice(12 * axis, 12 * axis + 12), slice(24 + 12 * axis, 36 + 12 * axis)]
        cases.assert_same_bits(np.ascontiguousarray(got[..., columns]), alone)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("view", cases.VIEWS)
def test_views(platform, dtype, view):
    for name in ("columns_first", "functions", "truncated"):
        grid, expected = GRIDS[name][0], reference_of(name, 16)
        x = cases.VIEWS[view](cases.random((2, 15, 16), dtype))
        array = platform.array(x)
        fastpe.add_encoding(array, grid)
        cases.assert_close(platform.host(array), np.asarray(x, np.float64) + expected.reshape(15, 16), dtype)


def _cropped(x):
    whole = np.full((x.shape[0], x.shape[1] + 2, x.shape[2] + 3, x.shape[3]), 7, x.dtype)
    whole[:, 1:-1, 2:-1] = x
    return whole[:, 1:-1, 2:-1]


LAYOUTS = {
    "contiguous": np.array,
    "cropped": _cropped,
    "channels_first": lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 1)), 1, -1),
    "columns_outside": lambda x: np.swapaxes(np.ascontiguousarray(np.swapaxes(x, 1, 2)), 1, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("out_of_place", [False, True])
def test_axes_of_an_image(platform, layout, out_of_place):
    """(B, H, W, D) of any strides, masked: the axes of the grid are one, or are gone through line by line."""
    grid, expected = GRIDS["columns_first"][0], reference_of("columns_first", 16)
    x = LAYOUTS[layout](cases.random((2, 5, 3, 16), "float32"))
    mask = np.random.default_rng(0).random((2, 5, 3)) < 0.6
    wanted = np.where(mask[..., None], x + expected, x)
    for given in ({"mask": mask}, {"mask": mask[0]}, {"mask": mask.reshape(2, 15)}, {}):
        array, out = platform.array(x), platform.array(np.zeros(x.shape, x.dtype)) if out_of_place else None
        result = fastpe.add_encoding(array, grid, out=out, **platform.arguments(given))
        assert result is (array if out is None else out)
        full = x + expected
        found = {"mask": wanted}.get(next(iter(given), None), full)
        if given and given["mask"].ndim == 2 and given["mask"].shape == (5, 3):
            found = np.where(mask[0][..., None], full, x)
        cases.assert_close(platform.host(result), found, "float32")


@pytest.mark.parametrize("shape", [(2, 15), (15,), (2, 5, 3), (5, 3)])
def test_given_positions_and_a_mask(shape):
    """The mask protects rows, which then need no valid position; it and the positions have their axes together or apart."""
    grid, x = Grid((5, 3)), cases.random((2, 5, 3, 16), "float32")
    positions = np.random.default_rng(2).uniform(0, 9, (2, *shape))
    mask = np.random.default_rng(0).random((2, 15)) < 0.6
    full = fastpe.add_encoding(x.copy(), grid, positions=positions)
    for kept in (mask, mask[0], mask.reshape(2, 5, 3), mask[0].reshape(5, 3)):
        rows = np.broadcast_to(kept.reshape(-1, 5, 3), (2, 5, 3))
        own = positions.copy()
        if kept.size == math.prod(shape):  # each sequence has its own, or all have the same
            own[:, ~kept.reshape(shape)] = np.nan
        got = fastpe.add_encoding(x.copy(), grid, positions=own, mask=kept)
        cases.assert_same_bits(got, np.where(rows[..., None], full, x))
    with pytest.raises(ValueError, match="positions must be finite"):
        fastpe.add_encoding(x, grid, positions=np.full_like(positions, np.nan), mask=mask)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shape", [(7, 11), (64, 65), (2, 9, 8)])
def test_masked_rows_and_threads(batch, shape):
    """Rows of many chunks, of which the first of a chunk may be masked; one thread or more, the same bits."""
    count = math.prod(shape)
    grid = Grid(shape, remainder="zero")
    mask = np.random.default_rng(1).random((batch, count)) < 0.5
    mask[:, :13] = False
    x = cases.random((batch, count, 256), "float32")
    results = []
    for threads in (1, 2):
        before = fastpe.get_num_threads()
        fastpe.set_num_threads(threads)
        try:
            results.append(fastpe.add_encoding(x.copy(), grid, mask=mask))
        finally:
            fastpe.set_num_threads(before)
    pe = fastpe.encode(None, 256, grid).reshape(count, 256)
    cases.assert_same_bits(results[0], np.where(mask[..., None], x + pe, x))
    cases.assert_same_bits(results[1], results[0])


def test_calls_like_an_earlier_one():
    """They skip checks, not those that say no."""
    grid, x = Grid((2, 3)), np.zeros((2, 6, 8), np.float32)
    for _ in range(3):
        other = np.zeros((2, 6, 8), np.float32)
        fastpe.add_encoding(other, grid)
        cases.assert_same_bits(other[1], fastpe.encode(None, 8, grid).reshape(6, 8))
        with pytest.raises(ValueError, match="offset cannot"):
            fastpe.add_encoding(x, grid, offset=5)
        with pytest.raises(ValueError, match="read-only"):
            fastpe.add_encoding(np.broadcast_to(other, other.shape), grid)
    assert not x.any()


def test_tensors():
    """The adjoint is the identity; in a compiled graph a grid is a string."""
    torch = pytest.importorskip("torch")
    import fastpe.torch
    from fastpe._core import text

    for name, (grid, _) in GRIDS.items():
        assert text.read(grid.text) == grid, name
    assert text.read(fastpe.Fourier.nerf(3, 2).text) == fastpe.Fourier.nerf(3, 2)
    grid, mask = Grid.mae((3, 4)), torch.tensor([True, False] * 6)
    expected = fastpe.encode(None, 32, grid)
    x = torch.zeros(2, 12, 32, requires_grad=True)
    result = fastpe.torch.functional.add_encoding(x, grid, input_scale=2.0, mask=mask)
    result.sum().backward()
    assert x.grad[0, :2, 0].tolist() == [2.0, 1.0]
    kept = expected.reshape(12, 32)[::2]
    cases.assert_same_bits(result.detach().numpy()[0, ::2], kept)
    image = torch.zeros(2, 3, 4, 32)
    assert fastpe.add_encoding(image, grid) is image
    cases.assert_same_bits(image[1].numpy(), expected)
    cases.assert_same_bits(fastpe.encode(None, 32, grid, like=image).numpy(), expected)
    positions = torch.tensor(grid.coordinates())
    cases.assert_same_bits(fastpe.encode(positions, 32, grid).numpy(), expected)
    with pytest.raises(TypeError, match="Only a Grid has rows of its own"):
        fastpe.encode(None, 32, like=image)


def test_prefix_tokens_and_other_axes():
    grid = Grid((2, 3))
    pe = fastpe.encode(None, 8, grid).reshape(6, 8)
    x = np.zeros((2, 7, 8), np.float32)
    fastpe.add_encoding(x[:, 1:], grid)
    assert not x[:, 0].any()
    cases.assert_same_bits(x[1, 1:], pe)
    turned = np.zeros((6, 2, 4, 8), np.float32)  # (T, B, heads, D)
    fastpe.add_encoding(turned, grid, seq_axis=0)
    cases.assert_same_bits(turned, np.broadcast_to(pe[:, None, None], turned.shape).copy())
    single = np.zeros((6, 8), np.float32)
    cases.assert_same_bits(fastpe.add_encoding(single, grid), pe)
    empty = np.zeros((0, 6, 8), np.float32)
    assert fastpe.add_encoding(empty, grid) is empty


def test_positions_of_rows(platform):
    """(axes, T), (axes, B, T) and with the grid's axes in place of T; real ones are coordinates as they are."""
    positions = np.random.default_rng(2).uniform(-50, 50, (2, 2, 5, 3))
    grid = Grid((5, 3), extent=99.0)  # of no account
    expected = reference.grid(positions, 16, axes=(0, 1), sinusoid_layout="concatenated")
    for x_shape in ((2, 15, 16), (2, 5, 3, 16)):
        for given in (positions, positions.reshape(2, 2, 15)):
            for chosen in (grid, Grid(None, axes=(0, 1))):
                array = platform.array(np.zeros(x_shape, np.float32))
                fastpe.add_encoding(array, chosen, positions=platform.array(given))
                got = platform.host(array).reshape(2, 5, 3, 16)
                cases.assert_close(got, expected, "float32", position_error=2.0**-32)
        for given in (positions[:, 1], positions[:, 1].reshape(2, 15)):
            array = platform.array(np.zeros(x_shape, np.float32))
            fastpe.add_encoding(array, grid, positions=platform.array(np.ascontiguousarray(given)))
            got = platform.host(array).reshape(2, 5, 3, 16)
            cases.assert_close(got, np.stack([expected[1]] * 2), "float32", position_error=2.0**-32)


def test_encode(platform):
    grid = Grid.mae((4, 6))
    whole = fastpe.encode(None, 32, grid)
    assert whole.shape == (4, 6, 32)
    out = np.zeros((4, 12, 64), np.float32)[:, ::2, ::2]
    assert fastpe.encode(None, 32, grid, out=out) is out
    cases.assert_same_bits(np.ascontiguousarray(out), whole)
    positions = platform.array(grid.coordinates())
    cases.assert_same_bits(platform.host(fastpe.encode(positions, 32, grid)), whole)
    cases.assert_same_bits(platform.host(fastpe.encode(None, 32, grid, like=positions)), whole)
    one = fastpe.encode([3, 5], 32, grid)
    assert one.shape == (32,)
    cases.assert_same_bits(one, whole[3, 5])


# ---- the value ---------------------------------------------------------------------------------------------------------------


def test_a_grid_is_a_value():
    assert Grid([4, 6], axes=[1, 0]) == Grid.mae((4, 6))
    assert hash(Grid((4, 6), sinusoid=(BLOCKS, BLOCKS))) == hash(Grid((4, 6)))
    assert Grid((4, 6)) != Grid((6, 4))
    assert Grid((np.int64(4), 6)).shape == (4, 6)
    assert named("detr", (4, 6)) == Grid.detr((4, 6))
    assert named("cogvideox", (3, 4, 6)) == Grid.cogvideox((3, 4, 6))
    assert named("timm-2d", (4, 6)) == Grid.timm((4, 6))


def test_coordinates_and_frequencies():
    grid = Grid((2, 3), column_major=True)
    assert grid.coordinates()[0].ravel().tolist() == [0, 1, 0, 1, 0, 1]
    assert grid.coordinates()[1].ravel().tolist() == [0, 0, 1, 1, 2, 2]
    assert Grid((2, 3)).coordinates().dtype == np.int64
    stretched = Grid((2, 4), extent=(1.0, 8.0), start=0.5).coordinates()
    assert stretched[:, 1, 3].tolist() == [0.75, 7.0]
    frequencies, amplitude = Grid((2, 3), sinusoid=(Sinusoidal(100.0), Sinusoidal(20.0)), axes=(1, 0)).frequencies(8)
    assert frequencies == pytest.approx([1, 20**-0.5, 1, 0.1])
    assert amplitude == 1.0


# ---- errors ------------------------------------------------------------------------------------------------------------------

BAD_CALLS = {
    "rows": ((2, 14, 16), Grid((5, 3)), {}, ValueError, r"15 rows along seq_axis or the axes \(5, 3\) before the last"),
    "axes": ((2, 3, 5, 16), Grid((5, 3)), {}, ValueError, "as the grid is 5 x 3"),
    "width": ((2, 15, 18), Grid((5, 3)), {}, ValueError, "a width that is a multiple of 4, got 18"),
    "width_shares": ((2, 15, 24), Grid.cogvideox((1, 5, 3)), {}, ValueError, "a multiple of 16, got 24"),
    "offset": ((2, 15, 16), Grid((5, 3)), {"offset": 1}, ValueError, "offset cannot"),
    "cu_seqlens": ((2, 15, 16), Grid((5, 3)), {"cu_seqlens": [0, 15]}, ValueError, "cu_seqlens cannot"),
    "no_positions": ((2, 15, 16), Grid.detr(), {}, ValueError, "positions must be given"),
    "positions_axes": ((2, 15, 16), Grid((5, 3)), {"positions": np.zeros((3, 15))}, ValueError, r"shape \(2, 15\) or"),
    "positions_flat": ((2, 15, 16), Grid((5, 3)), {"positions": np.zeros(15)}, ValueError, "an entry for each axis"),
    "positions_nan": ((2, 15, 16), Grid((5, 3)), {"positions": np.full((2, 15), np.nan)}, ValueError, "finite"),
    "positions_detr": (
        (2, 15, 16),
        Grid.detr(),
        {"positions": np.zeros((2, 2, 4, 4))},
        ValueError,
        "positions must have shape",
    ),
    "mask": ((2, 15, 16), Grid((5, 3)), {"mask": np.ones((3, 5), bool)}, ValueError, "mask must have shape"),
    "mask_integers": ((2, 15, 16), Grid((5, 3)), {"mask": np.ones(15, int)}, TypeError, "Did you mean"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_write_nothing(name):
    shape, grid, given, error, text = BAD_CALLS[name]
    x = np.zeros(shape, np.float32)
    with pytest.raises(error, match=text):
        fastpe.add_encoding(x, grid, **given)
    assert not x.any()


BAD_GRIDS = {
    "shape": (lambda: Grid(5), TypeError, "sequence of integers"),
    "size": (lambda: Grid((5, 0)), ValueError, "at least 1"),
    "no_axes": (lambda: Grid(None), ValueError, "axes must be given"),
    "order": (lambda: Grid((5, 3), axes=(0, 2)), ValueError, "each of 0 ... 1 once"),
    "sinusoid": (lambda: Grid((5, 3), sinusoid="x"), TypeError, "must be a Sinusoidal"),
    "sinusoids": (lambda: Grid((5, 3), sinusoid=(BLOCKS,) * 3), ValueError, "one for each axis"),
    "length": (
        lambda: Grid((5, 3), sinusoid=Sinusoidal(scaling=fastpe.scaling.DynamicNTK(2.0, 64))),
        ValueError,
        "must not depend on the length",
    ),
    "shares": (lambda: Grid((5, 3), shares=(1, 2, 3)), ValueError, "2 entries"),
    "layout": (lambda: Grid((5, 3), layout="rows"), ValueError, "layout must be one of"),
    "functions": (lambda: Grid((5, 3), layout="functions", sinusoid=Sinusoidal()), ValueError, "needs concatenated"),
    "truncate": (lambda: Grid((5, 3), remainder="truncate"), ValueError, "needs interleaved"),
    "extent": (lambda: Grid((5, 3), extent=0), ValueError, "greater than 0"),
    "epsilon": (lambda: Grid((5, 3), epsilon=-1), ValueError, "0 or more"),
    "coordinates": (lambda: Grid.detr().coordinates(), ValueError, "shape must be given"),
}


@pytest.mark.parametrize("name", BAD_GRIDS)
def test_bad_grids(name):
    make, error, text = BAD_GRIDS[name]
    with pytest.raises(error, match=text):
        make()


def test_encode_errors():
    with pytest.raises(ValueError, match="2 axes of the Grid first"):
        fastpe.encode(np.zeros((3, 4)), 8, Grid((2, 2)))
    with pytest.raises(ValueError, match="positions must be given"):
        fastpe.encode(None, 8, Grid.detr())
    with pytest.raises(ValueError, match="multiple of 4"):
        fastpe.encode(None, 10, Grid((2, 2)))
    with pytest.raises(TypeError, match="positions must be"):
        fastpe.encode(None, 8)
    with pytest.raises(TypeError, match="encoding must be"):
        fastpe.embed(np.zeros((1, 4), int), np.zeros((3, 8), np.float32), Grid((2, 2)))
