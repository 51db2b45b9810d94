"""Run every kernel of the CPU on arrays that end, or begin, at a page that may not be touched: ``python memory_cases.py KERNEL``.

Guarded are x, out, tables, ids, positions, masks and biases, and what the library makes itself: positions of rows, tables of plans and
scratch memory. The case is printed before it runs, so that the last line names the one that ended the process. A prefetch may leave an
array, as it never faults.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import cases
import numpy as np
from fastpe.kernels import locate_rows
from guarded import Arena

import fastpe
from fastpe._backends.host import chunking, launch, prepared

ROWS = 11  # more than share an anchor
ARENA = Arena()
DTYPES = {**cases.DTYPES, "int8": np.dtype(np.int8), "uint8": np.dtype(np.uint8)}
MODES = ("in place", "out", "streams")


TABLES = launch._tables.__wrapped__
LOCATE = {name: getattr(locate_rows, name) for name in ("locate_rows_given", "locate_rows_counted")}


def guard_own_memory(place: str) -> None:
    """Let what the library makes for its kernels lie in guarded memory too."""

    @functools.lru_cache(maxsize=64)
    def guarded_tables(plan: Any) -> Any:
        arena = Arena()
        _, arrays = TABLES(plan)
        views = {name: arena.copy(array, place=place) for name, array in arrays.items()}
        return {name: view.array.ctypes.data for name, view in views.items()}, (arena, views)

    def borrow(nbytes: int) -> Any:
        scratch = ARENA.view((nbytes,), np.uint8, place=place).array  # slots are whole cache lines
        return prepared.Piece(nbytes, scratch.ctypes.data, scratch)

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: ARENA.copy(function(*arguments), place=place).array

    launch._tables = guarded_tables
    prepared._borrow, prepared.OWN_SCRATCH_BYTES, prepared.MOST_KEPT = borrow, -1, 0
    for name, function in LOCATE.items():
        setattr(locate_rows, name, guarded(function))


def guarded_rows(dtype: str, *shape: int, place: str, apart: int = 0) -> np.ndarray:
    """Numbers in guarded memory, ``apart`` elements between rows."""
    itemsize = DTYPES[dtype].itemsize
    steps = [itemsize, itemsize * (shape[-1] + apart)]
    for size in shape[-2:0:-1]:
        steps.append(steps[-1] * size)
    view = ARENA.view(shape, DTYPES[dtype], tuple(steps[: len(shape)][::-1]), place)
    view.array[...] = np.random.default_rng(5).integers(-3, 4, shape).astype(DTYPES[dtype])
    return view.array


def widths(kernel: str, dtype: str) -> range:
    """A tail of every length behind no, one and two vectors. Rotations count in pairs; sinusoids take two vectors of columns at a time.

    Rotations of 16 bits have vectors of two lengths.
    """
    itemsize = DTYPES[dtype].itemsize
    number = 64 // max(itemsize, 4)
    if kernel == "add_sinusoidal":
        number *= 2
    if kernel in ("add_toeplitz", "add_table") or kernel.startswith("rotate"):
        number = 64 // itemsize
    return range(1, 2 * number + 2)


def where(batch: int, place: str) -> Iterator[dict[str, Any]]:
    """Forms of positions: none, a table, an offset of each sequence, a mask."""
    put = functools.partial(ARENA.copy, place=place)
    yield {"offset": 3}
    yield {"positions": put(np.arange(batch * ROWS).reshape(batch, ROWS)).array}
    yield {"offset": put(np.arange(batch)).array, "mask": put(np.arange(batch * ROWS).reshape(batch, ROWS) % 3 > 0).array}


def targets(x: np.ndarray, mode: str, place: str) -> dict[str, Any]:
    return {} if mode == "in place" else {"out": guarded_rows(_name(x), *x.shape, place=place)}


def _name(x: np.ndarray) -> str:
    return next(name for name, dtype in DTYPES.items() if dtype == x.dtype)


def add_sinusoidal(dtype: str, mode: str, place: str, width: int) -> None:
    layouts = [fastpe.Sinusoidal(layout=layout) for layout in cases.LAYOUTS]
    for encoding, batch, given in ((e, b, g) for e in layouts for b in (1, 3) for g in where(b, place)):
        x = guarded_rows(dtype, batch, ROWS, width, place=place, apart=batch - 1)
        fastpe.add_encoding(x, encoding, **given, **targets(x, mode, place))
        if mode != "in place":
            out = guarded_rows(dtype, ROWS, width, place=place)
            fastpe.encode(ARENA.copy(np.arange(ROWS) / 4, place=place).array, width, encoding, out=out)
    x = guarded_rows(dtype, width, ROWS, place=place).T  # elements that lie apart
    fastpe.add_encoding(x, **targets(x, mode, place))


def add_table(dtype: str, mode: str, place: str, width: int) -> None:
    table = guarded_rows("float16" if dtype == "float16" else "float32", 2 * ROWS, width, place=place)
    for given in where(2, place):
        x = guarded_rows(dtype, 2, ROWS, width, place=place)
        fastpe.add_encoding(x, fastpe.Learned(table), **given, **targets(x, mode, place))


def embed(dtype: str, mode: str, place: str, width: int) -> None:
    table = guarded_rows(dtype, 9, width, place=place)
    out = guarded_rows("float32" if DTYPES[dtype].itemsize < 4 else dtype, 2, ROWS, width, place=place)
    options = {"row_scale": ARENA.copy(np.ones(9), place=place).array} if dtype in ("int8", "uint8") else {}
    ids = ARENA.copy(np.arange(2 * ROWS).reshape(2, ROWS) % 9, place=place).array
    for given in where(2, place):
        fastpe.embed(ids, table, "sinusoidal", out=out, **options, **given)
    if dtype == "float32":
        types = ids % 2, guarded_rows("float32", 2, width, place=place)
        learned = fastpe.Learned(guarded_rows("float32", ROWS, width, place=place))
        fastpe.embed(ids, table, learned, token_types=types, out=out)


def rotate(dtype: str, mode: str, place: str, width: int) -> None:
    for interleaved, given in ((i, g) for i in (False, True) for g in where(2, place)):
        q, k = (guarded_rows(dtype, 2, heads, ROWS, 2 * width, place=place) for heads in (5, 1))
        out = {} if mode == "in place" else {"out": tuple(targets(x, mode, place)["out"] for x in (q, k))}
        fastpe.apply_rotary(q, k, fastpe.Rotary(interleaved=interleaved), **given, **out)
        fastpe.apply_rotary(q, k, fastpe.Rotary(interleaved=interleaved, xpos_scale_base=512), **given)


def rotate_table(dtype: str, mode: str, place: str, width: int) -> None:
    kind = "float64" if dtype == "float64" else "float32"
    tables = [guarded_rows(kind, 2 * ROWS, width, place=place) for _ in range(2)]
    for interleaved, given in ((i, g) for i in (False, True) for g in where(2, place)):
        q = guarded_rows(dtype, 2, 3, ROWS, 2 * width, place=place)
        encoding = fastpe.Rotary.tabulated(*tables, interleaved=interleaved)
        fastpe.apply_rotary(q, None, encoding, **given, **targets(q, mode, place))


def add_toeplitz(dtype: str, mode: str, place: str, width: int) -> None:
    biases = fastpe.ALiBi(2), fastpe.T5Bias(guarded_rows("float32", 32, 2, place=place)), fastpe.Sandwich(2, 4)
    keys = ARENA.copy(np.arange(width)[::-1].copy(), place=place).array
    for bias, causal, given in itertools.product(biases, (False, True), ({}, {"k_positions": keys, "q_offset": 3})):
        scores = guarded_rows(dtype, 2, 2, 3, width, place=place)
        fastpe.add_bias(scores, bias, causal=causal, **given, **targets(scores, mode, place))


KERNELS = {function.__name__: function for function in (add_sinusoidal, add_table, embed, rotate, rotate_table, add_toeplitz)}


def main(kernel: str) -> None:
    for place in ("end", "start"):
        guard_own_memory(place)
        for dtype in DTYPES if kernel == "embed" else cases.DTYPES:
            for mode in ("out", "streams") if kernel == "embed" else MODES:
                chunking.cache_bytes = (lambda: 0) if mode == "streams" else (lambda: 1 << 40)
                for width in widths(kernel, dtype)[:: 1 if place == "end" else 3]:  # tails are at the end
                    print(f"{kernel} {dtype} {mode}, width {width}, at the {place} of a page", flush=True)
                    fastpe.clear_caches()
                    KERNELS[kernel](dtype, mode, place, width)
                    ARENA.release()
    print("all cases ran", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
