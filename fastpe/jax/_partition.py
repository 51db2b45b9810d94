"""How XLA divides the primitive among devices: each has its own rows, sequences and heads, and knows where they stand. Nothing is gathered.

Axes of one name are divided alike (`_call.py`). Channels, tables, words and keys of scores stay whole.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import dispatch  # the public API has no name for "lowered with its devices", which custom_partitioning needs
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from .._core.operations import AddBias, Between
from ._call import HEADS, ROWS, Axes, Call, read
from ._cuda import is_usable, on_cuda
from ._primitive import on_cpu, primitive, register
from ._twin import in_plain_operations

IN_PLAIN_OPERATIONS = False  # tests set it: then programs for the CPU are what those for a TPU are
# JAX 0.5.0 has no such argument, and no use for it: XLA asks ``partition`` then.
_TAKES_WHOLE = "need_replication_factors" in inspect.signature(custom_partitioning.def_partition).parameters


def partitioned(*operands: Any, text: str) -> list[Any]:
    """The handler's call, which XLA may divide."""
    call = read(text)
    if not operands:
        return on_cpu(text=text)
    of_operands, of_results = call.axes([one.shape for one in operands])

    def divided(shapes: Any) -> dict[str, Any]:
        """Along which axes of the mesh axes of a name are divided: the first operand that has it decides."""
        found: dict[str, Any] = {}
        for names, one in zip(of_operands, shapes, strict=True):
            spec = getattr(one.sharding, "spec", ())  # before Shardy XLA asks while it knows some shardings only
            given = zip(names, (*spec, *(None,) * len(names)), strict=False)
            found = {**{name: along for name, along in given if not _is_whole(name)}, **found}
        return found

    def shardings(mesh: Any, shapes: Any, every: list[Axes]) -> tuple[Any, ...]:
        along = divided(shapes)
        return tuple(NamedSharding(mesh, PartitionSpec(*map(along.get, names))) for names in every)

    def partition(mesh: Any, shapes: Any, results: Any) -> Any:
        along = divided(shapes)

        def own(*some: Any) -> Any:
            if isinstance(call.operation, AddBias):
                return tuple(_own_scores(call, mesh, along, shapes[0].shape, *some))
            given = list(some)
            if "start" in call.names and along.get(ROWS) is not None:
                lead = 0 if call.operation.in_place else call.names.index("ids")
                first = jax.lax.axis_index(along[ROWS]) * given[lead].shape[of_operands[lead].index(ROWS)]
                given[call.names.index("start")] += first.astype(jnp.int32)
            return tuple(on_cpu(*given, text=text))

        return mesh, own, shardings(mesh, shapes, of_results), shardings(mesh, shapes, of_operands)

    run = custom_partitioning(lambda *some: tuple(on_cpu(*some, text=text)))
    whole = tuple(filter(_is_whole, dict.fromkeys(itertools.chain(*of_operands, *of_results))))
    run.def_partition(
        partition=partition,
        sharding_rule=f"{_in_words(of_operands)} -> {_in_words(of_results)}",
        **({"need_replication_factors": whole} if _TAKES_WHOLE else {}),
        infer_sharding_from_operands=lambda mesh, shapes, _: shardings(mesh, shapes, of_results),
    )
    return list(run(*operands))


def _is_whole(name: str) -> bool:
    return name.startswith("whole")


def _in_words(every: list[Axes]) -> str:
    return ", ".join(map(" ".join, every))


def _own_scores(call: Call, mesh: Any, along: dict[str, Any], shape: tuple[int, ...], *some: Any) -> Any:
    """One program for all devices holds the calls of each, which differ in heads and queries of scores of this shape."""
    ends = [_ends(mesh, along.get(name), size) for name, size in zip((HEADS, ROWS), shape[-3:], strict=False)]
    calls, where = [], Between(**call.fixed)
    for heads, rows in itertools.product(*ends):
        block = [*((0, size) for size in shape[:-3]), heads, rows, (0, shape[-1])]
        operation, part = call.operation.part(where, shape, block)
        fixed = dict.fromkeys(call.fixed, part.q_offset)  # none where tables say it
        calls.append(functools.partial(on_cpu, text=call._replace(operation=operation, fixed=fixed).text))
    own = [jax.lax.axis_index(along[name]) if along.get(name) else 0 for name in (HEADS, ROWS)]
    return jax.lax.switch(own[0] * len(ends[1]) + own[1], calls, *some)


def _ends(mesh: Any, along: Any, size: int) -> list[tuple[int, int]]:
    """Begin and end of each part of an axis of this size."""
    count = math.prod(mesh.shape[name] for name in (along if isinstance(along, tuple) else (along,)) if name is not None)
    return [(size * part // count, size * (part + 1) // count) for part in range(count)]


def _devices(context: Any) -> Any:
    return getattr(context.module_context.axis_context, "num_devices", None)


def _rule(context: Any) -> Any:
    return in_plain_operations if IN_PLAIN_OPERATIONS else on_cpu if _devices(context) == 1 else partitioned


def _rule_for_cuda(context: Any) -> Any:
    """Calls back are of this process and one device; exported programs, and those of many, are plain operations."""
    module = context.module_context
    is_own = len(module.platforms) == _devices(context) == 1 and not module.lowering_parameters.for_export
    return on_cuda if is_own and is_usable() else in_plain_operations


dispatch.prim_requires_devices_during_lowering.add(primitive)
register(_rule, "cpu")
register(_rule_for_cuda, "cuda")
