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

# Rows gathered and summed: the same, and where the rows come from. embed: x is the table, of which ids choose rows.
SUM_ROWS = (
    *ADD_SINUSOIDAL,
    *("ids", "ids_batch_stride", "ids_row_stride", "ids_head_stride", "table_rows", "row_scales", "zero_points"),
    *("type_ids", "type_ids_batch_stride", "type_ids_row_stride", "type_ids_head_stride"),
    *("types", "types_row_stride", "type_rows", "learned", "learned_row_stride", "learned_rows", "clips"),
)
IDS, IDS_BATCH_STRIDE, IDS_ROW_STRIDE, IDS_HEAD_STRIDE, TABLE_ROWS, ROW_SCALES, ZERO_POINTS = range(33, 40)
TYPE_IDS, TYPE_IDS_BATCH_STRIDE, TYPE_IDS_ROW_STRIDE, TYPE_IDS_HEAD_STRIDE = range(40, 44)
TYPES, TYPES_ROW_STRIDE, TYPE_ROWS, LEARNED, LEARNED_ROW_STRIDE, LEARNED_ROWS, CLIPS = range(44, 51)

_ROTATE_PAIRS = (  # what the kernels that turn pairs have in common
    *("batch", "rows", "positions", "positions_batch_stride", "positions_row_stride", "positions_axis_stride", "start"),
    *("mask", "mask_batch_stride", "mask_row_stride", "pairs", "head_dim", "first_channel", "interleaved", "inverse"),
    *(
        f"{array}{field}"
        for array in ("q", "k")
        for field in (
            *("", "_out", "_heads", "_batch_stride", "_row_stride", "_head_stride", "_column_stride"),
            *("_out_batch_stride", "_out_row_stride", "_out_head_stride", "_out_column_stride"),
        )
    ),
)
ROTATE = (
    *_ROTATE_PAIRS,
    *("frequencies", "whole_turns", "axes", "growths", "grows", "centre"),
    "factor",  # float64
)
ROTATE_TABLE = (*_ROTATE_PAIRS, "cosines", "sines", "table_rows", "table_row_stride")
R_BATCH, R_ROWS, R_POSITIONS, R_POSITIONS_BATCH_STRIDE, R_POSITIONS_ROW_STRIDE, R_POSITIONS_AXIS_STRIDE, R_START = range(7)
R_MASK, R_MASK_BATCH_STRIDE, R_MASK_ROW_STRIDE, R_PAIRS, R_HEAD_DIM, R_FIRST_CHANNEL, R_INTERLEAVED, R_INVERSE = range(7, 15)
R_ARRAYS, R_ARRAY_WORDS = 15, 11  # q's words, then k's
ARRAY, ARRAY_OUT, ARRAY_HEADS, ARRAY_STRIDES, ARRAY_OUT_STRIDES = 0, 1, 2, 3, 7  # among them; strides: batch, row, head, column
R_FREQUENCIES, R_WHOLE_TURNS, R_AXES, R_GROWTHS, R_GROWS, R_CENTRE, R_FACTOR = range(37, 44)
R_COSINES, R_SINES, R_TABLE_ROWS, R_TABLE_ROW_STRIDE = range(37, 41)

# Scores and biases; its places begin with T_.
ADD_TOEPLITZ = (
    *("x", "out", "batch", "heads", "rows", "columns"),
    *("x_batch_stride", "x_head_stride", "x_row_stride", "x_column_stride"),
    *("out_batch_stride", "out_head_stride", "out_row_stride", "out_column_stride"),
    *("values", "values_head_stride", "values_batch_stride", "values_row_stride", "low", "high", "slopes", "symmetric"),
    *("queries", "queries_batch_stride", "queries_row_stride", "start"),
    *("keys", "keys_batch_stride", "keys_column_stride", "by_column", "causal"),
    "input_scale",  # float64
)
T_X, T_OUT, T_BATCH, T_HEADS, T_ROWS, T_COLUMNS = range(6)
T_X_BATCH_STRIDE, T_X_HEAD_STRIDE, T_X_ROW_STRIDE, T_X_COLUMN_STRIDE = range(6, 10)
T_OUT_BATCH_STRIDE, T_OUT_HEAD_STRIDE, T_OUT_ROW_STRIDE, T_OUT_COLUMN_STRIDE = range(10, 14)
T_VALUES, T_VALUES_HEAD_STRIDE, T_VALUES_BATCH_STRIDE, T_VALUES_ROW_STRIDE, T_LOW, T_HIGH, T_SLOPES, T_SYMMETRIC = range(14, 22)
T_QUERIES, T_QUERIES_BATCH_STRIDE, T_QUERIES_ROW_STRIDE, T_START = range(22, 26)
T_KEYS, T_KEYS_BATCH_STRIDE, T_KEYS_COLUMN_STRIDE, T_BY_COLUMN, T_CAUSAL, T_INPUT_SCALE = range(26, 32)

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
PARTS, PART_COUNT, BUFFER = 49, 50, 51
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
