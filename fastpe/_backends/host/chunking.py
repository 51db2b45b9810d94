"""Choose chunking, buffering and streaming for a call: the words of its control block that do not change from run to run.

Each function takes the arguments of one kernel call and returns words of the control block by name (`kernels/abi.py`), and ``nbytes``, how
much the call writes, by which helpers are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..._arrays.dtypes import ELEMENT_TYPES
from ...kernels.abi import GATHERED_VALUES, IN_PLACE, LINE_BYTES, MARGIN, MOST_THREADS, OUT_OF_PLACE
from ..calls import Arguments
from . import tuning

Control = dict[str, int]

_tuning = tuning.here()
AHEAD_BYTES, ANGLES_BYTES = _tuning.ahead, _tuning.angles
BLOCK_BYTES, SHARED_BYTES, SUMMED_BYTES, STREAMED_BYTES = _tuning.block, _tuning.shared, _tuning.summed, _tuning.streamed
CHUNK_BYTES, LARGEST_CHUNK_BYTES, BYTES_PER_HELPER = _tuning.chunk, _tuning.largest_chunk, _tuning.helper
CHUNKS = 64  # chunks grow only where there are more of them


def cache_bytes() -> int:
    """Bytes of ``out`` above which it is written past the caches."""
    return tuning.here().stream_above


def _divided(rows: int, rows_per_chunk: int, batch: int, batch_per_chunk: int, nbytes: int, slot_bytes: int) -> Control:
    """Chunks of so many rows of so many sequences, and how many helpers so many bytes of x are worth."""
    chunks = -(-rows // rows_per_chunk) * -(-batch // batch_per_chunk)
    return {
        "nbytes": nbytes,
        "chunks": chunks,
        "rows_per_chunk": rows_per_chunk,
        "batch_per_chunk": batch_per_chunk,
        "helpers": min(chunks - 1, nbytes // BYTES_PER_HELPER, MOST_THREADS - 1),
        "slot_bytes": -(-slot_bytes // LINE_BYTES) * LINE_BYTES,
        "ahead_bytes": AHEAD_BYTES,
    }


def _chunk(rows: int, batch: int, row_bytes: int, shared_rows: int | None) -> tuple[int, int]:
    """Rows and sequences of a chunk. ``row_bytes``: of all heads of a row of x.

    ``shared_rows``, where sequences share the making of a row, are those made at a time.
    """
    most_bytes = CHUNK_BYTES if shared_rows is None else LARGEST_CHUNK_BYTES
    chunk_bytes = min(max(batch * rows * row_bytes // CHUNKS, CHUNK_BYTES), most_bytes)
    rows_per_chunk = chunk_bytes // row_bytes if shared_rows is None else shared_rows
    rows_per_chunk = min(rows, max(8, rows_per_chunk // 8 * 8))
    return rows_per_chunk, min(batch, max(1, chunk_bytes // (row_bytes * rows_per_chunk)))


def of_addition(arguments: Arguments, dtype: str, mode: int, part_widths: Sequence[int]) -> Control:
    """Of ``add_sinusoidal``. ``part_widths``: the widths of a grid's parts; none for a plain encoding."""
    batch, rows, heads, width = (arguments[name] for name in ("batch", "rows", "heads", "width"))
    itemsize, real_bytes = ELEMENT_TYPES[dtype].itemsize, ELEMENT_TYPES[dtype].arithmetic_itemsize
    row_bytes = width * itemsize
    nbytes = batch * rows * heads * row_bytes
    source = "x" if mode == OUT_OF_PLACE else "out"
    contiguous = arguments[f"{source}_column_stride"] == arguments["out_column_stride"] == itemsize
    row_stride = arguments[f"{source}_row_stride"]
    dense = contiguous and not arguments["mask"] and row_stride == arguments["out_row_stride"] == row_bytes
    streams = mode != IN_PLACE and contiguous and nbytes > cache_bytes() and _has_whole_strides(arguments, itemsize)
    # Sequences that share their positions share the making of a row: a chunk takes a few rows of many sequences.
    sequences_share = batch > 1 and arguments["positions_batch_stride"] == 0
    heads_share = heads > 1 and arguments["positions_head_stride"] == 0
    shared_rows, streamed_rows = (size // (width * real_bytes) for size in (SHARED_BYTES, STREAMED_BYTES))
    rows_per_chunk, batch_per_chunk = _chunk(rows, batch, heads * row_bytes, shared_rows if sequences_share else None)
    if sequences_share or heads_share:
        made_rows = shared_rows if itemsize < real_bytes else BLOCK_BYTES // (width * real_bytes)
        block_rows = min(max(1, made_rows), rows_per_chunk)
    elif streams:
        block_rows = min(max(1, streamed_rows), rows_per_chunk)
    else:
        block_rows = 0 if contiguous else 1
    functions = sum((columns + 1) // 2 + MARGIN for columns in part_widths or (width,))
    functions_bytes = 8 * functions  # two float32, or one phase
    slot_bytes = functions_bytes + block_rows * width * real_bytes
    return {
        **_divided(rows, rows_per_chunk, batch, batch_per_chunk, nbytes, slot_bytes),
        "contiguous": contiguous,
        "dense": dense,
        "streams": streams,
        "block_rows": block_rows,
        "buffer": functions_bytes,
        "ahead": AHEAD_BYTES if row_stride == row_bytes else -(-AHEAD_BYTES // row_bytes) * row_stride,
    }


def _has_whole_strides(arguments: Arguments, itemsize: int) -> bool:
    """Whether the strides of the result are whole elements."""
    return not any(arguments[f"out_{axis}_stride"] % itemsize for axis in ("batch", "row", "head", "column"))


def of_gather_sum(arguments: Arguments, first_bytes: int, out_bytes: int, real_bytes: int, makes_rows: bool) -> Control:
    """Of ``embed`` and ``add_table``. ``first_bytes`` and ``out_bytes``: of an element; ``makes_rows``: whether PE is added."""
    batch, rows, heads, width = (arguments[name] for name in ("batch", "rows", "heads", "width"))
    row_bytes = width * max(first_bytes, out_bytes)
    nbytes = batch * rows * heads * row_bytes
    same_positions = arguments["positions_batch_stride"] == arguments["positions_head_stride"] == 0
    is_shared = same_positions and makes_rows and batch * heads > 1
    block_rows = (SHARED_BYTES if is_shared else SUMMED_BYTES) // (width * real_bytes)
    rows_per_chunk, batch_per_chunk = _chunk(rows, batch, heads * row_bytes, block_rows if is_shared else None)
    block_rows = min(rows_per_chunk, max(8, block_rows // 8 * 8)) if makes_rows else rows_per_chunk
    contiguous = arguments["x_column_stride"] == first_bytes and arguments["out_column_stride"] == out_bytes
    in_place = arguments["x"] == arguments["out"]
    slot_bytes = real_bytes * (2 * ((width + 1) // 2 + MARGIN) + (block_rows * width if makes_rows else 0))
    return {
        **_divided(rows, rows_per_chunk, batch, batch_per_chunk, nbytes, slot_bytes),
        "block_rows": block_rows,
        "contiguous": contiguous,
        "streams": contiguous and not in_place and nbytes > cache_bytes() and _has_whole_strides(arguments, out_bytes),
        "ahead": AHEAD_BYTES // (width * first_bytes) + 1,
    }


def of_rotation(arguments: Arguments, dtype: str) -> Control:
    """Of ``rotate`` and ``rotate_table``."""
    batch, rows, pairs = arguments["batch"], arguments["rows"], arguments["pairs"]
    heads = arguments.get("q_heads", 0) + arguments.get("k_heads", 0)
    row_bytes = heads * arguments["head_dim"] * ELEMENT_TYPES[dtype].itemsize
    real_bytes = ELEMENT_TYPES[dtype].arithmetic_itemsize
    block_rows = min(rows, max(1, ANGLES_BYTES // (2 * pairs * real_bytes)))
    is_shared = batch > 1 and arguments["positions_batch_stride"] == 0
    rows_per_chunk = max(1, CHUNK_BYTES // row_bytes)
    rows_per_chunk = min(rows, block_rows if is_shared or rows_per_chunk < block_rows else rows_per_chunk)
    batch_per_chunk = min(batch, max(1, (LARGEST_CHUNK_BYTES if is_shared else CHUNK_BYTES) // (row_bytes * rows_per_chunk)))
    slot_bytes = 2 * real_bytes * (block_rows * pairs + MARGIN)
    divided = _divided(rows, rows_per_chunk, batch, batch_per_chunk, batch * rows * row_bytes, slot_bytes)
    return {**divided, "block_rows": block_rows}


def of_bias(arguments: Arguments, itemsize: int) -> Control:
    """Of ``add_toeplitz``. It streams -inf where it works in place (1), else all that it writes (2)."""
    rows = arguments["batch"] * arguments["heads"] * arguments["rows"]
    row_bytes = arguments["columns"] * itemsize
    contiguous = arguments["x_column_stride"] == arguments["out_column_stride"] == itemsize
    streams = contiguous and rows * row_bytes > cache_bytes() and _has_whole_strides(arguments, itemsize)
    return {
        **_divided(rows, max(1, CHUNK_BYTES // row_bytes), 1, 1, rows * row_bytes, 8 * GATHERED_VALUES),
        "contiguous": contiguous,
        "dense": contiguous and arguments["x_row_stride"] == arguments["out_row_stride"] == row_bytes,
        "streams": 0 if not streams else 1 if arguments["x"] == arguments["out"] else 2,
        "ahead": -(-AHEAD_BYTES // row_bytes) * arguments["x_row_stride"],
    }
