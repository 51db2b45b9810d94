"""What is measured: cases and contenders of the suite (``pytest bench``), the ratios, the documentation's table and the claims.

A case is a verb with a shape and an element type. Its workload makes the arrays; a contender makes a call over them, which is checked
against the formula before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

from fastpe._tools.benchmark.case import Case
from fastpe._tools.benchmark.expressions import element
from fastpe._tools.benchmark.verbs import WORKLOADS
from fastpe._tools.benchmark.workload import CACHED, FASTPE, SCRATCH, TORCH, Contender, Workload

from . import contenders
from .contenders import AddingAndEncoding

DTYPES = ("float32", "float64", "float16", "bfloat16")
FLOAT32_AND_BFLOAT16 = ("float32", "bfloat16")
MB = 1 << 20


def workload(case: Case) -> Workload:
    """The arrays of a case."""
    return AddingAndEncoding(case) if case.operation == "add_encoding" else WORKLOADS[case.operation](case)


# ---- contenders --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A contender, and the cases that it ends in reasonable time."""

    contender: Contender
    dtypes: tuple[str, ...] = DTYPES
    most_float16: int = 1 << 62  # elements; NumPy computes float16 in software, fifty times slower
    writes_only: bool = False  # it reads no x

    def suits(self, case: Case) -> bool:
        """Whether it knows the element type and ends in reasonable time."""
        return case.dtype in self.dtypes and (case.dtype != "float16" or prod(case.shape) <= self.most_float16)

    def bytes_moved(self, case: Case, work: Workload) -> int:
        """Bytes read and written once; for the encoding alone those of the result."""
        if not self.writes_only:
            return work.moved
        return int(case.positions.size) * case.shape[-1] * element(case.dtype).itemsize


def _of(operation: str, name: str) -> Contender:
    return WORKLOADS[operation].contenders[name]


_NUMPY = ("float32", "float64", "float16")
BASELINES = ("numpy_cached", "cupy_cached")  # each case's first, beside which the others are put
ENTRIES: dict[str, dict[str, Entry]] = {
    "add_encoding": {
        "numpy_cached": Entry(_of("add_encoding", CACHED), _NUMPY),
        "fastpe": Entry(_of("add_encoding", FASTPE)),
        "fastpe_out": Entry(contenders.OUT),
        "fastpe_encode": Entry(contenders.ENCODE, writes_only=True),
        "torch_cached": Entry(_of("add_encoding", TORCH)),
        "numpy_scratch_f64": Entry(_of("add_encoding", SCRATCH), _NUMPY, 1 << 24),
        "numpy_scratch_f32": Entry(contenders.SCRATCH_FLOAT32, ("float32", "float16"), 1 << 24),
    },
    **{
        operation: {
            "numpy_cached": Entry(_of(operation, CACHED), ("float32",)),
            "fastpe": Entry(_of(operation, FASTPE)),
            "torch_cached": Entry(_of(operation, TORCH)),
        }
        for operation in ("apply_rotary", "embed", "add_bias")
    },
}
ENTRIES["add_bias"] |= {
    "fastpe_causal": Entry(contenders.CAUSAL),
    "torch_cached_causal": Entry(contenders.CAUSAL_TORCH),
    "numpy_cached_causal": Entry(contenders.CAUSAL_CACHED, ("float32",)),
}
CUDA_ENTRIES: dict[str, dict[str, Entry]] = {
    operation: {"cupy_cached": Entry(_of(operation, CACHED)), "fastpe": Entry(_of(operation, FASTPE))} for operation in ENTRIES
}


def entries(case: Case) -> dict[str, Entry]:
    """The contenders that suit a case."""
    every = (CUDA_ENTRIES if case.device == "cuda" else ENTRIES)[case.operation]
    return {name: entry for name, entry in every.items() if entry.suits(case)}


# ---- the suite and the ratios ------------------------------------------------------------------------------------------------

# add_encoding: rows of one sequence and of 32, arrays in the caches, past them. The others: a prefill or a batch, and one token.
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "add_encoding": (
        (1, 1, 1024),
        (32, 1, 1024),
        (1, 128, 768),
        (8, 1024, 512),
        (64, 128, 768),
        (32, 4096, 1024),
        (1, 131072, 1024),
    ),
    "apply_rotary": ((1, 32, 8, 8192, 128), (32, 32, 8, 1, 128)),
    "embed": ((32, 4096, 32_000, 1024), (32, 1, 32_000, 1024)),
    "add_bias": ((2, 32, 2048, 2048), (32, 32, 1, 2048)),
}
SMALL_SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "add_encoding": ((1, 1, 64), (3, 1, 64), (2, 9, 64)),
    "apply_rotary": ((1, 4, 2, 16, 32), (3, 4, 2, 1, 32)),
    "embed": ((2, 9, 50, 32), (3, 1, 50, 32)),
    "add_bias": ((2, 4, 16, 16), (3, 4, 1, 16)),
}


def suite(operation: str, small: bool, device: str = "cpu") -> list[Case]:
    """Every shape of a verb with every element type."""
    dtypes = DTYPES if operation == "add_encoding" and not small else FLOAT32_AND_BFLOAT16
    shapes = (SMALL_SHAPES if small else SHAPES)[operation]
    return [Case(operation, shape, dtype, device) for shape in shapes for dtype in dtypes]


# ---- the claims --------------------------------------------------------------------------------------------------------------

CACHED_SHAPES = (
    *((1, 32, 768), (1, 128, 768), (4, 64, 512), (1, 256, 768), (1, 256, 1024), (1, 512, 1024)),
    *((8, 256, 512), (1, 1024, 1024), (1, 2048, 1024), (8, 1024, 512), (1, 4096, 1024), (16, 256, 1024)),
)
GRIDS = ((8, 64), (1, 256))  # batch, rows and columns


def _cases(operation: str, shapes: Iterable[tuple[int, ...]], dtypes: tuple[str, ...] = ("float32",)) -> list[Case]:
    several = list(shapes)
    return [Case(operation, shape, dtype) for dtype in dtypes for shape in several]


def _cached(shrink: int) -> list[Case]:
    """Arrays of up to 17 MB; where the machine is only tried, not the smallest either."""
    every = _cases("add_encoding", CACHED_SHAPES, DTYPES)
    sizes = [prod(case.shape) * element(case.dtype).itemsize for case in every]
    return [case for case, size in zip(every, sizes, strict=True) if size <= 17_000_000 and size * shrink >= 100_000]


def _large(shrink: int) -> list[Case]:
    """512 MB; of 16-bit types as many elements as of float32."""
    elements = {dtype: 512 * MB // shrink // max(element(dtype).itemsize, 4) for dtype in DTYPES}
    shapes = {dtype: [(batch, elements[dtype] // 1024 // batch, 1024) for batch in (32, 1)] for dtype in DTYPES}
    return [case for dtype in DTYPES for case in _cases("add_encoding", shapes[dtype], (dtype,))]


def _out(shrink: int) -> list[Case]:
    shapes = [(32, 4096 // shrink, 1024), (1, 131072 // shrink, 1024), (1, 65536 // shrink, 1024)]
    return _cases("add_encoding", [*shapes, (8, 256, 1024), (1, 128, 1024)])


def _bias(shrink: int) -> list[Case]:
    length = max(32, 2048 // shrink)
    return _cases("add_bias", [(8 if shrink == 1 else 2, 32, length, length)], FLOAT32_AND_BFLOAT16)


# The cases of each section. ``shrink`` divides what is large, to see whether all of it runs.
CLAIMED: dict[str, Callable[[int], list[Case]]] = {
    "row": lambda shrink: _cases("add_encoding", [(1, 1, 1024), (32, 1, 1024)]),
    "cached": _cached,
    "threads": lambda shrink: _cases(
        "add_encoding", [(1, 64, 768), (1, 1024, 1024), (8, 1024, 512), (1, 131072 // shrink, 1024)]
    ),
    "positions": lambda shrink: _cases("add_encoding", [(b, 512 * MB // shrink // 4096 // b, 1024) for b in (1, 32)]),
    "out": _out,
    "large": _large,
    "size": lambda shrink: _cases("add_encoding", [(1, 4096 * MB // shrink // 4096, 1024)]),
    "rotary": lambda shrink: _cases("apply_rotary", [(1, 32, 8, 8192 // shrink, 128)], DTYPES),
    "decoding": lambda shrink: _cases("apply_rotary", [(32, 32, 8, 1, 128)], FLOAT32_AND_BFLOAT16),
    "training": lambda shrink: _cases("apply_rotary", [(1, 32, 8, 4096 // shrink, 128)], FLOAT32_AND_BFLOAT16),
    "embed": lambda shrink: _cases("embed", [(32, 4096 // shrink, 32_000 // shrink, 1024)], FLOAT32_AND_BFLOAT16),
    "bias": _bias,
    "grids": lambda shrink: _cases(
        "add_encoding", [(batch, max(8, side // shrink) ** 2, 1024) for batch, side in GRIDS], FLOAT32_AND_BFLOAT16
    ),
}
