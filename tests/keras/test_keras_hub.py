"""The layers against those of keras-hub at the same arguments: numbers that were stored, and keras-hub itself where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest

keras = pytest.importorskip("keras")

from keras import ops  # noqa: E402
from keras_cases import host, quiet  # noqa: E402

import fastpe  # noqa: E402
from fastpe.keras import ALiBi as ALiBiLayer  # noqa: E402
from fastpe.keras import RotaryEmbedding, SinusoidalEncoding, TokenAndPositionEmbedding  # noqa: E402

pytestmark = quiet
with np.load(Path(__file__).resolve().parents[1] / "data" / "peers.npz") as arrays:
    HUB = {key.partition("/")[2]: arrays[key] for key in arrays.files if key.startswith("keras_hub/")}

# Its angles are float32: they err by 1.2e-7 of the largest, which is 40 + 6 or 1000 + 6 here; stored by tests/data/make_peers.py.
YARN = {"rope_type": "yarn", "scaling_factor": 4.0, "original_max_position_embeddings": 2048}
SAME: dict[str, tuple[dict[str, Any], int]] = {
    "rotated": ({}, 40),
    "linear": ({"rope_type": "linear", "scaling_factor": 4.0}, 1000),
    "dynamic": ({"rope_type": "dynamic", "scaling_factor": 4.0}, 1000),
    "yarn": (YARN, 1000),
    "yarn_whole": ({**YARN, "truncate": False}, 1000),
}


@pytest.mark.parametrize("name", SAME)
def test_rotations_are_keras_hubs(name):
    options, start = SAME[name]
    made = host(RotaryEmbedding(**options)(HUB["q"], start_index=start))
    np.testing.assert_allclose(made, HUB[name], rtol=0, atol=(1e-6 + 1.2e-7 * (start + 6)) * np.abs(HUB["q"]).max())


def test_sums_and_embeddings_are_keras_hubs():
    layer = TokenAndPositionEmbedding(12, 6, 16)
    layer.build((1, 6))
    layer.set_weights([HUB["words"], HUB["places"]])
    np.testing.assert_allclose(host(layer(HUB["ids"])), HUB["embedded"], rtol=0, atol=1e-6)
    for name, start in (("sine", 0), ("sine_7", 7)):
        np.testing.assert_allclose(host(SinusoidalEncoding()(HUB["x"], start_index=start)), HUB[name], rtol=0, atol=5e-6)


def test_keras_hubs_own_layers_here():
    layers = pytest.importorskip("keras_hub").layers
    x, scores = cases.random((2, 50, 32), "float32"), cases.random((2, 6, 9, 9), "float32")
    theirs, ours = layers.AlibiBias()(scores), ALiBiLayer()(scores)
    mask = np.tri(9, dtype=bool)
    chances = [host(ops.softmax(ops.where(mask, one, -np.inf))) for one in (theirs, ours)]
    np.testing.assert_allclose(*chances, atol=2e-6)
    np.testing.assert_allclose(host(theirs)[..., -1, :], host(ours)[..., -1, :], atol=1e-5)  # for the last query it is the same
    for start in (0, 500, 100_000, 1_000_000):
        exact = fastpe.encode(np.arange(start, start + 50), 32, dtype="float64")
        found = host(layers.SinePositionEncoding()(x, start_index=start))
        own = host(SinusoidalEncoding()(np.zeros_like(x), start_index=start))
        assert np.abs(own - exact).max() <= 2e-7
        assert np.abs(found - exact).max() <= 4e-7 * (start + 50)  # float32 angles
        if start >= 100_000:
            assert np.abs(found - exact).max() > 1e-3
    for width in (32, 64):
        q = cases.random((2, 7, 3, width), "float32")
        for options in (
            {},
            {"max_wavelength": 500_000},
            {"scaling_factor": 2.5},
            YARN,
            {**YARN, "beta_fast": 20.0, "beta_slow": 2.0},
        ):
            for axes in ({}, {"sequence_axis": 2}, {"sequence_axis": -3, "feature_axis": 3}):
                both = [kind(**options, **axes)(q, start_index=3) for kind in (layers.RotaryEmbedding, RotaryEmbedding)]
                np.testing.assert_allclose(*map(host, both), atol=2e-5)
