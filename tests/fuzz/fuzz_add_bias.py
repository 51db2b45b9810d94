"""``add_bias``: every bias, with queries and keys at any positions, causal or not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import cases
import numpy as np
import pytest
import reference
from drawing import Draw
from judging import ARITHMETIC, REFUSALS, SUBNORMAL, assert_within, count, finite

import fastpe

VERB = "add_bias"
Values = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (H, ...) of distances and of queries


def check(draw: Draw) -> None:
    dtype, heads = draw.dtype(), draw.integer(1, 5)
    lead = tuple(draw.integer(1, 3) for _ in range(draw.integer(0, 2)))
    sizes = draw.pick(1, 1, 2, 3, 7), draw.pick(1, 2, 5, 8, 16, 17, 33, 70)
    if draw.once_in(40):
        lead, sizes = lead[:1], (draw.pick(200, 777), draw.pick(512, 1025))
    if draw.once_in(30):
        sizes = draw.pick((0, sizes[1]), (sizes[0], 0))
    shape = (*lead, heads, *sizes)
    bias, values, bounded = draw.pick(_alibi, _alibi, _slopes, _t5, _t5, _kerple, _sandwich, _fire)(draw, heads)
    given, queries, keys = _positions(draw, shape, bounded)
    causal, scale, way = draw.flag(), draw.pick(1.0, 0.125, -2.0), draw.pick("in place", "in place", "x is out", "out")
    options = {**given, "causal": causal, "input_scale": scale}
    first, strides, out_strides = None, "draw", "draw"
    with draw.schedule():
        for _ in range(draw.pick(1, 2, 3) if np.prod(shape) < 10_000 else 1):
            x = draw.view(shape, cases.DTYPES[dtype], strides)
            if first is None:
                before = draw.fill(x.array)
            x.array[...] = before
            x.snapshot()
            out = draw.view(shape, x.array.dtype, out_strides) if way == "out" else x
            strides, out_strides = x.array.strides, out.array.strides
            result = fastpe.add_bias(x.array, bias, **options, **({} if way == "in place" else {"out": out.array}))
            assert result is out.array
            out.assert_only_elements_written()
            if out is not x:
                x.assert_unchanged()
            first = result.copy() if first is None else first
            cases.assert_same_bits(result.copy(), first)
        _judge(first, before, values, queries, keys, causal, scale, dtype)
        _ask_otherwise(draw, first, before, bias, queries, keys, options)
        _refuse(draw, x, bias)


# ---- biases --------------------------------------------------------------------------------------------------------------------


def _alibi(draw: Draw, heads: int) -> tuple[Any, Values, bool]:
    symmetric = draw.flag()
    slopes = reference.alibi_slopes(heads)
    return fastpe.ALiBi(heads, symmetric=symmetric), lambda d, q: reference.alibi(slopes, d, symmetric), True


def _slopes(draw: Draw, heads: int) -> tuple[Any, Values, bool]:
    slopes = draw.rng.random(heads) * draw.pick(1.0, 1e6, 1e-6)
    return fastpe.ALiBi(heads, slopes=tuple(slopes.tolist())), lambda d, q: reference.alibi(slopes, d), True


@functools.cache
def _bucket(n: int, number: int, bidirectional: bool, most: int) -> int:
    """T5's bucket of a distance, query minus key, by comparing integer powers."""
    own = number // 2 if bidirectional else number
    first = own if bidirectional and n < 0 else 0
    n = abs(n) if bidirectional else max(n, 0)
    exact = own // 2
    if n < exact:
        return first + n
    found = 0
    while found < own - exact - 1 and (n ** (own - exact)) * exact ** (found + 1) >= most ** (found + 1) * exact ** (
        own - exact
    ):
        found += 1
    return first + exact + found


def _t5(draw: Draw, heads: int) -> tuple[Any, Values, bool]:
    bidirectional, number, most = draw.flag(), draw.pick(8, 16, 32), draw.pick(20, 60, 128)
    table = draw.view((number, heads), cases.DTYPES[draw.dtype()]).array
    draw.fill(table, special=False)

    def values(distances: np.ndarray, queries: np.ndarray) -> np.ndarray:
        near = np.clip(distances, -most, most)  # all farther ones are in the last bucket
        buckets = {int(n): _bucket(int(n), number, bidirectional, most) for n in np.unique(near)}
        index = np.array([buckets[int(n)] for n in near.reshape(-1)], int).reshape(near.shape)
        return np.moveaxis(table.astype(np.float64)[index], -1, 0)

    return fastpe.T5Bias(table, bidirectional=bidirectional, max_distance=most), values, True


def _kerple(draw: Draw, heads: int) -> tuple[Any, Values, bool]:
    kind, symmetric = draw.pick("log", "power"), draw.flag()
    p, a = draw.rng.random(heads) * 1.9 + 0.02, draw.rng.random(heads) * 2 + 0.02

    def values(distances: np.ndarray, queries: np.ndarray) -> np.ndarray:
        return reference.kerple(p, a, np.abs(distances) if symmetric else distances, kind)

    return fastpe.Kerple(p, a, kind, symmetric), values, False


def _sandwich(draw: Draw, heads: int) -> tuple[Any, Values, bool]:
    width = draw.pick(4, 16, 128)
    return fastpe.Sandwich(heads, width), lambda d, q: reference.sandwich(heads, d, width), False


def _fire(draw: Draw, heads: int) -> tuple[Any, Values, bool]:
    w1, b1, w2, b2 = (draw.rng.standard_normal(size) for size in ((4, 1), 4, (heads, 4), heads))
    length = draw.pick(2.0, 10.0, 512.0)
    bias = fastpe.FIRE(w1, b1, w2, b2, 0.1, length)
    return bias, lambda d, q: reference.fire(w1, b1, w2, b2, 0.1, length, d, q), False


# ---- positions -----------------------------------------------------------------------------------------------------------------


def _positions(draw: Draw, shape: tuple[int, ...], far: bool) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Arguments; positions of queries (B or 1, Tq) and of keys (B or 1, Tk)."""
    batch, rows, columns = (shape[0] if len(shape) > 3 else 1), *shape[-2:]
    keys = np.arange(columns)[None]
    centre, span = (draw.pick(0, 0, 10**6, -(10**6)) if far else 0), draw.pick(20, 200, 3000)

    def some(size: int) -> tuple[np.ndarray, np.ndarray]:
        table = draw.rng.integers(centre - span, centre + span, (batch if len(shape) > 3 and draw.flag() else 1, size))
        values = table.astype(draw.pick("i8", "i4", ">i8"))
        return draw.argument(values if len(table) == batch and len(shape) > 3 else values[0]), table

    form = draw.pick("none", "none", "offset", "offset", "offsets", "queries", "keys", "both")
    given: dict[str, Any] = {}
    queries = np.arange(rows)[None] + columns - rows
    if form == "offset":
        ends = (2**31 - 1 - max(rows, columns), -(2**31)) if far else ()
        given["q_offset"] = draw.pick(0, 5, -3, 100, 1000, *ends)
        queries = np.arange(rows)[None] + given["q_offset"]
    if form == "offsets" and len(shape) > 3:
        offsets = draw.rng.integers(-20, 60, batch)
        given["q_offset"] = draw.argument(offsets.astype(draw.pick("i8", "i4")))
        queries = offsets[:, None] + np.arange(rows)
    if form in ("queries", "both"):
        given["q_positions"], queries = some(rows)
    if form == "both" or (form == "keys" and rows <= columns):
        given["k_positions"], keys = some(columns)
        queries = keys[:, columns - rows :] if form == "keys" else queries
    return given, queries, keys


def _judge(
    got: np.ndarray,
    x: np.ndarray,
    values: Values,
    queries: np.ndarray,
    keys: np.ndarray,
    causal: bool,
    scale: float,
    dtype: str,
) -> None:
    distances = queries[:, :, None] - keys[:, None, :]
    if 0 in got.shape:
        return
    bias = np.moveaxis(values(distances, np.broadcast_to(queries[:, :, None], distances.shape)), 0, 1)  # (B, H, Tq, Tk)
    shape = (x.shape[0] if x.ndim > 3 else 1, -1, *x.shape[-3:])
    with np.errstate(all="ignore"):
        rounded = bias if dtype == "float64" else bias.astype(np.float32).astype(np.float64)
        scaled = x.astype(np.float64).reshape(shape) * scale
        expected = scaled + rounded[:, None]
        error = (np.abs(scaled) + np.abs(expected)) * ARITHMETIC[dtype] + SUBNORMAL[dtype]
        error = error + np.abs(bias[:, None]) * (2e-14 if dtype == "float64" else 1.2e-7) + 2e-12
        if causal:
            expected = np.where(distances[:, None, None] < 0, -np.inf, expected)
    assert_within(got.reshape(expected.shape), expected, finite(error), dtype)
    count(VERB, got)


def _ask_otherwise(
    draw: Draw, expected: np.ndarray, x: np.ndarray, bias: Any, queries: np.ndarray, keys: np.ndarray, options: dict[str, Any]
) -> None:
    """The same bits for contiguous scores with positions for every query and key, in one call and query by query."""
    options = {name: options[name] for name in ("causal", "input_scale")}
    where = {"q_positions": queries, "k_positions": keys}
    where = {name: np.broadcast_to(p, (x.shape[0], p.shape[1])) if x.ndim > 3 else p[0] for name, p in where.items()}
    if draw.flag():
        plain = fastpe.add_bias(np.array(x, order="C"), bias, **where, **options)
    else:
        plain, cut = np.array(x, order="C"), draw.integer(0, x.shape[-2])
        for part in (slice(0, cut), slice(cut, None)):
            own = {**where, "q_positions": where["q_positions"][..., part]}
            fastpe.add_bias(plain[..., part, :], bias, **own, **options)
    cases.assert_same_bits(plain, expected)


def _refuse(draw: Draw, x: Any, bias: Any) -> None:
    if x.array.size == 0 or not draw.once_in(4):
        return
    rows, columns = x.array.shape[-2:]
    wrong: dict[str, Any] = {
        "queries": {"q_positions": np.zeros(rows + 1, int)},
        "keys": {"q_positions": np.zeros(rows, int), "k_positions": np.zeros(columns + 1, int)},
        "far": {"q_positions": np.full(rows, 2**31)},
        "both": {"q_offset": 1, "q_positions": np.zeros(rows, int)},
        "real": {"q_positions": np.zeros(rows)},
        "out": {"out": np.zeros(x.array.shape, np.int32)},
    }
    x.snapshot()
    with pytest.raises((TypeError, ValueError), match="add_bias"):
        fastpe.add_bias(x.array, bias, **wrong[draw.pick(*wrong)])
    x.assert_unchanged()
    REFUSALS[VERB] += 1
