"""How the primitive is differentiated and vectorised: the operation's adjoint, and one more axis of arrays."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching

from .._core.operations import AddBias, Encode, Rerotate, Rotate
from ._call import WIDE, Call, read
from ._primitive import primitive
from ._twin import in_plain_operations

# ---- derivatives -------------------------------------------------------------------------------------------------------------


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, text: str, apart: bool) -> tuple[Any, Any]:
    results = primitive.bind(*primals, text=text, apart=apart)
    call = read(text)
    given = [index for index, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]
    if not given:
        return results, [ad.Zero.from_primal_value(one) for one in results]
    if isinstance(call.operation, (Rotate, Rerotate)):
        found = iter(_rotated(call, primals, tangents, given, apart))
        return results, [next(found) if index in given else jnp.zeros_like(results[index]) for index in call.replaced]
    return results, _by_twin(tuple(primals), [tangents[index] for index in given], text=text, given=tuple(given))


@functools.partial(jax.jit, static_argnames=("text", "given"))
def _by_twin(primals: tuple[Any, ...], tangents: list[Any], *, text: str, given: tuple[int, ...]) -> Any:
    """What is x times a factor, or rows of tables, plus what is fixed, is differentiated as plain operations; compilers drop the fixed."""

    def function(*some: Any) -> Any:
        operands = list(primals)
        for index, one in zip(given, some, strict=True):
            operands[index] = one
        return in_plain_operations(*operands, text=text, apart=True)

    return jax.jvp(function, [primals[index] for index in given], tangents)[1]


def _rotated(call: Call, primals: Any, tangents: Any, given: list[int], apart: bool) -> list[Any]:
    """A rotation is linear: the same one, of those arrays that have a tangent."""
    count = len(call.replaced)
    rest = primals[count:]
    present = iter(range(count))
    writes = call.operation.writes
    arrays = [None if one is None or next(present) not in given else one for one in call.arrays[:writes]]
    some = call._replace(arrays=(*arrays, *call.arrays[writes:]))
    made: list[Any] = primitive.bind(*(tangents[index] for index in given), *rest, text=some.text(), apart=apart)
    return made


def _transpose(cotangents: Sequence[Any], *operands: Any, text: str, apart: bool) -> list[Any]:
    """Of a rotation."""
    call = read(text)
    given = [ad.instantiate_zeros(one) for one in cotangents]
    back = call._replace(operation=call.operation.adjoint())
    made = primitive.bind(*given, *operands[len(given) :], text=back.text(), apart=apart)
    some = [one if ad.is_undefined_primal(operand) else None for one, operand in zip(made, operands, strict=False)]
    return [*some, *[None] * (len(operands) - len(some))]


ad.primitive_jvps[primitive] = _jvp
ad.primitive_transposes[primitive] = _transpose


# ---- one more axis -----------------------------------------------------------------------------------------------------------


def _batch(operands: Sequence[Any], dims: Sequence[Any], *, text: str, apart: bool) -> tuple[list[Any], list[int]]:
    call, batched = read(text), [dim is not None for dim in dims]
    moved = [one if dim is None else jnp.moveaxis(one, dim, 0) for one, dim in zip(operands, dims, strict=True)]
    size = next(one.shape[0] for one, is_batched in zip(moved, batched, strict=True) if is_batched)
    counts = [one.ndim - is_batched for one, is_batched in zip(moved, batched, strict=True)]
    rule = _rule(call, [count - (dtype == WIDE) for count, dtype in zip(counts, call.dtypes, strict=True)], batched)
    made = _mapped(call, moved, batched, apart) if rule is None else rule(call, moved, batched, size, apart)
    return list(made), [0] * len(made)


def _rule(call: Call, ranks: list[int], batched: list[bool]) -> Any:
    """In front, where every sequence has the same places; one axis with that of sequences, where each may have its own; else None."""
    leading, places, operation = _leading(call), _places(call), call.operation
    if any(one and index not in (*leading, *places) for index, one in enumerate(batched)):  # a table
        return None
    has_axes = bool(getattr(operation[0], "sections", None)) or not getattr(operation[0], "counts", True)  # of positions
    most = 0 if isinstance(operation, Rerotate) else 1
    if not any(batched[index] or ranks[index] > most for index in places) and not (has_axes and isinstance(operation, Encode)):
        return _in_front
    if has_axes or isinstance(operation, AddBias):
        return None
    rows = ranks[leading[0]] - operation.in_place  # axes that are not channels
    is_first = rows > 1 and dict(call.fixed)["seq_axis"] % (rows + 1) == 0
    fits = len({ranks[index] for index in leading}) == 1 and not is_first and all(ranks[index] <= 2 for index in places)
    return _by_sequence if fits else None


def _places(call: Call) -> list[int]:
    """The operands that say where rows stand."""
    return [index for index, name in enumerate(call.names) if name in (*call.places, "delta")]


def _leading(call: Call) -> list[int]:
    """The operands that have the rows of the result: what is written, ids, or positions of encode."""
    if call.operation.in_place:
        return call.replaced
    return [index for index, name in enumerate(call.names) if call.dtypes[index] == WIDE and name not in call.places]


def _spread(operand: Any, is_batched: bool, size: int) -> Any:
    return operand if is_batched else jnp.broadcast_to(operand, (size, *operand.shape))


def _in_front(call: Call, moved: Any, batched: Sequence[bool], size: int, apart: bool) -> Any:
    """One more axis, from which that of rows is counted."""
    for index in _leading(call):
        moved[index] = _spread(moved[index], batched[index], size)
    fixed = dict(call.fixed)
    if fixed.get("seq_axis", -1) >= 0:
        fixed["seq_axis"] += 1
    return primitive.bind(*moved, text=call._replace(fixed=tuple(fixed.items())).text(), apart=apart)


def _by_sequence(call: Call, moved: Any, batched: Sequence[bool], size: int, apart: bool) -> Any:
    leading, places = _leading(call), list(call.places)
    for index in leading:
        moved[index] = _spread(moved[index], batched[index], size)
    shape, is_wide = moved[leading[0]].shape, call.dtypes[leading[0]] == WIDE
    rows = len(shape) - 1 - call.operation.in_place - is_wide
    sequences = () if rows == 1 else shape[1:2]  # else the new axis is that of sequences
    count = shape[1 + dict(call.fixed)["seq_axis"] % (rows + 1)]
    for index in _places(call):
        name, place = call.names[index], _spread(moved[index], batched[index], size)
        words = (2,) if call.dtypes[index] == WIDE else ()
        if name == "start":
            position = place[:, None] + jnp.arange(count, dtype=jnp.int32)
            place, words = jnp.stack([jnp.zeros_like(position), position], -1), (2,)
            places[places.index("start")] = "positions"
        own = place.ndim - 1 - len(words)
        tail = () if name == "delta" and own != 2 else (count,)
        middle = place.reshape(size, *(1,) * (len(sequences) - max(0, own - len(tail))), *place.shape[1:])
        moved[index] = jnp.broadcast_to(middle, (size, *sequences, *tail, *words)).reshape(-1, *tail, *words)
    changed = call._replace(places=tuple(places))
    if not sequences:
        return _in_front(changed, moved, [True] * len(moved), size, apart)
    for index in leading:
        moved[index] = moved[index].reshape(-1, *moved[index].shape[2:])
    made = primitive.bind(*moved, text=changed.text(), apart=apart)
    return [one.reshape(size, *sequences, *one.shape[1:]) for one in made]


def _mapped(call: Call, moved: Any, batched: Sequence[bool], apart: bool) -> Any:
    """One after the other."""

    def one(some: Any) -> Any:
        rest = iter(some)
        operands = [next(rest) if is_batched else operand for operand, is_batched in zip(moved, batched, strict=True)]
        return primitive.bind(*operands, text=call.text(), apart=apart)

    return jax.lax.map(one, [operand for operand, is_batched in zip(moved, batched, strict=True) if is_batched])


batching.primitive_batchers[primitive] = _batch
