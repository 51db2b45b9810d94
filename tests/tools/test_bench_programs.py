"""The benchmarks' programs run, on small cases."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastpe
from bench import claims, out_of_core, ratios, registry, report
from bench.claims import calls, scheduling

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, from the project's folder; the benchmarks in it do not take part in a distributed run."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment | changes, capture_output=True, text=True)


def test_the_suite_runs() -> None:
    done = run("-m", "pytest", "bench", "--benchmark-disable", "-q", "-p", "no:cacheprovider", FASTPE_BENCH_SMALL="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_measured_results_make_a_table_and_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    tests = [f"bench/test_add_sinusoidal.py::test_add_sinusoidal[{name}-1x1x64-float32]" for name in ("numpy_cached", "fastpe")]
    flags = [
        "--benchmark-only",
        "--benchmark-enable",
        f"--benchmark-storage=file://{tmp_path / 'saved'}",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    small = {"FASTPE_BENCH_SMALL": "1", "FASTPE_NUM_THREADS": "1"}
    done = run("-m", "pytest", *tests, *flags, f"--benchmark-json={path}", "--benchmark-autosave", **small)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    for benchmark, contender in zip(found["benchmarks"], ("numpy_cached", "fastpe"), strict=True):
        info = benchmark["extra_info"]
        assert benchmark["params"] == {"contender": contender, "shape": "1x1x64", "dtype": "float32", "device": "cpu"}
        assert benchmark["group"] == "add_encoding 1x1x64 float32 cpu"
        assert (info["shape"], info["dtype"], info["threads"], info["bytes"]) == ([1, 1, 64], "float32", 1, 2 * 64 * 4)
        assert info["bandwidth"] == pytest.approx(info["bytes"] / benchmark["stats"]["median"])
        assert info["share_of_roofline"] == pytest.approx(info["bandwidth"] / info["roofline_bandwidth"])
    medians = [benchmark["stats"]["median"] for benchmark in found["benchmarks"]]
    faster = [benchmark["extra_info"]["times_as_fast_as_the_baseline"] for benchmark in found["benchmarks"]]
    assert faster == pytest.approx([1, medians[0] / medians[1]])
    assert "| (1, 1, 64), 256 B | float32 |" in report.section([found])
    assert f"fastpe {fastpe.__version__}" in report.section([found])
    done = run("-m", "pytest", *tests, *flags, "--benchmark-compare", "--benchmark-group-by=param:contender", **small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "benchmark 'contender=numpy_cached': 2 tests" in done.stdout
    assert "(0001" in done.stdout
    assert "(NOW)" in done.stdout


def test_ratios_run(tmp_path: Path) -> None:
    path = tmp_path / "ratios.json"
    done = run("-m", "bench.ratios", "--quick", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    assert len(found["results"]) == len(registry.suite("add_encoding", small=True))
    for result in found["results"]:
        assert result["share_of_roofline"] > 0
        assert result["speedups"].keys() <= set(ratios.COMPARED)
        assert "numpy_cached" in result["speedups"] or result["dtype"] == "bfloat16"
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in done.stdout.splitlines()[0]


def test_ratios_refuse_to_check_what_they_do_not_measure() -> None:
    done = run("-m", "bench.ratios", "--quick", "--check")
    assert done.returncode == 2
    assert "--check needs 1x131072x1024-float32" in done.stderr


def test_claims_run(tmp_path: Path) -> None:
    """With one thread: those of several processes that wait for each other in a loop take several times as long."""
    path = tmp_path / "claims.json"
    threads = {"FASTPE_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = run("-m", "bench.claims", "--quick", "--json", str(path), FASTPE_BENCH_SMALL="1", **threads)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the figures mean nothing" in done.stdout
    found = json.loads(path.read_text())["claims"]
    assert found.keys() == claims.SECTIONS.keys()
    for section in found.values():
        for claim in section:
            assert math.isfinite(claim["figure"])
            assert claim["what"] in done.stdout
    assert {claim["target"] is None for claim in found["profile"]} == {True}


@pytest.mark.parametrize("name", calls.FIRST_CALLS)
def test_first_calls_run(name: str) -> None:
    """A quick run measures one of them."""
    exec(calls.FIRST_CALLS[name], {"fastpe": fastpe, "x": np.zeros((2, 3, 8, 64), np.float32), "dtype": "float32"})


def test_a_claim_says_when_it_is_missed() -> None:
    fast, slow = claims.Claim("speed", 1.2, 1.0, True, "3 us"), claims.Claim("us behind", 6.0, 5.0, False, "")
    assert (fast.holds, slow.holds) == (True, False)
    assert "MISSED" in str(slow)
    assert "MISSED" not in str(fast) + str(claims.Claim("profile", 9.0, None, False, ""))


def test_more_cores_make_no_array_slower_in_the_simulation() -> None:
    costs = scheduling.Costs(wake=5e-6, come=5e-5, core=25e9, together=200e9)
    for nbytes in (1 << 18, 1 << 20, 1 << 22, 1 << 28):
        alone = scheduling.simulate(nbytes, (1,), costs, asleep=False)
        assert alone == pytest.approx(nbytes / 25e9)
        assert scheduling.simulate(nbytes, (1,) * 64, costs, asleep=False) <= alone
        assert scheduling.simulate(nbytes, (1, 0.5), costs, asleep=False) <= alone
    for count, rate in (
        (4, 100e9),
        (64, 200e9),
    ):  # all that the memory gives, after all helpers came and claimed, but for the last chunk
        helpers, chunks = min(count, 16) - 1, 1 << 10
        others = helpers * costs.wake + costs.come + chunks * scheduling.CLAIM_SECONDS + (1 << 18) / (rate / (helpers + 1))
        assert 0 <= scheduling.simulate(1 << 28, (1,) * count, costs, asleep=True) - (1 << 28) / rate <= others


def test_the_accuracy_page_has_the_errors_that_are_measured() -> None:
    from bench import accuracy

    page = (ROOT / "docs" / "accuracy.md").read_text()
    for rows in (accuracy.ENCODINGS, accuracy.ROTATIONS):
        ours = {name: error for name, error in rows.items() if name.startswith("fastpe")}
        for line in accuracy.table(ours).splitlines():
            assert line in page


def test_cuda_counts_are_those_of_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """One read and one write of every element, no spilled register."""
    pytest.importorskip("cupy", reason="NVRTC is reached through CuPy")
    import kept_nvrtc

    from bench import cuda_counts

    monkeypatch.setattr(cuda_counts.cuda, "compile_source", kept_nvrtc.compile_source)
    documented = (ROOT / "docs" / "performance.md").read_text()
    found = cuda_counts.counts(("float32", "bfloat16"), 8, ("75", "90"))
    assert {one.kernel.split(",")[0] for one in found} == {
        f"{name}_{dtype}_vec16{layout}"
        for name, layouts in (
            ("rotate", ("_half", "_interleaved")),
            ("add_sinusoidal", ("_interleaved", "_concatenated")),
            ("add_toeplitz", ("",)),
        )
        for dtype in ("f32", "bf16")
        for layout in layouts
    } | {"embed_vec16_interleaved"}
    for one in found:
        size = 4 if "_f32_" in one.kernel or "float32" in one.kernel else 2
        ids = size / 2 if one.kernel.startswith("embed") else 0  # eight bytes for each thread's sixteen
        assert one.written == size
        assert one.read == size + ids or (one.read < size and "causal" in one.kernel)
        assert one.spilled == 0
        assert set(one.instructions) == {"75", "90"}
        # A thread makes its angles for one head at decoding, and each bias where positions are given.
        alone = one.kernel.endswith(("decode", "k_positions"))
        restarts = one.kernel.endswith("cu_seqlens")  # where a thread looks for boundaries, and anchors are more
        counts = one.kernel.endswith("mask")  # where threads count the rows before theirs
        most = 60 if alone else 55 if counts else 45 if restarts else 35 if one.kernel.startswith("add_toeplitz") else 40
        assert max(one.instructions.values()) < most
        assert f"`{one.kernel.split(',')[0]}`" in documented


def test_instructions_of_the_cpu_are_counted() -> None:
    """Whatever LLVM makes of them, wide vectors take fewer, and adding takes fewer than making and adding."""
    from bench import cpu_counts

    narrow, wide = (cpu_counts.counts("float64", processor) for processor in ("x86-64-v3", "skylake-avx512"))
    assert narrow[0] > narrow[1] > 4  # two loads, two stores at least
    assert wide[0] > wide[1] > 2
    assert 70 > narrow[0] > 1.5 * wide[0]


def test_files_are_encoded_out_of_core(tmp_path: Path) -> None:
    """In little, all ways: bits are right, and none needs more memory than it may."""
    for library in ("dask.array", "zarr"):
        pytest.importorskip(library)
    results = tmp_path / "results.json"
    done = run("-m", "bench.out_of_core", "--gigabytes", "0.07", "--folder", str(tmp_path), "--json", str(results))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(results.read_text())
    assert found.keys() == out_of_core.WAYS.keys()
    assert all(one["right"] and one["before"] <= one["peak"] < out_of_core.MOST_MEMORY for one in found.values())
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_files_with_wrong_bits_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.concatenate([out_of_core.numbers(0), out_of_core.numbers(out_of_core.ROWS)]))
    assert out_of_core.has_right_bits(path, 0, 2)
    assert not out_of_core.has_right_bits(path, 1, 2)
    out_of_core.memmap(tmp_path)
    assert out_of_core.has_right_bits(path, 1, 2)
    rows = np.load(path, mmap_mode="r+")
    rows[-1, -1] = np.nextafter(rows[-1, -1], 9)
    assert not out_of_core.has_right_bits(path, 1, 2)
