"""The cases that the tests share: element types, tolerances, shapes, encodings, views, positions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastpe

DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

# Largest error of PE itself (|PE| <= 1). float32: one polynomial (7.4e-8), one rotation by rounded tables and its roundings.
# float64: 2^-65 turn a position, 1.7e-13 rad at position one million. 16 bits: half a unit in the last place below 1, and the
# float32 error.
ENCODING_ERROR = {"float32": 2e-7, "float64": 1e-12, "float16": 2.0**-12 + 2e-7, "bfloat16": 2.0**-9 + 2e-7}
# One rounding of the result, relative to it.
UNIT = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}

LAYOUTS = ("interleaved", "concatenated")
WIDTHS = (1, 2, 3, 5, 8, 16, 33, 64)
# (B, T, D): nothing, one row, odd sizes, more than one anchor, more than one chunk's worth of sequences.
SHAPES = ((0, 4, 8), (3, 0, 8), (1, 1, 1), (1, 1, 64), (2, 7, 5), (3, 17, 33), (5, 9, 64), (2, 40, 16))
OFFSETS = (0, 5, -3, 131_071, 2**31 - 64, -(2**31))

ENCODINGS = {
    "default": {},
    "cos_first": {"cos_first": True},
    "concatenated": {"layout": "concatenated"},
    "concatenated_cos_first": {"layout": "concatenated", "cos_first": True},
    "shift_1": {"layout": "concatenated", "frequency_shift": 1},
    "shift_1_interleaved_cos_first": {"frequency_shift": 1, "cos_first": True},
    "shift_half": {"frequency_shift": 0.5, "base": 500.0},
    "amplitude": {"amplitude": -0.125},
    "quarter_scale": {"position_scale": 0.25},
    "large_scale": {"position_scale": 1000.0},
}


def encoding(name: str) -> fastpe.Sinusoidal:
    return fastpe.Sinusoidal(**ENCODINGS[name])


def random(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype])


# Views of the same values in memory laid out differently: a function from a fresh array to a view that equals it.
def _sliced(x: np.ndarray) -> np.ndarray:
    whole = np.full((*x.shape[:-1], x.shape[-1] + 8), 7, x.dtype)
    whole[..., 4:-4] = x
    return whole[..., 4:-4]


def _strided_columns(x: np.ndarray) -> np.ndarray:
    whole = np.full((*x.shape[:-1], 2 * x.shape[-1] + 1), 7, x.dtype)
    whole[..., 1::2] = x
    return whole[..., 1::2]


def _misaligned_rows(x: np.ndarray) -> np.ndarray:
    whole = np.full((*x.shape[:-1], x.shape[-1] + 1), 7, x.dtype)
    whole[..., 1:] = x
    return whole[..., 1:]


def _channels_first(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, -2)), -2, -1)


def _rows_reversed(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x[..., ::-1, :])[..., ::-1, :]


def _columns_reversed(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x[..., ::-1])[..., ::-1]


def _batch_inside(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(np.ascontiguousarray(np.swapaxes(x, 0, -2)), 0, -2)


VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": np.array,
    "sliced": _sliced,
    "strided_columns": _strided_columns,
    "misaligned_rows": _misaligned_rows,
    "channels_first": _channels_first,
    "rows_reversed": _rows_reversed,
    "columns_reversed": _columns_reversed,
    "batch_inside": _batch_inside,
}


def memory_of(view: np.ndarray) -> tuple[np.ndarray, int]:
    """A copy of the bytes that a view spans, gaps included, and where in them its first element lies."""
    if view.size == 0:
        return np.zeros(0, np.uint8), 0
    spans = [stride * (size - 1) for stride, size in zip(view.strides, view.shape, strict=True)]
    first = view.ctypes.data + sum(span for span in spans if span < 0)
    last = view.ctypes.data + sum(span for span in spans if span > 0) + view.itemsize
    raw = (ctypes.c_ubyte * (last - first)).from_address(first)
    return np.frombuffer(bytearray(raw), np.uint8), view.ctypes.data - first


# Ways to give the positions of a (B, T, D) array. Each returns the arguments; `reference.rows` turns them into positions.
POSITION_MODES: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "offset": lambda B, T: {"offset": 13},
    "offset_per_sequence": lambda B, T: {"offset": np.arange(B) * 1000 - 7},
    "positions_row": lambda B, T: {"positions": np.arange(T, dtype=np.int32)[::-1].copy() * 3},
    "positions": lambda B, T: {"positions": np.random.default_rng(1).integers(-(2**31), 2**31, (B, T))},
    "positions_real": lambda B, T: {"positions": np.random.default_rng(2).uniform(-5000, 5000, (B, T))},
    "positions_float32": lambda B, T: {"positions": np.random.default_rng(2).uniform(0, 999, T).astype(np.float32)},
    "cu_seqlens": lambda B, T: {"cu_seqlens": np.array([0, T // 3, T // 3, T - T // 4, T])},
    "cu_seqlens_offset": lambda B, T: {"cu_seqlens": np.array([0, T // 2, T], np.int32), "offset": np.array([100, -9])},
    "mask_row": lambda B, T: {"mask": np.arange(T) % 3 != 1},
    "mask": lambda B, T: {"mask": np.random.default_rng(3).random((B, T)) < 0.6, "offset": 4},
    "mask_none_kept": lambda B, T: {"mask": np.zeros((B, T), bool)},
    "mask_offset_per_sequence": lambda B, T: {
        "mask": np.random.default_rng(4).random((B, T)) < 0.5,
        "offset": np.arange(B) * 50,
    },
    "mask_cu_seqlens": lambda B, T: {"mask": np.arange(T) % 4 != 0, "cu_seqlens": np.array([0, T // 2, T])},
    "mask_positions": lambda B, T: {"mask": np.arange(T) % 2 == 0, "positions": np.arange(T) + 70_000},
}


_LONGER = {"source": fastpe.Rotary(), "target": fastpe.Rotary(scaling=fastpe.scaling.YaRN(8.0, 64))}
# Keys (2, H, 7, D) that were rotated, and where they go.
REROTATIONS: tuple[dict[str, Any], ...] = (
    {"delta": -7},
    {"delta": np.array([3, 100])},
    {"delta": np.array([0, 1, 0, 1, 5, 5, 5]) * np.ones((2, 1)), "mask": np.arange(7) > 2},
    {**_LONGER, "offset": 1000},
    {**_LONGER, "delta": 4, "positions": np.arange(7) * 99},
)


def bits(x: np.ndarray) -> np.ndarray:
    """The bits of an array as unsigned integers, every NaN the same."""
    contiguous = np.ascontiguousarray(x)
    unsigned = contiguous.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[x.dtype.itemsize])
    return np.where(_is_nan(contiguous), 0, unsigned)


def _is_nan(x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return np.isnan(np.asarray(x).astype(np.float64))


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    """Same shape, dtype, NaNs and bits."""
    assert got.shape == expected.shape, f"shape {got.shape}, expected {expected.shape}"
    assert got.dtype == expected.dtype, f"dtype {got.dtype}, expected {expected.dtype}"
    assert (_is_nan(got) == _is_nan(expected)).all(), "NaN in different places"
    different = bits(got) != bits(expected)
    if different.any():
        where = tuple(int(i) for i in np.argwhere(different)[0])
        raise AssertionError(
            f"{different.sum()} of {different.size} elements differ, first at {where}: {got[where]!r} != {expected[where]!r}"
        )


def assert_close(
    got: np.ndarray, expected: np.ndarray, dtype: str, *, amplitude: float = 1.0, position_error: float = 0.0
) -> None:
    """Shape, dtype and NaNs as expected, and every element within the error of its type (reference in float64)."""
    got = np.asarray(got)
    assert got.shape == expected.shape, f"shape {got.shape}, expected {expected.shape}"
    assert got.dtype == DTYPES[dtype], f"dtype {got.dtype}, expected {dtype}"
    wide = got.astype(np.float64)
    assert (np.isnan(wide) == np.isnan(expected)).all(), "NaN in different places"
    limit = abs(amplitude) * ENCODING_ERROR[dtype] + 4 * UNIT[dtype] * np.abs(expected) + position_error
    error = np.abs(wide - expected)
    over = error > limit
    if over.any():
        where = tuple(int(i) for i in np.argwhere(over)[0])
        raise AssertionError(
            f"{over.sum()} of {over.size} elements are off, first at {where}: {wide[where]!r}, expected {expected[where]!r}"
        )


def transformers() -> Any:
    """Hugging Face's library, or a skip."""
    pytest.importorskip("torch")  # without which its models cannot be imported
    return pytest.importorskip("transformers")
