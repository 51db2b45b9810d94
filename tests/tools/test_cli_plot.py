"""The commands that draw pictures and list recipes: what they print, where they write, how they fail."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_line import one_line, png_size

import fastpe
from fastpe._tools import cli


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        ["heatmap", "--length", "20", "--dim", "7", "--encoding", "sinusoidal:layout=concatenated,base=100", "--offset", "-5"],
        ["contour", "--length", "20", "--dim", "8", "--scaling", "linear:factor=4"],
        ["similarity", "--length", "20", "--encoding", "rotary:base=500000", "--scaling", "ntk:factor=4"],
        ["wavelengths", "--scaling", "ntk:factor=4", "--scaling", "linear:factor=4", "--trained", "100", "--length", "400"],
        ["error", "--length", "1000", "--dim", "8"],
        ["bias", "--encoding", "alibi:heads=12", "--length", "20"],
    ],
)
def test_plot(options: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["plot", *options, "-o", "picture"]) == 0
    assert capsys.readouterr().out == f"saved {tmp_path / 'picture'}\n"
    assert png_size(tmp_path / "picture")[0] == 1200


def test_plot_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fastpe._tools.plot import curves, gallery

    assert cli.main(["plot", "bias", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"saved": [str(tmp_path / "bias.png")]}
    monkeypatch.setattr(gallery, "PICTURES", {"one": lambda: curves.bias(length=5)})
    assert cli.main(["plot", "all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"saved": [str(tmp_path / "pictures" / "one.png")]}


def test_plot_has_a_name_for_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plot", "bias"]) == 0
    assert os.listdir() == ["bias.png"]
    capsys.readouterr()


def test_plot_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fastpe._tools.plot import curves, gallery

    monkeypatch.setattr(gallery, "PICTURES", {"one": lambda: curves.bias(length=5), "two": curves.bias})
    assert cli.main(["plot", "all", "-o", "some/folder"]) == 0
    assert capsys.readouterr().out == "".join(f"saved {tmp_path / 'some/folder' / name}.png\n" for name in ("one", "two"))
    assert png_size(tmp_path / "some/folder/two.png")[0] == 1200


def test_plot_takes_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plot", "bias", "--recipe", "bloom:heads=4"]) == 0
    assert cli.main(["plot", "heatmap", "--recipe", "whisper"]) == 0
    capsys.readouterr()
    assert cli.main(["plot", "heatmap", "--recipe", "bloom:heads=4"]) == 2
    assert "got a bias on scores, ALiBi" in one_line(capsys)
    for wrong, text in {
        "bloom": "without heads",
        "wisper": "Did you mean 'whisper'",
        "bloom:4": "such as bloom:heads=112",
    }.items():
        assert cli.main(["plot", "bias", "--recipe", wrong]) == 2
        assert text in one_line(capsys)


def test_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(fastpe.recipes())
    assert cli.main(["recipes", "--markdown"]) == 0
    assert capsys.readouterr().out in (Path(__file__).parents[2] / "docs/recipes.md").read_text()
    assert cli.main(["recipes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [*found] == list(fastpe.recipes())
    assert found["fairseq"].pop("for")
    assert found["fairseq"].pop("source")
    fields = {"layout": "concatenated", "frequency_shift": 1}
    scaled = {"verb": "add_encoding", "input_scale": "sqrt(D)", "offset": 2}
    assert found["fairseq"] == {"encoding": "Sinusoidal", "fields": fields, **scaled}
    assert found["t5"]["verb"] == "add_bias"
    assert all(entry["verb"] == fastpe.recipe(name).verb for name, entry in found.items() if entry["encoding"] == "Rotary")
    assert cli.main(["recipes", "--json", "--markdown"]) == 2
    capsys.readouterr()


def test_recipes_with_a_text_in_their_line(capsys: pytest.CaptureFixture[str]) -> None:
    for text, names in {"NLLB": ["m2m100"], "whisper": ["whisper"], "m2m": ["m2m100"]}.items():
        assert cli.main(["recipes", text]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names
        assert cli.main(["recipes", text, "--json"]) == 0
        assert [*json.loads(capsys.readouterr().out)] == names
        assert cli.main(["recipes", text, "--markdown"]) == 0
        assert [line.split("`")[1] for line in capsys.readouterr().out.splitlines()[2:]] == names
    for wrong, remedy in {"wisper": "Did you mean 'whisper'?", "%%%": "python -m fastpe recipes lists all."}.items():
        assert cli.main(["recipes", wrong]) == 2
        assert one_line(capsys) == f"recipes: TEXT must be part of a recipe's line, got {wrong!r}. {remedy}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["heatmap", "-o", "nosuch/x.png"], "'nosuch/x.png' cannot be used: No such file"),
        (["heatmap", "-o", "x.nosuch"], "path must end with one of"),
        (["heatmap", "--dim", "0"], "dim must be at least 1"),
        (["heatmap", "--length", "0"], "length must be at least 1"),
        (["heatmap", "--length", str(10**9)], "length * dim must be at most"),
        (["heatmap", "--encoding", "sinusoidal:base=nan"], "base must be a real number"),
        (["heatmap", "--encoding", "nosuch"], "must be one of alibi, fire, "),
        (["heatmap", "--encoding", "alibi:heads=8"], "bias (plot bias) shows it"),
        (["heatmap", "--offset", str(2**31)], "positions must lie in"),
        (["heatmap", "--offset", str(10**30)], "positions must lie in"),
        (
            ["heatmap", "--trained", "5"],
            "heatmap takes --encoding, --recipe, --scaling, --length, --dim, --offset, got --trained",
        ),
        (["bias", "--scaling", "ntk:factor=2"], "bias takes --encoding, --recipe, --length, got --scaling"),
        (["all", "--dim", "5"], "all takes nothing but -o, got --dim"),
        (["bias", "--encoding", "rotary"], "must be a bias on scores"),
        (["heatmap", "--encoding", "sandwich:heads=2", "--scaling", "ntk:factor=2"], "got Sandwich"),
        (["heatmap", "--scaling", "ntk:factor=2", "--scaling", "ntk:factor=3"], "heatmap takes one --scaling, got 2"),
        (["heatmap", "--scaling", "nosuch"], "scaling must be one of custom, dynamicntk"),
        (["all", "-o", "file"], "'file' cannot be used: "),
        (["heatmap", "--encoding", "sinusoidl"], "Did you mean 'sinusoidal'?"),
        (["heatmap", "--encoding", "rotary:bse=5e5"], "got 'bse'. Did you mean 'base'?"),
        (["heatmap", "--encoding", "rotary:rope_theta=5e5"], "Did you mean 'base'?"),
        (["bias", "--encoding", "alibi:head=8"], "Did you mean 'heads'?"),
        (["heatmap", "--scaling", "yarn:factr=4"], "Did you mean 'factor'?"),
        (["heatmap", "--scaling", "yarm:factor=4"], "Did you mean 'yarn'?"),
    ],
)
def test_plot_refuses(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert cli.main(["plot", *arguments]) == 2
    assert expected in one_line(capsys)
    assert os.listdir() == ["file"]
