"""x*input_scale + amplitude*PE(position), in place, out of place, or PE alone: the CPU twin of ``add_sinusoidal.cu``.

PE[p, sine column f] = sin(p w_f), PE[p, cosine column f] = cos(p w_f)  (Vaswani et al. 2017, section 3.5).

    x, out: (B, T, H, D), byte strides of any sign and size, f16 | bf16 | f32 | f64; x may be out, or 0 (PE alone)
    positions: (B, T, H) int64 in units of 2^-32, byte strides, or 0: row t is at start + t
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
to each. The loops over columns are in `add_sinusoidal_loops.py`; how threads divide the work is in `scheduler.py`.
Bytes moved per element: read and write of x, and 4 to 8 from the caches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import abi, scheduler, simd
from . import add_sinusoidal_loops as loops
from . import arithmetic as a
from .abi import ENCODING_ONLY, IN_PLACE, MODES, OUT_OF_PLACE
from .add_sinusoidal_loops import ANCHOR_ROWS
from .loops import add_run, add_strided, copy_columns
from .scheduler import is_kept, number, position_of, row_at, rows_of_chunk, word

# The caller chooses how the kernel goes about its work, by these words of the control block (`abi.py`):
#   contiguous   whether the elements of a row are contiguous
#   dense        whether the rows of a sequence are, too, and no row is masked
#   streams      whether the result is written past the caches (not in place; elements aligned)
#   block_rows   how many rows are made in the buffer at a time; 0 to make and add in one pass
#   ahead_bytes  how many bytes ahead of its use x is prefetched
#   ahead        the same where rows are added one by one, in whole rows
#   cached_rows  address of ready rows of the positions 0, 1, ..., dense and in the type of the arithmetic, or 0
#   fills_cache  whether the call makes such rows, and does nothing else
#   parts        address of the argument blocks of what makes up a row of the buffer, part_count of them; 0: the call's own makes all of it.
#                Each has positions, frequencies and columns of its own; its `out` is its first column
#   buffer       where the buffer begins in a scratch slot
# A scratch slot holds the two functions of (F + MARGIN) frequencies of every part, for float64 their phases, and behind them the buffer.

at, ctl = abi.ADD_SINUSOIDAL.index, abi.CONTROL.index
PART_BYTES = abi.ADD_SINUSOIDAL.nbytes


@scheduler.inline
def anchor_of(position):
    return position & ~((ANCHOR_ROWS - 1) << 32)


@scheduler.inline
def is_anchored_anew(call, b, t, t_first, h):
    """Whether a row's position has another anchor than the row before, or is the first."""
    return t == t_first or anchor_of(position_of(call, b, t, h)) != anchor_of(position_of(call, b, t - 1, h))


@scheduler.inline
def is_reckoned_anew(call, b, t, t_first, h):
    """Whether a row's position does not follow that of the row before, whose phases were needed, or is the first."""
    if t == t_first or not is_kept(call, b, t - 1):
        return True
    position, before = position_of(call, b, t, h), position_of(call, b, t - 1, h)
    return position < before or position != before + (1 << 32)  # the sum may wrap


@scheduler.inline
def part_of(call, control, p):
    """The argument block of a part of a row; the call's own where there are no parts."""
    return call if word(control, ctl.parts) == 0 else word(control, ctl.parts) + p * PART_BYTES


@scheduler.inline
def first_column_of(control, part):
    return 0 if word(control, ctl.parts) == 0 else word(part, at.out)


@scheduler.inline
def target_of(call, b, t, h):
    return row_at(call, word(call, at.out), at.out_batch_stride, b, t, h)


def block_maker(element: a.Element, inline: Any) -> tuple[Any, Any]:
    """Make ``make_block``, for numbers of this element type, and ``functions_bytes``."""
    is_anchored, real, size = element.real is simd.F32, element.number, element.real_bytes
    evaluate, is_anew = (
        (loops.evaluate(element), is_anchored_anew) if is_anchored else (loops.reckon(element), is_reckoned_anew)
    )
    write_row = (loops.add_rotated if is_anchored else loops.add_evaluated)(element, False)

    @inline
    def functions_bytes(call):
        """Bytes of one function of all frequencies in a scratch slot; of half of their phases."""
        return ((word(call, at.width) + 1) // 2 + abi.MARGIN) * 4

    @inline
    def make_block(call, control, scratch, b, t0, t1, h, t_first, block_at, row_bytes):
        """Make rows t0 ... t1 - 1 of the encoding; scratch still holds the functions at the anchor of row t0 - 1, unless t0 is t_first."""
        first_at = scratch
        for p in range(max(word(control, ctl.part_count), 1)):
            part = part_of(call, control, p)
            amplitude, second_at = real(number(part, at.amplitude)), first_at + functions_bytes(part)
            for t in range(t0, t1):
                position = position_of(part, b, t, h)
                if is_anew(part, b, t, t_first, h):
                    evaluate(part, anchor_of(position) if is_anchored else position, amplitude, first_at, second_at)
                row_at = block_at + (t - t0) * row_bytes + first_column_of(control, part) * size
                write_row(part, position, amplitude, first_at, second_at, row_at, row_at, real(1), 0)
            first_at = second_at + functions_bytes(part)

    return make_block, functions_bytes


def build(dtype: str, mode: int) -> Any:
    """Return the kernel, not compiled yet, of an element type and a mode."""
    element = a.ELEMENTS[dtype]
    is_anchored = element.real is simd.F32
    plain = a.ELEMENTS["float32"] if is_anchored else element
    real, size, itemsize, reads = element.number, element.real_bytes, element.itemsize, mode != ENCODING_ONLY
    evaluate, is_anew = (loops.evaluate(plain), is_anchored_anew) if is_anchored else (loops.reckon(plain), is_reckoned_anew)
    add_row = (loops.add_rotated if is_anchored else loops.add_evaluated)(element, reads)
    add_values, stream_values = add_run(element, reads, False, False), add_run(element, reads, False, True)
    add_apart, copy = add_strided(element, reads), copy_columns(element)
    inline = scheduler.inline_as(f"{element.suffix}_{MODES[mode]}")
    make_block, functions_bytes = block_maker(plain, inline)

    @inline
    def source_of(call, b, t, h):
        if mode == OUT_OF_PLACE:
            return row_at(call, word(call, at.x), at.x_batch_stride, b, t, h)
        return target_of(call, b, t, h)

    @inline
    def add_in_one_pass(call, control, scratch, scale, b, t_first, t_last, h):
        """Make and add rows that share their positions with no others."""
        ahead, count = word(control, ctl.ahead), max(word(control, ctl.part_count), 1)
        for t in range(t_first, t_last):
            source, target, first_at, kept = source_of(call, b, t, h), target_of(call, b, t, h), scratch, is_kept(call, b, t)
            for p in range(count):
                part = part_of(call, control, p)
                amplitude, second_at = real(number(part, at.amplitude)), first_at + functions_bytes(part)
                position, skipped = position_of(part, b, t, h), first_column_of(control, part) * itemsize
                if is_anew(part, b, t, t_first, h):
                    evaluate(part, anchor_of(position) if is_anchored else position, amplitude, first_at, second_at)
                if kept:
                    add_row(part, position, amplitude, first_at, second_at, source + skipped, target + skipped, scale, ahead)
                first_at = second_at + functions_bytes(part)
            if mode == OUT_OF_PLACE and not kept:
                copy(0, word(call, at.width), source, target, word(call, at.x_column_stride), word(call, at.out_column_stride))

    @inline
    def add_block(call, control, b, t0, t1, h, block_at, scale, following):
        """Add a block to rows t0 ... t1 - 1 of one sequence and head; ``following`` is the address that will be read next."""
        width, x_step, out_step = word(call, at.width), word(call, at.x_column_stride), word(call, at.out_column_stride)
        if word(control, ctl.dense) != 0:
            source, target = source_of(call, b, t0, h), target_of(call, b, t0, h)
            # Near the end of the block, prefetch the next one.
            ahead = word(control, ctl.ahead_bytes)
            begin, last = 0, max(0, (t1 - t0) * width - ahead // itemsize)
            for end in (last, (t1 - t0) * width):
                values, x, out = block_at + begin * size, source + begin * itemsize, target + begin * itemsize
                if mode != IN_PLACE and word(control, ctl.streams) != 0:
                    stream_values(values, x, out, end - begin, scale, ahead)
                else:
                    add_values(values, x, out, end - begin, scale, ahead)
                begin, ahead = end, following - source - end * itemsize
            return
        for t in range(t0, t1):
            source, target = source_of(call, b, t, h), target_of(call, b, t, h)
            values, ahead = block_at + (t - t0) * width * size, word(control, ctl.ahead)
            if not is_kept(call, b, t):
                if mode == OUT_OF_PLACE:
                    copy(0, width, source, target, x_step, out_step)
            elif word(control, ctl.contiguous) == 0:
                add_apart(values, size, source, x_step, target, out_step, width, scale)
            elif mode != IN_PLACE and word(control, ctl.streams) != 0:
                stream_values(values, source, target, width, scale, ahead)
            else:
                add_values(values, source, target, width, scale, ahead)

    @inline
    def add_in_blocks(call, control, scratch, scale, b_first, b_last, t_first, t_last, h_first, h_last):
        """Add rows to all of these sequences and heads, whose positions are those of the first."""
        buffer_at, row_bytes, cached = (
            scratch + word(control, ctl.buffer),
            word(call, at.width) * size,
            word(control, ctl.cached_rows),
        )
        block_rows = t_last - t_first if cached != 0 else word(control, ctl.block_rows)
        t1 = t_first
        while t1 < t_last:
            t0, t1, block_at = t1, min(t_last, t1 + block_rows), buffer_at
            if cached != 0:
                block_at = cached + ((word(call, at.start) >> 32) + t0) * row_bytes
            if cached == 0 or word(control, ctl.fills_cache) != 0:
                make_block(call, control, scratch, b_first, t0, t1, h_first, t_first, block_at, row_bytes)
            if word(control, ctl.fills_cache) != 0:
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
    def work(call, control, scratch, chunk):
        """Add a chunk: some rows of some sequences."""
        scale = real(number(call, at.input_scale))
        batch, heads = word(call, at.batch), word(call, at.heads)
        t_first, t_last, b_first, b_last = rows_of_chunk(word(call, at.rows), batch, control, chunk)
        # Sequences and heads whose positions differ are outer loops; those that share them are inner loops of one block.
        batch_step = batch if word(call, at.positions_batch_stride) == 0 else 1
        head_step = heads if word(call, at.positions_head_stride) == 0 else 1
        in_one_pass = word(control, ctl.block_rows) == 0 and word(control, ctl.cached_rows) == 0
        b = b_first
        while b < b_last:
            h = np.int64(0)  # not a literal, for which Numba would compile every helper anew
            while h < heads:
                if in_one_pass:
                    add_in_one_pass(call, control, scratch, scale, b, t_first, t_last, h)
                else:
                    b_end = min(b_last, b + batch_step)
                    add_in_blocks(call, control, scratch, scale, b, b_end, t_first, t_last, h, h + head_step)
                h += head_step
            b += batch_step

    return scheduler.scheduled(work, f"add_sinusoidal_{element.suffix}_{MODES[mode]}")
