"""Operations on DTensors: each rank does its own rows, where ``Operation.part`` says that they stand, by the ways of its local tensor.

Nothing is communicated but what says where rows stand, and tables, where these are sharded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch.distributed.tensor import Partial, Replicate, Shard

from .._core import checks
from .._core.checks import message
from .._core.operations import AddBias, Embed, Encode, Rerotate, Resample
from .._core.operations.add_bias import resolve
from .._core.where import Where
from . import _tensors
from ._gather_sum import row_positions
from ._grad_state import check_in_place, is_traced, refuse_out, requires_gradient
from ._packing import from_numbers
from ._run import new, run

Tensor = torch.Tensor


def write(operation: Any, arrays: tuple[Any, ...], where: Any, out: Any, validate: bool) -> None:
    """Write the local tensors, or those of ``out``."""
    own, local, where, like = _split(operation, arrays, where, validate)
    outs = _outs(operation, [x for x, _ in like], out)
    with torch.no_grad():
        given = [one.to_local() for one in outs]
        run(own, local, where, None if out is None else tuple(given) if isinstance(out, (tuple, list)) else given[0], validate)
        _tensors.count_up(*outs)


def copy(operation: Any, arrays: tuple[Any, ...], where: Any, out: Any, validate: bool) -> None:
    """As ``write``, where autograd or a compiler watches, or where a verb makes something: made anew, and copied."""
    targets = [x for x in arrays[: operation.writes] if x is not None]
    outs = _outs(operation, targets, out) if operation.in_place else [out]
    if out is not None and requires_gradient(*outs):
        refuse_out(operation.function, out)
    if out is None and not is_traced():
        check_in_place(operation.function, *targets)
    made = make(operation, arrays, where, validate)
    for one, values in zip(outs, made if isinstance(made, tuple) else (made,)):  # noqa: B905 (traced)
        one.copy_(values)


def make(operation: Any, arrays: tuple[Any, ...], where: Any, validate: bool) -> Any:
    """Run an operation into new DTensors, with gradients."""
    own, local, where, like = _split(operation, arrays, where, validate)
    made, wrapped = new(own, local, where, validate), []
    for one, (x, shape) in zip(made if isinstance(made, tuple) else (made,), like):  # noqa: B905 (traced)
        front = 0 if operation.in_place else x.dim() + 1 - len(shape)  # coordinates of points
        places = [Shard(place.dim - front) if front and place.is_shard() else place for place in x.placements]
        stride = x.stride() if operation.in_place else torch.empty(shape, device="meta").stride()
        wrapped.append(type(x).from_local(one, x.device_mesh, places, run_check=False, shape=torch.Size(shape), stride=stride))
    return wrapped[0] if len(wrapped) == 1 else tuple(wrapped)


def _outs(operation: Any, targets: list[Any], out: Any) -> list[Any]:
    outs = targets if out is None else list(out) if isinstance(out, (tuple, list)) else [out]
    for x, one in zip(targets, outs):  # noqa: B905 (traced)
        if type(one) is not type(x) or one.placements != x.placements or one.device_mesh != x.device_mesh:
            rule = f"out must be a DTensor with the placements {x.placements}"
            got = getattr(one, "placements", type(one).__name__)
            raise ValueError(message(operation.function, rule, str(got), "torch.empty_like(x) is one."))
    return outs


# ---- what a rank does --------------------------------------------------------------------------------------------------------


class Share(NamedTuple):
    """A DTensor, the block of it that this rank has (begin and end along each axis), and the tensor that has its elements."""

    x: Any
    block: list[tuple[int, int]]
    local: Tensor

    def shared(self, value: Any) -> Any:
        """What all ranks need whole, as a tensor; the gradient of a table is a sum over the ranks whose rows differ."""
        if isinstance(value, (list, tuple, range)):
            return from_numbers(value, self.x.device)
        if not hasattr(type(value), "device_mesh"):
            return value
        if value.device_mesh != self.x.device_mesh:
            rule = "DTensors of one call must be on one mesh"
            raise ValueError(message("DTensor", rule, f"{self.x.device_mesh} and {value.device_mesh}"))
        sums = [Partial() if one.is_shard() else Replicate() for one in self.x.placements]
        return value.redistribute(placements=[Replicate() for _ in sums]).to_local(grad_placements=sums)


def _split(operation: Any, arrays: tuple[Any, ...], where: Any, validate: bool) -> tuple[Any, tuple[Any, ...], Any, list[Any]]:
    """This rank's operation, tensors and where their rows stand; and the DTensors that results are like, with the whole's shapes."""
    first, count = (1, 2) if isinstance(operation, (Embed, Encode)) else (0, operation.writes)
    if isinstance(operation, Resample) or not any(x is not None for x in arrays[first:count]):
        name = operation.names[0]
        raise TypeError(message(operation.function, f"{name} must be whole", "a DTensor", f"Pass {name}.full_tensor()."))
    shares = {i: _share(operation, i, arrays[i], validate) for i in range(first, count) if arrays[i] is not None}
    lead = shares[min(shares)]
    local = [shares[i].local if i in shares else lead.shared(x) for i, x in enumerate(arrays)]
    like = [(one.x, tuple(one.x.shape)) for one in shares.values()]
    if isinstance(operation, Encode):
        if operation.encoding.needs_length and operation.seq_len is None:
            operation = operation._replace(seq_len=_longest(operation.function, lead.x.full_tensor()))
        return operation, tuple(local), None, [(lead.x, operation.shape(tuple(lead.x.shape)))]
    where = type(where)(*[lead.shared(value) for value in where])
    if not is_traced():
        _tensors.shared_where(operation.function, where, lead.x.device)
    if isinstance(operation, AddBias):
        operation, where = _scores(operation, lead, where, validate)
    elif isinstance(operation, Embed):
        like = [(lead.x, (*lead.x.shape, local[0].shape[1]))]
        operation, where = _embedding(operation, lead, local, where)
    else:
        _check_alike(operation, list(shares.values()), where.seq_axis)
        if isinstance(operation, Rerotate):
            local[1] = _moves(lead, local[1], where.seq_axis)
        operation, where = _rows(operation, lead, where, tuple(lead.x.shape), [*lead.block[:-1], (0, lead.x.shape[-1])])
    where = type(where)(*[torch.as_tensor(one, device=lead.x.device) if isinstance(one, np.ndarray) else one for one in where])
    own = operation[0]
    if getattr(own, "holds_arrays", False):
        own = own.with_arrays(**{name: lead.shared(one) for name, one in own.arrays.items()})
        operation = operation._replace(**{operation._fields[0]: own})
    return operation, tuple(local), where, like


def _rows(operation: Any, lead: Share, where: Where, shape: tuple[int, ...], block: Any) -> tuple[Any, Any]:
    """The operation and where this rank's rows stand, given where those of the whole do."""
    function, axis = operation.function, checks.axis(operation.function, where.seq_axis, shape)
    offset, positions, cu_seqlens, mask, _ = where
    encoding, axes = operation[0], sorted({axis, _batch(axis)}) if len(shape) > 2 else [axis]
    if encoding is None:  # nothing but a mask says something of the rows
        _, own = operation.part(Where(0, torch.empty(shape[axis]), None, mask, axis), shape, block)
        return operation, where._replace(mask=own.mask)
    needs = encoding.needs_length and operation.seq_len is None
    counted = cu_seqlens is not None or mask is not None or (needs and isinstance(offset, Tensor))
    if positions is None and encoding.counts and counted:
        like = torch.empty(1, device=lead.x.device).expand([*[shape[i] for i in axes], 1])
        positions = row_positions(like, axes.index(axis), [offset, None, cu_seqlens, mask], function)
        where = Where(0, positions, None, mask, axis)
    if needs and positions is not None:
        operation = operation._replace(seq_len=_longest(function, positions))
    made: tuple[Any, Any] = operation.part(where, shape, block)
    return made


def _embedding(operation: Any, lead: Share, local: list[Any], where: Where) -> tuple[Any, Any]:
    """As ``_rows``, of ids; padding, which is counted over all ranks, as a mask. Cuts the ids of types."""
    if isinstance(local[2], Tensor):
        local[2] = local[2][tuple([slice(*ends) for ends in lead.block])]
    if operation.padding_idx is not None:
        tokens = lead.shared(lead.x) != operation.padding_idx
        where = where._replace(mask=tokens if where.mask is None else tokens & where.mask)
        operation = operation._replace(padding_idx=None)
    width = local[0].shape[1]
    return _rows(operation, lead, where, (*lead.x.shape, width), [*lead.block, (0, width)])


def _scores(operation: AddBias, lead: Share, where: Any, validate: bool) -> tuple[Any, Any]:
    """As ``_rows``, of scores: also the biases of this rank's heads."""
    if not is_traced() and any(isinstance(value, Tensor) for value in where):
        resolve(*_tensors.outline(lead.x), _tensors.shared_where(operation.function, where, lead.x.device), validate)
    keys = lead.x.shape[-1]
    if where.k_positions is None and lead.block[-1] != (0, keys):
        where = where._replace(k_positions=torch.arange(keys, device=lead.x.device))
    return operation.part(where, tuple(lead.x.shape), lead.block)


def _moves(lead: Share, delta: Any, seq_axis: int) -> Any:
    """How far this rank's sequences, or each of their rows, move."""
    axis = seq_axis % lead.x.dim()
    cut = [slice(*lead.block[_batch(axis)]), slice(*lead.block[axis])]
    return delta[tuple(cut[: delta.dim()])] if isinstance(delta, Tensor) else delta


def _batch(seq_axis: int) -> int:
    return 1 if seq_axis == 0 else 0


def _longest(function: str, positions: Tensor) -> int:
    """The largest position + 1, where it can be looked at."""
    if is_traced() or not positions.is_cpu:
        rule = "seq_len must be given where the scaling rule depends on the length and positions are traced or lie on a GPU"
        raise ValueError(message(function, rule, "None"))
    return max(1, int(positions.max()) + 1) if positions.numel() else 1


# ---- which block a rank has --------------------------------------------------------------------------------------------------


def _share(operation: Any, index: int, x: Any, validate: bool) -> Share:
    """A rank's share of a DTensor; errors are the same on every rank, but for a local tensor of another shape."""
    function, name, mesh = operation.function, operation.names[index], getattr(x, "device_mesh", None)
    if mesh is None or mesh.get_coordinate() is None:
        rule = "arrays of one call must be DTensors, on a mesh that has this process"
        raise TypeError(
            message(function, rule, f"{name}, a {type(x).__name__}", "Call DTensor.from_local or distribute_tensor.")
        )
    if validate and not is_traced():
        _check_ranks(function, name, x)
    ends, last, whole = [(0, size) for size in x.shape], x.dim() - 1, _whole(operation, x)
    for i, placement in enumerate(x.placements):
        if placement.is_replicate():
            continue
        if type(placement) is not Shard:
            plain = [Shard(one.dim) if hasattr(one, "dim") else Replicate() for one in x.placements]
            rule, remedy = f"{name} must be sharded or replicated", f"Call {name}.redistribute(placements={plain}) first."
            raise ValueError(message(function, rule, str(x.placements), remedy))
        begin, end = ends[placement.dim]
        share = -(-(end - begin) // mesh.size(i))
        if share % whole.get(placement.dim, 1):
            what = "coordinates" if isinstance(operation, Encode) else "channels" if placement.dim == last else "packed heads"
            rule = f"{name} must not be sharded along its {what}"
            remedy = "Redistribute it along another axis, e.g. that of heads; with head_dim=, by whole heads."
            raise ValueError(message(function, rule, f"{x.placements} of shape {tuple(x.shape)}", remedy))
        first = min(begin + mesh.get_coordinate()[i] * share, end)
        ends[placement.dim] = first, min(first + share, end)
    local, sizes = x.to_local(grad_placements=x.placements), tuple([end - begin for begin, end in ends])
    if tuple(local.shape) != sizes:
        rule = f"the local tensor of {name} must have the shape {sizes}, as its placements share {tuple(x.shape)} out"
        raise ValueError(message(function, rule, str(tuple(local.shape)), "Redistribute the whole with distribute_tensor."))
    return Share(x, ends, local.wait() if hasattr(local, "wait") else local)


def _whole(operation: Any, x: Any) -> dict[int, int]:
    """Of how many elements of an axis a rank must have a multiple."""
    if isinstance(operation, Encode):  # coordinates of points stand in front
        return dict(enumerate(x.shape[: x.dim() + 1 - len(operation.shape(tuple(x.shape)))]))
    if isinstance(operation, (AddBias, Embed)):
        return {}
    packing, head_dim = getattr(operation, "packing", None), getattr(operation, "head_dim", None)
    units = {x.dim() - 1: head_dim or x.shape[-1]}
    return units if packing is None else {**units, packing[2]: x.shape[packing[2]]}


def _check_alike(operation: Any, shares: list[Share], seq_axis: int) -> None:
    """q and k must lie on the same ranks by sequence and row, as one call says where both stand."""
    stands = []
    for x, block, _ in shares:
        axis = seq_axis % x.dim()
        stands.append((block[axis], block[_batch(axis)] if x.dim() > 2 else None))
    if any(one != stands[0] for one in stands):
        got = " and ".join(str(x.placements) for x, _, _ in shares)
        rule, remedy = "q and k must be sharded alike along sequences and rows", "Redistribute k."
        raise ValueError(message(operation.function, rule, got, remedy))


def _check_ranks(function: str, name: str, x: Any) -> None:
    """All ranks must mean the same whole: asked for by ``validate=True``, as it needs communication."""
    for i in range(x.device_mesh.ndim):
        group = x.device_mesh.get_group(i)
        found: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(found, tuple(x.shape), group=group)
        if len(set(found)) > 1:
            rule = f"{name} must have one shape on all ranks"
            remedy = "Ranks with unequal rows must give DTensor.from_local the whole's shape= and stride=."
            raise ValueError(message(function, rule, " and ".join(map(str, sorted(set(found)))), remedy))
