"""The fixture that several tests of the kernels share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def device(ptx_folder: Path) -> Iterator[Any]:
    """A simulated GPU, which records what is launched on it and whose stream can be captured."""
    pytest.importorskip("cupy")
    import simulated_cupy
    from platforms import SimulatedPlatform

    with simulated_cupy.installed(ptx_folder):
        platform: Any = SimulatedPlatform()
        platform.launched = simulated_cupy.launched
        platform.launched.clear()
        yield platform
        simulated_cupy.Stream.captured = None
