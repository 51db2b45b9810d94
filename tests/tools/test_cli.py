"""The commands: what they print, where they write, how they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import one_line, png_size, run

import fastpe
from fastpe._backends import cuda
from fastpe._backends import disk_cache as cache
from fastpe._backends.host import pool
from fastpe._tools import cli, demo
from fastpe._tools.cli.info import information
from fastpe._tools.demo import running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few timed calls, in an empty folder."""
    monkeypatch.setattr(running, "TIMED_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)


# ---- info --------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_info_json(tmp_path: Path) -> None:
    result = run("info", "--json", env={**os.environ, "FASTPE_NUM_THREADS": "3", "FASTPE_CACHE_DIR": str(tmp_path)})
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["versions"]["fastpe"] == fastpe.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert found["backends"]["numba"]["usable"] is True
    assert found["backends"]["numba"]["threads"] == 3
    assert found["backends"]["numba"]["threads_from"] == "FASTPE_NUM_THREADS"
    assert found["cache"] == {"folder": str(tmp_path), "writable": True}
    gpu = found["backends"]["cuda"]
    assert gpu["usable"] is (gpu["problem"] is None)
    assert found["array_module"] == ("cupy" if gpu["usable"] else "numpy")
    assert bool(gpu["devices"]) is gpu["usable"]


def test_info_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "problem", lambda: "CuPy is not installed: pip install it")
    assert cli.main(["info"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["cuda"] == "not usable: CuPy is not installed: pip install it"
    assert lines["numpy"] == np.__version__
    assert lines["array_module()"] == "numpy"


def test_info_survives_whatever_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("broken")

    monkeypatch.setattr(cuda, "problem", broken)
    monkeypatch.setattr(cache, "folder", broken)
    monkeypatch.setattr(pool, "_cores", broken)
    monkeypatch.setattr("importlib.metadata.version", broken)
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in ("FASTPE_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["numba"] is None
    assert found["backends"]["numba"]["usable"] is False
    assert "pip install" in found["backends"]["numba"]["problem"]
    assert "broken" in found["backends"]["cuda"]["problem"]
    assert found["cache"] == {"folder": None, "writable": False}
    assert cli.main(["info"]) == 0
    assert "FASTPE_CACHE_DIR" in capsys.readouterr().out


def test_info_on_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    properties = {"name": b"GPU", "totalGlobalMem": 8 << 30, "major": 9, "minor": 0}
    versions = {"driverGetVersion": lambda: 13010, "runtimeGetVersion": lambda: 12040, "getDeviceCount": lambda: 1}
    runtime = types.SimpleNamespace(**versions, getDeviceProperties=lambda number: properties)
    monkeypatch.setattr(cuda, "problem", lambda: None)
    nvrtc = types.SimpleNamespace(getVersion=lambda: (13, 0))
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime, nvrtc=nvrtc)))
    assert cli.main(["info", "--json"]) == 0
    gpu = json.loads(capsys.readouterr().out)["backends"]["cuda"]
    assert (gpu["driver"], gpu["runtime"], gpu["nvrtc"]) == ("13.1", "12.4", "13.0")
    assert gpu["devices"] == [{"number": 0, "name": "GPU", "memory": 8 << 30, "compute_capability": "9.0"}]
    assert cli.main(["info"]) == 0
    assert "GPU, 8.0 GiB, compute capability 9.0" in capsys.readouterr().out


@pytest.mark.parametrize("rule", ["set_num_threads", "FASTPE_NUM_THREADS", "OMP_NUM_THREADS"])
def test_info_says_where_the_threads_come_from(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTPE_NUM_THREADS", raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(pool, "_chosen", 1 if rule == "set_num_threads" else None)
    if rule != "set_num_threads":
        monkeypatch.setenv(rule, "1")
    found = information()["backends"]["numba"]
    assert (found["threads"], found["threads_from"]) == (1, rule)


# ---- plot --------------------------------------------------------------------------------------------------------------------


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
    ],
)
def test_plot_refuses(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert cli.main(["plot", *arguments]) == 2
    assert expected in one_line(capsys)
    assert os.listdir() == ["file"]


# ---- the command itself ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code"), [([], 2), (["nosuch"], 2), (["plot", "nosuch"], 2), (["demo", "--dtype", "int8"], 2), (["--version"], 0)]
)
def test_codes_of_the_parser(argv: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == code
    assert "Traceback" not in capsys.readouterr().err


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="pipes break differently there")
def test_broken_pipe() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "fastpe", "info"]
        result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    finally:
        os.close(write)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.slow
def test_fastpe_imports_none_of_this_and_info_no_torch() -> None:
    code = """
import sys, fastpe
unwanted = {
    "fastpe._tools.cli",
    "fastpe._tools.demo",
    "fastpe._tools.plot",
    "fastpe._tools.benchmark",
    "matplotlib",
    "argparse",
} & set(sys.modules)
assert not unwanted, unwanted
from fastpe._tools import cli
assert cli.main(["info"]) == 0
unwanted = {"torch", "matplotlib", "fastpe._tools.demo", "fastpe._tools.plot", "fastpe._tools.benchmark"} & set(sys.modules)
assert not unwanted, unwanted
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
