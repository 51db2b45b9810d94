"""Recipes are data: what they hold, what may differ, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from catalog_cases import ROOT, recipe

import fastpe
from fastpe._tools.cli.recipes import table
from fastpe.encodings import recipes as catalog


@pytest.mark.parametrize("name", [*catalog.CATALOGUE])
def test_a_recipe_is_data(name):
    found = recipe(name)
    assert type(found.encoding) is catalog.CATALOGUE[name].kind
    assert found.name == name
    assert found.source
    for field, value in catalog.CATALOGUE[name].fields.items():
        assert getattr(found.encoding, field) == value
    assert found.verb in ("add_encoding", "apply_rotary", "add_bias")


def test_fields_may_differ():
    assert fastpe.recipe("hf-llama", base=5e5).encoding == fastpe.Rotary(5e5)
    assert fastpe.recipe("mae", shape=(2, 3)).encoding == fastpe.Grid.mae((2, 3))
    assert fastpe.recipe("fairseq").arguments(16)["offset"] == 2
    assert fastpe.recipe("fairseq").arguments(16)["input_scale"] == 4.0
    assert fastpe.recipe("whisper").arguments()["input_scale"] == 1.0
    assert fastpe.recipe("hf-llama").arguments() == {"encoding": fastpe.Rotary(), "offset": 0}


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: fastpe.recipe("wisper"), ValueError, "Did you mean 'whisper'"),
        (lambda: fastpe.recipe("Llama"), ValueError, "Did you mean '(hf-)?llama"),
        (lambda: fastpe.recipe("zzzz"), ValueError, "got 'zzzz'. Known are vaswani, "),
        (lambda: fastpe.recipe(7), TypeError, "recipe: name must be a string, got int"),
        (lambda: fastpe.recipe("mae"), TypeError, r"got 'mae' without shape. E.g. fastpe.recipe\('mae', shape=...\)"),
        (lambda: fastpe.recipe("bloom"), TypeError, "'bloom' without heads"),
        (lambda: fastpe.recipe("hf-llama", theta=1.0), TypeError, "fields must be those of Rotary: base, .*, got theta"),
        (lambda: fastpe.recipe("bloom", head=12), TypeError, "got head. Did you mean 'heads'?"),
        (lambda: fastpe.recipe("hf-llama", base=-1.0), ValueError, "base"),
        (lambda: fastpe.recipe("vaswani").arguments(), ValueError, r"dim must be given, as vaswani scales by sqrt\(D\)"),
        (lambda: fastpe.add_encoding(np.zeros((2, 3, 4)), "whisper"), TypeError, r"fastpe\.recipe\('whisper'\)"),
        (lambda: fastpe.encode([1], 4, "ddpm"), TypeError, r"fastpe\.recipe\('ddpm'\)"),
    ],
)
def test_what_is_wrong(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


def test_documentation_has_the_table():
    assert table() in (ROOT / "docs" / "recipes.md").read_text()
