"""apply_rotary by a table of cosines and sines that the caller has."""

from __future__ import annotations

import cases
import numpy as np
import pytest
from reference import rotate
from rotary_cases import layout_of, random, table

import fastpe
from fastpe import Rotary

DTYPES = tuple(cases.DTYPES)


def test_a_table_is_converted_once():
    """What is written into a table after its first use does not count where it was converted; a new value begins anew."""
    cos, sin = table(dtype="float64")
    encoding, x = Rotary.tabulated(cos, sin), random((1, 9, 16))
    before = fastpe.apply_rotary(x.copy(), None, encoding)
    cos[:], sin[:] = 1.0, 0.0
    cases.assert_same_bits(fastpe.apply_rotary(x.copy(), None, encoding), before)
    cases.assert_same_bits(fastpe.apply_rotary(x.copy(), None, Rotary.tabulated(cos, sin)), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_a_callers_table(dtype, interleaved):
    cos, sin = table(dtype="float64")
    encoding = Rotary.tabulated(cos, sin, interleaved=interleaved, rotary_offset=3)
    positions = np.random.default_rng(0).integers(0, 64, (2, 9))
    x = random((2, 4, 9, 24), dtype)
    expected = rotate(x, cos[positions][:, None], sin[positions][:, None], **layout_of(encoding))
    found = fastpe.apply_rotary(x.copy(), None, encoding, positions=positions).astype(np.float64)
    assert np.abs(found - expected).max() <= {"float64": 1e-15, "float32": 5e-7, "float16": 4e-3, "bfloat16": 3e-2}[dtype]
    out = np.empty_like(x)
    cases.assert_same_bits(
        fastpe.apply_rotary(x, None, encoding, positions=positions, out=out),
        fastpe.apply_rotary(x.copy(), None, encoding, positions=positions),
    )
    twice = np.concatenate((cos, cos), -1), np.concatenate((sin, sin), -1)
    halves = Rotary.tabulated(twice[0][:, :8], twice[1][:, :8], interleaved=interleaved, rotary_offset=3)
    cases.assert_same_bits(fastpe.apply_rotary(x.copy(), None, halves, positions=positions), out)


def test_a_table_with_rows_for_each_sequence():
    """The ONNX operator without position_ids: (B, T, F)."""
    cos, sin = (part[np.array([[0, 1, 2], [7, 9, 30]])] for part in table())
    q, k = random((2, 4, 3, 16)), random((2, 1, 3, 16), seed=1)
    expected = [
        fastpe.apply_rotary(x.copy(), None, Rotary.tabulated(*table()), positions=np.array([[0, 1, 2], [7, 9, 30]]))
        for x in (q, k)
    ]
    fastpe.apply_rotary(q, k, Rotary.tabulated(cos, sin))
    cases.assert_same_bits(q, expected[0])
    cases.assert_same_bits(k, expected[1])
    shared = random((5, 2, 3, 16))
    fastpe.apply_rotary(shared.copy(), None, Rotary.tabulated(cos[:1], sin[:1]))
    with pytest.raises(ValueError, match=r"the table must have B and T of q and k, \(5, 3\), got \(2, 3\)"):
        fastpe.apply_rotary(shared, None, Rotary.tabulated(cos, sin))
    with pytest.raises(ValueError, match="takes no positions, offset or cu_seqlens"):
        fastpe.apply_rotary(q, None, Rotary.tabulated(cos, sin), offset=1)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"offset": 60}, IndexError, r"the table's \[0, 64\), got 64 at row 4 of sequence 0"),
        ({"offset": -1}, IndexError, "got -1 at row 0 of sequence 0"),
        ({"positions": np.array([0, 1, 2, 99, 3, 64])}, IndexError, "got 99 at row 3"),
        ({"offset": np.array([0, 62])}, IndexError, "got 64 at row 2 of sequence 1"),
        ({"positions": np.arange(6) / 2}, TypeError, "positions of a table must be integers"),
        ({"positions": [0.5] * 6}, TypeError, "positions of a table must be integers"),
    ],
)
def test_positions_that_a_table_does_not_have(given, error, text):
    x = random((2, 3, 6, 16))
    before = x.copy()
    for _ in range(2):
        with pytest.raises(error, match=text):
            fastpe.apply_rotary(x, None, Rotary.tabulated(*table()), **given)
        cases.assert_same_bits(x, before)
        fastpe.apply_rotary(x.copy(), None, Rotary.tabulated(*table()), offset=5)
    mask = np.arange(6) < 4  # protected rows need no position in it
    if error is IndexError and "positions" in given:
        fastpe.apply_rotary(x, None, Rotary.tabulated(*table()), positions=np.array([0, 1, 2, 3, 99, 64]), mask=mask)


@pytest.mark.parametrize(
    ("cos", "sin", "error", "text"),
    [
        ([[1.0]], [[0.0]], TypeError, "cos must be a NumPy or CuPy array"),
        (np.ones((4, 2)), np.ones((4, 3)), ValueError, "cos and sin must be of one library, device and shape"),
        (np.ones((4, 2), int), np.ones((4, 2)), TypeError, "cos must be a floating-point array"),
        (np.ones(4), np.ones(4), ValueError, r"cos must have shape \(P, F\) or \(B, T, F\)"),
    ],
)
def test_bad_tables(cos, sin, error, text):
    with pytest.raises(error, match=text):
        Rotary.tabulated(cos, sin)
    with pytest.raises(ValueError, match="the channels that rotate must lie in the head"):
        fastpe.apply_rotary(random((3, 8)), None, Rotary.tabulated(*table()))
