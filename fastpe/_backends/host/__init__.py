"""Host memory: kernels compiled by Numba, run on the calling thread and on helpers."""

from .chunking import BYTES_PER_HELPER, CHUNK_BYTES, cache_bytes
from .compile import kernel
from .launch import prepare, run, warmup
from .locate import locate_rows_counted, locate_rows_given, locate_rows_ragged

__all__ = [
    "BYTES_PER_HELPER",
    "CHUNK_BYTES",
    "cache_bytes",
    "kernel",
    "locate_rows_counted",
    "locate_rows_given",
    "locate_rows_ragged",
    "prepare",
    "run",
    "warmup",
]
