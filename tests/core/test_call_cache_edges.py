"""Known calls at the edges of what they may skip: arrays that touch, offsets of other types, positions at the ends."""

from __future__ import annotations

import cases
import numpy as np
import pytest
from call_cache_cases import fresh

import fastpe
from fastpe import Sinusoidal
from fastpe._core import call_cache
from fastpe._core.operations import Add, Rotate

pytestmark = pytest.mark.usefixtures("nothing_known")

CALLS = {
    "add": lambda x, y, offset: fastpe.add_encoding(x, offset=offset, out=y),
    "rotate": lambda x, y, offset: fastpe.apply_rotary(x, y, offset=offset),
}


@pytest.mark.parametrize(("shape", "offset"), [((2, 3, 4), 7), ((6, 1, 4), np.arange(6))], ids=["one", "each"])
@pytest.mark.parametrize("name", CALLS)
def test_arrays_that_touch(name, shape, offset, monkeypatch):
    """Side by side they are taken at once; one shared byte is noticed."""
    size, call = 4 * int(np.prod(shape)), CALLS[name]
    buffer = np.zeros(3 * size, np.uint8)

    def at(start):
        return np.ndarray(shape, np.float32, buffer, start)

    call(at(size), np.zeros(shape, np.float32), offset)
    before = buffer.copy()
    for start in (1, 2 * size - 1):
        with pytest.raises(ValueError, match=r"overlap"):
            call(at(size), at(start), offset)
    assert (buffer == before).all()
    monkeypatch.delattr({"add": Add, "rotate": Rotate}[name], "check")
    for start in (0, 2 * size):
        call(at(size), at(start), offset)


def test_a_result_over_the_ids():
    """The ids would change while they are read."""
    buffer, table = np.zeros(24), fresh((5, 4), "float64")
    ids, before = buffer.view(np.int64)[8:10], buffer.copy()
    for _ in range(2):
        fastpe.embed(ids, table, out=np.empty((2, 4)))
        for start in (1, 5, 8, 9):
            with pytest.raises(ValueError, match="the result must lie apart from"):
                fastpe.embed(ids, table, out=buffer[start : start + 8].reshape(2, 4))
    assert (buffer == before).all()
    for start in (0, 10):
        fastpe.embed(ids, table, out=buffer[start : start + 8].reshape(2, 4))


def test_a_result_over_the_table():
    """Rows would be written before they are read."""
    buffer, ids = np.arange(36.0), np.array([4, 0])
    table, before = buffer[8:28].reshape(5, 4), buffer.copy()
    for _ in range(2):
        fastpe.embed(ids, table, out=np.empty((2, 4)))
        for start in (1, 8, 15, 20, 27):
            with pytest.raises(ValueError, match="the result must lie apart from"):
                fastpe.embed(ids, table, out=buffer[start : start + 8].reshape(2, 4))
    assert (buffer == before).all()
    for start in (0, 28):
        out = buffer[start : start + 8].reshape(2, 4)
        assert (fastpe.embed(ids, table, out=out) == table[ids]).all()


INTEGERS = [np.int8, np.int16, np.int32, np.uint8, np.uint32, np.uint64, np.int64]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_offsets_of_any_integer_type(dtype):
    """A prepared call shifts them by 32 bits, which only int64 has."""
    offsets, table, ids = np.array([0, 5, 100], dtype), fresh((9, 12)), np.array([[1], [8], [0]])
    positions = offsets.astype(np.int64)[:, None]
    for seed in range(3):
        x = fresh((3, 1, 12), seed=seed)
        cases.assert_same_bits(
            fastpe.add_encoding(x.copy(), offset=offsets), fastpe.add_encoding(x.copy(), positions=positions)
        )
        for encoding in ("sinusoidal", Sinusoidal(layout="concatenated")):
            got = fastpe.embed(ids, table, encoding, offset=offsets)
            cases.assert_same_bits(got, fastpe.embed(ids, table, encoding, positions=positions))
        got = fastpe.apply_rotary(x.copy(), None, offset=offsets)
        cases.assert_same_bits(got, fastpe.apply_rotary(x.copy(), None, positions=positions))


def test_several_rows_with_an_offset_for_each_sequence():
    """Only single rows have a place for offsets in a prepared call."""
    offsets, table, ids = np.array([40, 5]), fresh((9, 12)), np.array([[1, 8, 0], [2, 2, 7]])
    positions = offsets[:, None] + np.arange(3)
    for seed in range(3):
        x = fresh((2, 3, 12), seed=seed)
        cases.assert_same_bits(
            fastpe.add_encoding(x.copy(), offset=offsets), fastpe.add_encoding(x.copy(), positions=positions)
        )
        got = fastpe.embed(ids, table, Sinusoidal(), offset=offsets)
        cases.assert_same_bits(got, fastpe.embed(ids, table, Sinusoidal(), positions=positions))
        got = fastpe.apply_rotary(x.copy(), None, offset=offsets)
        cases.assert_same_bits(got, fastpe.apply_rotary(x.copy(), None, positions=positions))


def test_where_an_array_lies():
    """NumPy's struct says what ``ndarray.ctypes`` says: of views, of memory that may not be written, and of arrays without elements."""
    x = np.arange(24.0).reshape(2, 3, 4)
    read_only = np.broadcast_to(x[:, :1], x.shape)
    views = x, x[1:, ::-1, ::2], x.T, read_only, x[:0], x[1, 2, 3:]
    for array in (*views, np.array(1.0), np.frombuffer(b"abcdefgh", np.float16)):
        assert call_cache.host_address(array) == array.ctypes.data
