"""Rows gathered from tables and summed: what `embed.py` and `add_table.py` have in common on the CPU.

    out[b, t] = ((table[ids[b, t]] - zero) * row_scale) * scale + types[type_ids[b, t]] + (amplitude*PE(position) or learned[position])

    out: (B, T, H, D), byte strides of any sign and size, f16 | bf16 | f32 | f64, or float8 (times out_factor, saturated)
    ids, type_ids: (B, T, H) int64, byte strides; the table, types and learned: rows of contiguous elements, byte strides from row to row
    positions, mask and the functions of PE as in `add_sinusoidal.py`

Everything is computed in float64 if any array is float64, else in float32, one operation after the other, and rounded once at the store.
A row whose id, or without `clips` whose position, is outside its table becomes NaN; nothing outside a table is read. PE that sequences
share is made once for a block of rows, in the type of the arithmetic. The next row is prefetched while this one is summed.
Bytes moved per element: one read of each table's row, one write, which goes past the caches where the result is larger than they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import abi, scheduler, simd
from . import arithmetic as a
from . import gather_sum_loops as loops
from .add_sinusoidal import block_maker, target_of
from .loops import copy_columns, fill_strided
from .scheduler import is_kept, number, position_of, row_at, rows_of_chunk, word

at, ctl = abi.GATHER_SUM.index, abi.CONTROL.index

# What is added according to a row's position.
NOTHING, SINUSOIDAL, LEARNED = "nothing", "sinusoidal", "learned"


@scheduler.inline
def id_of(call, ids, b, t, h):
    """The id of a row; ``ids`` is the index of an array's address in the block, followed by its three strides."""
    return word(row_at(call, word(call, ids), ids + 1, b, t, h), 0)


def build(name: str, first: str, second: str | None, learned: str | None, out: str, adds: str) -> Any:
    """Return the kernel, not compiled yet, for these element types; ``first`` is that of x or of the table."""
    present = [dtype for dtype in (first, second, learned, out) if dtype is not None]
    real_type = simd.F64 if "float64" in present else simd.F32
    plain = a.ELEMENTS["float64" if real_type is simd.F64 else "float32"]
    real, size = plain.number, plain.real_bytes
    x_element, target_element = a.mixed(first, real_type), a.mixed(out, real_type)
    second_element = None if second is None else a.mixed(second, real_type)
    values_element = plain if adds == SINUSOIDAL else None if learned is None else a.mixed(learned, real_type)
    terms = loops.Terms(x_element, second_element, values_element, target_element)
    is_embedding, has_integers = name == "embed", x_element.stored is simd.I8
    sum_row, stream_row, sum_apart = loops.sum_row(terms, False), loops.sum_row(terms, True), loops.sum_strided(terms)
    fill_0, copy = fill_strided(target_element, 0.0), copy_columns(target_element)
    adds_sinusoidal, adds_learned, has_second = adds == SINUSOIDAL, adds == LEARNED, second is not None
    inline = scheduler.inline_as("_".join((name, first, second or "", learned or "", out, adds)))
    make_block, functions_bytes = block_maker(plain, inline)

    @inline
    def source_of(call, b, t, h):
        """Address of the first row of a sum; 0 if its id is outside the table."""
        if is_embedding:
            token = id_of(call, at.ids, b, t, h)
            if token < 0 or token >= word(call, at.table_rows):
                return np.int64(0)
            return word(call, at.x) + token * word(call, at.x_row_stride)
        return row_at(call, word(call, at.x), at.x_batch_stride, b, t, h)

    @inline
    def sum_one(call, control, b, t, h, values_at, scale, source, following):
        """Sum one row; ``following`` is the address of the row to prefetch."""
        target, second_at, valid, width = target_of(call, b, t, h), np.int64(0), source != 0, word(call, at.width)
        if is_kept(call, b, t):
            if has_second:
                kind = id_of(call, at.type_ids, b, t, h)
                valid = valid and 0 <= kind < word(call, at.type_rows)
                second_at = word(call, at.types) + (kind if valid else 0) * word(call, at.types_row_stride)
            if adds_learned:
                position, last = position_of(call, b, t, h), word(call, at.learned_rows) - 1
                row = position >> 32
                if word(call, at.clips) != 0 and position != abi.NOT_A_POSITION:
                    row = min(max(row, 0), last)
                valid = valid and 0 <= row <= last
                values_at = word(call, at.learned) + (row if valid else 0) * word(call, at.learned_row_stride)
            zero, row_scale, factor = real(0), real(1), real(number(call, at.out_factor))
            if has_integers and valid:
                token = id_of(call, at.ids, b, t, h)
                row_scale = real(number(word(call, at.row_scales), token))
                zero = real(number(word(call, at.zero_points), token))
            if not valid:
                scale, source = real(np.nan), word(call, at.x)
            if word(control, ctl.contiguous) == 0:
                sum_apart(call, source, zero, row_scale, scale, factor, second_at, values_at, target)
            elif word(control, ctl.streams) != 0:
                stream_row(width, source, zero, row_scale, scale, factor, second_at, values_at, target, following - source)
            else:
                sum_row(width, source, zero, row_scale, scale, factor, second_at, values_at, target, following - source)
        elif is_embedding:
            fill_0(target, word(call, at.out_column_stride), width)
        elif source != target:
            copy(0, width, source, target, word(call, at.x_column_stride), word(call, at.out_column_stride))

    @inline
    def work(call, control, scratch, chunk):
        """Sum a chunk: some rows of some sequences."""
        scale = real(number(call, at.input_scale))
        heads = word(call, at.heads)
        t_first, t_last, b_first, b_last = rows_of_chunk(word(call, at.rows), word(call, at.batch), control, chunk)
        same_positions = word(call, at.positions_batch_stride) == 0 and word(call, at.positions_head_stride) == 0
        block_at, row_bytes = scratch + 2 * functions_bytes(call), word(call, at.width) * size
        rows_ahead = word(control, ctl.ahead)
        t1 = t_first
        while t1 < t_last:
            t0, t1 = t1, min(t_last, t1 + word(control, ctl.block_rows))
            for b in range(b_first, b_last):
                for h in range(heads):
                    if adds_sinusoidal and (not same_positions or (b == b_first and h == 0)):
                        make_block(call, control, scratch, b, t0, t1, h, t0, block_at, row_bytes)
                    for t in range(t0, t1):
                        source = source_of(call, b, t, h)
                        following = source_of(call, b, min(t + rows_ahead, t1 - 1), h)
                        if t + rows_ahead >= t1 and b + 1 < b_last:
                            following = source_of(call, b + 1, min(t0 + t + rows_ahead - t1, t1 - 1), h)
                        sum_one(call, control, b, t, h, block_at + (t - t0) * row_bytes, scale, source, following)

    return scheduler.scheduled(work, "_".join((name, first, second or "none", learned or "none", out, adds)))
