"""The shared arithmetic: phase, polynomials, 16-bit conversion, exhaustively where that is cheap."""

from __future__ import annotations

from functools import partial

import cases
import mpmath
import numba
import numpy as np
import pytest
import reference
from fastpe.kernels import arithmetic as a
from fastpe.kernels.simd import Vector
from numba import types
from numba.extending import intrinsic

import fastpe
from fastpe._backends import plans
from fastpe._core import phase


def emitted(function, result, *arguments):
    """A function of Vector as one that Numba can call, for single numbers."""

    def generate(context, builder, signature, values):
        found = function(*(Vector(builder, value) for value in values))
        if isinstance(found, tuple):
            return context.make_tuple(builder, signature.return_type, [one.value for one in found])
        return found.value

    names = ", ".join(f"x{number}" for number in range(len(arguments)))
    scope = {"generate": generate, "signature": result(*arguments)}
    exec(f"def made(typingctx, {names}): return signature, generate", scope)
    return intrinsic(scope["made"])


pair_of = types.UniTuple
one_sincos_32 = emitted(a.sincos, pair_of(types.float32, 2), types.uint32)
one_sincos_64 = emitted(a.sincos, pair_of(types.float64, 2), types.uint64)
one_phase = emitted(a.phase, types.uint64, types.uint64, types.uint64, types.uint64, types.uint64)
f16_to_f32, f16_to_f32_integer = (emitted(f, types.float32, types.uint16) for f in (a.f16_to_f32, a.f16_to_f32_integer))
f32_to_f16, f32_to_f16_integer, f32_to_bf16 = (
    emitted(f, types.uint16, types.float32) for f in (a.f32_to_f16, a.f32_to_f16_integer, a.f32_to_bf16)
)


@numba.njit
def sincos_32(turns, sine, cosine):
    for i in range(turns.size):
        sine[i], cosine[i] = one_sincos_32(turns[i])


@numba.njit
def sincos_64(turns, sine, cosine):
    for i in range(turns.size):
        sine[i], cosine[i] = one_sincos_64(turns[i])


@numba.njit
def phases(positions, fraction, whole, out):
    for i in range(positions.size):
        position = positions[i]
        out[i] = one_phase(np.uint64(position >> 32), np.uint64(position) & np.uint64(0xFFFFFFFF), fraction, whole)


def edges(bits):
    """Every quadrant boundary with its neighbours, and random phases."""
    step, one = 1 << (bits - 3), 1 << bits
    near = [(k * step + d) % one for k in range(8) for d in (-2, -1, 0, 1, 2)]
    rng = np.random.default_rng(0)
    dtype = np.uint32 if bits == 32 else np.uint64
    return np.concatenate([np.array(near, dtype), rng.integers(0, one, 200_000, dtype, endpoint=False)])


def test_float32_sine_and_cosine():
    turns = edges(32)
    sine, cosine = np.empty(turns.size, np.float32), np.empty(turns.size, np.float32)
    sincos_32(turns, sine, cosine)
    angle = 2 * np.pi * (turns.astype(np.int32) / 2.0**32)
    assert np.abs(sine - np.sin(angle)).max() < 7.5e-8
    assert np.abs(cosine - np.cos(angle)).max() < 7.5e-8


def test_float64_sine_and_cosine():
    turns = edges(64)
    sine, cosine = np.empty(turns.size), np.empty(turns.size)
    sincos_64(turns, sine, cosine)
    angle = 2 * np.pi * (turns.astype(np.int64) / 2.0**64)
    assert np.abs(sine - np.sin(angle)).max() < 6e-16
    assert np.abs(cosine - np.cos(angle)).max() < 6e-16


def test_quarter_turns_are_exact():
    turns = np.arange(4, dtype=np.uint32) << np.uint32(30)
    sine, cosine = np.empty(4, np.float32), np.empty(4, np.float32)
    sincos_32(turns, sine, cosine)
    assert np.abs(sine).tolist() == [0, 1, 0, 1]
    assert np.abs(cosine).tolist() == [1, 0, 1, 0]
    assert (sine[1], cosine[0], sine[3], cosine[2]) == (1, 1, -1, -1)


def test_phase_is_exact_for_integers_and_truncated_for_reals():
    rng = np.random.default_rng(1)
    positions = np.concatenate(
        [
            rng.integers(-(2**63), 2**63, 2000),
            rng.integers(-(2**31), 2**31, 2000) << 32,
            np.array([0, 1, -1, -(2**63), 2**63 - 1, 1 << 32, -(1 << 32)]),
        ]
    )
    for fraction, whole in ((2**64 - 1, 2**32 - 1), (rng.integers(0, 2**63).item() * 2 + 1, 0), (12345, 159)):
        got = np.empty(positions.size, np.uint64)
        phases(positions, np.uint64(fraction), np.uint64(whole), got)
        for p, value in zip(positions.tolist(), got.tolist(), strict=True):
            # floor of each partial product: at most one unit below the floor of the whole product
            exact = (p * (whole << 64 | fraction) >> 32) % 2**64
            assert (exact - value) % 2**64 <= (0 if p % 2**32 == 0 else 1)


# ---- frequencies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "scale"), [(10000.0, 1.0), (500000.0, 1.0), (1.5, 1000.0), (10000.0, 1 / 3)])
def test_turns_are_rounded_once(base, scale):
    _, turns = phase.geometric(base, (2, 768), 384, scale)
    with mpmath.workprec(300):
        for f, w in enumerate(reference.angular_frequencies(768, base, 0, scale)):
            exact = w / (2 * mpmath.pi) * mpmath.mpf(2) ** 64
            ours = (int(turns.whole[f]) << 64) + int(turns.fraction[f])
            assert abs(exact - ours) <= mpmath.mpf("0.500001")


def test_host_sine_and_cosine():
    turns = edges(64)
    sine, cosine = plans.sine_cosine(turns)
    angle = 2 * np.pi * (turns.astype(np.int64) / 2.0**64)
    assert np.abs(sine - np.sin(angle)).max() < 6e-16
    assert np.abs(cosine - np.cos(angle)).max() < 6e-16


# ---- 16 bits -----------------------------------------------------------------------------------------------------------------


@numba.njit
def widen(bits, hardware, integer):
    for i in range(bits.size):
        hardware[i] = f16_to_f32(bits[i])
        integer[i] = f16_to_f32_integer(bits[i])


@numba.njit
def narrow(values, hardware, integer, bf16):
    for i in range(values.size):
        hardware[i] = f32_to_f16(values[i])
        integer[i] = f32_to_f16_integer(values[i])
        bf16[i] = f32_to_bf16(values[i])


def test_every_float16_widens_exactly():
    bits = np.arange(2**16, dtype=np.uint16)
    hardware, integer = np.empty(2**16, np.float32), np.empty(2**16, np.float32)
    widen(bits, hardware, integer)
    expected = bits.view(np.float16).astype(np.float32)
    cases.assert_same_bits(hardware, expected)
    cases.assert_same_bits(integer, expected)


def test_float32_narrows_as_numpy_and_ml_dtypes():
    """Every 16-bit value, its neighbours and the midpoints to the next, and random bits."""
    exact = np.arange(2**16, dtype=np.uint16)
    halves = exact.view(np.float16).astype(np.float32).view(np.uint32)
    brains = exact.astype(np.uint32) << 16
    rng = np.random.default_rng(0)
    parts = [
        base + np.uint32(step) for base in (halves, brains) for step in (0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001)
    ]
    bits = np.concatenate([*parts, rng.integers(0, 2**32, 500_000, dtype=np.uint32)])
    values = bits.view(np.float32)
    hardware, integer, bf16 = (np.empty(values.size, np.uint16) for _ in range(3))
    narrow(values, hardware, integer, bf16)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(np.float16)
        expected_bf16 = values.astype(cases.DTYPES["bfloat16"])
    cases.assert_same_bits(hardware.view(np.float16), expected)
    cases.assert_same_bits(integer.view(np.float16), expected)
    # A NaN with bits among the sixteen that go may lose itself, but a sum with a bfloat16 has none (test_bfloat16_nan_survives).
    lossy = np.isnan(values) & ((bits & 0xFFFF) != 0)
    cases.assert_same_bits(bf16.view(cases.DTYPES["bfloat16"])[~lossy], expected_bf16[~lossy])


def test_bfloat16_nan_survives():
    """Every bfloat16 NaN stays a NaN, and so does infinity times zero."""
    every = np.arange(2**16, dtype=np.uint16).view(cases.DTYPES["bfloat16"])
    x = every.reshape(256, 256).copy()
    expected = np.isnan(x.astype(np.float32))
    for scale in (1.0, -2.5):
        assert (np.isnan(fastpe.add_encoding(x.copy(), input_scale=scale).astype(np.float32)) == expected).all()
    infinite = ~np.isfinite(x.astype(np.float32))
    assert (np.isnan(fastpe.add_encoding(x.copy(), input_scale=0.0).astype(np.float32)) == infinite).all()


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("verb", ["add_encoding", "apply_rotary"])
def test_vectors_of_bfloat16_round_as_single_numbers_do(verb, interleaved):
    """Every bfloat16, turned with its neighbour, or 1/256 of it. Columns that lie apart are taken one by one.

    A processor that converts by itself may take subnormals for 0.
    """
    from ml_dtypes import bfloat16

    pairs = np.random.default_rng(0).permutation(np.arange(1 << 16, dtype=np.uint16).reshape(-1, 2)).reshape(4, 128, 64, 2)
    every = (pairs if interleaved else pairs.swapaxes(-1, -2)).reshape(4, 128, 128).view(bfloat16)
    places = np.zeros(128, int)  # sines are 0, so that sums are as small as x
    if verb == "add_encoding":
        encoding = fastpe.Sinusoidal(layout="interleaved" if interleaved else "concatenated")
        call = partial(fastpe.add_encoding, encoding=encoding, positions=places, input_scale=2.0**-8)
    else:
        call = partial(fastpe.apply_rotary, encoding=fastpe.Rotary(interleaved=interleaved))
    together, apart = every.copy(), np.repeat(every, 2, axis=-1)[..., ::2]
    call(together)
    call(apart)
    alike = (together.view(np.uint16) == apart.view(np.uint16)) | (np.isnan(together) & np.isnan(apart))
    assert alike.all(), f"{(~alike).sum()} of {alike.size} differ"
    sizes = np.abs(together.astype(np.float64))
    assert ((sizes > 0) & (sizes < 2.0**-126)).sum() > 100, "few subnormals: the test is blind"
