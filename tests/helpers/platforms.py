"""Where the tests run: NumPy, a simulated GPU, and a real one where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest

REQUIRE_CUDA = os.environ.get("FASTPE_REQUIRE_CUDA") == "1"


class Platform:
    """Arrays of one library, made from NumPy views and read back to NumPy."""

    name = "numpy"
    on_host = True

    def array(self, view: np.ndarray) -> Any:
        """An array of this platform with the values and, where the platform can, the layout of a view; never the same memory."""
        raw, offset = cases.memory_of(view)
        return np.ndarray(view.shape, view.dtype, raw, offset, view.strides)

    def host(self, array: Any) -> np.ndarray:
        return np.array(array)

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """Position arguments as arrays of this platform."""
        return {name: self.array(value) if isinstance(value, np.ndarray) else value for name, value in given.items()}


class SimulatedPlatform(Platform):
    name = "simulated"
    on_host = False

    def array(self, view: np.ndarray) -> Any:
        import simulated_cupy

        return simulated_cupy.view_on_device(view)

    def host(self, array: Any) -> np.ndarray:
        return np.array(array._host)


class CudaPlatform(Platform):
    name = "cuda"
    on_host = False

    def array(self, view: np.ndarray) -> Any:
        import cupy

        raw, offset = cases.memory_of(view)
        whole = cupy.asarray(raw)
        return cupy.ndarray(view.shape, view.dtype, whole.data + offset if view.size else None, view.strides)

    def host(self, array: Any) -> np.ndarray:
        return array.get()


def require_cuda() -> None:
    """Skip where there is no GPU; fail where one was asked for."""
    from fastpe._backends import cuda

    found = cuda.problem()
    if found is not None:
        (pytest.fail if REQUIRE_CUDA else pytest.skip)(f"no GPU: {found}")


def open_platform(name: str, folder: Path) -> Iterator[Platform]:
    if name == "numpy":
        yield Platform()
    elif name.startswith("simulated"):
        pytest.importorskip("cupy", reason="the simulated GPU needs CuPy's NVRTC binding")
        import simulated_cupy

        with simulated_cupy.installed(folder, name.split("-")[1:] or ("90",)):
            yield SimulatedPlatform()
    else:
        require_cuda()
        yield CudaPlatform()
