"""Embeddings like an earlier one: what is skipped, what is not, and that the results are the same."""

from __future__ import annotations

import cases
import numpy as np
import pytest
from call_cache_cases import fresh, known

import fastpe
from fastpe import Learned, Sinusoidal
from fastpe._core.operations import Add, Embed, Rotate
from fastpe.scaling import DynamicNTK

pytestmark = pytest.mark.usefixtures("nothing_known")


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
    shorter = fresh((20, 12))  # another layout: its own number of rows
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
    assert known(Embed) == 2  # by offset, and by positions


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
