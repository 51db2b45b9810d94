"""Rotating queries and keys: fastpe, and the usual expression in torch and NumPy. Every benchmark checks its result first, then times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contenders import DTYPES, as_tensor, is_small, random_values, settle_threads, torch_if_installed

import fastpe
from fastpe._tools.benchmark.expressions import usual_rotation as usual

pytestmark = pytest.mark.timeout(1800)

# (B, heads of q, heads of k, T, D): a prefill, and one token of 32 sequences, each at its own position.
SHAPES = {"prefill": (1, 32, 8, 8192, 128), "decode": (32, 32, 8, 1, 128)}
SMALL = {"prefill": (1, 4, 2, 16, 32), "decode": (3, 4, 2, 1, 32)}
LIBRARIES = ("fastpe", "torch", "numpy")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", list(SHAPES))
@pytest.mark.parametrize("library", LIBRARIES)
def test_rotate(benchmark: Any, library: str, kind: str, dtype: str) -> None:
    settle_threads()
    if library == "numpy" and dtype != "float32":
        pytest.skip("NumPy's bfloat16 is emulated, a hundred times slower")
    batch, q_heads, k_heads, rows, width = (SMALL if is_small() else SHAPES)[kind]
    arrays = [random_values((batch, heads, rows, width), dtype) for heads in (q_heads, k_heads)]
    offset: Any = 0 if batch == 1 else np.arange(batch) * 7
    positions = np.add.outer(np.broadcast_to(offset, batch), np.arange(rows))
    angles = positions[:, None, :, None] * np.tile(fastpe.Rotary().frequencies(width)[0], 2)
    cos, sin = (function(angles).astype(DTYPES[dtype]) for function in (np.cos, np.sin))
    if library == "torch":
        torch = torch_if_installed()
        if torch is None:
            pytest.skip("torch is not installed")
        tensors, tables = [as_tensor(x) for x in arrays], (as_tensor(cos), as_tensor(sin))
        call = lambda: [usual(torch, x, *tables) for x in tensors]  # noqa: E731
    elif library == "numpy":
        call = lambda: [usual(np, x, cos, sin) for x in arrays]  # noqa: E731
    else:
        call = lambda: fastpe.apply_rotary(*arrays, offset=offset)  # noqa: E731
    expected = [usual(np, x.astype(np.float64), np.cos(angles), np.sin(angles)) for x in arrays]
    for found, wanted in zip(call(), expected, strict=True):
        as_array = np.asarray(found.float() if library == "torch" else found, np.float64)
        assert np.abs(as_array - wanted).max() < (1e-4 if dtype == "float32" else 0.1)
    benchmark.group = f"rotate {kind} {dtype}"
    benchmark.extra_info.update(operation="rotate", library=library, shape=[batch, q_heads, k_heads, rows, width], dtype=dtype)
    benchmark(call)
