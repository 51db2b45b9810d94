"""How the primitive is differentiated and vectorised: the operation's adjoint, and one more axis of arrays."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching

from .._core.grid_rows import axes_of_sequence
from .._core.operations import AddBias, Encode, Rerotate, Rotate
from ._call import WIDE, Call, read
from ._primitive import primitive
from ._twin import in_plain_operations

# ---- derivatives -------------------------------------------------------------------------------------------------------------


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, text: str) -> tuple[Any, Any]:
    results, call = primitive.bind(*primals, text=text), read(text)
    given = [index for index, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]
    found = [tangents[index] for index in given]
    if not isinstance(call.operation, (Rotate, Rerotate)):
        return results, _by_twin(tuple(primals), found, text=text, given=tuple(given))
    # A rotation is linear: the same one, of those arrays that have a tangent.
    slots = [slot for slot, dtype in enumerate(call.arrays[: call.operation.writes]) if dtype is not None]
    without = [slots[index] for index in call.replaced if index not in given]
    some = call._replace(arrays=[None if slot in without else dtype for slot, dtype in enumerate(call.arrays)])
    made = iter(primitive.bind(*found, *primals[len(slots) :], text=some.text))
    return results, [next(made) if index in given else jnp.zeros_like(results[index]) for index in call.replaced]


@functools.partial(jax.jit, static_argnames=("text", "given"))
def _by_twin(primals: tuple[Any, ...], tangents: list[Any], *, text: str, given: tuple[int, ...]) -> Any:
    """What is x times a factor, or rows of tables, plus what is fixed, is differentiated as plain operations; compilers drop the fixed."""

    def function(*some: Any) -> Any:
        own = dict(zip(given, some, strict=True))
        return in_plain_operations(*[own.get(index, one) for index, one in enumerate(primals)], text=text)

    return jax.jvp(function, [primals[index] for index in given], tangents)[1]


def _transpose(cotangents: Sequence[Any], *operands: Any, text: str) -> list[Any]:
    """Of a rotation."""
    call = read(text)
    given = [ad.instantiate_zeros(one) for one in cotangents]
    back = call._replace(operation=call.operation.adjoint())
    made = primitive.bind(*given, *operands[len(given) :], text=back.text)
    some = [one if ad.is_undefined_primal(operand) else None for one, operand in zip(made, operands, strict=False)]
    return [*some, *[None] * (len(operands) - len(some))]


ad.primitive_jvps[primitive] = _jvp
ad.primitive_transposes[primitive] = _transpose


# ---- one more axis -----------------------------------------------------------------------------------------------------------


def _batch(operands: Sequence[Any], dims: Sequence[Any], *, text: str) -> tuple[list[Any], list[int]]:
    """In front, where every sequence has the same places; one axis with that of sequences, where each may have its own; or each alone."""
    call, batched = read(text), [dim is not None for dim in dims]
    moved = [one if dim is None else jnp.moveaxis(one, dim, 0) for one, dim in zip(operands, dims, strict=True)]
    size = next(one.shape[0] for one, is_batched in zip(moved, batched, strict=True) if is_batched)
    ranks = [
        one.ndim - is_batched - (dtype == WIDE) for one, is_batched, dtype in zip(moved, batched, call.dtypes, strict=True)
    ]
    places = [index for index, name in enumerate(call.names) if name in (*call.places, "delta")]
    leading = call.replaced or [index for index, dtype in enumerate(call.dtypes) if dtype == WIDE and index not in places]
    front, is_bias, rows = call.axes_in_front, isinstance(call.operation, AddBias), ranks[leading[0]] - call.operation.in_place
    one = {"delta": 0, "positions": front + _axes_of_sequence(call, moved, ranks, leading[0])}
    by_sequence = any(batched[index] or ranks[index] > one.get(call.names[index], one["positions"] - front) for index in places)
    # A mask (T,) beside positions (axes, B, T) of a Grid: with one more axis in front of x, (B, T) would be a picture.
    by_sequence |= any(call.names[index] == "mask" and ranks[index] < one["positions"] - front for index in places)
    if any(is_batched and index not in (*leading, *places) for index, is_batched in enumerate(batched)):  # a table
        is_alone = True
    elif by_sequence:
        is_first = rows > 1 and call.fixed.get("seq_axis", -1) % (rows + 1) == 0
        sizes_differ = len({ranks[index] for index in leading}) > 1 or max(ranks[index] for index in places) > 2
        is_alone = bool(front or is_bias or is_first or sizes_differ or rows == 0)
    else:
        is_alone = bool(front and isinstance(call.operation, Encode))
    if is_alone:
        made = _alone(call, moved, batched)
    else:
        for index in (*leading, *(places if by_sequence else ())):
            moved[index] = moved[index] if batched[index] else jnp.broadcast_to(moved[index], (size, *moved[index].shape))
        made = _by_sequence(call, moved, ranks, leading, places) if by_sequence else _in_front(call, moved)
    return list(made), [0] * len(made)


def _axes_of_sequence(call: Call, moved: Any, ranks: list[int], lead: int) -> int:
    """How many axes of x the rows of one sequence have."""
    if "positions" not in call.places or not call.axes_in_front:
        return 1
    x, positions = moved[lead].shape[-ranks[lead] :], moved[call.names.index("positions")].shape
    return axes_of_sequence(call.target(x), call.encoding, positions[call.axes_in_front : -1])


def _in_front(call: Call, moved: Any) -> Any:
    """One more axis, from which that of rows is counted."""
    fixed = {name: value + 1 if name == "seq_axis" and value >= 0 else value for name, value in call.fixed.items()}
    return primitive.bind(*moved, text=call._replace(fixed=fixed).text)


def _by_sequence(call: Call, moved: Any, ranks: list[int], leading: list[int], places: list[int]) -> Any:
    """Places of each sequence, those of one element behind those of another; without an axis of sequences the new one is that."""
    shape, rows = moved[leading[0]].shape, ranks[leading[0]] - call.operation.in_place
    sequences = shape[1:2] if rows > 1 else ()
    for index in places:
        place, has_own = moved[index], ranks[index] > (call.names[index] != "delta")
        if call.names[index] == "start":
            position = place[:, None] + jnp.arange(shape[1 + call.fixed["seq_axis"] % (rows + 1)], dtype=jnp.int32)
            place = jnp.stack([jnp.zeros_like(position), position], -1)
        if sequences and not has_own:
            place = jnp.broadcast_to(place[:, None], (place.shape[0], *sequences, *place.shape[1:]))
        moved[index] = place.reshape(-1, *place.shape[1 + len(sequences) :])
    call = call._replace(places=["positions" if name == "start" else name for name in call.places])
    if not sequences:
        return _in_front(call, moved)
    for index in leading:
        moved[index] = moved[index].reshape(-1, *moved[index].shape[2:])
    return [one.reshape(*shape[:2], *one.shape[1:]) for one in primitive.bind(*moved, text=call.text)]


def _alone(call: Call, moved: Any, batched: Sequence[bool]) -> Any:
    """One after the other."""

    def one(own: dict[int, Any]) -> Any:
        return primitive.bind(*[own.get(index, operand) for index, operand in enumerate(moved)], text=call.text)

    return jax.lax.map(one, {index: operand for index, operand in enumerate(moved) if batched[index]})


batching.primitive_batchers[primitive] = _batch
