"""How the primitive is differentiated and vectorised: the operation's adjoint, and one more axis of arrays."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching

from .._core.operations import AddBias, Rerotate, Rotate
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
    count = len(call.replaced)
    given = [ad.instantiate_zeros(one) for one in cotangents]
    back = call._replace(operation=call.operation.adjoint())
    made = iter(primitive.bind(*given, *operands[count:], text=back.text(), apart=apart))
    found = [next(made) for _ in range(count)]
    linear = [ad.is_undefined_primal(one) for one in operands[:count]]
    return [
        *(one if is_linear else None for one, is_linear in zip(found, linear, strict=True)),
        *[None] * len(operands[count:]),
    ]


ad.primitive_jvps[primitive] = _jvp
ad.primitive_transposes[primitive] = _transpose


# ---- one more axis -----------------------------------------------------------------------------------------------------------


def _batch(operands: Sequence[Any], dims: Sequence[Any], *, text: str, apart: bool) -> tuple[list[Any], list[int]]:
    call = read(text)
    moved = [one if dim is None else jnp.moveaxis(one, dim, 0) for one, dim in zip(operands, dims, strict=True)]
    batched = [dim is not None for dim in dims]
    size = next(one.shape[0] for one, is_batched in zip(moved, batched, strict=True) if is_batched)
    rule = (
        _in_front if _fits_in_front(call, moved, batched) else _by_sequence if _has_sequences(call, moved, batched) else _mapped
    )
    made = rule(call, moved, batched, size, apart)
    return list(made), [0] * len(made)


def _places(call: Call) -> list[int]:
    """The operands that say where rows stand."""
    return [index for index, name in enumerate(call.names) if name in (*call.places, "delta")]


def _rank(call: Call, operand: Any, index: int, is_batched: bool) -> int:
    return int(operand.ndim) - is_batched - (call.dtypes[index] == WIDE)


def _leading(call: Call) -> list[int]:
    """The operands that have the rows of the result: what is written, ids, or positions of encode."""
    if call.operation.in_place:
        return call.replaced
    return [index for index, name in enumerate(call.names) if call.dtypes[index] == WIDE and name not in call.places]


def _has_axes(call: Call) -> bool:
    """Whether positions may have several axes, one in front of the other."""
    encoding = call.operation[0]
    return bool(getattr(encoding, "sections", None)) or not getattr(encoding, "counts", True)


def _others_batched(call: Call, batched: Sequence[bool]) -> bool:
    """Whether a table is."""
    return any(one for index, one in enumerate(batched) if index not in (*_leading(call), *_places(call)))


def _fits_in_front(call: Call, moved: Any, batched: Sequence[bool]) -> bool:
    """Whether every sequence has the same places, so that a new axis may stand in front."""
    ranks = [_rank(call, moved[index], index, batched[index]) for index in _places(call)]
    most = 0 if isinstance(call.operation, Rerotate) else 1
    is_shared = not any(batched[index] for index in _places(call)) and all(rank <= most for rank in ranks)
    return is_shared and not _others_batched(call, batched) and not (call.operation.function == "encode" and _has_axes(call))


def _in_front(call: Call, moved: Any, batched: Sequence[bool], size: int, apart: bool) -> Any:
    for index in _leading(call):
        moved[index] = _spread(moved[index], batched[index], size)
    return primitive.bind(*moved, text=_shifted(call).text(), apart=apart)


def _shifted(call: Call) -> Call:
    """With the axis of rows counted from the new first one."""
    fixed = dict(call.fixed)
    if fixed.get("seq_axis", -1) >= 0:
        fixed["seq_axis"] += 1
    return call._replace(fixed=tuple(fixed.items()))


def _spread(operand: Any, is_batched: bool, size: int) -> Any:
    return operand if is_batched else jnp.broadcast_to(operand, (size, *operand.shape))


def _has_sequences(call: Call, moved: Any, batched: Sequence[bool]) -> bool:
    """Whether the new axis may become one with that of sequences, each with its own places."""
    if isinstance(call.operation, AddBias) or _has_axes(call) or _others_batched(call, batched):
        return False
    leading = [_rank(call, moved[index], index, batched[index]) for index in _leading(call)]
    rows = leading[0] - call.operation.in_place  # axes that are not channels
    axis = dict(call.fixed)["seq_axis"] % (rows + 1)
    ranks = [_rank(call, moved[index], index, batched[index]) for index in _places(call)]
    return len(set(leading)) == 1 and (axis > 0 or rows == 1) and all(rank <= 2 for rank in ranks)


def _by_sequence(call: Call, moved: Any, batched: Sequence[bool], size: int, apart: bool) -> Any:
    leading = _leading(call)
    for index in leading:
        moved[index] = _spread(moved[index], batched[index], size)
    lead = moved[leading[0]]
    rows = lead.ndim - 1 - call.operation.in_place - (call.dtypes[leading[0]] == WIDE)
    alone = rows == 1  # the new axis is that of sequences
    sequences = () if alone else (lead.shape[1],)
    axis = dict(call.fixed)["seq_axis"] % (rows + 1)
    count = lead.shape[1 + axis]
    places = list(call.places)
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
        place = jnp.broadcast_to(middle, (size, *sequences, *tail, *words))
        moved[index] = place.reshape(-1, *tail, *words)
    if not alone:
        for index in leading:
            moved[index] = moved[index].reshape(-1, *moved[index].shape[2:])
    changed = call._replace(places=tuple(places))
    made = primitive.bind(*moved, text=(_shifted(changed) if alone else changed).text(), apart=apart)
    return made if alone else [one.reshape(size, *sequences, *one.shape[1:]) for one in made]


def _mapped(call: Call, moved: Any, batched: Sequence[bool], size: int, apart: bool) -> Any:
    """One after the other."""

    def one(some: Any) -> Any:
        rest = iter(some)
        operands = [next(rest) if is_batched else operand for operand, is_batched in zip(moved, batched, strict=True)]
        return primitive.bind(*operands, text=call.text(), apart=apart)

    return jax.lax.map(one, [operand for operand, is_batched in zip(moved, batched, strict=True) if is_batched])


batching.primitive_batchers[primitive] = _batch
