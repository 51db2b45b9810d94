"""``add_bias`` and the values of biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastpe
from fastpe import FIRE, ALiBi, Kerple, LogBuckets, Sandwich, T5Bias

from .inputs import DTYPES, VIEWS, Given, Inputs
from .recording import NUMPY, Recorder, libraries


def fire(r: Inputs, length: float = 512.0, grad: bool = False) -> Any:
    """A FIRE bias of four heads."""
    return FIRE(r(8, 1, grad=grad), r(8, grad=grad), r(4, 8, grad=grad), r(4, grad=grad), length=length)


BIASES: dict[str, Callable[[Inputs], Any]] = {
    "alibi": lambda r: ALiBi(4),
    "alibi_symmetric": lambda r: ALiBi(4, max_bias=4, symmetric=True),
    "alibi_slopes": lambda r: ALiBi(4, slopes=(0.5, -0.25, 0.1, 3.0)),
    "t5": lambda r: T5Bias(r(32, 4)),
    "t5_decoder": lambda r: T5Bias(r(20, 4, dtype="float16"), bidirectional=False, max_distance=40),
    "deberta": lambda r: LogBuckets(r(16, 4), max_distance=30),
    "wavlm": lambda r: LogBuckets(r(320, 4, dtype="float64"), "wavlm"),
    "kerple": lambda r: Kerple([1.0, 0.5, 0.001, 2.0], [0.5, 0.1, 1.0, -1.0]),
    "kerple_power": lambda r: Kerple([1.0, 0.5, 0.001, 3.0], [0.5, 0.1, 1.0, -1.0], kind="power", symmetric=True),
    "sandwich": lambda r: Sandwich(4, 32),
    "fire": fire,
    "fire_beyond": lambda r: fire(r, 9.0),
}
# Those that NumPy or PyTorch computes with functions of their own.
LIBM = ("kerple", "kerple_power", "sandwich", "fire", "fire_beyond")
STANDING: dict[str, Callable[[Inputs], Given]] = {
    "offset": lambda r: {"q_offset": 100},
    "offset_B": lambda r: {"q_offset": r.ints(0, 50, 2)},
    "q_positions_T": lambda r: {"q_positions": r.ints(-20, 50, 9)},
    "q_positions_BT": lambda r: {"q_positions": r.ints(-20, 50, 2, 9), "causal": True},
    "k_positions_T": lambda r: {"k_positions": r.ints(-20, 50, 33)},
    "both_BT": lambda r: {"q_positions": r.ints(0, 50, 2, 9), "k_positions": r.ints(0, 50, 2, 33)},
    "offset_k_positions": lambda r: {"q_offset": 7, "k_positions": r.ints(0, 50, 2, 33), "causal": True},
    "far": lambda r: {"q_positions": r.ints(0, 3_000_000, 9), "k_positions": r.ints(0, 3_000_000, 33)},
    "input_scale": lambda r: {"input_scale": 0.125, "causal": True},
}


def add_bias(record: Recorder) -> None:
    """Biases, types, layouts and positions of queries and keys."""
    add = fastpe.add_bias
    for name, make in BIASES.items():
        libm = name in LIBM
        for dtype in DTYPES:
            for causal in (False, True):
                run = lambda r: add(r(2, 4, 29, 33, dtype=dtype), make(r), causal=causal, input_scale=1.5)
                record.case(f"bias/{name}/{dtype}{'/causal' if causal else ''}", run, libm=libm)
            record.case(f"bias/{name}/{dtype}/more_queries", lambda r: add(r(4, 33, 9, dtype=dtype), make(r)), libm=libm)
        for mode, standing in STANDING.items():
            record.case(f"bias/{name}/{mode}", lambda r: add(r(2, 4, 9, 33), make(r), **standing(r)), libm=libm)
        for view in VIEWS:
            record.case(f"bias/{name}/{view}", lambda r: add(r(2, 4, 9, 33, view=view), make(r)), libraries(view), libm)
        record.case(
            f"bias/{name}/out",
            lambda r: add(r(2, 4, 9, 33), make(r), out=r(2, 4, 9, 33, view="sliced"), causal=True),
            libm=libm,
        )
        record.case(f"bias/{name}/large", lambda r: add(r(1, 4, 300, 500), make(r), causal=True), libm=libm)
        values = lambda r: (make(r).values(r.rng.integers(-700, 700, (9, 40)), np.arange(9)[:, None]), repr(make(r).reach))
        record.case(f"bias/{name}/values", values, NUMPY, libm)

        def decode(r: Inputs) -> Any:
            bias = make(r)
            return [add(r(2, 4, 1, n), bias, causal=True) for n in range(20, 26)] + [
                add(r(4, 3, 64), bias, q_offset=n) for n in (5, 6, 7)
            ]

        record.case(f"bias/{name}/decode", decode, libm=libm)
    for heads in (1, 6, 12):
        record.case(f"bias/alibi_{heads}_heads", lambda r: add(r(2, heads, 9, 33), ALiBi(heads)))
