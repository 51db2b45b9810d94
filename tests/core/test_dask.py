"""Dask computes chunks anew, or keeps them: none may be written."""

from __future__ import annotations

import numpy as np
import pytest

import fastpe

da = pytest.importorskip("dask.array")


def zeros():
    return da.from_array(np.zeros((2, 12, 8), np.float32), chunks=(1, 5, 8))


def encoded(chunk, block_info):
    first_row = block_info[0]["array-location"][-2][0]
    return fastpe.add_encoding(chunk, offset=first_row, out=np.empty_like(chunk))


def test_chunks_that_are_new_have_the_bits_of_the_whole_at_each_compute():
    x = zeros()
    expected = fastpe.add_encoding(np.zeros(x.shape, x.dtype))
    y = x.map_blocks(encoded, dtype=x.dtype)
    for _ in range(3):
        assert np.array_equal(y.compute(scheduler="threads"), expected)
    assert not x.compute().any()


def test_what_is_written_in_place_differs_at_each_compute():
    """Why the documentation says so."""
    y = zeros().map_blocks(fastpe.add_encoding, dtype=np.float32)
    first = y.compute(scheduler="sync").copy()
    assert not np.array_equal(first, y.compute(scheduler="sync"))


@pytest.mark.parametrize(
    "call",
    [
        fastpe.add_encoding,
        fastpe.apply_rotary,
        fastpe.rerotate,
        lambda x: fastpe.add_encoding(np.zeros(x.shape, x.dtype), out=x),
        lambda x: fastpe.encode(np.zeros(2), 8, like=x),
    ],
)
def test_dask_arrays_are_refused_with_the_way_round(call):
    with pytest.raises(TypeError, match=r"got dask.array.core.Array. .* none may be written in place: let x.map_blocks call"):
        call(zeros())
