"""Token embedding, scaled and encoded: fastpe, and gathering, scaling and adding in torch and NumPy. Checked first, then timed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contenders import as_tensor, is_small, random_values, settle_threads, torch_if_installed

import fastpe
from fastpe._tools.benchmark.expressions import numpy_embed, torch_embed

pytestmark = pytest.mark.timeout(1800)

# (B, T, rows of the table, D): a batch of training, and one token of 32 sequences.
SHAPES = {"batch": (32, 4096, 32_000, 1024), "decode": (32, 1, 32_000, 1024)}
SMALL = {"batch": (2, 9, 50, 32), "decode": (3, 1, 50, 32)}
SCALE = 32.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", list(SHAPES))
@pytest.mark.parametrize("library", ["fastpe", "torch", "numpy"])
def test_embed(benchmark: Any, library: str, kind: str, dtype: str) -> None:
    settle_threads()
    if library == "numpy" and dtype != "float32":
        pytest.skip("NumPy's bfloat16 is emulated, a hundred times slower")
    batch, rows, words, width = (SMALL if is_small() else SHAPES)[kind]
    table, ids = random_values((words, width), dtype), np.random.default_rng(0).integers(0, words, (batch, rows))
    out = np.zeros((batch, rows, width), table.dtype)
    added = fastpe.encode(np.arange(rows), width).astype(table.dtype)
    if library == "torch":
        torch = torch_if_installed()
        if torch is None:
            pytest.skip("torch is not installed")
        tensors = as_tensor(table), as_tensor(out), torch.from_numpy(ids), as_tensor(added)
        call = lambda: torch_embed(*tensors, SCALE)  # noqa: E731
    elif library == "numpy":
        call = lambda: numpy_embed(ids, table, out, added, SCALE)  # noqa: E731
    else:
        encoding = fastpe.Sinusoidal()
        call = lambda: fastpe.embed(ids, table, encoding, scale=SCALE, out=out)  # noqa: E731
    call()
    expected = table[ids[:2]].astype(np.float64) * SCALE + fastpe.encode(np.arange(rows), width, dtype="float64")
    relative = np.abs(out[:2].astype(np.float64) - expected) / (1 + np.abs(expected))
    assert relative.max() < (1e-6 if dtype == "float32" else 0.02)
    benchmark.group = f"embed {kind} {dtype}"
    benchmark.extra_info.update(operation="embed", library=library, shape=[batch, rows, words, width], dtype=dtype)
    benchmark(call)
