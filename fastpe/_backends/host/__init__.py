"""Host memory: kernels compiled by Numba, run on the calling thread and on helpers.

``import fastpe`` needs only ``pool`` from here; the rest, a third of the time of that import, is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..._arrays.locks import unforkable

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with unforkable:
        for file in ("launch", "locate", "compile", "chunking"):
            module = importlib.import_module(f".{file}", __name__)
            globals().update({exported: vars(module)[exported] for exported in __all__ if exported in vars(module)})
    return globals()[name]
