"""The commands: what they print, where they write, how they fail."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run

import fastpe
from fastpe._backends import cuda
from fastpe._backends import disk_cache as cache
from fastpe._backends.host import compile, pool
from fastpe._tools import cli, demo
from fastpe._tools.cli import info
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
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line[0] != " ")
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


@pytest.mark.parametrize(("known", "target"), [((80, 90), "sm_90"), ((75, 80, 89), "compute_89")])
def test_info_on_a_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, known: tuple[int, ...], target: str
) -> None:
    properties = {"name": b"GPU", "totalGlobalMem": 8 << 30, "major": 9, "minor": 0}
    versions = {"driverGetVersion": lambda: 13010, "runtimeGetVersion": lambda: 12040, "getDeviceCount": lambda: 1}
    runtime = types.SimpleNamespace(**versions, getDeviceProperties=lambda number: properties)
    monkeypatch.setattr(cuda, "problem", lambda: None)
    nvrtc = types.SimpleNamespace(getVersion=lambda: (13, 0), getSupportedArchs=lambda: known)
    cupy_cuda = types.SimpleNamespace(runtime=runtime, nvrtc=nvrtc)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=cupy_cuda))
    monkeypatch.setitem(sys.modules, "cupy.cuda", cupy_cuda)
    assert cli.main(["info", "--json"]) == 0
    gpu = json.loads(capsys.readouterr().out)["backends"]["cuda"]
    assert (gpu["driver"], gpu["runtime"], gpu["nvrtc"]) == ("13.1", "12.4", "13.0")
    expected = {"number": 0, "name": "GPU", "memory": 8 << 30, "compute_capability": "9.0", "compiled_for": target}
    assert gpu["devices"] == [expected]
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert "GPU, 8.0 GiB, compute capability 9.0" in out
    assert ("NVRTC does not know it yet: kernels are PTX for compute_89" in out) == (target == "compute_89")


@pytest.mark.parametrize("rule", ["set_num_threads", "FASTPE_NUM_THREADS", "OMP_NUM_THREADS"])
def test_info_says_where_the_threads_come_from(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTPE_NUM_THREADS", raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(pool, "_chosen", 1 if rule == "set_num_threads" else None)
    if rule != "set_num_threads":
        monkeypatch.setenv(rule, "1")
    found = information()["backends"]["numba"]
    assert (found["threads"], found["threads_from"]) == (1, rule)


def test_info_says_what_is_missing_and_how_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"numpy": "2.4", "numba": "0.68", "torch": "2.13", "dask": "2026.8", "keras": "3.15", "tqdm": "4.70"}
    monkeypatch.setattr(info, "_version", lambda name, *_: installed.get(name))
    monkeypatch.setattr(cuda, "problem", lambda: "CuPy is not installed: pip install cupy-cuda13x")
    monkeypatch.setattr(info, "_writable", lambda _: False)
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:9] == [
        "fast here       NumPy arrays, PyTorch tensors, Dask arrays, Keras layers",
        "missing         CuPy arrays: CuPy is not installed: pip install cupy-cuda13x",
        "                JAX arrays: pip install 'fastpe[jax]'",
        "                bfloat16 in NumPy: pip install ml_dtypes",
        "                pictures: pip install 'fastpe[plot]'",
        "                bars, and what else runs during bench: pip install 'fastpe[bench]'",
        f"                compiled kernels that are kept: {info.NO_CACHE}",
        "                all that pip can add to this: pip install 'fastpe[jax,plot,bench]' ml_dtypes",
        f"fastpe          {fastpe.__version__}, Python {sys.version.split()[0]}",
    ]
    monkeypatch.setattr(cuda, "problem", lambda: None)
    runtime = types.SimpleNamespace(getDeviceCount=lambda: 0)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime)))
    del installed["torch"]
    known = information()
    assert known["fast"] == ["NumPy arrays", "Dask arrays", "Keras layers", "CuPy arrays"]
    assert known["missing"]["PyTorch tensors"] == "pip install 'fastpe[torch]'"
    assert known["install"] == "pip install 'fastpe[torch,jax,plot,bench]' ml_dtypes"
    installed.update(torch="2.13", jax="0.10", matplotlib="3.11", psutil="7.2", ml_dtypes="0.6")
    assert information()["install"] is None


def test_what_info_tells_to_install_are_extras_of_the_metadata() -> None:
    named = [requirement[7:-1] for _, requirement in info.OPTIONAL.values() if requirement.startswith("fastpe[")]
    extras = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    assert named
    assert [name for name in named if f"\n{name} = [" not in extras] == []
    assert {package for packages, _ in info.OPTIONAL.values() for package in packages} <= {*info.PACKAGES}


# ---- warmup and cache --------------------------------------------------------------------------------------------------------


def test_warmup(capsys: pytest.CaptureFixture[str]) -> None:
    """After it, the calls of every verb need no kernel that is not there."""
    assert cli.main(["warmup", "--dtype", "float32", "--dtype", "float32"]) == 0
    said = capsys.readouterr()
    assert re.fullmatch(r"float32: ready after \d+\.\d s; \d+ kernels are new in \S+\n", said.out)
    assert said.err == ""
    known = {(str(key[0]), "float32" in key) for key in compile._kernels}
    assert {("add_sinusoidal", True), ("rotate", True), ("add_toeplitz", True)} <= known
    assert cli.main(["warmup", "--dtype", "float32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["dtypes"], found["device"], found["compiled"]) == (["float32"], None, 0)
    assert found["folder"] == str(cache.root())


def test_warmup_of_a_device_asks_for_that_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(fastpe, "warmup", lambda dtype, *, device: asked.append((dtype, device)))
    assert cli.main(["warmup", "--device", "1", "--dtype", "float16", "--dtype", "float64"]) == 0
    assert asked == [("float16", 1), ("float64", 1)]
    assert cli.main(["warmup", "--dtype", "int8"]) == 2
    capsys.readouterr()


def test_cache_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FASTPE_CACHE_DIR", str(tmp_path))
    (tmp_path / "numba").mkdir(mode=0o700)
    (tmp_path / "numba" / "one.bin").write_bytes(b"12345")
    for option, kernels, size, deleted in (("--info", 1, 5, 0), ("--clear", 0, 0, 1)):
        assert cli.main(["cache", option, "--json"]) == 0
        expected = {"folder": str(tmp_path), "kernels": kernels, "bytes": size, "deleted": deleted}
        assert json.loads(capsys.readouterr().out) == expected
    monkeypatch.setattr(cache, "root", lambda: None)
    assert cli.main(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] is None


# ---- the line on a terminal --------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "quiet", "said"), [(Terminal, "", True), (Terminal, "1", False), (io.StringIO, "", False)])
def test_compiling_is_announced_once_on_a_terminal(
    stream: type[io.StringIO], quiet: str, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTPE_QUIET", quiet)
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setattr(compile, "_announce", functools.cache(compile._announce.__wrapped__))
    for _ in range(3):
        compile._announce("once")
    expected = "fastpe: compiling kernels for this machine, once ...\n" if said else ""
    assert sys.stderr.getvalue() == expected  # type: ignore[attr-defined]


def test_a_program_without_stderr_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (None, object()):
        monkeypatch.setattr(sys, "stderr", stream)
        compile._announce.__wrapped__("once")
    closed = Terminal()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    compile._announce.__wrapped__("once")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="it has no pty")
def test_the_first_process_says_that_it_compiles_and_the_second_does_not(tmp_path: Path) -> None:
    import pty

    code = "import numpy, fastpe; fastpe.add_encoding(numpy.zeros((2, 4), numpy.float32))"
    environment = {**os.environ, "FASTPE_CACHE_DIR": str(tmp_path)}
    environment.pop("FASTPE_QUIET", None)
    said = []
    for _ in range(2):
        reader, terminal = pty.openpty()
        os.write(terminal, b"start\n")
        subprocess.run([sys.executable, "-c", code], stderr=terminal, env=environment, check=True, timeout=120)
        os.write(terminal, b"end\n")
        written = b""
        while not written.endswith(b"end\r\n"):  # a terminal is read in pieces
            written += os.read(reader, 4096)
        said.append(written.decode().split("\r\n")[1:-2])
        os.close(reader)
        os.close(terminal)
    assert said == [["fastpe: compiling kernels for this machine, once ..."], []]


# ---- the command itself ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code"), [([], 2), (["nosuch"], 2), (["plot", "nosuch"], 2), (["demo", "--dtype", "int8"], 2), (["--version"], 0)]
)
def test_codes_of_the_parser(argv: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == code
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "near"), [(["bnech"], "bench"), (["plot", "heatmp"], "heatmap"), (["warmup", "--dtype", "f16"], "float16")]
)
def test_a_wrong_choice_is_answered_with_the_nearest(argv: list[str], near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    assert capsys.readouterr().err.endswith(f". Did you mean {near!r}?\n")
    assert cli.main(["%%%"]) == 2
    assert "Did you mean" not in capsys.readouterr().err


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
