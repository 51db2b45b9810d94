"""The backend of host memory: choose a call's kernel, prepare its kernel calls, run them to the end."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ..._arrays import Memory
from ..._arrays import numpy as numpy_arrays
from ..._arrays.dtypes import ELEMENT_TYPES, FLOAT8, ITEMSIZE
from ...kernels import abi, locate_rows
from ..base import Prepared
from ..calls import AddGrid, AddSinusoidal, AddToeplitz, Arguments, Call, GatherSum, Rotate
from ..plans import RotaryPlan, SinusoidalPlan
from . import chunking, row_cache
from .compile import kernel
from .prepared import Addition, Bias, PreparedCall, Rotation, RotationApart, Summation

ID_TYPES = ("int64",)
SCALE_TYPES = ("float64",)
MOST_COUNTED_ROWS = 0


def warmup(dtype: str, device: Any) -> None:
    """Compile what ``add_encoding(x)``, ``encode`` and ``apply_rotary(q, k)`` run for one element type."""
    for mode in (abi.IN_PLACE, abi.ENCODING_ONLY):
        kernel("add_sinusoidal", dtype, mode)
    kernel("rotate", dtype, abi.IN_PLACE)


def run(call: Call) -> None:
    """Run a call to its end."""
    for prepared in _prepared(call):
        prepared.again()


def prepare(call: Call) -> Prepared | None:
    """The call, prepared to be run again on other arrays of the same layout; None if it takes more than one kernel call."""
    calls: list[Any] = list(itertools.islice(_prepared(call), 2))
    if len(calls) != 1:
        return None
    prepared: Prepared = calls[0]
    if isinstance(call, (AddSinusoidal, GatherSum, Rotate)) and call.rows.table:
        prepared.positions = call.rows.keepalive[0].array.size
    return prepared


def _prepared(call: Call) -> Iterator[PreparedCall]:
    if isinstance(call, AddSinusoidal):
        return _additions(call)
    if isinstance(call, Rotate):
        return _rotations(call)
    if isinstance(call, GatherSum):
        return _summations(call)
    return _biases(call) if isinstance(call, AddToeplitz) else _grids(call)


def _mode(x: Memory | None, out: Memory) -> int:
    mode: int = abi.ENCODING_ONLY if x is None else abi.IN_PLACE if x.same_elements(out) else abi.OUT_OF_PLACE
    return mode


@functools.lru_cache(maxsize=64)
def _tables(plan: SinusoidalPlan | RotaryPlan) -> tuple[Arguments, Any]:
    """Addresses of a plan's tables, by their names in the argument block, and the arrays that own them."""
    arrays = {name: np.pad(table.ravel(), (0, abi.MARGIN)) for name, table in plan.tables().items()}
    return {name: array.ctypes.data for name, array in arrays.items()}, arrays


def _additions(call: AddSinusoidal) -> Iterator[PreparedCall]:
    dtype, plan, mode = call.out.dtype, call.plan, _mode(call.x, call.out)
    addresses, owners = _tables(plan)
    nbytes = math.prod(call.out.shape) * ELEMENT_TYPES[dtype].itemsize
    is_cached = not call.rows.table and nbytes <= row_cache.RowCache.MOST_BYTES_OF_X
    for arguments in call.arguments(addresses):
        cache = row_cache.of(plan, ELEMENT_TYPES[dtype].arithmetic) if is_cached else None
        yield _addition(arguments, dtype, mode, (owners, call.rows.keepalive), cache)


def _addition(
    arguments: Arguments,
    dtype: str,
    mode: int,
    keepalive: Any,
    cache: row_cache.RowCache | None,
    parts: Sequence[Arguments] = (),
) -> Addition:
    control = chunking.of_addition(arguments, dtype, mode, [part["width"] for part in parts])
    if parts:
        packed = np.frombuffer(b"".join(abi.ADD_SINUSOIDAL.pack(part) for part in parts), np.int64)
        control.update(parts=packed.ctypes.data, part_count=len(parts))
        keepalive = packed, keepalive
    itemsize = ELEMENT_TYPES[dtype].itemsize
    prepared = Addition(kernel("add_sinusoidal", dtype, mode), abi.ADD_SINUSOIDAL, arguments, control, itemsize, keepalive)
    prepared.row_cache = cache
    return prepared


def _grids(call: AddGrid) -> Iterator[PreparedCall]:
    """One pass over whole rows, which the parts make up: a pass over each part's channels would take 1.5 times as long."""
    dtype, mode = call.out.dtype, _mode(call.x, call.out)
    plan_tables = [_tables(part.plan) for part in call.plan.parts]
    slices = [one.arguments(addresses) for one, (addresses, _) in zip(call.slices, plan_tables, strict=True)]
    keepalive = plan_tables, [rows.keepalive for rows in call.rows]
    for arguments, *parts in zip(call.whole_rows(), *slices, strict=True):
        for part, described in zip(parts, call.plan.parts, strict=True):
            part["out"] = described.first_column
        yield _addition(arguments, dtype, mode, keepalive, None, parts)


def _summations(call: GatherSum) -> Iterator[PreparedCall]:
    types, learned = (None if memory is None else memory.dtype for memory in (call.types, call.learned))
    first, out, plan = call.first.dtype, call.out.dtype, call.plan
    if call.kernel == "add_table":
        compiled = kernel("add_table", first, learned)
    else:
        adds = "sinusoidal" if plan is not None else "nothing" if learned is None else "learned"
        compiled = kernel("embed", first, types, learned, out, adds)
    addresses, owners = _tables(plan) if plan is not None else ({}, None)
    real_bytes = 8 if "float64" in (first, out, types, learned) else 4
    first_bytes, out_bytes = call.first.array.dtype.itemsize, ITEMSIZE[out]
    # Arrays that a run may replace are not kept alive.
    keepalive = owners, call.rows.keepalive, (call.types, call.learned, call.row_scales, call.zero_points)
    for arguments in call.arguments(addresses):
        control = chunking.of_gather_sum(arguments, first_bytes, out_bytes, real_bytes, plan is not None)
        yield Summation(compiled, abi.GATHER_SUM, arguments, control, out_bytes, keepalive)


def _rotations(call: Rotate) -> Iterator[PreparedCall]:
    pairs, plan = call.pairs, call.plan
    dtype, out = pairs[0].x.dtype, pairs[0].out.dtype
    mode = abi.IN_PLACE if all(pair.x.same_elements(pair.out) for pair in pairs) else abi.OUT_OF_PLACE
    kind = Rotation if mode == abi.IN_PLACE else RotationApart
    compiled = kernel(plan.kernel, dtype, mode, *([out] if out in FLOAT8 else []))
    layout = abi.ROTATE if isinstance(plan, RotaryPlan) else abi.ROTATE_TABLE
    addresses, owners = _tables(plan) if isinstance(plan, RotaryPlan) else plan.addresses(numpy_arrays, None, dtype)
    for arguments in call.arguments(addresses):
        control = chunking.of_rotation(arguments, dtype)
        yield kind(compiled, layout, arguments, control, ITEMSIZE[out], (owners, call.rows.keepalive))


def _biases(call: AddToeplitz) -> Iterator[PreparedCall]:
    compiled, itemsize = kernel("add_toeplitz", call.out.dtype), ELEMENT_TYPES[call.out.dtype].itemsize
    slopes = None if call.slopes is None else np.ascontiguousarray(call.slopes, np.float64)
    values_at = 0 if call.values is None else call.values.address
    # The call owns the values, not the prepared calls: a cache of those must not keep values alive.
    for arguments in call.arguments(values_at, 0 if slopes is None else slopes.ctypes.data):
        control = chunking.of_bias(arguments, itemsize)
        yield Bias(compiled, abi.ADD_TOEPLITZ, arguments, control, itemsize, (slopes, call.rows))


# ---- tables of positions -----------------------------------------------------------------------------------------------------


def refuse_temporary(device: int | None, reason: str) -> None:
    """Nothing: a call is over when it returns."""


def uploaded(array: Any, device: int | None) -> Any:
    return array


def clear() -> None:
    """Nothing: memory of the host is not copied."""


def kind_of_positions(positions: Memory, counts: bool) -> int:
    return 0  # always a table: it costs less than what a prepared call saves by knowing one form only


def locate_rows_given(library: ModuleType, positions: Memory) -> Memory:
    return numpy_arrays.memory(locate_rows.locate_rows_given(positions.array))


def locate_rows_counted(
    library: ModuleType, rows: int, mask: Memory | None, offsets: Memory | int, boundaries: Memory | None
) -> Memory:
    kept = None if mask is None else np.atleast_2d(mask.array)
    return numpy_arrays.memory(locate_rows.locate_rows_counted(rows, kept, _int64(offsets), _int64(boundaries)))


def _int64(value: Memory | int | None) -> Any:
    if isinstance(value, Memory):
        return value.array.astype(np.int64, copy=False)
    return None if value is None else np.array([value], np.int64)
