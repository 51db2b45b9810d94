"""How calls on the host are cut into chunks: every row in one, none in two, no chunk empty, and no more helpers than there is work for."""

from __future__ import annotations

import itertools

import pytest
from fastpe.kernels import abi

from fastpe._backends.host import chunking

SIZES = (1, 7, 64, 1000, 70_001)


def dense(array: str, batch: int, rows: int, heads: int, width: int, itemsize: int) -> dict[str, int]:
    """The strides of (B, H, T, D)."""
    row = width * itemsize
    strides = {"batch": heads * rows * row, "head": rows * row, "row": row, "column": itemsize}
    return {f"{array}_{axis}_stride": stride for axis, stride in strides.items()}


def controls(batch: int, rows: int, heads: int, width: int, shared: int) -> dict[str, chunking.Control]:
    """Of each kernel, for float32; ``shared`` is the stride of positions from sequence to sequence."""
    arguments = {"batch": batch, "rows": rows, "heads": heads, "width": width, "mask": 0, "x": 64, "out": 64, "columns": width}
    arguments |= {"q_heads": heads, "head_dim": width, "pairs": (width + 1) // 2}
    arguments |= {"positions_batch_stride": shared, "positions_head_stride": 0}
    for array in ("x", "out"):
        arguments |= dense(array, batch, rows, heads, width, 4)
    return {
        "add_sinusoidal": chunking.of_addition(arguments, "float32", abi.IN_PLACE, ()),
        "embed": chunking.of_gather_sum(arguments, 4, 4, 4, True),
        "add_table": chunking.of_gather_sum(arguments, 4, 4, 4, False),
        "rotate": chunking.of_rotation(arguments, "float32"),
        "add_toeplitz": chunking.of_bias(arguments, 4),
    }


@pytest.mark.parametrize("shared", [0, 8], ids=["shared", "apart"])
@pytest.mark.parametrize("batch", [1, 3, 300])
def test_chunks_are_those_that_hold_rows(batch, shared):
    for rows, heads, width in itertools.product(SIZES, (1, 12), (2, 128, 5000)):
        for name, control in controls(batch, rows, heads, width, shared).items():
            most_rows, most_batch = (rows, batch) if name != "add_toeplitz" else (rows * heads * batch, 1)
            by_rows, by_batch = control["rows_per_chunk"], control["batch_per_chunk"]
            assert by_rows >= 1
            assert 1 <= by_batch <= most_batch
            needed = len(range(0, most_rows, by_rows)) * len(range(0, most_batch, by_batch))
            assert control["chunks"] == needed, (name, rows, heads, width)
            worth = 4 * batch * rows * heads * width // chunking.BYTES_PER_HELPER
            assert control["helpers"] == min(needed - 1, worth, abi.MOST_THREADS - 1)
            assert control["slot_bytes"] % abi.LINE_BYTES == 0
