"""resample: other projects' stretched tables, PyTorch's interpolate, and errors."""

from __future__ import annotations

from pathlib import Path

import cases
import numpy as np
import pytest

import fastpe
from fastpe._core.operations import Resample
from fastpe._core.operations.base import Spec

DATA = np.load(Path(__file__).parents[1] / "data" / "resampled.npz")


@pytest.mark.parametrize("size", [(12, 10), (5, 6)])
def test_vit(size):
    table = DATA["table"]
    expected = DATA[f"to_{size[0]}x{size[1]}"]
    for given, wanted in ((table, expected), (table[0], expected[0])):
        found = fastpe.resample(given, size, prefix_tokens=1)
        assert found.shape == wanted.shape
        assert found.dtype == np.float32
        assert np.abs(found - wanted).max() <= 1e-6
        assert (found[..., 0, :] == given[..., 0, :]).all(), "the class token stays"


def interpolated(table, grid, size, **given):
    """What PyTorch makes of a grid or, with one axis, of a length."""
    torch = pytest.importorskip("torch", reason="PyTorch is what is compared with")
    x = torch.from_numpy(table.reshape(*grid, -1)).movedim(-1, 0)[None]
    given = {"size": size, **given} if "scale_factor" not in given else given
    found = torch.nn.functional.interpolate(x, align_corners=False, **given)
    return found[0].movedim(0, -1).reshape(-1, table.shape[-1]).numpy()


MODES = {
    "bilinear": {"mode": "bilinear"},
    "bicubic": {"mode": "bicubic"},
    "antialias": {"mode": "bilinear", "antialias": True},
    "bicubic_antialias": {"mode": "bicubic", "antialias": True},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [(3, 4), (11, 9), (6, 14), (2, 30), (6, 7), (1, 1), (37, 37)])
@pytest.mark.parametrize("method", MODES)
def test_grids_as_pytorch_does(method, size, dtype):
    table = cases.random((42, 8), dtype)
    found = fastpe.resample(table, size, method=method, grid=(6, 7))
    assert np.abs(found - interpolated(table, (6, 7), size, **MODES[method])).max() <= (1e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("length", [1, 7, 20, 33, 500])
def test_lengths_as_pytorch_does(length):
    table = cases.random((20, 8), "float32")
    assert np.abs(fastpe.resample(table, length) - interpolated(table, (20,), length, mode="linear")).max() <= 1e-6
    assert (fastpe.resample(table, 20) == table).all()


def test_dino_stretches_by_a_little_more():
    table = cases.random((1 + 49, 8), "float32")
    for size in ((11, 9), (16, 14)):
        found = fastpe.resample(table, size, prefix_tokens=1, interpolate_offset=0.1)
        scale = tuple((n + 0.1) / 7 for n in size)
        expected = interpolated(table[1:], (7, 7), size, mode="bicubic", scale_factor=scale)
        assert np.abs(found[1:] - expected).max() <= 1e-6


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_every_type_is_rounded_once(dtype):
    table = cases.random((16, 8), dtype)
    for size in ((5, 3), 40):
        found = fastpe.resample(table, size)
        wide = fastpe.resample(table.astype(np.float32), size)
        assert found.dtype == table.dtype
        if dtype != "float64":
            assert (np.abs(found.astype(float) - wide) <= cases.UNIT[dtype] * np.abs(wide) + 1e-7).all()


def test_a_stretched_table_is_used():
    longer = fastpe.resample(cases.random((16, 8), "float32"), 64)
    x = np.zeros((1, 64, 8), np.float32)
    assert (fastpe.add_encoding(x, fastpe.Learned(longer))[0] == longer).all()


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"table": np.ones(5)}, ValueError, r"table must have shape \(P, D\) or \(1, P, D\)"),
        ({"table": np.ones((2, 5, 4))}, ValueError, "table must have shape"),
        ({"table": np.ones((5, 4), int)}, TypeError, "table must be a floating-point array"),
        ({"table": [[1.0]]}, TypeError, "table must be a NumPy or CuPy array"),
        ({"new_size": 0}, ValueError, "new_size must be at least 1"),
        ({"new_size": 2.5}, TypeError, "new_size must be an integer"),
        ({"new_size": (2, 3, 4)}, ValueError, "new_size must be a length or a pair"),
        ({"new_size": (2, 3)}, ValueError, "grid must be given where the patches are no square, got 5 patches"),
        ({"new_size": (2, 3), "grid": (2, 2)}, ValueError, "grid must have as many patches as the table, 5"),
        ({"new_size": (2, 3), "grid": 5}, TypeError, "grid must be a pair"),
        ({"method": "bicubic"}, ValueError, "method must be one of 'linear'"),
        ({"new_size": (2, 3), "method": "linear"}, ValueError, "method must be one of 'bilinear', 'bicubic', 'antialias'"),
        ({"prefix_tokens": 5}, ValueError, r"prefix_tokens must lie in \[0, 5\)"),
        ({"interpolate_offset": -1}, ValueError, "interpolate_offset must be 0 or more"),
    ],
)
def test_bad_arguments(given, error, text):
    given = {"table": np.ones((5, 4)), "new_size": 7, **given}
    with pytest.raises(error, match=text):
        fastpe.resample(given.pop("table"), given.pop("new_size"), **given)


# ---- tensors -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors(dtype):
    torch = pytest.importorskip("torch")
    table = torch.randn(1, 17, 8, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    for new_size, options in ((40, {}), ((6, 5), {"prefix_tokens": 1}), ((8, 8), {"prefix_tokens": 1, "method": "antialias"})):
        found = fastpe.resample(table, new_size, **options)
        assert found.dtype is table.dtype
        array = table.view(torch.int16).numpy().view("bfloat16") if dtype == "bfloat16" else table.numpy()
        expected = fastpe.resample(array, new_size, **options)
        assert found.shape == expected.shape
        assert found.double().numpy().tolist() == expected.astype(float).tolist()


def test_layouts_of_tensors():
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.arange(16.0)[:, None])
    found = fastpe.convert_layout(weight, "interleaved", "half", 8)
    assert found[:8, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    found[3].sum().backward()
    assert weight.grad[6, 0] == 1


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((9, 4), {"new_size": 5}),
        ((1, 10, 4), {"new_size": 7, "prefix_tokens": 1}),
        ((9, 4), {"new_size": (2, 5)}),
        ((1, 14, 4), {"new_size": [5, 6], "prefix_tokens": 2, "grid": (3, 4)}),
    ],
)
def test_what_is_traced_has_the_shape_of_what_is_made(shape, options):
    table = cases.random(shape, "float32")
    made = fastpe.resample(table, **options)
    assert Resample(**options).result((Spec(shape, "float32"),)) == Spec(made.shape, "float32")


@pytest.mark.parametrize("shape", [(17, 3), (6, 4), (11, 9), (19, 2)])
def test_strides_change_nothing(shape):
    """A matrix product of columns that lie one behind the other rounds otherwise."""
    for seed in range(30):
        table = cases.random(shape, "float64", seed)
        for view in (np.asfortranarray(table), *(view(table) for view in cases.VIEWS.values())):
            cases.assert_same_bits(fastpe.resample(view, 15), fastpe.resample(table, 15))
