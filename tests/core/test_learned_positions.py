"""Positions of biases that models learn by themselves: CoPE, Swin v2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastpe import positions

DATA = dict(np.load(Path(__file__).parents[1] / "data" / "positions.npz"))


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_contextual(library):
    """CoPE of x-transformers: scores of learned positions, interpolated at the positions."""
    logits, table, queries = (DATA[f"cope_{name}"] for name in ("attn_logits", "pos_emb", "query"))
    if library == "torch":
        torch = pytest.importorskip("torch")
        tensor = torch.from_numpy(logits).requires_grad_()
        made = positions.contextual(tensor, len(table))
        made.sum().backward()
        assert tensor.grad.isfinite().all()
        at = made.detach().numpy()
    else:
        at = positions.contextual(logits, len(table))
    assert at.dtype == np.float64
    scores = np.einsum("bhid,pd->bhip", queries, table)
    low, high = np.floor(at).astype(int), np.ceil(at).astype(int)
    below, above = (np.take_along_axis(scores, one, -1) for one in (low, high))
    np.testing.assert_allclose(above * (at - low) + below * (1 - at + low), DATA["cope_out"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(positions.contextual([[3.0, -np.inf]], 2), [[1 / (1 + np.exp(-3.0)), 0.0]], rtol=1e-15)
    with pytest.raises(TypeError, match="contextual: logits must be"):
        positions.contextual([[True]], 2)


def test_log_spaced():
    """Swin v2's own table, axes last, in float32."""
    for name, made in (("8", positions.log_spaced((8, 8))), ("12_of_8", positions.log_spaced((12, 12), (8, 8)))):
        np.testing.assert_allclose(np.moveaxis(made, 0, -1), DATA[f"swinv2_{name}"], rtol=0, atol=2e-7)
    assert positions.log_spaced((1,)).tolist() == [[0.0]]
    with pytest.raises(ValueError, match="pretrained_window must have the 2 axes of window, got 1"):
        positions.log_spaced((2, 2), (3,))
