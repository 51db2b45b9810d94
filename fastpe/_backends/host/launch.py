"""Run calls on host memory: choose the kernel, prepare its calls, run them to the end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..._arrays import Memory
from ...kernels import abi
from ..base import Prepared
from ..calls import AddGrid, AddSinusoidal, AddToeplitz, Call, GatherSum, Rotate, Tables
from ..plans import RotaryPlan
from . import row_cache, tables
from .compile import kernel
from .prepared import Addition, Bias, PreparedCall, Rotation, Summation


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
    return calls[0] if len(calls) == 1 else None


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


def _additions(call: AddSinusoidal) -> Iterator[PreparedCall]:
    dtype, plan, mode = call.out.dtype, call.plan, _mode(call.x, call.out)
    compiled = kernel("add_sinusoidal", dtype, mode)
    addresses, keepalive = tables.sinusoidal(plan)
    for arguments in call.arguments(addresses):
        yield Addition(compiled, arguments, dtype, mode, row_cache.of(plan, dtype), (keepalive, call.rows.keepalive))


def _grids(call: AddGrid) -> Iterator[PreparedCall]:
    """One pass over whole rows, which the parts make up: a pass over each part's channels would take 1.5 times as long."""
    dtype, mode = call.out.dtype, _mode(call.x, call.out)
    compiled = kernel("add_sinusoidal", dtype, mode)
    plan_tables = [tables.sinusoidal(part.plan) for part in call.plan.parts]
    slices = [one.arguments(addresses) for one, (addresses, _) in zip(call.slices, plan_tables, strict=True)]
    keepalive = plan_tables, [rows.keepalive for rows in call.rows]
    for arguments, *parts in zip(call.whole_rows(), *slices, strict=True):
        for part, described in zip(parts, call.plan.parts, strict=True):
            part["out"] = described.first_column
        yield Addition(compiled, arguments, dtype, mode, None, keepalive, parts)


def _summations(call: GatherSum) -> Iterator[PreparedCall]:
    types, learned = (None if memory is None else memory.dtype for memory in (call.types, call.learned))
    first, out, plan = call.first.dtype, call.out.dtype, call.plan
    if call.kernel == "add_table":
        compiled = kernel("add_table", first, learned)
    else:
        adds = "sinusoidal" if plan is not None else "nothing" if learned is None else "learned"
        compiled = kernel("embed", first, types, learned, out, adds)
    addresses, keepalive = tables.sinusoidal(plan) if plan is not None else (Tables(), None)
    real_bytes = 8 if "float64" in (first, out, types, learned) else 4
    # Arrays that a run may replace are not kept alive.
    kept = call.types, call.learned, call.row_scales, call.zero_points
    for arguments in call.arguments(addresses):
        yield Summation(compiled, arguments, call, real_bytes, (keepalive, call.rows.keepalive, kept))


def _rotations(call: Rotate) -> Iterator[PreparedCall]:
    pairs, plan = call.pairs, call.plan
    dtype = pairs[0].out.dtype
    mode = abi.IN_PLACE if all(pair.x.same_elements(pair.out) for pair in pairs) else abi.OUT_OF_PLACE
    compiled = kernel(plan.kernel, dtype, mode)
    layout = abi.ROTATE if isinstance(plan, RotaryPlan) else abi.ROTATE_TABLE
    addresses, keepalive = tables.rotary(plan) if isinstance(plan, RotaryPlan) else tables.caller_table(plan, dtype)
    for arguments in call.arguments(addresses):
        yield Rotation(compiled, layout, arguments, dtype, (keepalive, call.rows.keepalive))


def _biases(call: AddToeplitz) -> Iterator[PreparedCall]:
    compiled = kernel("add_toeplitz", call.out.dtype)
    slopes = None if call.slopes is None else np.ascontiguousarray(call.slopes, np.float64)
    values_at = 0 if call.values is None else call.values.address
    # The call owns the values, not the prepared calls: a cache of those must not keep values alive.
    for arguments in call.arguments(values_at, 0 if slopes is None else slopes.ctypes.data):
        yield Bias(compiled, arguments, call.out.dtype, (slopes, call.rows))
