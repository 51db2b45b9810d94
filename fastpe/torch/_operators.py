"""The operators of PyTorch's graphs, ``torch.ops.fastpe.*``: what ``torch.compile``, ``torch.export`` and modes that trace record.

``run`` makes new tensors and has gradients; ``run_`` writes, counts versions up where it is traced, and refuses what autograd could not
see. Both take the operation as text, so a graph means the same in another process. Only while tracing: an operator costs microseconds
that a direct call does not.
"""

from __future__ import annotations

from typing import Any

import torch

from .._arrays.dtypes import FLOAT8
from .._core.checks import message
from .._core.operations import Rerotate, Rotate
from . import _autograd, _bias, _gather_sum, _memory, _tensors
from ._grad_state import has_tangent, is_scripted, refuse, refuse_out, requires_gradient
from ._packing import APART, SCHEMA, pack, record, unpack

Tensor = torch.Tensor
_registry: Any = torch.library  # in part without types
_library = _registry.Library("fastpe", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)


# ---- while tracing -----------------------------------------------------------------------------------------------------------


def make(operation: Any, arrays: tuple[Any, ...], where: Any, validate: bool) -> Any:
    """New tensors, in a graph."""
    refuse(operation, arrays, where)
    return record(operation, arrays, where, validate)


def write(operation: Any, arrays: tuple[Any, ...], where: Any, out: Any, validate: bool) -> None:
    """Write the arrays, or out, in a graph: copied into where a gradient may be asked for."""
    refuse(operation, arrays, where)
    targets = [x for x in arrays[: operation.writes] if x is not None]
    in_place = out is None or out is targets[0]
    outs = targets if in_place else list(out) if isinstance(out, (tuple, list)) else [out]
    tables = list(operation[0].arrays.values()) if getattr(operation[0], "holds_arrays", False) else []
    records = requires_gradient(*targets, *outs, *(tables if not isinstance(operation, (Rotate, Rerotate)) else []))
    if records and not in_place:
        refuse_out(operation.function, out)
    if is_scripted() and any(_tensors.name_of(x.dtype) in FLOAT8 for x in outs):
        rule = "torch.jit.trace cannot record out in float8"
        raise RuntimeError(message(operation.function, rule, "one", "Use torch.compile or torch.export."))
    if records or is_scripted():
        made = record(operation, arrays, where, validate, apart=len(targets) > 1)
        for x, one in zip(outs, made if isinstance(made, tuple) else [made]):  # noqa: B905 (traced)
            x.copy_(one)
    else:
        torch.ops.fastpe.run_.default(outs, *pack(operation, arrays, where, validate, operation.writes if in_place else 0))


# ---- the operators -----------------------------------------------------------------------------------------------------------


def _define(schema: str, run: Any, fake: Any) -> None:
    name = schema.partition("(")[0]
    _library.define(schema, tags=_TAGS)
    _library.impl(name, run, "CompositeExplicitAutograd")
    _registry.register_fake(f"fastpe::{name}", fake, lib=_library)


def _run(*packed: Any) -> list[Tensor]:
    made = _memory.make(*unpack(*packed))
    return list(made) if isinstance(made, tuple) else [made]


def _fake(*packed: Any) -> list[Tensor]:
    """Results of the right shapes, strides and dtypes."""
    operation, arrays, _, _ = unpack(*packed)
    if operation.in_place:
        return [torch.empty_like(x) for x in arrays[: operation.writes] if x is not None]
    lead = next(x for x in arrays if isinstance(x, Tensor))
    shape, dtype = _memory.result_of(operation, arrays)
    return [lead.new_empty(shape, dtype=dtype)]


def _run_in_place(out: list[Tensor], *packed: Any) -> None:
    operation, arrays, where, validate = unpack(*packed, out=out)
    apart = packed[3].endswith("\n0")  # none of the arrays is written
    result = None if not apart else out[0] if len(out) == 1 else tuple(out)
    _memory.write(operation, arrays, where, result, validate, counts_up=False)


def _fake_in_place(out: list[Tensor], *packed: Any) -> None:
    """What can be said before there is memory: results lie apart, from each other and from what is read but what they replace."""
    function = unpack(*packed, out=out).operation.function
    _refuse_overlap(function, out)
    for i, x in enumerate(out):
        for j, other in enumerate(packed[0][: len(out)]):
            if _may_overlap(x, other) and (i != j or x.storage_offset() != other.storage_offset()):
                _refuse_overlap(function, [x, other])


def _refuse_overlap(function: str, tensors: Any) -> None:
    """ValueError for tensors, to be written, that share memory."""
    for index, x in enumerate(tensors):
        for other in tensors[index + 1 :]:
            if _may_overlap(x, other):
                rule = (
                    "q, k and out must lie apart" if function == "apply_rotary" else "out must not partly overlap what is read"
                )
                raise ValueError(message(function, rule, "tensors that overlap", "Pass arrays that share no memory."))


def _may_overlap(x: Tensor, other: Tensor) -> bool:
    """Whether views of one memory that are cut along one axis share elements there."""
    if x.untyped_storage()._cdata != other.untyped_storage()._cdata or x.stride() != other.stride():
        return False
    distance = abs(int(x.storage_offset()) - int(other.storage_offset()))
    first = x if x.storage_offset() <= other.storage_offset() else other
    for size, stride in sorted(zip(first.shape, first.stride(), strict=True), key=lambda one: -int(one[1])):
        steps, distance = divmod(distance, int(stride)) if stride else (0, distance)
        if steps >= size:
            return False
    return distance == 0


# ---- what autograd sees of them ----------------------------------------------------------------------------------------------


def _differentiable(keyset: Any, *packed: Any) -> list[Tensor]:
    """``run`` where a gradient may be asked for, by the same functions as without a graph."""
    tensors, tables = packed[:2]
    _refuse_tangents(*tensors, *tables)
    if packed[3].endswith(APART):
        _refuse_overlap("apply_rotary", tensors[:2])
    if requires_gradient(*tensors, *tables):
        made = _autograd.make(*unpack(*packed))
        return list(made) if isinstance(made, tuple) else [made]
    with torch._C._AutoDispatchBelowAutograd():
        result: list[Tensor] = torch.ops.fastpe.run.default.redispatch(keyset & torch._C._after_autograd_keyset, *packed)
    return result


def _refuse_recorded(keyset: Any, out: list[Tensor], *packed: Any) -> None:
    """``run_`` writes what autograd does not see; so nothing may require a gradient."""
    _refuse_tangents(*out, *packed[0])
    if requires_gradient(*out, *packed[0]):
        refuse_out(unpack(*packed, out=out).operation.function, out)
    with torch._C._AutoDispatchBelowAutograd():
        torch.ops.fastpe.run_.default.redispatch(keyset & torch._C._after_autograd_keyset, out, *packed)


def _refuse_tangents(*tensors: Any) -> None:
    """Forward-mode differentiation does not see through an operator."""
    for x in tensors:
        if has_tangent(x):
            rule = "forward-mode differentiation cannot be traced"
            raise RuntimeError(
                message("torch.compile", rule, "a dual tensor", "Differentiate outside of the compiled function.")
            )


def _count_versions(keyset: Any, out: list[Tensor], *packed: Any) -> None:
    """Versions count up where the write is traced, as autograd looks at them there; after it, as modes look at those before."""
    with torch._C._AutoDispatchBelowADInplaceOrView():
        torch.ops.fastpe.run_.default.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, out, *packed)
    torch.autograd.graph.increment_version(out)


_define(f"run({SCHEMA}) -> Tensor[]", _run, _fake)
_define(f"run_(Tensor(a!)[] out, {SCHEMA}) -> ()", _run_in_place, _fake_in_place)
_library.impl("run", _differentiable, "Autograd", with_keyset=True)
_library.impl("run_", _refuse_recorded, "Autograd", with_keyset=True)
_library.impl("run_", _count_versions, "ADInplaceOrView", with_keyset=True)


# ---- what gradients need besides ---------------------------------------------------------------------------------------------


def _row_positions(x: Tensor, given_where: list[Tensor], call: str, numbers: list[int], lengths: list[int]) -> Tensor:
    positions = _gather_sum.positions_of(x, unpack([], [], given_where, call, numbers, lengths, out=[x]).where)
    return positions.clone(memory_format=torch.contiguous_format)


_define(
    "row_positions(Tensor x, Tensor[] where, str call, SymInt[] numbers, SymInt[] seq_len) -> Tensor",
    _row_positions,
    lambda x, *rest: x.new_empty(x.shape[:-1], dtype=torch.int64),
)


def _bias_gradients(grad: Tensor, *packed: Any) -> list[Tensor]:
    operation, _, where, validate = unpack(*packed)
    return [one.contiguous() for one in _bias.table_gradients(operation, grad, where, validate)]


_define(
    f"bias_gradients(Tensor grad, {SCHEMA}) -> Tensor[]",
    _bias_gradients,
    lambda grad, tensors, tables, *rest: [torch.empty_like(table, memory_format=torch.contiguous_format) for table in tables],
)
