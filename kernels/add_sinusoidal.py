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

A row that shares its positions with no other is made and added in one pass. Where sequences or heads share them, or the result is
streamed past the caches, a block of rows is made in a buffer in column order and then added to each. Vectors, and what asks for x ahead
of time, are in `lanes.py`. Threads claim chunks from an atomic counter in the control block; whoever calls with ``waits`` set returns
when all chunks are finished. Bytes moved per element: read and write of x, and 4 to 8 from the caches.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from . import arithmetic as a
from . import lanes

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

# The control block: int64 words; the two counters are on cache lines of their own. KNOWN, unless 0, is the address of the finished
# rows of the positions 0, 1, ..., dense and in the type of the arithmetic; with FILLS they are what is made, and nothing else.
# SEATS is the address of SEAT_COUNT seats, or 0. The caller calls up to HELPERS helpers that wait in a seat. CALLED counts it and them;
# each adds one to LEFT when it will not look at the blocks again, so that they may be freed or used again when both are equal.
NEXT_CHUNK, FINISHED_CHUNKS, LEFT, CHUNKS, ROWS_PER_CHUNK, BATCH_PER_CHUNK, YIELD_FUNCTION = 0, 16, 32, 48, 49, 50, 51
STREAMS, KNOWN, FILLS, SEATS, HELPERS, CALLED = 52, 53, 54, 55, 56, 57
CONTROL_WORDS = 64

# A seat: a cache line in which a helper waits for a while for the next call of its kernel, which finds it sooner than a queue would.
SEAT_STATE, SEAT_CALL, SEAT_CONTROL, SEAT_WORDS, SEAT_COUNT = 0, 1, 2, 16, 16
FREE, WAITS, TAKEN, CALLS = 0, 1, 2, 3
WAIT_TURNS = 1 << 13  # pauses: about 0.3 ms, no more than twice what it takes to wake a thread on an idle core

ANCHOR_ROWS = 8
STREAMED_BYTES = 1 << 13  # of encoding made at a time before it is streamed out, where nothing shares it
MARGIN = 16  # numbers behind the frequencies and what is made of them: all is evaluated in whole vectors
SHARED_BYTES = 1 << 16  # of encoding made at a time where sequences or heads share it: stays in the second-level cache
AHEAD_BYTES = 1 << 12  # how many bytes before it is needed x is asked for
_ANCHOR_32 = ~((ANCHOR_ROWS - 1) << 32)  # clears the three lowest integer bits of a position
_ANCHOR_64 = -1  # float64: every position is its own anchor

_ZERO, _ONE = np.int64(0), np.int64(1)  # not literals, for each of which Numba would compile a helper anew


@a.inline
def _position(call, b, t, h):
    if call[POSITIONS] == 0:
        return call[START] + (np.int64(t) << np.int64(32))
    address = (
        call[POSITIONS] + b * call[POSITIONS_BATCH_STRIDE] + t * call[POSITIONS_ROW_STRIDE] + h * call[POSITIONS_HEAD_STRIDE]
    )
    return carray(a.pointer_i64(np.uint64(address)), (1,))[0]


# ---- steps: a vector's worth of a row, without a loop ------------------------------------------------------------------------


def _functions(
    builder: ir.IRBuilder,
    element: a.Element,
    count: int,
    fractional: bool,
    whole: ir.Value,
    part: ir.Value,
    frequencies: ir.Value,
    whole_turns: ir.Value,
    amplitude: ir.Value,
) -> tuple[lanes.Lanes, lanes.Lanes]:
    """Amplitude times sine and cosine of ``count`` frequencies at the position ``whole + part * 2^-32``."""
    fraction = lanes.load(builder, frequencies, lanes.I64, count, 8)
    places = lanes.spread(builder, whole, count)
    if fractional:
        turns = lanes.load(builder, whole_turns, lanes.I64, count, 8)
        phase = a.phase(places, lanes.spread(builder, part, count), fraction, turns)
    else:
        phase = places * fraction
    sine, cosine = a.sincos_64(phase) if element.real is lanes.F64 else a.sincos_32((phase >> 32).to(lanes.I32))
    factor = lanes.spread(builder, amplitude, count)
    return sine * factor, cosine * factor


def _add_pairs(
    element: a.Element,
    reads: bool,
    both: tuple[lanes.Lanes, lanes.Lanes],
    interleaved: bool,
    source: ir.Value,
    target: ir.Value,
    apart: ir.Value,
    scale: ir.Value,
    ahead: ir.Value,
) -> None:
    """Add pairs of columns: interleaved, side by side; otherwise the second functions lie ``apart`` bytes behind the first."""
    if interleaved:
        a.add(element, reads, lanes.interleave(*both), source, target, scale, ahead)
        return
    builder = both[0].builder
    a.add(element, reads, both[0], source, target, scale, ahead)
    a.add(element, reads, both[1], builder.add(source, apart), builder.add(target, apart), scale, ahead)


def _evaluate_step(element: a.Element, count: int, fractional: bool) -> Any:
    """Make the step that stores amplitude times sine and cosine of ``count`` frequencies at one position."""

    @intrinsic
    def step(typingctx, whole, part, frequencies, whole_turns, amplitude, sines, cosines):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            sine, cosine = _functions(builder, element, count, fractional, *arguments[:5])
            lanes.store(sine, arguments[5], element.real_bytes)
            lanes.store(cosine, arguments[6], element.real_bytes)
            return context.get_dummy_value()

        word = types.uint64
        return types.void(word, word, word, word, amplitude, word, word), generate

    return step


def _position_step(element: a.Element, reads: bool, count: int, interleaved: bool, fractional: bool) -> Any:
    """Make the step that evaluates ``count`` frequencies at one position and adds them: a float64 row is its own anchor."""

    @intrinsic
    def step(  # type: ignore[no-untyped-def]
        typingctx, whole, part, frequencies, whole_turns, amplitude, cosine_first, source, target, apart, scale, ahead
    ):
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            sine, cosine = _functions(builder, element, count, fractional, *arguments[:5])
            cosine_first, source, target, apart, scale, ahead = arguments[5:]
            swaps = lanes.Lanes(builder, cosine_first)
            both = swaps.choose(cosine, sine), swaps.choose(sine, cosine)
            _add_pairs(element, reads, both, interleaved, source, target, apart, scale, ahead)
            return context.get_dummy_value()

        word, number = types.uint64, types.int64
        return types.void(word, word, word, word, amplitude, types.boolean, word, word, number, scale, number), generate

    return step


def _pairs_step(element: a.Element, reads: bool, count: int, interleaved: bool) -> Any:
    """Make the step that adds ``count`` pairs of columns: in 32 bits the anchor, rotated, else the functions as they are."""

    @intrinsic
    def step(typingctx, first, second, cosine, sine, source, target, apart, scale, ahead):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            source, target, apart, scale, ahead = arguments[4:]
            both = [lanes.load(builder, address, element.real, count, element.real_bytes) for address in arguments[:2]]
            if element.real is lanes.F32:
                turn = [lanes.load(builder, address, element.real, count, element.real_bytes) for address in arguments[2:4]]
                both = list(a.rotate(*both, *turn))
            _add_pairs(element, reads, (both[0], both[1]), interleaved, source, target, apart, scale, ahead)
            return context.get_dummy_value()

        word = types.uint64
        return types.void(word, word, word, word, word, word, types.int64, scale, types.int64), generate

    return step


def _values_step(element: a.Element, reads: bool, count: int, streams: bool) -> Any:
    """Make the step that adds ``count`` finished values."""

    @intrinsic
    def step(typingctx, values, source, target, scale, ahead):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            values, source, target, scale, ahead = arguments
            found = lanes.load(builder, values, element.real, count, element.real_bytes)
            a.add(element, reads, found, source, target, scale, ahead, streams)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64, types.uint64, scale, types.int64), generate

    return step


def _copy_step(itemsize: int) -> Any:
    """Make the step that copies an element."""

    @intrinsic
    def step(typingctx, source, target):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            lanes.store(lanes.load(builder, arguments[0], ir.IntType(8 * itemsize), 1, 1), arguments[1], 1)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64), generate

    return step


# ---- rows --------------------------------------------------------------------------------------------------------------------


def _evaluator(element: a.Element) -> Any:
    """The two functions of the frequencies f0 ... f1 - 1 at one position, and of up to MARGIN more."""
    count, size, real = element.lanes, element.real_bytes, element.number
    whole_step, part_step = _evaluate_step(element, count, False), _evaluate_step(element, count, True)
    inline = a.inline_as(element.suffix)

    @inline
    def evaluate(call, amplitude, position, f0, f1, first_at, second_at):
        if position == a.NOT_A_POSITION:
            position, amplitude = np.int64(0), real(np.nan)
        sines, cosines = first_at + np.uint64(size * f0), second_at + np.uint64(size * f0)
        if call[COSINE_FIRST] != 0:
            sines, cosines = cosines, sines
        whole, part = np.uint64(position >> 32), np.uint64(position) & np.uint64(0xFFFFFFFF)
        w, n = np.uint64(call[FREQUENCIES] + 8 * f0), np.uint64(call[WHOLE_TURNS] + 8 * f0)
        vector, words = np.uint64(size * count), np.uint64(8 * count)
        if part == np.uint64(0):
            for _ in range((f1 - f0 + count - 1) // count):
                whole_step(whole, part, w, n, amplitude, sines, cosines)
                w, sines, cosines = w + words, sines + vector, cosines + vector
        else:
            for _ in range((f1 - f0 + count - 1) // count):
                part_step(whole, part, w, n, amplitude, sines, cosines)
                w, n, sines, cosines = w + words, n + words, sines + vector, cosines + vector

    return evaluate


def _pair_adder(element: a.Element, reads: bool) -> Any:
    """Columns of the pairs f0 ... f1 - 1 of a row, from the functions at its anchor; contiguous elements."""
    count, size, item = element.lanes, element.real_bytes, element.itemsize
    side_many, side_one = _pairs_step(element, reads, count, True), _pairs_step(element, reads, 1, True)
    apart_many, apart_one = _pairs_step(element, reads, count, False), _pairs_step(element, reads, 1, False)

    inline = a.inline_as(f"{element.suffix}_{'adds' if reads else 'writes'}")

    @inline
    def add_pairs(call, j, f0, f1, first_at, second_at, source, target, scale, ahead):
        row_at = np.uint64(size * ((call[WIDTH] + 1) // 2 * j + f0))
        u, v = first_at + np.uint64(size * f0), second_at + np.uint64(size * f0)
        c, s = np.uint64(call[COSINES]) + row_at, np.uint64(call[SINES]) + row_at
        many, one = np.uint64(size * count), np.uint64(size)
        if call[INTERLEAVED] != 0:
            x, out = np.uint64(source + 2 * item * f0), np.uint64(target + 2 * item * f0)
            for _ in range((f1 - f0) // count):
                side_many(u, v, c, s, x, out, 0, scale, ahead)
                u, v, c, s = u + many, v + many, c + many, s + many
                x, out = x + np.uint64(2 * item * count), out + np.uint64(2 * item * count)
            for _ in range((f1 - f0) % count):
                side_one(u, v, c, s, x, out, 0, scale, ahead)
                u, v, c, s = u + one, v + one, c + one, s + one
                x, out = x + np.uint64(2 * item), out + np.uint64(2 * item)
        else:
            apart = item * call[SECOND_HALF]
            x, out = np.uint64(source + item * f0), np.uint64(target + item * f0)
            for _ in range((f1 - f0) // count):
                apart_many(u, v, c, s, x, out, apart, scale, ahead)
                u, v, c, s = u + many, v + many, c + many, s + many
                x, out = x + np.uint64(item * count), out + np.uint64(item * count)
            for _ in range((f1 - f0) % count):
                apart_one(u, v, c, s, x, out, apart, scale, ahead)
                u, v, c, s = u + one, v + one, c + one, s + one
                x, out = x + np.uint64(item), out + np.uint64(item)

    return add_pairs


def _position_adder(element: a.Element, reads: bool) -> Any:
    """All pairs of a float64 row, from its position; contiguous elements."""
    count, item = element.lanes, element.itemsize
    steps = [
        _position_step(element, reads, number, interleaved, fractional)
        for interleaved in (True, False)
        for fractional in (False, True)
        for number in (count, 1)
    ]
    side_many, side_one, side_part_many, side_part_one, apart_many, apart_one, apart_part_many, apart_part_one = steps
    real = element.number

    inline = a.inline_as(f"{element.suffix}_{'adds' if reads else 'writes'}")

    @inline
    def add_position(call, amplitude, position, source, target, scale, ahead):
        if position == a.NOT_A_POSITION:
            position, amplitude = np.int64(0), real(np.nan)
        whole, part = np.uint64(position >> 32), np.uint64(position) & np.uint64(0xFFFFFFFF)
        w, n, swaps = np.uint64(call[FREQUENCIES]), np.uint64(call[WHOLE_TURNS]), call[COSINE_FIRST] != 0
        x, out, apart, pairs = np.uint64(source), np.uint64(target), item * call[SECOND_HALF], call[WIDTH] // 2
        word, side, wide = np.uint64(8), np.uint64(item), np.uint64(count)
        if call[INTERLEAVED] != 0:
            side = np.uint64(2 * item)
        for _ in range(pairs // count):
            if call[INTERLEAVED] != 0:
                if part == np.uint64(0):
                    side_many(whole, part, w, n, amplitude, swaps, x, out, apart, scale, ahead)
                else:
                    side_part_many(whole, part, w, n, amplitude, swaps, x, out, apart, scale, ahead)
            elif part == np.uint64(0):
                apart_many(whole, part, w, n, amplitude, swaps, x, out, apart, scale, ahead)
            else:
                apart_part_many(whole, part, w, n, amplitude, swaps, x, out, apart, scale, ahead)
            w, n, x, out = w + word * wide, n + word * wide, x + side * wide, out + side * wide
        for _ in range(pairs % count):
            if call[INTERLEAVED] != 0:
                if part == np.uint64(0):
                    side_one(whole, part, w, n, amplitude, swaps, x, out, apart, scale, ahead)
                else:
                    side_part_one(whole, part, w, n, amplitude, swaps, x, out, apart, scale, ahead)
            elif part == np.uint64(0):
                apart_one(whole, part, w, n, amplitude, swaps, x, out, apart, scale, ahead)
            else:
                apart_part_one(whole, part, w, n, amplitude, swaps, x, out, apart, scale, ahead)
            w, n, x, out = w + word, n + word, x + side, out + side

    return add_position


def _value_adder(element: a.Element, mode: int) -> Any:
    """Finished values of the encoding to a run of contiguous elements."""
    reads, item, size = mode != ALONE, element.itemsize, element.real_bytes
    count = a.LINE_BYTES // item
    many, one = _values_step(element, reads, count, False), _values_step(element, reads, 1, False)
    streamed = _values_step(element, reads, count, True)

    inline = a.inline_as(f"{element.suffix}_{MODES[mode]}")

    @inline
    def add_values(values, source, target, number, scale, ahead, streams):
        v, x, out = values, np.uint64(source), np.uint64(target)
        if mode != IN_PLACE and streams:
            while number > 0 and out & np.uint64(a.LINE_BYTES - 1) != np.uint64(0):
                one(v, x, out, scale, ahead)
                v, x, out, number = v + np.uint64(size), x + np.uint64(item), out + np.uint64(item), number - 1
            for _ in range(number // count):
                streamed(v, x, out, scale, ahead)
                v, x, out = v + np.uint64(size * count), x + np.uint64(64), out + np.uint64(64)
        else:
            for _ in range(number // count):
                many(v, x, out, scale, ahead)
                v, x, out = v + np.uint64(size * count), x + np.uint64(64), out + np.uint64(64)
        for _ in range(number % count):
            one(v, x, out, scale, ahead)
            v, x, out = v + np.uint64(size), x + np.uint64(item), out + np.uint64(item)

    return add_values


def _strided_adder(element: a.Element, mode: int) -> Any:
    """A finished row to elements of any strides and alignment, and the copy of a masked row."""
    one, copy_one, size = _values_step(element, mode != ALONE, 1, False), _copy_step(element.itemsize), element.real_bytes

    inline = a.inline_as(f"{element.suffix}_{MODES[mode]}")

    @inline
    def add_strided(call, values, source, target, scale):
        for d in range(call[WIDTH]):
            x, out = np.uint64(source + d * call[X_COLUMN_STRIDE]), np.uint64(target + d * call[OUT_COLUMN_STRIDE])
            one(values + np.uint64(size * d), x, out, scale, 0)

    @inline
    def copy_row(call, source, target):
        if mode == OUT_OF_PLACE:
            for d in range(call[WIDTH]):
                x, out = np.uint64(source + d * call[X_COLUMN_STRIDE]), np.uint64(target + d * call[OUT_COLUMN_STRIDE])
                copy_one(x, out)

    return add_strided, copy_row


# Where x is. Each mode is a kernel of its own: the compiler must know that a row in place reads what it writes.
IN_PLACE, OUT_OF_PLACE, ALONE = 0, 1, 2
MODES = {IN_PLACE: "in_place", OUT_OF_PLACE: "out", ALONE: "alone"}


# ---- the kernel --------------------------------------------------------------------------------------------------------------


@a.inline
def call_helpers(call_address, control_address):
    """Give the call to helpers that wait in seats."""
    control = carray(a.pointer_i64(control_address), (CONTROL_WORDS,))
    seat = np.uint64(control[SEATS])
    if seat == np.uint64(0):
        return
    for _ in range(SEAT_COUNT):
        if control[CALLED] > control[HELPERS]:
            return
        if a.atomic_load(seat) == WAITS and a.exchange_if(seat, WAITS, TAKEN):
            words = carray(a.pointer_i64(seat), (SEAT_WORDS,))
            words[SEAT_CALL], words[SEAT_CONTROL] = np.int64(call_address), np.int64(control_address)
            a.atomic_store(seat, CALLS)
            control[CALLED] += 1
        seat += np.uint64(8 * SEAT_WORDS)


@a.inline
def wait_in_seat(seat, give_up_processor):
    """Wait for a call; return the seat that holds it, or 0 if none came."""
    if seat == np.uint64(0):
        return seat
    last = seat + np.uint64(8 * SEAT_WORDS * (SEAT_COUNT - 1))
    while not a.exchange_if(seat, FREE, WAITS):
        if seat == last:
            return np.uint64(0)
        seat += np.uint64(8 * SEAT_WORDS)
    for turn in range(WAIT_TURNS):
        if a.atomic_load(seat) == CALLS:
            return seat
        if turn & 63 == 63 and give_up_processor != np.uint64(0):  # others may need it more
            a.call_function(give_up_processor)
        a.pause()
    if a.exchange_if(seat, WAITS, FREE):
        return np.uint64(0)
    while a.atomic_load(seat) != CALLS:  # a caller is writing to it
        a.pause()
    return seat


def build(dtype: str, mode: int) -> Any:
    """Return the kernel, not compiled yet, of an element type and a mode."""
    element = a.ELEMENTS[dtype]
    plain = a.ELEMENTS["float64" if element.real is lanes.F64 else "float32"]
    real, real_bytes, itemsize = element.number, element.real_bytes, element.itemsize
    anchor_bits = _ANCHOR_64 if element.real is lanes.F64 else _ANCHOR_32
    its_own_anchor = element.real is lanes.F64
    add_position = _position_adder(element, mode != ALONE) if its_own_anchor else None
    evaluate, add_pairs, write_pairs = _evaluator(element), _pair_adder(element, mode != ALONE), _pair_adder(plain, False)
    write_tail, write_value = _pairs_step(plain, False, 1, True), _values_step(plain, False, 1, False)
    add_values, (add_strided, copy_row) = _value_adder(element, mode), _strided_adder(element, mode)

    inline = a.inline_as(f"{element.suffix}_{MODES[mode]}")

    @inline
    def is_contiguous(call):
        """Whether every row of x and out is a plain array of aligned elements."""
        bits = call[OUT] | call[OUT_BATCH_STRIDE] | call[OUT_ROW_STRIDE] | call[OUT_HEAD_STRIDE]
        if mode != ALONE:
            bits |= call[X] | call[X_BATCH_STRIDE] | call[X_ROW_STRIDE] | call[X_HEAD_STRIDE]
            if call[X_COLUMN_STRIDE] != itemsize:
                return False
        return call[OUT_COLUMN_STRIDE] == itemsize and (bits & (itemsize - 1)) == 0

    @inline
    def is_dense(call):
        """Whether a sequence's rows lie one behind the other."""
        row_bytes = itemsize * call[WIDTH]
        dense = call[MASK] == 0 and call[OUT_ROW_STRIDE] == row_bytes
        return dense and (mode == ALONE or call[X_ROW_STRIDE] == row_bytes)

    @inline
    def source_at(call, b, t, h):
        if mode == ALONE:
            return np.int64(0)
        return call[X] + b * call[X_BATCH_STRIDE] + t * call[X_ROW_STRIDE] + h * call[X_HEAD_STRIDE]

    @inline
    def target_at(call, b, t, h):
        return call[OUT] + b * call[OUT_BATCH_STRIDE] + t * call[OUT_ROW_STRIDE] + h * call[OUT_HEAD_STRIDE]

    @inline
    def is_kept(call, b, t):
        if call[MASK] == 0:
            return True
        byte = call[MASK] + b * call[MASK_BATCH_STRIDE] + t * call[MASK_ROW_STRIDE]
        return carray(a.pointer_u8(np.uint64(byte)), (1,))[0] != 0

    @inline
    def add_block(call, contiguous, dense, b, t0, rows, h, block_at, scale, ahead, following, streams):
        """Add rows of the encoding to rows t0 ... of one sequence and head; the block at `following` comes next."""
        source, target = source_at(call, b, t0, h), target_at(call, b, t0, h)
        if contiguous and dense:
            size = rows * call[WIDTH]
            last = max(0, size - AHEAD_BYTES // itemsize)  # from there on it is the next block that is asked for
            for begin, end, distance in ((0, last, AHEAD_BYTES), (last, size, following - source - last * itemsize)):
                values, skipped = block_at + np.uint64(begin * real_bytes), begin * itemsize
                add_values(values, source + skipped, target + skipped, end - begin, scale, distance, streams)
            return
        for r in range(rows):
            row_at = block_at + np.uint64(r * call[WIDTH] * real_bytes)
            if not is_kept(call, b, t0 + r):
                copy_row(call, source, target)
            elif contiguous:
                add_values(row_at, source, target, call[WIDTH], scale, ahead, streams)
            else:
                add_strided(call, row_at, source, target, scale)
            source, target = source + call[X_ROW_STRIDE], target + call[OUT_ROW_STRIDE]

    @inline
    def tail_at(call, j, first_at, second_at, pair_at):
        """Make the pair of the column without a partner; return where its value is."""
        f = call[WIDTH] // 2
        row_at = np.uint64(real_bytes * ((f + 1) * j + f))
        write_tail(
            first_at + np.uint64(real_bytes * f),
            second_at + np.uint64(real_bytes * f),
            np.uint64(call[COSINES]) + row_at,
            np.uint64(call[SINES]) + row_at,
            pair_at,
            pair_at,
            0,
            real(1),
            0,
        )
        takes_first = (call[TAIL_IS_COSINE] != 0) == (call[COSINE_FIRST] != 0)
        return pair_at if takes_first else pair_at + np.uint64(real_bytes)

    @inline
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

    @inline
    def add_at_once(call, amplitude, scale, b, t_first, t_last, h, ahead, first_at, second_at, pair_at, streams):
        """Add rows that share their positions with no others, as they are made."""
        pairs, count = call[WIDTH] // 2, (call[WIDTH] + 1) // 2
        run = t_first
        for t in range(t_first, t_last):
            position = _position(call, b, t, h)
            is_new = t == run
            if is_new:
                anchor = position & anchor_bits
                run = run_end(call, b, t, t_last, h, anchor)
            j = (position >> 32) & (ANCHOR_ROWS - 1)
            source, target = source_at(call, b, t, h), target_at(call, b, t, h)
            kept = is_kept(call, b, t)
            if not kept:
                copy_row(call, source, target)
            if its_own_anchor:
                if kept:
                    add_position(call, amplitude, position, source, target, scale, ahead)
                if call[TAIL_COLUMN] >= 0:
                    evaluate(call, amplitude, position, pairs, count, first_at, second_at)
            else:
                if is_new:
                    evaluate(call, amplitude, anchor, _ZERO, count, first_at, second_at)
                if kept:
                    add_pairs(call, j, _ZERO, pairs, first_at, second_at, source, target, scale, ahead)
            if kept and call[TAIL_COLUMN] >= 0:
                column = call[TAIL_COLUMN] * itemsize
                values = tail_at(call, j, first_at, second_at, pair_at)
                add_values(values, source + column, target + column, _ONE, scale, ahead, streams)

    @inline
    def work(call_address, control_address):
        """Work off chunks until there are none."""
        call = carray(a.pointer_i64(call_address), (len(ARGUMENTS),))
        control = carray(a.pointer_i64(control_address), (CONTROL_WORDS,))
        scales = carray(a.pointer_f64(call_address), (len(ARGUMENTS),))
        float_mode = a.exchange_float_mode(a.DEFAULT_FLOAT_MODE)  # before the first float is rounded
        amplitude, scale = real(scales[AMPLITUDE]), real(scales[INPUT_SCALE])
        width, pairs, count = call[WIDTH], call[WIDTH] // 2, (call[WIDTH] + 1) // 2
        batch_varies, heads_vary = call[POSITIONS_BATCH_STRIDE] != 0, call[POSITIONS_HEAD_STRIDE] != 0
        shared = (call[BATCH] > 1 and not batch_varies) or (call[HEADS] > 1 and not heads_vary)
        contiguous, dense, streams = is_contiguous(call), is_dense(call), control[STREAMS] != 0
        known, fills = control[KNOWN], control[FILLS] != 0
        at_once = contiguous and not shared and not streams and known == 0
        row_bytes = width * itemsize
        ahead = (AHEAD_BYTES + row_bytes - 1) // row_bytes * (call[OUT_ROW_STRIDE] if mode == IN_PLACE else call[X_ROW_STRIDE])
        block_rows = max(
            1, SHARED_BYTES // (width * real_bytes) if shared else STREAMED_BYTES // (width * real_bytes) if streams else 1
        )
        block_rows = control[ROWS_PER_CHUNK] if known != 0 else min(block_rows, control[ROWS_PER_CHUNK])
        # One allocation, used by address: an array that Numba slices costs two atomic operations a slice.
        scratch = np.empty(2 * (count + MARGIN) + 2 + (block_rows * width if known == 0 else 0), real)
        first_at = np.uint64(scratch.ctypes.data)
        second_at = first_at + np.uint64(real_bytes * (count + MARGIN))
        pair_at = second_at + np.uint64(real_bytes * (count + MARGIN))
        block_at = pair_at + np.uint64(real_bytes * 2)
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
                    if at_once:
                        add_at_once(
                            call,
                            amplitude,
                            scale,
                            b_outer,
                            t_first,
                            t_last,
                            h_outer,
                            ahead,
                            first_at,
                            second_at,
                            pair_at,
                            streams,
                        )
                        continue
                    t, run = t_first, t_first
                    while t < t_last:
                        t0 = t
                        if known != 0:
                            block_at = np.uint64(known + ((call[START] >> 32) + t0) * width * real_bytes)
                        if known != 0 and not fills:
                            t = min(t_last, t0 + block_rows)
                        while t < t_last and t - t0 < block_rows:
                            position = _position(call, b_outer, t, h_outer)
                            if t == run:
                                anchor = position & anchor_bits
                                run = run_end(call, b_outer, t, t_last, h_outer, anchor)
                                evaluate(call, amplitude, anchor, _ZERO, count, first_at, second_at)
                            j = (position >> 32) & (ANCHOR_ROWS - 1)
                            row_at = np.int64(block_at) + (t - t0) * width * real_bytes
                            write_pairs(call, j, _ZERO, pairs, first_at, second_at, row_at, row_at, real(1), _ZERO)
                            if call[TAIL_COLUMN] >= 0:
                                column_at = np.uint64(row_at + call[TAIL_COLUMN] * real_bytes)
                                write_value(tail_at(call, j, first_at, second_at, pair_at), column_at, column_at, real(1), 0)
                            t += 1
                        if fills:
                            continue
                        h_last = h_outer + 1 if heads_vary else call[HEADS]
                        b_end = b_outer + 1 if batch_varies else b_last
                        for b in range(b_outer, b_end):
                            for h in range(h_outer, h_last):
                                b_next, t_next, h_next = b, t0, h + 1
                                if h_next == h_last:
                                    b_next, h_next = b + 1, h_outer
                                if b_next == b_end:
                                    b_next, t_next = b_outer, t
                                following = target_at(call, b_next, t_next, h_next)
                                if mode == OUT_OF_PLACE:
                                    following = source_at(call, b_next, t_next, h_next)
                                add_block(call, contiguous, dense, b, t0, t - t0, h, block_at, scale, ahead, following, streams)
            a.fetch_add(control_address + np.uint64(8 * FINISHED_CHUNKS), 1)
        a.exchange_float_mode(float_mode)
        scratch[0] = real(0)  # Numba frees an array after its last use, and does not see the uses by address

    def kernel(call_address, control_address, waits):
        control = carray(a.pointer_i64(control_address), (CONTROL_WORDS,))
        if waits:
            call_helpers(call_address, control_address)
            work(call_address, control_address)
            while a.atomic_load(control_address + np.uint64(8 * FINISHED_CHUNKS)) < control[CHUNKS]:
                if control[YIELD_FUNCTION] != 0:
                    a.call_function(np.uint64(control[YIELD_FUNCTION]))
            a.fetch_add(control_address + np.uint64(8 * LEFT), 1)
            return
        # A helper from the queue, which holds the memory itself; the call may have been finished before it came.
        seats, give_up_processor, is_called = np.uint64(control[SEATS]), np.uint64(control[YIELD_FUNCTION]), False
        while True:
            if call_address != np.uint64(0):
                work(call_address, control_address)
            if is_called:
                a.fetch_add(control_address + np.uint64(8 * LEFT), 1)
            seat = wait_in_seat(seats, give_up_processor)
            if seat == np.uint64(0):
                return
            called = carray(a.pointer_i64(seat), (SEAT_WORDS,))
            call_address, control_address = np.uint64(called[SEAT_CALL]), np.uint64(called[SEAT_CONTROL])
            a.atomic_store(seat, FREE)
            is_called = True

    kernel.__name__ = kernel.__qualname__ = f"add_sinusoidal_{element.suffix}_{MODES[mode]}"
    return kernel


SIGNATURE = numba.void(numba.uint64, numba.uint64, numba.boolean)
