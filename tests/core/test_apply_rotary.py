"""apply_rotary: against long arithmetic and other projects' results; layouts, positions, the in-place contract and errors."""

from __future__ import annotations

import itertools
from pathlib import Path

import cases
import numpy as np
import pytest
from reference import pair_norms, rotate
from rotary_cases import exact, layout_of, random

import fastpe
from fastpe import Rotary
from fastpe.scaling import DynamicNTK, Linear, Llama3, YaRN

DATA_FOLDER = Path(__file__).parents[1] / "data"
DATA = np.load(DATA_FOLDER / "rotated.npz")
DTYPES = tuple(cases.DTYPES)


# ---- the values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("start", [0, 131_000, 2**31 - 6, -7])
@pytest.mark.parametrize(("dtype", "most"), [("float32", 2e-7), ("float64", 2e-15)])
def test_error_against_long_arithmetic(dtype, most, start, interleaved):
    """In units of the pair's norm, anywhere."""
    encoding = Rotary(interleaved=interleaved)
    q, k = random((2, 3, 6, 64), dtype), random((2, 1, 6, 64), dtype, 1)
    expected = [rotate(x, *exact(64, range(start, start + 6)), interleaved=interleaved) for x in (q, k)]
    most += (abs(start) + 6) * 2.0**-64 * np.pi if dtype == "float64" else 0  # a frequency's last unit
    before = q.copy(), k.copy()
    assert fastpe.apply_rotary(q, k, encoding, offset=start)[0] is q
    for found, wanted, x in zip((q, k), expected, before, strict=True):
        assert (np.abs(found - wanted) <= most * pair_norms(x, 32, interleaved=interleaved)).all()


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.999), ("float16", 0.995)])
def test_sixteen_bits_are_rounded_correctly(dtype, share):
    encoding = Rotary()
    x = random((4, 64, 128), dtype)
    expected = rotate(x, *exact(128, range(1000, 1064))).astype(cases.DTYPES[dtype])
    fastpe.apply_rotary(x, None, encoding, offset=1000)
    assert (x == expected).mean() >= share


@pytest.mark.parametrize(
    ("name", "encoding", "axis", "heads"),
    [
        ("apply_rope_half_llama31", Rotary(5e5, scaling=Llama3()), -2, ("q", "k")),
        ("apply_rope_interleaved_gptj", Rotary(interleaved=True, rotary_dim=64), -3, ("q",)),
        ("apply_rope_partial_neox", Rotary(rotary_dim=16), -2, ("q", "k")),
        ("mrope_qwen2vl", Rotary(1e6, sections=(16, 24, 24)), -2, ("q", "k")),
    ],
)
def test_other_projects_results(name, encoding, axis, heads):
    """They carry their own float32 angles."""
    given = DATA[f"{name}__positions"] if f"{name}__positions" in DATA else DATA[f"{name}__position_ids"]
    for head in heads:
        x = DATA[f"{name}__{head}"].copy()
        fastpe.apply_rotary(x, None, encoding, positions=given, seq_axis=axis)
        expected = DATA[f"{name}__{head}_out"]
        assert np.abs(x - expected).max() <= (1e-6 + 1.2e-7 * np.abs(given).max()) * np.abs(expected).max()


@pytest.mark.parametrize("name", ["d128_base10000_pos1", "d128_base500000_pos32768", "d128_base10000_pos10000000"])
def test_truth(name):
    """Cosines and sines of 200 bits: what unit vectors become."""
    truth = np.load(DATA_FOLDER / "truth.npz")
    cos, sin = truth[f"{name}_cos"], truth[f"{name}_sin"]
    x = np.zeros((len(cos), 128), np.float32)
    x[:, :64] = 1
    base = float(name.split("base")[1].split("_")[0])
    fastpe.apply_rotary(x, None, Rotary(base), positions=truth[f"{name}_positions"])
    assert np.abs(x - np.concatenate((cos, sin), -1)).max() <= 2e-7


def test_sections_take_their_axis():
    encoding = Rotary(sections=(3, 2, 3), section_layout="contiguous")
    positions = np.random.default_rng(0).integers(0, 5000, (3, 2, 7))
    x = random((2, 4, 7, 16))
    cosines, sines = np.empty((2, 7, 8)), np.empty((2, 7, 8))
    for b, (axis, f) in itertools.product(range(2), enumerate(((0, 3), (3, 5), (5, 8)))):
        found = exact(16, positions[axis, b])
        cosines[b, :, slice(*f)], sines[b, :, slice(*f)] = found[0][:, slice(*f)], found[1][:, slice(*f)]
    expected = rotate(x, cosines[:, None], sines[:, None])
    fastpe.apply_rotary(x, None, encoding, positions=positions)
    assert np.abs(x - expected).max() < 1e-6
    same = random((2, 4, 7, 16))
    fastpe.apply_rotary(same, None, encoding, offset=9)  # text: all axes at the same place
    cases.assert_same_bits(same, fastpe.apply_rotary(random((2, 4, 7, 16)), None, Rotary(), offset=9))


# ---- properties --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("encoding", [Rotary(), Rotary(interleaved=True), Rotary(rotary_dim=20), Rotary(scaling=YaRN(8.0, 64))])
def test_inverse_undoes_it(dtype, encoding):
    x = random((3, 50, 64), dtype)
    before = x.copy()
    fastpe.apply_rotary(x, None, encoding, offset=77)
    assert np.abs(x - before).max() > 0.1
    fastpe.apply_rotary(x, None, encoding, offset=77, inverse=True)
    assert (
        np.abs(x - before)
        <= (4e-7 if dtype == "float32" else 4e-15) * pair_norms(before, encoding.width(64) // 2, **layout_of(encoding))
    ).all()


def test_norms_are_kept_and_scores_depend_on_differences_only():
    q, k = random((1, 40, 64), "float64"), random((1, 40, 64), "float64", 1)
    scores = []
    for offset in (0, 1234, 1_000_000):
        turned = fastpe.apply_rotary(q.copy(), k.copy(), offset=offset)
        assert np.abs(np.linalg.norm(turned[0], axis=-1) - np.linalg.norm(q, axis=-1)).max() < 1e-13
        scores.append(turned[0] @ turned[1].swapaxes(-1, -2))
    assert np.abs(scores[1] - scores[0]).max() < 1e-11
    assert np.abs(scores[2] - scores[0]).max() < 1e-8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("encoding", [Rotary(), Rotary(interleaved=True, rotary_dim=24, rotary_offset=5)])
def test_every_way_gives_the_same_bits(dtype, encoding):
    """Prefill, row by row, any layout, strides, threads, positions as table, out of place."""
    x = random((2, 3, 70, 40), dtype)
    expected = fastpe.apply_rotary(x.copy(), None, encoding, offset=5)
    rows = x.copy()
    for t in range(70):
        fastpe.apply_rotary(rows[:, :, t : t + 1], None, encoding, offset=5 + t)
    cases.assert_same_bits(rows, expected)
    swapped = np.ascontiguousarray(x.swapaxes(1, 2))
    cases.assert_same_bits(
        np.ascontiguousarray(fastpe.apply_rotary(swapped, None, encoding, offset=5, seq_axis=-3).swapaxes(1, 2)), expected
    )
    cases.assert_same_bits(fastpe.apply_rotary(x.copy(), None, encoding, positions=np.arange(5, 75)), expected)
    cases.assert_same_bits(fastpe.apply_rotary(x.copy(), None, encoding, positions=np.arange(5, 75) + 0.0), expected)
    cases.assert_same_bits(fastpe.apply_rotary(x.copy(), None, encoding, offset=np.array([5, 5])), expected)
    out, before = np.empty_like(x), x.copy()
    assert fastpe.apply_rotary(x, None, encoding, offset=5, out=out) is out
    cases.assert_same_bits(out, expected)
    cases.assert_same_bits(x, before)
    wide = np.zeros((2, 3, 70, 80), x.dtype)
    wide[..., ::2] = x
    fastpe.apply_rotary(wide[..., ::2], None, encoding, offset=5)
    cases.assert_same_bits(np.ascontiguousarray(wide[..., ::2]), expected)
    assert not wide[..., 1::2].any()
    for threads in (1, 2, 5):
        fastpe.set_num_threads(threads)
        large = np.repeat(x, 40, 1)
        fastpe.apply_rotary(large, None, encoding, offset=5)
        fastpe.set_num_threads(None)
        cases.assert_same_bits(large[:, ::40], expected)


def test_packed_slices_are_rotated_in_place():
    """q and k as slices of one array of qkv, k with fewer heads."""
    packed = random((2, 9, 4 + 2 + 2, 16))
    before = packed.copy()
    q, k = packed[:, :, :4], packed[:, :, 4:6]
    found = fastpe.apply_rotary(q, k, seq_axis=-3, offset=3)
    assert found[0] is q
    assert found[1] is k
    for part in (slice(0, 4), slice(4, 6)):
        alone = np.ascontiguousarray(before[:, :, part])
        cases.assert_same_bits(
            np.ascontiguousarray(packed[:, :, part]), fastpe.apply_rotary(alone, None, seq_axis=-3, offset=3)
        )
    cases.assert_same_bits(packed[:, :, 6:], before[:, :, 6:])


def test_positions_of_each_sequence():
    x, encoding = random((3, 2, 8, 12)), Rotary()
    starts = np.array([0, 100, 5000])
    found = fastpe.apply_rotary(x.copy(), None, encoding, offset=starts)
    for b in range(3):
        cases.assert_same_bits(
            found[b : b + 1], fastpe.apply_rotary(x[b : b + 1].copy(), None, encoding, offset=int(starts[b]))
        )
    mask = np.arange(8) >= np.array([0, 3, 8])[:, None]
    left = fastpe.apply_rotary(x.copy(), None, encoding, mask=mask)
    cases.assert_same_bits(left[2], x[2])
    cases.assert_same_bits(left[1, :, :3], x[1, :, :3])
    cases.assert_same_bits(left[1, :, 3:], fastpe.apply_rotary(x[1:2, :, 3:].copy(), None, encoding)[0])
    out = np.empty_like(x)
    cases.assert_same_bits(fastpe.apply_rotary(x, None, encoding, mask=mask, out=out), left)
    packed = fastpe.apply_rotary(x[:1].copy(), None, encoding, cu_seqlens=[0, 3, 8])
    cases.assert_same_bits(packed[:, :, 3:], fastpe.apply_rotary(x[:1, :, 3:].copy(), None, encoding))


def test_one_sequence_of_positions_for_any_batch():
    """Positions (1, T) of one query sequence do not vary, so the keys may be those of several."""
    q, k = random((1, 4, 6, 16)), random((3, 2, 6, 16), seed=1)
    positions = np.array([[5, 0, 7, 7, -3, 100]])
    for given in ({"positions": positions}, {"offset": np.array([9])}, {"mask": positions > 0}):
        expected = [fastpe.apply_rotary(x.copy(), None, **{name: one[0] for name, one in given.items()}) for x in (q, k)]
        for got, wanted in zip(fastpe.apply_rotary(q.copy(), k.copy(), **given), expected, strict=True):
            cases.assert_same_bits(got, wanted)


def test_length_is_the_largest_position_and_one():
    encoding = Rotary(scaling=DynamicNTK(2.0, 10))
    x = random((1, 30, 16))
    expected = fastpe.apply_rotary(x.copy(), None, encoding, seq_len=45, offset=15)
    cases.assert_same_bits(fastpe.apply_rotary(x.copy(), None, encoding, offset=15), expected)
    cases.assert_same_bits(fastpe.apply_rotary(x.copy(), None, encoding, positions=np.arange(15, 45)), expected)
    assert (fastpe.apply_rotary(x.copy(), None, encoding, offset=15, seq_len=10) != expected).any()


@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (2, 3, 5, 8), (2, 3, 2, 5, 8)])
def test_any_rank(shape):
    x = random(shape)
    expected = x.copy().reshape(-1, *shape[-2:])
    for one in expected:
        fastpe.apply_rotary(one, None)
    assert fastpe.apply_rotary(None, x) is x
    cases.assert_same_bits(x, expected.reshape(shape))
    turned = np.moveaxis(random(shape), -2, 0)  # T first: axes that cannot be merged
    if turned.ndim > 2:
        fastpe.apply_rotary(turned, None, seq_axis=0)
        cases.assert_same_bits(np.ascontiguousarray(np.moveaxis(turned, 0, -2)), x)


def test_arrays_without_elements():
    for shape in ((0, 8), (2, 0, 5, 8), (0, 3, 5, 8)):
        x = np.zeros(shape, np.float32)
        assert fastpe.apply_rotary(x, None) is x
    q, k = random((2, 4, 6, 16)), np.zeros((2, 0, 6, 16), np.float32)
    expected = fastpe.apply_rotary(q.copy())
    cases.assert_same_bits(fastpe.apply_rotary(q, k)[0], expected)


def test_dtypes_may_differ():
    q, k = random((1, 4, 6, 32)), random((1, 2, 6, 32), "float16")
    alone = fastpe.apply_rotary(q.copy(), None), fastpe.apply_rotary(k.copy(), None)
    fastpe.apply_rotary(q, k)
    cases.assert_same_bits(q, alone[0])
    cases.assert_same_bits(k, alone[1])


# ---- errors ------------------------------------------------------------------------------------------------------------------


def arrays():
    return random((2, 4, 6, 16)), random((2, 2, 6, 16), seed=1)


def twice(q, k, first):
    """Two outs with heads in common."""
    buffer = np.zeros((2, 8, 6, 16), q.dtype)
    return buffer[:, : q.shape[1]], buffer[:, first : first + k.shape[1]]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda q, k: fastpe.apply_rotary(None, None), TypeError, "q or k must be an array"),
        (lambda q, k: fastpe.apply_rotary(q, k, fastpe.Sinusoidal()), TypeError, "encoding must be a Rotary or None"),
        (lambda q, k: fastpe.apply_rotary(q, k[:, :, :5]), ValueError, "the same number of rows T.*got 6 and 5"),
        (lambda q, k: fastpe.apply_rotary(q, k[:1], offset=np.array([0, 1])), ValueError, "q and k must have the same batch B"),
        (lambda q, k: fastpe.apply_rotary(q, q), ValueError, "q, k and out must lie apart"),
        (lambda q, k: fastpe.apply_rotary(q, q[:, 1:3]), ValueError, "q, k and out must lie apart"),
        (lambda q, k: fastpe.apply_rotary(q, k, out=np.empty_like(q)), TypeError, "out must be a pair of arrays"),
        (lambda q, k: fastpe.apply_rotary(q, k, out=(np.empty_like(q), q[:, :2])), ValueError, "must lie apart"),
        (
            lambda q, k: fastpe.apply_rotary(q, k, out=twice(q, k, 3)),
            ValueError,
            "must lie apart.*got out overlaps the other out",
        ),
        (
            lambda q, q2: fastpe.apply_rotary(q, q.copy(), out=twice(q, q, 0)),
            ValueError,
            "must lie apart.*overlaps the other out",
        ),
        (lambda q, k: fastpe.apply_rotary(q.astype(int), k), TypeError, "q must be"),
        (
            lambda q, k: fastpe.apply_rotary(q, k, Rotary(rotary_dim=32)),
            ValueError,
            "the channels that rotate must lie in the head",
        ),
        (lambda q, k: fastpe.apply_rotary(q[..., :15], None), ValueError, "must be even"),
        (lambda q, k: fastpe.apply_rotary(q, k, Rotary(sections=(2, 2))), ValueError, "add up to the number of frequencies, 8"),
        (
            lambda q, k: fastpe.apply_rotary(q, k, Rotary(sections=(4, 4)), positions=np.zeros((3, 6), int)),
            ValueError,
            r"positions must have shape \(2, 6\) or \(2, 2, 6\), the axes of the encoding's sections first.*got shape \(3, 6\)",
        ),
        (
            lambda q, k: fastpe.apply_rotary(q, k, positions=np.zeros((2, 4, 6), int)),
            ValueError,
            r"positions must have shape \(6,\) or \(2, 6\)",
        ),
        (lambda q, k: fastpe.apply_rotary(q, k, positions=[np.nan] * 6), ValueError, "positions must be finite"),
        (lambda q, k: fastpe.apply_rotary(q, k, offset=2**31), ValueError, r"\[-2\^31, 2\^31\)"),
        (lambda q, k: fastpe.apply_rotary(q, k, inverse=1), TypeError, "inverse"),
        (lambda q, k: fastpe.apply_rotary(q, np.broadcast_to(k[:1], k.shape)), ValueError, "k must"),
        (lambda q, k: fastpe.apply_rotary(q.tolist(), k), TypeError, "q must be a NumPy or CuPy array"),
        (lambda q, k: fastpe.apply_rotary(q, k, Rotary(scaling=Linear(2.0)), seq_len=0), ValueError, "seq_len"),
    ],
)
def test_nothing_is_written_when_the_call_is_wrong(call, error, text):
    q, k = arrays()
    before = q.copy(), k.copy()
    with pytest.raises(error, match=text):
        call(q, k)
    cases.assert_same_bits(q, before[0])
    cases.assert_same_bits(k, before[1])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"rotary_dim": 7}, "rotary_dim must be even"),
        ({"rotary_offset": -1}, "rotary_offset must be 0 or more"),
        ({"xpos_scale_base": 1.0}, "xpos_scale_base must be at least 2"),
        ({"xpos_centre": 2**31}, "xpos_centre must lie within"),
        ({"section_frequencies": "own"}, "needs sections"),
        ({"section_frequencies": "mine"}, "section_frequencies must be one of 'shared', 'own'"),
        (
            {"sections": (1, 1), "section_layout": "spiral"},
            "section_layout must be one of 'contiguous', 'interleaved', 'alternating'",
        ),
    ],
)
def test_bad_encodings(given, text):
    with pytest.raises(ValueError, match=text):
        Rotary(**given)


def test_sections_that_alternate_must_have_one_size():
    with pytest.raises(ValueError, match="sections that alternate must have one size"):
        Rotary(sections=(2, 1, 5), section_layout="alternating").frequencies(16)


# ---- xPos --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "most"), [("float32", 4e-7), ("float64", 3e-13)])
@pytest.mark.parametrize("centre", [0, 40, 100_000])
def test_xpos(dtype, most, centre):
    """Queries shrink as keys grow; relative to the exact factor, at integer and real positions."""
    encoding = Rotary(xpos_scale_base=512, xpos_centre=centre)
    positions = centre + np.array([-9000.0, -1.0, 0.0, 0.25, 3.0, 511.0, 12_345.5])
    q, k = random((7, 32), dtype), random((7, 32), dtype, 1)
    plain, before = (
        [fastpe.apply_rotary(x.astype(np.float64), None, Rotary(), positions=positions) for x in (q, k)],
        (q.copy(), k.copy()),
    )
    fastpe.apply_rotary(q, k, encoding, positions=positions)
    zeta = (2 * np.arange(16) + 0.4 * 32) / (1.4 * 32)
    factor = np.tile(zeta, 2) ** ((positions[:, None] - centre) / 512)
    for found, wanted, x, scale in zip((q, k), plain, before, (factor, 1 / factor), strict=True):
        pair = pair_norms(x, 16) * scale
        assert (np.abs(found - wanted * scale) <= most * pair).all()
    fastpe.apply_rotary(q, k, encoding, positions=positions, inverse=True)
    for found, x in zip((q, k), before, strict=True):
        assert np.allclose(found, x, atol=1e-5 if dtype == "float32" else 1e-10)


def test_xpos_scores_depend_on_differences_only_and_saturate():
    encoding = Rotary(xpos_scale_base=512)
    q, k = random((20, 64), "float64"), random((20, 64), "float64", 1)
    scores = [np.matmul(a, b.T) for a, b in (fastpe.apply_rotary(q.copy(), k.copy(), encoding, offset=o) for o in (0, 5000))]
    assert np.abs(scores[0] - scores[1]).max() < 1e-10
    far = fastpe.apply_rotary(np.ones((1, 64), np.float32), None, encoding, offset=2**31 - 1)
    assert (far == 0).all()
    assert not np.isfinite(fastpe.apply_rotary(None, np.ones((1, 64), np.float32), encoding, offset=2**31 - 1)).any()
    for dtype, near, far in (("float32", 35_000, 37_000), ("float16", 4300, 4700)):
        keys = (fastpe.apply_rotary(None, np.ones((1, 64), dtype), encoding, offset=offset) for offset in (near, far))
        assert [bool(np.isfinite(key).all()) for key in keys] == [True, False]
