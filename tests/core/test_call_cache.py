"""Calls like an earlier one: what is skipped, what is not, and that the results are the same; the row cache; streaming stores."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cases
import numpy as np
import pytest
import reference

import fastpe
from fastpe import Learned, Rotary, Sinusoidal
from fastpe._backends.host import chunking, row_cache
from fastpe._core import bias_tables, call_cache
from fastpe._core.operations import Add, Embed, Rotate
from fastpe.encodings.protocol import Additive, sinusoids
from fastpe.scaling import DynamicNTK, Linear


@pytest.fixture(autouse=True)
def nothing_known():
    """Start without known calls and cached rows."""
    call_cache.clear()
    row_cache._of.cache_clear()


def known(kind):
    """How many calls of an operation are known."""
    return sum(key[0] is kind for key in call_cache.entries)


def fresh(shape=(2, 5, 12), dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(cases.DTYPES[dtype])


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
    assert known(Add) == 1


def test_a_known_call_takes_arrays_of_its_form_only():
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
    room = np.zeros((3, 5, 12), np.float32)
    for bad in (room[1:], np.broadcast_to(np.float32(0), (2, 5, 12))):  # partly over the x below; not writable
        with pytest.raises(ValueError, match="out must"):
            fastpe.add_encoding(room[:2], offset=3, out=bad)
    assert not room.any()
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


# ---- the row cache -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("layout", ["interleaved", "concatenated"])
@pytest.mark.parametrize("shape", [(40, 64), (3, 40, 33), (2, 40, 3, 20)])
def test_cached_rows_have_the_same_bits(dtype, layout, shape):
    encoding = Sinusoidal(layout=layout, amplitude=-1.5)
    axis = len(shape) - 2 if len(shape) < 4 else 1
    x = fresh(shape, dtype)
    for offset in (0, 3, 100, 1 << 17):
        expected = fastpe.add_encoding(x.copy(), encoding, positions=offset + np.arange(40), seq_axis=axis)
        for _ in range(3):
            cases.assert_same_bits(fastpe.add_encoding(x.copy(), encoding, offset=offset, seq_axis=axis), expected)
    plan = encoding.plan(shape[-1])
    made = row_cache.of(plan, dtype)._rows
    assert made.number >= 140, "no rows were cached: this tests nothing"


def test_the_row_cache_is_bounded(monkeypatch):
    monkeypatch.setitem(row_cache.MOST_BYTES, "float32", 1 << 20)
    monkeypatch.setattr(row_cache, "BYTES_PER_CALL", 1 << 18)
    monkeypatch.setattr(row_cache, "MOST_BYTES_OF_ALL", 1 << 21)
    monkeypatch.setattr(row_cache, "_filled", type(row_cache._filled)())
    held = []
    for width in range(256, 256 + 8):
        x = np.zeros((900, width), np.float32)
        plan = Sinusoidal().plan(width)
        expected = fastpe.add_encoding(x.copy(), positions=np.arange(900))
        for call in range(7):
            before = row_cache.of(plan, "float32").nbytes
            cases.assert_same_bits(fastpe.add_encoding(x.copy()), expected)
            more = row_cache.of(plan, "float32").nbytes - before
            assert 0 < more <= 1 << 18 if 0 < call < 5 else more == 0, "a call makes a part of the rows, until there are enough"
        held.append(sum(cached.nbytes for cached in row_cache._filled))
    assert len(row_cache._filled) == 2
    assert 1 << 20 < max(held) <= 1 << 21
    wide = np.zeros((4, 100_000), np.float32)  # more than MOST_BYTES
    for _ in range(3):
        fastpe.add_encoding(wide)
    assert not row_cache.of(Sinusoidal().plan(100_000), "float32").nbytes


def test_threads_may_make_rows_of_many_plans_at_once(monkeypatch):
    """The list of those that have rows is read while other threads lengthen it."""
    monkeypatch.setattr(row_cache, "MOST_BYTES_OF_ALL", 1 << 16)
    monkeypatch.setattr(row_cache, "_filled", type(row_cache._filled)())
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def calls(first):
        for width in range(first, first + 400, 8):
            x = np.zeros((8, width), np.float32)
            for _ in range(3):
                fastpe.add_encoding(x)

    try:
        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(calls, 8 + number) for number in range(8)]:
                done.result()
    finally:
        sys.setswitchinterval(interval)
    assert sum(cached.nbytes for cached in row_cache._filled) <= 1 << 16


def test_a_decoder_makes_no_rows_that_it_will_not_add():
    encoding = Sinusoidal(base=777.0)
    for position in range(500, 520):
        fastpe.add_encoding(np.zeros((1, 1, 64), np.float32), encoding, offset=position)
    assert not row_cache.of(encoding.plan(64), "float32").nbytes


# ---- streaming stores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("layout", ["interleaved", "concatenated"])
@pytest.mark.parametrize("width", [1, 7, 64, 515])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_streaming_stores_write_the_same_bits(monkeypatch, dtype, layout, width, shift):
    """Targets that begin anywhere in a line, dense and with gaps; what lies around them is not touched."""
    encoding = Sinusoidal(layout=layout)
    x = fresh((3, 11, width), dtype)
    mask = np.arange(11) % 3 > 0
    positions = np.arange(11)
    expected = fastpe.add_encoding(x.copy(), encoding), fastpe.add_encoding(x.copy(), encoding, mask=mask)
    table = fastpe.encode(positions, width, encoding, dtype=cases.DTYPES[dtype])
    monkeypatch.setattr(chunking, "cache_bytes", lambda: 0)
    for padding in (0, 5):
        room = np.zeros((3 * 11 * (width + padding) + shift + 8), cases.DTYPES[dtype])
        whole = room[shift : shift + 3 * 11 * (width + padding)].reshape(3, 11, width + padding)
        for given, want in zip(({}, {"mask": mask}), expected, strict=True):
            room.fill(9)
            fastpe.add_encoding(x, encoding, out=whole[..., :width], **given)
            cases.assert_same_bits(np.ascontiguousarray(whole[..., :width]), want)
            assert (whole[..., width:] == 9).all()
            assert (room[:shift] == 9).all()
            assert (room[shift + whole.size :] == 9).all()
        room.fill(9)
        fastpe.encode(positions, width, encoding, out=whole[1, :, :width])
        cases.assert_same_bits(np.ascontiguousarray(whole[1, :, :width]), table)
        assert (whole[[0, 2]] == 9).all()


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_no_streaming_to_elements_that_are_not_aligned(monkeypatch, dtype):
    """A streaming store to an address that is no vector's own ends the process; the form of the call does not tell."""
    monkeypatch.setattr(chunking, "cache_bytes", lambda: 0)
    x = fresh((40, 96), dtype)
    room = np.zeros(x.nbytes + 64, np.uint8)
    expected = fastpe.add_encoding(x.copy())
    for shift in (0, 1, 0, 1):
        out = np.ndarray(x.shape, x.dtype, room, shift)
        cases.assert_same_bits(fastpe.add_encoding(x, out=out), expected)
    rows = np.ndarray(x.shape, x.dtype, np.zeros(40 * (x.nbytes // 40 + 1), np.uint8), 0, (x.nbytes // 40 + 1, x.itemsize))
    cases.assert_same_bits(fastpe.add_encoding(x, out=rows).copy(), expected)


# ---- rotations ---------------------------------------------------------------------------------------------------------------


def queries(shape=(2, 3, 5, 16), dtype="float32", seed=0):
    return fresh(shape, dtype, seed)


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
    assert known(Rotate) == 1
    for one in (q, k):
        alone = [
            fastpe.apply_rotary(*pair, encoding, inverse=True)
            for pair in ((one.copy(), None), (None, one.copy()))
            for _ in (0, 1)
        ]
        for got in alone:
            cases.assert_same_bits(got, alone[0])
    assert known(Rotate) == 5


def test_a_known_rotation_takes_arrays_of_its_form_only():
    q, k = queries(), queries((2, 1, 5, 16), seed=1)
    fastpe.apply_rotary(q.copy(), k.copy())
    for other in (
        (queries((2, 4, 5, 16)), k),
        (q, queries((2, 2, 5, 16))),
        (q.astype(np.float64), k),
        (q[..., :8], k),
        (q, k[..., ::2]),
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
    room = np.zeros((2, 4, 5, 16), np.float32)
    fastpe.apply_rotary(room[:, :3], room[:, 3:])  # slices of one array, apart
    fastpe.apply_rotary(room[:, :3], room[:, 3:])
    with pytest.raises(ValueError, match="must lie apart"):
        fastpe.apply_rotary(room[:, :3], room[:, 2:3])
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
    assert known(Rotate) == 1
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
    assert [known(kind) for kind in (Rotate, Add, Embed)] == [2, 2, 2]
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


def test_known_rotations_are_bounded():
    for rows in range(1, call_cache.MOST_ENTRIES + 20):
        fastpe.apply_rotary(np.zeros((rows, 2), np.float32))
    assert 0 < known(Rotate) <= call_cache.MOST_ENTRIES


# ---- embeddings --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("encoding", [None, "sinusoidal", Sinusoidal(layout="concatenated")])
def test_every_further_embedding_has_the_bits_of_the_first(dtype, encoding):
    table = fresh((30, 12), dtype)
    for seed in range(4):
        ids = np.random.default_rng(seed).integers(0, 30, (2, 5))
        given = {} if encoding is None else {"offset": 7 * seed}
        expected = fastpe.embed(ids, table, encoding, scale=1.5, mask=np.ones(5, bool), **given)  # takes another way
        for words in (table, table.copy()):
            cases.assert_same_bits(fastpe.embed(ids, words, encoding, scale=1.5, **given), expected)
            out = np.empty((2, 5, 12), table.dtype)
            assert fastpe.embed(ids, words, encoding, scale=1.5, out=out, **given) is out
            cases.assert_same_bits(out, expected)
    assert known(Embed) == 2


def test_a_known_embedding_looks_at_what_can_change():
    table, ids = fresh((30, 12)), np.array([[1, 2, 3]])
    out = np.full((1, 3, 12), 7, np.float32)
    for _ in range(2):
        fastpe.embed(ids, table, Sinusoidal(), out=out)
    before = out.copy()
    for bad in (np.array([[1, 2, 30]]), np.array([[1, -1, 3]])):
        with pytest.raises(IndexError, match=r"ids must lie in \[0, 30\)"):
            fastpe.embed(bad, table, Sinusoidal(), out=out)
    with pytest.raises(ValueError, match=r"2\^31"):
        fastpe.embed(ids, table, Sinusoidal(), out=out, offset=2**31 - 2)
    locked = out.copy()
    locked.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writable"):
        fastpe.embed(ids, table, Sinusoidal(), out=locked)
    with pytest.raises(ValueError, match="must lie apart from the table"):
        fastpe.embed(ids, table, Sinusoidal(), out=table[None, 4:7])
    cases.assert_same_bits(out, before)
    shorter = fresh((20, 12))  # another form: its own number of rows
    with pytest.raises(IndexError, match=r"\[0, 20\)"):
        fastpe.embed(np.array([[1, 2, 25]]), shorter, Sinusoidal(), out=out)
    for given in ({"scale": True}, {"offset": False}, {"validate": 0}):
        with pytest.raises(TypeError):
            fastpe.embed(ids, table, Sinusoidal(), **given)
    with pytest.raises(ValueError, match="offset needs an encoding"):
        fastpe.embed(ids, table, offset=3)
    fastpe.embed(ids, table)
    with pytest.raises(ValueError, match="offset needs an encoding"):
        fastpe.embed(ids, table, offset=3)


def test_known_calls_keep_no_array_alive():
    import weakref

    arrays = [fresh((30, 12)), fresh((2, 4, 5, 16)), fresh((2, 5, 12)), np.empty((2, 5, 12), np.float32)]
    fastpe.embed(np.zeros((2, 5), int), arrays[0], Sinusoidal(), out=arrays[3])
    fastpe.apply_rotary(arrays[1])
    fastpe.add_encoding(arrays[2])
    assert known(Embed)
    assert known(Rotate)
    assert known(Add)
    gone = [weakref.ref(array) for array in arrays]
    arrays.clear()
    assert [one() for one in gone] == [None] * 4


def test_embeddings_of_token_types_are_made_anew():
    table, types, ids = fresh((30, 12)), fresh((2, 12), seed=1), np.array([[1, 2, 3]])
    wanted = table[ids] + types[ids % 2]
    for _ in range(3):
        cases.assert_same_bits(fastpe.embed(ids, table), table[ids])
        cases.assert_same_bits(fastpe.embed(ids, table, token_types=(ids % 2, types)), wanted)


def test_one_token_with_an_offset_for_each_sequence():
    table, offsets = fresh((30, 12)), np.array([0, 5, 4095, -7, 2**31 - 1, 12])
    for seed in range(3):
        ids = np.random.default_rng(seed).integers(0, 30, (6, 1))
        got = fastpe.embed(ids, table, Sinusoidal(), offset=offsets)
        cases.assert_same_bits(got, fastpe.embed(ids, table, Sinusoidal(), positions=offsets[:, None]))
    assert known(Embed) == 1


def test_embeddings_that_depend_on_more_are_not_kept():
    table, ids = fresh((30, 12)), np.array([[1, 2, 3]])
    learned = Learned(fresh((4, 12)))
    for _ in range(2):
        fastpe.embed(ids, table, learned)
        fastpe.embed(ids, table, Sinusoidal(scaling=DynamicNTK(2.0, 2)))
        fastpe.embed(ids.astype(np.int32), table)
        fastpe.embed(ids, table, "sinusoidal", dtype="float16")
    with pytest.raises(IndexError, match=r"\[0, 4\)"):
        fastpe.embed(ids, table, learned, offset=2)
    assert not known(Embed)
