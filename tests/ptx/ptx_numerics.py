"""What the tests of PTX arithmetic share."""

import math
from fractions import Fraction

import numpy as np
from ptx_programs import handwritten, launch


def apply(instruction: str, result, *operands: np.ndarray) -> np.ndarray:
    """One instruction on arrays of 32 or 64 bits; {0} is its result, {1} and on are its operands."""
    names, body = (
        [],
        ["mov.u32 %r0, %ctaid.x; mov.u32 %r1, %ntid.x; mov.u32 %r2, %tid.x; mad.lo.u32 %r0, %r0, %r1, %r2;"],
    )
    for k, operand in enumerate([np.zeros(operands[0].size, result), *operands]):
        bits = 8 * operand.itemsize
        names.append(f"%x{k}")
        body.append(f".reg .b{bits} %x{k}; .reg .b64 %a{k}; ld.param.u64 %a{k}, [p{k}];")
        body.append(f"mad.wide.u32 %a{k}, %r0, {operand.itemsize}, %a{k};")
        body.append(f"ld.global.b{bits} %x{k}, [%a{k}];" if k else "")
    out = np.zeros(operands[0].size, result)
    body.append(f"{instruction.format(*names)} st.global.b{8 * out.itemsize} [%a0], %x0;")
    parameters = ", ".join(f".param .u64 p{k}" for k in range(len(names)))
    threads = math.gcd(out.size, 1024)
    launch(handwritten("\n".join(body), parameters), (out.size // threads,), (threads,), out, *operands)
    return out


FORMATS = {np.float32: (24, -149, 128), np.float64: (53, -1074, 1024)}  # precision, lowest exponent, overflow


def nearest(exact: Fraction, dtype) -> float:
    """The float that is nearest to an exact number, ties to even."""
    precision, lowest, overflow = FORMATS[dtype]
    exponent = abs(exact.numerator).bit_length() - exact.denominator.bit_length() - precision
    if abs(exact) >= Fraction(2) ** (exponent + precision):
        exponent += 1
    exponent = max(exponent, lowest)
    units = round(abs(exact) / Fraction(2) ** exponent)
    magnitude = math.inf if units * Fraction(2) ** exponent >= 2**overflow else math.ldexp(units, exponent)
    return magnitude if exact > 0 else -magnitude


def assert_same_float(result, expected, what=""):
    """Equal, zeros by sign too; any NaN is as good as another."""
    assert (math.isnan(result) and math.isnan(expected)) or (
        result == expected and math.copysign(1, result) == math.copysign(1, expected)
    ), f"{what}: {float(result).hex()} where {float(expected).hex()} is right"


def signed(value: int, bits: int) -> int:
    return value - (value >> (bits - 1) << bits)
