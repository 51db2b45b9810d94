"""How an operation runs on arrays of JAX: every check on outlines, then one primitive that holds the operation as text.

Arguments of the host are checked by value, as for NumPy's arrays; values of JAX's arrays are never read: a row at no position is NaN.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks, text
from .._core.arguments import host_numbers
from .._core.checks import describe, message
from .._core.operations import AddBias, Embed, Encode, Rerotate, Resample
from .._core.parts import phantom, refuse_open_length, settled, zeros_like
from .._core.run import plain_where
from .._core.where import Where
from ..encodings.fourier import Fourier
from ._call import WIDE, Call
from ._primitive import bind
from ._rows import counted, ids_of, is_jax, words_of
from ._twin import evaluate


def run(operation: Any, arrays: tuple[Any, ...], where: Any, out: Any, validate: bool) -> Any:
    """Run an operation into new arrays."""
    function = operation.function
    if out is not None:
        remedy = "Use what is returned; inside of jax.jit an array that is donated is written in place."
        raise TypeError(message(function, "out must be None, as arrays of JAX cannot be written", describe(out), remedy))
    checks.boolean(function, "validate", validate)
    if validate:
        remedy = "Rows at no position, and of ids outside of the table, are NaN."
        raise ValueError(message(function, "validate must be False, as values of JAX's arrays are not read", "True", remedy))
    if isinstance(operation, Resample):
        remedy = "Pass numpy.asarray(table), once, before training."
        raise TypeError(message(function, "table must be an array of NumPy, CuPy or PyTorch", describe(arrays[0]), remedy))
    where = plain_where(operation, where)
    _refuse_traced_numbers(operation, where)
    if getattr(operation, "dtype", None) is not None:
        operation = operation._replace(dtype=checks.dtype_name(function, operation.dtype))
        if operation.dtype == "float64" and not jax.config.jax_enable_x64:
            remedy = 'Set jax.config.update("jax_enable_x64", True) before anything else.'
            raise TypeError(message(function, "dtype must be one that JAX is set to", "float64", remedy))
    operation, tables = _apart(operation)
    arrays = _of_jax(operation, arrays)
    outlines = tuple(_outline(operation, index, x) if is_jax(x) else x for index, x in enumerate(arrays))
    operation.check(outlines, None if where is None else _outlined(operation, where, arrays), None, False)
    call, operands = _call(operation, arrays, where)
    results = evaluate(call, operands, tables) if tables else bind(call, operands)
    return results[0] if len(results) == 1 else tuple(results)


# ---- arguments ---------------------------------------------------------------------------------------------------------------


def _of_jax(operation: Any, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arrays, of which those that are computed with must be JAX's; others may be numbers or NumPy's."""
    for name, array in zip(operation.names, arrays, strict=True):
        if name in ("ids", "delta", "positions", "like") or array is None or is_jax(array):
            continue
        if name == "token_types" and array is arrays[2]:
            continue
        if name == "row_scale":
            remedy = "Pass table.astype(float32) * row_scale[:, None] as the table."
            raise TypeError(message(operation.function, "row_scale must be None for tables of JAX", describe(array), remedy))
        rule, remedy = f"{name} must be an array of JAX like the others", f"Pass jax.numpy.asarray({name})."
        raise TypeError(message(operation.function, rule, describe(array), remedy))
    return (None, arrays[1]) if isinstance(operation, Encode) else arrays


def _outline(operation: Any, index: int, array: Any) -> Any:
    """An array of NumPy with the shape and type of one of JAX, and no memory; ids and places have values, which pass every check."""
    name, dtype = operation.names[index], np.dtype(array.dtype)
    is_read = name in ("positions", "delta") or (name in ("ids", "token_types") and dtype.kind in "iu")
    return zeros_like(array) if is_read else phantom(array.shape, dtype.name, index)


def _outlined(operation: Any, where: Any, arrays: tuple[Any, ...]) -> Any:
    """Where rows stand, with values that pass every check in place of JAX's arrays."""
    found = {name: zeros_like(value) for name, value in where._asdict().items() if is_jax(value)}
    if "cu_seqlens" in found and found["cu_seqlens"].size:
        shape = _shape(operation, arrays)
        found["cu_seqlens"] = np.array(found["cu_seqlens"])
        found["cu_seqlens"][-1] = shape[checks.axis(operation.function, where.seq_axis, shape)]  # how many rows there are
    return where._replace(**found)


def _shape(operation: Any, arrays: tuple[Any, ...]) -> tuple[int, ...]:
    """Of the array whose rows stand somewhere."""
    if isinstance(operation, Embed):
        return (*(np.shape(arrays[1]) or (1,)), *arrays[0].shape[1:])
    shape: tuple[int, ...] = next(x for x in arrays if x is not None).shape
    return shape


def _refuse_traced_numbers(operation: Any, where: Any) -> None:
    """TypeError for arrays where numbers are needed, whose values make the program."""
    for name, value in {**operation._asdict(), "seq_axis": getattr(where, "seq_axis", -2)}.items():
        if isinstance(value, jax.core.Tracer) or (name == "seq_axis" and is_jax(value)):
            remedy = "Give a number; where it is an argument of a function under jax.jit, name it in static_argnames."
            raise TypeError(message(operation.function, f"{name} must be a Python number", describe(value), remedy))


def _apart(operation: Any) -> tuple[Any, dict[str, Any]]:
    """The operation with outlines of the arrays that its encoding or bias holds, and these."""
    for value in operation[: 2 if isinstance(operation, Rerotate) else 1]:
        if isinstance(value, Fourier):
            rule, remedy = "Fourier features are no kernel's", "Add jax.numpy.asarray(fastpe.encode(points, dim, encoding))."
            raise TypeError(message(operation.function, rule, "arrays of JAX", remedy))
        if value is not None and text.says_all(value):
            text.refuse_unknown(operation.function, value.text)
    value = operation[0]
    if value is None or text.says_all(value):
        return operation, {}
    given = getattr(value, "arrays", {})
    if (
        not given
        or isinstance(operation, Rerotate)
        or not all(is_jax(one) or isinstance(one, np.ndarray) for one in given.values())
    ):
        rule = "encodings and biases must consist of numbers, and of arrays of JAX or NumPy, beside arrays of JAX"
        raise TypeError(message(operation.function, rule, type(value).__name__))
    outlines = {name: np.zeros(one.shape, one.dtype) for name, one in given.items()}
    changed = operation._replace(**{operation._fields[0]: value.with_arrays(**outlines)})
    return changed, {name: jnp.asarray(one) for name, one in given.items()}


# ---- the call ----------------------------------------------------------------------------------------------------------------


def _call(operation: Any, arrays: tuple[Any, ...], where: Any) -> tuple[Call, list[Any]]:
    """The call, and its operands."""
    fixed: dict[str, Any] = {}
    placed: dict[str, Any] = {}
    given, dtypes = list(arrays), [None if one is None else WIDE for one in arrays]
    for index, (name, array) in enumerate(zip(operation.names, arrays, strict=True)):
        if array is None:
            continue
        if name in ("delta", "positions"):
            given[index] = words_of(_numbers(operation.function, name, array))
        elif isinstance(operation, Embed) and index in (1, 2):
            given[index] = ids_of(_numbers(operation.function, name, array))
        else:
            dtypes[index] = str(array.dtype)
    if isinstance(operation, AddBias):
        fixed, placed = _of_bias(operation, where, arrays[0])
    elif isinstance(operation, Encode):
        refuse_open_length(operation)
    else:
        fixed["seq_axis"] = int(where.seq_axis)
        moves = isinstance(operation, Rerotate) and operation.source.text == operation.target.text and operation.seq_len is None
        if not moves:  # else only the distance matters
            operation, placed = _of_rows(operation, arrays, where)
        elif where.mask is not None:
            placed["mask"] = jnp.asarray(where.mask)
    call = Call(operation, dtypes, list(placed), fixed)
    return call, [one for one in (*given, *placed.values()) if one is not None]


def _numbers(function: str, name: str, value: Any) -> Any:
    return value if is_jax(value) else host_numbers(function, name, value)


def _of_rows(operation: Any, arrays: tuple[Any, ...], where: Where) -> tuple[Any, dict[str, Any]]:
    """The operation with all numbers that it depends on, and what says where its rows stand: a start, or positions, and a mask."""
    encoding, shape = operation[0], _shape(operation, arrays)
    if getattr(operation, "padding_idx", None) is not None:
        kept = jnp.asarray(_numbers(operation.function, "ids", arrays[1])) != operation.padding_idx
        where = where._replace(mask=kept if where.mask is None else kept & jnp.asarray(where.mask))
        operation = operation._replace(padding_idx=None)
    if encoding is None:
        return operation, {} if where.mask is None else {"mask": jnp.asarray(where.mask)}
    axis = where.seq_axis % len(shape)
    if encoding.counts and any(is_jax(value) for value in where[:4]):
        refuse_open_length(operation)
    else:
        operation, where = settled(operation, where, shape)
    placed, mask = {}, None if where.mask is None else jnp.asarray(where.mask)
    if where.positions is not None:
        placed["positions"] = words_of(where.positions)
    elif mask is None and where.cu_seqlens is None and np.ndim(where.offset) == 0:
        placed["start"] = jnp.asarray(where.offset, jnp.int32) if is_jax(where.offset) else np.int32(where.offset)
    else:
        by_sequence = mask.T if mask is not None and mask.ndim == 2 and axis == 0 else mask
        table = counted(shape[axis], where.offset, where.cu_seqlens, by_sequence)
        placed["positions"] = jnp.swapaxes(table, 0, 1) if axis == 0 and table.ndim == 3 else table
    if mask is not None:
        placed["mask"] = mask
    return operation, placed


def _of_bias(operation: AddBias, where: Any, scores: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Numbers of the bias's rows, and tables of positions of queries and keys."""
    q_offset, q_positions, k_positions = where
    is_number = q_offset is None or np.ndim(q_offset) == 0
    if is_number and not is_jax(q_offset) and q_positions is k_positions is None:
        return {"q_offset": None if q_offset is None else int(q_offset)}, {}
    if operation.bias.slopes_of is None:
        rule = "q_offset must be a number, and positions None, where the bias is no line of the distance"
        remedy = "Give q_offset as a number (static_argnames under jax.jit), or use fastpe.ALiBi."
        raise TypeError(message("add_bias", rule, type(operation.bias).__name__, remedy))
    queries, keys = scores.shape[-2:]
    if q_positions is None and q_offset is None:
        q_positions = _numbers("add_bias", "k_positions", k_positions)[..., keys - queries :]
    placed = {"q_positions": words_of(q_positions) if q_positions is not None else counted(queries, q_offset, None, None)}
    if k_positions is not None:
        placed["k_positions"] = words_of(k_positions)
    return {}, placed
