"""The commands: what they print, where they write, how they fail."""

from __future__ import annotations

import importlib.resources
import io
import json
import os
import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference

import fastpe
from fastpe._backends import cuda
from fastpe._backends import disk_cache as cache
from fastpe._backends.host import pool
from fastpe._tools import cli, demo, formula
from fastpe._tools.cli.info import information
from fastpe._tools.demo import running
from fastpe._tools.demo import text as demo_text
from fastpe._tools.progress import Progress

# The demo's own formula in float64, up to position one million: rounding of the sines and of their angles.
REFERENCE_ERROR = 2e-15


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few timed calls, in an empty folder."""
    monkeypatch.setattr(running, "TIMED_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)


def run(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fastpe", *argv], capture_output=True, text=True, timeout=120, **options)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What a refused command said: one line on stderr, nothing on stdout."""
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(content) > 10_000
    width, height = struct.unpack(">II", content[16:24])
    return width, height


# ---- info --------------------------------------------------------------------------------------------------------------------


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


# ---- demo --------------------------------------------------------------------------------------------------------------------


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
    assert "text.txt: 15 bytes, repeated" in said.out
    assert "check                   passed" in said.out
    assert str(tmp_path / "heatmap.png") in said.out
    assert png_size(tmp_path / "heatmap.png") == (1200, 675)


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
    assert "pip install 'fastpe[plot]'" in capsys.readouterr().out
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


def test_progress_is_shown_on_a_terminal_only() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, shown in ((io.StringIO(), False), (Terminal(), True)):
        with Progress(stream) as progress:
            progress.show(0.5, "half")
        assert ("50%  half" in stream.getvalue()) is shown
        assert stream.getvalue().endswith("\r\x1b[K") is shown


def test_the_text_ships_and_says_what_it_is() -> None:
    text = importlib.resources.files("fastpe._tools").joinpath("data/sonnets.txt").read_text(encoding="ascii")
    head = text.splitlines()[0]
    assert all(word in head for word in ("William Shakespeare", "1609", "public domain"))
    assert 6000 <= len(text) <= 8000
    assert text.count("\n  ") == 2 * 11  # a couplet ends every sonnet


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
    assert capsys.readouterr().out in (Path(__file__).parent.parent / "docs/recipes.md").read_text()


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
