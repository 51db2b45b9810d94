"""The demo of the command line."""

from __future__ import annotations

import importlib.resources
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from command_line import one_line, png_size, run

import fastpe
from fastpe._tools import cli, demo, formula
from fastpe._tools.benchmark import spread
from fastpe._tools.demo import running
from fastpe._tools.demo import text as demo_text

# The demo's own formula in float64, up to position one million: rounding of the sines and of their angles.
REFERENCE_ERROR = 2e-15


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few timed calls, in an empty folder, on a machine that does nothing else."""
    monkeypatch.setattr(running, "TIMED_SECONDS", 0.0)
    monkeypatch.setattr(spread, "busy_cores", lambda: 0.0)
    monkeypatch.chdir(tmp_path)


def test_demo_json() -> None:
    result = run("demo", "--no-plot", "--json", "--dim", "64")
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["ok"] is True
    assert found["shape"] == [8, 4096, 64]
    assert found["bytes"] == 8 * 4096 * 64 * 4
    assert found["text_bytes"] > 6000
    assert found["rows_checked"] > 300
    assert 0 < found["error"] < found["float32_angle_error_last"] < found["float32_angle_error_far"]
    assert 0 < found["error_far"] < found["float32_angle_error_far"]
    seconds = [found[f"seconds_{name}"] for name in ("first_call", "fastpe", "table_kept", "table_built")]
    assert min(seconds) > 0
    assert found["gigabytes_per_second"] == pytest.approx(2 * found["bytes"] / seconds[1] / 1e9)
    assert found["plot"] is None
    assert os.listdir() == []


def test_demo_table_and_heat_map(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Grüße, 世界")
    assert cli.main(["demo", str(text), "--dim", "5"]) == 0
    said = capsys.readouterr()
    assert said.err == ""  # no progress bar where there is no terminal
    assert f"{text} (15 bytes, repeated" in said.out
    assert "Passed: 302 rows are as near to the formula as promised. Picture: heatmap.png\n" in said.out
    assert png_size(tmp_path / "heatmap.png") == (1200, 675)


@pytest.mark.parametrize("model", [None, "safetensors is not installed: pip install safetensors tokenizers"])
def test_demo_is_a_story_of_twenty_lines(
    model: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if model is not None:
        monkeypatch.setattr(running.minilm, "problem", lambda: model)
    assert cli.main(["demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    assert lines[-2].startswith("Try next: ")
    assert ("  pip install safetensors tokenizers" in lines) == (model is not None)


def test_demo_says_that_the_machine_is_busy(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "busy_cores", lambda: float(os.cpu_count() or 1))
    assert cli.main(["demo", "--no-plot", "--dim", "16"]) == 0
    said = capsys.readouterr().out
    assert "cores as this began, and fastpe uses" in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= 80


def test_demo_says_whether_it_compiled(tmp_path: Path) -> None:
    told = []
    for folder in (tmp_path / "empty", tmp_path / "empty", os.devnull):
        quick = {"FASTPE_CACHE_DIR": str(folder), "NUMBA_OPT": "0"}  # without optimisation it compiles in half the time
        done = run("demo", "--no-plot", "--dim", "16", env={**os.environ, **quick})
        assert done.returncode == 0
        told += [line for line in done.stdout.splitlines() if "the first call" in line]
    assert "compiled, once: later runs load it" in told[0]
    assert "loaded what an earlier run has compiled" in told[1]
    assert "compiled, kept nowhere" in told[2]
    assert max(map(len, told)) <= 80


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_demo_dtypes(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--no-plot", "--json", "--dim", "16", "--dtype", dtype]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == dtype


def test_demo_reads_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\x00 any bytes")))
    assert cli.main(["demo", "-", "--no-plot", "--json", "--dim", "8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["text"], found["text_bytes"], found["text_cut"]) == ("standard input", 12, False)


def test_demo_cuts_a_long_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(bytes(range(256)) * 2000)
    assert cli.main(["demo", "long", "--no-plot", "--json", "--dim", "8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shape"] == [demo_text.MOST_SEQUENCES, 4096, 8]
    assert (found["text_bytes"], found["text_cut"]) == (demo_text.MOST_SEQUENCES * 4096, True)


def _one_element(x: Any) -> None:
    x[-1, -1, -1] += 0.01  # the last row is always checked


def _not_a_number(x: Any) -> None:
    x[0, 0, 0] = np.nan


@pytest.mark.parametrize("corrupt", [_one_element, _not_a_number])
def test_demo_fails_on_a_wrong_result(
    corrupt: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(x: Any, **arguments: Any) -> Any:
        result = fastpe.add_encoding(x, **arguments)
        if x.ndim == 3:
            corrupt(x)
        return result

    monkeypatch.setattr(running, "add_encoding", wrong)
    assert cli.main(["demo", "--no-plot", "--json", "--dim", "16"]) == 1
    said = capsys.readouterr()
    found = json.loads(said.out, parse_constant=pytest.fail)
    assert found["ok"] is False
    assert said.err.count("\n") == 1
    assert cli.main(["demo", "--no-plot", "--dim", "16"]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, **arguments: x,
        lambda x, **arguments: fastpe.add_encoding(x.copy(), **arguments),
        lambda x, offset=0: fastpe.add_encoding(x, offset=offset + (offset > 0)),
        lambda x, offset=0: fastpe.add_encoding(x, offset=offset + (offset == 0)),
        lambda x, **arguments: fastpe.add_encoding(x, fastpe.Sinusoidal(base=10001.0), **arguments),
    ],
    ids=["nothing_added", "a_copy", "wrong_far_away", "one_row_late", "wrong_base"],
)
def test_demo_fails_on_a_wrong_function(
    wrong: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "add_encoding", wrong)
    assert cli.main(["demo", "--no-plot", "--dim", "16"]) == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nosuch"], "No such file"),
        (["."], "FILE must be a file"),
        (["empty"], "FILE must hold some text"),
        (["a\0b"], "null byte"),
        (["--dim", "0"], "--dim must be between 1"),
        (["--dim", "1000000"], "--dim must be between 1"),
        (["--plot", "nosuch/x.png"], "a folder that exists"),
        (["--plot", "."], "a folder that exists"),
        (["--plot", "x.nosuch"], "path must end with one of"),
    ],
)
def test_demo_refuses(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").touch()
    assert cli.main(["demo", *arguments]) == 2
    assert expected in one_line(capsys)


def test_demo_refuses_what_cannot_be_read(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert cli.main(["demo", "secret"]) == 2
    assert "Permission denied" in one_line(capsys)


def test_demo_refuses_a_closed_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert cli.main(["demo", "-"]) == 2
    assert "closed" in one_line(capsys)


def test_demo_without_matplotlib(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert cli.main(["demo", "--dim", "8"]) == 0
    assert "\nPicture not drawn: plots need matplotlib: pip install 'fastpe[plot]'.\n" in capsys.readouterr().out
    assert cli.main(["demo", "--dim", "8", "--plot", "x.png"]) == 2
    assert "pip install 'fastpe[plot]'" in one_line(capsys)
    assert cli.main(["plot", "bias"]) == 2
    assert "pip install 'fastpe[plot]'" in one_line(capsys)


def test_demo_without_ml_dtypes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert cli.main(["demo", "--dtype", "bfloat16"]) == 2
    assert "pip install ml_dtypes" in one_line(capsys)


@pytest.mark.parametrize("dim", [1, 5, 64])
def test_demo_reference_agrees_with_the_tests_reference(dim: int) -> None:
    positions = np.array([0, 1, 77, 4095, 131_071, 1_000_000])
    error = np.abs(formula.exact(positions, dim) - reference.sinusoidal(positions, dim))
    assert error.max() < REFERENCE_ERROR


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("dim", [1, 512, 5000, demo.MOST_DIM])
def test_demo_keeps_within_its_memory(dim: int, itemsize: int) -> None:
    for count in (1, 7000, 10**6):
        batch, length = demo_text.shape_for(count, dim, itemsize)
        assert demo_text.FEWEST_SEQUENCES <= batch <= demo_text.MOST_SEQUENCES
        assert 64 <= length <= demo_text.SEQUENCE
        assert batch * length * dim * itemsize <= demo_text.MOST_BYTES


def test_demo_tells_every_step() -> None:
    told: list[str] = []
    demo.run(None, 16, "float32", told.append)
    assert len(told) == demo.STEPS
    assert told == ["first call: compiles once, for seconds", "fastpe and NumPy, by turns", "a real model"]


def test_the_text_ships_and_says_what_it_is() -> None:
    text = importlib.resources.files("fastpe._tools").joinpath("data/sonnets.txt").read_text(encoding="ascii")
    head = text.splitlines()[0]
    assert all(word in head for word in ("William Shakespeare", "1609", "public domain"))
    assert 6000 <= len(text) <= 8000
    assert text.count("\n  ") == 2 * 11  # a couplet ends every sonnet
