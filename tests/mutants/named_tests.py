"""Tests for what a record of lines does not see: kernels, which are compiled, and what runs in processes of its own.

Patterns of files, each with patterns of tests in the order in which to try them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator

# They compare times, read the sources, or do not test the library: they say nothing of a mutant.
LEFT_OUT = (
    "tests/core/test_architecture.py",
    "tests/core/test_costs.py",
    "tests/core/test_types.py",
    "tests/tools/*",
    "tests/ptx/*",
)

_CORE, _BITS = "tests/core/test_", "tests/kernels/test_same_bits.py::test_"
_SCENARIOS = ("tests/core/test_concurrency.py*",)
_TOGETHER = ("tests/kernels/test_arithmetic.py*", f"{_CORE}contract.py*numpy*", f"{_CORE}properties.py*")
_SINES = (
    *(f"{_CORE}{name}.py*" for name in ("sinusoidal", "row_cache", "streaming_stores", "positions", "fourier", "grid_tables")),
    f"{_CORE}grid.py*numpy*",
)
_ROTATIONS = tuple(f"{_CORE}{name}.py*" for name in ("apply_rotary", "rerotate", "rotary", "rotary_axes", "rotary_tables"))
_SUMS = tuple(f"{_CORE}{name}.py*" for name in ("embed", "learned_positions", "grid_tables", "call_cache_embeddings"))
_BIASES = tuple(f"{_CORE}{name}.py*" for name in ("bias", "call_cache_biases"))
_SINE_BITS = (
    *(
        f"{_BITS}{name}[[]*"
        for name in ("encodings", "position_modes", "views", "offsets", "encode", "special_values", "grids")
    ),
    f"{_BITS}heads_and*",
    f"{_BITS}fourier*",
)
_ROTATION_BITS = (f"{_BITS}rotary*", f"{_BITS}rerotate*", "tests/kernels/test_cuda_backend.py*heads*")
_BIAS_BITS, _SUM_BITS = (f"{_BITS}bias*",), (f"{_CORE}embed_gpu.py*rounds*", f"{_CORE}embed_gpu.py*", f"{_BITS}grids*")
_PLACE_BITS = (f"{_BITS}position_modes*", f"{_BITS}not_a*", f"{_CORE}where.py*simulated*", f"{_BITS}rotary_position*")

NAMED = {
    "fastpe/_arrays/dispatch.py": ("tests/torch/test_torch_compile.py*same*",),
    "fastpe/_arrays/locks.py": ("tests/core/test_concurrency.py*fork_while*", *_SCENARIOS),
    "fastpe/_arrays/torch.py": ("tests/torch/test_torch_faults.py*", "tests/torch/test_torch_storages.py*"),
    "fastpe/_backends/disk_cache.py": ("tests/kernels/test_cache.py*",),
    "fastpe/_backends/host/*": ("tests/kernels/test_cache.py*", *_SCENARIOS),
    "fastpe/_core/call_cache.py": _SCENARIOS,
    "kernels/__init__.py": ("tests/kernels/test_kernels.py*",),
    "kernels/abi.py": ("tests/kernels/test_kernels.py*", *_SINES, *_ROTATIONS, *_BIASES, *_SUMS, *_SCENARIOS),
    "kernels/add_sinusoidal*.py": (*_SINES, *_TOGETHER),
    "kernels/add_toeplitz*.py": _BIASES,
    "kernels/arithmetic.py": ("tests/kernels/test_arithmetic.py*", f"{_CORE}embed.py*", *_SINES, *_ROTATIONS, *_BIASES),
    "kernels/add_table.py": _SUMS,
    "kernels/embed.py": _SUMS,
    "kernels/gather_sum*.py": _SUMS,
    "kernels/loops.py": (*_SUMS, *_BIASES, *_SINES, *_ROTATIONS),
    "kernels/rotate*.py": _ROTATIONS,
    "kernels/locate_rows.py": (f"{_CORE}where.py*", f"{_CORE}positions.py*", *_ROTATIONS),
    "kernels/scheduler.py": (f"{_CORE}sinusoidal.py*", *_SCENARIOS, *_SINES, *_ROTATIONS, *_TOGETHER),
    "kernels/simd.py": ("tests/kernels/test_arithmetic.py*", f"{_CORE}streaming_stores.py*", *_SINES, *_BIASES, *_SUMS),
    "kernels/add_sinusoidal.cu": _SINE_BITS,
    "kernels/sinusoidal_rows.cuh": (*_SINE_BITS, *_SUM_BITS),
    "kernels/add_toeplitz.cu": _BIAS_BITS,
    "kernels/arithmetic.cuh": (*_SINE_BITS, *_ROTATION_BITS, *_BIAS_BITS, *_SUM_BITS, "tests/kernels/test_cuda_masks.py*"),
    "kernels/add_table.cu": _SUM_BITS,
    "kernels/embed.cu": _SUM_BITS,
    "kernels/gather_sum.cuh": _SUM_BITS,
    "kernels/rotate*.cu*": _ROTATION_BITS,
    "kernels/locate_rows.cu": _PLACE_BITS,
}


def patterns_of(file: str) -> Iterator[str]:
    """The patterns of tests for a file, without those that came before."""
    named = (tests for pattern, tests in NAMED.items() if fnmatch.fnmatch(file, pattern))
    yield from dict.fromkeys(pattern for tests in named for pattern in tests)
