"""offset, positions, cu_seqlens and mask: meanings, shapes, equalities and contradictions, wherever the array is."""

from __future__ import annotations

import re

import cases
import numpy as np
import pytest
import reference

import fastpe

B, T, D = 3, 21, 16


def expected_sum(x, given):
    positions = reference.rows(x.shape[:2], **{k: v for k, v in given.items() if k != "mask" or "positions" not in given})
    return reference.add(x, positions, mask=given.get("mask"))


@pytest.mark.parametrize("mode", cases.POSITION_MODES)
def test_modes(platform, mode):
    given = cases.POSITION_MODES[mode](B, T)
    x = cases.random((B, T, D), "float32")
    array = platform.array(x)
    fastpe.add_encoding(array, **platform.arguments(given))
    rounding = 2.0**-33 if mode.startswith("positions_") else 0.0
    cases.assert_close(platform.host(array), expected_sum(x, given), "float32", position_error=rounding)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", "float32", "float64"])
def test_position_dtypes(platform, dtype):
    positions = np.array([0, 1, 5, 100], dtype)
    x = np.zeros((1, 4, 8), np.float32)
    array = platform.array(x)
    fastpe.add_encoding(array, positions=platform.array(positions))
    cases.assert_same_bits(platform.host(array)[0], fastpe.encode([0, 1, 5, 100], 8))


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_every_way_gives_the_same_bits(platform, dtype):
    """A position has one encoding, however it is given."""
    x = cases.random((2, 24, 32), dtype)
    ways = [
        {"offset": 17},
        {"offset": np.array([17, 17])},
        {"positions": np.arange(17, 41)},
        {"positions": np.arange(17.0, 41.0)},
        {"positions": np.arange(17, 41, dtype=np.int32)[None].repeat(2, 0)},
        {"cu_seqlens": np.array([0, 24]), "offset": 17},
        {"mask": np.ones(24, bool), "offset": 17},
    ]
    results = []
    for given in ways:
        array = platform.array(x)
        fastpe.add_encoding(array, **platform.arguments(given))
        results.append(platform.host(array))
    for result in results[1:]:
        cases.assert_same_bits(result, results[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_position(platform, dtype, value):
    """Refused where values are looked at; a NaN row on a GPU."""
    positions = np.array([1, value, 2], dtype)
    x = platform.array(np.zeros((1, 3, 8), np.float32))
    if platform.on_host:
        with pytest.raises(ValueError, match=r"got -?(nan|inf) at index \(1,\)"):
            fastpe.add_encoding(x, positions=positions)
        assert not x.any()
    else:
        fastpe.add_encoding(x, positions=platform.array(positions))
        assert np.isnan(platform.host(x)).all(axis=(0, 2)).tolist() == [False, True, False]


def test_unsigned_positions_do_not_wrap(gpu):
    for name, value, dtype in (("positions", [5, 2**64 - 5], np.uint64), ("offset", [2**64 - 5], np.uint64)):
        given = np.array(value, dtype)
        x = gpu.array(np.zeros((1, 2, 8), np.float32))
        fastpe.add_encoding(x, **{name: gpu.array(given)})
        assert np.isnan(gpu.host(x)[0, 1]).all()
        with pytest.raises(ValueError, match=r"lie in \[-2\^31, 2\^31\)"):
            fastpe.add_encoding(x, **{name: gpu.array(given)}, validate=True)


@pytest.mark.parametrize("axis", [0, 1])
def test_masked_rows_need_no_position(axis):
    x = np.zeros((2, 3, 4) if axis == 1 else (3, 2, 4), np.float32)
    mask = np.array([[True, False, False], [True, True, False]])
    mask = mask if axis == 1 else mask.T
    positions = np.where(mask, 7.0, np.nan)
    fastpe.add_encoding(x.copy(), seq_axis=axis, mask=mask, positions=positions)
    fastpe.add_encoding(x.copy(), seq_axis=axis, mask=mask, offset=2**31 - 2)
    fastpe.add_encoding(x.copy(), seq_axis=axis, mask=mask, positions=[7, 8, np.inf])
    with pytest.raises(ValueError, match="got nan at index"):
        fastpe.add_encoding(x, seq_axis=axis, mask=mask, positions=[np.nan, 8, 9])
    with pytest.raises(ValueError, match="a row beyond it"):
        fastpe.add_encoding(x, seq_axis=axis, mask=mask, offset=2**31 - 1)
    assert not x.any()


def test_negative_zero_and_integral_reals(platform):
    array = platform.array(np.zeros((1, 3, 8), np.float32))
    fastpe.add_encoding(array, positions=platform.array(np.array([-0.0, 3.0, -5.0])))
    cases.assert_same_bits(platform.host(array)[0], fastpe.encode([0, 3, -5], 8))


def test_heads_have_their_own_positions(platform):
    """positions of shape x.shape[:-1]."""
    x = np.zeros((2, 3, 5, 8), np.float32)  # (B, H, T, D)
    positions = np.random.default_rng(0).integers(-99, 99, (2, 3, 5))
    array = platform.array(x)
    fastpe.add_encoding(array, positions=platform.array(positions))
    cases.assert_same_bits(platform.host(array), fastpe.encode(positions, 8))


def test_sequence_axis_first(platform):
    """(T, B, D): two-dimensional positions and masks are in x's axis order."""
    x = np.zeros((5, 2, 8), np.float32)
    positions = np.random.default_rng(0).integers(-99, 99, (5, 2))
    array = platform.array(x)
    fastpe.add_encoding(array, seq_axis=0, positions=platform.array(positions))
    cases.assert_same_bits(platform.host(array), fastpe.encode(positions, 8))
    mask = np.random.default_rng(1).random((5, 2)) < 0.5
    array = platform.array(x)
    fastpe.add_encoding(array, seq_axis=0, mask=platform.array(mask), offset=platform.array(np.array([0, 10])))
    kept = np.cumsum(mask, axis=0) - mask + np.array([0, 10])
    cases.assert_same_bits(platform.host(array), np.where(mask[..., None], fastpe.encode(kept, 8), np.float32(0)))


def test_long_mask_and_boundaries(platform):
    """More rows than a block has threads, so that segments, boundaries and threads do not line up."""
    rng = np.random.default_rng(7)
    length = 1003
    mask = rng.random((2, length)) < 0.7
    boundaries = np.concatenate([[0], np.sort(rng.integers(0, length, 9)), [length]])
    for given in ({"mask": mask}, {"mask": mask, "cu_seqlens": boundaries}, {"cu_seqlens": boundaries}):
        array = platform.array(np.zeros((2, length, 2), np.float32))
        fastpe.add_encoding(array, **platform.arguments(given))
        positions = reference.rows((2, length), **given)
        expected = np.where(mask[..., None] if "mask" in given else True, fastpe.encode(positions, 2), np.float32(0))
        cases.assert_same_bits(platform.host(array), expected)


def test_empty_sequences(platform):
    array = platform.array(np.zeros((1, 4, 2), np.float32))
    fastpe.add_encoding(array, cu_seqlens=platform.array(np.array([0, 0, 0, 2, 2, 4, 4])))
    cases.assert_same_bits(platform.host(array)[0], fastpe.encode([0, 1, 0, 1], 2))
    nothing = platform.array(np.zeros((2, 0, 2), np.float32))
    assert fastpe.add_encoding(nothing, cu_seqlens=platform.array(np.array([0]))) is nothing
    assert fastpe.add_encoding(nothing, mask=platform.array(np.zeros((2, 0), bool))) is nothing


def test_empty_lists_are_integers():
    """NumPy makes float64 of them, which offsets, boundaries and ids cannot be."""
    x = np.zeros((0, 3, 4), np.float32)
    assert fastpe.add_encoding(x, offset=[]) is x
    none = np.zeros((2, 0, 4), np.float32)
    assert fastpe.add_encoding(none, positions=[], mask=[]) is none
    assert fastpe.embed([], np.ones((5, 4), np.float32)).shape == (0, 4)
    with pytest.raises(TypeError, match="offset must be integers"):
        fastpe.add_encoding(x, offset=np.empty(0))


def test_masked_rows_keep_their_bits(platform):
    x = cases.random((2, 6, 8), "float32")
    x[:, 1] = np.nan
    mask = np.array([True, False, True, True, False, True])
    array, out = platform.array(x), platform.array(np.full_like(x, 9))
    fastpe.add_encoding(array, mask=platform.array(mask), input_scale=3.0, out=out)
    assert platform.host(out)[:, ~mask].tobytes() == x[:, ~mask].tobytes()
    cases.assert_same_bits(platform.host(array), x)


def test_lists_on_the_host():
    x = np.zeros((2, 3, 4), np.float32)
    expected = fastpe.add_encoding(x.copy(), positions=np.array([5, 6, 9]))
    for positions in ([5, 6, 9], (5, 6, 9), [5.0, 6.0, 9.0]):
        cases.assert_same_bits(fastpe.add_encoding(x.copy(), positions=positions), expected)
    cases.assert_same_bits(fastpe.add_encoding(x.copy(), positions=range(3)), fastpe.add_encoding(x.copy()))
    fastpe.add_encoding(x.copy(), offset=[1, 2], mask=[True, False, True])
    fastpe.add_encoding(x.copy(), cu_seqlens=[0, 1, 3], offset=[4, 5])


def test_lists_on_a_gpu(gpu):
    x = gpu.array(np.zeros((2, 3, 4), np.float32))
    for given in ({"positions": [1, 2, 3]}, {"offset": [1, 2]}, {"mask": [True] * 3}, {"cu_seqlens": [0, 3]}):
        with pytest.raises(TypeError, match="must be a cupy array"):
            fastpe.add_encoding(x, **given)


CONTRADICTIONS = [
    ({"positions": np.arange(T), "offset": 1}, "positions and offset contradict each other"),
    ({"positions": np.arange(T), "offset": np.zeros(B, int)}, "positions and offset contradict each other"),
    ({"positions": np.arange(T), "cu_seqlens": np.array([0, T])}, "positions and cu_seqlens contradict each other"),
]


@pytest.mark.parametrize(("given", "text"), CONTRADICTIONS)
def test_contradictions(given, text):
    x = np.zeros((B, T, D), np.float32)
    with pytest.raises(ValueError, match=text):
        fastpe.add_encoding(x, **given)
    assert not x.any()


def nan_at(index):
    positions = np.arange(float(T))
    positions[index] = np.nan
    return positions


SHAPE = "must have shape"
BAD = [
    ("positions", np.arange(T + 1), ValueError, f"positions {SHAPE} ({T},) or ({B}, {T}), got shape ({T + 1},)"),
    ("positions", np.zeros((1, T), int), ValueError, f"positions {SHAPE}"),
    ("positions", np.zeros((B, T, 1), int), ValueError, f"positions {SHAPE}"),
    ("positions", np.zeros(T, bool), TypeError, "positions must be integers or real numbers, got bool"),
    ("positions", np.zeros(T, complex), TypeError, "positions must be integers or real numbers, got complex128"),
    ("positions", np.zeros(T, cases.DTYPES["bfloat16"]), TypeError, "use int64 or float32"),
    ("positions", np.zeros(T, np.float16), TypeError, "float16 holds integers only up to 2048; use int64 or float32"),
    ("positions", np.array(["a"] * T), TypeError, "positions must be integers or real numbers"),
    ("positions", "abc", TypeError, "positions must be a number, a sequence of numbers or an array, got builtins.str"),
    ("positions", [[1, 2], [3]], ValueError, "positions must be a regular array of numbers"),
    ("positions", nan_at(4), ValueError, "positions must be finite and lie in [-2^31, 2^31), got nan at index (4,)"),
    ("positions", np.where(np.arange(T) == 2, np.inf, 0.0), ValueError, "got inf at index (2,)"),
    ("positions", np.where(np.arange(T) == 3, 2**31, 0), ValueError, "got 2147483648 at index (3,)"),
    (
        "positions",
        np.where(np.arange(T) == 3, np.uint64(2**63), np.uint64(0)),
        ValueError,
        "got 9223372036854775808 at index (3,)",
    ),
    ("positions", np.full(T, -(2.0**31) - 1), ValueError, "got -2147483649.0 at index (0,)"),
    ("offset", 2**31, ValueError, "every position must lie in [-2^31, 2^31), got offset 2147483648 with 21 rows"),
    ("offset", 2**31 - T + 1, ValueError, "every position must lie in"),
    ("offset", -(2**31) - 1, ValueError, "every position must lie in"),
    ("offset", 1.0, TypeError, "offset must be an integer, got float 1.0"),
    ("validate", "no", TypeError, "validate must be True or False"),
    ("input_scale", 1e300, ValueError, "input_scale must be finite in float32, the arithmetic of float32 arrays, got 1e+300"),
    ("encoding", fastpe.Sinusoidal(amplitude=1e300), ValueError, "the encoding's amplitude must be finite in float32"),
    ("cu_seqlens", np.array([0]), ValueError, "got shape (1,) for T = 21"),
    ("offset", True, TypeError, "offset must be an integer, got bool True"),
    ("offset", None, TypeError, "offset must be an integer"),
    ("offset", np.zeros(B), TypeError, "offset must be integers, got float64"),
    (
        "offset",
        np.zeros(B + 1, int),
        ValueError,
        f"offset must be an integer, or have shape ({B},): one for each of the {B} sequences of the batch, got shape ({B + 1},)",
    ),
    (
        "offset",
        np.array([0, 2**31 - 3, 0]),
        ValueError,
        "every position must lie in [-2^31, 2^31), got a row beyond it at (1, 3)",
    ),
    (
        "offset",
        np.array([0, 2**40, 0]),
        ValueError,
        "offset must lie in [-2^31, 2^31), got 1099511627776 at index (1,)",
    ),
    ("cu_seqlens", np.array([1, T]), ValueError, "cu_seqlens must start at 0, never decrease and end at T, got first value 1"),
    ("cu_seqlens", np.array([0, 5, 4, T]), ValueError, "got 4 after 5 at index 2"),
    ("cu_seqlens", np.array([0, T - 1]), ValueError, f"got last value {T - 1} for T = {T}"),
    ("cu_seqlens", np.zeros((1, 2), int), ValueError, "cu_seqlens must have shape (n + 1,)"),
    ("cu_seqlens", np.array([], int), ValueError, "cu_seqlens must have shape (n + 1,)"),
    ("cu_seqlens", np.array([0.0, T]), TypeError, "cu_seqlens must be integers, got float64"),
    ("mask", np.ones(T, int), TypeError, "mask must be booleans, got int64 of shape (21,). Did you mean mask = (mask != 0)?"),
    ("mask", np.ones((T, B), bool), ValueError, f"mask must have shape ({T},) or ({B}, {T}), got shape ({T}, {B})"),
    ("mask", np.ones((B, T, D), bool), ValueError, "mask must have shape"),
    ("seq_axis", 2, ValueError, "seq_axis must be an axis of x other than the last"),
    ("seq_axis", -4, ValueError, "seq_axis must be an axis of x other than the last"),
    ("seq_axis", 0.0, TypeError, "seq_axis must be an integer"),
    ("input_scale", float("nan"), ValueError, "input_scale must be finite"),
    ("input_scale", "2", TypeError, "input_scale must be a real number"),
    ("seq_len", 0, ValueError, "seq_len must be at least 1"),
    ("seq_len", 2.5, TypeError, "seq_len must be an integer"),
]


@pytest.mark.parametrize(("name", "value", "kind", "text"), BAD)
def test_bad_argument(name, value, kind, text):
    x = cases.random((B, T, D), "float32")
    before = x.copy()
    with pytest.raises(kind, match=re.escape(text)) as caught:
        fastpe.add_encoding(x, **{name: value})
    assert str(caught.value).startswith("add_encoding: ")
    cases.assert_same_bits(x, before)


def test_two_dimensional_array_has_no_batch():
    x = np.zeros((T, D), np.float32)
    with pytest.raises(ValueError, match="has no batch axis; give an int"):
        fastpe.add_encoding(x, offset=np.zeros(1, int))
    with pytest.raises(ValueError, match=re.escape(f"mask must have shape ({T},), got shape (1, {T})")):
        fastpe.add_encoding(x, mask=np.ones((1, T), bool))


@pytest.mark.parametrize(
    ("boundaries", "offset", "count"), [([0, T], [1, 2], 1), ([0, 4, T], [1], 2), ([0, 4, T], [1, 2, 3], 2)]
)
def test_packed_sequences_have_an_offset_each(boundaries, offset, count):
    x = np.zeros((B, T, D), np.float32)
    rule = f"offset must be an integer, or have shape ({count},): one for each of the {count} sequences of cu_seqlens"
    with pytest.raises(ValueError, match=re.escape(f"{rule}, got shape ({len(offset)},)")):
        fastpe.add_encoding(x, cu_seqlens=np.array(boundaries), offset=np.array(offset))
    assert not x.any()


BAD_ON_A_GPU = [(n, v, k, t) for n, v, k, t in BAD if isinstance(v, np.ndarray) and v.dtype.kind in "iuf" and k is ValueError]


@pytest.mark.parametrize(("name", "value", "kind", "text"), BAD_ON_A_GPU)
def test_validate_finds_bad_values_on_a_gpu(gpu, name, value, kind, text):
    """Shapes are always checked; values when asked for, and then nothing has been written."""
    x = cases.random((B, T, D), "float32")
    array = gpu.array(x)
    with pytest.raises(kind, match=re.escape(text)):
        fastpe.add_encoding(array, **{name: gpu.array(value)}, validate=True)
    cases.assert_same_bits(gpu.host(array), x)


@pytest.mark.slow
def test_nothing_on_a_gpu_is_read_back(ptx_folder):
    """The stand-in counts every read-back; the first use of a width uploads its tables and waits once."""
    pytest.importorskip("cupy")
    import simulated_cupy
    from platforms import SimulatedPlatform

    with simulated_cupy.installed(ptx_folder):
        platform = SimulatedPlatform()
        fastpe.add_encoding(platform.array(np.zeros((B, T, D), np.float32)))
        simulated_cupy.synchronised.clear()
        for mode in cases.POSITION_MODES.values():
            array = platform.array(np.zeros((B, T, D), np.float32))
            fastpe.add_encoding(array, **platform.arguments(mode(B, T)))
        fastpe.encode(platform.array(np.arange(5)), D)
        assert simulated_cupy.synchronised == []
        fastpe.add_encoding(array, positions=platform.array(np.arange(T)), validate=True)
        assert simulated_cupy.synchronised == ["get"]
