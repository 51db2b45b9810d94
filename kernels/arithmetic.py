"""Phase, sine and cosine, 16-bit conversion and fused multiply-add for Numba: the twin of ``arithmetic.cuh``, bit for bit.

Every float operation is a plain multiply, a plain add or an explicit fused multiply-add, in a fixed order and without fastmath.
Angles are in turns: a phase is the fraction of a turn in fixed point, and integer wrap-around is the range reduction.
``tests/fit_polynomials.py`` derives the constants.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

# sin(2 pi r) = r (SIN_HIGH + SIN_LOW + SIN[0] z + ...), cos(2 pi r) = 1 + COS[0] z + ...; z = r*r, |r| <= 1/8 turn.
# float32: polynomial errors 3.2e-9 (relative) and 5.4e-11; with roundings the result errs by at most 7.4e-8.
SIN_HIGH_32 = np.float32(float.fromhex("0x1.921fb6p+2"))
SIN_LOW_32 = np.float32(float.fromhex("-0x1.a32b8ap-23"))
SIN_32 = tuple(np.float32(float.fromhex(c)) for c in ("-0x1.4abbbap+5", "0x1.465e92p+6", "-0x1.2d9302p+6"))
COS_32 = tuple(np.float32(float.fromhex(c)) for c in ("-0x1.3bd3ccp+4", "0x1.03c1dep+6", "-0x1.55c664p+6", "0x1.d9f7b8p+5"))
# float64: polynomial errors 3.3e-18 and 3.3e-20.
SIN_HIGH_64 = float.fromhex("0x1.921fb54442d18p+2")
SIN_LOW_64 = float.fromhex("0x1.026565a2ab64ap-52")
SIN_64 = tuple(
    float.fromhex(c)
    for c in (
        "-0x1.4abbce625be41p+5",
        "0x1.466bc67758700p+6",
        "-0x1.32d2cce2d538ap+6",
        "0x1.50782fca3af0ap+5",
        "-0x1.e30063a1b8bb9p+3",
        "0x1.e3eed62bb3a55p+1",
    )
)
COS_64 = tuple(
    float.fromhex(c)
    for c in (
        "-0x1.3bd3cc9be45dep+4",
        "0x1.03c1f081b5ab0p+6",
        "-0x1.55d3c7e3c95bcp+6",
        "0x1.e1f50683b4301p+5",
        "-0x1.a6d1ecb743441p+4",
        "0x1.f9cc6ad2607f8p+2",
        "-0x1.b26fe92617f8cp+0",
    )
)
TURNS_PER_UNIT_32 = np.float32(2.0**-32)
TURNS_PER_UNIT_64 = 2.0**-64

# A row's position is int64 in units of 2^-32. This value stands for "not a position" and makes a NaN row; no integer and no
# float64 in [-2^31, 2^31) converts to it.
NOT_A_POSITION = -(2**63) + 1

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_F32 = ir.FloatType()


def inline(function: Any) -> Any:
    """Compile a helper that LLVM inlines into its caller."""
    return numba.njit(nogil=True, error_model="numpy")(function)


# ---- memory ------------------------------------------------------------------------------------------------------------------


def _pointer(element: Any) -> Any:
    @intrinsic
    def pointer(typingctx, address):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(address), generate

    return pointer


pointer_u8, pointer_u16, pointer_u32 = _pointer(types.uint8), _pointer(types.uint16), _pointer(types.uint32)
pointer_u64, pointer_i64, pointer_f32, pointer_f64 = (
    _pointer(types.uint64),
    _pointer(types.int64),
    _pointer(types.float32),
    _pointer(types.float64),
)


def _load(element: Any) -> Any:
    @intrinsic
    def load(typingctx, address):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            pointer = builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(element)))
            return builder.load(pointer, align=1)

        return element(address), generate

    return load


def _store(element: Any) -> Any:
    @intrinsic
    def store(typingctx, address, value):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            pointer = builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(element)))
            builder.store(arguments[1], pointer, align=1)
            return context.get_dummy_value()

        return types.void(address, element), generate

    return store


load_u16, load_f32, load_f64 = _load(types.uint16), _load(types.float32), _load(types.float64)
store_u16, store_f32, store_f64 = _store(types.uint16), _store(types.float32), _store(types.float64)


@intrinsic
def fetch_add(typingctx, address, value):  # type: ignore[no-untyped-def]
    """Add to an int64 in memory atomically; return what it was."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.uint64, types.int64), generate


@intrinsic
def atomic_load(typingctx, address):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.load_atomic(builder.inttoptr(arguments[0], _I64.as_pointer()), "seq_cst", 8)

    return types.int64(types.uint64), generate


@intrinsic
def call_function(typingctx, address):  # type: ignore[no-untyped-def]
    """Call the C function ``int f(void)`` at this address."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        function = ir.FunctionType(_I32, [])
        return builder.call(builder.inttoptr(arguments[0], function.as_pointer()), [])

    return types.int32(types.uint64), generate


# ---- the processor's float mode ----------------------------------------------------------------------------------------------

_X86 = cpu_target.target_context.codegen().magic_tuple()[0].startswith(("x86_64", "i386", "i686"))
_ARM = cpu_target.target_context.codegen().magic_tuple()[0].startswith(("aarch64", "arm64"))
DEFAULT_FLOAT_MODE = 0x1F80 if _X86 else 0  # round to nearest, nothing trapped, subnormal numbers kept


@intrinsic
def exchange_float_mode(typingctx, mode):  # type: ignore[no-untyped-def]
    """Set this thread's float mode (MXCSR on x86, FPCR on ARM) and return what it was.

    Flushing subnormal numbers to zero is a setting of each thread, so without this a result could depend on who computed it.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        if _X86:
            place = cgutils.alloca_once(builder, _I32, size=2)
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
            store = builder.module.declare_intrinsic("llvm.x86.sse.stmxcsr", fnty=kind)
            load = builder.module.declare_intrinsic("llvm.x86.sse.ldmxcsr", fnty=kind)
            new = builder.gep(place, [_I32(1)])
            builder.store(builder.trunc(arguments[0], _I32), new)
            builder.call(store, [builder.bitcast(place, ir.IntType(8).as_pointer())])
            builder.call(load, [builder.bitcast(new, ir.IntType(8).as_pointer())])
            return builder.zext(builder.load(place), _I64)
        if _ARM:
            get = builder.module.declare_intrinsic("llvm.aarch64.get.fpcr", fnty=ir.FunctionType(_I64, []))
            put = builder.module.declare_intrinsic("llvm.aarch64.set.fpcr", fnty=ir.FunctionType(ir.VoidType(), [_I64]))
            old = builder.call(get, [])
            builder.call(put, [arguments[0]])
            return old
        return arguments[0]

    return types.int64(types.int64), generate


# ---- exact float steps -------------------------------------------------------------------------------------------------------


@intrinsic
def fma(typingctx, x, y, z):  # type: ignore[no-untyped-def]
    """x*y + z with one rounding, in the type of the arguments."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.fma(*arguments)

    return x(x, x, x), generate


@intrinsic
def bits_of(typingctx, value):  # type: ignore[no-untyped-def]
    """The bits of a float32 or float64 as an unsigned integer."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return (types.uint32 if value == types.float32 else types.uint64)(value), generate


@intrinsic
def float_of(typingctx, bits):  # type: ignore[no-untyped-def]
    """The float32 or float64 with these bits."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return (types.float32 if bits == types.uint32 else types.float64)(bits), generate


# ---- phase, sine and cosine --------------------------------------------------------------------------------------------------


@inline
def phase(position, fraction_of_turn, whole_turns):
    """Phase at a position: (position * frequency) mod one turn, in units of 2^-64 turn.

    ``position``: int64 in units of 2^-32. The frequency is ``whole_turns + fraction_of_turn * 2^-64`` turns a position (both
    uint64). The product of the integer part wraps exactly; of the product with the fraction only bits below 2^-64 turn are
    dropped.
    """
    whole = np.uint64(position >> 32)
    part = np.uint64(position) & np.uint64(0xFFFFFFFF)
    high = fraction_of_turn >> np.uint64(32)
    low = fraction_of_turn & np.uint64(0xFFFFFFFF)
    return whole * fraction_of_turn + ((part * whole_turns) << np.uint64(32)) + part * high + ((part * low) >> np.uint64(32))


@inline
def sincos_32(turns):
    """Sine and cosine (float32) of ``turns / 2^32`` turns (uint32)."""
    shifted = np.uint32(turns + np.uint32(0x20000000))
    centred = np.int32(np.int32(shifted & np.uint32(0x3FFFFFFF)) - np.int32(0x20000000))
    r = np.float32(centred) * TURNS_PER_UNIT_32
    z = r * r
    q = fma(SIN_32[2], z, SIN_32[1])
    q = fma(q, z, SIN_32[0])
    q = fma(q, z, SIN_LOW_32)
    s = fma(r, SIN_HIGH_32, q * r)
    c = fma(COS_32[3], z, COS_32[2])
    c = fma(c, z, COS_32[1])
    c = fma(c, z, COS_32[0])
    c = fma(c, z, np.float32(1.0))
    odd = (shifted & np.uint32(0x40000000)) != np.uint32(0)
    sine = c if odd else s
    cosine = s if odd else c
    sine_sign = np.uint32(shifted & np.uint32(0x80000000))
    cosine_sign = np.uint32(np.uint32(shifted + np.uint32(0x40000000)) & np.uint32(0x80000000))
    return float_of(np.uint32(bits_of(sine) ^ sine_sign)), float_of(np.uint32(bits_of(cosine) ^ cosine_sign))


@inline
def sincos_64(turns):
    """Sine and cosine (float64) of ``turns / 2^64`` turns (uint64)."""
    shifted = turns + np.uint64(0x2000000000000000)
    centred = np.int64(shifted & np.uint64(0x3FFFFFFFFFFFFFFF)) - np.int64(0x2000000000000000)
    r = np.float64(centred) * TURNS_PER_UNIT_64
    z = r * r
    q = fma(SIN_64[5], z, SIN_64[4])
    q = fma(q, z, SIN_64[3])
    q = fma(q, z, SIN_64[2])
    q = fma(q, z, SIN_64[1])
    q = fma(q, z, SIN_64[0])
    q = fma(q, z, SIN_LOW_64)
    s = fma(r, SIN_HIGH_64, q * r)
    c = fma(COS_64[6], z, COS_64[5])
    c = fma(c, z, COS_64[4])
    c = fma(c, z, COS_64[3])
    c = fma(c, z, COS_64[2])
    c = fma(c, z, COS_64[1])
    c = fma(c, z, COS_64[0])
    c = fma(c, z, 1.0)
    odd = (shifted & np.uint64(0x4000000000000000)) != np.uint64(0)
    sine = c if odd else s
    cosine = s if odd else c
    sine_sign = shifted & np.uint64(0x8000000000000000)
    cosine_sign = (shifted + np.uint64(0x4000000000000000)) & np.uint64(0x8000000000000000)
    return float_of(bits_of(sine) ^ sine_sign), float_of(bits_of(cosine) ^ cosine_sign)


# ---- 16-bit storage ----------------------------------------------------------------------------------------------------------


@inline
def bf16_to_f32(bits):
    return float_of(np.uint32(np.uint32(bits) << np.uint32(16)))


@intrinsic
def f32_to_bf16(typingctx, value):  # type: ignore[no-untyped-def]
    """Round to nearest even, for sums with a bfloat16: their NaNs have no bit below the sixteen that stay, so none is lost."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        bits = builder.bitcast(arguments[0], _I32)
        lowest = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        rounded = builder.lshr(builder.add(bits, builder.add(lowest, _I32(0x7FFF))), _I32(16))
        return builder.trunc(rounded, _I16)

    return types.uint16(types.float32), generate


@intrinsic
def _f16_to_f32_hardware(typingctx, bits):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), _F32)

    return types.float32(types.uint16), generate


@intrinsic
def _f32_to_f16_hardware(typingctx, value):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), _I16)

    return types.uint16(types.float32), generate


@intrinsic
def f16_to_f32_integer(typingctx, bits):  # type: ignore[no-untyped-def]
    """Exact, in integer steps and one exact multiply: for CPUs without a conversion instruction."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        wide = builder.zext(arguments[0], _I32)
        sign = builder.shl(builder.and_(wide, _I32(0x8000)), _I32(16))
        magnitude = builder.and_(wide, _I32(0x7FFF))
        shifted = builder.shl(magnitude, _I32(13))
        # 2^112 moves the exponent bias from 15 to 127; subnormals come out normalised.
        finite = builder.bitcast(builder.fmul(builder.bitcast(shifted, _F32), ir.Constant(_F32, 2.0**112)), _I32)
        special = builder.or_(shifted, _I32(0x7F800000))
        is_nan = builder.icmp_unsigned(">", magnitude, _I32(0x7C00))
        special = builder.select(is_nan, builder.or_(special, _I32(0x400000)), special)
        is_special = builder.icmp_unsigned(">=", magnitude, _I32(0x7C00))
        return builder.bitcast(builder.or_(builder.select(is_special, special, finite), sign), _F32)

    return types.float32(types.uint16), generate


@intrinsic
def f32_to_f16_integer(typingctx, value):  # type: ignore[no-untyped-def]
    """Round to nearest even, overflow to infinity: for CPUs without a conversion instruction."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        bits = builder.bitcast(arguments[0], _I32)
        sign = builder.lshr(builder.and_(bits, _I32(0x80000000)), _I32(16))
        magnitude = builder.and_(bits, _I32(0x7FFFFFFF))
        odd = builder.and_(builder.lshr(magnitude, _I32(13)), _I32(1))
        rebias = _I32((((15 - 127) << 23) + 0xFFF) & 0xFFFFFFFF)
        normal = builder.lshr(builder.add(builder.add(magnitude, rebias), odd), _I32(13))
        # Adding 2^-1 leaves a subnormal's rounded bits at the bottom of the float.
        magic = _I32(((127 - 15) + (23 - 10) + 1) << 23)
        added = builder.fadd(builder.bitcast(magnitude, _F32), builder.bitcast(magic, _F32))
        subnormal = builder.sub(builder.bitcast(added, _I32), magic)
        result = builder.select(builder.icmp_unsigned("<", magnitude, _I32(113 << 23)), subnormal, normal)
        result = builder.select(builder.icmp_unsigned(">=", magnitude, _I32(0x47800000)), _I32(0x7C00), result)
        nan = builder.or_(builder.and_(builder.lshr(magnitude, _I32(13)), _I32(0x3FF)), _I32(0x7E00))
        result = builder.select(builder.icmp_unsigned(">", magnitude, _I32(0x7F800000)), nan, result)
        return builder.trunc(builder.or_(result, sign), _I16)

    return types.uint16(types.float32), generate


def _converts_f16_in_hardware() -> bool:
    """Whether the CPU that Numba compiles for (not the one it runs on) converts float16 itself.

    Elsewhere LLVM calls library functions that the JIT cannot find, and the first call would crash.
    """
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    return triple.startswith(("aarch64", "arm64")) or "+f16c" in features.split(",")


if _converts_f16_in_hardware():
    f16_to_f32, f32_to_f16 = _f16_to_f32_hardware, _f32_to_f16_hardware
else:
    f16_to_f32, f32_to_f16 = f16_to_f32_integer, f32_to_f16_integer
