"""Arithmetic on one number or on several side by side, written once: it emits the instructions for either.

A loop that LLVM vectorises by itself needs passes over buffers, checks whether they overlap, and a tail, for every few hundred
elements. A step written here is one straight run of vector instructions, in which the processor overlaps memory and arithmetic.
Float operations are what they say, without fastmath: a lane has the bits that the number alone would have.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
_INTEGER_OF = {F16: I16, F32: I32, F64: I64}
_FLOAT_OF = {I16: F16, I32: F32, I64: F64}


class Lanes:
    """A number, or a vector of numbers, of a function under construction. Integers wrap; shifts to the right bring zeros."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    @property
    def element(self) -> ir.Type:
        kind = self.value.type
        return kind.element if isinstance(kind, ir.VectorType) else kind

    def _of(self, element: ir.Type) -> ir.Type:
        kind = self.value.type
        return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element

    def _emit(self, integer: str, floating: str | None, other: Lanes | float) -> Lanes:
        name = integer if isinstance(self.element, ir.IntType) else floating
        right = other if isinstance(other, Lanes) else self.like(other)
        return Lanes(self.builder, getattr(self.builder, name)(self.value, right.value))

    def like(self, number: float) -> Lanes:
        """A constant in every lane."""
        kind = self.value.type
        lanes = [number] * kind.count if isinstance(kind, ir.VectorType) else number
        return Lanes(self.builder, ir.Constant(kind, lanes))

    def __add__(self, other: Lanes | float) -> Lanes:
        return self._emit("add", "fadd", other)

    def __sub__(self, other: Lanes | float) -> Lanes:
        return self._emit("sub", "fsub", other)

    def __mul__(self, other: Lanes | float) -> Lanes:
        return self._emit("mul", "fmul", other)

    def __and__(self, other: Lanes | int) -> Lanes:
        return self._emit("and_", None, other)

    def __or__(self, other: Lanes | int) -> Lanes:
        return self._emit("or_", None, other)

    def __xor__(self, other: Lanes | int) -> Lanes:
        return self._emit("xor", None, other)

    def __lshift__(self, bits: int) -> Lanes:
        return self._emit("shl", None, bits)

    def __rshift__(self, bits: int) -> Lanes:
        return self._emit("lshr", None, bits)

    def __neg__(self) -> Lanes:
        return Lanes(self.builder, self.builder.fneg(self.value))

    def compare(self, relation: str, other: Lanes | int) -> Lanes:
        """Whether each unsigned integer is ``<``, ``>=``, ``!=`` ... another or a number."""
        right = other if isinstance(other, Lanes) else self.like(other)
        return Lanes(self.builder, self.builder.icmp_unsigned(relation, self.value, right.value))

    def same(self, other: Lanes) -> Lanes:
        """Whether each float is another, or one of both is NaN."""
        return Lanes(self.builder, self.builder.fcmp_unordered("==", self.value, other.value))

    def choose(self, yes: Lanes, no: Lanes) -> Lanes:
        """``yes`` where this is true, else ``no``; this may be a single truth."""
        return Lanes(self.builder, self.builder.select(self.value, yes.value, no.value))

    def bits(self) -> Lanes:
        """A float as the integer with its bits."""
        return Lanes(self.builder, self.builder.bitcast(self.value, self._of(_INTEGER_OF[self.element])))

    def as_float(self) -> Lanes:
        """An integer's bits as a float."""
        return Lanes(self.builder, self.builder.bitcast(self.value, self._of(_FLOAT_OF[self.element])))

    def to(self, element: ir.Type) -> Lanes:
        """Another integer type (zero-extended or cut off), another float type, or a signed integer rounded to a float."""
        old, new = self.element, element
        if isinstance(old, ir.IntType) and isinstance(new, ir.IntType):
            convert = self.builder.zext if new.width > old.width else self.builder.trunc
        elif isinstance(old, ir.IntType):
            convert = self.builder.sitofp
        else:
            convert = self.builder.fpext if old == F16 or new == F64 else self.builder.fptrunc
        return Lanes(self.builder, convert(self.value, self._of(element)))


def fma(x: Lanes, y: Lanes | float, z: Lanes | float) -> Lanes:
    """x*y + z with one rounding."""
    y, z = (other if isinstance(other, Lanes) else x.like(other) for other in (y, z))
    kind = x.value.type
    width = f"v{kind.count}" if isinstance(kind, ir.VectorType) else ""
    name = f"llvm.fma.{width}{'f64' if x.element == F64 else 'f32'}"
    function = cgutils.get_or_insert_function(x.builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return Lanes(x.builder, x.builder.call(function, [x.value, y.value, z.value]))


def polynomial(z: Lanes, coefficients: Any) -> Lanes:
    """Horner's rule in fused steps; the constant coefficient comes first."""
    *lower, result = coefficients
    result = z.like(result)
    for coefficient in reversed(lower):
        result = fma(result, z, coefficient)
    return result


# ---- memory ------------------------------------------------------------------------------------------------------------------


def spread(builder: ir.IRBuilder, value: ir.Value, count: int) -> Lanes:
    """A number in every one of ``count`` lanes."""
    kind, places = ir.VectorType(value.type, count), ir.VectorType(I32, count)
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, I32(0))
    return Lanes(builder, builder.shuffle_vector(first, undefined, ir.Constant(places, [0] * count)))


def load(builder: ir.IRBuilder, address: ir.Value, element: ir.Type, count: int, align: int) -> Lanes:
    """``count`` numbers from an address."""
    kind = ir.VectorType(element, count)
    return Lanes(builder, builder.load(builder.inttoptr(address, kind.as_pointer()), align=align))


def store(lanes: Lanes, address: ir.Value, align: int, streams: bool = False) -> None:
    """Numbers to an address; ``streams`` writes past the caches and needs a vector's own alignment."""
    builder = lanes.builder
    written = builder.store(lanes.value, builder.inttoptr(address, lanes.value.type.as_pointer()), align=align)
    if streams:
        written.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))


def interleave(left: Lanes, right: Lanes) -> Lanes:
    """left[0], right[0], left[1], right[1], ..."""
    count = left.value.type.count
    order = [place for lane in range(count) for place in (lane, count + lane)]
    places = ir.Constant(ir.VectorType(I32, 2 * count), order)
    return Lanes(left.builder, left.builder.shuffle_vector(left.value, right.value, places))


def separate(both: Lanes) -> tuple[Lanes, Lanes]:
    """The lanes at even and at odd places."""
    count = both.value.type.count // 2
    undefined = ir.Constant(both.value.type, ir.Undefined)
    kind = ir.VectorType(I32, count)
    even, odd = (
        Lanes(
            both.builder,
            both.builder.shuffle_vector(both.value, undefined, ir.Constant(kind, [2 * i + first for i in range(count)])),
        )
        for first in (0, 1)
    )
    return even, odd


def prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Ask for the line at an address, to be kept; an address that is nobody's does no harm."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
    function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    builder.call(function, [builder.inttoptr(address, byte), I32(0), I32(3), I32(1)])
