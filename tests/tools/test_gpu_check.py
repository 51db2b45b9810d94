"""``python -m bench.gpu``, as far as it can be run without a GPU."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import __main__ as check
from bench.gpu import programs, records, report
from bench.gpu.summary import summary

ROOT = Path(__file__).resolve().parents[2]
NO_DEVICES = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
FOUND: list[dict[str, Any]] = [
    {
        "stage": "versions",
        "check": "versions",
        "status": "info",
        "versions": {"python": "3.12.1", "vllm": "not here (ImportError)"},
    },
    {"stage": "versions", "check": "card", "status": "ok", "name": "H200", "driver": 13000},
    {"stage": "versions", "check": "bandwidth", "status": "ok", "copy_GBps": 4100},
    {"stage": "bits", "check": "add_encoding", "status": "fail", "dtype": "float16", "error": "AssertionError: 3 bits"},
    {"stage": "large", "check": "stage", "status": "skip", "reason": "2 s were left"},
    {"stage": "host", "check": "embed", "status": "ok", "host_us": 21.04, "gpu_us": 3.5},
    {"stage": "host", "check": "add_bias", "status": "ok", "host_us": 9.0},
    {
        "stage": "speed",
        "check": "embed (8, 8192)",
        "status": "ok",
        "dtype": "bfloat16",
        "copy_GBps": 4000,
        "of_copy": {"fastpe": 0.914},
    },
    {
        "stage": "speed",
        "check": "apply_rotary",
        "status": "ok",
        "dtype": "float32",
        "copy_GBps": 4001,
        "of_copy": {"fastpe": 0.95, "Triton": 0.9},
    },
]
TABLES = """H200, CUDA 13, copies 4100 GB/s; python 3.12.1. Command: `make gpu`.

Time on the GPU, as a share of a copy of the same bytes from device to device: 1 is as fast as the copy.

| call | dtype | fastpe | Triton |
|---|---|--:|--:|
| `embed (8, 8192)` | bfloat16 | 0.91 | - |
| `apply_rotary` | float32 | 0.95 | 0.90 |

Microseconds of the CPU until a call returns, and of the GPU, for a step of decoding of 32 sequences.

| call | CPU | GPU |
|---|--:|--:|
| embed | 21.0 | 3.5 |
| add_bias | 9.0 | - |

6 checks passed; 1 failed: bits: add_encoding."""


# ---- without a GPU -----------------------------------------------------------------------------------------------------------


def test_without_a_gpu_it_says_so_at_once() -> None:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "bench.gpu"], cwd=ROOT, env=NO_DEVICES, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.startswith("bench.gpu: there is no GPU to check: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert time.perf_counter() - start < 30


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")
def test_make_gpu_installs_nothing(tmp_path: Path) -> None:
    command = ["make", "gpu", f"PYTHON={sys.executable}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, env=NO_DEVICES, capture_output=True, text=True)
    assert "there is no GPU to check" in done.stderr
    assert "Error 3" in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_fastpes_libraries_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastpe._backends", None)
    assert "fastpe cannot be imported" in (check.problem() or "")


def test_a_stage_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        check.main(["--only", "bits,speeed"])
    assert "there is no stage speeed; there are versions, kernels, bits" in capsys.readouterr().err


# ---- stages ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", check.STAGES, ids=lambda stage: stage.name)
def test_every_stage_is_a_function(stage: check.Stage) -> None:
    for library in ("cupy", "torch"):
        pytest.importorskip(library)
    assert callable(getattr(importlib.import_module(f"bench.gpu.{stage.module}"), stage.function))
    assert stage.expected < stage.limit


def test_the_stages_fit_into_eight_minutes() -> None:
    assert sum(stage.expected for stage in check.STAGES) <= check.options_of([]).budget < 480


def test_the_simulated_gpu_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cupy")
    path = tmp_path / "found.jsonl"
    assert check.main(["--simulate", "--out", str(path), "--budget", "250"]) == 0
    found = report.read(path)
    assert {record["stage"] for record in found} == {"versions", "kernels", "bits"}
    assert {record["status"] for record in found} == {"ok", "info"}
    assert sum(record.get("cases", 0) for record in found) > 20
    assert "kernels" in capsys.readouterr().out


def test_every_kernel_is_launched(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cupy")
    import simulated_cupy

    from bench.gpu import bits

    simulated_cupy.launched.clear()
    bits.kernels(check.options_of(["--simulate", "--tiny"]))
    launched = {entry for entry, _, _ in simulated_cupy.launched}
    for kernel in (path.stem for path in (ROOT / "kernels").glob("*.cu")):
        assert any(entry.startswith(kernel) for entry in launched), kernel
    assert '"fail"' not in capsys.readouterr().out


def test_a_stage_that_fails_is_a_finding_and_one_that_hangs_is_stopped() -> None:
    large = next(stage for stage in check.STAGES if stage.name == "large")
    (stopped,) = check.in_process(large, [], 0.01)
    assert (stopped["status"], stopped["error"]) == ("fail", "stopped after 0 s")
    (refused,) = check.in_process(large, ["--no-such-flag"], 60)
    assert (refused["status"], refused["error"]) == ("fail", "exit status 2")
    assert "unrecognized arguments: --no-such-flag" in refused["stderr"][-1]


def test_stages_take_what_is_left_of_the_budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limits = {}

    def ended(stage: check.Stage, flags: list[str], limit: float) -> list[dict[str, Any]]:
        limits[stage.name] = limit
        return [{"stage": stage.name, "check": "stage", "status": "ok"}]

    monkeypatch.setattr(check, "in_process", ended)
    monkeypatch.setattr(check, "problem", lambda: None)
    monkeypatch.delenv("FASTPE_CACHE_DIR", raising=False)
    path = tmp_path / "found.jsonl"
    assert check.main(["--budget", "20.5", "--out", str(path)]) == 0
    assert limits == pytest.approx({"versions": 20, "kernels": 20, "large": 20, "torch": 20, "host": 20, "ncu": 20}, abs=1.5)
    left_out = {record["stage"]: record["reason"] for record in report.read(path) if record["status"] == "skip"}
    assert set(left_out) == {"bits", "speed", "pytest", "sanitizer"}
    monkeypatch.setattr(check, "in_process", lambda *_: [{"stage": "host", "check": "stage", "status": "fail"}])
    assert check.main(["--only", "host", "--out", str(path)]) == 1


def test_a_check_that_fails_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    records.begin("stage")
    with records.checking("one", dtype="float32") as more:
        more["case"] = "a case"
        raise ValueError("reason")
    with records.checking("two"):
        raise records.Skipped("no memory")
    with records.checking("three"):
        pass
    one, two, three = map(json.loads, capsys.readouterr().out.splitlines())
    assert (one["status"], one["error"], one["case"], one["dtype"]) == ("fail", "ValueError: reason", "a case", "float32")
    assert (two["status"], two["reason"], three["status"]) == ("skip", "no memory", "ok")


# ---- other programs ----------------------------------------------------------------------------------------------------------


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_programs_that_are_not_here_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    programs.sanitizer(check.options_of([]))
    programs.ncu(check.options_of([]))
    assert [(one["check"], one["status"]) for one in said(capsys)] == [("compute-sanitizer", "skip"), ("ncu", "skip")]


@pytest.mark.skipif(os.name == "nt", reason="scripts are POSIX's")
def test_what_the_sanitizer_says_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    line = '{"stage": "kernels", "check": "rotate", "status": "%s"}'
    program(tmp_path, "compute-sanitizer", f"print({line % 'ok'!r})\nprint('========= ERROR SUMMARY: 0 errors')")
    programs.sanitizer(check.options_of([]))
    assert [(one["check"], one["status"], len(one["said"])) for one in said(capsys)] == [
        ("memcheck", "ok", 1),
        ("racecheck", "ok", 1),
    ]
    program(tmp_path, "compute-sanitizer", f"print({line % 'fail'!r})")
    programs.sanitizer(check.options_of([]))
    assert [(one["status"], one["failed"]) for one in said(capsys)] == [("fail", ["rotate"])] * 2
    program(tmp_path, "compute-sanitizer", "raise SystemExit(9)")
    programs.sanitizer(check.options_of([]))
    assert [one["error"] for one in said(capsys)] == ["exit status 9"] * 2


@pytest.mark.skipif(os.name == "nt", reason="scripts are POSIX's")
def test_what_nsight_compute_counts_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    lines = [
        '"ID","Kernel Name","Metric Name","Metric Value"',
        '"0","rotate_bf16_vec16_half(Rotate)","gpu__time_duration.sum","812"',
    ]
    program(tmp_path, "ncu", "\n".join(f"print({line!r})" for line in ["==PROF== 5 kernels", *lines]))
    programs.ncu(check.options_of([]))
    (found,) = said(capsys)
    assert (found["check"], found["status"], found["ns"]) == ("rotate_bf16_vec16_half", "info", "812")
    program(tmp_path, "ncu", "print('==ERROR== ERR_NVGPUCTRPERM')\nraise SystemExit(1)")
    programs.ncu(check.options_of([]))
    assert said(capsys)[0]["status"] == "skip"
    program(tmp_path, "ncu", "raise SystemExit(1)")
    programs.ncu(check.options_of([]))
    assert said(capsys)[0]["status"] == "fail"


def test_a_program_that_takes_too_long_is_ended() -> None:
    assert programs.run([sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"], 2) == (
        124,
        "begun\n",
    )


# ---- tables ------------------------------------------------------------------------------------------------------------------


def test_findings_make_tables() -> None:
    assert report.section(FOUND) == TABLES
    assert report.section([record for record in FOUND if record["check"] != "card"]) == "Not measured yet."


def test_the_documentation_says_what_was_measured(tmp_path: Path) -> None:
    document, findings = tmp_path / "performance.md", tmp_path / "gpu.jsonl"
    document.write_text((ROOT / "docs" / "performance.md").read_text())
    findings.write_text("".join(json.dumps(record) + "\n" for record in FOUND))
    report.main([str(findings), str(document)])
    assert f"{report.MARKERS[0]}\n{TABLES}\n{report.MARKERS[1]}" in document.read_text()


@pytest.mark.parametrize(
    ("content", "error"), [("text", "is not JSON"), ("", "does not hold findings"), ("[]", "does not hold")]
)
def test_files_that_hold_no_findings_are_refused(tmp_path: Path, content: str, error: str) -> None:
    path = tmp_path / "gpu.jsonl"
    path.write_text(content)
    with pytest.raises(SystemExit, match=error):
        report.main([str(path), "--print"])


def test_the_table_at_the_end() -> None:
    lines = summary(FOUND).splitlines()
    assert lines[:2] == ["versions   2 ok, 1 info", "bits       1 fail"]
    assert "FAILED bits: add_encoding float16: AssertionError: 3 bits" in lines
    assert "left out large: stage: 2 s were left" in lines
    assert any(line.startswith("embed ") and line.endswith("21.0 us of the CPU, 3.5 us of the GPU") for line in lines)
    assert any("4001 GB/s of a copy: fastpe 0.95, Triton 0.9" in line for line in lines)


def test_the_rival_of_pytorch_computes_the_same() -> None:
    torch = pytest.importorskip("torch")
    import fastpe
    from bench.gpu import rivals

    q, k = (torch.randn(2, heads, 5, 16, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2))
    got = rivals.of_rotary(q, k, torch.arange(3, 8))["torch eager"]()()
    for one, wanted in zip(got, fastpe.apply_rotary(q, k, offset=3), strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-5, atol=1e-5)


def test_a_contender_that_fails_is_named_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    torch = pytest.importorskip("torch")
    from bench.gpu import speed

    monkeypatch.setattr(speed, "CUDA", torch.device("cpu"))
    monkeypatch.setattr(speed, "gpu_seconds", lambda call: call() is None or 0.5)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    speed._adding("float32", (2, 3, 64))
    speed._rotating("a rotation", "bfloat16", 2, 3)
    for found in said(capsys):
        assert found["status"] == "ok", found
        assert {"fastpe", "torch eager", "torch.compile"} <= set(found["of_copy"])
        assert set(found["failed"]) <= {"Triton", "FlashInfer", "Liger", "vLLM"}
        assert found["of_copy"]["fastpe"] == 1.0
