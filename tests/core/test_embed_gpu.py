"""embed and learned positions on a GPU: the same bits, and what cannot be checked without reading back."""

from __future__ import annotations

import cases
import numpy as np
import pytest
from embed_cases import ROWS, SCALES, hard_to_round, some_ids, words

import fastpe
from fastpe import Learned, Sinusoidal


def cut(encoding, width):
    return Learned(encoding.table[:, :width].copy(), encoding.out_of_range) if isinstance(encoding, Learned) else encoding


def on(platform, value):
    if isinstance(value, Learned):
        return Learned(platform.array(value.table), value.out_of_range)
    if isinstance(value, tuple):
        return tuple(on(platform, part) for part in value)
    return platform.array(value) if isinstance(value, np.ndarray) else value


COMBINATIONS = [
    ("float32", "float32", Sinusoidal(), {}),
    ("bfloat16", "bfloat16", Sinusoidal(layout="concatenated"), {}),
    ("float16", "float32", Learned(words("bfloat16", 32)), {}),
    ("float64", "bfloat16", Sinusoidal(), {"token_types": (some_ids(3, 11, rows=2), words("float16", 32, rows=2))}),
    ("float32", "float64", Sinusoidal(), {"token_types": (some_ids(3, 11, rows=2), words("float32", 32, rows=2))}),
    ("float64", "float16", None, {}),
    ("int8", "float16", Sinusoidal(), {"row_scale": SCALES}),
    ("uint8", "float32", Learned(words("float32", 32), "clip"), {"row_scale": (SCALES, np.full(ROWS, 7)), "offset": 35}),
    ("bfloat16", "float32", None, {"mask": np.arange(11) > 3}),
    ("float32", "bfloat16", Sinusoidal(), {"padding_idx": 3, "offset": 4}),
]


@pytest.mark.parametrize(("dtype", "out", "encoding", "given"), COMBINATIONS)
def test_a_gpu_has_the_same_bits(gpu, dtype, out, encoding, given):
    for width in (32, 7):
        options = dict(given)
        if "token_types" in options:
            options["token_types"] = options["token_types"][0], options["token_types"][1][:, :width].copy()
        table, ids = words(dtype, width), some_ids(3, 11)
        here = fastpe.embed(ids, table, cut(encoding, width), scale=1.5, dtype=out, **options)
        there = fastpe.embed(
            gpu.array(ids),
            gpu.array(table),
            on(gpu, cut(encoding, width)),
            scale=1.5,
            dtype=out,
            **{name: on(gpu, value) for name, value in options.items()},
        )
        cases.assert_same_bits(gpu.host(there), here)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_gpu_rounds_float64_to_sixteen_bits_once(gpu, dtype):
    table = hard_to_round(dtype)
    there = fastpe.embed(gpu.array(np.array([0])), gpu.array(table), dtype=dtype)
    cases.assert_same_bits(gpu.host(there), fastpe.embed([0], table, dtype=dtype))


@pytest.mark.parametrize("view", cases.VIEWS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_adds_learned_positions_to_any_view(gpu, dtype, view):
    rows = words("float32", 16, seed=2)
    mask = np.arange(10) % 3 != 1
    x = cases.VIEWS[view](cases.random((3, 10, 16), dtype))
    here, there = x.copy(), gpu.array(x)
    fastpe.add_encoding(here, Learned(rows), mask=mask, input_scale=2.0)
    fastpe.add_encoding(there, Learned(gpu.array(rows)), mask=gpu.array(mask), input_scale=2.0)
    cases.assert_same_bits(gpu.host(there), here)


def test_a_gpu_reads_nothing_outside_a_table(gpu):
    """What is in no table becomes NaN; asked to validate, it raises and writes nothing."""
    table, ids = gpu.array(words(width=16)), gpu.array(np.array([[0, -1, 39, 40, 2**62]]))
    nan = np.isnan(gpu.host(fastpe.embed(ids, table, Sinusoidal()))).all(axis=(0, 2))
    assert nan.tolist() == [False, True, False, True, True]
    out = gpu.array(np.zeros((1, 5, 16), np.float32))
    with pytest.raises(IndexError, match=r"ids must lie in \[0, 40\), got -1 at index \(0, 1\)"):
        fastpe.embed(ids, table, out=out, validate=True)
    assert not gpu.host(out).any()
    short = Learned(gpu.array(words(rows=3, width=16)))
    good = gpu.array(np.zeros((1, 5), int))
    nan = np.isnan(gpu.host(fastpe.embed(good, table, short, positions=gpu.array(np.array([0, 3, -1, 2, 1]))))).all(axis=(0, 2))
    assert nan.tolist() == [False, True, True, False, False]
    with pytest.raises(IndexError, match=r"the table's \[0, 3\), got 3"):
        fastpe.embed(good, table, short)
    kinds = gpu.array(np.array([[0, 1, 2, -1, 0]]))
    nan = np.isnan(gpu.host(fastpe.embed(good, table, token_types=(kinds, gpu.array(words(rows=2, width=16)))))).all(
        axis=(0, 2)
    )
    assert nan.tolist() == [False, False, True, True, False]
    with pytest.raises(TypeError, match="ids must be of the table's library and on its device"):
        fastpe.embed(np.zeros((1, 5), int), table)
    with pytest.raises(TypeError, match="a Learned table must be of the array's library"):
        fastpe.embed(good, table, Learned(words(width=16)))
