"""A call as the arguments of a graph's operators, and back: its tensors, the operation as text, and the numbers that stay symbolic.

``pack`` is followed by compilers; ``unpack`` runs in the operators.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .._core import text
from .._core.checks import message
from ..encodings import fire, fourier  # noqa: F401  (loaded on first use elsewhere; a graph that is read needs their names)

Tensor = torch.Tensor
Packed = tuple[list[Tensor], list[Tensor], list[Tensor], str, list[Any], list[Any]]

APART = " apart"  # at the end of a call
SCHEMA = "Tensor[] arrays, Tensor[] tables, Tensor[] where, str call, SymInt[] numbers, SymInt[] seq_len"


class Call(NamedTuple):
    """An operation with all that it is given."""

    operation: Any
    arrays: tuple[Any, ...]
    where: Any
    validate: bool


def from_numbers(values: Any, device: Any = None) -> Tensor:
    """A tensor of Python's numbers, in a graph; real ones in float64, as NumPy has them."""
    made = torch.as_tensor(values, device=device)
    return torch.as_tensor(values, dtype=torch.float64, device=device) if made.is_floating_point() else made


def pack(operation: Any, arrays: tuple[Any, ...], where: Any, validate: bool, writes: int = 0, apart: bool = False) -> Packed:
    """The arguments of an operator. ``writes``: how many of the first arrays are passed by themselves, as those to be written.

    ``apart``: whether those that are read must share no memory, as they will be written with what is made of them.
    """
    device = [x for x in arrays if isinstance(x, Tensor)][0].device  # noqa: RUF015 (traced)
    tensors, given, plain = [], "", "null"
    for index, x in enumerate(arrays):
        if isinstance(x, (list, tuple, range)) or (isinstance(x, int) and operation.function == "embed"):
            x = from_numbers(x, device)
        given += "0" if x is None else "t" if isinstance(x, Tensor) else "n"
        if isinstance(x, Tensor) and index >= writes:
            tensors.append(x)
    numbers: list[Any] = []
    if operation.function == "encode":
        numbers.append(operation.dim)
        operation = operation._replace(dim=0)
    if "n" in given:  # how far keys move
        if isinstance(arrays[1], int):
            numbers.append(arrays[1])
        else:
            plain = text.write(arrays[1])
    names, given_where, axis = "", [], 0
    if where is not None:
        for name, value in zip(where._fields, where):  # noqa: B905 (traced)
            if name == "seq_axis":
                axis = value
                continue
            if isinstance(value, (list, tuple, range)):
                value = from_numbers(value, device)
            if isinstance(value, Tensor):
                given_where.append(value)
                names += f" {name}"
            elif value is not None:
                numbers.append(value)
                names += f" #{name}"
    values = [operation.source, operation.target] if operation.function == "rerotate" else [operation[0]]
    values = [] if operation.function == "resample" else values  # has a size in its place, which may be symbolic
    tables = [table for value in values if hasattr(value, "text") for table in text.tensors_in(value)]
    lengths: list[Any] = []
    if hasattr(operation, "seq_len"):
        seq_len = operation.seq_len
        lengths = [] if seq_len is None else list(seq_len) if isinstance(seq_len, (tuple, list)) else [seq_len]
        operation = operation._replace(seq_len=None)
    for name, value in zip(operation._fields, operation):  # noqa: B905 (traced)
        if isinstance(value, Tensor):
            rule = f"{name} must be a real number, and in a graph no tensor"
            raise TypeError(message(operation.function, rule, "a tensor", "Pass value.item()."))
    serialized = text.write_operation(operation)
    text.refuse_unknown("torch.compile", serialized)
    call = (
        f"{serialized}\n{given}\n{names}\n{text.write(axis)}\n{plain}\n{text.write(validate)}\n{writes}{APART if apart else ''}"
    )
    return tensors, tables, given_where, call, numbers, lengths


def record(operation: Any, arrays: tuple[Any, ...], where: Any, validate: bool, apart: bool = False) -> Any:
    """New tensors, by an operator of the graph that is being traced."""
    made = torch.ops.fastpe.run.default(*pack(operation, arrays, where, validate, apart=apart))
    return made[0] if len(made) == 1 else tuple(made)


def unpack(*packed: Any, out: Any = ()) -> Call:
    """The call that was packed; ``out``: the arrays that were passed by themselves."""
    tensors, tables, given_where, call, numbers, lengths = packed
    serialized, given, names, axis, plain, validate, writes = call.removesuffix(APART).split("\n")
    operation = text.read(serialized, tables)
    others, counts, outs = iter(tensors), iter(numbers), iter(out)
    if operation.function == "encode":
        operation = operation._replace(dim=next(counts))
    if lengths:
        operation = operation._replace(seq_len=lengths[0] if len(lengths) == 1 else tuple(lengths))
    arrays: list[Any] = []
    for index, kind in enumerate(given):
        if kind == "n":
            arrays.append(text.read(plain) if plain != "null" else next(counts))
        else:
            arrays.append(None if kind == "0" else next(outs) if index < int(writes) else next(others))
    where = None
    if operation.where_type is not None:
        values = iter(given_where)
        fields = {name.strip("#"): next(counts) if name.startswith("#") else next(values) for name in names.split()}
        if "seq_axis" in operation.where_type._fields:
            fields["seq_axis"] = int(axis)
        where = operation.where_type(**fields)
    return Call(operation, tuple(arrays), where, validate == "true")
