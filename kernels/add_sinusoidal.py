"""x*input_scale + amplitude*PE(position), in place, out of place, or PE alone: the CPU twin of ``add_sinusoidal.cu``.

PE[p, sine column f] = sin(p w_f), PE[p, cosine column f] = cos(p w_f)  (Vaswani et al. 2017, section 3.5).

    x, out: (B, T, H, D), byte strides of any sign and size, f16 | bf16 | f32 | f64; x may be out, or 0 (PE alone)
    positions: (B, T, H) int64 in units of 2^-32, byte strides, or 0: row t stands at start + t
    mask: (B, T) bytes, byte strides, or 0; a row whose byte is 0 keeps x unscaled
    frequencies, whole_turns: (F,) uint64, the fraction (2^-64 turn) and the integer part of a frequency in turns, F = ceil(D/2)
    cosines, sines: (8, F) f32, cos(j w_f) and sin(j w_f) for j = 0 ... 7; sines negated where the cosine is the first function

16- and 32-bit arrays: eight rows share an anchor, the polynomial at the position with its three lowest integer bits cleared; a row
is one rotation of it: first' = fma(first, cos, second*sin), second' = fma(second, cos, -(first*sin)), where `first` and `second` are
the functions (sine, cosine, or cosine, sine) in the order of their columns. float64 arrays: the polynomial at the position itself.

A chunk is worked on in blocks of a few rows: the encoding is made in a buffer in column order, then added to every sequence and head
that shares the positions. Adding streams through x alone, which is what lets it run at the memory's speed. Threads claim chunks from
an atomic counter in the control block; whoever calls with ``waits`` set returns when all chunks are finished. Bytes moved per
element: read and write of x, and 8 (12 where made) from the caches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numba import carray

from . import arithmetic as a

# The argument block: int64 words in this order (the last two are float64). `add_sinusoidal.cu` declares the same.
ARGUMENTS = (
    "x",
    "out",
    "batch",
    "rows",
    "heads",
    "width",
    "x_batch_stride",
    "x_row_stride",
    "x_head_stride",
    "x_column_stride",
    "out_batch_stride",
    "out_row_stride",
    "out_head_stride",
    "out_column_stride",
    "positions",
    "positions_batch_stride",
    "positions_row_stride",
    "positions_head_stride",
    "start",
    "mask",
    "mask_batch_stride",
    "mask_row_stride",
    "frequencies",
    "whole_turns",
    "cosines",
    "sines",
    "interleaved",
    "cosine_first",
    "second_half",
    "tail_column",
    "tail_is_cosine",
    "amplitude",
    "input_scale",
)
(
    X,
    OUT,
    BATCH,
    ROWS,
    HEADS,
    WIDTH,
    X_BATCH_STRIDE,
    X_ROW_STRIDE,
    X_HEAD_STRIDE,
    X_COLUMN_STRIDE,
    OUT_BATCH_STRIDE,
    OUT_ROW_STRIDE,
    OUT_HEAD_STRIDE,
    OUT_COLUMN_STRIDE,
    POSITIONS,
    POSITIONS_BATCH_STRIDE,
    POSITIONS_ROW_STRIDE,
    POSITIONS_HEAD_STRIDE,
    START,
    MASK,
    MASK_BATCH_STRIDE,
    MASK_ROW_STRIDE,
    FREQUENCIES,
    WHOLE_TURNS,
    COSINES,
    SINES,
    INTERLEAVED,
    COSINE_FIRST,
    SECOND_HALF,
    TAIL_COLUMN,
    TAIL_IS_COSINE,
    AMPLITUDE,
    INPUT_SCALE,
) = range(len(ARGUMENTS))

# The control block: int64 words; the two counters are on cache lines of their own.
NEXT_CHUNK, FINISHED_CHUNKS, CHUNKS, ROWS_PER_CHUNK, BATCH_PER_CHUNK, YIELD_FUNCTION = 0, 16, 32, 33, 34, 35
CONTROL_WORDS = 40

ANCHOR_ROWS = 8
BLOCK_BYTES = (
    1 << 14
)  # of encoding made at a time: beside the rotations it stays in the first-level cache; twice that where shared
_ANCHOR_32 = ~((ANCHOR_ROWS - 1) << 32)  # clears the three lowest integer bits of a position
_ANCHOR_64 = -1  # float64: every position is its own anchor


@a.inline
def _position(call, b, t, h):
    if call[POSITIONS] == 0:
        return call[START] + (np.int64(t) << np.int64(32))
    address = (
        call[POSITIONS] + b * call[POSITIONS_BATCH_STRIDE] + t * call[POSITIONS_ROW_STRIDE] + h * call[POSITIONS_HEAD_STRIDE]
    )
    return carray(a.pointer_i64(np.uint64(address)), (1,))[0]


# ---- the two functions of every frequency at one position --------------------------------------------------------------------


@a.inline
def _evaluate_32(call, amplitude, position, turns_at, first_at, second_at):
    count = (call[WIDTH] + 1) // 2
    first = carray(a.pointer_f32(first_at), (count,))
    second = carray(a.pointer_f32(second_at), (count,))
    if position == a.NOT_A_POSITION:
        first[:] = np.float32(np.nan)
        second[:] = np.float32(np.nan)
        return
    sine, cosine = first, second
    if call[COSINE_FIRST] != 0:
        sine, cosine = second, first
    turns = carray(a.pointer_u32(turns_at), (count,))
    frequencies = carray(a.pointer_u64(np.uint64(call[FREQUENCIES])), (count,))
    if np.uint64(position) & np.uint64(0xFFFFFFFF) == np.uint64(0):
        whole = np.uint64(position >> 32)
        for f in range(count):
            turns[f] = np.uint32((whole * frequencies[f]) >> np.uint64(32))
    else:
        whole_turns = carray(a.pointer_u64(np.uint64(call[WHOLE_TURNS])), (count,))
        for f in range(count):
            turns[f] = np.uint32(a.phase(position, frequencies[f], whole_turns[f]) >> np.uint64(32))
    for f in range(count):  # a loop of its own: twice the lanes of one that holds 64-bit phases
        s, c = a.sincos_32(turns[f])
        sine[f] = s * amplitude
        cosine[f] = c * amplitude


@a.inline
def _evaluate_64(call, amplitude, position, turns_at, first_at, second_at):
    count = (call[WIDTH] + 1) // 2
    first = carray(a.pointer_f64(first_at), (count,))
    second = carray(a.pointer_f64(second_at), (count,))
    if position == a.NOT_A_POSITION:
        first[:] = np.nan
        second[:] = np.nan
        return
    sine, cosine = first, second
    if call[COSINE_FIRST] != 0:
        sine, cosine = second, first
    frequencies = carray(a.pointer_u64(np.uint64(call[FREQUENCIES])), (count,))
    if np.uint64(position) & np.uint64(0xFFFFFFFF) == np.uint64(0):
        whole = np.uint64(position >> 32)
        for f in range(count):
            s, c = a.sincos_64(whole * frequencies[f])
            sine[f] = s * amplitude
            cosine[f] = c * amplitude
    else:
        whole_turns = carray(a.pointer_u64(np.uint64(call[WHOLE_TURNS])), (count,))
        for f in range(count):
            s, c = a.sincos_64(a.phase(position, frequencies[f], whole_turns[f]))
            sine[f] = s * amplitude
            cosine[f] = c * amplitude


# ---- rows of the encoding ----------------------------------------------------------------------------------------------------


@a.inline
def _rotate_row(call, j, first_at, second_at, row_at):
    """Rotate the anchor by j positions into a row in column order."""
    count, pairs = (call[WIDTH] + 1) // 2, call[WIDTH] // 2
    first, second = carray(a.pointer_f32(first_at), (count,)), carray(a.pointer_f32(second_at), (count,))
    row = carray(a.pointer_f32(row_at), (call[WIDTH],))
    cosines = carray(a.pointer_f32(np.uint64(call[COSINES] + 4 * count * j)), (count,))
    sines = carray(a.pointer_f32(np.uint64(call[SINES] + 4 * count * j)), (count,))
    if call[INTERLEAVED] != 0:
        for f in range(pairs):
            row[2 * f] = a.fma(first[f], cosines[f], second[f] * sines[f])
            row[2 * f + 1] = a.fma(second[f], cosines[f], -(first[f] * sines[f]))
    else:
        second_block = carray(a.pointer_f32(row_at + np.uint64(4 * call[SECOND_HALF])), (pairs,))
        for f in range(pairs):
            row[f] = a.fma(first[f], cosines[f], second[f] * sines[f])
            second_block[f] = a.fma(second[f], cosines[f], -(first[f] * sines[f]))
    if call[TAIL_COLUMN] >= 0:
        f = pairs
        u = a.fma(first[f], cosines[f], second[f] * sines[f])
        v = a.fma(second[f], cosines[f], -(first[f] * sines[f]))
        row[call[TAIL_COLUMN]] = u if (call[TAIL_IS_COSINE] != 0) == (call[COSINE_FIRST] != 0) else v


@a.inline
def _place_row(call, j, first_at, second_at, row_at):
    """float64: the anchor is the row itself, and is only put into column order."""
    count, pairs = (call[WIDTH] + 1) // 2, call[WIDTH] // 2
    first, second = carray(a.pointer_f64(first_at), (count,)), carray(a.pointer_f64(second_at), (count,))
    row = carray(a.pointer_f64(row_at), (call[WIDTH],))
    if call[INTERLEAVED] != 0:
        for f in range(pairs):
            row[2 * f] = first[f]
            row[2 * f + 1] = second[f]
    else:
        second_block = carray(a.pointer_f64(row_at + np.uint64(8 * call[SECOND_HALF])), (pairs,))
        for f in range(pairs):
            row[f] = first[f]
            second_block[f] = second[f]
    if call[TAIL_COLUMN] >= 0:
        takes_first = (call[TAIL_IS_COSINE] != 0) == (call[COSINE_FIRST] != 0)
        row[call[TAIL_COLUMN]] = first[pairs] if takes_first else second[pairs]


# ---- one element type --------------------------------------------------------------------------------------------------------


class _Element(NamedTuple):
    """What the kernel of an element type is made of."""

    suffix: str
    itemsize: int
    real: Any  # the type of the arithmetic
    pointer: Any  # address -> pointer to elements
    load: Any  # stored bits -> real
    store: Any  # real -> stored bits
    load_at: Any  # address of any alignment -> stored bits
    store_at: Any
    anchor_bits: int  # which bits of a position its anchor keeps
    evaluate: Any
    write_row: Any


_same = a.inline(lambda value: value)
_F32, _F64 = (_ANCHOR_32, _evaluate_32, _rotate_row), (_ANCHOR_64, _evaluate_64, _place_row)
ELEMENTS = {
    "float32": _Element("f32", 4, np.float32, a.pointer_f32, _same, _same, a.load_f32, a.store_f32, *_F32),
    "float64": _Element("f64", 8, np.float64, a.pointer_f64, _same, _same, a.load_f64, a.store_f64, *_F64),
    "float16": _Element("f16", 2, np.float32, a.pointer_u16, a.f16_to_f32, a.f32_to_f16, a.load_u16, a.store_u16, *_F32),
    "bfloat16": _Element("bf16", 2, np.float32, a.pointer_u16, a.bf16_to_f32, a.f32_to_bf16, a.load_u16, a.store_u16, *_F32),
}

# Where x is. Each mode is a kernel of its own: the compiler must know that a row in place reads what it writes.
IN_PLACE, OUT_OF_PLACE, ALONE = 0, 1, 2
MODES = {IN_PLACE: "in_place", OUT_OF_PLACE: "out", ALONE: "alone"}


def _adders(element: _Element, mode: int) -> Any:
    """Loops that add rows of the encoding to x: contiguous elements, any strides, and the copy of a masked row."""
    load, store, pointer, load_at, store_at = element.load, element.store, element.pointer, element.load_at, element.store_at
    real_pointer = a.pointer_f64 if element.real is np.float64 else a.pointer_f32

    @a.inline
    def add_contiguous(source, target, rows_at, size, scale):
        rows = carray(real_pointer(rows_at), (size,))
        out = carray(pointer(np.uint64(target)), (size,))
        x = out
        if mode == OUT_OF_PLACE:
            x = carray(pointer(np.uint64(source)), (size,))
        for d in range(size):
            value = rows[d]
            if mode != ALONE:
                value = load(x[d]) * scale + value
            out[d] = store(value)

    @a.inline
    def add_strided(call, source, target, row_at, scale):
        row = carray(real_pointer(row_at), (call[WIDTH],))
        for d in range(call[WIDTH]):
            value = row[d]
            if mode != ALONE:
                value = load(load_at(np.uint64(source + d * call[X_COLUMN_STRIDE]))) * scale + value
            store_at(np.uint64(target + d * call[OUT_COLUMN_STRIDE]), store(value))

    @a.inline
    def copy_row(call, source, target):
        if mode == OUT_OF_PLACE:
            for d in range(call[WIDTH]):
                bits = load_at(np.uint64(source + d * call[X_COLUMN_STRIDE]))
                store_at(np.uint64(target + d * call[OUT_COLUMN_STRIDE]), bits)

    return add_contiguous, add_strided, copy_row


# ---- the kernel --------------------------------------------------------------------------------------------------------------


def build(dtype: str, mode: int) -> Any:
    """Return the kernel, not compiled yet, of an element type and a mode."""
    element = ELEMENTS[dtype]
    real, itemsize, anchor_bits = element.real, element.itemsize, element.anchor_bits
    evaluate, write_row = element.evaluate, element.write_row
    real_bytes = np.dtype(real).itemsize
    add_contiguous, add_strided, copy_row = _adders(element, mode)

    @a.inline
    def is_contiguous(call):
        """Whether every row of x and out is a plain array of aligned elements."""
        bits = call[OUT] | call[OUT_BATCH_STRIDE] | call[OUT_ROW_STRIDE] | call[OUT_HEAD_STRIDE]
        if mode != ALONE:
            bits |= call[X] | call[X_BATCH_STRIDE] | call[X_ROW_STRIDE] | call[X_HEAD_STRIDE]
            if call[X_COLUMN_STRIDE] != itemsize:
                return False
        return call[OUT_COLUMN_STRIDE] == itemsize and (bits & (itemsize - 1)) == 0

    @a.inline
    def is_dense(call):
        """Whether a sequence's rows lie one behind the other."""
        row_bytes = itemsize * call[WIDTH]
        dense = call[MASK] == 0 and call[OUT_ROW_STRIDE] == row_bytes
        return dense and (mode == ALONE or call[X_ROW_STRIDE] == row_bytes)

    @a.inline
    def add_block(call, contiguous, dense, b, t0, count, h, block_at, scale):
        """Add `count` rows of the encoding to rows t0 ... of one sequence and head."""
        row_bytes = np.uint64(real_bytes * call[WIDTH])
        source = np.int64(0)
        target = call[OUT] + b * call[OUT_BATCH_STRIDE] + t0 * call[OUT_ROW_STRIDE] + h * call[OUT_HEAD_STRIDE]
        if mode != ALONE:
            source = call[X] + b * call[X_BATCH_STRIDE] + t0 * call[X_ROW_STRIDE] + h * call[X_HEAD_STRIDE]
        if contiguous and dense:
            add_contiguous(source, target, block_at, count * call[WIDTH], scale)
            return
        for r in range(count):
            kept = True
            if call[MASK] != 0:
                byte = call[MASK] + b * call[MASK_BATCH_STRIDE] + (t0 + r) * call[MASK_ROW_STRIDE]
                kept = carray(a.pointer_u8(np.uint64(byte)), (1,))[0] != 0
            if not kept:
                copy_row(call, source, target)
            elif contiguous:
                add_contiguous(source, target, block_at + np.uint64(r) * row_bytes, call[WIDTH], scale)
            else:
                add_strided(call, source, target, block_at + np.uint64(r) * row_bytes, scale)
            target += call[OUT_ROW_STRIDE]
            source += call[X_ROW_STRIDE]

    @a.inline
    def run_end(call, b, t, last, h, anchor):
        """First row after t that has another anchor (or `last`)."""
        if call[POSITIONS] == 0:
            if anchor_bits == _ANCHOR_64:
                return t + 1
            position = call[START] + (np.int64(t) << np.int64(32))
            return min(last, t + ANCHOR_ROWS - ((position >> 32) & (ANCHOR_ROWS - 1)))
        end = t + 1
        while end < last and (_position(call, b, end, h) & anchor_bits) == anchor:
            end += 1
        return end

    def kernel(call_address, control_address, waits):
        call = carray(a.pointer_i64(call_address), (len(ARGUMENTS),))
        control = carray(a.pointer_i64(control_address), (CONTROL_WORDS,))
        scales = carray(a.pointer_f64(call_address), (len(ARGUMENTS),))
        float_mode = a.exchange_float_mode(a.DEFAULT_FLOAT_MODE)  # before the first float is rounded
        amplitude, scale = real(scales[AMPLITUDE]), real(scales[INPUT_SCALE])
        width = call[WIDTH]
        count = (width + 1) // 2
        batch_varies, heads_vary = call[POSITIONS_BATCH_STRIDE] != 0, call[POSITIONS_HEAD_STRIDE] != 0
        shared = (call[BATCH] > 1 and not batch_varies) or (call[HEADS] > 1 and not heads_vary)
        block_rows = max(1, (2 * BLOCK_BYTES if shared else BLOCK_BYTES) // (width * real_bytes))
        block_rows = min(block_rows, control[ROWS_PER_CHUNK])
        # One allocation, used by address: an array that Numba slices costs two atomic operations a slice.
        scratch = np.empty(2 * count + block_rows * width + count, real)
        first_at = np.uint64(scratch.ctypes.data)
        second_at = first_at + np.uint64(real_bytes * count)
        turns_at = second_at + np.uint64(real_bytes * count)
        block_at = turns_at + np.uint64(real_bytes * count)
        contiguous, dense = is_contiguous(call), is_dense(call)
        rows_per_chunk, batch_per_chunk, chunks = control[ROWS_PER_CHUNK], control[BATCH_PER_CHUNK], control[CHUNKS]
        batch_chunks = (call[BATCH] + batch_per_chunk - 1) // batch_per_chunk
        while True:
            chunk = a.fetch_add(control_address + np.uint64(8 * NEXT_CHUNK), 1)
            if chunk >= chunks:
                break
            t_first = (chunk // batch_chunks) * rows_per_chunk
            t_last = min(call[ROWS], t_first + rows_per_chunk)
            b_first = (chunk % batch_chunks) * batch_per_chunk
            b_last = min(call[BATCH], b_first + batch_per_chunk)
            # Sequences and heads whose positions differ are outer loops; those that share them are inner loops of one block.
            for b_outer in range(b_first, b_last if batch_varies else b_first + 1):
                for h_outer in range(call[HEADS] if heads_vary else 1):
                    t, run = t_first, t_first
                    while t < t_last:
                        t0 = t
                        while t < t_last and t - t0 < block_rows:
                            position = _position(call, b_outer, t, h_outer)
                            if t == run:
                                anchor = position & anchor_bits
                                run = run_end(call, b_outer, t, t_last, h_outer, anchor)
                                evaluate(call, amplitude, anchor, turns_at, first_at, second_at)
                            j = (position >> 32) & (ANCHOR_ROWS - 1)
                            write_row(call, j, first_at, second_at, block_at + np.uint64((t - t0) * width * real_bytes))
                            t += 1
                        for b in range(b_outer, b_outer + 1 if batch_varies else b_last):
                            for h in range(h_outer, h_outer + 1 if heads_vary else call[HEADS]):
                                add_block(call, contiguous, dense, b, t0, t - t0, h, block_at, scale)
            a.fetch_add(control_address + np.uint64(8 * FINISHED_CHUNKS), 1)
        a.exchange_float_mode(float_mode)
        scratch[0] = real(0)  # Numba frees an array after its last use, and does not see the uses by address
        if waits:
            while a.atomic_load(control_address + np.uint64(8 * FINISHED_CHUNKS)) < chunks:
                if control[YIELD_FUNCTION] != 0:
                    a.call_function(np.uint64(control[YIELD_FUNCTION]))

    kernel.__name__ = kernel.__qualname__ = f"add_sinusoidal_{element.suffix}_{MODES[mode]}"
    return kernel


SIGNATURE = numba.void(numba.uint64, numba.uint64, numba.boolean)
