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

Threads claim chunks of rows from an atomic counter in the control block; whoever calls with ``waits`` set returns when all chunks
are finished. Bytes moved per element: read and write of x, and from the caches 4 of tables and 4 of anchors.
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
def _evaluate_32(call, amplitude, position, first, second):
    count = first.size
    if position == a.NOT_A_POSITION:
        first[:] = np.float32(np.nan)
        second[:] = np.float32(np.nan)
        return
    sine, cosine = first, second
    if call[COSINE_FIRST] != 0:
        sine, cosine = second, first
    frequencies = carray(a.pointer_u64(np.uint64(call[FREQUENCIES])), (count,))
    if np.uint64(position) & np.uint64(0xFFFFFFFF) == np.uint64(0):
        whole = np.uint64(position >> 32)
        for f in range(count):
            s, c = a.sincos_32(np.uint32((whole * frequencies[f]) >> np.uint64(32)))
            sine[f] = s * amplitude
            cosine[f] = c * amplitude
    else:
        whole_turns = carray(a.pointer_u64(np.uint64(call[WHOLE_TURNS])), (count,))
        for f in range(count):
            s, c = a.sincos_32(np.uint32(a.phase(position, frequencies[f], whole_turns[f]) >> np.uint64(32)))
            sine[f] = s * amplitude
            cosine[f] = c * amplitude


@a.inline
def _evaluate_64(call, amplitude, position, first, second):
    count = first.size
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


# ---- one element type --------------------------------------------------------------------------------------------------------


class _Element(NamedTuple):
    """What the kernel of an element type is made of."""

    suffix: str
    itemsize: int
    real: Any  # the type of the arithmetic
    pointer: Any  # address -> pointer to elements
    pair_pointer: Any  # address -> pointer to two adjacent 16-bit elements as one word, or None
    load: Any  # stored bits -> real
    store: Any  # real -> stored bits
    load_at: Any  # address of any alignment -> stored bits
    store_at: Any
    anchor_bits: int  # which bits of a position its anchor keeps
    evaluate: Any


_same = a.inline(lambda value: value)
ELEMENTS = {
    "float32": _Element(
        "f32", 4, np.float32, a.pointer_f32, None, _same, _same, a.load_f32, a.store_f32, _ANCHOR_32, _evaluate_32
    ),
    "float64": _Element(
        "f64", 8, np.float64, a.pointer_f64, None, _same, _same, a.load_f64, a.store_f64, _ANCHOR_64, _evaluate_64
    ),
    "float16": _Element(
        "f16",
        2,
        np.float32,
        a.pointer_u16,
        a.pointer_u32,
        a.f16_to_f32,
        a.f32_to_f16,
        a.load_u16,
        a.store_u16,
        _ANCHOR_32,
        _evaluate_32,
    ),
    "bfloat16": _Element(
        "bf16",
        2,
        np.float32,
        a.pointer_u16,
        a.pointer_u32,
        a.bf16_to_f32,
        a.f32_to_bf16,
        a.load_u16,
        a.store_u16,
        _ANCHOR_32,
        _evaluate_32,
    ),
}

# Where x is. Each mode is a kernel of its own: the compiler must know that a row in place reads what it writes.
IN_PLACE, OUT_OF_PLACE, ALONE = 0, 1, 2
MODES = {IN_PLACE: "in_place", OUT_OF_PLACE: "out", ALONE: "alone"}


def _rotation(element: _Element) -> Any:
    """(first, second, cosines, sines, f) -> the two values of a row; `cosines` and `sines` are the row's rotation."""
    if element.anchor_bits == _ANCHOR_64:

        @a.inline
        def values(first, second, cosines, sines, f):
            return first[f], second[f]
    else:

        @a.inline
        def values(first, second, cosines, sines, f):
            return (
                a.fma(first[f], cosines[f], second[f] * sines[f]),
                a.fma(second[f], cosines[f], -(first[f] * sines[f])),
            )

    return values


def _row_in_columns(element: _Element, mode: int, values: Any) -> Any:
    """Row loop for any strides and the tail: one address for each column."""
    load, store, load_at, store_at = element.load, element.store, element.load_at, element.store_at

    @a.inline
    def write_column(call, source, target, column, value, scale):
        if mode != ALONE:
            value = load(load_at(np.uint64(source + column * call[X_COLUMN_STRIDE]))) * scale + value
        store_at(np.uint64(target + column * call[OUT_COLUMN_STRIDE]), store(value))

    @a.inline
    def write_row(call, source, target, first, second, cosines, sines, scale):
        step = 2 if call[INTERLEAVED] != 0 else 1
        second_column = 1 if call[INTERLEAVED] != 0 else call[SECOND_HALF]
        for f in range(call[WIDTH] // 2):
            u, v = values(first, second, cosines, sines, f)
            write_column(call, source, target, step * f, u, scale)
            write_column(call, source, target, step * f + second_column, v, scale)

    @a.inline
    def write_tail(call, source, target, first, second, cosines, sines, scale):
        if call[TAIL_COLUMN] >= 0:
            u, v = values(first, second, cosines, sines, call[WIDTH] // 2)
            takes_first = (call[TAIL_IS_COSINE] != 0) == (call[COSINE_FIRST] != 0)
            write_column(call, source, target, call[TAIL_COLUMN], u if takes_first else v, scale)

    @a.inline
    def copy_row(call, source, target):
        if mode == OUT_OF_PLACE:
            for d in range(call[WIDTH]):
                bits = load_at(np.uint64(source + d * call[X_COLUMN_STRIDE]))
                store_at(np.uint64(target + d * call[OUT_COLUMN_STRIDE]), bits)

    return write_row, write_tail, copy_row


def _row_interleaved(element: _Element, mode: int, values: Any) -> Any:
    """Row loop for contiguous interleaved columns: pairs side by side."""
    load, store, pointer, pair_pointer = element.load, element.store, element.pointer, element.pair_pointer

    @a.inline
    def write_row(call, source, target, first, second, cosines, sines, scale):
        pairs = call[WIDTH] // 2
        out = carray(pointer(np.uint64(target)), (2 * pairs,))
        x = out
        if mode == OUT_OF_PLACE:
            x = carray(pointer(np.uint64(source)), (2 * pairs,))
        for f in range(pairs):
            u, v = values(first, second, cosines, sines, f)
            if mode != ALONE:
                u = load(x[2 * f]) * scale + u
                v = load(x[2 * f + 1]) * scale + v
            out[2 * f] = store(u)
            out[2 * f + 1] = store(v)

    @a.inline
    def write_row_of_words(call, source, target, first, second, cosines, sines, scale):
        pairs = call[WIDTH] // 2
        out = carray(pair_pointer(np.uint64(target)), (pairs,))
        x = out
        if mode == OUT_OF_PLACE:
            x = carray(pair_pointer(np.uint64(source)), (pairs,))
        for f in range(pairs):
            u, v = values(first, second, cosines, sines, f)
            if mode != ALONE:
                word = x[f]
                u = load(np.uint16(word)) * scale + u
                v = load(np.uint16(word >> np.uint32(16))) * scale + v
            out[f] = np.uint32(store(u)) | (np.uint32(store(v)) << np.uint32(16))

    return write_row if pair_pointer is None else write_row_of_words


def _row_concatenated(element: _Element, mode: int, values: Any) -> Any:
    """Row loop for contiguous concatenated columns: two blocks."""
    load, store, pointer, itemsize = element.load, element.store, element.pointer, element.itemsize

    @a.inline
    def write_row(call, source, target, first, second, cosines, sines, scale):
        pairs = call[WIDTH] // 2
        skip = itemsize * call[SECOND_HALF]
        out_first = carray(pointer(np.uint64(target)), (pairs,))
        out_second = carray(pointer(np.uint64(target + skip)), (pairs,))
        x_first, x_second = out_first, out_second
        if mode == OUT_OF_PLACE:
            x_first = carray(pointer(np.uint64(source)), (pairs,))
            x_second = carray(pointer(np.uint64(source + skip)), (pairs,))
        for f in range(pairs):
            u, v = values(first, second, cosines, sines, f)
            if mode != ALONE:
                u = load(x_first[f]) * scale + u
                v = load(x_second[f]) * scale + v
            out_first[f] = store(u)
            out_second[f] = store(v)

    return write_row


# ---- the kernel --------------------------------------------------------------------------------------------------------------


def build(dtype: str, interleaved: bool, mode: int) -> Any:
    """Return the kernel, not compiled yet, of an element type, a layout and a mode."""
    element = ELEMENTS[dtype]
    real, itemsize, anchor_bits, evaluate = element.real, element.itemsize, element.anchor_bits, element.evaluate
    values = _rotation(element)
    write_row_in_columns, write_tail, copy_row = _row_in_columns(element, mode, values)
    write_row = (_row_interleaved if interleaved else _row_concatenated)(element, mode, values)
    alignment = (itemsize if element.pair_pointer is None or not interleaved else 2 * itemsize) - 1

    @a.inline
    def is_contiguous(call):
        """Whether every row of x and out is a plain array of aligned elements."""
        bits = call[OUT] | call[OUT_BATCH_STRIDE] | call[OUT_ROW_STRIDE] | call[OUT_HEAD_STRIDE]
        if mode != ALONE:
            bits |= call[X] | call[X_BATCH_STRIDE] | call[X_ROW_STRIDE] | call[X_HEAD_STRIDE]
            if call[X_COLUMN_STRIDE] != itemsize:
                return False
        return call[OUT_COLUMN_STRIDE] == itemsize and (bits & alignment) == 0

    @a.inline
    def write_run(call, contiguous, b, t0, t1, h, first, second, scale):
        """Write rows t0 ... t1 - 1 of one sequence and head; they share an anchor."""
        count = first.size
        source = np.int64(0)
        target = call[OUT] + b * call[OUT_BATCH_STRIDE] + t0 * call[OUT_ROW_STRIDE] + h * call[OUT_HEAD_STRIDE]
        if mode != ALONE:
            source = call[X] + b * call[X_BATCH_STRIDE] + t0 * call[X_ROW_STRIDE] + h * call[X_HEAD_STRIDE]
        for t in range(t0, t1):
            kept = True
            if call[MASK] != 0:
                byte = call[MASK] + b * call[MASK_BATCH_STRIDE] + t * call[MASK_ROW_STRIDE]
                kept = carray(a.pointer_u8(np.uint64(byte)), (1,))[0] != 0
            if kept:
                j = (_position(call, b, t, h) >> 32) & (ANCHOR_ROWS - 1)
                cosines = carray(a.pointer_f32(np.uint64(call[COSINES] + 4 * count * j)), (count,))
                sines = carray(a.pointer_f32(np.uint64(call[SINES] + 4 * count * j)), (count,))
                if contiguous:
                    write_row(call, source, target, first, second, cosines, sines, scale)
                else:
                    write_row_in_columns(call, source, target, first, second, cosines, sines, scale)
                write_tail(call, source, target, first, second, cosines, sines, scale)
            else:
                copy_row(call, source, target)
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
        amplitude, scale = real(scales[AMPLITUDE]), real(scales[INPUT_SCALE])
        count = (call[WIDTH] + 1) // 2
        first, second = np.empty(count, real), np.empty(count, real)
        contiguous = is_contiguous(call)
        batch_varies, heads_vary = call[POSITIONS_BATCH_STRIDE] != 0, call[POSITIONS_HEAD_STRIDE] != 0
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
            # Sequences and heads whose positions differ are outer loops; those that share them are inner loops of one anchor.
            for b_outer in range(b_first, b_last if batch_varies else b_first + 1):
                for h_outer in range(call[HEADS] if heads_vary else 1):
                    t = t_first
                    while t < t_last:
                        anchor = _position(call, b_outer, t, h_outer) & anchor_bits
                        end = run_end(call, b_outer, t, t_last, h_outer, anchor)
                        evaluate(call, amplitude, anchor, first, second)
                        for b in range(b_outer, b_outer + 1 if batch_varies else b_last):
                            for h in range(h_outer, h_outer + 1 if heads_vary else call[HEADS]):
                                write_run(call, contiguous, b, t, end, h, first, second, scale)
                        t = end
            a.fetch_add(control_address + np.uint64(8 * FINISHED_CHUNKS), 1)
        if waits:
            while a.atomic_load(control_address + np.uint64(8 * FINISHED_CHUNKS)) < chunks:
                if control[YIELD_FUNCTION] != 0:
                    a.call_function(np.uint64(control[YIELD_FUNCTION]))

    layout = "interleaved" if interleaved else "concatenated"
    kernel.__name__ = kernel.__qualname__ = f"add_sinusoidal_{element.suffix}_{layout}_{MODES[mode]}"
    return kernel


SIGNATURE = numba.void(numba.uint64, numba.uint64, numba.boolean)
