"""The machine: versions, the card, and how fast it copies."""

from __future__ import annotations

import argparse
import importlib
import subprocess
from pathlib import Path

from .clock import gpu_seconds
from .records import Skipped, checking, say

PACKAGES = (
    "numpy",
    "numba",
    "cupy",
    "torch",
    "triton",
    "ml_dtypes",
    "transformers",
    "flashinfer",
    "liger_kernel",
    "vllm",
    "pytest",
)
QUERY = "name,driver_version,memory.total,clocks.max.sm,clocks.mem,power.limit,ecc.mode.current"


def output(command: list[str]) -> str:
    """What a program prints, or why it could not be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"


def versions(options: argparse.Namespace) -> None:
    import platform

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = str(getattr(importlib.import_module(name), "__version__", "?"))
        except Exception as error:
            found[name] = f"not here ({type(error).__name__})"
    say("versions", "info", versions=found, commit=output(["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]))
    if options.simulate:
        return
    with checking("card") as more:
        import cupy

        from fastpe._backends import cuda

        assert cuda.problem() is None, cuda.problem()
        device = cupy.cuda.Device(0)
        properties = cupy.cuda.runtime.getDeviceProperties(0)
        more.update(
            name=properties["name"].decode(),
            capability=device.compute_capability,
            multiprocessors=device.attributes["MultiProcessorCount"],
            second_level_cache=properties["l2CacheSize"],
            driver=cupy.cuda.runtime.driverGetVersion(),
            runtime=cupy.cuda.runtime.runtimeGetVersion(),
            nvrtc=cupy.cuda.nvrtc.getVersion(),
            nvidia_smi=output(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]),
        )
    with checking("bandwidth") as more:
        torch = _torch()
        a, b = (torch.empty(1 << 28, dtype=torch.float32, device="cuda").normal_() for _ in range(2))
        more["copy_GBps"] = round(2 * a.nbytes / gpu_seconds(lambda: b.copy_(a)) / 1e9)
        more["add_one_GBps"] = round(2 * a.nbytes / gpu_seconds(lambda: a.add_(1.0)) / 1e9)


def _torch():
    try:
        import torch
    except ImportError as error:
        raise Skipped(f"torch is not here ({error})") from None
    return torch
