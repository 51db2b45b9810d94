"""``python -m fastpe bench``: it refuses wrong results, says what it measured, and compares runs."""

from __future__ import annotations

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

from fastpe._backends import cuda
from fastpe._backends.host import compile, pool
from fastpe._tools import benchmark, cli, progress
from fastpe._tools.benchmark import case as shapes_of
from fastpe._tools.benchmark import clock, results, running, spread, workload
from fastpe._tools.benchmark.case import Case
from fastpe._tools.benchmark.verbs import WORKLOADS, add_encoding, prepare
from fastpe._tools.benchmark.workload import CACHED, FASTPE, SCRATCH, TORCH, Contender
from fastpe._tools.cli import bench

DTYPES = ("float32", "bfloat16")
SMALL = [
    Case(operation, shape, dtype)
    for operation, shapes in shapes_of.SMALL_SHAPES.items()
    for shape in shapes
    for dtype in DTYPES
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tiny arrays, in an empty folder; the threads are as before afterwards."""
    monkeypatch.setenv("FASTPE_BENCH_SMALL", "1")
    monkeypatch.setattr(pool, "_chosen", pool._chosen)
    monkeypatch.chdir(tmp_path)


# ---- workloads -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_all_contenders_compute_the_same_and_faults_are_seen(case: Case) -> None:
    work = prepare(case)
    for name, contender in work.contenders.items():
        if contender.missing() or (case.dtype == "bfloat16" and name == SCRATCH and case.operation == "apply_rotary"):
            continue
        call = contender.make(work)
        work.check(name, contender, call)
        for fault in (_nothing, _last_element, _not_a_number):

            def wrong(call: Any = call, fault: Any = fault) -> Any:
                result = call()
                several = result if isinstance(result, tuple) else (result,)
                changed = [np.array(workload.on_host(one)) for one in several]
                fault(changed[-1])
                return tuple(changed)

            with pytest.raises(benchmark.WrongResult, match=f"{case.operation}.*: {name} differs from the formula"):
                work.check(name, contender, wrong)


def test_16_bit_types_are_not_timed_where_numpy_computes_them_in_software() -> None:
    torch = set() if workload.torch_if_installed() is None else {TORCH}
    for dtype, rivals in (("bfloat16", set()), ("float32", {CACHED, SCRATCH})):
        result = running.measure_line(Case("embed", (2, 9, 50, 32), dtype), 1)
        assert result["speedups"].keys() == rivals | torch


def _nothing(x: Any) -> None:
    x[...] = 0


def _last_element(x: Any) -> None:
    x[-1, ..., -1] += np.asarray(4 + abs(x[-1, ..., -1]) / 2, x.dtype)


def _not_a_number(x: Any) -> None:
    x[-1, -1, -1] = np.nan


def test_a_call_that_does_nothing_is_seen_after_one_that_did() -> None:
    work = prepare(Case("embed", (2, 9, 50, 32), "float32"))
    call = work.call(FASTPE)
    work.check(FASTPE, work.contenders[FASTPE], call)
    out = call()
    with pytest.raises(benchmark.WrongResult):
        work.check(FASTPE, work.contenders[FASTPE], lambda: out)


def test_bytes_are_those_of_what_is_read_and_written() -> None:
    moved = {str(case): prepare(case).moved for case in SMALL if case.dtype == "float32"}
    assert moved["add_encoding 2x9x64 float32 cpu"] == 2 * 2 * 9 * 64 * 4
    assert moved["apply_rotary 1x4x2x8x16 float32 cpu"] == 2 * (4 + 2) * 8 * 16 * 4
    assert moved["embed 2x9x50x32 float32 cpu"] == 2 * 2 * 9 * 32 * 4 + 2 * 9 * 8
    assert moved["add_bias 1x4x7x9 float32 cpu"] == 2 * 4 * 7 * 9 * 4


def test_values_are_put_back_before_they_are_carried_away(monkeypatch: pytest.MonkeyPatch) -> None:
    work, restored = prepare(SMALL[0]), list[int]()
    monkeypatch.setattr(workload, "fill", lambda array, xp: restored.append(1))
    for _ in range(5):
        work.spend(workload.RESTORE_AFTER // 2)
    assert len(restored) == 2  # before the third and the fifth


@pytest.mark.parametrize("operation", [*WORKLOADS])
def test_a_gpu_runs_the_same_workloads(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy stands in for CuPy, whose take has no modes: there is no GPU here."""

    def take(a: Any, indices: Any, axis: int | None = None, out: Any = None) -> Any:
        return np.take(a, indices, axis, out)

    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(**{**vars(np), "take": take}))
    monkeypatch.setattr(running, "cuda_seconds_per_call", clock.seconds_per_call)
    monkeypatch.setattr(workload, "torch_if_installed", lambda: None)
    result = running.measure_line(Case(operation, shapes_of.SMALL_SHAPES[operation][-1], "float32", "cuda"), 1)
    assert result["failures"] == {}
    assert result["seconds"].keys() == {FASTPE, CACHED, SCRATCH, "add_one_cupy"}
    text = results.table([result])
    assert text.startswith("On the GPU\noperation")
    assert "CuPy, from scratch" in text


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "problem", lambda: None)
    assert running.devices() == ("cpu", "cuda")


def test_a_contender_that_fails_leaves_the_rest_of_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(work: Any) -> Any:
        raise TypeError("take() got an unexpected keyword argument 'mode'")

    embedding = WORKLOADS["embed"]
    monkeypatch.setattr(embedding, "contenders", {**embedding.contenders, CACHED: Contender(take)})
    said = run(capsys, "--only", "embed 2x9x50x32 float32", "--json", "run.json")
    lines = [line for line in said.splitlines() if line.startswith("embed")]
    assert len(lines) == 1
    assert "failed: TypeError: take() got an unexpected" in lines[0]
    assert re.search(r"[x?] ±\d", lines[0].split("unexpected")[1])  # the ratios after it, a "?" where they spread too far
    assert "embed 2 x 9 x 50 x 32 float32: cached: TypeError: take() got an unexpected keyword argument 'mode'" in said
    assert benchmark.read("run.json")["results"][0]["failures"].keys() == {CACHED}


def test_the_figures_alone_go_to_stdout_and_the_table_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--quick", "--only", "embed 2x9x50x32 float32", "--json", "-"]) == 0
    said = capsys.readouterr()
    assert [result["operation"] for result in json.loads(said.out)["results"]] == ["embed"]
    assert "\nembed " in said.err


def test_fastpe_failing_is_in_its_cell_and_in_the_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> Any:
        raise MemoryError("no memory is left")

    monkeypatch.setattr(add_encoding, "add_encoding", full)
    said = run(capsys, "--only", "float32", "--json", "run.json", code=1)
    assert said.count("failed: MemoryError: no memory is left") == 2
    assert said.count("embed  ") == 1
    run(capsys, "--only", "float32", "--compare", "run.json", code=1)


def test_a_contender_that_fails_later_leaves_the_rest_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def after_the_check(work: Any) -> Any:
        call, calls = _cached(work), iter(range(3))
        return lambda: (call(), next(calls))[0]

    embedding = WORKLOADS["embed"]
    _cached = embedding.contenders[CACHED].make
    monkeypatch.setattr(embedding, "contenders", {**embedding.contenders, CACHED: Contender(after_the_check)})
    monkeypatch.setattr(clock, "ROUND_SECONDS", 0.0)
    result = running.measure_line(Case("embed", (2, 9, 50, 32), "float32"), 1)
    assert result["failures"] == {CACHED: "StopIteration:"}
    assert {FASTPE, SCRATCH} <= result["seconds"].keys()


# ---- the command -------------------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert cli.main(["bench", *arguments]) == code
    said = capsys.readouterr()
    assert said.err == ""  # no progress bar where there is no terminal
    return said.out


def test_bench_saves_and_compares(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = run(capsys, "--only", "float32", "--json", "run.json", "--threads", "1")
    assert "1 thread;" in said.splitlines()[0]
    assert said.count("float32") == sum(len(shapes) for shapes in shapes_of.SMALL_SHAPES.values())
    assert "bfloat16" not in said
    assert f"saved {tmp_path / 'run.json'}" in said
    saved = json.loads(Path("run.json").read_text())
    assert saved["machine"]["threads"] == 1
    for result in saved["results"]:  # as if it had been slow, and then fast
        for values in (result["spreads"][FASTPE], result["over_add_one"]):
            values[:] = [value * 1000 for value in values]
    Path("slow.json").write_text(json.dumps(saved))
    said = run(capsys, "--only", "embed 2x9x50x32 float32", "--compare", "slow.json")
    assert said.endswith("Nothing is slower by more than 10 % and the spreads.\n")
    assert "faster\n" in said
    for result in saved["results"]:
        for values in (result["spreads"][FASTPE], result["over_add_one"]):
            values[:] = [value / 10**6 for value in values]
    saved["machine"]["cpu"] = "Another CPU"
    Path("fast.json").write_text(json.dumps(saved))
    said = run(capsys, "--only", "embed 2x9x50x32 float32", "--compare", "fast.json", code=1)
    assert "Beside the saved run (another machine: cpu Another CPU" in said
    assert "slower: embed 2 x 9 x 50 x 32 float32 takes" in said


def test_bench_quick_is_smaller() -> None:
    quick, whole = (
        sum(np.prod(shape) for several in shapes.values() for shape in several)
        for shapes in (shapes_of.QUICK_SHAPES, shapes_of.SHAPES)
    )
    assert quick < whole / 4
    assert shapes_of.QUICK_SHAPES.keys() == shapes_of.SHAPES.keys() == WORKLOADS.keys()
    os.environ.pop("FASTPE_BENCH_SMALL")
    assert benchmark.cases(True, ("cpu",), ("float32",))[0].shape == shapes_of.QUICK_SHAPES["add_encoding"][0]
    assert len(benchmark.cases(False, ("cpu", "cuda"), DTYPES)) == 4 * sum(len(shapes) for shapes in shapes_of.SHAPES.values())


def test_bench_refuses_a_wrong_result(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(add_encoding, "add_encoding", lambda x, *_, **__: x)
    said = run(capsys, "--quick", "--only", "float32", code=1)
    lines = [line for line in said.splitlines() if line.startswith("add_encoding")]
    assert [line.split()[7:10] for line in lines] == [["failed:", "WrongResult:", "add_encoding"]] * 2
    assert "add_encoding 3x1x64 float32 cpu: fastpe differs from the formula" in said
    assert any(line.startswith("embed") and "failed" not in line for line in said.splitlines())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--only", "nosuch"], "--only must be part of a line's name, such as 'add_encoding 3x1x64 float32 cpu', got 'nosuch'"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--json", "nosuch/x.json"], "--json must name a file in a folder that exists"),
        (["--json", "."], "--json must name a file in a folder that exists"),
        (["--compare", "nosuch.json"], "'nosuch.json' cannot be used: No such file"),
        (["--compare", "text"], "--compare must be a saved run, got 'text'. Write one with: python -m fastpe bench --json"),
        (["--compare", "list"], "--compare must be a saved run"),
        (["--compare", "other"], "--compare must be a saved run"),
        (["--compare", "older"], "That run has no spreads, as it was saved by an earlier version"),
    ],
)
def test_bench_refuses(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text").write_text("not JSON")
    Path("list").write_text("[]")
    Path("older").write_text('{"version": 1, "machine": {"cpu": ""}, "results": []}')
    Path("other").write_text('{"version": 2, "machine": {"cpu": ""}, "results": [{"seconds": {}}]}')
    before = sorted(os.listdir())
    assert cli.main(["bench", *arguments]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert expected in said.err
    assert sorted(os.listdir()) == before


# ---- a busy machine ------------------------------------------------------------------------------------------------------------


def test_a_busy_machine_is_told_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_busy_cores", lambda: 1.4)
    known = {**benchmark.machine(2, ""), "cores": 2}
    monkeypatch.setattr(benchmark, "machine", lambda *_: known)
    said = run(capsys, "--only", "embed 2x9x50x32 float32", "--json", "run.json")
    assert "warning: Other work took 1.4 of 2 cores as this began, and fastpe uses 2: stop it and measure again." in said
    assert benchmark.read("run.json")["machine"]["busy_cores"] == 1.4
    known["cores"] = 4
    assert "Other work" not in run(capsys, "--only", "embed 2x9x50x32 float32")


def test_doubtful_lines_are_counted() -> None:
    machine = {"cores": 2, "threads": 2, "busy_cores": None}
    assert benchmark.warnings(machine, 0, 5) == []
    assert benchmark.warnings(machine, 3, 5) == [
        "In 3 of 5 lines x += 1 itself varied by more than 10%: their figures are doubtful."
    ]


def test_what_other_work_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", types.SimpleNamespace(cpu_percent=lambda interval: 75.0, cpu_count=lambda: 4))
    assert spread.busy_cores() == 3.0
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 0.0, 0.0), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert spread.busy_cores() == 1.5
    monkeypatch.setattr(os, "getloadavg", lambda: (3.3, 0.0, 0.0))  # programs that wait for a core are in the load
    assert spread.busy_cores() == 2.0
    monkeypatch.delattr(os, "getloadavg")
    assert spread.busy_cores() is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.steps(4, "measuring") as show:
        for name in ("one", "two", "three", "four"):
            show(name)
    said = terminal.getvalue()
    assert said.index("  0%") < said.index("one")
    assert said.index(" 75%") < said.index("four")
    assert "100%" not in said


@pytest.mark.parametrize("before", [None, "", "1"])
def test_nothing_else_is_written_into_the_bar(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.delenv("FASTPE_QUIET", raising=False)
    if before is not None:
        monkeypatch.setenv("FASTPE_QUIET", before)
    compile._announce.cache_clear()
    with progress.steps(4, "measuring"):
        compile._announce("once")
    assert "compiling" not in terminal.getvalue()
    assert os.environ.get("FASTPE_QUIET") == before


def test_without_tqdm_progress_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    for stream, expected in ((Terminal(), "measuring, 4 steps (pip install tqdm shows them)\n"), (io.StringIO(), "")):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.steps(4, "measuring") as show:
            show("one")
        assert stream.getvalue() == expected


def test_bench_works_without_optional_packages() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(("torch", "cupy", "psutil", "tqdm", "matplotlib"), None))
from fastpe._tools import cli
assert cli.main(["bench", "--quick", "--only", "add_bias"]) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "add_bias" in done.stdout
