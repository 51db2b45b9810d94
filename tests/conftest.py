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
os.environ.setdefault("KERAS_BACKEND", "torch")

# Processes that tests start import this checkout, whatever is installed, and find the tests' helpers.
_PATHS = [str(kept.ROOT), str(kept.ROOT / "tests" / "helpers")]
os.environ["PYTHONPATH"] = os.pathsep.join([*_PATHS, *filter(None, [os.environ.get("PYTHONPATH")])])


# What `--fast` leaves out as a whole: processes, the interpreter of PTX, PyTorch's compiler and JAX's, Hugging Face's models, the lab.
SLOW_FILES = (
    "ptx/*.py",
    "jax/test_jax_[cfst]*.py",
    "keras/test_keras_backends.py",
    "kernels/test_aarch64.py",
    "kernels/test_cache.py",
    "kernels/test_cubin_cache.py",
    "kernels/test_cuda_*.py",
    "kernels/test_kernels.py",
    "kernels/test_memory.py",
    "kernels/test_same_bits.py",
    "kernels/test_translations.py",
    "core/test_costs.py",
    "core/test_embed_gpu.py",
    "keras/test_keras_backends.py",
    "torch/test_torch_bias_graphs.py",
    "torch/test_torch_compile.py",
    "torch/test_torch_configurations.py",
    "torch/test_torch_graphs.py",
    "torch/test_torch_minilm.py",
    "torch/test_torch_distributed.py",
    "torch/test_torch_sharded.py",
    "torch/test_torch_factors.py",
    "torch/test_torch_on_devices.py",
    "torch/test_torch_onnx.py",
    "torch/test_torch_operators.py",
    "torch/test_torch_own_classes.py",
    "torch/test_torch_patched_families.py",
    "torch/test_torch_patching.py",
    "torch/test_torch_simulated_gpu.py",
    "torch/test_torch_smollm.py",
    "torch/test_torch_training.py",
    "torch/test_torch_transformers.py",
    "tools/test_bench*.py",
    "tools/test_demo.py",
    "tools/test_digest.py",
    "tools/test_docs.py",
    "tools/test_gpu_check.py",
    "tools/test_examples.py",
    "tools/test_lab*.py",
    "tools/test_plot*.py",
)


# Where processes share the tests, each takes a whole file at a time, and these first, so that none is left alone with a long one.
LONGEST_FILES = (
    "tools/test_examples.py",
    "jax/test_jax_twin.py",
    "tools/test_bench_programs.py",
    "kernels/test_cache.py",
    "kernels/test_kernels.py",
    "core/test_concurrency.py",
    "torch/test_torch_sharded.py",
    "kernels/test_same_bits.py",
    "tools/test_lab.py",
    "keras/test_keras_backends.py",
    "torch/test_torch_compile.py",
    "fuzz/test_fuzz.py",
    "core/test_libraries.py",
    "tools/test_docs.py",
    "torch/test_torch_bias_graphs.py",
    "kernels/test_translations.py",
    "kernels/test_cuda_accesses.py",
    "torch/test_torch_transformers.py",
    "torch/test_torch_operators.py",
    "jax/test_jax_cuda.py",
    "kernels/test_memory.py",
    "torch/test_torch_patched_families.py",
    "jax/test_jax_transforms.py",
    "torch/test_torch_graphs.py",
    "torch/test_torch_onnx.py",
    "tools/test_gpu_check.py",
    "core/test_types.py",
    "kernels/test_aarch64.py",
    "jax/test_jax_arrays.py",
    "tools/test_demo.py",
    "core/test_package.py",
    "core/test_float8.py",
    "core/test_embed_gpu.py",
    "core/test_dask.py",
    "torch/test_torch_faults.py",
    "torch/test_torch_remapped.py",
    "core/test_contract.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only what takes less than a minute in all: no test that is slow")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    tests = kept.ROOT / "tests"
    slow = config.getoption("--fast") and any(collection_path.match(str(tests / pattern)) for pattern in SLOW_FILES)
    return True if slow else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
    if hasattr(config, "workerinput"):
        ranks = {kept.ROOT / "tests" / name: rank for rank, name in enumerate(LONGEST_FILES)}
        items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(scope="session")
def ptx_folder() -> Path:
    """Where the PTX that the simulated GPU runs is kept."""
    return kept.folder("ptx")


@pytest.fixture(
    params=["numpy", pytest.param("simulated", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.cuda)]
)
def platform(request: pytest.FixtureRequest, ptx_folder: Path) -> Iterator[platforms.Platform]:
    """Every place where arrays can be."""
    yield from platforms.open_platform(request.param, ptx_folder)


@pytest.fixture(
    params=[pytest.param("simulated-75-90-120", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.cuda)]
)
def gpu(request: pytest.FixtureRequest, ptx_folder: Path) -> Iterator[platforms.Platform]:
    """A GPU: simulated, which runs each launch for three architectures and compares what they leave, or real."""
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
