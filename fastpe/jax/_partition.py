"""How XLA divides the primitive among devices: each has its own rows, sequences and heads, and knows where they stand. Nothing is gathered.

Each axis of an operand is a factor: axes of one factor are divided alike. Channels, tables, words and keys of scores stay whole.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import dispatch  # the public API has no name for "lowered with its devices", which custom_partitioning needs
from jax.experimental.custom_partitioning import custom_partitioning
from jax.interpreters import mlir
from jax.sharding import NamedSharding, PartitionSpec

from .._core.operations import AddBias, Encode
from ._call import WIDE, Call, read
from ._cuda import is_usable, on_cuda
from ._primitive import on_cpu, primitive
from ._twin import in_plain_operations

BATCH, ROWS, HEADS = "batch", "rows", "heads"  # rows of scores are those of queries
IN_PLAIN_OPERATIONS = False  # tests set it: then programs for the CPU are what those for a TPU are
Factors = list[str]


def _factors(call: Call, ranks: list[int]) -> tuple[list[Factors], list[Factors]]:
    """The names of every axis of operands and of results; names of axes that stay whole begin with "whole"."""
    counts = [rank - (dtype == WIDE) for rank, dtype in zip(ranks, call.dtypes, strict=True)]
    if call.operation.in_place:
        of_arrays = [_of_array(call, f"own{index}", counts[index]) for index in call.replaced]
        results = of_arrays
        lead = of_arrays[0][:-1]
    else:
        count = next(count for count, dtype in zip(counts, call.dtypes, strict=True) if dtype == WIDE)  # of ids, or positions
        lead = [f"axis{axis}" for axis in range(count)]
        if isinstance(call.operation, Encode) and not call.operation[0].counts:
            lead = [f"whole{axis}" for axis in range(count)]
        elif lead:
            lead[0], lead[-1] = (BATCH, ROWS) if len(lead) > 1 else (ROWS, ROWS)
        results, of_arrays = [[*lead, "wholed"]], []
    operands: list[Factors] = []
    for index, (name, count) in enumerate(zip(call.names, counts, strict=True)):
        if index < len(of_arrays):
            found = of_arrays[index]
        elif name in ("table", "token_types") and call.dtypes[index] != WIDE:
            found = [f"wholet{index}", "wholed"]
        else:
            found = _of_place(call, name, count, lead)
        operands.append([*found, "wholew"] if call.dtypes[index] == WIDE else found)
    return operands, results


def _of_array(call: Call, own: str, count: int) -> Factors:
    """Of x, q, k or scores."""
    names = [f"{own}axis{axis}" for axis in range(count)]
    if isinstance(call.operation, AddBias):
        outer = [BATCH, *(f"whole{axis}" for axis in range(1, count - 3))][: count - 3]
        return [*outer, HEADS, ROWS, "wholek"]
    encoding = call.operation[0]
    if not encoding.counts and not call.places:  # a grid's axes, and channels
        first = max(0, count - 1 - len(encoding.axes))
        return [*names[:first], *(f"whole{axis}" for axis in range(first, count - 1)), "wholed"]
    axis = dict(call.fixed)["seq_axis"] % count
    if count > 2:
        names[1 if axis == 0 else 0] = BATCH
    names[axis], names[-1] = ROWS, "wholed"
    return names


def _of_place(call: Call, name: str, count: int, lead: Factors) -> Factors:
    """Of ids, or of what says where rows stand."""
    if name in ("q_positions", "k_positions"):
        return [*([BATCH] if count > 1 else []), ROWS if name[0] == "q" else "wholek"]
    if count == len(lead):
        return lead
    tail = [factor for factor in lead if factor in (BATCH, ROWS)][-count:] if count > 1 else [ROWS] * count
    if name == "delta" and count == 1:  # one for each sequence
        tail = [BATCH]
    return [*(f"wholea{axis}" for axis in range(count - len(tail))), *tail]


# ---- the rule ----------------------------------------------------------------------------------------------------------------


def partitioned(*operands: Any, text: str, apart: bool) -> list[Any]:
    """The handler's call, which XLA may divide."""
    call = read(text)
    of_operands, of_results = _factors(call, [one.ndim for one in operands])
    names = dict.fromkeys(name for factors in (*of_operands, *of_results) for name in factors)

    def local(*some: Any) -> Any:
        return tuple(on_cpu(*some, text=text, apart=apart))

    def divided(shapes: Any) -> dict[str, Any]:
        """Along which axes of the mesh each factor is divided: the first operand that has it decides."""
        found: dict[str, Any] = {}
        for factors, one in zip(of_operands, shapes, strict=True):
            spec = (*one.sharding.spec, *(None,) * len(one.shape))
            found.update({name: spec[axis] for axis, name in enumerate(factors) if name not in found and not _is_whole(name)})
        return found

    def shardings(mesh: Any, shapes: Any, every: list[Factors]) -> tuple[Any, ...]:
        along = divided(shapes)
        return tuple(NamedSharding(mesh, PartitionSpec(*map(along.get, factors))) for factors in every)

    def partition(mesh: Any, shapes: Any, results: Any) -> Any:
        along = divided(shapes)

        def own_rows(*some: Any) -> Any:
            given = list(some)
            if "start" in call.names and along.get(ROWS) is not None:
                lead = 0 if call.operation.in_place else call.names.index("ids")
                first = jax.lax.axis_index(along[ROWS]) * given[lead].shape[of_operands[lead].index(ROWS)]
                given[call.names.index("start")] += first.astype(jnp.int32)
            return local(*given)

        own = own_rows
        if isinstance(call.operation, AddBias):
            own = functools.partial(_own_scores, call, mesh, along, shapes[0].shape, apart)
        return mesh, own, shardings(mesh, shapes, of_results), shardings(mesh, shapes, of_operands)

    run = custom_partitioning(local)
    run.def_partition(
        partition=partition,
        sharding_rule=f"{_in_words(of_operands)} -> {_in_words(of_results)}",
        need_replication_factors=tuple(filter(_is_whole, names)),
        infer_sharding_from_operands=lambda mesh, shapes, _: shardings(mesh, shapes, of_results),
    )
    return list(run(*operands))


def _is_whole(name: str) -> bool:
    return name.startswith("whole")


def _in_words(every: list[Factors]) -> str:
    return ", ".join(map(" ".join, every))


def _own_scores(call: Call, mesh: Any, along: dict[str, Any], shape: tuple[int, ...], apart: bool, *some: Any) -> Any:
    """One program for all devices holds the calls of each, which differ in heads and queries of scores of this shape."""
    heads, rows = (_count(mesh, along.get(name)) for name in (HEADS, ROWS))
    parts = [_of_scores(call, shape, (heads, rows), (h, r)) for h in range(heads) for r in range(rows)]
    own = [jax.lax.axis_index(along[name]) if along.get(name) else 0 for name in (HEADS, ROWS)]
    calls = [functools.partial(on_cpu, text=part.text(), apart=apart) for part in parts]
    return tuple(jax.lax.switch(own[0] * rows + own[1], calls, *some))


def _count(mesh: Any, along: Any) -> int:
    """Into how many parts an axis is divided."""
    return math.prod(mesh.shape[name] for name in (along if isinstance(along, tuple) else (along,)) if name is not None)


def _of_scores(call: Call, shape: tuple[int, ...], counts: tuple[int, int], own: tuple[int, int]) -> Call:
    """The call on one of so many parts of the heads and of the queries."""
    heads, queries, keys = shape[-3:]
    size, rows = heads // counts[0], queries // counts[1]
    operation, fixed = call.operation, dict(call.fixed)
    if counts[0] > 1:
        operation = operation._replace(bias=operation.bias.of_heads(own[0] * size, (own[0] + 1) * size))
    if counts[1] > 1 and "q_offset" in fixed:
        first = keys - queries if fixed["q_offset"] is None else fixed["q_offset"]
        fixed["q_offset"] = first + own[1] * rows
    return call._replace(operation=operation, fixed=tuple(fixed.items()))


def _devices(context: Any) -> Any:
    return getattr(context.module_context.axis_context, "num_devices", None)


def _lower(context: Any, *operands: Any, **parameters: Any) -> Any:
    rule = in_plain_operations if IN_PLAIN_OPERATIONS else on_cpu if _devices(context) == 1 or not operands else partitioned
    return mlir.lower_fun(rule, multiple_results=True)(context, *operands, **parameters)


def _lower_for_cuda(context: Any, *operands: Any, **parameters: Any) -> Any:
    """Calls back are of this process and one device; exported programs, and those of many, are plain operations."""
    module = context.module_context
    is_own = len(module.platforms) == _devices(context) == 1 and not module.lowering_parameters.for_export
    rule = on_cuda if is_own and is_usable() else in_plain_operations
    return mlir.lower_fun(rule, multiple_results=True)(context, *operands, **parameters)


dispatch.prim_requires_devices_during_lowering.add(primitive)
mlir.register_lowering(primitive, _lower, platform="cpu")
mlir.register_lowering(primitive, _lower_for_cuda, platform="cuda")
