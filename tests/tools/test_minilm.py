"""A real model's tables and tokenizer: its own embedding sum, to the last bit."""

from __future__ import annotations

from pathlib import Path

import cases
import numpy as np
import pytest

import fastpe
from fastpe import Learned
from fastpe._tools import minilm

TEXT = (Path(fastpe.__file__).parent / "_tools" / "data" / "sonnets.txt").read_text()


@pytest.fixture(scope="module")
def model():
    if minilm.problem() is not None:
        pytest.skip(minilm.problem())
    return minilm.load()


def test_the_embedding_is_the_models_own(model):
    """Word, then token type, then position, as BERT's embedding layer adds them before its normalisation."""
    ids = model.tokens(TEXT, 256)
    assert ids.shape[0] > 4
    kinds = (np.arange(256) % 100 > 50).astype(int) * np.ones((len(ids), 1), int)
    found = fastpe.embed(ids, model.words, Learned(model.positions), token_types=(kinds, model.types))
    cases.assert_same_bits(found, model.words[ids] + model.types[kinds] + model.positions[:256])
    torch = pytest.importorskip("torch", reason="the model's layers are PyTorch's")
    words, types, positions = (torch.from_numpy(table) for table in (model.words, model.types, model.positions))
    look = torch.nn.functional.embedding
    own = look(torch.from_numpy(ids), words) + look(torch.from_numpy(kinds), types) + look(torch.arange(256), positions)
    cases.assert_same_bits(found, own.numpy())


def test_a_text_longer_than_the_table_of_positions(model):
    """512 positions were learned: the table is stretched, or its last row serves."""
    ids = model.tokens(TEXT, 1000)
    with pytest.raises(IndexError, match=r"positions must lie in the table's \[0, 512\), got 512"):
        fastpe.embed(ids, model.words, Learned(model.positions))
    stretched = fastpe.resample(model.positions, 1000)
    found = fastpe.embed(ids, model.words, Learned(stretched))
    cases.assert_same_bits(found, model.words[ids] + stretched)
    assert np.abs(stretched[::125] - model.positions[::64][:8]).max() < 0.1
    clipped = fastpe.embed(ids, model.words, Learned(model.positions, "clip"))
    cases.assert_same_bits(clipped, model.words[ids] + model.positions[np.minimum(np.arange(1000), 511)])


def test_eight_bits_are_near(model):
    """A table quantised row by row: the largest error is half a step of each row."""
    scales = np.abs(model.words).max(axis=1) / 127
    quantised = np.rint(model.words / scales[:, None]).astype(np.int8)
    ids = model.tokens(TEXT, 128)
    found = fastpe.embed(ids, quantised, row_scale=scales)
    error = np.abs(found - model.words[ids]).max(axis=-1)
    assert (error <= 0.5001 * scales[ids]).all()
    half = fastpe.embed(ids, model.words, dtype="bfloat16")
    cases.assert_same_bits(half, model.words[ids].astype(half.dtype))


def test_the_packages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGES", ("no_such_package",))
    with pytest.raises(ImportError, match="no_such_package is not installed: pip install"):
        minilm.load()
