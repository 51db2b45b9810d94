"""x*input_scale + f_h(key - query), and -inf where the key comes after the query, for the CPU: the twin of ``add_toeplitz.cu``.

A bias of a distance is a vector f for each head, along which row after row moves by one: no matrix of them is ever made.

    x, out: (B, H, Tq, Tk), byte strides of any sign and size, f16 | bf16 | f32 | f64; x may be out
    values: f_h(low), f_h(low + 1), ..., f_h(high), f32, or f64 of f64 arrays, by batch, head and row (byte strides, which may be 0);
        what lies below or above counts as low or high. With `by_column` f_h is not of the distance but of the number of the column
    slopes: (H,) f64, or 0; then f_h is slope*distance, or with `symmetric` -slope*abs(distance), and there are no values
    queries: (B, Tq) int64 in units of 2^-32, byte strides, or 0: row i is at start + i
    keys: (B, Tk) int64 in units of 2^-32, byte strides, or 0: column j is at j
    causal: whether columns whose position is above their row's become -inf; where column j is at j they are not read

A multiply, then an add, each rounded in f32, or f64 of f64 arrays, and once more at the store. What is not a position makes NaN.

Where column j is at j, a row is f_h(low) repeated, then a run of f, then f_h(high) repeated, then -inf, each a loop over vectors
(`add_toeplitz_loops.py`). Otherwise a block of values is gathered into a buffer and then added. Arrays larger than the caches are filled
with -inf by streaming stores. Bytes moved per element: read and write of x, and 4 to 8 from the first-level cache; only one write of what
`causal` hides.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import abi, scheduler
from . import add_toeplitz_loops as loops
from . import arithmetic as a
from .loops import add_run, add_strided, fill_strided
from .scheduler import number, row_at, set_word, word

at, ctl = abi.ADD_TOEPLITZ.index, abi.CONTROL.index

# The caller chooses how the kernel goes about its work, by these words of the control block (`abi.py`); rows_per_chunk counts rows of all
# heads and sequences:
#   contiguous   whether the elements of a row are contiguous
#   dense        whether the rows of a head are, too
#   streams      1: -inf is written past the caches, 2: so is everything else (not in place; elements aligned)
#   ahead        how many bytes ahead of the end of a row its successor is prefetched
NAN_WORD = 0x7FC000007FC00000  # NaN as a float64, and as two float32


@scheduler.inline
def query_of(call, b, i):
    if word(call, at.queries) == 0:
        return word(call, at.start) + (i << 32)
    return word(word(call, at.queries) + b * word(call, at.queries_batch_stride) + i * word(call, at.queries_row_stride), 0)


@scheduler.inline
def between(value, low, high):
    return min(max(value, low), high)


def build(dtype: str) -> Any:
    """Return the kernel, not compiled yet, of an element type."""
    element = a.ELEMENTS[dtype]
    real, size, item = element.number, element.real_bytes, element.itemsize
    add_values, add_constant = add_run(element, True, False, False), add_run(element, True, True, False)
    stream_values, stream_constant = add_run(element, True, False, True), add_run(element, True, True, True)
    fill, stream_fill = loops.fill_run(element, False), loops.fill_run(element, True)
    add_apart, fill_apart = add_strided(element, True), fill_strided(element, -np.inf)
    gather_values, fill_future = loops.gather_values(element), loops.fill_future(element)
    inline = scheduler.inline_as(f"toeplitz_{element.suffix}")

    @inline
    def add_piece(call, control, values, is_constant, source, target, count, scale, ahead):
        """Add contiguous values, or one value, to so many columns."""
        if word(control, ctl.contiguous) == 0:
            x_step, out_step = word(call, at.x_column_stride), word(call, at.out_column_stride)
            add_apart(values, np.int64(0) if is_constant else np.int64(size), source, x_step, target, out_step, count, scale)
        elif word(control, ctl.streams) == 2:
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
        if word(control, ctl.contiguous) == 0:
            fill_apart(target, word(call, at.out_column_stride), count)
        elif word(control, ctl.streams) != 0:
            stream_fill(target, count)
        else:
            fill(target, count)

    @inline
    def add_in_order(call, control, scratch, values, query, source, target, scale):
        """A row whose columns are at 0, 1, ...: f below its low end, f, f above its high end, and -inf."""
        columns, low = word(call, at.columns), word(call, at.low)
        x_step, out_step, invalid = (
            word(call, at.x_column_stride),
            word(call, at.out_column_stride),
            query == abi.NOT_A_POSITION,
        )
        row, limit = query >> 32, columns
        if word(call, at.causal) != 0 and not invalid:
            limit = between(row + 1, 0, columns)
        first, second = np.int64(0), limit
        if invalid:
            set_word(scratch, 0, NAN_WORD)
            first = limit
        elif word(call, at.by_column) == 0:
            first = between(row + low, 0, limit)
            second = between(row + word(call, at.high) + 1, first, limit)
        # Near the end of a row, prefetch a later one: what follows in memory is not read next.
        ahead, split = word(control, ctl.ahead_bytes), limit
        if word(control, ctl.dense) == 0 or limit < columns:
            split = max(0, limit - ahead // item)
        begin = np.int64(0)
        while begin < limit:
            is_constant, end = begin < first or begin >= second, limit
            if begin < second:
                end = first if begin < first else second
            if begin < split:
                end = min(end, split)
            else:
                ahead = word(control, ctl.ahead) - split * item
            value_at = values
            if invalid:
                value_at = scratch
            elif begin >= first:
                index = begin if word(call, at.by_column) != 0 else min(begin - row, word(call, at.high)) - low
                value_at = values + index * size
            x, out = source + begin * x_step, target + begin * out_step
            add_piece(call, control, value_at, is_constant, x, out, end - begin, scale, ahead)
            begin = end
        if limit < columns:
            fill_piece(call, control, target + limit * out_step, columns - limit)

    @inline
    def add_gathered(call, control, scratch, values, b, h, query, source, target, scale):
        """A row whose columns have any positions, a block at a time."""
        columns, keys = word(call, at.columns), word(call, at.keys)
        x_step, out_step, slope = word(call, at.x_column_stride), word(call, at.out_column_stride), 0.0
        if word(call, at.slopes) != 0:
            slope = number(word(call, at.slopes), h)
        if keys != 0:
            keys += b * word(call, at.keys_batch_stride)
        begin = np.int64(0)
        while begin < columns:
            count = min(abi.GATHERED_VALUES, columns - begin)
            out = target + begin * out_step
            gather_values(call, values, slope, keys, query, begin, count, scratch)
            add_piece(call, control, scratch, False, source + begin * x_step, out, count, scale, word(control, ctl.ahead_bytes))
            if word(call, at.causal) != 0 and query != abi.NOT_A_POSITION:
                fill_future(call, keys, query, begin, count, out, out_step)
            begin += count

    @inline
    def add_row(call, control, scratch, b, h, i, scale):
        source = row_at(call, word(call, at.x), at.x_batch_stride, b, h, i)
        target = row_at(call, word(call, at.out), at.out_batch_stride, b, h, i)
        values = row_at(call, word(call, at.values), at.values_head_stride, h, b, i)
        query = query_of(call, b, i)
        if word(call, at.keys) == 0 and word(call, at.slopes) == 0:
            add_in_order(call, control, scratch, values, query, source, target, scale)
        else:
            add_gathered(call, control, scratch, values, b, h, query, source, target, scale)

    @inline
    def work(call, control, scratch, chunk):
        """Add a chunk: some rows of all heads and sequences."""
        scale = real(number(call, at.input_scale))
        rows, heads, rows_per_chunk = word(call, at.rows), word(call, at.heads), word(control, ctl.rows_per_chunk)
        all_rows = word(call, at.batch) * heads * rows
        row, last = chunk * rows_per_chunk, min(all_rows, (chunk + 1) * rows_per_chunk)
        while row < last:
            pair = row // rows
            b, i = pair // heads, row - pair * rows
            for more in range(min(rows - i, last - row)):
                add_row(call, control, scratch, b, pair - b * heads, i + more, scale)
            row = min(last, (pair + 1) * rows)

    return scheduler.scheduled(work, f"add_toeplitz_{element.suffix}")
