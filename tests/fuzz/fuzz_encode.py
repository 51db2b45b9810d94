"""``encode``: sinusoids, grids and Fourier features; a grid is also added."""

from __future__ import annotations

import math
from typing import Any

import cases
import numpy as np
import pytest
from drawing import Draw, draw_sinusoidal, sinusoidal, units_of
from judging import REFUSALS, assert_within, count

import fastpe

VERB = "encode"
WIDTHS = (1, 2, 3, 4, 7, 8, 16, 17, 32, 33, 64, 100)


def check(draw: Draw) -> None:
    dtype = draw.dtype()
    encoding, positions, expected, error = draw.pick(_sinusoidal, _sinusoidal, _grid, _fourier)(draw, dtype)
    width, strides = expected.shape[-1], "draw"
    with draw.schedule():
        plain = fastpe.encode(positions, width, encoding, dtype=draw.pick(dtype, cases.DTYPES[dtype]))
        assert_within(plain, expected, error, dtype)
        count(VERB, plain)
        for _ in range(draw.pick(1, 2)):
            out = draw.view(expected.shape, cases.DTYPES[dtype], strides)
            strides = out.array.strides
            assert fastpe.encode(positions, width, encoding, out=out.array) is out.array
            out.assert_only_elements_written()
            cases.assert_same_bits(out.array.copy(), plain)
        if isinstance(encoding, fastpe.Grid) and plain.size:
            _add_grid(draw, encoding, positions, plain)
        _refuse(draw, encoding, width, positions)


def _shape(draw: Draw) -> tuple[int, ...]:
    if draw.once_in(30):
        return (draw.pick(3000, 20_000),)
    return tuple(draw.integer(0 if draw.once_in(20) else 1, 6) for _ in range(draw.integer(0, 3)))


def _values(draw: Draw, shape: tuple[int, ...]) -> Any:
    kind = draw.pick("i8", "i4", "u1", ">i4", "f8", "f4")
    if kind[-2] == "f":
        values = draw.rng.standard_normal(shape) * 10.0 ** draw.integer(0, 4)
    else:
        values = draw.rng.integers(0 if kind == "u1" else -100, 256 if kind == "u1" else draw.pick(100, 10**6, 2**31), shape)
    return np.asarray(values).astype(kind)


def _sinusoidal(draw: Draw, dtype: str) -> tuple[Any, Any, np.ndarray, Any]:
    encoding, positions = draw_sinusoidal(draw), _values(draw, _shape(draw))
    expected, error = sinusoidal(encoding, units_of(positions), draw.pick(*WIDTHS))
    error = error + abs(encoding.amplitude) * (1e-15 if dtype == "float64" else 2e-7)
    return encoding, draw.argument(positions), expected, error + (0 if dtype == "float64" else 2.0**-148)


def _grid(draw: Draw, dtype: str) -> tuple[Any, Any, np.ndarray, Any]:
    axes = draw.pick(2, 2, 3)
    sizes = tuple(draw.integer(1, 5 if not draw.once_in(20) else 40) for _ in range(axes))
    layout = draw.pick(*cases.LAYOUTS)
    sinusoid = fastpe.Sinusoidal(base=draw.pick(10000.0, 100.0), layout=layout, cos_first=draw.flag())
    order = tuple(int(axis) for axis in draw.rng.permutation(axes))
    blocks = draw.pick("axes", "functions") if layout == "concatenated" else "axes"
    encoding = fastpe.Grid(sizes, order, sinusoid, blocks)
    positions = None
    coordinates = np.stack(np.meshgrid(*(np.arange(size) for size in sizes), indexing="ij"))
    if draw.flag():
        positions = coordinates = np.abs(_values(draw, (axes, *_shape(draw))).astype(np.float32)).round() % 50
    width = 2 * draw.pick(1, 2, 3, 8, 9, 17)  # of an axis
    parts = [sinusoidal(sinusoid, units_of(coordinates[axis]), width)[0] for axis in order]
    if blocks == "functions":
        halves = [np.split(part, 2, axis=-1) for part in parts]
        parts = [half[function] for function in (0, 1) for half in halves]
    argument = None if positions is None else draw.argument(positions)
    return encoding, argument, np.concatenate(parts, axis=-1), 1e-13 if dtype == "float64" else 2e-7


def _fourier(draw: Draw, dtype: str) -> tuple[Any, Any, np.ndarray, Any]:
    axes = draw.integer(1, 3)
    bands = tuple(float(band) for band in draw.rng.random(draw.pick(1, 2, 4)) * 20 + 0.1)
    encoding = fastpe.Fourier(axes, bands=bands, include_input=draw.flag(), cos_first=draw.flag())
    points = (draw.rng.random((axes, *_shape(draw))) * 10 - 5).astype(draw.pick("f8", "f4"))
    angles = points.astype(np.float64)[..., None] * np.array(bands)
    functions = (np.cos(angles), np.sin(angles)) if encoding.cos_first else (np.sin(angles), np.cos(angles))
    both = np.moveaxis(np.stack(functions, -1), 0, -3)  # (..., axis, band, function)
    first = both.ndim - 3
    names = [("axis", "band", "function").index(name) for name in encoding.order]
    both = np.transpose(both, (*range(first), *(first + name for name in names)))
    both = both.reshape(*both.shape[:first], int(np.prod(both.shape[first:])))
    if encoding.include_input:
        both = np.concatenate([np.moveaxis(points.astype(np.float64), 0, -1), both], axis=-1)
    return encoding, draw.argument(points), both, 2e-12


def _add_grid(draw: Draw, encoding: Any, positions: Any, expected: np.ndarray) -> None:
    """What is added to zeros is what is encoded, but for the sign of a zero."""
    if positions is not None and expected.shape[:-1] != (math.prod(encoding.shape),):
        return
    x = draw.view(expected.shape, expected.dtype)
    x.array[...] = 0
    x.snapshot()
    fastpe.add_encoding(x.array, encoding, positions=positions)
    x.assert_only_elements_written()
    zero = expected.dtype.type(0)
    cases.assert_same_bits(x.array + zero, expected + zero)


def _refuse(draw: Draw, encoding: Any, width: int, positions: Any) -> None:
    if positions is None or positions.size == 0 or not draw.once_in(4):
        return
    out = draw.view((*np.shape(positions)[-1:], width + 1), np.float32)
    nowhere = np.array(positions, np.float64, order="C")
    nowhere.reshape(-1)[draw.integer(0, nowhere.size - 1)] = draw.pick(np.nan, np.inf, 2.0**31, -(2.0**31) - 1)
    other = {"out": out.array} if draw.flag() else {}
    with pytest.raises((TypeError, ValueError), match="encode"):
        fastpe.encode(positions if other else nowhere, width, encoding, **other)
    out.assert_unchanged()
    REFUSALS[VERB] += 1
