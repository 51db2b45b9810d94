"""A bare gather: what an embedding costs at the least."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .table import Call

# Copies rows past the caches.
SOURCE = r"""
#include <immintrin.h>
void gather(const long* ids, long count, const char* table, char* out, long bytes) {
    for (long i = 0; i < count; i++) {
        const char* from = table + ids[i] * bytes, *next = table + ids[i + 2 < count ? i + 2 : i] * bytes;
        char* to = out + i * bytes;
        for (long j = 0; j < bytes; j += 64) {
            _mm_prefetch(next + j, _MM_HINT_T0);
            for (long k = 0; k < 64; k += 16) _mm_stream_si128((__m128i*)(to + j + k), _mm_loadu_si128((const __m128i*)(from + j + k)));
        }
    }
    _mm_sfence();
}"""


def bare_gather(ids: np.ndarray, table: np.ndarray, out: np.ndarray, threads: int) -> Call:
    """Copy rows past the caches and do nothing else: C with streaming stores, an equal part a thread; NumPy where it does not compile."""
    function = _compiled()
    if function is None:
        return lambda: np.take(table, ids, axis=0, out=out, mode="clip")
    flat, row_bytes = np.ascontiguousarray(ids.reshape(-1)), table.shape[1] * table.itemsize
    buffer = np.empty(out.nbytes + 64, np.uint8)
    base = buffer.ctypes.data + -buffer.ctypes.data % 64
    parts, workers = np.array_split(np.arange(flat.size), threads), ThreadPoolExecutor(threads)

    def copy(part: np.ndarray) -> None:
        first, address = int(part[0]), ctypes.c_void_p
        function(
            address(flat.ctypes.data + 8 * first),
            ctypes.c_long(part.size),
            address(table.ctypes.data),
            address(base + first * row_bytes),
            ctypes.c_long(row_bytes),
        )

    def call() -> None:
        assert buffer.size  # referred to, so that it is not freed
        list(workers.map(copy, parts))

    return call


def _compiled() -> Any:
    """The C function, or None where there is no compiler or no such processor."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "gather.c").write_text(SOURCE)
        command = [shutil.which("cc") or "cc", "-O2", "-shared", "-fPIC", "-o", f"{folder}/gather.so", f"{folder}/gather.c"]
        try:
            subprocess.run(command, check=True, capture_output=True)
            return ctypes.CDLL(f"{folder}/gather.so").gather
        except (OSError, subprocess.CalledProcessError):
            return None
