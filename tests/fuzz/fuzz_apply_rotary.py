"""``apply_rotary``: q, k or both, of one packed array or two, by formula or by a table."""

from __future__ import annotations

from typing import Any, NamedTuple

import cases
import numpy as np
import pytest
from drawing import LIMIT, Draw, Rows, angle_error, draw_rows, rotary_turns
from judging import REFUSALS, SUBNORMAL, assert_within, count, finite
from reference import many_angles

import fastpe

VERB = "apply_rotary"
WIDTHS = (2, 3, 4, 6, 8, 10, 16, 17, 24, 32, 34, 64, 66, 130)


class Turned(NamedTuple):
    """Cosines and sines of rows, times a factor, and the error of each relative to the norm of a pair."""

    cosines: np.ndarray
    sines: np.ndarray
    factor: np.ndarray
    error: np.ndarray


def check(draw: Draw) -> None:
    shape, axis = draw.shape(WIDTHS)
    heads = [number for number in range(len(shape) - 1) if number != axis][1:]
    given = draw.pick(("q",), ("k",), ("q", "k"), ("q", "k"))
    shapes = {"q": shape, "k": tuple(draw.integer(1, 5) if number in heads else size for number, size in enumerate(shape))}
    dtypes = dict.fromkeys("qk", draw.dtype())
    if draw.once_in(10):
        dtypes["k"] = draw.dtype()
    table = _table(draw, shape, axis) if draw.once_in(6) else None
    encoding = draw_rotary(draw, shape[-1]) if table is None else table
    rows = _rows(draw, encoding, shape, axis)
    inverse, way, seq_axis = draw.flag(), draw.pick("in place", "x is out", "out"), axis - draw.pick(0, len(shape))
    options = {**rows.arguments, "seq_axis": seq_axis, "inverse": inverse}
    packed = heads and len(given) == 2 and dtypes["q"] == dtypes["k"] and way == "in place" and draw.flag()
    strides: dict[str, Any] = {}
    first: dict[str, np.ndarray] = {}
    values: dict[str, np.ndarray] = {}
    with draw.schedule():
        for _ in range(draw.pick(1, 2, 3) if np.prod(shape) < 10_000 else 1):
            views, arrays = _arrays(draw, given, shapes, dtypes, strides, heads[-1] if packed else None)
            for name, array in arrays.items():
                values.setdefault(name, draw.fill(array) if name not in values else array)
                array[...] = values[name]
            for view in views:
                view.snapshot()
            outs = {
                name: draw.view(array.shape, array.dtype, strides.get(f"out {name}", "draw")) for name, array in arrays.items()
            }
            strides.update({f"out {name}": out.array.strides for name, out in outs.items()})
            targets = {name: outs[name].array for name in given} if way == "out" else arrays
            result = tuple(targets.values()) if len(targets) > 1 else next(iter(targets.values()))
            out = {} if way == "in place" else {"out": result}
            got = fastpe.apply_rotary(arrays.get("q"), arrays.get("k"), encoding, **options, **out)
            assert got is result or all(one is other for one, other in zip(got, result, strict=True))
            _watch(views, arrays, outs if way == "out" else {})
            for name, target in targets.items():
                first.setdefault(name, target.copy())
                cases.assert_same_bits(target.copy(), first[name])
        for name in given:
            _judge(name, first[name], values[name], encoding, rows, inverse, dtypes[name])
            _ask_otherwise(draw, name, first[name], values[name], encoding, rows, axis, inverse)
        _refuse(draw, views, arrays, encoding, axis)


def _arrays(
    draw: Draw, given: Any, shapes: Any, dtypes: Any, strides: Any, packed: int | None
) -> tuple[list[Any], dict[str, Any]]:
    """Views in guarded memory and the arrays to rotate; slices of one array along the axis ``packed``."""
    if packed is None:
        views = {name: draw.view(shapes[name], cases.DTYPES[dtypes[name]], strides.get(name, "draw")) for name in given}
        strides.update({name: view.array.strides for name, view in views.items()})
        return list(views.values()), {name: view.array for name, view in views.items()}
    counts = shapes["q"][packed], shapes["k"][packed]
    whole = list(shapes["q"])
    whole[packed] = sum(counts) + 1  # values, which stay
    view = draw.view(tuple(whole), cases.DTYPES[dtypes["q"]], strides.get("packed", "draw"))
    strides["packed"] = view.array.strides
    before = (slice(None),) * packed
    return [view], {"q": view.array[(*before, slice(0, counts[0]))], "k": view.array[(*before, slice(counts[0], sum(counts)))]}


def _watch(views: list[Any], arrays: dict[str, Any], outs: dict[str, Any]) -> None:
    for view in views:
        if outs:
            view.assert_unchanged()
        else:
            view.assert_only_elements_written()
    for out in outs.values():
        out.assert_only_elements_written()


# ---- encodings -----------------------------------------------------------------------------------------------------------------


def draw_rotary(draw: Draw, head_dim: int) -> fastpe.Rotary:
    first = draw.integer(0, head_dim - 2) if draw.once_in(3) else 0
    width = head_dim - first
    if width % 2 or draw.once_in(3):
        width = 2 * draw.integer(1, width // 2)
    options: dict[str, Any] = {"rotary_dim": width, "rotary_offset": first, "interleaved": draw.flag()}
    if width >= 4 and draw.once_in(4):
        options.update(_sections(draw, width // 2))
    if draw.once_in(4):
        options["attention_factor"] = draw.pick(1.2, 0.7, 3.0)
    if draw.once_in(6):
        options.update(xpos_scale_base=draw.pick(512, 2, 4096, 1e6), xpos_centre=draw.pick(0, 100, -7))
    return fastpe.Rotary(draw.pick(10000.0, 500_000.0, 1.0000001, 0.3, 1e9), **options)


def _sections(draw: Draw, pairs: int) -> dict[str, Any]:
    layout, axes = draw.pick("contiguous", "interleaved", "alternating"), 2 if pairs < 3 else draw.pick(2, 3)
    if layout == "alternating":
        others = draw.integer(0, pairs // (axes - 1))
        sizes = (pairs - others * (axes - 1), *(others,) * (axes - 1))
    elif layout == "contiguous":
        cuts = sorted(draw.integer(0, pairs) for _ in range(axes - 1))
        sizes = tuple(end - start for start, end in zip((0, *cuts), (*cuts, pairs), strict=True))
    else:
        others = [draw.integer(0, len(range(axis, pairs, axes))) for axis in range(1, axes)]
        sizes = (pairs - sum(others), *others)
    own = {"section_frequencies": "own"} if draw.flag() else {}
    return {"sections": sizes, "section_layout": layout, **own}


def _axes(encoding: fastpe.Rotary, pairs: int) -> list[int]:
    """The axis of each frequency, one after the other."""
    sizes = encoding.sections
    if sizes is None:
        return [0] * pairs
    if encoding.section_layout == "contiguous":
        return [axis for axis, size in enumerate(sizes) for _ in range(size)]
    if encoding.section_layout == "alternating":
        return [1 + i % (len(sizes) - 1) for i in range(pairs - sizes[0])] + [0] * sizes[0]
    return [i % len(sizes) if i // len(sizes) < sizes[i % len(sizes)] else 0 for i in range(pairs)]


def _table(draw: Draw, shape: tuple[int, ...], axis: int) -> Any:
    pairs, size = draw.integer(1, shape[-1] // 2), draw.integer(max(1, shape[axis]), shape[axis] + 20)
    kind = cases.DTYPES[draw.dtype()]
    step = draw.pick(1, 1, -1) * (pairs * kind.itemsize + draw.pick(0, 0, kind.itemsize, 3 * kind.itemsize))
    tables = [draw.view((size, pairs), kind, (step, kind.itemsize)).array for _ in range(2)]
    for one in tables:
        draw.fill(one, special=False)
    return fastpe.Rotary.tabulated(*tables, interleaved=draw.flag(), rotary_offset=draw.integer(0, shape[-1] - 2 * pairs))


def _rows(draw: Draw, encoding: Any, shape: tuple[int, ...], axis: int) -> Rows:
    if not isinstance(encoding, fastpe.Rotary):
        return draw_rows(draw, shape, axis, limit=encoding.cos.shape[0], real=False, by_row=False)
    axes = None if encoding.sections is None else len(encoding.sections)
    return draw_rows(draw, shape, axis, axes=axes, far=LIMIT if encoding.xpos_scale_base is None else 300, by_row=False)


def turned(encoding: Any, rows: Rows, dtype: str, name: str, inverse: bool, head_dim: int) -> Turned:
    """What turns each row, (..., pairs), as the formula says."""
    if not isinstance(encoding, fastpe.Rotary):
        where = np.where(rows.kept, rows.units >> 32, 0)
        real = np.float64 if dtype == "float64" else np.float32
        cosines, sines = (one.astype(real).astype(np.float64)[where] for one in (encoding.cos, encoding.sin))
        size = np.abs(cosines) + np.abs(sines)
        return Turned(cosines, -sines if inverse else sines, size, size * (2.0**-52 if dtype == "float64" else 2.0**-23))
    width = encoding.width(head_dim)
    by_axis = rows.units if encoding.sections is not None else rows.units[None]
    axes = np.array(_axes(encoding, width // 2))
    turns = rotary_turns(encoding.base, width).copy()
    if encoding.section_frequencies == "own":
        for axis in range(len(by_axis)):
            turns[:, axes == axis] = rotary_turns(encoding.base, 2 * np.count_nonzero(axes == axis))
    units = np.moveaxis(by_axis[axes], 0, -1)
    angle = np.empty(units.shape)
    for axis in range(len(by_axis)):
        angle[..., axes == axis] = many_angles(by_axis[axis], turns[:, axes == axis])
    factor = np.full(angle.shape, encoding.attention_factor or 1.0)
    factor = 1 / factor if inverse else factor
    error = (1.2e-15 if dtype == "float64" else 3.3e-7) + angle_error(units)
    if encoding.xpos_scale_base is not None:
        z = (2 * np.arange(width // 2) + 0.4 * width) / (1.4 * width)
        exponent = (units / 2.0**32 - encoding.xpos_centre) / encoding.xpos_scale_base
        factor = factor * z ** (exponent if (name == "q") != inverse else -exponent)
        error = error + (5e-14 + np.abs(exponent) * 2e-15 if dtype == "float64" else 2e-7)
    sines = np.sin(angle) * factor
    return Turned(np.cos(angle) * factor, -sines if inverse else sines, factor, error * factor)


def rotated(
    x: np.ndarray, one: Any, other: Any, turned_by: Turned, kept: np.ndarray, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """x in float64 with the pairs of channels (one, other) turned, and the error."""
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        u, v = wide[..., one], wide[..., other]
        expected, error = wide.copy(), np.zeros(wide.shape)
        expected[..., one] = u * turned_by.cosines - v * turned_by.sines
        expected[..., other] = v * turned_by.cosines + u * turned_by.sines
        error[..., one] = error[..., other] = finite(np.hypot(u, v) * turned_by.error) + 4 * SUBNORMAL[dtype] + 4e-320
    kept = np.broadcast_to(kept, x.shape[:-1])[..., None]
    return np.where(kept, expected, wide), np.where(kept, error, 0.0)


def pairs_of(encoding: Any, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    first, i = encoding.rotary_offset, np.arange(pairs)
    return (first + 2 * i, first + 2 * i + 1) if encoding.interleaved else (first + i, first + i + pairs)


def _judge(name: str, got: np.ndarray, x: np.ndarray, encoding: Any, rows: Rows, inverse: bool, dtype: str) -> None:
    turned_by = turned(encoding, rows, dtype, name, inverse, x.shape[-1])
    one, other = pairs_of(encoding, turned_by.cosines.shape[-1])
    expected, error = rotated(x, one, other, turned_by, rows.kept, dtype)
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        infinite = ~np.isfinite(wide[..., one]) | ~np.isfinite(wide[..., other])
        # infinity times an angle whose sine or cosine is as good as zero: its sign is the rounding's
        least = np.minimum(np.abs(turned_by.cosines), np.abs(turned_by.sines))
        unsure = infinite & (least < 1e-8 * turned_by.factor)
        if getattr(encoding, "xpos_scale_base", None) is not None and dtype != "float64":  # factors at the end of float32
            unsure |= (turned_by.factor > 1e36) | (turned_by.factor < 1e-36)
        for channels in (one, other):
            expected[..., channels] = np.where(unsure, got[..., channels].astype(np.float64), expected[..., channels])
    assert_within(got, expected, error, dtype)
    count(VERB, got)


def _ask_otherwise(
    draw: Draw, name: str, expected: np.ndarray, x: np.ndarray, encoding: Any, rows: Rows, axis: int, inverse: bool
) -> None:
    """The same bits alone, contiguous, with a position for each row."""
    positions = rows.positions
    if positions is None or 0 in x.shape:
        return
    lead = positions.shape[: positions.ndim - (x.ndim - 1)]
    batch = None if x.ndim == 2 else 1 if axis == 0 else 0
    sizes = tuple(size for number, size in enumerate(x.shape[:-1]) if number in (batch, axis))
    heads = [number + len(lead) for number in range(x.ndim - 1) if number not in (batch, axis)]
    whole = [size if number in (batch, axis) else 1 for number, size in enumerate(x.shape[:-1])]
    table = np.broadcast_to(positions, (*lead, *whole)).reshape(*lead, *sizes)
    assert len(heads) + len(sizes) == x.ndim - 1
    alone = np.array(x, order="C")
    arrays = (alone, None) if name == "q" else (None, alone)
    fastpe.apply_rotary(*arrays, encoding, positions=table, seq_axis=axis, inverse=inverse)
    cases.assert_same_bits(np.where(rows.kept[..., None], alone, x), expected)


def _refuse(draw: Draw, views: list[Any], arrays: dict[str, Any], encoding: Any, axis: int) -> None:
    some = next(iter(arrays.values()))
    if any(array.size == 0 for array in arrays.values()) or not draw.once_in(4):
        return
    rows = some.shape[axis]
    wrong = {
        "positions": {"positions": np.full(rows, np.nan)},
        "positions' length": {"positions": np.zeros(rows + 1, int)},
        "mask": {"mask": np.ones(rows + 1, bool)},
        "offset": {"offset": LIMIT - rows + 1},
        "boundaries": {"cu_seqlens": np.array([1, rows])},
        "out": {"out": np.zeros(some.shape, np.int32)},
        "overlap": {},
    }
    name = draw.pick(*wrong)
    q, k = (some, some) if name == "overlap" else (arrays.get("q"), arrays.get("k"))
    for view in views:
        view.snapshot()
    with pytest.raises((TypeError, ValueError, IndexError)):
        fastpe.apply_rotary(q, k, encoding, seq_axis=axis, **wrong[name])
    for view in views:
        view.assert_unchanged()
    REFUSALS[VERB] += 1
