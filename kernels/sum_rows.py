"""Rows gathered from tables and summed: what `embed.py` and `add_table.py` have in common on the CPU.

    out[b, t] = ((table[ids[b, t]] - zero) * row_scale) * scale + types[type_ids[b, t]] + (amplitude*PE(position) or learned[position])

    out: (B, T, H, D), byte strides of any sign and size, f16 | bf16 | f32 | f64
    ids, type_ids: (B, T, H) int64, byte strides; the table, types and learned: rows of contiguous elements, byte strides from row to row
    positions, mask and the functions of PE as in `add_sinusoidal.py`

All is computed in float64 if any array is, else in float32, one operation after the other, and rounded once at the store. A row of which an
id, or without `clips` a position, is not in its table becomes NaN; nothing outside a table is read. What sequences share of PE is made
once for a block of rows, in the type of the arithmetic. Where the next row begins is known, so it is asked for while this one is summed.
Bytes moved per element: one read of each table's row, one write, which goes past the caches where the result is larger than they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import arithmetic as a
from . import blocks as at
from . import lanes, rows, sharing, sums
from .add_sinusoidal import anchor_of, is_kept, position_of, target_of
from .rows import ANCHOR_ROWS
from .sharing import claim_chunk, fetch_add, number, word

SIGNATURE = sharing.SIGNATURE

# What is added at a row's position.
NOTHING, SINUSOIDAL, LEARNED = "nothing", "sinusoidal", "learned"


@sharing.inline
def id_of(call, ids, b, t, h):
    """The id of a row: ``ids`` is the place of the address of (B, T, H) int64 and of their strides."""
    strides = word(call, ids + 1), word(call, ids + 2), word(call, ids + 3)
    return word(word(call, ids) + b * strides[0] + t * strides[1] + h * strides[2], 0)


@sharing.inline
def anchored_until(call, b, t, last, h):
    """First row after t whose position has another anchor, or ``last``."""
    position = position_of(call, b, t, h)
    if word(call, at.POSITIONS) == 0:
        return min(last, t + ANCHOR_ROWS - ((position >> 32) & (ANCHOR_ROWS - 1)))
    end = t + 1
    while end < last and anchor_of(position_of(call, b, end, h)) == anchor_of(position):
        end += 1
    return end


def build(name: str, first: str, second: str | None, learned: str | None, out: str, adds: str) -> Any:
    """Return the kernel, not compiled yet, for these element types; ``first`` is that of x or of the table."""
    present = [dtype for dtype in (first, second, learned, out) if dtype is not None]
    real_type = lanes.F64 if "float64" in present else lanes.F32
    plain = a.ELEMENTS["float64" if real_type is lanes.F64 else "float32"]
    real, size = plain.number, plain.real_bytes
    x_element, target_element = a.mixed(first, real_type), a.mixed(out, real_type)
    second_element = None if second is None else a.mixed(second, real_type)
    values_element = plain if adds == SINUSOIDAL else None if learned is None else a.mixed(learned, real_type)
    elements = x_element, second_element, values_element, target_element
    is_anchored, is_embedding, has_integers = real_type is lanes.F32, name == "embed", x_element.stored is lanes.I8
    sum_row, stream_row = sums.row_summer(*elements, False), sums.row_summer(*elements, True)
    sum_strided, zero_row = sums.strided_summer(*elements), sums.row_filler(target_element)
    evaluate = rows.evaluator(plain)
    write_row = (rows.rotated_adder if is_anchored else rows.evaluated_adder)(plain, False)
    copy_row = rows.row_copier(target_element)
    adds_sinusoidal, adds_learned, has_second = adds == SINUSOIDAL, adds == LEARNED, second is not None
    width_of_real = size
    inline = sharing.inline_as("_".join((name, first, second or "", learned or "", out, adds)))

    @inline
    def make_block(call, control, room, block_at, amplitude, b, h, t0, t1):
        """Rows t0 ... t1 - 1 of PE."""
        row_bytes, functions = (
            word(call, at.WIDTH) * width_of_real,
            ((word(call, at.WIDTH) + 1) // 2 + at.MARGIN) * width_of_real,
        )
        first_at, second_at = room, room + functions
        anchored = t0
        for t in range(t0, t1):
            position = position_of(call, b, t, h)
            if is_anchored and t == anchored:
                anchored = anchored_until(call, b, t, t1, h)
                evaluate(call, anchor_of(position), amplitude, first_at, second_at)
            row_at = block_at + (t - t0) * row_bytes
            write_row(call, position, amplitude, first_at, second_at, row_at, row_at, real(1), 0)

    @inline
    def source_of(call, b, t, h):
        """Where the first row of a sum lies, 0 if it is in no table."""
        if is_embedding:
            found = id_of(call, at.IDS, b, t, h)
            if found < 0 or found >= word(call, at.TABLE_ROWS):
                return np.int64(0)
            return word(call, at.X) + found * word(call, at.X_ROW_STRIDE)
        strides = word(call, at.X_BATCH_STRIDE), word(call, at.X_ROW_STRIDE), word(call, at.X_HEAD_STRIDE)
        return word(call, at.X) + b * strides[0] + t * strides[1] + h * strides[2]

    @inline
    def sum_one(call, control, b, t, h, values_at, scale, source, following):
        """One row; what is at ``following`` is read next."""
        target, second_at, known = target_of(call, b, t, h), np.int64(0), source != 0
        if is_kept(call, b, t):
            if has_second:
                kind = id_of(call, at.TYPE_IDS, b, t, h)
                known = known and 0 <= kind < word(call, at.TYPE_ROWS)
                second_at = word(call, at.TYPES) + (kind if known else 0) * word(call, at.TYPES_ROW_STRIDE)
            if adds_learned:
                place, last = position_of(call, b, t, h), word(call, at.LEARNED_ROWS) - 1
                row = place >> 32
                if word(call, at.CLIPS) != 0 and place != a.NOT_A_POSITION:
                    row = min(max(row, 0), last)
                known = known and 0 <= row <= last
                values_at = word(call, at.LEARNED) + (row if known else 0) * word(call, at.LEARNED_ROW_STRIDE)
            zero, row_scale = real(0), real(1)
            if has_integers and known:
                found = id_of(call, at.IDS, b, t, h)
                row_scale = real(number(word(call, at.ROW_SCALES), found))
                zero = real(number(word(call, at.ZERO_POINTS), found))
            if not known:
                scale, source = real(np.nan), word(call, at.X)
            if word(control, at.CONTIGUOUS) == 0:
                sum_strided(call, source, zero, row_scale, scale, second_at, values_at, target)
            elif word(control, at.STREAMS) != 0:
                stream_row(
                    word(call, at.WIDTH), source, zero, row_scale, scale, second_at, values_at, target, following - source
                )
            else:
                sum_row(word(call, at.WIDTH), source, zero, row_scale, scale, second_at, values_at, target, following - source)
        elif is_embedding:
            zero_row(call, target)
        elif source != target:
            copy_row(call, source, target)

    @inline
    def work(call, control, number_of_room):
        """Work off chunks until there are none."""
        amplitude, scale = real(number(call, at.AMPLITUDE)), real(number(call, at.INPUT_SCALE))
        room, rooms = word(control, at.SCRATCH) + number_of_room * word(control, at.ROOM_BYTES), word(control, at.ROOMS)
        batch, batch_per_chunk = word(call, at.BATCH), word(control, at.BATCH_PER_CHUNK)
        heads, rows_per_chunk = word(call, at.HEADS), word(control, at.ROWS_PER_CHUNK)
        batch_chunks = (batch + batch_per_chunk - 1) // batch_per_chunk
        shares = word(call, at.POSITIONS_BATCH_STRIDE) == 0 and word(call, at.POSITIONS_HEAD_STRIDE) == 0
        functions = ((word(call, at.WIDTH) + 1) // 2 + at.MARGIN) * width_of_real
        block_at, row_bytes = room + 2 * functions, word(call, at.WIDTH) * width_of_real
        rows_ahead = word(control, at.AHEAD)
        turn, share = 0, number_of_room
        while turn < rooms:
            chunk = claim_chunk(control, share)
            if chunk < 0:
                turn, share = turn + 1, (share + 1) % rooms
                continue
            t_first, b_first = (chunk // batch_chunks) * rows_per_chunk, (chunk % batch_chunks) * batch_per_chunk
            t_last, b_last = min(word(call, at.ROWS), t_first + rows_per_chunk), min(batch, b_first + batch_per_chunk)
            t1 = t_first
            while t1 < t_last:
                t0, t1 = t1, min(t_last, t1 + word(control, at.BLOCK_ROWS))
                for b in range(b_first, b_last):
                    for h in range(heads):
                        if adds_sinusoidal and (not shares or (b == b_first and h == 0)):
                            make_block(call, control, room, block_at, amplitude, b, h, t0, t1)
                        for t in range(t0, t1):
                            source = source_of(call, b, t, h)
                            following = source_of(call, b, min(t + rows_ahead, t1 - 1), h)
                            if t + rows_ahead >= t1 and b + 1 < b_last:
                                following = source_of(call, b + 1, min(t0 + t + rows_ahead - t1, t1 - 1), h)
                            sum_one(call, control, b, t, h, block_at + (t - t0) * row_bytes, scale, source, following)
            fetch_add(control, at.FINISHED_CHUNKS, 1)

    return sharing.shared(work, "_".join((name, first, second or "none", learned or "none", out, adds)))
