"""Adding a bias to attention scores: fastpe, and a cached bias of every head in torch and NumPy. Checked first, then timed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contenders import as_tensor, is_small, random_values, settle_threads, torch_if_installed

import fastpe

pytestmark = pytest.mark.timeout(1800)

# (B, H, Tq, Tk): a prefill, and one token after many.
SHAPES = {"prefill": (2, 32, 2048, 2048), "decode": (32, 32, 1, 2048)}
SMALL = {"prefill": (2, 4, 16, 16), "decode": (3, 4, 1, 16)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("causal", [False, True], ids=["whole", "causal"])
@pytest.mark.parametrize("kind", list(SHAPES))
@pytest.mark.parametrize("library", ["fastpe", "torch", "numpy"])
def test_add_toeplitz(benchmark: Any, library: str, kind: str, causal: bool, dtype: str) -> None:
    settle_threads()
    if library == "numpy" and dtype != "float32":
        pytest.skip("NumPy's bfloat16 is emulated, a hundred times slower")
    shape = (SMALL if is_small() else SHAPES)[kind]
    scores, bias = random_values(shape, dtype), fastpe.ALiBi(shape[1])
    distances = np.arange(shape[3] - shape[2], shape[3])[:, None] - np.arange(shape[3])
    whole = bias.values(distances)
    expected = scores[0].astype(np.float64) + whole
    cached, future = whole.astype(scores.dtype), distances < 0
    if library == "torch":
        torch = torch_if_installed()
        if torch is None:
            pytest.skip("torch is not installed")
        tensor, added, mask = as_tensor(scores), as_tensor(cached), torch.from_numpy(future)
        call = lambda: tensor.add_(added).masked_fill_(mask, -torch.inf) if causal else tensor.add_(added)  # noqa: E731
    elif library == "numpy":
        call = lambda: np.copyto(np.add(scores, cached, out=scores), -np.inf, where=future & causal)  # noqa: E731
    else:
        call = lambda: fastpe.add_bias(scores, bias, causal=causal)  # noqa: E731
    call()
    found, seen = scores[0].astype(np.float64), np.broadcast_to(~(future & causal), expected.shape)
    assert np.isneginf(found[~seen]).all()
    relative = np.abs(found[seen] - expected[seen]) / (1 + np.abs(expected[seen]))
    assert relative.max() < (1e-6 if dtype == "float32" else 0.02)
    benchmark.group = f"add_toeplitz {kind} {'causal' if causal else 'whole'} {dtype}"
    benchmark.extra_info.update(operation="add_toeplitz", library=library, shape=list(shape), dtype=dtype)
    benchmark(call)
