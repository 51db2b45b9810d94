"""Plots as text and in files."""

from __future__ import annotations

import doctest
import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastpe
from fastpe import scaling

pytest.importorskip("matplotlib", reason="pictures need matplotlib")
from PIL import Image

from fastpe._tools import plot
from fastpe._tools.plot import curves, gallery, maps, named, spectra

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "pictures"
SAME_PICTURE = 2.0  # mean levels, of 255, by which fonts and rasterisers of matplotlib's versions differ


# ---- texts -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("sinusoidal", fastpe.Sinusoidal()),
        ("Sinusoidal:base=100,layout=concatenated", fastpe.Sinusoidal(100.0, "concatenated")),
        ("rotary:interleaved=true,sections=(2,1,1)", fastpe.Rotary(interleaved=True, sections=(2, 1, 1))),
        ("rotary:scaling=yarn(factor=4,original_max_position=64)", fastpe.Rotary(scaling=scaling.YaRN(4, 64))),
        ("rotary:scaling=none", fastpe.Rotary()),
        (repr(fastpe.Rotary(scaling=scaling.Linear(4))), fastpe.Rotary(scaling=scaling.Linear(4))),
        ("kerple:p=(1,2),a=(0.5,0.5),kind=power", fastpe.Kerple((1, 2), (0.5, 0.5), "power")),
    ],
)
def test_encodings_by_text(text: str, value: Any) -> None:
    assert named.encoding(text) == value


def test_rules_by_text() -> None:
    assert named.rule("yarn:factor=4,original_max_position=64,truncate=false") == scaling.YaRN(4, 64, truncate=False)
    assert named.rules().keys() == {name.lower() for name in scaling.__all__} - {"scaling"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be a name and its fields"),
        ("rotary:", None),
        ("rotary:(", "must be a name and its fields"),
        ("rotary:500000", "must be a name and its fields"),
        ("a.b(c=1)", "must be a name and its fields"),
        ("rotary:**x", "must be a name and its fields"),
        ("rotary:nosuch=1", "rotary has the fields base, interleaved,"),
        ("rotary:base=2+2j", "got complex"),
        ("rotary:base=open('x')", "base must be a number, a word or a tuple"),
        ("rotary:base=-1", "base must be greater than 0"),
        ("rotary:base=word", "base must be a real number"),
        ("rotary:scaling=linear", "linear needs factor, got 'linear'. Write linear:factor=..."),
        ("rotary:scaling=nosuch(factor=4)", "scaling must be one of custom, dynamicntk"),
        ("alibi", "alibi needs heads, got 'alibi'. Write alibi:heads=..."),
        ("t5bias", "They are learned arrays: make a fastpe.T5Bias"),
    ],
)
def test_texts_that_mean_nothing(text: str, said: str | None) -> None:
    if said is None:
        assert named.encoding(text) == fastpe.Rotary()
        return
    with pytest.raises(ValueError, match=re.escape(said)):
        named.encoding(text)


def test_recipes() -> None:
    assert named.recipe("llama3") == fastpe.Rotary(500_000.0)
    assert named.recipe("mae:shape=(2, 3)") == fastpe.Grid.mae((2, 3))
    with pytest.raises(ValueError, match="recipe must be a name, or a name and fields"):
        named.recipe("mae:shape=open('x')")
    with pytest.raises(ValueError, match="Did you mean 'llama3'"):
        named.recipe("llama-3")


@pytest.mark.parametrize("module", [curves, maps, named, spectra], ids=lambda module: module.__name__)
def test_examples(module: types.ModuleType) -> None:
    done = doctest.testmod(module)
    assert done.attempted > 0
    assert done.failed == 0


# ---- files -------------------------------------------------------------------------------------------------------------------


def test_a_picture_has_the_same_bytes_twice(tmp_path: Path) -> None:
    for name in ("one.png", "two"):
        plot.save(plot.bias(length=5), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two").read_bytes()
    plot.save(plot.similarity(length=5), tmp_path / "pair.svg")
    assert b"<svg" in (tmp_path / "pair.svg").read_bytes()


def test_the_documentation_has_the_pictures_that_are_drawn_now(tmp_path: Path) -> None:
    paths = list(gallery.draw(tmp_path / "new"))
    assert {path.name for path in paths} == {path.name for path in PICTURES.iterdir() if path.is_file()}
    for path in paths:
        kept = PICTURES / path.name
        assert kept.stat().st_size < 150_000
        new, old = (np.asarray(Image.open(one).convert("RGB"), np.float64) for one in (path, kept))
        assert new.shape == old.shape
        assert np.abs(new - old).mean() < SAME_PICTURE, f"{path.name} is not what the code draws: make it anew"


def test_the_public_name_has_the_texts_too() -> None:
    import fastpe.plot

    assert fastpe.plot.named.rule("ntk:factor=8") == scaling.NTK(8)
    assert fastpe.plot.named.encoding("rotary:base=500000") == fastpe.Rotary(base=500000)
    assert set(fastpe.plot.__all__) == set(plot.__all__)
