"""``add_encoding``: sinusoids and learned tables, in place and out of place."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest
from drawing import LIMIT, Draw, Rows, draw_rows, draw_sinusoidal, sinusoidal
from guarded import View
from judging import ARITHMETIC, REFUSALS, SUBNORMAL, assert_within, count, finite

import fastpe

VERB = "add_encoding"
WIDTHS = (1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 130)


def check(draw: Draw) -> None:
    dtype = draw.dtype()
    shape, axis = draw.shape(WIDTHS)
    scale = draw.pick(1.0, 1.0, 22.6, 0.5, -3.0, 0.0)
    if draw.once_in(6):
        encoding, rows, values, error = _learned(draw, dtype, shape, axis)
    else:
        encoding = draw_sinusoidal(draw)
        rows = draw_rows(draw, shape, axis)
        values, angles = sinusoidal(encoding, rows.units, shape[-1])
        error = angles + abs(encoding.amplitude) * (1e-15 if dtype == "float64" else 2e-7)
    options = {**rows.arguments, "seq_axis": axis - draw.pick(0, len(shape)), "input_scale": scale}
    way, strides, out_strides = draw.pick("in place", "x is out", "out"), "draw", "draw"
    with draw.schedule():
        first = None
        for _ in range(draw.pick(1, 2, 3) if np.prod(shape) < 10_000 else 1):
            x = draw.view(shape, cases.DTYPES[dtype], strides)
            if first is None:
                values_of_x = draw.fill(x.array)
            x.array[...] = values_of_x
            x.snapshot()
            out = draw.view(shape, x.array.dtype, out_strides) if way == "out" else x
            strides, out_strides = x.array.strides, out.array.strides  # of a call that is prepared already
            result = fastpe.add_encoding(x.array, encoding, **options, **({} if way == "in place" else {"out": out.array}))
            assert result is out.array
            out.assert_only_elements_written()
            if out is not x:
                x.assert_unchanged()
            first = result.copy() if first is None else first
            cases.assert_same_bits(result, first)
        _judge(first, values_of_x, scale, rows, values, error, dtype)
        _ask_otherwise(draw, first, values_of_x, encoding, rows, axis, scale)
        _refuse(draw, x, encoding, options, axis)


def _learned(draw: Draw, dtype: str, shape: tuple[int, ...], axis: int) -> tuple[fastpe.Learned, Rows, Any, Any]:
    """A table, of rows in any order and distance, at positions in it, or anywhere if they are clipped."""
    kind, clips = draw.dtype(), draw.flag()
    size, width = draw.integer(max(1, shape[axis]), shape[axis] + 30), shape[-1]
    itemsize = cases.DTYPES[kind].itemsize
    step = draw.pick(1, 1, -1) * (width * itemsize + draw.pick(0, 0, itemsize, 3 * itemsize))
    table = draw.view((size, width), cases.DTYPES[kind], (step, itemsize))
    draw.fill(table.array, special=False)
    table.array.flags.writeable = False
    rows = draw_rows(draw, shape, axis, limit=None if clips else size, real=False)
    values = table.array.astype(np.float64)[np.clip(rows.units >> 32, 0, size - 1)]
    if "float64" in (kind, dtype):
        return fastpe.Learned(table.array, "clip" if clips else "error"), rows, values, 0.0
    return fastpe.Learned(table.array, "clip" if clips else "error"), rows, values, np.abs(values) * 2.0**-24


def _judge(got: np.ndarray, x: np.ndarray, scale: float, rows: Rows, values: np.ndarray, error: Any, dtype: str) -> None:
    with np.errstate(all="ignore"):
        scaled = x.astype(np.float64) * scale
        expected = scaled + values
        error = error + (2.1 * np.abs(scaled) + np.abs(expected)) * ARITHMETIC[dtype] + SUBNORMAL[dtype]
        expected = np.where(rows.kept[..., None], expected, x.astype(np.float64))
    assert_within(got, expected, finite(error), dtype)
    count(VERB, got)


def _ask_otherwise(draw: Draw, expected: np.ndarray, x: np.ndarray, encoding: Any, rows: Rows, axis: int, scale: float) -> None:
    """The same bits for a contiguous array, each row of which has a position of its own, in one call and in two."""
    positions = rows.positions
    if positions is None:
        return
    positions = np.ascontiguousarray(np.broadcast_to(positions, x.shape[:-1]))
    plain, cut = np.array(x, order="C"), draw.integer(0, x.shape[axis])
    if draw.flag():
        fastpe.add_encoding(plain, encoding, positions=positions, seq_axis=axis, input_scale=scale)
    else:
        for part in (slice(0, cut), slice(cut, None)):
            which = (*(slice(None),) * axis, part)
            fastpe.add_encoding(plain[which], encoding, positions=positions[which], seq_axis=axis, input_scale=scale)
    cases.assert_same_bits(np.where(rows.kept[..., None], plain, x), expected)


def _refuse(draw: Draw, x: View, encoding: Any, options: dict[str, Any], axis: int) -> None:
    """What must not be asked for is refused before anything is written."""
    array, rows = x.array, x.array.shape[axis]
    if array.size == 0 or not draw.once_in(4):
        return
    options = {name: value for name, value in options.items() if name in ("seq_axis", "input_scale")}
    nowhere = np.zeros(rows)
    nowhere[draw.integer(0, rows - 1)] = draw.pick(np.nan, np.inf, 2.0**31, -(2.0**31) - 1)
    wrong: dict[str, Any] = {
        "position": {"positions": nowhere},
        "positions' length": {"positions": np.zeros(rows + 1, int)},
        "offset": {"offset": LIMIT - rows + 1},
        "boundaries": {"cu_seqlens": np.array([0, rows + 1])},
        "mask": {"mask": np.ones(rows + 1, bool)},
        "axis": {"seq_axis": -1},
        "offset and positions": {"positions": np.zeros(rows, int), "offset": 1},
        "dtype of out": {"out": np.zeros(array.shape, np.int32)},
        "broadcast out": {"out": np.broadcast_to(array[..., :1] if array.shape[-1] > 1 else array[:1], array.shape)},
    }
    flat = np.lib.stride_tricks.as_strided
    name = draw.pick(*wrong, "overlapping out", "read-only x")
    target = array
    if name == "overlapping out":
        memory = draw.view((array.shape[-1] + 4, rows + 4), array.dtype).array
        target, shift = memory[:-2, :-2].T, draw.pick((0, 1), (1, 0), (2, 2))
        options = {"out": memory[shift[0] :, shift[1] :][: target.shape[1], : target.shape[0]].T}
        encoding = None
    elif name == "read-only x":
        target = flat(array, array.shape, array.strides, writeable=False)
    else:
        options = {**options, **wrong[name]}
    x.snapshot()
    before = target.copy()
    with pytest.raises((TypeError, ValueError, IndexError), match="add_encoding"):
        fastpe.add_encoding(target, encoding, **options)
    x.assert_unchanged()
    assert before.tobytes() == target.copy().tobytes()
    REFUSALS[VERB] += 1
