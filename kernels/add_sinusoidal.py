"""x*input_scale + amplitude*PE(position), in place, out of place, or PE alone: the CPU twin of ``add_sinusoidal.cu``.

PE[p, sine column f] = sin(p w_f), PE[p, cosine column f] = cos(p w_f)  (Vaswani et al. 2017, section 3.5).

    x, out: (B, T, H, D), byte strides of any sign and size, f16 | bf16 | f32 | f64; x may be out, or 0 (PE alone)
    positions: (B, T, H) int64 in units of 2^-32, byte strides, or 0: row t stands at start + t
    mask: (B, T) bytes, byte strides, or 0; a row whose byte is 0 keeps x unscaled
    frequencies, whole_turns: (F + MARGIN,) uint64, the fraction (2^-64 turn) and the integer part of a frequency in turns,
        F = ceil(D/2), and whatever behind
    cosines, sines: (8, F) f32, cos(j w_f) and sin(j w_f) for j = 0 ... 7; sines negated where the cosine is the first function

16- and 32-bit arrays: eight rows share an anchor, the polynomial at the position with its three lowest integer bits cleared; a row
is one rotation of it: first' = fma(first, cos, second*sin), second' = fma(second, cos, -(first*sin)), where `first` and `second` are
the functions (sine, cosine, or cosine, sine) in the order of their columns. float64 arrays: the polynomial at the position itself.

A row of contiguous elements that shares its positions with no other is made and added in one pass. Where sequences or heads share
them, where elements lie apart, where the result is streamed past the caches, or where several parts make up a row (a grid: channels
that follow the row of an image and channels that follow its column), a block of rows is made in a buffer in column order and then added
to each. The loops over columns, and what asks for x ahead of time, are in `rows.py` and `lanes.py`; how threads share
the work is in `sharing.py`. Bytes moved per element: read and write of x, and 4 to 8 from the caches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import arithmetic as a
from . import blocks as at
from . import lanes, rows, sharing
from .rows import ANCHOR_ROWS
from .sharing import byte, claim_chunk, fetch_add, number, word

# Where x is. Each mode is a kernel of its own: the compiler must know that a row in place reads what it writes.
IN_PLACE, OUT_OF_PLACE, ALONE = 0, 1, 2
MODES = {IN_PLACE: "in_place", OUT_OF_PLACE: "out", ALONE: "alone"}

# How it goes about it, settled by who calls (`blocks.py`):
#   CONTIGUOUS   whether the elements of a row lie one behind the other
#   DENSE        whether the rows of a sequence do, too, and no row is masked
#   STREAMS      whether the result is written past the caches (not in place; elements aligned)
#   BLOCK_ROWS   rows made in the buffer at a time; 0 to make and add in one pass
#   AHEAD        how many bytes before it is needed x is asked for, where rows are added one by one
#   KNOWN        address of the finished rows of the positions 0, 1, ..., dense and in the type of the arithmetic, or 0
#   FILLS        whether those are to be made, and nothing else
#   PARTS        address of the argument blocks of what makes up a row of the buffer, PART_COUNT of them; or 0: the call's own does.
#                Each has positions, frequencies and columns of its own; its `out` is its first column
#   BUFFER       where the buffer begins in a room
# A room holds the two functions of (F + MARGIN) frequencies of every part, for all but float64, and behind them the buffer.


@sharing.inline
def position_of(call, b, t, h):
    if word(call, at.POSITIONS) == 0:
        return word(call, at.START) + (t << 32)
    strides = word(call, at.POSITIONS_BATCH_STRIDE), word(call, at.POSITIONS_ROW_STRIDE), word(call, at.POSITIONS_HEAD_STRIDE)
    return word(word(call, at.POSITIONS) + b * strides[0] + t * strides[1] + h * strides[2], 0)


@sharing.inline
def anchor_of(position):
    return position & ~((ANCHOR_ROWS - 1) << 32)


@sharing.inline
def is_anchored_anew(call, b, t, t_first, h):
    """Whether a row's position has another anchor than that of the row before, or there is none before."""
    return t == t_first or anchor_of(position_of(call, b, t, h)) != anchor_of(position_of(call, b, t - 1, h))


@sharing.inline
def part_of(call, control, p):
    """The argument block of a part of a row; of all of it that of the call."""
    return call if word(control, at.PARTS) == 0 else word(control, at.PARTS) + p * (8 * len(at.ADD_SINUSOIDAL))


@sharing.inline
def first_column_of(control, part):
    return 0 if word(control, at.PARTS) == 0 else word(part, at.OUT)


@sharing.inline
def target_of(call, b, t, h):
    strides = word(call, at.OUT_BATCH_STRIDE), word(call, at.OUT_ROW_STRIDE), word(call, at.OUT_HEAD_STRIDE)
    return word(call, at.OUT) + b * strides[0] + t * strides[1] + h * strides[2]


@sharing.inline
def is_kept(call, b, t):
    mask = word(call, at.MASK)
    return mask == 0 or byte(mask + b * word(call, at.MASK_BATCH_STRIDE) + t * word(call, at.MASK_ROW_STRIDE)) != 0


def build(dtype: str, mode: int) -> Any:
    """Return the kernel, not compiled yet, of an element type and a mode."""
    element = a.ELEMENTS[dtype]
    is_anchored = element.real is lanes.F32
    plain, row_adder = (a.ELEMENTS["float32"], rows.rotated_adder) if is_anchored else (element, rows.evaluated_adder)
    real, size, itemsize, reads = element.number, element.real_bytes, element.itemsize, mode != ALONE
    evaluate, add_row, write_row = rows.evaluator(plain), row_adder(element, reads), row_adder(plain, False)
    add_values, stream_values = rows.value_adder(element, reads, False), rows.value_adder(element, reads, True)
    add_strided, copy_row = rows.strided_adder(element, reads), rows.row_copier(element)
    inline = sharing.inline_as(f"{element.suffix}_{MODES[mode]}")

    @inline
    def functions_bytes(call):
        """Of one function of all frequencies, at the beginning of a room."""
        return ((word(call, at.WIDTH) + 1) // 2 + at.MARGIN) * size if is_anchored else 0

    @inline
    def source_of(call, b, t, h):
        if mode == OUT_OF_PLACE:
            strides = word(call, at.X_BATCH_STRIDE), word(call, at.X_ROW_STRIDE), word(call, at.X_HEAD_STRIDE)
            return word(call, at.X) + b * strides[0] + t * strides[1] + h * strides[2]
        return target_of(call, b, t, h)

    @inline
    def add_at_once(call, control, room, scale, b, t_first, t_last, h):
        """Add rows that share their positions with no others, as they are made."""
        ahead, count = word(control, at.AHEAD), max(word(control, at.PART_COUNT), 1)
        for t in range(t_first, t_last):
            source, target, first_at, kept = source_of(call, b, t, h), target_of(call, b, t, h), room, is_kept(call, b, t)
            for p in range(count):
                part = part_of(call, control, p)
                amplitude, second_at = real(number(part, at.AMPLITUDE)), first_at + functions_bytes(part)
                position, skipped = position_of(part, b, t, h), first_column_of(control, part) * itemsize
                if is_anchored and is_anchored_anew(part, b, t, t_first, h):
                    evaluate(part, anchor_of(position), amplitude, first_at, second_at)
                if kept:
                    add_row(part, position, amplitude, first_at, second_at, source + skipped, target + skipped, scale, ahead)
                first_at = second_at + functions_bytes(part)
            if mode == OUT_OF_PLACE and not kept:
                copy_row(call, source, target)

    @inline
    def add_block(call, control, b, t0, t1, h, block_at, scale, following):
        """Add a block to rows t0 ... t1 - 1 of one sequence and head; what is at ``following`` is read next."""
        width = word(call, at.WIDTH)
        if word(control, at.DENSE) != 0:
            source, target = source_of(call, b, t0, h), target_of(call, b, t0, h)
            # Near its end it is the next block that is asked for.
            begin, ahead, last = 0, at.AHEAD_BYTES, max(0, (t1 - t0) * width - at.AHEAD_BYTES // itemsize)
            for end in (last, (t1 - t0) * width):
                values, x, out = block_at + begin * size, source + begin * itemsize, target + begin * itemsize
                if mode != IN_PLACE and word(control, at.STREAMS) != 0:
                    stream_values(values, x, out, end - begin, scale, ahead)
                else:
                    add_values(values, x, out, end - begin, scale, ahead)
                begin, ahead = end, following - source - end * itemsize
            return
        for t in range(t0, t1):
            source, target = source_of(call, b, t, h), target_of(call, b, t, h)
            values, ahead = block_at + (t - t0) * width * size, word(control, at.AHEAD)
            if not is_kept(call, b, t):
                if mode == OUT_OF_PLACE:
                    copy_row(call, source, target)
            elif word(control, at.CONTIGUOUS) == 0:
                add_strided(call, values, source, target, scale)
            elif mode != IN_PLACE and word(control, at.STREAMS) != 0:
                stream_values(values, source, target, width, scale, ahead)
            else:
                add_values(values, source, target, width, scale, ahead)

    @inline
    def make_block(call, control, room, b, t0, t1, h, t_first, block_at, row_bytes):
        """Make rows t0 ... t1 - 1 of the encoding; what was made of a position's anchor before t0 is still in the room, since t_first."""
        first_at = room
        for p in range(max(word(control, at.PART_COUNT), 1)):
            part = part_of(call, control, p)
            amplitude, second_at = real(number(part, at.AMPLITUDE)), first_at + functions_bytes(part)
            for t in range(t0, t1):
                position = position_of(part, b, t, h)
                if is_anchored and is_anchored_anew(part, b, t, t_first, h):
                    evaluate(part, anchor_of(position), amplitude, first_at, second_at)
                row_at = block_at + (t - t0) * row_bytes + first_column_of(control, part) * size
                write_row(part, position, amplitude, first_at, second_at, row_at, row_at, real(1), 0)
            first_at = second_at + functions_bytes(part)

    @inline
    def add_in_blocks(call, control, room, scale, b_first, b_last, t_first, t_last, h_first, h_last):
        """Add rows to all of these sequences and heads, whose positions are those of the first."""
        buffer_at, row_bytes, known = room + word(control, at.BUFFER), word(call, at.WIDTH) * size, word(control, at.KNOWN)
        block_rows = t_last - t_first if known != 0 else word(control, at.BLOCK_ROWS)
        t1 = t_first
        while t1 < t_last:
            t0, t1, block_at = t1, min(t_last, t1 + block_rows), buffer_at
            if known != 0:
                block_at = known + ((word(call, at.START) >> 32) + t0) * row_bytes
            if known == 0 or word(control, at.FILLS) != 0:
                make_block(call, control, room, b_first, t0, t1, h_first, t_first, block_at, row_bytes)
            if word(control, at.FILLS) != 0:
                return
            for b in range(b_first, b_last):
                for h in range(h_first, h_last):
                    b_next, t_next, h_next = b, t0, h + 1
                    if h_next == h_last:
                        b_next, h_next = b + 1, h_first
                    if b_next == b_last:
                        b_next, t_next = b_first, t1
                    following = source_of(call, b_next, t_next, h_next)
                    add_block(call, control, b, t0, t1, h, block_at, scale, following)

    @inline
    def work(call, control, number_of_room):
        """Work off chunks until there are none."""
        scale = real(number(call, at.INPUT_SCALE))
        room, rooms = word(control, at.SCRATCH) + number_of_room * word(control, at.ROOM_BYTES), word(control, at.ROOMS)
        batch, batch_per_chunk = word(call, at.BATCH), word(control, at.BATCH_PER_CHUNK)
        heads, rows_per_chunk = word(call, at.HEADS), word(control, at.ROWS_PER_CHUNK)
        batch_chunks = (batch + batch_per_chunk - 1) // batch_per_chunk
        # Sequences and heads whose positions differ are outer loops; those that share them are inner loops of one block.
        batch_step = batch if word(call, at.POSITIONS_BATCH_STRIDE) == 0 else 1
        head_step = heads if word(call, at.POSITIONS_HEAD_STRIDE) == 0 else 1
        at_once = word(control, at.BLOCK_ROWS) == 0 and word(control, at.KNOWN) == 0
        turn, share = 0, number_of_room
        while turn < rooms:
            chunk = claim_chunk(control, share)
            if chunk < 0:
                turn, share = turn + 1, (share + 1) % rooms
                continue
            t_first, b_first = (chunk // batch_chunks) * rows_per_chunk, (chunk % batch_chunks) * batch_per_chunk
            t_last, b_last = min(word(call, at.ROWS), t_first + rows_per_chunk), min(batch, b_first + batch_per_chunk)
            b = b_first
            while b < b_last:
                h = np.int64(0)  # not a literal, for which Numba would compile every helper anew
                while h < heads:
                    if at_once:
                        add_at_once(call, control, room, scale, b, t_first, t_last, h)
                    else:
                        b_end = min(b_last, b + batch_step)
                        add_in_blocks(call, control, room, scale, b, b_end, t_first, t_last, h, h + head_step)
                    h += head_step
                b += batch_step
            fetch_add(control, at.FINISHED_CHUNKS, 1)

    return sharing.shared(work, f"add_sinusoidal_{element.suffix}_{MODES[mode]}")


SIGNATURE = sharing.SIGNATURE
