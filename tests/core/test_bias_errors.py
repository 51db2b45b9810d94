"""Biases and add_bias: what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import fastpe

SCORES = np.zeros((2, 3, 4, 5), np.float32)
ALIBI = fastpe.ALiBi(3)
BAD_CALLS = {
    "no bias": (TypeError, "bias must be a bias", (SCORES, 3), {}),
    "heads": (ValueError, r"8 heads in their third axis from the end.*got shape \(2, 3, 4, 5\)", (SCORES, fastpe.ALiBi(8)), {}),
    "axes": (ValueError, "at least 3 axes", (SCORES[0, 0], ALIBI), {}),
    "integers": (TypeError, "scores must be a floating-point array", (SCORES.astype(int), ALIBI), {}),
    "both": (ValueError, "q_offset and q_positions contradict", (SCORES, ALIBI), {"q_offset": 0, "q_positions": np.arange(4)}),
    "q shape": (ValueError, r"q_positions must have shape \(4,\) or \(2, 4\)", (SCORES, ALIBI), {"q_positions": np.arange(5)}),
    "k shape": (
        ValueError,
        r"k_positions must have shape \(5,\) or \(2, 5\)",
        (SCORES, ALIBI),
        {"k_positions": np.zeros((3, 5), int)},
    ),
    "real": (TypeError, "q_positions must be integers, got float64", (SCORES, ALIBI), {"q_positions": np.arange(4.0)}),
    "far": (
        ValueError,
        r"k_positions must lie in .*got 2147483648 at index \(1,\)",
        (SCORES, ALIBI),
        {"k_positions": [0, 2**31, 0, 0, 0]},
    ),
    "far offset": (ValueError, "every position must lie in", (SCORES, ALIBI), {"q_offset": 2**31 - 2}),
    "far offsets": (ValueError, "q_offset must lie in", (SCORES, ALIBI), {"q_offset": [0, 2**31 - 2]}),
    "offset": (TypeError, "q_offset must be an integer", (SCORES, ALIBI), {"q_offset": 1.5}),
    "offsets": (ValueError, r"q_offset must have shape \(2,\)", (SCORES, ALIBI), {"q_offset": [1, 2, 3]}),
    "no batch": (ValueError, "no batch axis", (SCORES[0], ALIBI), {"q_offset": [1, 2, 3]}),
    "causal": (TypeError, "causal must be True or False", (SCORES, ALIBI), {"causal": 1}),
    "scale": (ValueError, "input_scale must be finite", (SCORES, ALIBI), {"input_scale": float("nan")}),
    "large scale": (ValueError, "finite in float32", (SCORES, ALIBI), {"input_scale": 1e300}),
    "out shape": (ValueError, "out must have shape", (SCORES, ALIBI), {"out": np.zeros((2, 3, 4, 6), np.float32)}),
    "out dtype": (TypeError, "out must have dtype float32", (SCORES, ALIBI), {"out": np.zeros(SCORES.shape)}),
    "more queries": (
        ValueError,
        "more queries than k_positions",
        (np.zeros((1, 3, 6, 5), np.float32), ALIBI),
        {"k_positions": np.arange(5)},
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors(name):
    kind, text, arguments, given = BAD_CALLS[name]
    with pytest.raises(kind, match=f"add_bias: .*{text}"):
        fastpe.add_bias(*arguments, **given)
    assert not SCORES.any()


def test_memory_that_cannot_be_written():
    frozen = np.zeros((2, 3, 4, 5), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="scores must be writable"):
        fastpe.add_bias(frozen, ALIBI)
    with pytest.raises(ValueError, match="must not hold one element twice"):
        fastpe.add_bias(np.lib.stride_tricks.as_strided(np.zeros((3, 4, 5)), (2, 3, 4, 5), (0, 160, 40, 8)), ALIBI)
    whole = np.zeros(200, np.float32)
    with pytest.raises(ValueError, match="out must not partly overlap"):
        fastpe.add_bias(whole[:120].reshape(2, 3, 4, 5), ALIBI, out=whole[8:128].reshape(2, 3, 4, 5))
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.float16), (0, 3, 1, 2**31 + 1), (2, 2, 2, 2))
    with pytest.raises(ValueError, match="Tq and Tk must be at most"):
        fastpe.add_bias(huge, ALIBI)
    table = np.zeros((32, 3), np.float32)
    with pytest.raises(ValueError, match="must lie apart from the bias's table"):
        fastpe.add_bias(table.reshape(1, 3, 4, 8), fastpe.T5Bias(table))


BAD_BIASES = {
    "heads": (ValueError, "ALiBi: heads must be at least 1", lambda: fastpe.ALiBi(0)),
    "max_bias": (ValueError, "ALiBi: max_bias must be greater than 0", lambda: fastpe.ALiBi(2, -1)),
    "infinite": (ValueError, "ALiBi: max_bias must be finite", lambda: fastpe.ALiBi(2, float("inf"))),
    "slopes": (ValueError, "ALiBi: slopes must be one a head", lambda: fastpe.ALiBi(2, slopes=[1.0])),
    "odd": (ValueError, "T5Bias: .*even number of buckets.*got 31 rows", lambda: fastpe.T5Bias(np.zeros((31, 2)))),
    "one axis": (ValueError, r"T5Bias: table must have shape \(buckets, H\)", lambda: fastpe.T5Bias(np.zeros(32))),
    "int table": (TypeError, "T5Bias: table must be a floating-point", lambda: fastpe.T5Bias(np.zeros((32, 2), int))),
    "list": (TypeError, "T5Bias: table must be a NumPy or CuPy array", lambda: fastpe.T5Bias([[0.0]])),
    "nan": (ValueError, "T5Bias: table must be finite", lambda: fastpe.T5Bias(np.full((32, 2), np.nan))),
    "few": (ValueError, "T5Bias: the table must have at least 4 buckets", lambda: fastpe.T5Bias(np.zeros((2, 2)))),
    "distance": (ValueError, "T5Bias: max_distance must be greater than 8", lambda: fastpe.T5Bias(np.zeros((32, 2)), True, 8)),
    "rule": (ValueError, "LogBuckets: rule must be one of", lambda: fastpe.LogBuckets(np.zeros((64, 2)), "bert")),
    "odd log": (ValueError, "LogBuckets: the table must have 2 bucket_size rows", lambda: fastpe.LogBuckets(np.zeros((63, 2)))),
    "near": (
        ValueError,
        "LogBuckets: max_distance must be greater",
        lambda: fastpe.LogBuckets(np.zeros((64, 2)), max_distance=16),
    ),
    "even": (
        ValueError,
        r"RelativeTable: the table must have 2 R \+ 1 rows, got 4 rows",
        lambda: fastpe.RelativeTable(np.zeros((4, 2))),
    ),
    "no class": (
        ValueError,
        "RelativeTable: the table must have .*, and three for the class token, got 3 rows",
        lambda: fastpe.RelativeTable(np.zeros((3, 2)), True),
    ),
    "class": (TypeError, "RelativeTable: class_token must be True or False", lambda: fastpe.RelativeTable(np.zeros((5, 2)), 3)),
    "kind": (ValueError, "Kerple: kind must be one of", lambda: fastpe.Kerple([1.0], [1.0], "linear")),
    "unlike": (ValueError, "Kerple: p and a must be as many", lambda: fastpe.Kerple([1.0], [1.0, 2.0])),
    "no number": (ValueError, "Kerple: p must be finite", lambda: fastpe.Kerple([np.inf], [1.0])),
    "one number": (TypeError, r"Kerple: p must be \(H,\) numbers", lambda: fastpe.Kerple(1.0, [1.0])),
    "odd width": (ValueError, "Sandwich: width must be even", lambda: fastpe.Sandwich(2, 7)),
    "layers": (
        ValueError,
        "FIRE: shapes must be w1",
        lambda: fastpe.FIRE(np.zeros((8, 1)), np.zeros(8), np.zeros((8, 2)), np.zeros(2)),
    ),
    "c": (
        ValueError,
        "FIRE: c must be finite",
        lambda: fastpe.FIRE(np.zeros((8, 1)), np.zeros(8), np.zeros((2, 8)), np.zeros(2), float("nan")),
    ),
}


@pytest.mark.parametrize("name", BAD_BIASES)
def test_bad_biases(name):
    kind, text, make = BAD_BIASES[name]
    with pytest.raises(kind, match=text):
        make()


def test_biases_are_values():
    assert fastpe.ALiBi(8) == fastpe.ALiBi(8, 8.0)
    assert hash(fastpe.Kerple([1, 2], [3, 4])) == hash(fastpe.Kerple(np.array([1.0, 2.0]), (3.0, 4.0)))
    with pytest.raises(AttributeError):
        fastpe.ALiBi(8).heads = 4
