"""What a call on a GPU takes of the processor before the driver is asked: microseconds, with a launcher that does nothing.

``PYTHONPATH=tests/helpers:tests/ptx python -m bench.cuda_launches``; no GPU is needed: arrays and tensors are stand-ins with the attributes
of real ones. What CuPy's launch itself takes is not in it. A loaded machine takes longer for all of it, so each is also given as a ratio to
a call on a NumPy array of one row.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simulated_cupy

import fastpe

ROUNDS, CALLS = 15, 400


def microseconds(call: Callable[[], Any]) -> float:
    """The median of some rounds of calls."""
    rounds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        rounds.append((time.perf_counter() - begin) / CALLS * 1e6)
    return statistics.median(rounds)


class ndarray(simulated_cupy.ndarray):
    """An array of the stand-in, whose attributes are there and not computed."""

    shape = strides = dtype = ndim = size = data = device = flags = None  # not the properties of the stand-in

    def __init__(self, array: Any) -> None:
        self.array = array
        for name in ("shape", "strides", "dtype", "ndim", "size", "data", "device", "flags"):
            setattr(self, name, getattr(array, name))


ndarray.__module__ = "cupy"


def _zeros(shape: tuple[int, ...], kind: Any = np.float32) -> Any:
    return ndarray(simulated_cupy.asarray(np.zeros(shape, kind)))


def _calls_on_arrays() -> dict[str, Callable[[], Any]]:
    import cupy

    x, q, k, table = (_zeros(shape) for shape in ((1, 1, 64), (8, 4, 1, 64), (8, 2, 1, 64), (9, 64)))
    positions, ids, made = _zeros((8, 1), np.int64), _zeros((8, 1), np.int32), _zeros((8, 1, 64))
    cupy.empty = lambda shape, dtype: made
    rope = fastpe.Rotary()
    return {
        "arrays: add_encoding, one row": lambda: fastpe.add_encoding(x, offset=7),
        "arrays: apply_rotary, q and k, positions": lambda: fastpe.apply_rotary(q, k, rope, positions=positions),
        "arrays: embed, int32 ids": lambda: fastpe.embed(ids, table, "sinusoidal"),
    }


def _calls_on_tensors() -> dict[str, Callable[[], Any]]:
    """As on a CUDA device: tensors that say so, over memory of the stand-in."""
    import torch

    from fastpe.torch import _repeat

    class OnGPU(torch.Tensor):
        device = property(lambda self: torch.device("cuda", 0))  # type: ignore[assignment]
        is_cpu = property(lambda self: False)  # type: ignore[assignment]
        is_cuda = property(lambda self: True)  # type: ignore[assignment]

        __torch_function__ = torch._C._disabled_torch_function_impl  # which would take longer than all the rest

        def get_device(self) -> int:
            return 0

    _repeat._PLAIN.add(OnGPU)
    _repeat._raw_stream = lambda device: 0
    torch.cuda.current_stream = lambda device=None: type("Stream", (), {"cuda_stream": 0})  # type: ignore[assignment, return-value]
    x, q, k = (torch.zeros(shape).as_subclass(OnGPU) for shape in ((1, 1, 64), (8, 4, 1, 64), (8, 2, 1, 64)))
    positions = torch.zeros((8, 1), dtype=torch.int64).as_subclass(OnGPU)
    rope = fastpe.Rotary()
    return {
        "tensors: add_encoding, one row": lambda: fastpe.add_encoding(x, offset=7),
        "tensors: apply_rotary, q and k, positions": lambda: fastpe.apply_rotary(q, k, rope, positions=positions),
    }


def measure(tensors: bool = True) -> dict[str, float]:
    """Microseconds of every kind of call, and of the one on a NumPy array."""
    row = np.zeros((1, 1, 64), np.float32)
    found = {"numpy: add_encoding, one row": microseconds(lambda: fastpe.add_encoding(row, offset=7))}
    with tempfile.TemporaryDirectory() as folder, simulated_cupy.installed(Path(folder)):

        def nothing(grid: Any, block: Any, arguments: Any, stream: Any = None) -> None:
            """In place of CuPy's launch."""

        nothing.ptr = 0  # type: ignore[attr-defined]
        load, get_function = simulated_cupy.LoadedModule.load, simulated_cupy.LoadedModule.get_function
        simulated_cupy.LoadedModule.get_function = lambda self, entry: nothing  # type: ignore[method-assign]
        try:
            calls = {**_calls_on_arrays(), **(_calls_on_tensors() if tensors else {})}
            for name, call in calls.items():
                call()
                found[name] = microseconds(call)
        finally:
            simulated_cupy.LoadedModule.load, simulated_cupy.LoadedModule.get_function = load, get_function  # type: ignore[method-assign]
    return found


def main() -> None:
    found = measure()
    whole = next(iter(found.values()))
    print("call                                          us   calls on a NumPy array")
    for name, value in found.items():
        print(f"{name:42} {value:5.1f} {value / whole:8.1f}")


if __name__ == "__main__":
    main()
