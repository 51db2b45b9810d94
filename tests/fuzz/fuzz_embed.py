"""``embed``: ids into guarded tables of every type, token types, integer tables, padding, and positions of every form."""

from __future__ import annotations

from typing import Any, NamedTuple

import cases
import numpy as np
import pytest
import reference
from drawing import Draw, Rows, draw_rows, sinusoidal
from judging import ARITHMETIC, REFUSALS, SUBNORMAL, assert_within, count, finite

import fastpe

VERB = "embed"
# Element types of the table, the token types, the learned positions and the result, and what is added: each is a kernel to compile.
COMBINATIONS = (
    ("float32", None, None, "float32", "sinusoidal"),
    ("float32", None, None, "float32", "nothing"),
    ("float16", None, None, "float32", "sinusoidal"),
    ("bfloat16", None, None, "bfloat16", "sinusoidal"),
    ("int8", None, None, "float16", "sinusoidal"),
    ("uint8", None, None, "float32", "nothing"),
    ("float64", None, None, "float64", "sinusoidal"),
    ("float32", "float32", "float32", "float32", "learned"),
    ("int8", "float64", "float32", "bfloat16", "learned"),
    ("float64", None, None, "float16", "nothing"),
)
TYPES = 3
DTYPES = {**cases.DTYPES, "int8": np.dtype(np.int8), "uint8": np.dtype(np.uint8)}


class Tables(NamedTuple):
    """Arrays that are only read, and the arguments that say so."""

    table: Any
    types: Any
    learned: Any
    options: dict[str, Any]
    scales: np.ndarray
    zeros: np.ndarray

    def assert_unchanged(self) -> None:
        for view in (self.table, self.types, self.learned):
            if view is not None:
                view.assert_unchanged()


def check(draw: Draw) -> None:
    first, second, learned, dtype, adds = draw.pick(*COMBINATIONS)
    shape, axis = _shape(draw)
    width = shape[-1]
    tables = _tables(draw, (first, second, learned), shape)
    ids_values = draw.rng.integers(0, tables.table.array.shape[0], shape[:-1])
    rows, padding, encoding = _positions(draw, tables, adds, shape, axis, ids_values)
    scale = draw.pick(1.0, 22.6, -0.5)
    options = {"scale": scale, **tables.options, **rows.arguments}
    if padding is not None:
        options["padding_idx"] = padding
    kinds = draw.rng.integers(0, TYPES, shape[:-1])
    if tables.types is not None:
        options["token_types"] = (draw.argument(kinds.astype(draw.pick("i8", "i4"))), tables.types.array)
    ids = draw.argument(ids_values.astype(draw.pick("i8", "i4", "u1", ">i8", "u8")))
    with draw.schedule():
        plain = fastpe.embed(ids, tables.table.array, encoding, dtype=DTYPES[dtype], **options)
        strides = "draw"
        for _ in range(draw.pick(1, 2, 3) if plain.size < 10_000 else 1):
            out = draw.view(shape, DTYPES[dtype], strides)
            strides = out.array.strides
            assert fastpe.embed(ids, tables.table.array, encoding, out=out.array, **options) is out.array
            out.assert_only_elements_written()
            tables.assert_unchanged()
            cases.assert_same_bits(out.array.copy(), plain)
        _judge(plain, tables, ids_values, kinds, rows, encoding, scale, (first, second, learned, dtype))
        if adds == "sinusoidal" and first == dtype and rows.kept.all() and rows.positions is not None:
            added = np.array(tables.table.array[ids_values], order="C")
            positions = np.broadcast_to(rows.positions, shape[:-1])
            fastpe.add_encoding(added, encoding, positions=positions, input_scale=scale)
            cases.assert_same_bits(added.reshape(plain.shape), plain)
        _refuse(draw, tables.table.array, ids_values, encoding, width, DTYPES[dtype])


def _shape(draw: Draw) -> tuple[tuple[int, ...], int]:
    """A shape ids.shape + (D,); T is the last axis of ids."""
    shape, axis = draw.shape((1, 2, 3, 7, 8, 16, 17, 31, 32, 33, 64, 65, 100), (2, 2, 3, 3, 3, 4, 5))
    order = [number for number in range(len(shape) - 1) if number != axis] + [axis, len(shape) - 1]
    return tuple(shape[number] for number in order), len(shape) - 2


def _tables(draw: Draw, kinds: tuple[str, str | None, str | None], shape: tuple[int, ...]) -> Tables:
    width, rows = shape[-1], draw.integer(1, 29)

    def table(size: int, kind: str | None) -> Any:
        if kind is None:
            return None
        itemsize = DTYPES[kind].itemsize
        step = draw.pick(1, 1, -1) * (width * itemsize + draw.pick(0, 0, itemsize, 3 * itemsize, 1))
        view = draw.view((size, width), DTYPES[kind], (step, itemsize))
        if kind in ("int8", "uint8"):
            view.array[...] = draw.rng.integers(0, 256, (size, width)).astype(np.uint8).view(DTYPES[kind])
        else:
            draw.fill(view.array)
        view.snapshot()
        return view

    made = table(rows, kinds[0]), table(TYPES, kinds[1]), table(draw.integer(max(1, shape[-2]), shape[-2] + 30), kinds[2])
    options: dict[str, Any] = {}
    scales, zeros = np.ones(rows), np.zeros(rows)
    if kinds[0] in ("int8", "uint8"):
        scales = draw.rng.random(rows) * 0.1
        zeros = np.full(rows, 0.0 if kinds[0] == "int8" else 128.0)
        options["row_scale"] = draw.argument(scales)
        if draw.flag():
            zeros = draw.rng.integers(-5, 200, rows).astype(np.float64)
            options["row_scale"] = (draw.argument(scales), draw.argument(zeros.astype(np.int64)))
    return Tables(*made, options, scales, zeros)


def _positions(
    draw: Draw, tables: Tables, adds: str, shape: tuple[int, ...], axis: int, ids: np.ndarray
) -> tuple[Rows, int | None, Any]:
    encoding: Any = None
    if adds == "sinusoidal":
        encoding = fastpe.Sinusoidal(draw.pick(10000.0, 100.0, 1e6), draw.pick(*cases.LAYOUTS), draw.flag(), amplitude=0.5)
    if adds == "learned":
        encoding = fastpe.Learned(tables.learned.array, draw.pick("clip", "error"))
    bounded = adds == "learned" and not encoding.clips
    limit = tables.learned.array.shape[0] if bounded else None
    padding = draw.integer(0, tables.table.array.shape[0] - 1) if len(shape) <= 3 and draw.once_in(4) else None
    rows = draw_rows(draw, shape, axis, limit=limit, real=adds == "sinusoidal", masks=padding is None)
    if encoding is None:
        rows = rows._replace(arguments={name: value for name, value in rows.arguments.items() if name == "mask"})
    if padding is None:
        return rows, None, encoding
    kept = (ids != padding).reshape(shape[0] if len(shape) == 3 else 1, shape[axis])
    given = rows.arguments
    if encoding is not None and "positions" not in given:
        where = {name: np.asarray(value) if name == "cu_seqlens" else value for name, value in given.items()}
        units = reference.rows(kept.shape, mask=kept, **where) << 32
        return Rows(given, units.reshape(shape[:-1]), kept.reshape(shape[:-1])), padding, encoding
    return Rows(given, rows.units, kept.reshape(shape[:-1])), padding, encoding


def _judge(
    got: np.ndarray, tables: Tables, ids: np.ndarray, kinds: np.ndarray, rows: Rows, encoding: Any, scale: float, types: Any
) -> None:
    arithmetic = "float64" if "float64" in types else "float32"
    unit = ARITHMETIC[arithmetic]
    with np.errstate(all="ignore"):
        total = tables.table.array.astype(np.float64)[ids]
        error = np.zeros(total.shape)
        if types[0] in ("int8", "uint8"):
            total = (total - tables.zeros[ids][..., None]) * tables.scales[ids][..., None]
            error = 3 * unit * np.abs(total)
        total = total * scale
        error = error * abs(scale) + 2 * unit * np.abs(total)
        if tables.types is not None:
            total = total + tables.types.array.astype(np.float64)[kinds]
            error = error + unit * np.abs(total)
        if isinstance(encoding, fastpe.Sinusoidal):
            values, angles = sinusoidal(encoding, rows.units, total.shape[-1])
            total = total + values
            error = error + angles + abs(encoding.amplitude) * (1e-15 if arithmetic == "float64" else 2e-7)
        if isinstance(encoding, fastpe.Learned):
            last = encoding.table.shape[0] - 1
            total = total + encoding.table.astype(np.float64)[np.clip(rows.units >> 32, 0, last)]
        error = error + 2 * unit * np.abs(total) + 4 * SUBNORMAL[arithmetic]
        expected = np.where(rows.kept[..., None], total, 0.0)
    assert_within(got, expected, finite(error), types[3])
    count(VERB, got)


def _refuse(draw: Draw, table: np.ndarray, ids: np.ndarray, encoding: Any, width: int, dtype: Any) -> None:
    if ids.size == 0 or not draw.once_in(4):
        return
    out = draw.view((*ids.shape, width), dtype)
    wrong = ids.astype(np.int64)
    wrong.reshape(-1)[draw.integer(0, ids.size - 1)] = draw.pick(-1, table.shape[0], 2**40, -(2**63))
    scale = {"row_scale": np.ones(table.shape[0])} if table.dtype.itemsize == 1 else {}
    with pytest.raises(IndexError, match="embed"):
        fastpe.embed(wrong, table, encoding, out=out.array, **scale)
    out.assert_unchanged()
    REFUSALS[VERB] += 1
