"""The arithmetic of the PTX interpreter against exact fractions, Python integers and NumPy."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import ptx_numbers
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ptx_programs import compile_cuda, handwritten, launch

CUDA = r"""
typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64; typedef long long i64;
#define KERNEL extern "C" __global__ void
#define INDEX (blockIdx.x * blockDim.x + threadIdx.x)

KERNEL fma_32(float* out, const float* a, const float* b, const float* c) {
    u32 i = INDEX; out[i] = __fmaf_rn(a[i], b[i], c[i]); }
KERNEL fma_64(double* out, const double* a, const double* b, const double* c) {
    u32 i = INDEX; out[i] = __fma_rn(a[i], b[i], c[i]); }
KERNEL products(u64* out, const u64* a, const u64* b) {
    u32 i = INDEX; u64 lo, hi;
    asm("mul.lo.u64 %0, %2, %3; mul.hi.u64 %1, %2, %3; add.cc.u64 %0, %0, %2; addc.u64 %1, %1, 0;"
        : "=&l"(lo), "=&l"(hi) : "l"(a[i]), "l"(b[i]));
    out[4 * i] = lo; out[4 * i + 1] = hi;
    out[4 * i + 2] = __umul64hi(a[i], b[i]); out[4 * i + 3] = (u64)__mul64hi((i64)a[i], (i64)b[i]); }
KERNEL to_halves(u16* f16, u16* bf16, u32* f16x2, u32* bf16x2, const float* x) {
    u32 i = INDEX; float v = x[i], w = -v;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(f16[i]) : "f"(v));
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bf16[i]) : "f"(v));
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(f16x2[i]) : "f"(v), "f"(w));
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bf16x2[i]) : "f"(v), "f"(w));
#endif
}
KERNEL from_halves(float* f16, float* bf16, const u32* pairs) {
    u32 i = INDEX; float a, b, c;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l;"
        "  { .reg .b16 l; mov.b16 l, h; cvt.f32.f16 %1, l; } }"
        : "=f"(a), "=f"(b) : "r"(pairs[i]));
    f16[2 * i] = a; f16[2 * i + 1] = b;
#if __CUDA_ARCH__ >= 900
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.bf16 %0, h; }" : "=f"(c) : "r"(pairs[i]));
    bf16[i] = c;
#endif
}
"""


RNG = np.random.default_rng(4)


@pytest.fixture(params=(75, 90, 120), ids="compute_{}".format)
def architecture(request):
    return request.param


@pytest.fixture
def kernels(architecture):
    return compile_cuda(CUDA, architecture).entries


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


def test_products_of_64_bit_integers(kernels):
    rng = np.random.default_rng(1)
    edges = np.array([0, 1, 2, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)
    a, b = (np.concatenate([pair.ravel(), rng.integers(0, 2**64, 64, np.uint64)]) for pair in np.meshgrid(edges, edges))
    out = np.zeros((128, 4), np.uint64)
    launch(kernels["products"], (2,), (64,), out, a, b)
    for x, y, row in zip(a.tolist(), b.tolist(), out.tolist(), strict=True):
        signed = (x - (x >> 63 << 64)) * (y - (y >> 63 << 64))
        total = x * y + x
        assert row == [total % 2**64, total >> 64, x * y >> 64, (signed >> 64) % 2**64]


def test_conversion_to_16_bit_floats(kernels, architecture):
    halfway = np.array([0x7FFF, 0x8000, 0x8001], np.uint32)
    near_ties = (np.arange(0, 2**16, 16, dtype=np.uint32)[:, None] << 16) + halfway
    f16_ties = np.arange(0x33000000, 0x47900000, 0x11000, np.uint32)
    bits = np.concatenate([near_ties.ravel(), f16_ties, RNG.integers(0, 2**32, 2**13, np.uint32)])
    x = bits[: bits.size // 256 * 256].view(np.float32)
    out = [np.zeros(x.size, dtype) for dtype in (np.uint16, np.uint16, np.uint32, np.uint32)]
    launch(kernels["to_halves"], (x.size // 256,), (256,), *out, x)
    with np.errstate(all="ignore"):
        f16, bf16 = (
            np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(dtype).view(np.uint16))
            for dtype in (np.float16, ml_dtypes.bfloat16)
        )
    np.testing.assert_array_equal(out[0], f16)
    if architecture >= 80:
        np.testing.assert_array_equal(out[1], bf16)
        for pair, upper in ((out[2], f16), (out[3], bf16)):
            lower = np.where(np.isnan(x), upper, upper ^ 0x8000)
            np.testing.assert_array_equal(pair, upper.astype(np.uint32) << 16 | lower)


def test_every_16_bit_float_becomes_its_float32(kernels, architecture):
    pairs = np.arange(2**16, dtype=np.uint16).view(np.uint32)
    f16, bf16 = np.zeros(2**16, np.float32), np.zeros(2**15, np.float32)
    launch(kernels["from_halves"], (2**7,), (2**8,), f16, bf16, pairs)
    np.testing.assert_array_equal(f16, pairs.view(np.float16).astype(np.float32))
    if architecture >= 90:
        np.testing.assert_array_equal(bf16, pairs.view(ml_dtypes.bfloat16)[1::2].astype(np.float32))


# ---- fused multiply-add against exact fractions --------------------------------------------------

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


def exact_fma(a: float, b: float, c: float, dtype) -> float:
    if not all(map(math.isfinite, (a, b, c))):
        if math.isfinite(a) and math.isfinite(b):
            return c
        with np.errstate(all="ignore"):
            return float(np.float64(a) * np.float64(b) + np.float64(c))
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact:
        return nearest(exact, dtype)
    return -0.0 if math.copysign(1, a) * math.copysign(1, b) < 0 and math.copysign(1, c) < 0 and c == 0 else 0.0


def assert_same_float(result, expected, what=""):
    """Equal, zeros by sign too; any NaN is as good as another."""
    assert (math.isnan(result) and math.isnan(expected)) or (
        result == expected and math.copysign(1, result) == math.copysign(1, expected)
    ), f"{what}: {float(result).hex()} where {float(expected).hex()} is right"


def adversarial_operands(dtype, count: int, seed: int) -> list[np.ndarray]:
    """Random exponents, cancellation, ties that a small addend breaks, zeros, infinities, NaN."""
    rng = np.random.default_rng(seed)
    precision, lowest, overflow = FORMATS[dtype]

    def draw(low, high):
        return np.ldexp(rng.uniform(-2, 2, count).astype(dtype), rng.integers(low, high, count)).astype(dtype)

    a, b = draw(lowest, overflow - 1), draw(lowest, overflow - 1)
    half = count // 2
    a[:half], b[:half] = draw(-40, 40)[:half], draw(-40, 40)[:half]
    a[: count // 8] = 1 + np.ldexp(dtype(1), -rng.integers(1, precision, count // 8))
    b[: count // 8] = 1 + np.ldexp(dtype(1), -rng.integers(1, precision, count // 8))
    c = draw(lowest, overflow - 1)
    c[: count // 4] = draw(-3 * precision, 3)[: count // 4]
    a *= rng.choice(np.array([-1, 1], dtype), count)
    close = rng.random(count) < 0.3
    c = np.where(close, -(a * b).astype(dtype) * (1 + rng.integers(-2, 3, count) * np.finfo(dtype).eps), c).astype(dtype)
    special = np.array(
        [
            0.0,
            -0.0,
            1.0,
            -1.0,
            np.inf,
            -np.inf,
            np.nan,
            np.finfo(dtype).max,
            np.finfo(dtype).smallest_subnormal,
        ],
        dtype,
    )
    for operand in (a, b, c):
        chosen = rng.random(count) < 0.1
        operand[chosen] = rng.choice(special, count)[chosen]
    return [a, b, c]


@pytest.mark.parametrize(("name", "dtype"), [("fma_32", np.float32), ("fma_64", np.float64)])
def test_fma_is_rounded_once(kernels, name, dtype):
    with np.errstate(all="ignore"):
        operands = adversarial_operands(dtype, 2048, seed=3)
    out = np.zeros(2048, dtype)
    launch(kernels[name], (8,), (256,), out, *operands)
    for result, *triple in zip(out.tolist(), *(x.tolist() for x in operands), strict=True):
        assert_same_float(result, exact_fma(*triple, dtype), triple)
    if dtype is np.float32:
        assert set(out[np.isnan(out)].view(np.uint32)) == {0x7FFFFFFF}


@settings(deadline=None)  # the first call also warms NumPy up
@example([(1.0, -2.0, math.inf)])
@example([(math.ldexp(1.5, -600), math.ldexp(1.25, -460), 5e-324)])
@given(st.lists(st.tuples(*[st.floats()] * 3), min_size=1, max_size=20))
def test_fma_f64_on_any_floats(triples):
    with np.errstate(all="ignore"):
        results = ptx_numbers.fma_f64(*np.array(triples).T.copy())
    for triple, result in zip(triples, results.tolist(), strict=True):
        assert_same_float(result, exact_fma(*triple, np.float64), triple)


@settings(deadline=None)  # the first call also warms NumPy up
@given(st.lists(st.tuples(*[st.floats(width=32)] * 3), min_size=1, max_size=20))
def test_fma_f32_on_any_floats(triples):
    with np.errstate(all="ignore"):
        results = ptx_numbers.fma_f32(*np.array(triples, np.float32).T.copy())
    for triple, result in zip(triples, results.tolist(), strict=True):
        assert_same_float(result, exact_fma(*triple, np.float32), triple)


@settings(deadline=None)  # the first call also warms NumPy up
@given(st.floats(0.5, 2), st.floats(0.5, 2), st.integers(-3, 3), st.integers(-70, 0))
def test_fma_f64_where_the_sum_cancels(a, b, ulps, exponent):
    for c in (-(a * b) + ulps * math.ulp(a * b), math.ldexp(a, exponent)):
        (result,) = ptx_numbers.fma_f64(*np.array([[a], [b], [c]]))
        assert_same_float(result, exact_fma(a, b, c, np.float64), (a, b, c))


# ---- single instructions -------------------------------------------------------------------------


def words(bits: int) -> np.ndarray:
    """128 unsigned integers: each edge twice, then random ones."""
    dtype = np.dtype(f"u{bits // 8}")
    edges = np.array([0, 1, 2, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1] * 2, dtype)
    return np.concatenate([edges, RNG.integers(0, 2**bits, 116, dtype)])


WORDS = {bits: words(bits) for bits in (32, 64)}
SHUFFLED = {bits: RNG.permutation(words) for bits, words in WORDS.items()}
AMOUNTS = np.concatenate([np.arange(80), RNG.integers(0, 300, 48)]).astype(np.uint32)


def signed(value: int, bits: int) -> int:
    return value - (value >> (bits - 1) << bits)


def truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def bit_field(a: int, start: int, length: int, bits: int, is_signed: bool) -> int:
    start, length = start & 255, length & 255
    fill = a >> min(start + length - 1, bits - 1) & 1 if is_signed and length else 0
    return sum((a >> start + k & 1 if k < length and start + k < bits else fill) << k for k in range(bits))


BINARY = {  # mnemonic: what it computes from unsigned words of that many bits
    "add": lambda a, b, n: a + b,
    "sub": lambda a, b, n: a - b,
    "xor": lambda a, b, n: a ^ b,
    "mul.lo": lambda a, b, n: a * b,
    "mul.hi.u": lambda a, b, n: a * b >> n,
    "mul.hi.s": lambda a, b, n: signed(a, n) * signed(b, n) >> n,
    "div.u": lambda a, b, n: a // b,
    "div.s": lambda a, b, n: truncated(signed(a, n), signed(b, n)),
    "rem.u": lambda a, b, n: a % b,
    "rem.s": lambda a, b, n: signed(a, n) - signed(b, n) * truncated(signed(a, n), signed(b, n)),
    "min.u": lambda a, b, n: min(a, b),
    "max.s": lambda a, b, n: max(signed(a, n), signed(b, n)),
}


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", BINARY)
def test_integer_instructions_against_python(name, bits):
    kind = name[-1] if name[-2] == "." else "b" if name == "xor" else "u"
    a, b = WORDS[bits], SHUFFLED[bits]
    if name.startswith(("div", "rem")):
        b = np.maximum(b, 1)
    out = apply(f"{name.removesuffix('.' + kind)}.{kind}{bits} {{0}}, {{1}}, {{2}};", a.dtype, a, b)
    assert out.tolist() == [BINARY[name](x, y, bits) % 2**bits for x, y in zip(a.tolist(), b.tolist(), strict=True)]


@pytest.mark.parametrize("bits", [32, 64])
def test_shifts_and_bit_fields_against_python(bits):
    a, n, m = WORDS[bits], AMOUNTS, AMOUNTS[::-1].copy()
    triples = list(zip(a.tolist(), n.tolist(), m.tolist(), strict=True))
    expected = {
        f"shl.b{bits} {{0}}, {{1}}, {{2}};": [(x << y) % 2**bits for x, y, _ in triples],
        f"shr.u{bits} {{0}}, {{1}}, {{2}};": [x >> y for x, y, _ in triples],
        f"shr.s{bits} {{0}}, {{1}}, {{2}};": [(signed(x, bits) >> y) % 2**bits for x, y, _ in triples],
        f"bfe.u{bits} {{0}}, {{1}}, {{2}}, {{3}};": [bit_field(x, y, z, bits, False) for x, y, z in triples],
        f"bfe.s{bits} {{0}}, {{1}}, {{2}}, {{3}};": [bit_field(x, y, z, bits, True) for x, y, z in triples],
    }
    for instruction, values in expected.items():
        assert apply(instruction, a.dtype, a, n, m).tolist() == values, instruction
    field = [sum(1 << k for k in range(y & 255, min((y & 255) + (z & 255), bits))) for _, y, z in triples]
    inserted = [(x & ~f) | (x << (y & 255) & f) for (x, y, _), f in zip(triples, field, strict=True)]
    assert apply(f"bfi.b{bits} {{0}}, {{1}}, {{1}}, {{2}}, {{3}};", a.dtype, a, n, m).tolist() == inserted
    assert apply(f"popc.b{bits} {{0}}, {{1}};", np.uint32, a).tolist() == [x.bit_count() for x in a.tolist()]
    assert apply(f"clz.b{bits} {{0}}, {{1}};", np.uint32, a).tolist() == [bits - x.bit_length() for x in a.tolist()]


def test_funnel_shift_and_byte_permutation_against_python():
    a, b, n = WORDS[32], SHUFFLED[32], AMOUNTS
    triples = list(zip(a.tolist(), b.tolist(), n.tolist(), strict=True))
    left = apply("shf.l.wrap.b32 {0}, {1}, {2}, {3};", np.uint32, a, b, n)
    right = apply("shf.r.clamp.b32 {0}, {1}, {2}, {3};", np.uint32, a, b, n)
    assert left.tolist() == [((y << 32 | x) << (z & 31)) >> 32 & 0xFFFFFFFF for x, y, z in triples]
    assert right.tolist() == [(y << 32 | x) >> min(z, 32) & 0xFFFFFFFF for x, y, z in triples]
    permuted = apply("prmt.b32 {0}, {1}, {2}, 0xB740;", np.uint32, a, b)
    for x, y, result in zip(a.tolist(), b.tolist(), permuted.tolist(), strict=True):
        bytes_ = x.to_bytes(4, "little") + y.to_bytes(4, "little")
        assert result.to_bytes(4, "little") == bytes([bytes_[0], bytes_[4], bytes_[7], 255 * (bytes_[3] >> 7)])


def test_wide_and_carrying_arithmetic_against_python():
    a, b, c = WORDS[32], SHUFFLED[32], WORDS[64]
    triples = list(zip(a.tolist(), b.tolist(), c.tolist(), strict=True))
    wide = apply("mad.wide.s32 {0}, {1}, {2}, {3};", np.uint64, a, b, c)
    assert wide.tolist() == [(signed(x, 32) * signed(y, 32) + z) % 2**64 for x, y, z in triples]
    d = SHUFFLED[64]
    for low, high, expected in (("add", "addc", c.astype(object) + d), ("sub", "subc", c.astype(object) - d)):
        text = f"{low}.cc.u64 %d0, {{1}}, {{2}}; {high}.u64 {{0}}, 0, 0;"
        assert apply(text, np.uint64, c, d).tolist() == [int(x) // 2**64 % 2**64 for x in expected]
    text = "mad.lo.cc.u64 %d0, {1}, {2}, {1}; madc.hi.u64 {0}, {1}, {2}, {2};"
    expected = [((x * y + x >> 64) + y) % 2**64 for x, y in zip(c.tolist(), d.tolist(), strict=True)]
    assert apply(text, np.uint64, c, d).tolist() == expected


ODD_FLOATS = np.array([0.0, -0.0, 1.5, -1.5, 2.5, -2.5, 1e-40, -1e-40, np.inf, -np.inf, np.nan, 3e9, -3e9, 1e19, -1e19, 0.5])
FLOAT_PAIRS = [pair.ravel() for pair in np.meshgrid(ODD_FLOATS, ODD_FLOATS)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_comparisons_and_nan(dtype):
    a, b = (x.astype(dtype) for x in FLOAT_PAIRS)
    kind = f"f{8 * a.itemsize}"
    unordered = np.isnan(a) | np.isnan(b)
    with np.errstate(invalid="ignore"):
        ordered = {
            "eq": a == b,
            "ne": (a != b) & ~unordered,
            "lt": a < b,
            "le": a <= b,
            "gt": a > b,
            "ge": a >= b,
        }
    expected = ordered | {f"{name}u": value | unordered for name, value in ordered.items()}
    expected |= {"nan": unordered, "num": ~unordered}
    for name, value in expected.items():
        body = f"setp.{name}.{kind} %p0, {{1}}, {{2}}; selp.u32 {{0}}, 1, 0, %p0;"
        np.testing.assert_array_equal(apply(body, np.uint32, a, b), value, name)
    zero = "0f00000000" if dtype is np.float32 else "0d0000000000000000"
    combined = f"setp.gt.{kind} %p1, {{1}}, {zero}; setp.lt.and.{kind} %p2|%p3, {{1}}, {{2}}, !%p1;"
    combined += " selp.u32 {0}, 1, 0, %p3;"
    np.testing.assert_array_equal(apply(combined, np.uint32, a, b), ~(a < b) & ~(a > 0))


def test_float_arithmetic_has_the_signs_and_nan_of_ptx():
    a, b = (x.astype(np.float32) for x in FLOAT_PAIRS)
    least, most = (apply(f"{name}.f32 {{0}}, {{1}}, {{2}};", np.float32, a, b) for name in ("min", "max"))
    for x, y, low, high in zip(a.tolist(), b.tolist(), least.tolist(), most.tolist(), strict=True):
        numbers = sorted((v for v in (x, y) if not math.isnan(v)), key=lambda v: (v, math.copysign(1, v)))
        assert_same_float(low, numbers[0] if numbers else math.nan)
        assert_same_float(high, numbers[-1] if numbers else math.nan)
    difference = apply("sub.rn.f32 {0}, {1}, {2};", np.float32, a, b)
    assert set(difference[np.isnan(difference)].view(np.uint32)) == {0x7FFFFFFF}
    flushed = apply("add.ftz.f32 {0}, {1}, 0f80000000;", np.float32, a)
    np.testing.assert_array_equal(flushed, np.where(np.abs(a) < 2.0**-126, 0, a))
    saturated = apply("mul.sat.f32 {0}, {1}, 0f3f800000;", np.float32, a)
    np.testing.assert_array_equal(saturated, np.nan_to_num(np.clip(a, 0, 1)))
    assert not np.signbit(saturated).any()


@pytest.mark.parametrize("source", [np.float32, np.float64])
@pytest.mark.parametrize("to", [np.int32, np.uint32, np.int64, np.uint64])
def test_float_to_integer_rounds_and_clamps(source, to):
    x = np.concatenate([ODD_FLOATS, [2.0**31, 2.0**32, 2.0**63, -(2.0**31), 0.9999999, 2147483520, 254.5, 7.0]]).astype(source)
    info = np.iinfo(to)
    nan = 0 if source is np.float32 and info.bits == 32 else 2 ** (info.bits - 1)
    for name, rounding in (("rni", round), ("rzi", math.trunc), ("rmi", math.floor), ("rpi", math.ceil)):
        kind = f"{'s' if info.min else 'u'}{info.bits}.f{8 * x.itemsize}"
        out = apply(f"cvt.{name}.{kind} {{0}}, {{1}};", np.dtype(f"u{info.bits // 8}"), x)
        for value, result in zip(x.tolist(), out.tolist(), strict=True):
            if math.isnan(value):
                assert result == nan
            else:
                clamped = max(info.min, min(info.max, rounding(value) if math.isfinite(value) else value))
                assert result == int(clamped) % 2**info.bits, (name, kind, value)


def test_other_conversions():
    integers = WORDS[64]
    for kind in ("s64", "u64"):
        exact = integers.astype(np.int64 if kind == "s64" else np.uint64).tolist()
        for bits, dtype in ((32, np.float32), (64, np.float64)):
            out = apply(f"cvt.rn.f{bits}.{kind} {{0}}, {{1}};", dtype, integers)
            assert out.tolist() == [nearest(Fraction(v), dtype) if v else 0.0 for v in exact]
    doubles = np.concatenate([ODD_FLOATS, RNG.standard_normal(48) * 1e-39, RNG.standard_normal(64)])
    with np.errstate(all="ignore"):
        expected = doubles.astype(np.float32)
    np.testing.assert_array_equal(apply("cvt.rn.f32.f64 {0}, {1};", np.float32, doubles), expected)
    np.testing.assert_array_equal(apply("cvt.f64.f32 {0}, {1};", np.float64, expected), expected.astype(np.float64))
    np.testing.assert_array_equal(apply("cvt.rni.f64.f64 {0}, {1};", np.float64, doubles), np.rint(doubles))
    np.testing.assert_array_equal(
        apply("cvt.sat.f32.f32 {0}, {1};", np.float32, expected), np.nan_to_num(np.clip(expected, 0, 1))
    )
    narrowed = apply("cvt.s8.s64 %h0, {1}; cvt.s32.s16 {0}, %h0;", np.int32, integers)
    np.testing.assert_array_equal(narrowed, integers.astype(np.int8))
    np.testing.assert_array_equal(
        apply("cvt.sat.u32.s64 {0}, {1};", np.uint32, integers),
        np.clip(integers.view(np.int64), 0, 2**32 - 1),
    )
