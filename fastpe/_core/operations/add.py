"""Adding an encoding to an array, and writing one down."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..._arrays import Memory, dispatch
from .. import checks
from ..arguments import Target, device_name, host_numbers, output, overlap
from ..checks import message
from ..where import Where
from .base import Job, Operation, Spec, offset_kind


class _Add(NamedTuple):
    encoding: Any
    input_scale: float = 1.0
    seq_len: int | None = None


class Add(_Add, Operation):
    """``x[t] = x[t] * input_scale + PE(position of row t)``; of rows that a mask protects, nothing."""

    __slots__ = ()
    function: ClassVar[str] = "add_encoding"
    names: ClassVar[tuple[str, ...]] = ("x",)

    def check(self, arrays: tuple[Any, ...], where: Where, out: Any, validate: bool) -> Job:
        function, (x,) = self.function, arrays
        library, source = dispatch.memory(function, "x", x)
        checks.floating(function, "x", source.dtype, x)
        checks.has_rows(function, "x", source.shape)
        axis = checks.axis(function, where.seq_axis, source.shape)
        scale = checks.number(function, "input_scale", self.input_scale)
        checks.sequence_length(function, self.seq_len)
        checks.boolean(function, "validate", validate)
        is_x = out is None or out is x
        target = source if is_x else output(function, out, library, source.device, source.shape, source.dtype)
        checks.writable(function, "x" if is_x else "out", target)
        if not is_x and overlap(source, target):
            rule, got = "out must be x or lie apart from it", "an out that partly overlaps x"
            raise ValueError(message(function, rule, got, "Pass out=x, or a new array."))
        checks.fits(function, "input_scale", scale, target.dtype)
        rows = Target(function, library, source, axis, validate)
        calls = self.encoding.additions(rows, where, target, scale, self.seq_len)
        # An out that is another view of x is no case of its own.
        repeats = self.encoding.repeats(self.seq_len) and (is_x or not target.same_elements(source))
        return Job(x if out is None else out, target.device, calls, (source, target) if repeats else None)

    def adjoint(self) -> Scale:
        return Scale(self.input_scale)

    def repeatable(self, where: Where) -> bool:
        encoding, scale, seq_len = self
        cu_seqlens, mask, axis = where[2:]
        return (
            cu_seqlens is mask is None
            and type(scale) is float
            and type(axis) is int
            and (seq_len is None or type(seq_len) is int)
            and hasattr(encoding, "text")
        )

    def key(self, arrays: tuple[Any, ...], where: Where, out: Any) -> Any:
        (x,), offset, axis = arrays, where[0], where[4]
        if type(x) is not np.ndarray or not self.repeatable(where):
            return None
        encoding, scale, seq_len = self
        kind = 0 if where[1] is None and type(offset) is int else offset_kind(where, x, axis)
        if kind is None:
            return None
        if out is None or out is x:
            return Add, encoding.text, scale, seq_len, x.dtype, x.shape, x.strides, axis, kind
        if type(out) is not np.ndarray:
            return None
        target = out.dtype, out.shape, out.strides
        return Add, encoding.text, scale, seq_len, x.dtype, x.shape, x.strides, axis, kind, target


class Scale(NamedTuple):
    """The adjoint of ``Add``: a gradient times the factor of x, that of rows which a mask protects as it is."""

    factor: float


class _Encode(NamedTuple):
    encoding: Any
    dim: int
    dtype: Any = None
    seq_len: int | None = None


class Encode(_Encode, Operation):
    """``result = PE(positions)``; arrays are an example of the library and device, and the positions."""

    __slots__ = ()
    function: ClassVar[str] = "encode"
    names: ClassVar[tuple[str, ...]] = ("like", "positions")
    in_place: ClassVar[bool] = False

    def check(self, arrays: tuple[Any, ...], where: Any, out: Any, validate: bool) -> Job:
        function, (like, positions) = self.function, arrays
        width = checks.width(function, "dim", self.dim)
        checks.sequence_length(function, self.seq_len)
        checks.boolean(function, "validate", validate)
        self.encoding.check_width(function, width)
        example, name = (like, "like") if like is not None else (out, "out")
        given: Memory | None = None
        if positions is None and self.encoding.is_whole:
            library, near = dispatch.memory(function, name, np.empty(0) if example is None else example)
        else:
            library, near = dispatch.memory(function, "positions", _beside(function, positions, example, name))
            given = near
        element = None if self.dtype is None else checks.dtype_name(function, self.dtype)
        shape = self.shape(None if given is None else given.shape)
        if out is None:
            out = library.empty(shape, element or "float32", near.device)
            target = library.memory(out)
        else:
            target = output(function, out, library, near.device, shape, element)
            checks.writable(function, "out", target)
            if given is not None and overlap(given, target):
                raise ValueError(message(function, "out must lie apart from positions", "an out that overlaps positions"))
        return Job(out, target.device, self.encoding.encodings(library, given, target, self.seq_len, validate))

    def shape(self, positions: tuple[int, ...] | None) -> tuple[int, ...]:
        """The shape of the result for positions of this shape; None: all rows of a grid."""
        leading: tuple[int, ...] = self.encoding.encoded_shape(self.function, positions)
        return (*leading, self.dim)

    def result(self, specs: tuple[Spec, ...]) -> Spec:
        positions = specs[1]
        return Spec(self.shape(None if positions is None else positions.shape), self.dtype or "float32")


def _beside(function: str, positions: Any, example: Any, name: str) -> Any:
    """Positions as an array in the library and on the device of an example (if there is one)."""
    positions = host_numbers(function, "positions", positions)
    if example is None:
        return positions
    library, near = dispatch.memory(function, name, example)
    own_library, given = dispatch.memory(function, "positions", positions)
    if own_library is library and given.device == near.device:
        return positions
    if given.device is not None:
        got = f"positions on {device_name(given.device)} and {name} on {device_name(near.device)}"
        raise TypeError(message(function, f"positions on a GPU must be on the device of {name}", got, "Copy them first."))
    return library.from_host(positions, near.device)
