"""Rotations like an earlier one: what is skipped, what is not, and that the results are the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cases
import numpy as np
import pytest
from call_cache_cases import known, queries

import fastpe
from fastpe import Rotary
from fastpe._core import call_cache
from fastpe._core.operations import Rotate
from fastpe.scaling import DynamicNTK, Linear

pytestmark = pytest.mark.usefixtures("nothing_known")


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("encoding", [None, Rotary(interleaved=True, base=500.0), Rotary(scaling=Linear(2.0), rotary_dim=8)])
def test_every_further_rotation_has_the_bits_of_the_first(dtype, encoding):
    q, k = queries(dtype=dtype), queries((2, 1, 5, 16), dtype, 1)
    for offset in (0, 7, 1 << 20, -3):
        expected = fastpe.apply_rotary(q.copy(), k.copy(), encoding, positions=offset + np.arange(5))
        for _ in range(3):
            got = q.copy(), k.copy()
            assert fastpe.apply_rotary(*got, encoding, offset=offset)[1] is got[1]
            for one, wanted in zip(got, expected, strict=True):
                cases.assert_same_bits(one, wanted)
    assert known(Rotate) == 2  # by offset, and by positions
    for one in (q, k):
        alone = [
            fastpe.apply_rotary(*pair, encoding, inverse=True)
            for pair in ((one.copy(), None), (None, one.copy()))
            for _ in (0, 1)
        ]
        for got in alone:
            cases.assert_same_bits(got, alone[0])
    assert known(Rotate) == 6


def test_a_known_rotation_takes_arrays_of_its_layout_only():
    q, k = queries(), queries((2, 1, 5, 16), seed=1)
    fastpe.apply_rotary(q.copy(), k.copy())
    for other in (
        (queries((2, 4, 5, 16)), k),
        (q, queries((2, 2, 5, 16))),
        (q.astype(np.float64), k),
        (q[..., :8], k[..., :8]),
        (q[..., :8], k[..., ::2]),
    ):
        expected = [fastpe.apply_rotary(x.copy(), None, positions=np.arange(5)) for x in other]
        got = [x.copy() for x in other]
        fastpe.apply_rotary(*got)
        for one, wanted in zip(got, expected, strict=True):
            cases.assert_same_bits(one, wanted)


def test_a_known_rotation_looks_at_what_can_change():
    q, k = queries(), queries((2, 1, 5, 16), seed=1)
    fastpe.apply_rotary(q, k)
    before = q.copy()
    for offset in (2**31 - 4, -(2**31) - 1):
        with pytest.raises(ValueError, match=r"2\^31"):
            fastpe.apply_rotary(q, k, offset=offset)
    locked = k.copy()
    locked.flags.writeable = False
    with pytest.raises(ValueError, match="k must be writable"):
        fastpe.apply_rotary(q, locked)
    buffer = np.zeros((2, 4, 5, 16), np.float32)
    fastpe.apply_rotary(buffer[:, :3], buffer[:, 3:])  # slices of one array, apart
    fastpe.apply_rotary(buffer[:, :3], buffer[:, 3:])
    with pytest.raises(ValueError, match="must lie apart"):
        fastpe.apply_rotary(buffer[:, :3], buffer[:, 2:3])
    cases.assert_same_bits(q, before)
    for given in ({"seq_axis": -2.0}, {"inverse": 1}, {"offset": False}, {"validate": 0}):
        with pytest.raises(TypeError):
            fastpe.apply_rotary(q, k, **given)
    cases.assert_same_bits(q, before)


def test_one_row_of_queries_with_an_offset_for_each_sequence():
    q, k, offsets = queries((6, 3, 1, 16)), queries((6, 2, 1, 16), seed=1), np.array([0, 5, 4095, -7, 2**31 - 1, 12])
    expected = fastpe.apply_rotary(q.copy(), k.copy(), positions=offsets[:, None])
    for _ in range(3):
        for one, wanted in zip(fastpe.apply_rotary(q.copy(), k.copy(), offset=offsets), expected, strict=True):
            cases.assert_same_bits(one, wanted)
    assert known(Rotate) == 2  # by offset, and by positions
    with pytest.raises(ValueError, match=r"2\^31"):
        fastpe.apply_rotary(q, k, offset=offsets + 1)
    with pytest.raises(ValueError, match="shape"):
        fastpe.apply_rotary(q, k, offset=offsets[:5])


def test_rotations_whose_plan_depends_on_the_call_are_not_kept():
    q = queries()
    dynamic = Rotary(scaling=DynamicNTK(2.0, 4))
    first = fastpe.apply_rotary(q.copy(), None, dynamic, offset=50)
    cases.assert_same_bits(fastpe.apply_rotary(q.copy(), None, dynamic, seq_len=55, offset=50), first)
    assert (fastpe.apply_rotary(q.copy(), None, dynamic, seq_len=4, offset=50) != first).any()
    fastpe.apply_rotary(q.copy(), None, Rotary.tabulated(np.ones((9, 8)), np.zeros((9, 8))))
    fastpe.apply_rotary(q.copy(), q.copy(), Rotary(xpos_scale_base=512))  # two calls
    assert known(Rotate) == 2, "only those of a given length"


def test_threads_rotate_at_once():
    """Large enough for helpers, and all of one form."""
    q, k = queries((2, 8, 300, 64)), queries((2, 2, 300, 64), seed=1)
    expected = {offset: fastpe.apply_rotary(q.copy(), k.copy(), positions=offset + np.arange(300)) for offset in range(8)}

    def rotate(offset):
        for _ in range(20):
            for one, wanted in zip(fastpe.apply_rotary(q.copy(), k.copy(), offset=offset), expected[offset], strict=True):
                cases.assert_same_bits(one, wanted)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(rotate, range(8)))


def test_known_rotations_are_bounded():
    for rows in range(1, call_cache.MOST_ENTRIES + 20):
        fastpe.apply_rotary(np.zeros((rows, 2), np.float32))
    assert 0 < known(Rotate) <= call_cache.MOST_ENTRIES
