"""Stores that go past the caches, of results larger than they are."""

from __future__ import annotations

import cases
import numpy as np
import pytest
from call_cache_cases import fresh

import fastpe
from fastpe import Sinusoidal
from fastpe._backends.host import chunking

pytestmark = pytest.mark.usefixtures("nothing_known")


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
        buffer = np.zeros((3 * 11 * (width + padding) + shift + 8), cases.DTYPES[dtype])
        whole = buffer[shift : shift + 3 * 11 * (width + padding)].reshape(3, 11, width + padding)
        for given, want in zip(({}, {"mask": mask}), expected, strict=True):
            buffer.fill(9)
            fastpe.add_encoding(x, encoding, out=whole[..., :width], **given)
            cases.assert_same_bits(np.ascontiguousarray(whole[..., :width]), want)
            assert (whole[..., width:] == 9).all()
            assert (buffer[:shift] == 9).all()
            assert (buffer[shift + whole.size :] == 9).all()
        buffer.fill(9)
        fastpe.encode(positions, width, encoding, out=whole[1, :, :width])
        cases.assert_same_bits(np.ascontiguousarray(whole[1, :, :width]), table)
        assert (whole[[0, 2]] == 9).all()


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_no_streaming_to_elements_that_are_not_aligned(monkeypatch, dtype):
    """A streaming store to an address that is no vector's own ends the process; the form of the call does not tell."""
    monkeypatch.setattr(chunking, "cache_bytes", lambda: 0)
    x = fresh((40, 96), dtype)
    buffer = np.zeros(x.nbytes + 64, np.uint8)
    expected = fastpe.add_encoding(x.copy())
    for shift in (0, 1, 0, 1):
        out = np.ndarray(x.shape, x.dtype, buffer, shift)
        cases.assert_same_bits(fastpe.add_encoding(x, out=out), expected)
    rows = np.ndarray(x.shape, x.dtype, np.zeros(40 * (x.nbytes // 40 + 1), np.uint8), 0, (x.nbytes // 40 + 1, x.itemsize))
    cases.assert_same_bits(fastpe.add_encoding(x, out=rows).copy(), expected)
