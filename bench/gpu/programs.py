"""Other programs: the tests that need a GPU, compute-sanitizer, Nsight Compute."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .records import say

ROOT = Path(__file__).resolve().parents[2]


def run(command: list[str], limit: int, **environment: str) -> tuple[int, str]:
    """Exit status and output of a program; 124 where it took too long."""
    try:
        ended = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
    except subprocess.TimeoutExpired as error:
        out = error.stdout or ""
        return 124, out.decode(errors="replace") if isinstance(out, bytes) else out
    return ended.returncode, ended.stdout


def pytest(options: argparse.Namespace) -> None:
    """The tests marked ``cuda``. One file that cannot be collected keeps no other from running."""
    missing = [name for name in ("pytest_timeout", "pytest_benchmark") if importlib.util.find_spec(name) is None]
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    if missing:  # the project's options are of plugins that are not here
        command += ["-o", "addopts=-ra --import-mode=importlib"]
    else:
        command += ["--timeout=120"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", "6"]
    code, text = run([*command, "tests"], 170, FASTPE_REQUIRE_CUDA="1")
    lines = text.strip().splitlines()
    failed = [line[:200] for line in lines if line.startswith(("FAILED", "ERROR"))]
    say(
        "pytest -m cuda",
        "ok" if code == 0 else "fail",
        error=f"exit status {code}: {''.join(lines[-1:])}",
        failed=failed[:40],
        missing=missing,
    )


def sanitizer(options: argparse.Namespace) -> None:
    """One call of every kernel under compute-sanitizer's tools."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        say("compute-sanitizer", "skip", reason="compute-sanitizer is not on the PATH")
        return
    for name, limit in (("memcheck", 60), ("racecheck", 50)):
        flags = ["--tool", name, "--error-exitcode", "9", "--print-limit", "5"]
        code, text = run([tool, *flags, sys.executable, "-m", "bench.gpu", "--stage", "kernels", "--tiny"], limit)
        found = [json.loads(line) for line in text.splitlines() if line.startswith('{"stage"')]
        failed = [one["check"] for one in found if one["status"] == "fail"]
        said = [line for line in text.splitlines() if line.startswith("=========")][:8]
        say(name, "ok" if code == 0 and not failed else "fail", error=f"exit status {code}", said=said, failed=failed[:5])


METRICS = {
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "of the memory's peak, %",
    "sm__inst_issued.avg.pct_of_peak_sustained_active": "of the instructions' peak, %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy, %",
    "gpu__time_duration.sum": "ns",
}
PROGRAM = """
import torch, fastpe
x = torch.randn(1, 131072, 1024, device="cuda").bfloat16()
q, k = (torch.randn(1, heads, 8192, 128, device="cuda").bfloat16() for heads in (32, 8))
scores = torch.zeros(4, 32, 2048, 2048, device="cuda")
words, ids = torch.randn(128256, 4096, device="cuda").bfloat16(), torch.randint(0, 128256, (8, 8192), device="cuda")
out = torch.empty(8, 8192, 4096, device="cuda", dtype=torch.bfloat16)
for _ in range(2):
    fastpe.add_encoding(x)
    fastpe.add_encoding(x, fastpe.Sinusoidal(layout="concatenated"))
    fastpe.apply_rotary(q, k)
    fastpe.add_bias(scores, fastpe.ALiBi(32))
    fastpe.embed(ids, words, fastpe.Sinusoidal(), out=out)
torch.cuda.synchronize()
"""


def ncu(options: argparse.Namespace) -> None:
    """What bounds five kernels, as Nsight Compute counts it."""
    tool = shutil.which("ncu")
    if tool is None:
        say("ncu", "skip", reason="ncu is not on the PATH")
        return
    names = "regex:add_sinusoidal|rotate|add_toeplitz|embed"
    command = [
        tool,
        "--csv",
        "--clock-control",
        "none",  # clocks are the machine's owner's; counters do not depend on them
        "--kernel-name",
        names,
        "--launch-skip",
        "5",
        "--launch-count",
        "5",
        "--metrics",
        ",".join(METRICS),
    ]
    code, text = run([*command, sys.executable, "-c", PROGRAM], 80)
    found = counted(text)
    for kernel, values in found.items():
        say(kernel, "info", **values)
    if not found and "ERR_NVGPUCTRPERM" in text:
        say("ncu", "skip", reason="counters may be read by the administrator alone (ERR_NVGPUCTRPERM)")
    elif not found:
        say("ncu", "fail", error=f"exit status {code}: {text[-400:]}")


def counted(text: str) -> dict[str, dict[str, str]]:
    """What Nsight Compute printed, by kernel."""
    found: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(line for line in text.splitlines() if line.startswith('"')):
        metric = METRICS.get(row["Metric Name"])
        if metric is not None:
            found.setdefault(row["Kernel Name"].partition("(")[0], {})[metric] = row["Metric Value"]
    return found
