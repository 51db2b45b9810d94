"""Pairs of channels of q and k rotated by the angles of their rows: what `rotate.py` and `rotate_table.py` have in common on the CPU.

(u, v) -> (u c - v s, v c + u s), back where `inverse`  (Su et al. 2021, equation 34)

    q, k: (B, T, H, D), byte strides of any sign and size, f16 | bf16 | f32 | f64; their out: themselves or another array; 0 for none;
        another may have elements of float8, which are the results times out_factor, rounded and saturated
    positions: (A, B, T) int64 in units of 2^-32, byte strides, or 0: row t is at start + t
    mask: (B, T) bytes, byte strides, or 0; a row whose byte is 0 is left as it is

u' = fma(u, c, -(v s)), v' = fma(v, c, u s), in float32 for 16- and 32-bit arrays and in float64 for float64, one rounding at the store.
Channels outside [first_channel, first_channel + 2 pairs) are left as they are. Cosines and sines of some rows are made once and serve all
heads of q and k, and all sequences that share the positions; HEADS_AT_ONCE heads follow one another row by row.
Bytes moved per element: one read and one write of q and k, and 4 / HEADS_AT_ONCE (float64: 8) from the second-level cache.
"""

from __future__ import annotations

from typing import Any

from . import abi, scheduler
from . import arithmetic as a
from . import rotate_loops as loops
from .abi import MODES, OUT_OF_PLACE
from .scheduler import is_kept, number, row_at, rows_of_chunk, word

at, rotated, ctl = abi.ROTATE_PAIRS.index, abi.ROTATED.index, abi.CONTROL.index
HEADS_AT_ONCE = 4


def build(name: str, dtype: str, mode: int, out_dtype: str | None, make_angles: Any) -> Any:
    """Return the kernel, not compiled yet, of an element type, a mode and, where out has another element type, that.

    ``make_angles(call, b, t, cosines_at, sines_at)`` makes those of all pairs of a row, and of up to MARGIN more.
    """
    element = a.ELEMENTS[dtype]
    size, itemsize = element.real_bytes, element.itemsize
    target_element, real = element if out_dtype is None else a.mixed(out_dtype, element.real), element.number
    rotate_row = loops.rotate_row(element, target_element)
    direct_sines = loops.direct_sines(element)
    copy_channels, variant = loops.copy_channels(element, target_element), variant_of(name, dtype, mode, out_dtype)
    inline = scheduler.inline_as(variant)

    @inline
    def rotate_heads(call, control, array, b, t0, t1, cosines_at, sines_at):
        """Rotate rows t0 ... t1 - 1 of one sequence, in all heads of q or k; ``array`` is the index of its first word."""
        x_at, out_at = word(call, array + rotated.x), word(call, array + rotated.out)
        strides = array + (rotated.batch_stride if mode == OUT_OF_PLACE else rotated.out_batch_stride)
        out_strides, pairs, heads = array + rotated.out_batch_stride, word(call, at.pairs), word(call, array + rotated.heads)
        x_stride, out_stride = word(call, strides + 3), word(call, out_strides + 3)
        first, head_dim = word(call, at.first_channel), word(call, at.head_dim)
        x_step, out_step, row_stride = word(call, strides + 2), word(call, out_strides + 2), word(call, strides + 1)
        groups, count, angle_bytes = (heads + HEADS_AT_ONCE - 1) // HEADS_AT_ONCE, t1 - t0, pairs * size
        factor = real(number(call, array + rotated.out_factor))
        # The inner loop takes what lies closer together: the rows of a head, or the heads of a row.
        heads_inside = abs(x_step) < abs(row_stride)
        outer, inner, outer_step, inner_step = groups, count, HEADS_AT_ONCE * x_step, row_stride
        if heads_inside:
            outer, inner, outer_step, inner_step = inner, outer, inner_step, outer_step
        ahead_by = min(inner, word(control, ctl.ahead_bytes) // (HEADS_AT_ONCE * head_dim * itemsize) + 1)
        for i in range(outer):
            for j in range(inner):
                g, t = (j, t0 + i) if heads_inside else (i, t0 + j)
                h, kept = g * HEADS_AT_ONCE, is_kept(call, b, t)
                target = row_at(call, out_at, out_strides, b, t, h)
                source = row_at(call, x_at, strides, b, t, h) if mode == OUT_OF_PLACE else target
                cosines, sines = cosines_at + (t - t0) * angle_bytes, sines_at + (t - t0) * angle_bytes
                ahead = ahead_by * inner_step
                if j + ahead_by >= inner:
                    ahead += outer_step - inner * inner_step
                at_once = min(HEADS_AT_ONCE, heads - h)
                if kept:
                    rotate_row(
                        call, cosines, sines, at_once, source, target, x_stride, out_stride, ahead, x_step, out_step, factor
                    )
                if mode == OUT_OF_PLACE:
                    for one in range(at_once):
                        x, out = source + one * x_step, target + one * out_step
                        copy_channels(0, first if kept else head_dim, x, out, x_stride, out_stride, factor)
                        if kept:
                            copy_channels(first + 2 * pairs, head_dim, x, out, x_stride, out_stride, factor)

    @inline
    def work(call, control, scratch, chunk):
        """Rotate a chunk: some rows of some sequences."""
        pairs, block_rows = word(call, at.pairs), word(control, ctl.block_rows)
        cosines_at, sines_at = scratch, scratch + (block_rows * pairs + abi.MARGIN) * size
        t_first, t_last, b_first, b_last = rows_of_chunk(word(call, at.rows), word(call, at.batch), control, chunk)
        same_positions = word(call, at.positions_batch_stride) == 0
        t1 = t_first
        while t1 < t_last:
            t0, t1 = t1, min(t_last, t1 + block_rows)
            for b in range(b_first, b_last):
                if b == b_first or not same_positions:
                    for t in range(t0, t1):
                        skipped = (t - t0) * pairs * size
                        make_angles(call, b, t, cosines_at + skipped, sines_at + skipped)
                        direct_sines(call, sines_at + skipped)
                for array in (at.q, at.k):
                    if word(call, array + rotated.out) != 0:
                        rotate_heads(call, control, array, b, t0, t1, cosines_at, sines_at)

    return scheduler.scheduled(work, variant)


def variant_of(name: str, dtype: str, mode: int, out_dtype: str | None) -> str:
    """The name of the kernel of these types."""
    return "_".join((name, a.ELEMENTS[dtype].suffix, MODES[mode], *([] if out_dtype is None else [out_dtype])))
