"""x*input_scale + f_h(key - query), and -inf where the key comes after the query, for the CPU: the twin of ``add_toeplitz.cu``.

A bias of a distance is a vector f for each head, along which row after row moves by one: no matrix of them is ever made.

    x, out: (B, H, Tq, Tk), byte strides of any sign and size, f16 | bf16 | f32 | f64; x may be out
    values: f_h(low), f_h(low + 1), ..., f_h(high), f32, or f64 of f64 arrays, by batch, head and row (byte strides, which may be 0);
        what lies below or above counts as low or high. With `by_column` f_h is not of the distance but of the number of the column
    slopes: (H,) f64, or 0; then f_h is slope*distance, or with `symmetric` -slope*abs(distance), and there are no values
    queries: (B, Tq) int64 in units of 2^-32, byte strides, or 0: row i stands at start + i
    keys: (B, Tk) int64 in units of 2^-32, byte strides, or 0: column j stands at j
    causal: whether columns whose position is above their row's become -inf; where columns stand at j they are not read

A multiply, then an add, each rounded in f32, or f64 of f64 arrays, and once more at the store. What is not a position makes NaN.

Where columns stand at j, a row is f_h(low) so many times, then a run of f, then f_h(high), then -inf, each a loop over explicit
vectors that asks for x ahead of time. Otherwise a block of values is gathered into a room and then added. What is past the caches is
filled with -inf past the caches, too. Threads share rows (`sharing.py`). Bytes moved per element: read and write of x, and 4 to 8
from the first-level cache; one write of what is causal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from . import arithmetic as a
from . import blocks as at
from . import lanes, sharing
from .lanes import I64, Lanes
from .rows import either, steps, vectors
from .sharing import WORD, claim_chunk, emitted, fetch_add, load_word, number, set_word, word

SIGNATURE = sharing.SIGNATURE

# How it goes about it, settled by who calls (`blocks.py`): ROWS_PER_CHUNK counts rows of all heads and sequences;
#   CONTIGUOUS   whether the elements of a row lie one behind the other
#   DENSE        whether the rows of a head do, too
#   STREAMS      1: -inf is written past the caches, 2: so is everything else (not in place; elements aligned)
BLOCK = 512  # values gathered at a time, into a room
NAN_WORD = 0x7FC000007FC00000  # NaN as a float64, and as two float32


@sharing.inline
def query_of(call, b, i):
    if word(call, at.T_QUERIES) == 0:
        return word(call, at.T_START) + (i << 32)
    return word(
        word(call, at.T_QUERIES) + b * word(call, at.T_QUERIES_BATCH_STRIDE) + i * word(call, at.T_QUERIES_ROW_STRIDE), 0
    )


@sharing.inline
def between(value, low, high):
    return min(max(value, low), high)


# ---- loops over columns ------------------------------------------------------------------------------------------------------


def _real(element: a.Element) -> Any:
    return types.float64 if element.real is lanes.F64 else types.float32


def _on_lines(
    builder: ir.IRBuilder, element: a.Element, target: ir.Value, number: ir.Value, do: Callable[[ir.Value, int, bool], None]
) -> None:
    """A loop over elements in whole lines of the target, and by ones before and behind them."""
    item = element.itemsize
    before = builder.udiv(builder.and_(builder.neg(target), I64(at.LINE_BYTES - 1)), I64(item))
    before = builder.select(builder.icmp_signed("<", before, number), before, number)
    for index in steps(builder, I64(0), before, 1):
        do(index, 1, False)
    for index, count in vectors(builder, builder.sub(number, before), at.LINE_BYTES // item):
        do(builder.add(before, index), count, count > 1)


def run_adder(element: a.Element, is_constant: bool, streams: bool) -> Any:
    """Make ``add_run``: values one behind the other, or one value again and again, to so many contiguous elements."""
    item, size = element.itemsize, element.real_bytes

    @emitted(types.void, WORD, WORD, WORD, WORD, _real(element), WORD)
    def add_run(builder, values, source, target, number, scale, ahead):  # type: ignore[no-untyped-def]
        constant = lanes.load(builder, values, element.real, 1, size) if is_constant else None

        def add(index: ir.Value, count: int, streams: bool) -> None:
            if constant is None:
                found = lanes.load(builder, builder.add(values, builder.mul(index, I64(size))), element.real, count, size)
            else:
                found = lanes.spread(builder, builder.extract_element(constant.value, lanes.I32(0)), count)
            x, out = (builder.add(base, builder.mul(index, I64(item))) for base in (source, target))
            a.add(element, True, found, x, out, scale, ahead, streams)

        if streams:
            _on_lines(builder, element, target, number, add)
        else:
            for index, count in vectors(builder, number, at.LINE_BYTES // item):
                add(index, count, False)

    return add_run


def run_filler(element: a.Element, streams: bool) -> Any:
    """Make ``fill_run``: so many contiguous elements become -inf."""

    @emitted(types.void, WORD, WORD)
    def fill_run(builder, target, number):  # type: ignore[no-untyped-def]
        def fill(index: ir.Value, count: int, streams: bool) -> None:
            place = builder.add(target, builder.mul(index, I64(element.itemsize)))
            infinite = lanes.spread(builder, ir.Constant(element.real, -np.inf), count)
            lanes.store(element.write(infinite), place, at.LINE_BYTES if streams else 1, streams)

        if streams:
            _on_lines(builder, element, target, number, fill)
        else:
            for index, count in vectors(builder, number, at.LINE_BYTES // element.itemsize):
                fill(index, count, False)

    return fill_run


def strided_adder(element: a.Element) -> Any:
    """Make ``add_strided``: values so many bytes apart to elements of any strides."""
    size = element.real_bytes

    @emitted(types.void, WORD, WORD, WORD, WORD, WORD, WORD, WORD, _real(element))
    def add_strided(builder, values, step, source, x_step, target, out_step, number, scale):  # type: ignore[no-untyped-def]
        for index in steps(builder, I64(0), number, 1):
            value, x, out = (
                builder.add(base, builder.mul(index, stride))
                for base, stride in ((values, step), (source, x_step), (target, out_step))
            )
            a.add(element, True, lanes.load(builder, value, element.real, 1, size), x, out, scale, I64(0))

    return add_strided


def strided_filler(element: a.Element) -> Any:
    """Make ``fill_strided``: elements so many bytes apart become -inf."""

    @emitted(types.void, WORD, WORD, WORD)
    def fill_strided(builder, target, step, number):  # type: ignore[no-untyped-def]
        infinite = element.write(lanes.spread(builder, ir.Constant(element.real, -np.inf), 1))
        for index in steps(builder, I64(0), number, 1):
            lanes.store(infinite, builder.add(target, builder.mul(index, step)), 1)

    return fill_strided


# ---- columns at any positions ------------------------------------------------------------------------------------------------


def _key(builder: ir.IRBuilder, keys: ir.Value, step: ir.Value, column: ir.Value, tabulated: bool) -> ir.Value:
    """Where a column stands, in units of 2^-32."""
    if not tabulated:
        return builder.shl(column, I64(32))
    return builder.load(builder.inttoptr(builder.add(keys, builder.mul(column, step)), I64.as_pointer()))


def value_gatherer(element: a.Element) -> Any:
    """Make ``gather_values``: those of the columns first ... first + number - 1, into a room."""
    size, real = element.real_bytes, element.real

    @emitted(types.void, WORD, WORD, types.float64, WORD, WORD, WORD, WORD, WORD)
    def gather_values(builder, call, values, slope, keys, query, first, number, room):  # type: ignore[no-untyped-def]
        low, high, step = (load_word(builder, call, place) for place in (at.T_LOW, at.T_HIGH, at.T_KEYS_COLUMN_STRIDE))
        by_column, linear, symmetric = (
            builder.icmp_signed("!=", load_word(builder, call, place), I64(0))
            for place in (at.T_BY_COLUMN, at.T_SLOPES, at.T_SYMMETRIC)
        )
        lost, place = builder.icmp_signed("==", query, I64(a.NOT_A_POSITION)), builder.ashr(query, I64(32))

        def of_distance(distance: ir.Value) -> ir.Value:
            behind = builder.icmp_signed("<", distance, I64(0))
            far = builder.select(behind, builder.neg(distance), distance)
            bent = builder.select(symmetric, builder.neg(far), distance)
            product = builder.fmul(slope, builder.sitofp(bent, lanes.F64))
            product = builder.fadd(product, ir.Constant(lanes.F64, 0.0))  # no -0
            return product if real is lanes.F64 else builder.fptrunc(product, real)

        def of_table(distance: ir.Value, column: ir.Value) -> ir.Value:
            for bound, relation in ((low, "<"), (high, ">")):
                distance = builder.select(builder.icmp_signed(relation, distance, bound), bound, distance)
            index = builder.select(by_column, column, builder.sub(distance, low))
            found = builder.add(values, builder.mul(index, I64(size)))
            return builder.load(builder.inttoptr(found, real.as_pointer()), align=size)

        for tabulated in either(builder, builder.icmp_signed("!=", keys, I64(0))):
            for is_linear in either(builder, linear):
                for index in steps(builder, I64(0), number, 1):
                    column = builder.add(first, index)
                    key = _key(builder, keys, step, column, tabulated)
                    distance = builder.sub(builder.ashr(key, I64(32)), place)
                    value = of_distance(distance) if is_linear else of_table(distance, column)
                    nowhere = builder.or_(lost, builder.icmp_signed("==", key, I64(a.NOT_A_POSITION)))
                    value = builder.select(nowhere, ir.Constant(real, np.nan), value)
                    target = builder.add(room, builder.mul(index, I64(size)))
                    builder.store(value, builder.inttoptr(target, real.as_pointer()), align=size)

    return gather_values


def future_filler(element: a.Element) -> Any:
    """Make ``fill_future``: of the columns first ... first + number - 1 those that come after the query become -inf."""

    @emitted(types.void, WORD, WORD, WORD, WORD, WORD, WORD, WORD)
    def fill_future(builder, call, keys, query, first, number, target, out_step):  # type: ignore[no-untyped-def]
        step = load_word(builder, call, at.T_KEYS_COLUMN_STRIDE)
        infinite: Lanes = element.write(lanes.spread(builder, ir.Constant(element.real, -np.inf), 1))
        for tabulated in either(builder, builder.icmp_signed("!=", keys, I64(0))):
            for index in steps(builder, I64(0), number, 1):
                key = _key(builder, keys, step, builder.add(first, index), tabulated)
                with builder.if_then(builder.icmp_signed(">", key, query)):
                    lanes.store(infinite, builder.add(target, builder.mul(index, out_step)), 1)

    return fill_future


# ---- rows --------------------------------------------------------------------------------------------------------------------


def build(dtype: str) -> Any:
    """Return the kernel, not compiled yet, of an element type."""
    element = a.ELEMENTS[dtype]
    real, size, item = element.number, element.real_bytes, element.itemsize
    add_values, add_constant = run_adder(element, False, False), run_adder(element, True, False)
    stream_values, stream_constant = run_adder(element, False, True), run_adder(element, True, True)
    fill, stream_fill = run_filler(element, False), run_filler(element, True)
    add_strided, fill_strided = strided_adder(element), strided_filler(element)
    gather_values, fill_future = value_gatherer(element), future_filler(element)
    inline = sharing.inline_as(f"toeplitz_{element.suffix}")

    @inline
    def add_piece(call, control, values, is_constant, source, target, count, scale, ahead):
        """So many columns, to which values one behind the other are added, or one value to all of them."""
        if word(control, at.CONTIGUOUS) == 0:
            x_step, out_step = word(call, at.T_X_COLUMN_STRIDE), word(call, at.T_OUT_COLUMN_STRIDE)
            add_strided(values, np.int64(0) if is_constant else np.int64(size), source, x_step, target, out_step, count, scale)
        elif word(control, at.STREAMS) == 2:
            if is_constant:
                stream_constant(values, source, target, count, scale, ahead)
            else:
                stream_values(values, source, target, count, scale, ahead)
        elif is_constant:
            add_constant(values, source, target, count, scale, ahead)
        else:
            add_values(values, source, target, count, scale, ahead)

    @inline
    def fill_piece(call, control, target, count):
        if word(control, at.CONTIGUOUS) == 0:
            fill_strided(target, word(call, at.T_OUT_COLUMN_STRIDE), count)
        elif word(control, at.STREAMS) != 0:
            stream_fill(target, count)
        else:
            fill(target, count)

    @inline
    def add_in_order(call, control, room, values, query, source, target, scale):
        """A row whose columns stand at 0, 1, ...: the ends of f, what lies between them, and -inf."""
        columns, low = word(call, at.T_COLUMNS), word(call, at.T_LOW)
        x_step, out_step, lost = word(call, at.T_X_COLUMN_STRIDE), word(call, at.T_OUT_COLUMN_STRIDE), query == a.NOT_A_POSITION
        place, limit = query >> 32, columns
        if word(call, at.T_CAUSAL) != 0 and not lost:
            limit = between(place + 1, 0, columns)
        first, second = np.int64(0), limit
        if lost:
            set_word(room, 0, NAN_WORD)
            first = limit
        elif word(call, at.T_BY_COLUMN) == 0:
            first = between(place + low, 0, limit)
            second = between(place + word(call, at.T_HIGH) + 1, first, limit)
        # Near its end it is a later row that is asked for, as what comes behind it is not read, or lies elsewhere.
        ahead, split = np.int64(at.AHEAD_BYTES), limit
        if word(control, at.DENSE) == 0 or limit < columns:
            split = max(0, limit - at.AHEAD_BYTES // item)
        begin = np.int64(0)
        while begin < limit:
            is_constant, end = begin < first or begin >= second, limit
            if begin < second:
                end = first if begin < first else second
            if begin < split:
                end = min(end, split)
            else:
                ahead = word(control, at.AHEAD) - split * item
            value_at = values
            if lost:
                value_at = room
            elif begin >= first:
                index = begin if word(call, at.T_BY_COLUMN) != 0 else min(begin - place, word(call, at.T_HIGH)) - low
                value_at = values + index * size
            add_piece(
                call,
                control,
                value_at,
                is_constant,
                source + begin * x_step,
                target + begin * out_step,
                end - begin,
                scale,
                ahead,
            )
            begin = end
        if limit < columns:
            fill_piece(call, control, target + limit * out_step, columns - limit)

    @inline
    def add_gathered(call, control, room, values, b, h, query, source, target, scale):
        """A row whose columns stand anywhere, a block at a time."""
        columns, keys = word(call, at.T_COLUMNS), word(call, at.T_KEYS)
        x_step, out_step, slope = word(call, at.T_X_COLUMN_STRIDE), word(call, at.T_OUT_COLUMN_STRIDE), 0.0
        if word(call, at.T_SLOPES) != 0:
            slope = number(word(call, at.T_SLOPES), h)
        if keys != 0:
            keys += b * word(call, at.T_KEYS_BATCH_STRIDE)
        begin = np.int64(0)
        while begin < columns:
            count = min(BLOCK, columns - begin)
            out = target + begin * out_step
            gather_values(call, values, slope, keys, query, begin, count, room)
            add_piece(call, control, room, False, source + begin * x_step, out, count, scale, np.int64(at.AHEAD_BYTES))
            if word(call, at.T_CAUSAL) != 0 and query != a.NOT_A_POSITION:
                fill_future(call, keys, query, begin, count, out, out_step)
            begin += count

    @inline
    def add_row(call, control, room, b, h, i, scale):
        source = word(call, at.T_X) + b * word(call, at.T_X_BATCH_STRIDE) + h * word(call, at.T_X_HEAD_STRIDE)
        target = word(call, at.T_OUT) + b * word(call, at.T_OUT_BATCH_STRIDE) + h * word(call, at.T_OUT_HEAD_STRIDE)
        source, target = source + i * word(call, at.T_X_ROW_STRIDE), target + i * word(call, at.T_OUT_ROW_STRIDE)
        values = word(call, at.T_VALUES) + b * word(call, at.T_VALUES_BATCH_STRIDE) + h * word(call, at.T_VALUES_HEAD_STRIDE)
        values, query = values + i * word(call, at.T_VALUES_ROW_STRIDE), query_of(call, b, i)
        if word(call, at.T_KEYS) == 0 and word(call, at.T_SLOPES) == 0:
            add_in_order(call, control, room, values, query, source, target, scale)
        else:
            add_gathered(call, control, room, values, b, h, query, source, target, scale)

    @inline
    def work(call, control, number_of_room):
        """Work off chunks until there are none."""
        scale = real(number(call, at.T_INPUT_SCALE))
        room, rooms = word(control, at.SCRATCH) + number_of_room * word(control, at.ROOM_BYTES), word(control, at.ROOMS)
        rows, heads, rows_per_chunk = word(call, at.T_ROWS), word(call, at.T_HEADS), word(control, at.ROWS_PER_CHUNK)
        all_rows = word(call, at.T_BATCH) * heads * rows
        turn, share = 0, number_of_room
        while turn < rooms:
            chunk = claim_chunk(control, share)
            if chunk < 0:
                turn, share = turn + 1, (share + 1) % rooms
                continue
            row, last = chunk * rows_per_chunk, min(all_rows, (chunk + 1) * rows_per_chunk)
            while row < last:
                pair = row // rows
                b, i = pair // heads, row - pair * rows
                for more in range(min(rows - i, last - row)):
                    add_row(call, control, room, b, pair - b * heads, i + more, scale)
                row = min(last, (pair + 1) * rows)
            fetch_add(control, at.FINISHED_CHUNKS, 1)

    return sharing.shared(work, f"add_toeplitz_{element.suffix}")
