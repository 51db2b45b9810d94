"""What stands where in the blocks of memory by which kernels are called: int64 words, except where it says float64.

An argument block says what to compute; the CPU and the CUDA kernel of an operation read the same. A control block says how a call on
the CPU is shared out among threads, and keeps count of it.
"""

from __future__ import annotations

# ---- argument blocks: fields in their order, as the structs in the `.cu` files declare them ---------------------------------

ADD_SINUSOIDAL = (
    *("x", "out", "batch", "rows", "heads", "width"),
    *("x_batch_stride", "x_row_stride", "x_head_stride", "x_column_stride"),
    *("out_batch_stride", "out_row_stride", "out_head_stride", "out_column_stride"),
    *("positions", "positions_batch_stride", "positions_row_stride", "positions_head_stride", "start"),
    *("mask", "mask_batch_stride", "mask_row_stride"),
    *("frequencies", "whole_turns", "cosines", "sines"),
    *("interleaved", "cosine_first", "second_half", "tail_column", "tail_is_cosine"),
    *("amplitude", "input_scale"),  # float64
)
X, OUT, BATCH, ROWS, HEADS, WIDTH = range(6)
X_BATCH_STRIDE, X_ROW_STRIDE, X_HEAD_STRIDE, X_COLUMN_STRIDE = range(6, 10)
OUT_BATCH_STRIDE, OUT_ROW_STRIDE, OUT_HEAD_STRIDE, OUT_COLUMN_STRIDE = range(10, 14)
POSITIONS, POSITIONS_BATCH_STRIDE, POSITIONS_ROW_STRIDE, POSITIONS_HEAD_STRIDE, START = range(14, 19)
MASK, MASK_BATCH_STRIDE, MASK_ROW_STRIDE = range(19, 22)
FREQUENCIES, WHOLE_TURNS, COSINES, SINES = range(22, 26)
INTERLEAVED, COSINE_FIRST, SECOND_HALF, TAIL_COLUMN, TAIL_IS_COSINE, AMPLITUDE, INPUT_SCALE = range(26, 33)

# ---- the control block ---------------------------------------------------------------------------------------------------------

# Counters, on cache lines of their own. Who calls counts in CALLED itself and the helpers that it calls from their seats; each adds
# one to LEFT when it will not look at the blocks again, so that when both are equal they may be freed or used again.
FINISHED_CHUNKS, LEFT = 0, 16
CHUNKS, ROWS_PER_CHUNK, BATCH_PER_CHUNK = 32, 33, 34
YIELD_FUNCTION = 35  # address of the C function that gives up the processor, or 0
SEATS, HELPERS, CALLED = 36, 37, 38  # address of the seats, or 0; up to how many helpers to call from them
SCRATCH, ROOM_BYTES, ROOMS = 39, 40, 41  # memory to compute in, a room for each thread; who finds none leaves
# How add_sinusoidal goes about it; kernels/add_sinusoidal.py says what they mean.
CONTIGUOUS, DENSE, STREAMS, BLOCK_ROWS, AHEAD, KNOWN, FILLS = 42, 43, 44, 45, 46, 47, 48
# With each room comes an equal share of the chunks, on a line of its own: how many of them are claimed, and whether the room is taken.
SHARES, SHARE_WORDS, MOST_ROOMS = 64, 16, 16
CLAIMED, IS_TAKEN = 0, 1
CONTROL_WORDS = SHARES + SHARE_WORDS * MOST_ROOMS

# ---- seats ---------------------------------------------------------------------------------------------------------------------

# A cache line in which a helper waits for a while for the next call of its kernel, which finds it sooner than a queue would. Its first
# word is its state, the others say where the call's blocks are.
SEAT_WORDS, SEAT_COUNT = 16, 16
SEAT_CALL, SEAT_CONTROL = 1, 2
FREE, WAITS, TAKEN, CALLS = 0, 1, 2, 3

# ---- sizes ---------------------------------------------------------------------------------------------------------------------

LINE_BYTES = 64
AHEAD_BYTES = 6 << 10  # how many bytes before it is needed x is asked for
MARGIN = 16  # numbers behind the frequencies and what is made of them: all is evaluated in whole vectors
