"""The benchmarks themselves: they reject a wrong result, they run, and their report says what they measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference

from bench import chart, ratios, registry, report
from bench.registry import Entry
from fastpe._tools.benchmark import clock, probes, workload
from fastpe._tools.benchmark.case import Case
from fastpe._tools.benchmark.clock import Timed, interleave
from fastpe._tools.benchmark.workload import Workload, WrongResult

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
CASES = [Case("add_encoding", shape, dtype) for shape in registry.SMALL_SHAPES["add_encoding"] for dtype in registry.DTYPES]
OTHERS = [case for operation in ("apply_rotary", "embed", "add_bias") for case in registry.suite(operation, small=True)]


# ---- the check ---------------------------------------------------------------------------------------------------------------


def _zeros(result: np.ndarray) -> None:
    result[...] = 0


def _last_element(result: np.ndarray) -> None:
    if not np.isfinite(result[..., -1, -1]).all():
        result[..., -1, 0] += np.asarray(1 + abs(result[..., -1, 0]), result.dtype)
    result[..., -1, -1] += np.asarray(0.25 + abs(result[..., -1, -1]), result.dtype)


def _last_element_nan(result: np.ndarray) -> None:
    result[..., -1, -1] = np.nan


FAULTS: dict[str, Callable[[np.ndarray], None]] = {
    "zeros": _zeros,
    "last_element": _last_element,
    "last_element_nan": _last_element_nan,
}
PAIRS = [
    pytest.param(case, name, entry, id=f"{'cuda-' * (group is registry.CUDA_ENTRIES)}{case.operation}-{name}-{case.id}")
    for group in (registry.ENTRIES, registry.CUDA_ENTRIES)  # those of the GPU run on NumPy's arrays here
    for case in (*CASES, *OTHERS)
    for name, entry in group[case.operation].items()
    if entry.suits(case)
]


def _changed(result: Any, fault: Callable[[np.ndarray], None]) -> tuple[np.ndarray, ...]:
    """Copies of the arrays of a result, the first of them changed."""
    several = result if isinstance(result, (tuple, list)) else (result,)
    copies = tuple(np.array(workload.on_host(one)) for one in several)
    fault(copies[0])
    return copies


@pytest.mark.parametrize(("case", "name", "entry"), PAIRS)
def test_check_accepts_the_contender_and_rejects_every_fault(case: Case, name: str, entry: Entry) -> None:
    contender = entry.contender
    if contender.missing():
        pytest.skip("torch is not installed")
    work = registry.workload(case)
    call = contender.make(work)
    work.check(name, contender, call)
    for fault in FAULTS.values():
        with pytest.raises(WrongResult):
            work.check(name, contender, lambda fault=fault: _changed(call(), fault))
    work.check(name, contender, call)


def _check_changed(name: str, change: Callable[[Workload, np.ndarray], None]) -> None:
    """Check a contender of add_encoding whose result is changed in float64."""
    for case in CASES:
        entry = registry.ENTRIES["add_encoding"][name]
        work = registry.workload(case)
        call = entry.contender.make(work)

        def wrong(work: Workload = work, call: Any = call) -> Any:
            result = call()
            change(work, result[0] if isinstance(result, tuple) else result)
            return result

        work.check(name, entry.contender, call)
        with pytest.raises(WrongResult):
            work.check(name, entry.contender, wrong)


@pytest.mark.parametrize("name", ["fastpe", "fastpe_out", "fastpe_encode"])
@pytest.mark.parametrize("fault", ["one_position_on", "twice"])
def test_check_rejects_other_positions_and_a_sum_made_twice(name: str, fault: str) -> None:
    def change(work: Workload, result: np.ndarray) -> None:
        positions, width = work.case.positions, work.case.shape[-1]
        added = reference.sinusoidal(positions, width)
        if fault == "one_position_on":
            added = reference.sinusoidal(positions + 1, width) - added
        result[...] = (result.astype(np.float64) + added).astype(result.dtype)

    _check_changed(name, change)


def test_check_rejects_a_result_left_from_an_earlier_call() -> None:
    for name in ("fastpe_out", "fastpe_encode"):
        work, contender = registry.workload(CASES[0]), registry.ENTRIES["add_encoding"][name].contender
        call = contender.make(work)
        work.check(name, contender, call)
        result = call()
        with pytest.raises(WrongResult):
            work.check(name, contender, lambda result=result: result)


def test_check_rejects_an_out_of_place_call_that_changes_x() -> None:
    work, contender = registry.workload(CASES[0]), registry.ENTRIES["add_encoding"]["fastpe_out"].contender
    call = contender.make(work)

    def wrong() -> Any:
        result = call()
        result[1][0, -1, -1] += 1
        return result

    with pytest.raises(WrongResult):
        work.check("fastpe_out", contender, wrong)


def test_every_shape_checks_its_last_row() -> None:
    for batch, rows, width in registry.SHAPES["add_encoding"]:
        sequences, compared = workload.sampled(batch, rows, width)
        assert (sequences[0], sequences[-1]) == (0, batch - 1)
        assert (compared[0], compared[-1]) == (0, rows - 1)
        assert len(compared) == min(rows, workload.MOST_COMPARED // 2 // width)


# ---- the clock and the figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_values_stay_put_over_thousands_of_calls(dtype: str) -> None:
    work = registry.workload(Case("add_encoding", (2, 9, 64), dtype))
    timed = Timed(registry.ENTRIES["add_encoding"]["numpy_cached"].contender.make(work), work.spend)
    timed.calls = 300
    largest = 0.0
    for _ in range(20):
        timed.round()
        largest = max(largest, float(np.abs(work.x.astype(np.float64)).max()))
    assert largest < clock.RESTORE_AFTER + 10


def test_a_slow_contender_has_its_few_rounds_spread_over_the_run() -> None:
    order: list[str] = []

    def timed(name: str, seconds: float) -> Timed:
        def clock(call: Callable[[], object], calls: int) -> float:
            call()
            return seconds

        return Timed(lambda: order.append(name), clock=clock)

    both = {"fast": timed("fast", 0.01), "slow": timed("slow", 1.0)}
    order.clear()
    assert interleave(both, 0.3, 9) == {"fast": 0.01, "slow": 1.0}
    assert order == [*["fast"] * 6, "slow"] * 3  # a call not counted before each of the fast ones


def test_bytes_come_from_the_element_type() -> None:
    assert probes.bandwidth(1000, [2.0, 1.0]) == 2000.0
    for dtype, itemsize in (("float32", 4), ("float64", 8), ("float16", 2), ("bfloat16", 2)):
        case = Case("add_encoding", (2, 9, 64), dtype)
        work, entries = registry.workload(case), registry.ENTRIES["add_encoding"]
        moved = {name: entry.bytes_moved(case, work) for name, entry in entries.items()}
        assert moved == {name: (9 if name == "fastpe_encode" else 2 * 2 * 9) * 64 * itemsize for name in entries}


def test_every_probe_of_the_roofline_adds_one_to_every_element() -> None:
    x = np.zeros(1001, np.float32)
    for count, probe in enumerate(probes.host_probes(x, 3).values(), 1):
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
    report.main([str(results)])
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
    _, host, device, machine = report.section([both]).split("\n\n")
    assert host == TABLE
    assert device == (
        "| x | dtype | fastpe | of the roofline | over CuPy, cached table |\n|---|---|--:|--:|--:|\n"
        "| (1, 131072, 1024), 512 MiB | float32 | 260 us | 98% | 2.00x |"
    )
    assert machine == f"{MACHINE}; A GPU, CuPy 14. Command: `pytest bench`."


def test_each_machine_has_its_table_its_processor_and_its_day() -> None:
    described = RESULTS["machine_info"]["fastpe"]
    other = {
        **RESULTS,
        "datetime": "2026-11-23T23:57:30+00:00",
        "machine_info": {"fastpe": {**described, "cpu": "Another"}, "cpu": {"family": 26, "model": 2}},
    }
    assert report.section([RESULTS, other]).split("\n\n") == [
        report.EXPLANATION,
        TABLE,
        f"{MACHINE}. Command: `pytest bench`.",
        TABLE,
        f"{MACHINE.replace('A CPU', 'Another (family 26, model 2)')}. Measured on 2026-11-23. Command: `pytest bench`.",
    ]


def test_the_picture_has_a_row_a_machine_and_the_ratios_of_the_table(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    entries = report.entries(RESULTS)
    first, second = chart.panels([("A CPU", entries), ("Another", entries)])  # float16 was not measured
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["float32, A CPU", "float32, Another"]
    for axes in (first, second):
        marked = {line.get_label(): line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 1}
        assert {label: round(float(x), 2) for label, (x,) in marked.items()} == {
            "NumPy, table at hand": 2.00,
            "PyTorch, table at hand": 1.31,
            "NumPy, table built": 138.34,
        }
    report.main([str(BENCH / "results" / "epyc-zen5-2-cores.json"), "--picture", str(tmp_path / "speed.png")])
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"


def test_the_page_has_the_tables_of_the_committed_runs() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    runs = sorted(path for path in (BENCH / "results").glob("*.json") if path.name != "latest.json")
    assert runs
    assert report.rewrite(page, report.section(map(report.read, runs))) == page


@pytest.mark.parametrize("operation", [*registry.ENTRIES])
def test_the_usual_expression_comes_first(operation: str) -> None:
    for entries in (registry.ENTRIES[operation], registry.CUDA_ENTRIES[operation]):
        assert next(iter(entries)) in registry.BASELINES
        assert not {*registry.BASELINES} & {*[*entries][1:]}


def test_rewriting_keeps_the_rest_and_is_idempotent(results: Path, tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text(README)
    report.main([str(results), "--into", str(document)])
    once = document.read_text()
    assert once.startswith(f"# Title\n\n{report.BEGIN}\n{report.EXPLANATION}\n\n{TABLE}")
    assert once.endswith(f"`pytest bench`.\n{report.END}\n\nRest.\n")
    assert "old" not in once
    report.main([str(results), "--into", str(document)])
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
        report.main([str(results), "--into", str(document)])
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
        report.main([str(results)])


def test_results_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="cannot read"):
        report.main([str(tmp_path / "none.json")])


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.504, "3.50 s"), (0.0274, "27.4 ms"), (0.1234, "123 ms"), (9e-7, "0.90 us"), (4.2e-5, "42.0 us")]
)
def test_durations(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


def test_the_table_has_one_verb(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = json.loads(results.read_text())
    known["benchmarks"].append(entry("fastpe", 1.0, (1, 32, 8, 64, 128), "float32", 1 << 20, operation="apply_rotary"))
    assert report.section([known]) == report.section([RESULTS])


def test_every_case_of_the_claims_is_a_case_of_a_verb() -> None:
    for cases in registry.CLAIMED.values():
        for shrink in (1, 64):
            assert all(case.operation in registry.ENTRIES and min(case.shape) > 0 for case in cases(shrink))
