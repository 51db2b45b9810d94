"""Calls like an earlier one: what is skipped, what is not, and that the results are the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cases
import numpy as np
import pytest
import reference
from call_cache_cases import fresh, known, queries

import fastpe
from fastpe import Rotary, Sinusoidal
from fastpe._core import bias_tables, call_cache
from fastpe._core.operations import Add, Embed, Rotate
from fastpe.encodings.protocol import Additive, sinusoids
from fastpe.scaling import DynamicNTK

pytestmark = pytest.mark.usefixtures("nothing_known")


# ---- what is looked at every time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("encoding", [None, "sinusoidal", Sinusoidal(layout="concatenated", base=500.0)])
def test_every_further_call_has_the_bits_of_the_first(dtype, encoding):
    x = fresh(dtype=dtype)
    for offset in (0, 7, 1 << 20, -3):
        expected = fastpe.add_encoding(x.copy(), encoding, positions=offset + np.arange(5))  # takes another way
        for _ in range(4):
            got = x.copy()
            assert fastpe.add_encoding(got, encoding, offset=offset) is got
            cases.assert_same_bits(got, expected)
    assert known(Add) == 2  # by offset, and by positions


def test_a_known_call_takes_arrays_of_its_layout_only():
    fastpe.add_encoding(fresh())
    others = [fresh((2, 6, 12)), fresh((2, 5, 14)), fresh((10, 12)), fresh((2, 5, 24))[..., ::2], fresh(dtype="float64")]
    others += [fresh((5, 2, 12)).transpose(1, 0, 2), fresh((2, 5, 13))[..., 1:]]
    for x in others:
        before = x.astype(np.float64)
        fastpe.add_encoding(x)
        encoding = reference.sinusoidal(np.arange(x.shape[-2]), x.shape[-1])
        cases.assert_close(x, before + encoding, str(x.dtype))


def test_a_known_call_sees_a_read_only_array():
    x = fresh()
    fastpe.add_encoding(x)
    x.flags.writeable = False
    with pytest.raises(ValueError, match="writ"):
        fastpe.add_encoding(x)


def test_a_known_call_sees_an_offset_out_of_range():
    x = fresh()
    fastpe.add_encoding(x)
    before = x.copy()
    for offset in (2**31 - 4, -(2**31) - 1, 2**70):
        with pytest.raises(ValueError, match=r"2\^31"):
            fastpe.add_encoding(x, offset=offset)
    fastpe.add_encoding(x, offset=2**31 - 5)
    assert (x != before).any()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"seq_axis": -2.0}, TypeError),
        ({"seq_axis": True}, TypeError),
        ({"input_scale": True}, TypeError),
        ({"input_scale": float("nan")}, ValueError),
        ({"offset": 0.0}, TypeError),
        ({"offset": False}, TypeError),
        ({"encoding": []}, TypeError),
        ({"validate": 0}, TypeError),
        ({"seq_len": -1}, ValueError),
    ],
)
def test_what_equals_a_known_argument_is_still_refused(given, error):
    x = fresh()
    fastpe.add_encoding(x, seq_axis=1)
    fastpe.add_encoding(x)
    before = x.copy()
    with pytest.raises(error):
        fastpe.add_encoding(x, **given)
    cases.assert_same_bits(x, before)


def test_a_known_call_takes_arrays_of_numpy_only():
    """An array with hidden elements has the layout of another, and must not be written."""
    x, scores, table = fresh(), fresh((3, 4, 9)), fresh((30, 12))
    masked = [np.ma.MaskedArray(array.copy(), mask=True) for array in (x, scores, x)]
    ids = np.array([[1, 2, 3]])
    for first in (True, False):
        fastpe.add_encoding(x.copy())
        fastpe.apply_rotary(x.copy())
        fastpe.add_bias(scores.copy(), fastpe.ALiBi(3))
        fastpe.embed(ids, table)
        calls = [
            lambda: fastpe.add_encoding(masked[0]),
            lambda: fastpe.add_bias(masked[1], fastpe.ALiBi(3)),
            lambda: fastpe.apply_rotary(masked[2]),
            lambda: fastpe.embed(ids, np.ma.MaskedArray(table, mask=True)),
            lambda: fastpe.embed(np.ma.MaskedArray(ids, mask=True), table),
        ]
        for call in calls if first else reversed(calls):
            with pytest.raises(TypeError):
                call()
    for array, before in zip(masked, (x, scores, x), strict=True):
        cases.assert_same_bits(array.data, before)


def test_out_of_place():
    x, out = fresh(), np.empty((2, 5, 12), np.float32)
    expected = fastpe.add_encoding(x.copy(), positions=3 + np.arange(5))
    before = x.copy()
    for _ in range(4):
        out.fill(np.nan)
        assert fastpe.add_encoding(x, offset=3, out=out) is out
        cases.assert_same_bits(out, expected)
        cases.assert_same_bits(x, before)
    x.setflags(write=False)
    for _ in range(3):
        cases.assert_same_bits(fastpe.add_encoding(x, offset=3, out=np.empty_like(out)), expected)
    buffer = np.zeros((3, 5, 12), np.float32)
    for bad in (buffer[1:], np.broadcast_to(np.float32(0), (2, 5, 12))):  # partly over the x below; not writable
        with pytest.raises(ValueError, match="out must"):
            fastpe.add_encoding(buffer[:2], offset=3, out=bad)
    assert not buffer.any()
    again = x.copy()  # the same elements by another view: in place, and not taken for a pair of arrays afterwards
    cases.assert_same_bits(fastpe.add_encoding(again, offset=3, out=again[:]), expected)
    cases.assert_same_bits(fastpe.add_encoding(x, offset=3, out=out), expected)
    strided = np.zeros((2, 5, 24), np.float32)
    for _ in range(3):
        cases.assert_same_bits(np.ascontiguousarray(fastpe.add_encoding(x, offset=3, out=strided[..., ::2])), expected)


def test_a_view_of_x_as_out_is_not_taken_for_a_pair_of_arrays():
    x, out = fresh(), np.empty((2, 5, 12), np.float32)
    expected = fastpe.add_encoding(x.copy())
    same = x.copy()
    fastpe.add_encoding(same, out=same[:])
    for _ in range(3):
        cases.assert_same_bits(fastpe.add_encoding(x, out=out), expected)


def test_one_row_with_an_offset_for_each_sequence():
    x, offsets = fresh((6, 1, 20)), np.array([0, 5, 4095, -7, 2**31 - 1, 12])
    expected = fastpe.add_encoding(x.copy(), positions=offsets[:, None])
    for _ in range(3):
        cases.assert_same_bits(fastpe.add_encoding(x.copy(), offset=offsets), expected)
    cases.assert_same_bits(fastpe.add_encoding(x.copy(), offset=offsets.astype(np.int32) * 1), expected)
    before = x.copy()
    for bad in (np.array([0, 0, 0, 0, 0, 2**31]), np.array([0, -(2**31) - 1, 0, 0, 0, 0]), offsets[:5], offsets.astype(float)):
        with pytest.raises((ValueError, TypeError)):
            fastpe.add_encoding(x, offset=bad)
    cases.assert_same_bits(x, before)
    every_second = np.repeat(offsets, 2)[::2]
    cases.assert_same_bits(fastpe.add_encoding(x.copy(), offset=every_second), expected)


def test_known_calls_are_bounded():
    for rows in range(1, call_cache.MOST_ENTRIES + 20):
        fastpe.add_encoding(np.zeros((rows, 2), np.float32))
    assert 0 < known(Add) <= call_cache.MOST_ENTRIES


def own_encoding(factor, amount=0.5):
    """A class that another call of this function makes anew, under the same name."""

    @dataclass(frozen=True)
    class Own(Additive):
        amount: float = 0.5

        def plan(self, dim, seq_len=None):
            return sinusoids((type(self), self, dim), dim, [factor * self.amount] * (dim // 2))

    return Own(amount)


def test_classes_of_one_name_are_told_apart():
    """As where a cell of a notebook that defines an encoding is run again."""
    x = fresh()
    first, second = own_encoding(1), own_encoding(2)
    wanted = [fastpe.add_encoding(x.copy(), one, positions=np.arange(5)) for one in (first, second)]
    assert (wanted[0] != wanted[1]).any()
    for _ in (0, 1):
        for one, expected in zip((first, second), wanted, strict=True):
            cases.assert_same_bits(fastpe.add_encoding(x.copy(), one), expected)
    cases.assert_same_bits(fastpe.add_encoding(x.copy(), own_encoding(1, 1.0)), wanted[1])


class NoDataclass(Additive):
    """What it holds is no field."""

    def __init__(self, step):
        self.step = step
        self.__post_init__()

    def plan(self, dim, seq_len=None):
        return sinusoids((id(self), dim), dim, [self.step] * (dim // 2))


def test_classes_that_are_no_dataclass_are_told_apart():
    x = fresh()
    for step in (0.25, 0.5, 0.75):
        encoding = NoDataclass(step)
        expected = fastpe.add_encoding(x.copy(), encoding, positions=np.arange(5))
        for _ in (0, 1):
            cases.assert_same_bits(fastpe.add_encoding(x.copy(), encoding), expected)


# ---- of every verb ------------------------------------------------------------------------------------------------------------


def test_calls_with_a_given_length_are_kept():
    """A rule that depends on the length gives one plan for each that is given, whatever the offset."""
    q, table, ids = queries(), fresh((30, 16)), np.array([[1, 2, 3, 4, 5]] * 2)
    rule = DynamicNTK(2.0, 4)
    rotary, sinusoidal = Rotary(scaling=rule), Sinusoidal(scaling=rule)
    for length in (50, 70):
        for offset in (0, 3):
            places = {"positions": offset + np.arange(5), "seq_len": length}  # takes another way
            wanted = [
                fastpe.apply_rotary(q.copy(), None, rotary, **places),
                fastpe.add_encoding(q[:, 0].copy(), sinusoidal, **places),
                fastpe.embed(ids, table, sinusoidal, **places),
            ]
            for _ in (0, 1):
                given = {"offset": offset, "seq_len": length}
                cases.assert_same_bits(fastpe.apply_rotary(q.copy(), None, rotary, **given), wanted[0])
                cases.assert_same_bits(fastpe.add_encoding(q[:, 0].copy(), sinusoidal, **given), wanted[1])
                cases.assert_same_bits(fastpe.embed(ids, table, sinusoidal, **given), wanted[2])
    assert [known(kind) for kind in (Rotate, Add, Embed)] == [4, 4, 4]  # by offset, and by positions
    for bad in (0, -1, True, 50.0, "50"):
        with pytest.raises((TypeError, ValueError), match="seq_len"):
            fastpe.apply_rotary(q, None, rotary, seq_len=bad)


def test_caches_are_cleared():
    """Prepared calls and tables of biases are made anew, with the same results."""
    bias, scores = fastpe.ALiBi(3), fresh((2, 3, 4, 9))
    first = fastpe.add_encoding(fresh()), fastpe.add_bias(scores.copy(), bias)
    assert call_cache.entries
    assert bias_tables._tables
    fastpe.clear_caches()
    assert not call_cache.entries
    assert not bias_tables._tables
    cases.assert_same_bits(fastpe.add_encoding(fresh()), first[0])
    cases.assert_same_bits(fastpe.add_bias(scores.copy(), bias), first[1])


def test_clearing_while_threads_call():
    x = fresh()
    wanted = [fastpe.add_encoding(x.copy(), positions=offset + np.arange(5)) for offset in range(4)]

    def call(offset):
        for _ in range(200):
            cases.assert_same_bits(fastpe.add_encoding(x.copy(), offset=offset), wanted[offset])
            if offset == 3:
                fastpe.clear_caches()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))
