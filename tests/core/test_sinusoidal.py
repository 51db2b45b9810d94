"""Values: the paper's formula, published tables, 200-bit truth."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import cases
import numpy as np
import pytest
import reference

import fastpe
from fastpe import Sinusoidal, scaling

DATA = Path(__file__).parents[1] / "data"
TABLES = dict(np.load(DATA / "tables.npz"))
TRUTH = dict(np.load(DATA / "truth.npz"))


def zeros(shape, dtype):
    return np.zeros(shape, cases.DTYPES[dtype])


# ---- the formula -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", cases.ENCODINGS)
def test_formula(dtype, name):
    given = cases.ENCODINGS[name]
    for width in cases.WIDTHS:
        x = cases.random((2, 19, width), dtype)
        expected = reference.add(x, np.arange(19)[None].repeat(2, 0) + 100, input_scale=0.5, **given)
        fastpe.add_encoding(x, cases.encoding(name), offset=100, input_scale=0.5)
        cases.assert_close(x, expected, dtype, amplitude=given.get("amplitude", 1.0))


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("shape", cases.SHAPES)
def test_shapes(dtype, shape):
    x = cases.random(shape, dtype)
    expected = reference.add(x, np.broadcast_to(np.arange(shape[1]), shape[:2]))
    assert fastpe.add_encoding(x) is x
    cases.assert_close(x, expected, dtype)


@pytest.mark.parametrize("shape", [(6, 8), (2, 6, 8), (2, 6, 3, 8), (2, 6, 3, 2, 8), (2, 1, 6, 3, 2, 8)])
@pytest.mark.parametrize("transposed", [False, True])
def test_any_rank(shape, transposed):
    """Every axis can be T; the axes that are left are batch and heads."""
    for axis in range(len(shape) - 1):
        x = np.zeros(shape, np.float32)
        if transposed:
            x = np.ascontiguousarray(x.T).T
        expected = reference.sinusoidal(np.arange(shape[axis]), 8)
        expected = np.broadcast_to(
            expected.reshape([shape[axis] if a == axis else 1 for a in range(len(shape) - 1)] + [8]), shape
        )
        fastpe.add_encoding(x, seq_axis=axis)
        cases.assert_close(x, expected, "float32")


# ---- truth -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({key.rsplit("_", 1)[0] for key in TRUTH}))
def test_truth(name):
    base = float(re.search(r"base(\d+)", name).group(1))
    positions = TRUTH[f"{name}_positions"]
    encoding = fastpe.Sinusoidal(base=base, layout="concatenated")
    truth = np.concatenate([TRUTH[f"{name}_sin"], TRUTH[f"{name}_cos"]], axis=-1)
    assert np.abs(fastpe.encode(positions, 128, encoding).astype(np.float64) - truth).max() <= 2e-7
    if positions.max() <= 1_100_000:
        assert np.abs(fastpe.encode(positions, 128, encoding, dtype="float64") - truth).max() <= 1e-12


def test_reference_is_true():
    """The reference itself agrees with 200-bit arithmetic to float64's last digits."""
    for name in {key.rsplit("_", 1)[0] for key in TRUTH}:
        base = float(re.search(r"base(\d+)", name).group(1))
        got = reference.sinusoidal(TRUTH[f"{name}_positions"], 128, base=base, layout="concatenated")
        truth = np.concatenate([TRUTH[f"{name}_sin"], TRUTH[f"{name}_cos"]], axis=-1)
        assert np.abs(got - truth).max() < 1e-15


EXTREMES = np.array([0, 1, 7, 8, 2**24 + 1, 2**31 - 1, 2**31 - 8, -1, -8, -9, -(2**24) - 1, -(2**31), -(2**31) + 1])


def test_float32_at_extreme_positions():
    for width in (64, 510):
        got = fastpe.encode(EXTREMES, width).astype(np.float64)
        assert np.abs(got - reference.sinusoidal(EXTREMES, width)).max() <= 2e-7


def test_float64_error_grows_with_position_only():
    positions = np.array([0, 1, 999, 65_537, 10**6, -(10**6)])
    got = fastpe.encode(positions, 256, dtype="float64")
    assert np.abs(got - reference.sinusoidal(positions, 256)).max() <= 1e-12


def test_real_positions():
    """Rounding to 2^-32 moves the angle by at most w * 2^-33."""
    positions = np.random.default_rng(0).uniform(-1000, 1000, 300)
    for scale in (1.0, 1000.0):
        encoding = fastpe.Sinusoidal(position_scale=scale)
        expected = reference.sinusoidal(positions, 32, position_scale=scale)
        rounding = scale * 2.0**-33
        assert np.abs(fastpe.encode(positions, 32, encoding) - expected).max() <= 2e-7 + rounding
        assert np.abs(fastpe.encode(positions, 32, encoding, dtype="float64") - expected).max() <= 1e-12 + 1.01 * rounding


FOLLOWING = (7, 8, 9, 9, 8, 9, 2**31 - 1, -(2**31), -(2**31) + 1, -1, 0, 1, 0.5, 1.5, 2.5, 2, 3, 0, 1, 0.5, 1, 2)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("width", [2, 38, 51])
def test_a_row_is_the_same_whatever_comes_before_it(dtype, width):
    """Positions that follow one another, jump, turn back, wrap, have a fraction; rows that a mask leaves out between them."""
    positions, layouts = np.array(FOLLOWING), ("interleaved", "concatenated")
    x = cases.random((len(positions), width), dtype)
    for encoding in (Sinusoidal(layout=layout) for layout in layouts):
        alone = np.concatenate([fastpe.add_encoding(x[[t]], encoding, positions=positions[[t]]) for t in range(len(x))])
        np.testing.assert_array_equal(fastpe.add_encoding(x.copy(), encoding, positions=positions), alone)
        both = fastpe.add_encoding(np.stack([x, x]), encoding, positions=np.stack([positions, positions]))
        np.testing.assert_array_equal(both, np.stack([alone, alone]))
        for first in range(3):
            mask = np.ones(len(x), bool)
            mask[first::3] = False
            masked = fastpe.add_encoding(x.copy(), encoding, positions=positions, mask=mask)
            np.testing.assert_array_equal(masked, np.where(mask[:, None], alone, x))


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.999), ("float16", 0.995)])
def test_sixteen_bits_are_rounded_correctly(dtype, share):
    positions = np.concatenate([np.arange(400), np.arange(131_000, 131_400), 2**30 + np.arange(200)])
    got = fastpe.encode(positions, 512, dtype=dtype)
    expected = reference.sinusoidal(positions, 512).astype(cases.DTYPES[dtype])
    assert (cases.bits(got) == cases.bits(expected)).mean() >= share


# ---- published tables --------------------------------------------------------------------------------------------------------

TENSOR2TENSOR = {"layout": "concatenated", "frequency_shift": 1}
PUBLISHED = {
    "xlm_512x64": {},
    "videomae_512x64": {},
    "marian_512x64": {"layout": "concatenated"},
    "tensor2tensor_512x64": TENSOR2TENSOR,
    "tensor2tensor_64x33_start5": TENSOR2TENSOR,
    "fairseq_1026x512": TENSOR2TENSOR,
    "fairseq_64x33": TENSOR2TENSOR,
    "whisper_1500x384": TENSOR2TENSOR,
}


def table_tolerance(positions, largest_frequency=1.0):
    return 1e-6 + 1.2e-7 * np.abs(positions).max() * largest_frequency


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_table(name):
    table, rows = TABLES[name], TABLES[f"{name}_rows"]
    positions = rows + 5 if name.endswith("start5") else rows
    if name == "fairseq_1026x512":  # row 1 is its padding row
        table, positions = table[rows != 1], positions[rows != 1]
    got = fastpe.encode(positions, table.shape[1], fastpe.Sinusoidal(**PUBLISHED[name]))
    np.testing.assert_allclose(got, table, rtol=0, atol=table_tolerance(positions))


def test_correctly_rounded_tables_to_the_last_digits():
    """Two of the tables were computed in float64 and rounded once: no angle error to allow for."""
    for name in ("xlm_512x64", "videomae_512x64"):
        got = fastpe.encode(TABLES[f"{name}_rows"], 64)
        assert np.abs(got.astype(np.float64) - TABLES[name]).max() <= 2e-7


@pytest.mark.parametrize("name", [key for key in TABLES if key.startswith("diffusers_c")])
def test_diffusion_timesteps(name):
    """Timestep embeddings: shift, cosine first, scale, period; odd widths end in a zero."""
    dim, flip, shift, scale, period = re.match(r".*_dim(\d+)_flip(\d)_shift(\d)_scale([\d.]+)_maxp(\d+)", name).groups()
    encoding = fastpe.Sinusoidal(
        base=float(period),
        layout="concatenated",
        cos_first=flip == "1",
        frequency_shift=int(shift),
        position_scale=float(scale),
    )
    timesteps = TABLES["diffusers_t"]
    got = fastpe.encode(timesteps, int(dim), encoding)
    np.testing.assert_allclose(got, TABLES[name], rtol=0, atol=table_tolerance(timesteps, float(scale)))


# ---- the value ---------------------------------------------------------------------------------------------------------------


def test_frequencies_are_the_papers():
    frequencies, amplitude = fastpe.Sinusoidal(amplitude=2.0).frequencies(64)
    np.testing.assert_allclose(frequencies, 10000.0 ** (-np.arange(32) / 32), rtol=4e-15)
    assert frequencies.dtype == np.float64
    assert amplitude == 2.0
    for shift, width in ((1, 64), (1, 2), (0.5, 9), (1, 1), (0, 9)):
        got, _ = fastpe.Sinusoidal(frequency_shift=shift, base=500.0).frequencies(width)
        expected = [float(w) for w in reference.angular_frequencies(width, 500.0, shift)]
        np.testing.assert_allclose(got, expected, rtol=1e-15)


def test_frequencies_are_the_callers_own():
    encoding = fastpe.Sinusoidal(base=123.0)
    encoding.frequencies(8)[0][:] = 0
    assert encoding.frequencies(8)[0][0] == 1.0


def test_is_a_value():
    assert fastpe.Sinusoidal() == fastpe.Sinusoidal(base=10000)
    assert hash(fastpe.Sinusoidal()) == hash(fastpe.Sinusoidal(frequency_shift=0.0))
    assert fastpe.Sinusoidal(base=2.0) != fastpe.Sinusoidal()
    with pytest.raises(AttributeError):
        fastpe.Sinusoidal().base = 3.0


def test_frequencies_too_slow_to_count_are_zero():
    """2^-65 turn a position is rounded to 2^-64, and anything less to nothing, even at the last position."""
    for turns, stands in ((2.0**-65, False), (2.0**-65 * (1 - 2.0**-50), True)):
        encoding = Sinusoidal(position_scale=2 * np.pi * turns * (1 + 2.0**-51))
        row = fastpe.encode(2**31 - 1, 2, encoding, dtype="float64")
        assert (row[0] == 0) == stands
        assert encoding.frequencies(2)[0][0] > 0


@pytest.mark.parametrize("two", [2, np.float32(2), np.int64(2), np.array(2.0), Fraction(2)])
def test_any_kind_of_number(two):
    encoding = fastpe.Sinusoidal(base=two, amplitude=two, position_scale=two, frequency_shift=two)
    assert encoding == fastpe.Sinusoidal(base=2.0, amplitude=2.0, position_scale=2.0, frequency_shift=2.0)
    assert hash(encoding) == hash(fastpe.Sinusoidal(2.0, frequency_shift=2.0, amplitude=2.0, position_scale=2.0))
    cases.assert_same_bits(
        fastpe.encode(3, 8, encoding), fastpe.encode(3, 8, fastpe.Sinusoidal(2.0, "interleaved", False, 2, 2, 2))
    )


def test_position_scale_stretches_the_context():
    stretched = fastpe.Sinusoidal(position_scale=0.25)
    np.testing.assert_allclose(fastpe.encode(np.arange(0, 64, 4), 32, stretched), fastpe.encode(np.arange(16), 32), atol=3e-7)


def test_encoding_by_name():
    cases.assert_same_bits(fastpe.encode(3, 8, "sinusoidal"), fastpe.encode(3, 8))


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        ({"base": 0}, ValueError, "Sinusoidal: base must be greater than 0, got int 0."),
        ({"base": float("inf")}, ValueError, "base must be finite"),
        ({"base": "10000"}, TypeError, "base must be a real number, got str '10000'."),
        ({"base": True}, TypeError, "base must be a real number"),
        ({"base": np.True_}, TypeError, "base must be a real number"),
        ({"base": Fraction(10**400)}, ValueError, "base must be finite"),
        ({"layout": np.array(["a", "b"])}, TypeError, "layout must be one of"),
        ({"layout": "half"}, ValueError, "layout must be one of 'interleaved', 'concatenated', got str 'half'."),
        ({"layout": 0}, TypeError, "layout must be one of"),
        ({"cos_first": 1}, TypeError, "cos_first must be True or False, got int 1."),
        ({"frequency_shift": float("nan")}, ValueError, "frequency_shift must be finite"),
        ({"amplitude": None}, TypeError, "amplitude must be a real number"),
        ({"amplitude": float("inf")}, ValueError, "amplitude must be finite"),
        ({"position_scale": -1}, ValueError, "position_scale must be greater than 0"),
    ],
)
def test_invalid_values(given, kind, text):
    with pytest.raises(kind, match=re.escape(text)):
        fastpe.Sinusoidal(**given)


def test_invalid_width():
    with pytest.raises(ValueError, match=re.escape("Sinusoidal.frequencies: dim must be at least 1, got 0.")):
        fastpe.Sinusoidal().frequencies(0)
    with pytest.raises(TypeError, match="dim must be an integer"):
        fastpe.Sinusoidal().frequencies(4.0)


def test_too_fast_a_frequency():
    with pytest.raises(ValueError, match=r"must give frequencies below 2\^32 turns a position, got 1e\+12 radians"):
        fastpe.encode(1, 4, fastpe.Sinusoidal(position_scale=1e12))


# ---- rules for longer contexts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 1, 0.5])
def test_scaling_takes_the_plain_frequencies_to_others(shift):
    """Linear interpolation is what ``position_scale`` does; NTK keeps the first frequency and divides the last."""
    plain = Sinusoidal(frequency_shift=shift).frequencies(16)[0]
    linear = Sinusoidal(frequency_shift=shift, scaling=scaling.Linear(4.0))
    assert np.abs(linear.frequencies(16)[0] / (plain / 4) - 1).max() < 1e-15
    x = np.zeros((1, 50, 16), np.float64)
    stretched = fastpe.add_encoding(x.copy(), Sinusoidal(frequency_shift=shift, position_scale=0.25))
    assert np.abs(fastpe.add_encoding(x.copy(), linear) - stretched).max() < 1e-13
    ntk = Sinusoidal(frequency_shift=shift, scaling=scaling.NTK(4.0)).frequencies(16)[0] / plain
    assert ntk[0] == 1
    assert abs(ntk[-1] * 4 - 1) < 1e-14
    assert (np.diff(ntk) < 0).all()
    yarn = Sinusoidal(scaling=scaling.YaRN(4.0, 64)).frequencies(16)
    assert (yarn[0] == fastpe.Rotary(scaling=scaling.YaRN(4.0, 64)).frequencies(16)[0]).all()
    assert yarn[1] == 1.0, "there is no attention to scale"


def test_scaling_by_the_length_of_the_call():
    encoding = Sinusoidal(scaling=scaling.DynamicNTK(2.0, 10))
    x = np.zeros((1, 30, 16), np.float32)
    expected = fastpe.add_encoding(x.copy(), encoding, seq_len=45, offset=15)
    for _ in range(3):
        assert (fastpe.add_encoding(x.copy(), encoding, offset=15) == expected).all()
        assert (fastpe.add_encoding(x.copy(), encoding, positions=np.arange(15, 45)) == expected).all()
        assert (fastpe.encode(np.arange(15, 45), 16, encoding) == expected[0]).all()
        assert (fastpe.add_encoding(x.copy(), encoding, offset=5) != expected).any()
    assert (fastpe.encode(44, 16, encoding) == expected[0, -1]).all()
    assert (fastpe.encode(np.arange(15, 45), 16, encoding, seq_len=10) == fastpe.encode(np.arange(15, 45), 16)).all()
    with pytest.raises(TypeError, match=r"scaling must be a rule of fastpe\.scaling or None"):
        Sinusoidal(scaling=4.0)
