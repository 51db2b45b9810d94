"""Results in float8: scaled, rounded once and saturated, as a slow reference has them, with the same bits on a GPU."""

from __future__ import annotations

import cases
import numpy as np
import pytest
from embed_cases import some_ids, words

import fastpe
from fastpe import Learned, Rotary, Sinusoidal

ml_dtypes = pytest.importorskip("ml_dtypes")

FLOAT8 = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}  # name -> the largest number
LAYOUTS = {
    "halves": Rotary(),
    "interleaved": Rotary(interleaved=True),
    "partial": Rotary(rotary_dim=16),
    "xpos": Rotary(xpos_scale_base=512.0),
}


def empty(shape, name):
    return np.zeros(shape, np.dtype(getattr(ml_dtypes, name)))


def nearest(values, name):
    """Each value's nearest float8, found among all of them; of two that are as near, the one with the even last bit."""
    every = np.arange(256, dtype=np.uint8)
    numbers = every.view(getattr(ml_dtypes, name)).astype(np.float64)
    finite = np.isfinite(numbers)
    codes, numbers = every[finite], numbers[finite]
    flat = np.asarray(values, np.float64).ravel()
    clipped = np.clip(np.where(np.isnan(flat), 0, flat), -FLOAT8[name], FLOAT8[name])
    wrong_sign = np.signbit(numbers)[None] != np.signbit(clipped)[:, None]
    distance = np.where(wrong_sign, np.inf, abs(numbers[None] - clipped[:, None]))
    chosen = codes[np.lexsort((np.broadcast_to(codes & 1, distance.shape), distance), axis=-1)[:, 0]]
    return np.where(np.isnan(flat), 0x7F, chosen).astype(np.uint8).reshape(np.shape(values))


def scaled(values, scale):
    """Divided as the kernels do it: times the reciprocal, rounded once."""
    return values * values.dtype.type(1 / scale)


def real(dtype):
    return np.float64 if dtype == "float64" else np.float32


def hard(shape, dtype):
    """Values of all sizes: subnormal in float8, beyond its largest, infinite, NaN."""
    x = cases.random(shape, dtype).astype(real(dtype)) * np.exp2(np.arange(shape[-1]) % 40 - 20)
    x[..., 0, 3], x[..., 1, 3], x[..., 2, 5] = np.nan, np.inf, -np.inf
    return x.astype(cases.DTYPES[dtype])


def test_every_float8_and_what_lies_around_it():
    for name in FLOAT8:
        numbers = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, name)).astype(np.float32)
        sorted_numbers = np.unique(numbers[np.isfinite(numbers)])
        halves = (sorted_numbers[1:] + sorted_numbers[:-1]) / 2
        around = [np.nextafter(halves, np.float32(np.inf)), halves, np.nextafter(halves, np.float32(-np.inf))]
        more = np.array([1e38, -1e38, np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-45, -1e-45], np.float32)
        table = np.concatenate([numbers, *around, more])[:, None]
        for dtype in ("float32", "float64"):
            got = fastpe.embed(np.arange(len(table)), table.astype(dtype), out=empty(table.shape, name))
            np.testing.assert_array_equal(got.view(np.uint8), nearest(table, name))


def test_float64_is_rounded_once():
    """Just above the middle of two numbers: a float32 between would fall on the middle, and then to the even side."""
    table = np.array([[1.0625 + 2.0**-40, 1.0625 - 2.0**-40, 1.1875 + 2.0**-40, 1.1875 - 2.0**-40]])
    got = fastpe.embed([0], table, out=empty((1, 4), "float8_e4m3fn"))
    assert got.astype(np.float64).tolist() == [[1.125, 1.0, 1.25, 1.125]]


@pytest.mark.parametrize("name", FLOAT8)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotations(layout, dtype, name):
    encoding, q = LAYOUTS[layout], hard((2, 5, 9, 32), dtype)
    k = hard((2, 1, 9, 32), dtype)
    where = {"offset": np.array([3, 70_000]), "mask": np.arange(9) % 4 != 2}
    outs = empty(q.shape, name), empty(k.shape, name)
    assert fastpe.apply_rotary(q, k, encoding, **where, out=outs, out_scale=(0.37, 8.0)) is outs
    exact = q.astype(real(dtype)), k.astype(real(dtype))
    fastpe.apply_rotary(*exact, encoding, **where)
    for out, one, scale in zip(outs, exact, (0.37, 8.0), strict=True):
        np.testing.assert_array_equal(out.view(np.uint8), nearest(scaled(one, scale), name))


def test_rotations_by_a_table_and_of_any_view():
    tables = (np.cos(np.arange(40.0).reshape(10, 4)), np.sin(np.arange(40.0).reshape(10, 4)))
    q = hard((2, 10, 8), "bfloat16")
    for encoding in (Rotary.tabulated(*tables), Rotary()):
        expected = empty(q.shape, "float8_e5m2")
        fastpe.apply_rotary(q, None, encoding, out=expected)
        exact = fastpe.apply_rotary(q.astype(np.float32), None, encoding)
        np.testing.assert_array_equal(expected.view(np.uint8), nearest(exact, "float8_e5m2"))
        for view in cases.VIEWS.values():
            out = view(empty(q.shape, "float8_e5m2"))
            fastpe.apply_rotary(view(q), None, encoding, out=out)
            np.testing.assert_array_equal(out.view(np.uint8), expected.view(np.uint8))


SUMS = [
    ("float32", Sinusoidal(), {}),
    ("bfloat16", Sinusoidal(layout="concatenated"), {"scale": 3.0}),
    ("float16", Learned(words("bfloat16", 32)), {"mask": np.arange(11) > 3}),
    ("float64", Sinusoidal(), {"token_types": (some_ids(3, 11, rows=2), words("float16", 32, rows=2))}),
    ("int8", None, {"row_scale": np.linspace(0.01, 2, len(words("int8", 32)))}),
]


@pytest.mark.parametrize("name", FLOAT8)
@pytest.mark.parametrize(("dtype", "encoding", "given"), SUMS)
def test_embeddings(dtype, encoding, given, name):
    table, ids = words(dtype, 32), some_ids(3, 11)
    exact = fastpe.embed(ids, table, encoding, dtype=real(dtype), **given)
    expected = nearest(scaled(exact, 0.02), name)
    out = empty(exact.shape, name)
    for _ in range(2):  # checked, and prepared
        assert fastpe.embed(ids, table, encoding, out=out, out_scale=0.02, **given) is out
        np.testing.assert_array_equal(out.view(np.uint8), expected)
        out[...] = 0
    again = fastpe.embed(ids, table, encoding, out=out, out_scale=0.04, **given)
    np.testing.assert_array_equal(again.view(np.uint8), nearest(scaled(exact, 0.04), name))
    made = fastpe.embed(ids, table, encoding, dtype=name, out_scale=0.02, **given)
    np.testing.assert_array_equal(made.view(np.uint8), expected)


# ---- on a GPU ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOAT8)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_gpu_rotates_to_the_same_bits(gpu, dtype, name):
    for encoding in (Rotary(), Rotary(interleaved=True), Rotary(rotary_dim=16)):
        q, k = hard((2, 3, 5, 32), dtype), hard((2, 1, 5, 32), dtype)
        mask = np.arange(5) % 4 != 2
        here, there = [empty(x.shape, name) for x in (q, k)], [gpu.array(empty(x.shape, name)) for x in (q, k)]
        fastpe.apply_rotary(q, k, encoding, offset=9, mask=mask, out=here, out_scale=(0.37, 2.0))
        given = {"mask": gpu.array(mask), "out": there, "out_scale": (0.37, 2.0)}
        fastpe.apply_rotary(gpu.array(q), gpu.array(k), encoding, offset=9, **given)
        for one, other in zip(there, here, strict=True):
            np.testing.assert_array_equal(gpu.host(one).view(np.uint8), other.view(np.uint8))


@pytest.mark.parametrize("name", FLOAT8)
@pytest.mark.parametrize(("dtype", "encoding"), [("float32", Sinusoidal()), ("bfloat16", Sinusoidal(layout="concatenated"))])
def test_a_gpu_embeds_to_the_same_bits(gpu, dtype, encoding, name):
    for width in (32, 7):
        table, ids, out = words(dtype, width), some_ids(3, 11), empty((3, 11, width), name)
        here = fastpe.embed(ids, table, encoding, out=out, out_scale=0.05)
        there = fastpe.embed(gpu.array(ids), gpu.array(table), encoding, out=gpu.array(out), out_scale=0.05)
        np.testing.assert_array_equal(gpu.host(there).view(np.uint8), here.view(np.uint8))


def test_a_gpu_rounds_float64_once(gpu):
    table = np.array([[1.0625 + 2.0**-40, 1.0625 - 2.0**-40, 1e300, -np.inf]])
    here = fastpe.embed([0], table, out=empty((1, 4), "float8_e4m3fn"))
    there = fastpe.embed(gpu.array(np.array([0])), gpu.array(table), out=gpu.array(empty((1, 4), "float8_e4m3fn")))
    np.testing.assert_array_equal(gpu.host(there).view(np.uint8), here.view(np.uint8))


# ---- errors ------------------------------------------------------------------------------------------------------------------

Q, E4M3 = np.ones((2, 4), np.float32), empty((2, 4), "float8_e4m3fn")
ERRORS = {
    "no float8": (ValueError, "out_scale is for results in float8", lambda: fastpe.apply_rotary(Q.copy(), out_scale=2.0)),
    "other out": (ValueError, "result in float32", lambda: fastpe.apply_rotary(Q, out=Q.copy(), out_scale=2.0)),
    "zero": (ValueError, "out_scale must be greater than 0", lambda: fastpe.apply_rotary(Q, out=E4M3, out_scale=0.0)),
    "tiny": (ValueError, r"\[2\^-126, 2\^126\]", lambda: fastpe.apply_rotary(Q, out=E4M3, out_scale=1e-39)),
    "text": (TypeError, "out_scale must be a real number", lambda: fastpe.apply_rotary(Q, out=E4M3, out_scale="1")),
    "three": (
        ValueError,
        "out_scale must be a number, or a pair",
        lambda: fastpe.apply_rotary(Q, out=E4M3, out_scale=(1, 2, 3)),
    ),
    "x": (TypeError, "q must be a floating-point array", lambda: fastpe.apply_rotary(E4M3)),
    "other verb": (TypeError, "out must be a floating-point array", lambda: fastpe.add_encoding(Q, out=E4M3)),
    "rerotate": (TypeError, "out must be a floating-point array", lambda: fastpe.rerotate(Q, 3, out=E4M3)),
    "dtype": (TypeError, "out must be a floating-point array", lambda: fastpe.embed([0, 1], Q, dtype="float32", out=E4M3)),
    "encode": (TypeError, "dtype must be one of", lambda: fastpe.encode([0], 4, dtype="float8_e5m2")),
    "embed": (ValueError, "out_scale is for results in float8", lambda: fastpe.embed([0, 1], Q, out_scale=2.0)),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    kind, text, call = ERRORS[case]
    with pytest.raises(kind, match=text):
        call()
    assert (Q == 1).all()
    assert not E4M3.view(np.uint8).any()
