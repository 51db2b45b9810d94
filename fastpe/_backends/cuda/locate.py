"""Positions on a device: those that kernels read where they are, and tables of the others."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from ..._arrays import Memory
from ...kernels import abi
from .available import require
from .compile import refuse_temporary
from .launch import launch

# Kinds of numbers, as `kernels/arithmetic.cuh` lists them.
_KINDS = {"int32": 1, "int64": 2, "uint64": 3, "float32": 4, "float64": 5}
_COUNTS = 6
THREADS = 256
MOST_BLOCKS_Y = 65535

# Rows over which kernels count a mask themselves. A block of 128 threads reads the mask before its first row, 16 bytes a load: of T rows
# T/2 bytes on average, from the cache, beside the 32 KiB of 64 elements of bfloat16 a thread, and 20 PTX instructions for each 16 bytes.
# An addition of bfloat16 takes 33 an element where T is 1024, 35 where it is 8192, and 28 where it is given positions (counted for sm_90 as
# `python -m bench.cuda_counts` does); an H200 starts 25 in the time of the element's transfer. A launch beforehand takes microseconds.
MOST_COUNTED_ROWS = 16384
_TABLE = (
    f"a mask of more than {MOST_COUNTED_ROWS} rows, validate=True, small integers and learned biases of far distances between positions "
    "make a table of positions that would not outlive the call, but a captured graph would read it: give positions= as int32, int64, "
    "float32 or float64"
)


def kind_of_positions(positions: Memory, counts: bool) -> int:
    """How kernels read these positions, or with ``counts`` those of first rows; 0 where they need a table of them."""
    return _KINDS[positions.dtype] + _COUNTS * counts if positions.dtype in _KINDS else 0


def _locate(variant: str, device: int, grid: tuple[int, int], arguments: dict[str, int]) -> None:
    refuse_temporary(device, _TABLE)
    launch("locate_rows", f"locate_rows_{variant}", device, grid, (THREADS,), abi.LOCATE_ROWS.element(arguments))


def _integers(library: ModuleType, memory: Memory) -> Memory:
    """An integer array as int32, int64 or uint64."""
    if memory.dtype in ("int32", "int64", "uint64"):
        return memory
    result: Memory = library.memory(library.contiguous(memory.array, "int64"))
    return result


def locate_rows_given(library: ModuleType, positions: Memory) -> Memory:
    require()
    device = positions.device
    assert device is not None
    real = positions.array.dtype.kind == "f"
    kind = positions.dtype if positions.dtype in _KINDS else "float32" if real else "int64"
    flat = library.memory(library.contiguous(positions.array, kind))
    table: Memory = library.memory(library.empty(positions.shape, "int64", device))
    rows = int(np.prod(positions.shape, dtype=np.int64))
    if rows:
        grid = (-(-rows // THREADS), 1)
        arguments = {"table": table.address, "batch": 1, "rows": rows, "positions": flat.address, "start": _KINDS[kind]}
        _locate("given", device, grid, {**arguments, "positions_row_stride": flat.array.dtype.itemsize})
    return table


def locate_rows_counted(
    library: ModuleType, rows: int, mask: Memory | None, offsets: Memory | int, boundaries: Memory | None
) -> Memory:
    require()
    own, cuts = (_integers(library, one) if isinstance(one, Memory) else None for one in (offsets, boundaries))
    batch = mask.shape[0] if mask is not None and len(mask.shape) == 2 else 1
    arguments: dict[str, Any] = {"rows": rows, "segment": -(-rows // THREADS), "offsets": offsets}
    if cuts is not None:
        arguments |= {"positions": cuts.address, "positions_row_stride": cuts.strides[0], "start": _KINDS[cuts.dtype]}
        arguments["sequences"] = cuts.shape[0] - 1
    if own is not None:
        arguments |= {"offsets": own.address, "offsets_kind": _KINDS[own.dtype], "offsets_stride": own.strides[0]}
    if own is not None and cuts is None:
        batch = own.shape[0]
        if mask is None:
            arguments |= {
                "positions": own.address,
                "positions_batch_stride": own.strides[0],
                "start": _KINDS[own.dtype] + _COUNTS,
            }
    if mask is not None:
        by_batch = mask.strides[0] if len(mask.shape) == 2 else 0
        arguments |= {"mask": mask.address, "mask_batch_stride": by_batch, "mask_row_stride": mask.strides[-1]}
    device = next(one for one in (mask, cuts, own) if one is not None).device
    assert device is not None
    table: Memory = library.memory(library.empty((batch, rows), "int64", device))
    if batch * rows:
        variant, grid = "given", (-(-rows // THREADS), min(batch, MOST_BLOCKS_Y))
        if mask is not None:
            variant, grid = "counted", (batch, 1)
        _locate(variant, device, grid, {"table": table.address, "batch": batch, **arguments})
    return table
