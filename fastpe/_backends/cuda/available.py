"""Whether CUDA can be used, and what to install if not."""

from __future__ import annotations

import functools
import re


def problem() -> str | None:
    """Say why CUDA cannot be used here and what to do about it; None if it can."""
    reason = _problem()
    if reason is not None:
        _problem.cache_clear()  # it may be solved while this process runs
    return reason


@functools.lru_cache(maxsize=1)
def _problem() -> str | None:
    try:
        import cupy
    except ImportError as error:
        if getattr(error, "name", None) == "cupy":
            return "CuPy is not installed: pip install 'fastpe[cuda13]' (CUDA 13 driver) or 'fastpe[cuda12]' (CUDA 12 driver)"
        return f"CuPy cannot be imported ({error}): reinstall it with pip install 'fastpe[cuda13]' or 'fastpe[cuda12]'"
    runtime = cupy.cuda.runtime
    if runtime.is_hip:
        return "this CuPy is built for ROCm; fastpe's kernels are CUDA: pip install 'fastpe[cuda13]' or 'fastpe[cuda12]'"
    if tuple(int(part) for part in re.findall(r"\d+", cupy.__version__)[:2]) < (14, 2):
        return f"CuPy {cupy.__version__} is too old, 14.2 is needed: pip install -U 'fastpe[cuda13]' or 'fastpe[cuda12]'"
    try:
        devices = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        return f"no CUDA device can be used ({error}): install or update the NVIDIA driver"
    if devices == 0:
        return "no CUDA device was found: check nvidia-smi and CUDA_VISIBLE_DEVICES"
    try:
        from cupy.cuda import nvrtc

        compiler = nvrtc.getVersion()[0]
    except Exception as error:
        package = "nvidia-cuda-nvrtc" if runtime.runtimeGetVersion() >= 13000 else "nvidia-cuda-nvrtc-cu12"
        return f"NVRTC, the compiler, was not found ({type(error).__name__}): pip install {package}"
    driver = runtime.driverGetVersion() // 1000
    if compiler > driver:
        return f"NVRTC {compiler} is newer than the driver's CUDA {driver}: pip install 'fastpe[cuda{driver}]', or update the driver"
    return None


def require() -> None:
    """Raise ImportError with what to install if CUDA cannot be used."""
    reason = problem()
    if reason is not None:
        raise ImportError(f"fastpe: {reason}.")
