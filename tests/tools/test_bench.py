"""The benchmarks themselves: they reject a wrong result, they run, and their report says what they measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contenders
import numpy as np
import pytest
import ratios
import reference
import report
from contenders import CONTENDERS, CUDA_CONTENDERS, Case, Contender, Timed, Work

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
CASES = [Case(shape, dtype) for shape in contenders.SMALL_SHAPES for dtype in contenders.DTYPES]


# ---- the check ---------------------------------------------------------------------------------------------------------------


def _nothing(work: Work, contender: Contender) -> None:
    work.restore()
    if contender.writes != "x":
        getattr(work, contender.writes)[...] = 0


def _last_element(work: Work, contender: Contender) -> None:
    written = getattr(work, contender.writes)
    written[..., -1, -1] += np.asarray(0.25, written.dtype)


def _last_element_nan(work: Work, contender: Contender) -> None:
    getattr(work, contender.writes)[..., -1, -1] = np.nan


def _one_position_on(work: Work, contender: Contender) -> None:
    positions, width = work.case.positions, work.case.shape[-1]
    change = reference.sinusoidal(positions + 1, width) - reference.sinusoidal(positions, width)
    written = getattr(work, contender.writes)
    written[...] = (written.astype(np.float64) + change).astype(written.dtype)


def _twice(work: Work, contender: Contender) -> None:
    written = getattr(work, contender.writes)
    written[...] = (written.astype(np.float64) + reference.sinusoidal(work.case.positions, work.case.shape[-1])).astype(
        written.dtype
    )


FAULTS: dict[str, Callable[[Work, Contender], None]] = {
    "nothing": _nothing,
    "last_element": _last_element,
    "last_element_nan": _last_element_nan,
    "one_position_on": _one_position_on,
    "twice": _twice,
}
PAIRS = [
    pytest.param(case, contender, id=f"{'cuda-' * (group is CUDA_CONTENDERS)}{contender.name}-{case}")
    for group in (CONTENDERS, CUDA_CONTENDERS)  # those of the GPU run on NumPy's arrays here
    for contender in group.values()
    for case in CASES
    if contender.suits(case)
]


@pytest.mark.parametrize(("case", "contender"), PAIRS)
def test_check_accepts_the_contender_and_rejects_every_fault(case: Case, contender: Contender) -> None:
    if contender.missing():
        pytest.skip(f"{contender.missing()} is not installed")
    work = Work(case)
    call = contender.prepare(work)
    contenders.check(work, contender, call)
    for fault in FAULTS.values():

        def wrong(fault: Callable[[Work, Contender], None] = fault) -> None:
            call()
            fault(work, contender)

        with pytest.raises(AssertionError):
            contenders.check(work, contender, wrong)
    contenders.check(work, contender, call)


def test_check_rejects_a_result_left_from_an_earlier_call() -> None:
    for name in ("fastpe_out", "fastpe_encode"):
        work = Work(CASES[0])
        contenders.check(work, CONTENDERS[name], CONTENDERS[name].prepare(work))
        with pytest.raises(AssertionError):
            contenders.check(work, CONTENDERS[name], lambda: None)


def test_check_rejects_an_out_of_place_call_that_changes_x() -> None:
    work = Work(CASES[0])
    call = CONTENDERS["fastpe_out"].prepare(work)

    def wrong() -> None:
        call()
        work.x[0, -1, -1] += 1

    with pytest.raises(AssertionError, match="x has changed"):
        contenders.check(work, CONTENDERS["fastpe_out"], wrong)


def test_every_shape_checks_its_last_row() -> None:
    for batch, rows, _ in contenders.SHAPES:
        assert contenders._sample(batch)[-1] == batch - 1
        assert contenders._sample(rows)[-1] == rows - 1


# ---- the clock and the figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_values_stay_put_over_thousands_of_calls(dtype: str) -> None:
    work = Work(Case((2, 9, 64), dtype))
    timed = Timed(CONTENDERS["numpy_cached"].prepare(work), work.spend)
    timed.calls = 300
    largest = 0.0
    for _ in range(20):
        timed.round()
        largest = max(largest, float(np.abs(work.x.astype(np.float64)).max()))
    assert largest < contenders.RESTORE_AFTER + 10


def test_a_slow_contender_has_its_few_rounds_spread_over_the_run() -> None:
    order: list[str] = []

    def timed(name: str, seconds: float) -> Timed:
        def clock(call: Callable[[], object], calls: int) -> float:
            call()
            return seconds

        return Timed(lambda: order.append(name), clock=clock)

    both = {"fast": timed("fast", 0.01), "slow": timed("slow", 1.0)}
    order.clear()
    assert contenders.interleave(both, 0.3, 9) == {"fast": 0.01, "slow": 1.0}
    assert order == [*["fast"] * 6, "slow"] * 3  # a call not counted before each of the fast ones


def test_bytes_come_from_the_element_type() -> None:
    assert contenders.bandwidth(1000, [2.0, 1.0]) == 2000.0
    for dtype, itemsize in (("float32", 4), ("float64", 8), ("float16", 2), ("bfloat16", 2)):
        case = Case((2, 9, 64), dtype)
        moved = {name: contender.bytes_moved(case) for name, contender in CONTENDERS.items()}
        assert moved == {name: (9 if name == "fastpe_encode" else 2 * 2 * 9) * 64 * itemsize for name in CONTENDERS}


def test_every_probe_of_the_roofline_adds_one_to_every_element() -> None:
    x = np.zeros(1001, np.float32)
    for count, probe in enumerate(contenders.host_probes(x, 3).values(), 1):
        probe()
        assert (x == count).all()


def test_targets() -> None:
    good = {
        "shape": [1, 131072, 1024],
        "dtype": "float32",
        "share_of_roofline": 0.8,
        "speedups": {"numpy_cached": 1.2, "numpy_scratch_f64": 61.0},
    }
    assert ratios.missed([good]) == []
    slow = {**good, "share_of_roofline": 0.7, "speedups": {"numpy_cached": 1.1, "numpy_scratch_f64": 59.0}}
    assert ratios.missed([slow]) == [
        "1x131072x1024-float32: share_of_roofline is 0.70, target 0.75",
        "1x131072x1024-float32: numpy_cached is 1.10, target 1.15",
        "1x131072x1024-float32: numpy_scratch_f64 is 59.00, target 60.0",
    ]


def test_a_benchmark_has_the_name_of_its_kernel() -> None:
    files = sorted(path.stem for path in BENCH.glob("test_*.py"))
    assert files == ["test_add_sinusoidal", "test_add_toeplitz", "test_embed", "test_rotate"]
    for file in files:
        assert (ROOT / "kernels" / f"{file.removeprefix('test_')}.py").exists()
        assert f"def {file}(" in (BENCH / f"{file}.py").read_text()


# ---- the report --------------------------------------------------------------------------------------------------------------


def entry(contender: str, seconds: float, shape: tuple[int, ...], dtype: str, nbytes: int, **more: Any) -> dict[str, Any]:
    info = {"contender": contender, "shape": list(shape), "dtype": dtype, "array_bytes": nbytes, "device": "cpu", **more}
    return {"extra_info": info, "stats": {"median": seconds}}


LONG, SHORT = ((1, 131072, 1024), "float32", 1 << 29), ((1, 1, 1024), "bfloat16", 1 << 11)
RESULTS: dict[str, Any] = {
    "machine_info": {
        "fastpe": {
            "cpu": "A CPU",
            "cores": 2,
            "threads": 1,
            "versions": {"Python": "3.11.7", "NumPy": "2.4.6"},
            "command": "pytest bench",
        }
    },
    "benchmarks": [
        entry("numpy_cached", 0.0506, *LONG),
        entry("fastpe", 0.0253, *LONG, share_of_roofline=0.861),
        entry("torch_cached", 0.0332, *LONG),
        entry("numpy_scratch_f64", 3.5, *LONG),
        entry("fastpe", 4.5e-6, *SHORT, share_of_roofline=0.031),
        entry("torch_cached", 1.8e-6, *SHORT),
        {"extra_info": {}, "stats": {"median": 1.0}},
    ],
}
TABLE = """\
| x | dtype | fastpe | of the roofline | over NumPy, cached table | over torch, cached table | over NumPy, from scratch |
|---|---|--:|--:|--:|--:|--:|
| (1, 131072, 1024), 512 MiB | float32 | 25.3 ms | 86% | 2.00x | 1.31x | 138x |
| (1, 1, 1024), 2 KiB | bfloat16 | 4.50 us | 3% | - | 0.40x | - |"""
MACHINE = "A CPU, 2 cores, 1 thread; Python 3.11.7, NumPy 2.4.6"
README = f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nRest.\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RESULTS))
    return path


def test_table(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.main([str(results), "--print"])
    assert capsys.readouterr().out == f"{report.EXPLANATION}\n\n{TABLE}\n\n{MACHINE}. Command: `pytest bench`.\n"


def test_a_gpu_has_its_own_table() -> None:
    gpu = {"device": "cuda", "device_name": "A GPU, CuPy 14"}
    both = {
        **RESULTS,
        "benchmarks": [
            *RESULTS["benchmarks"],
            entry("fastpe", 2.6e-4, *LONG, share_of_roofline=0.98, **gpu),
            entry("cupy_cached", 5.2e-4, *LONG, **gpu),
        ],
    }
    _, host, device, machine = report.section(both).split("\n\n")
    assert host == TABLE
    assert device == (
        "| x | dtype | fastpe | of the roofline | over CuPy, cached table |\n|---|---|--:|--:|--:|\n"
        "| (1, 131072, 1024), 512 MiB | float32 | 260 us | 98% | 2.00x |"
    )
    assert machine == f"{MACHINE}; A GPU, CuPy 14. Command: `pytest bench`."


def test_rewriting_keeps_the_rest_and_is_idempotent(results: Path, tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text(README)
    report.main([str(results), str(document)])
    once = document.read_text()
    assert once.startswith(f"# Title\n\n{report.BEGIN}\n{report.EXPLANATION}\n\n{TABLE}")
    assert once.endswith(f"`pytest bench`.\n{report.END}\n\nRest.\n")
    assert "old" not in once
    report.main([str(results), str(document)])
    assert document.read_text() == once


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# Title\n", "must contain the line <!-- benchmarks:begin --> once; it does 0 times"),
        (f"{report.BEGIN}\n", "must contain the line <!-- benchmarks:end --> once; it does 0 times"),
        (README + README, "must contain the line <!-- benchmarks:begin --> once; it does 2 times"),
        (f"{report.END}\n{report.BEGIN}\n", "must come after"),
    ],
)
def test_a_document_without_its_markers_is_left_alone(results: Path, tmp_path: Path, text: str, message: str) -> None:
    document = tmp_path / "README.md"
    document.write_text(text)
    with pytest.raises(SystemExit, match=message):
        report.main([str(results), str(document)])
    assert document.read_text() == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[]", "is not pytest-benchmark's JSON"),
        ("{}", "there is no benchmark of fastpe"),
        ('{"benchmarks": []}', "there is no benchmark of fastpe"),
        (json.dumps({"benchmarks": RESULTS["benchmarks"]}), "do not describe the machine"),
    ],
)
def test_results_that_hold_nothing(results: Path, text: str, message: str) -> None:
    results.write_text(text)
    with pytest.raises(SystemExit, match=message):
        report.main([str(results), "--print"])


def test_results_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="cannot read"):
        report.main([str(tmp_path / "none.json"), "--print"])


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.504, "3.50 s"), (0.0274, "27.4 ms"), (0.1234, "123 ms"), (9e-7, "0.90 us"), (4.2e-5, "42.0 us")]
)
def test_durations(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text
