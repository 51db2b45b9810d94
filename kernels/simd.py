"""Arithmetic on one number or on a vector of numbers, written once: it emits the LLVM instructions for either.

A loop that LLVM vectorises by itself needs passes over buffers, checks for overlap, and a tail, for every few hundred elements. A step
written here is one straight run of vector instructions, in which the processor overlaps memory and arithmetic. Float operations mean
what they say, without fastmath: an element of a vector gets the bits that it would get alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from . import abi

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
_INTEGER_OF = {F16: I16, F32: I32, F64: I64}
_FLOAT_OF = {I16: F16, I32: F32, I64: F64}


def _operator(of_integers: str, of_floats: str = "") -> Callable[[Vector, Vector | float], Vector]:
    """An operator of ``Vector``, by the names of the builder's methods; its right side may be a Python number."""

    def emit(left: Vector, right: Vector | float) -> Vector:
        instruction = getattr(left.builder, of_integers if isinstance(left.element, ir.IntType) else of_floats)
        return Vector(left.builder, instruction(left.value, left.like(right).value))

    return emit


class Vector:
    """A number or a vector of numbers in a function under construction. Integers wrap; shifts to the right fill with zeros."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    @property
    def element(self) -> ir.Type:
        kind = self.value.type
        return kind.element if isinstance(kind, ir.VectorType) else kind

    def _of(self, element: ir.Type) -> ir.Type:
        kind = self.value.type
        return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element

    def like(self, number: Vector | float) -> Vector:
        """A constant of the same type, in every element; a vector as it is."""
        if isinstance(number, Vector):
            return number
        kind = self.value.type
        return Vector(self.builder, ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number))

    __add__, __sub__, __mul__ = _operator("add", "fadd"), _operator("sub", "fsub"), _operator("mul", "fmul")
    __and__, __or__, __xor__ = _operator("and_"), _operator("or_"), _operator("xor")
    __lshift__, __rshift__ = _operator("shl"), _operator("lshr")

    def __neg__(self) -> Vector:
        return Vector(self.builder, self.builder.fneg(self.value))

    def compare(self, relation: str, other: Vector | int) -> Vector:
        """Whether each unsigned integer is ``<``, ``>=``, ``!=`` ... another or a number."""
        return Vector(self.builder, self.builder.icmp_unsigned(relation, self.value, self.like(other).value))

    def same(self, other: Vector) -> Vector:
        """Whether each float equals the other, or either is NaN."""
        return Vector(self.builder, self.builder.fcmp_unordered("==", self.value, other.value))

    def choose(self, yes: Vector, no: Vector) -> Vector:
        """``yes`` where this is true, else ``no``; this may be a single boolean."""
        return Vector(self.builder, self.builder.select(self.value, yes.value, no.value))

    def bits(self) -> Vector:
        """A float as the integer with its bits."""
        return Vector(self.builder, self.builder.bitcast(self.value, self._of(_INTEGER_OF[self.element])))

    def as_float(self) -> Vector:
        """An integer's bits as a float."""
        return Vector(self.builder, self.builder.bitcast(self.value, self._of(_FLOAT_OF[self.element])))

    def to(self, element: ir.Type) -> Vector:
        """Convert: integers are zero-extended or cut off, floats rounded; a signed integer becomes the nearest float."""
        old, new = self.element, element
        if isinstance(old, ir.IntType) and isinstance(new, ir.IntType):
            convert = self.builder.zext if new.width > old.width else self.builder.trunc
        elif isinstance(old, ir.IntType):
            convert = self.builder.sitofp
        else:
            convert = self.builder.fpext if old == F16 or new == F64 else self.builder.fptrunc
        return Vector(self.builder, convert(self.value, self._of(element)))


def outside(builder: ir.IRBuilder, name: str, result: ir.Type, *values: ir.Value) -> ir.Value:
    """Call a function that is left open to the processor."""
    kind = ir.FunctionType(result, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


def fma(x: Vector, y: Vector | float, z: Vector | float) -> Vector:
    """x*y + z with one rounding."""
    kind = x.value.type
    width = f"v{kind.count}" if isinstance(kind, ir.VectorType) else ""
    name = f"llvm.fma.{width}{'f64' if x.element == F64 else 'f32'}"
    function = cgutils.get_or_insert_function(x.builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return Vector(x.builder, x.builder.call(function, [x.value, x.like(y).value, x.like(z).value]))


def polynomial(z: Vector, coefficients: Any) -> Vector:
    """Horner's rule in fused steps; the constant coefficient comes first."""
    *lower, result = coefficients
    result = z.like(result)
    for coefficient in reversed(lower):
        result = fma(result, z, coefficient)
    return result


# ---- memory ------------------------------------------------------------------------------------------------------------------


def spread(builder: ir.IRBuilder, value: ir.Value, count: int) -> Vector:
    """A vector of ``count`` times the same number."""
    undefined = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
    first = builder.insert_element(undefined, value, I32(0))
    return Vector(builder, builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, count), [0] * count)))


def load(builder: ir.IRBuilder, address: ir.Value, element: ir.Type, count: int, align: int) -> Vector:
    """Load ``count`` numbers from an address."""
    kind = ir.VectorType(element, count)
    return Vector(builder, builder.load(builder.inttoptr(address, kind.as_pointer()), align=align))


def store(vector: Vector, address: ir.Value, align: int, streams: bool = False) -> None:
    """Store numbers at an address; ``streams`` writes past the caches and needs an address aligned to the whole vector."""
    builder, value = vector.builder, vector.value
    stored = builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=align)
    if streams:
        stored.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))


def interleave(left: Vector, right: Vector) -> Vector:
    """left[0], right[0], left[1], right[1], ..."""
    count = left.value.type.count
    order = [element for number in range(count) for element in (number, count + number)]
    mask = ir.Constant(ir.VectorType(I32, 2 * count), order)
    return Vector(left.builder, left.builder.shuffle_vector(left.value, right.value, mask))


def join(left: Vector, right: Vector) -> Vector:
    """left[0], left[1], ..., right[0], ..."""
    order = ir.Constant(ir.VectorType(I32, 2 * left.value.type.count), list(range(2 * left.value.type.count)))
    return Vector(left.builder, left.builder.shuffle_vector(left.value, right.value, order))


def separate(both: Vector) -> tuple[Vector, Vector]:
    """The elements at even indices, and those at odd ones."""
    count = both.value.type.count // 2
    undefined = ir.Constant(both.value.type, ir.Undefined)
    kind = ir.VectorType(I32, count)
    masks = (ir.Constant(kind, list(range(first, 2 * count, 2))) for first in (0, 1))
    even, odd = (Vector(both.builder, both.builder.shuffle_vector(both.value, undefined, mask)) for mask in masks)
    return even, odd


def prefetch(builder: ir.IRBuilder, address: ir.Value, function: str = abi.PREFETCH) -> None:
    """Prefetch the cache line at an address; one outside of all arrays does no harm."""
    outside(builder, function, ir.VoidType(), address)
