"""``rerotate``: keys moved by a distance, or from one base and factor to another."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest
from drawing import Draw, Rows, angle_error, draw_rows, rotary_turns, units_of
from fuzz_apply_rotary import Turned, rotated
from judging import REFUSALS, assert_within, count
from reference import many_angles

import fastpe

VERB = "rerotate"
BASES = (10000.0, 500_000.0, 1.0000001, 0.3)


def check(draw: Draw) -> None:
    dtype = draw.dtype()
    shape, axis = draw.shape((2, 4, 6, 8, 16, 32, 34, 64))
    changes, interleaved, base = draw.flag(), draw.flag(), draw.pick(*BASES)
    # Positions only matter where frequencies change; without it rows are those of the mask alone.
    rows = draw_rows(draw, shape, axis, by_row=False, far=10**6)
    delta, moved = _delta(draw, shape, axis, changes)
    options: dict[str, Any] = {**rows.arguments} if changes else {k: v for k, v in rows.arguments.items() if k == "mask"}
    encodings = [fastpe.Rotary(base, interleaved=interleaved)] * 2
    if changes:
        factors = draw.pick(1.0, 1.3), draw.pick(1.0, 0.8)
        encodings = [
            fastpe.Rotary(one, interleaved=interleaved, attention_factor=factor)
            for one, factor in zip((base, draw.pick(*BASES)), factors, strict=True)
        ]
        options.update(source=encodings[0], target=encodings[1])
    else:
        options["encoding"] = encodings[0]
    way = draw.pick("in place", "x is out", "out")
    first, strides, out_strides = None, "draw", "draw"
    with draw.schedule():
        for _ in range(draw.pick(1, 2)):
            k = draw.view(shape, cases.DTYPES[dtype], strides)
            if first is None:
                values = draw.fill(k.array, special=False)
            k.array[...] = values
            k.snapshot()
            out = draw.view(shape, cases.DTYPES[dtype], out_strides) if way == "out" else k
            strides, out_strides = k.array.strides, out.array.strides
            given = {} if way == "in place" else {"out": out.array}
            assert fastpe.rerotate(k.array, delta, seq_axis=axis, **options, **given) is out.array
            out.assert_only_elements_written()
            if out is not k:
                k.assert_unchanged()
            first = out.array.copy() if first is None else first
            cases.assert_same_bits(out.array.copy(), first)
        _judge(first, values, encodings, rows, moved, dtype)
        _refuse(draw, k, axis)


def _delta(draw: Draw, shape: tuple[int, ...], axis: int, changes: bool) -> tuple[Any, np.ndarray]:
    """By how much rows move, as it is given, and in units of 2^-32, to be broadcast to x.shape[:-1]."""
    batch = None if len(shape) == 2 else 1 if axis == 0 else 0
    kinds = ("none", "one", "one", "each sequence", "each row") if not changes else ("none", "none", "one", "each sequence")
    kind = draw.pick(*kinds)
    if batch is None or not kind.startswith("each"):
        delta = 0 if kind == "none" else draw.pick(5, -3, 100_000, 2.5)
        return delta, np.full((1,) * (len(shape) - 1), round(delta * 2.0**32), np.int64)
    sizes = (shape[batch],) if kind == "each sequence" else (shape[batch], shape[axis])
    values = draw.rng.integers(-50, 50, sizes).astype(draw.pick("i8", "i4", "f8"))
    table = units_of(values)
    table = table[:, None] if table.ndim == 1 else table
    whole = [table.shape[(batch, axis).index(n)] if n in (batch, axis) else 1 for n in range(len(shape) - 1)]
    turned = axis < batch
    return draw.argument(values), (table.T if turned else table).reshape(whole)


def _judge(got: np.ndarray, k: np.ndarray, encodings: list[fastpe.Rotary], rows: Rows, moved: np.ndarray, dtype: str) -> None:
    width, (source, target) = k.shape[-1], encodings
    before, after = (many_angles(rows.units, rotary_turns(one.base, width)) for one in encodings)
    angle = many_angles(moved, rotary_turns(target.base, width)) + (after - before if source is not target else 0)
    factor = (target.attention_factor or 1.0) / (source.attention_factor or 1.0)
    twice = source is not target and bool(moved.any())
    error = (5e-15 if dtype == "float64" else 4e-7 * (1 + twice)) + 3 * angle_error(rows.units)[..., None]
    error = error + angle_error(moved)[..., None] + (6 * cases.UNIT[dtype] if twice else 0)
    angle, error = np.broadcast_arrays(angle, error)
    turned_by = Turned(np.cos(angle) * factor, np.sin(angle) * factor, np.full(angle.shape, factor), error * factor)
    i = np.arange(width // 2)
    one, other = (2 * i, 2 * i + 1) if source.interleaved else (i, i + width // 2)
    expected, allowed = rotated(k, one, other, turned_by, rows.kept, dtype)
    if twice and dtype == "float16":  # rounded twice, perhaps among the subnormal numbers
        allowed = allowed + 2.0**-23
    assert_within(got, expected, allowed, dtype)
    count(VERB, got)


def _refuse(draw: Draw, k: Any, axis: int) -> None:
    if k.array.size == 0 or not draw.once_in(4):
        return
    rotary, rows = fastpe.Rotary(), k.array.shape[axis]
    wrong = {
        "delta": {"delta": np.nan},
        "far": {"delta": 2**32},
        "mask": {"delta": 1, "mask": np.ones(rows + 1, bool)},
        "pairs": {"source": rotary, "target": fastpe.Rotary(interleaved=True)},
        "out": {"delta": 1, "out": np.zeros(3, np.float32)},
    }
    k.snapshot()
    with pytest.raises((TypeError, ValueError), match="rerotate"):
        fastpe.rerotate(k.array, seq_axis=axis, **wrong[draw.pick(*wrong)])
    k.assert_unchanged()
    REFUSALS[VERB] += 1
