"""How fast the machine reads and writes: the fastest ``x += 1``, with the threads that fastpe has."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from ..._backends.host import pool
from .clock import Call

Array = npt.NDArray[Any]


def settle_threads() -> int:
    """Give torch the number of threads that fastpe uses, and return it."""
    threads = pool.get_num_threads()
    torch = torch_if_installed()
    if torch is not None:
        torch.set_num_threads(threads)
    return threads


def torch_if_installed() -> Any:
    """The module, or None."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def host_probes(x: Array, threads: int) -> dict[str, Call]:
    """Ways to read and write every byte of a float32 array once: ``x += 1``."""
    add_one = _add_one()
    probes: dict[str, Call] = {"numpy": lambda: np.add(x, 1, out=x), "numba": lambda: add_one(x)}
    if threads > 1:
        probes["numba_threads"] = _split(add_one, x, threads)
    torch = torch_if_installed()
    if torch is not None:
        tensor = torch.from_numpy(x)
        probes["torch"] = lambda: tensor.add_(1)
    return probes


@functools.lru_cache(maxsize=1)
def _add_one() -> Callable[[Array], None]:
    import numba

    def add_one(x: Array) -> None:
        for i in range(x.size):
            x[i] += np.float32(1)

    compiled: Callable[[Array], None] = numba.njit("void(float32[::1])", nogil=True)(add_one)
    return compiled


def _split(kernel: Callable[[Array], None], x: Array, threads: int) -> Call:
    """The kernel on equal parts, one a thread; the caller's thread does the first."""
    first, *others = np.array_split(x, threads)
    pool = ThreadPoolExecutor(threads - 1)

    def call() -> None:
        pending = [pool.submit(kernel, part) for part in others]
        kernel(first)
        for one in pending:
            one.result()

    return call


def bandwidth(nbytes: int, medians: Iterable[float]) -> float:
    """Bytes per second of the fastest probe."""
    return 2 * nbytes / min(medians)
