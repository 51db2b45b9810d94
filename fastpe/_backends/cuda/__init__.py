"""CUDA memory: kernels compiled by NVRTC, launched on the caller's stream."""

from .available import problem
from .compile import architecture, compile_source, refuse_temporary, source
from .launch import ID_TYPES, SCALE_TYPES, gather_sum_options, run, warmup
from .locate import MOST_COUNTED_ROWS, kind_of_positions, locate_rows_counted, locate_rows_given
from .prepared import prepare
from .tables import clear, kept, uploaded

__all__ = [
    "ID_TYPES",
    "MOST_COUNTED_ROWS",
    "SCALE_TYPES",
    "architecture",
    "clear",
    "compile_source",
    "gather_sum_options",
    "kept",
    "kind_of_positions",
    "locate_rows_counted",
    "locate_rows_given",
    "prepare",
    "problem",
    "refuse_temporary",
    "run",
    "source",
    "uploaded",
    "warmup",
]
