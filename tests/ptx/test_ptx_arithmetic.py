"""The arithmetic of the PTX interpreter against exact fractions, Python integers and NumPy."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import ptx_numbers
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ptx_numerics import assert_same_float, nearest
from ptx_programs import compile_cuda, launch

RNG = np.random.default_rng(4)

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


@pytest.fixture(params=(75, 90, 120), ids="compute_{}".format)
def architecture(request):
    return request.param


@pytest.fixture
def kernels(architecture):
    return compile_cuda(CUDA, architecture).entries


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


FORMATS = {np.float32: (24, -149, 128), np.float64: (53, -1074, 1024)}  # precision, lowest exponent, overflow


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
