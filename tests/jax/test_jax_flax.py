"""The transformer of the JAX how-to trains as the same one in PyTorch does: from the same weights, on the same data, to the same losses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("flax")
torch = pytest.importorskip("torch")

from flax import nnx  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from fastpe.torch import functional  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "jax.md"
STEPS = 20


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page's program defines."""
    names: dict[str, Any] = {"__name__": "page"}
    (code, *_) = re.findall(r"^<!-- needs: flax -->\n```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def weights_of(module: Any) -> dict[str, Any]:
    """Every parameter as a tensor, by its path."""
    flat = nnx.to_flat_state(nnx.state(module))
    return {".".join(map(str, path)): torch.tensor(np.array(one[...]), requires_grad=True) for path, one in flat}


def scores_of(w: dict[str, Any], ids: Any, heads: int) -> Any:
    """The same model as the page's, in PyTorch."""

    def linear(name, x):
        return x @ w[f"{name}.kernel"] + w[f"{name}.bias"]

    def normed(name, x):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.scale"], w[f"{name}.bias"], eps=1e-6)

    x = w["table.embedding"][ids]
    for block in ("blocks.0", "blocks.1"):
        q, k, v = (part.unflatten(-1, (heads, -1)) for part in linear(f"{block}.qkv", normed(f"{block}.first", x)).chunk(3, -1))
        q, k = functional.apply_rotary(q, k, seq_axis=-3)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        x = x + linear(f"{block}.out", attended)
        hidden = F.gelu(linear(f"{block}.up", normed(f"{block}.second", x)), approximate="tanh")
        x = x + linear(f"{block}.down", hidden)
    return x @ w["table.embedding"].T


def test_losses_are_those_of_pytorch(page):
    model = page["Model"](rngs=nnx.Rngs(1))
    weights, losses = weights_of(model), []
    ids = (torch.arange(8)[:, None] * 3 + torch.arange(25)) % 32
    for _ in range(STEPS):
        scores = scores_of(weights, ids[:, :-1], heads=4)
        loss = F.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten())
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for one, change in zip(weights.values(), gradients, strict=True):
                one -= 0.1 * change
        losses.append(loss.item())
    np.testing.assert_allclose(page["train"](model, STEPS), losses, rtol=1e-4)
    assert losses[-1] < 0.8 * losses[0]
