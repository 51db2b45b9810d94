"""Single PTX instructions, against exact arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
from ptx_numerics import apply, assert_same_float, nearest, signed

RNG = np.random.default_rng(4)


def words(bits: int) -> np.ndarray:
    """128 unsigned integers: each edge twice, then random ones."""
    dtype = np.dtype(f"u{bits // 8}")
    edges = np.array([0, 1, 2, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1] * 2, dtype)
    return np.concatenate([edges, RNG.integers(0, 2**bits, 116, dtype)])


WORDS = {bits: words(bits) for bits in (32, 64)}
SHUFFLED = {bits: RNG.permutation(words) for bits, words in WORDS.items()}
AMOUNTS = np.concatenate([np.arange(80), RNG.integers(0, 300, 48)]).astype(np.uint32)


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
