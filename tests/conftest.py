"""Fixtures of all tests; the folder where compiled kernels are kept between runs; what processes that tests start import."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kept
import platforms
import pytest

kept.prepare()  # before fastpe is first asked for a kernel

# Processes that tests start import this checkout, whatever is installed, and find the tests' helpers.
_PATHS = [str(kept.ROOT), str(kept.ROOT / "tests" / "helpers")]
os.environ["PYTHONPATH"] = os.pathsep.join([*_PATHS, *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(scope="session")
def ptx_folder() -> Path:
    """Where the PTX that the simulated GPU runs is kept."""
    return kept.folder("ptx")


@pytest.fixture(params=["numpy", "simulated", pytest.param("cuda", marks=pytest.mark.cuda)])
def platform(request: pytest.FixtureRequest, ptx_folder: Path) -> Iterator[platforms.Platform]:
    """Every place where arrays can be."""
    yield from platforms.open_platform(request.param, ptx_folder)


@pytest.fixture(params=["simulated-75", "simulated-90", "simulated-120", pytest.param("cuda", marks=pytest.mark.cuda)])
def gpu(request: pytest.FixtureRequest, ptx_folder: Path) -> Iterator[platforms.Platform]:
    """Every GPU, simulated for three architectures or real."""
    yield from platforms.open_platform(request.param, ptx_folder)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> Any:
    """Every device of PyTorch that tensors can be on."""
    torch = pytest.importorskip("torch")
    if request.param == "cuda":
        platforms.require_cuda()
        if not torch.cuda.is_available():
            (pytest.fail if platforms.REQUIRE_CUDA else pytest.skip)("no GPU: PyTorch finds none")
        return torch.device("cuda", 0)
    return torch.device("cpu")
