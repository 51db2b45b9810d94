"""``python -m fastpe bench``: it refuses wrong results, says what it measured, and compares runs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpe._backends import cuda
from fastpe._backends.host import pool
from fastpe._tools import benchmark, cli, progress
from fastpe._tools.benchmark import case as shapes_of
from fastpe._tools.benchmark import clock, results, running, workload
from fastpe._tools.benchmark.case import Case
from fastpe._tools.benchmark.verbs import WORKLOADS, add_encoding, prepare
from fastpe._tools.benchmark.workload import CACHED, FASTPE, SCRATCH, TORCH, Contender

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


def test_a_gpu_runs_the_same_workloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy stands in for CuPy: there is no GPU here."""
    monkeypatch.setitem(sys.modules, "cupy", np)
    monkeypatch.setattr(running, "cuda_seconds_per_call", clock.seconds_per_call)
    monkeypatch.setattr(workload, "torch_if_installed", lambda: None)
    result = running.measure_line(Case("add_encoding", (2, 9, 64), "float32", "cuda"), 1)
    assert result["seconds"].keys() == {FASTPE, CACHED, SCRATCH, "add_one_cupy"}
    text = results.table([result])
    assert text.startswith("On the GPU\noperation")
    assert "CuPy, from scratch" in text
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
    assert "x" in lines[0].split("unexpected")[1]  # the ratios after it
    assert "embed 2 x 9 x 50 x 32 float32: cached: TypeError: take() got an unexpected keyword argument 'mode'" in said
    assert benchmark.read("run.json")["results"][0]["failures"].keys() == {CACHED}


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


def test_measured_figures_fit_together() -> None:
    result = running.measure_line(Case("apply_rotary", (1, 4, 2, 8, 16), "float32"), 1)
    assert result["share_of_roofline"] == pytest.approx(
        result["bytes"] / result["seconds"][FASTPE] / result["roofline_bandwidth"]
    )
    assert result["speedups"][CACHED] == pytest.approx(result["seconds"][CACHED] / result["seconds"][FASTPE])


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
        for name in result["seconds"]:
            result["seconds"][name] *= 1000
    Path("slow.json").write_text(json.dumps(saved))
    said = run(capsys, "--only", "embed 2x9x50x32 float32", "--compare", "slow.json")
    assert said.endswith("Nothing is slower by more than 10 %.\n")
    for result in saved["results"]:
        for name in result["seconds"]:
            result["seconds"][name] /= 10**6
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
    assert cli.main(["bench", "--quick", "--only", "add_encoding"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "add_encoding 3x1x64 float32 cpu: fastpe differs from the formula" in said.err


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
    ],
)
def test_bench_refuses(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text").write_text("not JSON")
    Path("list").write_text("[]")
    Path("other").write_text('{"version": 1, "machine": {"cpu": ""}, "results": [{"seconds": {}}]}')
    before = sorted(os.listdir())
    assert cli.main(["bench", *arguments]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert expected in said.err
    assert sorted(os.listdir()) == before


def test_runs_without_a_line_in_common() -> None:
    one = {"operation": "embed", "shape": [1], "dtype": "float32", "device": "cpu"}
    assert results.compare([], [one]) == ("The runs have no line in common.", [])


def test_slower_is_more_than_a_tenth_and_stands_beside_the_machine() -> None:
    def result(seconds: float, bandwidth: float) -> dict[str, Any]:
        case = {"operation": "embed", "shape": [2, 3], "dtype": "float32", "device": "cpu"}
        return {**case, "seconds": {FASTPE: seconds}, "roofline_bandwidth": bandwidth}

    lines, slower = results.compare([result(1e-3, 4e9)], [result(1.05e-3, 2e9)])
    assert lines.splitlines()[1].split() == ["embed", "2", "x", "3", "float32", "1.00", "ms", "1.05", "ms", "1.05x", "2.00x"]
    assert slower == []
    _, slower = results.compare([result(1e-3, 4e9)], [result(1.2e-3, 4e9)])
    assert slower == ["embed 2 x 3 float32 takes 1.20 times as long; the machine's x += 1 1.00 times"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("with_tqdm", [True, False])
def test_progress_on_a_terminal(with_tqdm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if with_tqdm:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.steps(4) as show:
        for name in ("one", "two", "three", "four"):
            show(name)
    said = terminal.getvalue()
    assert said.index("  0%") < said.index("one")
    assert said.index(" 75%") < said.index("four")
    assert "100%" not in said


def test_bench_works_without_optional_packages() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(("torch", "cupy", "tqdm", "matplotlib"), None))
from fastpe._tools import cli
assert cli.main(["bench", "--quick", "--only", "add_bias"]) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "add_bias" in done.stdout
