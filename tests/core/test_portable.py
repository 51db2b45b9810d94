"""The arithmetic of programs that no kernel serves, on NumPy's arrays: within 2e-7 of exact at any position, and what kernels compute."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest
import reference
from fastpe.kernels.locate_rows import locate_rows_given

import fastpe
from fastpe import ALiBi, Grid, Rotary, Sinusoidal, scaling
from fastpe._core import portable

OPS = portable.ops_of(np)
ERROR = {"float32": 2e-7, "float64": 2e-12}
ENDS = [0, 1, -1, 2**31 - 1, -(2**31), 2**30, 77_777_777]
RANDOM = np.random.default_rng(8)
WHOLE = np.array([*ENDS, *RANDOM.integers(-(2**31), 2**31, 500)])
REAL = np.concatenate(
    [[0.5, -0.25, 1e-7, -1e-7, 1e6 + 0.5, -3.7], RANDOM.normal(size=300) * 10.0 ** RANDOM.integers(0, 9, 300)]
)


def rows_at(positions: Any) -> portable.Positions:
    """Positions, with a last axis."""
    words = locate_rows_given(np.asarray(positions))[..., None, None].view(np.int32)
    return portable.of_words(OPS, words[..., 0], words[..., 1])


@pytest.fixture(autouse=True)
def no_warnings():
    with np.errstate(all="raise", under="ignore"):
        yield


@pytest.mark.parametrize("positions", [WHOLE, REAL], ids=["whole", "real"])
@pytest.mark.parametrize("real", ERROR)
def test_sinusoids_are_exact_at_any_position(positions, real):
    if real == "float64":
        positions = positions[np.abs(positions) < 10**6]
    made = portable.sinusoids(OPS, [(0, Sinusoidal().plan(64), rows_at(positions))], real)
    exact = reference.sinusoidal(np.rint(positions * 2.0**32) / 2.0**32 if positions.dtype.kind == "f" else positions, 64)
    assert made.dtype == real
    assert np.abs(made - exact).max() < ERROR[real]


def test_whole_positions_need_no_part():
    frequencies = Rotary(base=3.0).plan(32).turns
    whole = portable.Positions(WHOLE.astype(np.int32)[:, None])
    assert (portable.phase(OPS, whole, frequencies) == portable.phase(OPS, rows_at(WHOLE), frequencies)).all()


SINUSOIDS = {
    "interleaved": Sinusoidal(),
    "concatenated": Sinusoidal(layout="concatenated", cos_first=True, amplitude=0.5),
    "shifted": Sinusoidal(frequency_shift=1.0, position_scale=300.25),
}


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("width", [1, 2, 5, 24])
@pytest.mark.parametrize("name", SINUSOIDS)
def test_additions_are_those_of_the_kernel(name, width, dtype):
    x = RANDOM.standard_normal((len(WHOLE), width)).astype(cases.DTYPES[dtype])
    real = portable.real_of(x)
    values = portable.sinusoids(OPS, [(0, SINUSOIDS[name].plan(width), rows_at(WHOLE))], real)
    made = portable.add(OPS, x, values, 2.5)
    close(made, fastpe.add_encoding(x.copy(), SINUSOIDS[name], positions=WHOLE, input_scale=2.5), 2)


@pytest.mark.parametrize("options", [{"layout": "axes"}, {"layout": "functions"}, {"remainder": "zero"}], ids=str)
def test_parts_of_a_grid(options):
    width, grid = 26 if "remainder" in options else 28, Grid((3, 4), **options)
    plan = grid.grid_plan(width)
    coordinates = np.indices((3, 4)).reshape(2, 12)
    parts = [(part.first_column, part.plan, rows_at(coordinates[part.axis])) for part in plan.parts]
    close(portable.sinusoids(OPS, parts), fastpe.encode(None, width, grid).reshape(12, width), 1)


ROTATIONS = {
    "half": Rotary(),
    "interleaved": Rotary(interleaved=True),
    "partial": Rotary(rotary_dim=8, rotary_offset=4),
    "yarn": Rotary(scaling=scaling.YaRN(4.0, 2048)),
    "fast": Rotary(base=1e-8),  # many turns a position
}


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("positions", [WHOLE, REAL], ids=["whole", "real"])
@pytest.mark.parametrize("name", ROTATIONS)
def test_rotations_are_those_of_the_kernel(name, positions, inverse, dtype):
    x, encoding = RANDOM.standard_normal((len(positions), 16)).astype(cases.DTYPES[dtype]), ROTATIONS[name]
    plan, real = encoding.plan(16), portable.real_of(x)
    factor = 1 / plan.attention_factor if inverse else plan.attention_factor
    turned = portable.angles(OPS, plan, rows_at(positions), real, inverse, factor)
    close(
        portable.rotate(OPS, x, plan, *turned),
        fastpe.apply_rotary(x.copy(), None, encoding, positions=positions, inverse=inverse),
        3,
    )


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("positions", [np.concatenate([WHOLE, np.arange(-2000, 2000, 37)]), REAL], ids=["whole", "real"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_factors_of_xpos(positions, keys, dtype):
    encoding, x = Rotary(xpos_scale_base=512.0, xpos_centre=30), np.ones((len(positions), 16), dtype)
    plan, at = encoding.plan(16), rows_at(positions)
    factors = portable.growth(OPS, plan, at, keys, plan.centre, dtype)
    given = (None, x.copy()) if keys else (x.copy(), None)
    expected = fastpe.apply_rotary(*given, encoding, positions=positions)
    with np.errstate(all="ignore"):
        made = portable.rotate(OPS, x, plan, *(one * factors for one in portable.angles(OPS, plan, at, dtype)))
        kept = np.isfinite(expected) & (np.abs(expected) > 1e-30)
        assert kept.sum() > 100
        size = np.maximum(1.0, np.concatenate([factors, factors], -1)[kept])
        assert (np.abs(made - expected)[kept] / size).max() < 4 * np.finfo(dtype).eps


def test_positions_of_several_axes():
    encoding = Rotary(sections=(2, 3, 3))
    positions, x = RANDOM.integers(0, 1000, (3, 40)), RANDOM.standard_normal((40, 16)).astype(np.float32)
    plan = encoding.plan(16)
    at = portable.by_axis(OPS, plan.axes, [rows_at(one) for one in positions])
    close(
        portable.rotate(OPS, x, plan, *portable.angles(OPS, plan, at)),
        fastpe.apply_rotary(x.copy(), None, encoding, positions=positions),
        3,
    )


def test_what_is_no_position_is_nan():
    at = rows_at(np.array([0.0, np.nan, np.inf, 3e9, 1.0]))
    made = portable.sinusoids(OPS, [(0, Sinusoidal().plan(8), at)])
    assert np.isnan(made).all(-1).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("symmetric", [False, True])
def test_lines_of_the_distance(symmetric):
    bias, queries = ALiBi(4, symmetric=symmetric), np.array([0, 5, 2**31 - 1, -(2**31)], np.int32)
    made = portable.line(
        OPS, np.float32(bias.slopes_of)[:, None, None], queries[:, None], np.arange(9, dtype=np.int32), symmetric
    )
    expected = fastpe.add_bias(np.zeros((4, 4, 9), np.float32), bias, q_positions=queries)
    np.testing.assert_allclose(made, expected, rtol=2e-7)


def close(made: Any, expected: Any, units: int) -> None:
    """Equal but for a few roundings, each of at most half a unit of the largest number."""
    assert (made.dtype, made.shape) == (expected.dtype, expected.shape)
    mantissa = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[str(made.dtype)]
    wide = expected.astype(np.float64)
    assert np.abs(made.astype(np.float64) - wide).max() <= 2 * units * mantissa * max(1.0, np.abs(wide).max())
