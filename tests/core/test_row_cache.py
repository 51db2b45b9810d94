"""The row cache: rows of sequences that start at 0, made once and added by later calls."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import cases
import numpy as np
import pytest
from call_cache_cases import fresh

import fastpe
from fastpe import Sinusoidal
from fastpe._arrays.dtypes import ELEMENT_TYPES
from fastpe._backends.host import row_cache

pytestmark = pytest.mark.usefixtures("nothing_known")


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
    made = row_cache.of(plan, ELEMENT_TYPES[dtype].arithmetic)._rows
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
    caches = [row_cache.of(Sinusoidal().plan(width), "float32") for width in range(256, 256 + 8)]
    assert [cache for cache in caches if cache.nbytes] == list(row_cache._filled) == caches[-2:], (
        "the last ones keep their rows"
    )
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
