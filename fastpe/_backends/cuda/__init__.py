"""CUDA memory: kernels compiled by NVRTC, launched on the caller's stream."""

from .available import problem
from .compile import compile_source, source
from .launch import gather_sum_options, prepare, run, warmup
from .locate import locate_rows_counted, locate_rows_given
from .tables import kept

__all__ = [
    "compile_source",
    "gather_sum_options",
    "kept",
    "locate_rows_counted",
    "locate_rows_given",
    "prepare",
    "problem",
    "run",
    "source",
    "warmup",
]
