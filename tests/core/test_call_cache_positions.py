"""Known calls that are given positions, other ones each time."""

from __future__ import annotations

import threading

import cases
import numpy as np
import pytest
from call_cache_cases import fresh, known, queries

import fastpe
from fastpe import Rotary, Sinusoidal
from fastpe._core.operations import Add, Embed, Rotate
from fastpe._core.operations.base import MOST_POSITIONS
from fastpe.scaling import DynamicNTK

pytestmark = pytest.mark.usefixtures("nothing_known")

TABLE, IDS = fresh((30, 12)), np.array([[1, 2, 3, 4, 5], [29, 0, 7, 7, 1]])
MROPE = Rotary(sections=(2, 3, 3))
CALLS = {
    "add": lambda **given: fastpe.add_encoding(fresh(), **given),
    "out": lambda **given: fastpe.add_encoding(fresh(), out=np.empty((2, 5, 12), np.float32), **given),
    "concatenated": lambda **given: fastpe.add_encoding(fresh(dtype="bfloat16"), Sinusoidal(layout="concatenated"), **given),
    "embed": lambda **given: fastpe.embed(IDS, TABLE, "sinusoidal", **given),
    "queries": lambda **given: fastpe.apply_rotary(queries(), None, **given),
    "both": lambda **given: np.stack(fastpe.apply_rotary(queries(), queries(seed=1), **given)),
    "length": lambda **given: fastpe.apply_rotary(queries(), None, Rotary(scaling=DynamicNTK(2.0, 4)), seq_len=9, **given),
}
SHAPES = [(5,), (2, 5)]


def drawn(shape, seed=0):
    return np.random.default_rng(seed).integers(-(2**31), 2**31, shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_every_further_call_has_the_bits_of_its_positions(name, shape, monkeypatch):
    call, given = CALLS[name], [drawn(shape, seed) for seed in range(4)]
    wanted = [call(positions=positions.astype(np.float64)) for positions in given]  # real ones take another way
    call(positions=given[0])
    for kind in (Add, Embed, Rotate):
        monkeypatch.delattr(kind, "check")
    for positions, expected in zip(given, wanted, strict=True):
        other = np.repeat(positions, 2, axis=-1)[..., ::2]
        other.flags.writeable = False
        for one in (positions, other):
            before = one.copy()
            cases.assert_same_bits(call(positions=one), expected)
            assert (one == before).all()


@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 5)], ids=str)
def test_positions_of_several_axes(shape):
    for seed in range(3):
        positions = drawn(shape, seed)
        for _ in range(2):
            got = fastpe.apply_rotary(queries(), queries(seed=1), MROPE, positions=positions)
            wanted = fastpe.apply_rotary(queries(), queries(seed=1), MROPE, positions=positions.astype(np.float64))
            for one, expected in zip(got, wanted, strict=True):
                cases.assert_same_bits(one, expected)
    assert known(Rotate) == 1


@pytest.mark.parametrize("count", [3, 200])
@pytest.mark.parametrize("bad", [2**31, -(2**31) - 1, 2**63 - 1, -(2**63)])
def test_a_known_call_refuses_what_is_no_position(bad, count):
    x, positions = fresh((1, count, 4)), np.arange(count)
    fastpe.add_encoding(x.copy(), positions=positions)
    for place in (0, count - 1):
        given, before = positions.copy(), x.copy()
        given[place] = bad
        with pytest.raises(ValueError, match=rf"positions must be finite and lie in .* got {bad} at index"):
            fastpe.add_encoding(x, positions=given)
        cases.assert_same_bits(x, before)
    for end in (2**31 - 1, -(2**31)):
        got, wanted = (fastpe.add_encoding(x.copy(), positions=np.full(count, end, kind)) for kind in (np.int64, np.float64))
        cases.assert_same_bits(got, wanted)


def test_other_ways_of_giving_positions_are_checked_each_time():
    x = fresh((1, 3, 4))
    wanted = fastpe.add_encoding(x.copy(), offset=5)
    for _ in range(3):
        for positions in ([5, 6, 7], np.array([5, 6, 7], np.int32), np.array([5, 6, 7], np.uint64), np.array([5.0, 6.0, 7.0])):
            cases.assert_same_bits(fastpe.add_encoding(x.copy(), positions=positions), wanted)
        for more in ({"offset": 1}, {"offset": np.array([0])}, {"cu_seqlens": [0, 3]}):
            with pytest.raises(ValueError, match="contradict"):
                fastpe.add_encoding(x, positions=np.array([5, 6, 7]), **more)
        for positions in (np.arange(4), np.arange(6).reshape(2, 3)):
            with pytest.raises(ValueError, match="positions must have shape"):
                fastpe.add_encoding(x, positions=positions)


def test_many_positions_are_not_kept():
    for count, kept in ((MOST_POSITIONS, 1), (MOST_POSITIONS + 1, 0)):
        x = np.zeros((1, count, 2), np.float32)
        wanted = fastpe.add_encoding(x.copy(), offset=-9)
        calls = known(Add)
        for _ in range(2):
            cases.assert_same_bits(fastpe.add_encoding(x.copy(), positions=np.arange(count) - 9), wanted)
        assert known(Add) - calls == kept


def test_threads_have_positions_of_their_own():
    given = [drawn((2, 5), seed) for seed in range(4)]
    wanted = [CALLS["both"](positions=positions.astype(np.float64)) for positions in given]
    wrong = []

    def work(number):
        for _ in range(200):
            if CALLS["both"](positions=given[number]).tobytes() != wanted[number].tobytes():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
