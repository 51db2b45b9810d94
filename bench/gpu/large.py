"""What no interpreter can hold: more than 2^31 elements, more blocks than a grid takes. Chosen rows are compared with the CPU's."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import cases
import cupy
import numpy as np

import fastpe

from .records import Skipped, checking


def large(options: argparse.Namespace) -> None:
    for check in (_elements, _sequences, _rows, _scores, _table, _mask):
        with checking(check.__doc__ or check.__name__):
            check()
        cupy.get_default_memory_pool().free_all_blocks()


def _need(nbytes: int) -> None:
    free = cupy.cuda.Device(0).mem_info[0]
    if free < nbytes:
        raise Skipped(f"{free >> 30} GiB of {nbytes >> 30} GiB are free")


def _compare(array: Any, places: Iterable[Any], wanted: Any) -> None:
    for place in places:
        cases.assert_same_bits(cupy.asnumpy(array[place]), wanted(place))


def _elements() -> None:
    """2^31 elements and more of bfloat16 in one sequence"""
    bfloat16, width, rows = cases.DTYPES["bfloat16"], 1024, (1 << 21) + 24
    _need(2 * width * rows * 2)
    x = cupy.zeros((1, rows, width), bfloat16)
    fastpe.add_encoding(x, offset=7)
    places = (0, 1, rows // 2, (1 << 21) - 1, 1 << 21, rows - 1)
    _compare(x[0], places, lambda t: fastpe.add_encoding(np.zeros((1, width), bfloat16), offset=7 + t)[0])


def _sequences() -> None:
    """200 000 sequences, beyond a grid's 65535 in z"""
    places = (0, 65_534, 65_535, 65_536, 131_071, 199_999)
    x = cupy.zeros((200_000, 3, 64), np.float32)
    fastpe.add_encoding(x, offset=cupy.arange(200_000))
    _compare(x, places, lambda b: fastpe.encode(np.arange(b, b + 3), 64))
    q = cupy.ones((200_000, 2, 1, 32), np.float32)
    fastpe.apply_rotary(q, offset=cupy.arange(200_000))
    _compare(q, places, lambda b: fastpe.apply_rotary(np.ones((1, 2, 1, 32), np.float32), offset=b)[0])


def _rows() -> None:
    """rows beyond a grid's 65535 in y"""
    rows = 65_535 * 16 + 5
    q = cupy.ones((1, 1, rows, 16), np.float16)
    fastpe.apply_rotary(q, offset=11)
    places = (0, 65_535 * 16 - 1, 65_535 * 16, rows - 1)
    _compare(q[0, 0], places, lambda t: fastpe.apply_rotary(np.ones((1, 1, 1, 16), np.float16), offset=11 + t)[0, 0, 0])


def _scores() -> None:
    """scores of 2^31 elements and more, heads and sequences beyond 65535"""
    _need(5 << 31)
    scores = cupy.zeros((2200, 32, 1, 31_000), np.float32)
    fastpe.add_bias(scores, fastpe.ALiBi(32))
    wanted = fastpe.add_bias(np.zeros((1, 32, 1, 31_000), np.float32), fastpe.ALiBi(32))[0]
    _compare(scores, (0, 2047, 2048, 2199), lambda b: wanted)


def _table() -> None:
    """rows of a table beyond 4 GiB; ids that are none"""
    words = (1 << 22) + 9
    _need(4 * words * 1024)
    table = cupy.zeros((words, 1024), np.float16)
    table[-1] = 3
    host = cupy.asnumpy(fastpe.embed(cupy.asarray([[0, words - 1, words, -1]]), table))[0]
    assert (host[0] == 0).all()
    assert (host[1] == 3).all()
    assert np.isnan(host[2:]).all()


def _mask() -> None:
    """masks of 16 384 rows, which the kernels count, and of 200 001"""
    for rows in (16_384, 200_001):
        mask = np.random.default_rng(0).random((2, rows)) < 0.7
        x = cupy.zeros((2, rows, 2), np.float32)
        fastpe.add_encoding(x, mask=cupy.asarray(mask))
        cases.assert_same_bits(cupy.asnumpy(x), fastpe.add_encoding(np.zeros((2, rows, 2), np.float32), mask=mask))
