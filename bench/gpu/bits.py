"""Every kernel's bits against the CPU's."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cases
import numpy as np
import platforms

import fastpe

from .records import checking

DTYPES = tuple(cases.DTYPES)


@contextlib.contextmanager
def platform(options: argparse.Namespace) -> Iterator[Any]:
    """Where arrays are: the GPU, or the tests' simulated one."""
    if not options.simulate:
        yield platforms.CudaPlatform()
        return
    import kept
    import simulated_cupy

    kept.prepare()
    with simulated_cupy.installed(kept.folder("ptx")):
        yield platforms.SimulatedPlatform()


def same(on: Any, call: Callable[..., Any], *arrays: np.ndarray, **given: Any) -> None:
    """Call with copies of arrays here and there; what is written and what is returned must have the same bits."""
    here, there = [x.copy() for x in arrays], [on.array(x) for x in arrays]
    results = call(*here, **given), call(*there, **on.arguments(given))
    pairs = [*zip(here, there, strict=True)]
    pairs += zip(*[one if isinstance(one, tuple) else (one,) for one in results], strict=True)
    for wanted, got in pairs:
        cases.assert_same_bits(on.host(got), np.ascontiguousarray(wanted))


# ---- one call of every kernel ------------------------------------------------------------------------------------------------


def kernels(options: argparse.Namespace) -> None:
    """One call of every kernel, element type and variant; small enough for compute-sanitizer."""
    dtypes = ("float32", "bfloat16") if options.tiny else DTYPES
    with platform(options) as on:
        if not options.simulate:
            with checking("warmup"):
                fastpe.warmup(device=0)
        for dtype in dtypes:
            for name, check in KERNELS.items():
                with checking(name, dtype=dtype):
                    check(on, dtype)
        for name, given in PLACES.items():
            with checking(f"positions {name}"):
                same(on, fastpe.add_encoding, np.zeros((1, 3, 8), np.float32), **given)


def _add_sinusoidal(on: Any, dtype: str) -> None:
    for layout, width in (("interleaved", 32), ("concatenated", 32), ("interleaved", 33)):
        encoding = fastpe.Sinusoidal(layout=layout)
        same(on, lambda x, e=encoding: fastpe.add_encoding(x, e, offset=1_000_003), cases.random((2, 11, width), dtype))


def _add_table(on: Any, dtype: str) -> None:
    for width in (32, 33):
        x, table = cases.random((2, 9, width), dtype), cases.random((40, width), dtype, 1)
        same(on, lambda x, t: fastpe.add_encoding(x, fastpe.Learned(t), offset=3), x, table)


def _rotate(on: Any, dtype: str) -> None:
    for interleaved, width in ((False, 32), (True, 32), (False, 6)):
        q, k = cases.random((2, 3, 9, width), dtype), cases.random((2, 1, 9, width), dtype, 1)
        same(on, lambda q, k, i=interleaved: fastpe.apply_rotary(q, k, fastpe.Rotary(interleaved=i), offset=2), q, k)


def _rotate_table(on: Any, dtype: str) -> None:
    for interleaved, width in ((False, 32), (True, 32), (False, 6)):
        angles = np.arange(12)[:, None] * np.linspace(1, 0.1, width // 2)
        encoding = fastpe.Rotary.tabulated(np.cos(angles), np.sin(angles), interleaved=interleaved)
        same(on, lambda q, e=encoding: fastpe.apply_rotary(q, None, e, offset=2), cases.random((2, 3, 9, width), dtype))


def _add_toeplitz(on: Any, dtype: str) -> None:
    for width in (16, 15):
        scores = cases.random((2, 3, 9, width), dtype)
        same(on, lambda s: fastpe.add_bias(s, fastpe.ALiBi(3), causal=True), scores)


def _embed(on: Any, dtype: str) -> None:
    ids = np.random.default_rng(0).integers(0, 40, (2, 9))
    for encoding, scale in ((fastpe.Sinusoidal(), 2.0), (None, None)):
        given = {} if scale is None else {"scale": scale}
        same(on, lambda i, t, e=encoding, g=given: fastpe.embed(i, t, e, **g), ids, cases.random((40, 32), dtype))


KERNELS = {
    "add_sinusoidal": _add_sinusoidal,
    "add_table": _add_table,
    "rotate": _rotate,
    "rotate_table": _rotate_table,
    "add_toeplitz": _add_toeplitz,
    "embed": _embed,
}
PLACES = {
    "given": {"positions": np.array([5.5, -3, 2.0**30])},
    "converted": {"positions": np.array([5, -3, 100], np.int16)},
    "restarting": {"cu_seqlens": np.array([0, 1, 3])},
    "restarting and counted": {"cu_seqlens": np.array([0, 1, 3]), "mask": np.array([True, False, True])},
    "counted": {"mask": np.array([True, False, True])},
}


# ---- a sweep -----------------------------------------------------------------------------------------------------------------


def sweep(options: argparse.Namespace) -> None:
    """Element types, layouts, views of memory, ways to give positions; a record a verb, which names its first case that fails."""
    few = options.simulate
    shapes = [(2, 9, 16)] if few else [(3, 21, 16), (2, 517, 256), (1, 4097, 1024), (33, 1, 768)]
    dtypes = ("float32", "bfloat16") if few else DTYPES
    views = list(itertools.islice(cases.VIEWS, 2 if few else None))
    modes = list(itertools.islice(cases.POSITION_MODES, 3 if few else None))
    with platform(options) as on:
        every(on, "add_encoding", itertools.product(dtypes, shapes, views, cases.LAYOUTS), _add)
        every(on, "apply_rotary", itertools.product(dtypes, shapes, views, (False, True)), _turn)
        every(on, "positions", itertools.product(dtypes, shapes[:2], modes), _placed)
        every(on, "add_bias", itertools.product(dtypes, shapes, (False, True)), _bias)
        if not few:
            every(on, "repeats", [(dtype,) for dtype in dtypes], _again)


def every(on: Any, name: str, these: Iterable[tuple[Any, ...]], check: Callable[..., None]) -> None:
    with checking(name) as more:
        for count, case in enumerate(these, 1):
            more["case"] = str(case)
            check(on, *case)
            more["cases"] = count


def _add(on: Any, dtype: str, shape: tuple[int, ...], view: str, layout: str) -> None:
    x, encoding = cases.random(shape, dtype), fastpe.Sinusoidal(layout=layout)
    here, there = cases.VIEWS[view](x), on.array(cases.VIEWS[view](x))
    for offset in (5, 131_071, -7):
        for one in (here, there):
            fastpe.add_encoding(one, encoding, offset=offset, input_scale=1.5)
    cases.assert_same_bits(on.host(there), np.ascontiguousarray(here))


def _turn(on: Any, dtype: str, shape: tuple[int, ...], view: str, interleaved: bool) -> None:
    batch, rows, width = shape[0], shape[1], min(shape[2], 128)
    q, k = (cases.VIEWS[view](cases.random((batch, heads, rows, width), dtype, heads)) for heads in (4, 1))
    there, encoding = (on.array(q), on.array(k)), fastpe.Rotary(interleaved=interleaved)
    for pair in ((q, k), there):
        fastpe.apply_rotary(*pair, encoding, offset=99)
        fastpe.apply_rotary(*pair, encoding, offset=3, inverse=True)
    for got, wanted in zip(there, (q, k), strict=True):
        cases.assert_same_bits(on.host(got), np.ascontiguousarray(wanted))


def _placed(on: Any, dtype: str, shape: tuple[int, ...], mode: str) -> None:
    same(on, fastpe.add_encoding, cases.random(shape, dtype), **cases.POSITION_MODES[mode](*shape[:2]))


def _bias(on: Any, dtype: str, shape: tuple[int, ...], causal: bool) -> None:
    scores = cases.random((shape[0], 4, min(shape[1], 300), shape[2]), dtype)
    for bias in (fastpe.ALiBi(4), fastpe.ALiBi(4, symmetric=True)):
        same(on, lambda s, b=bias: fastpe.add_bias(s, b, causal=causal, q_offset=shape[2]), scores)


def _again(on: Any, dtype: str) -> None:
    """The same call on the same values: a race shows as bits that change."""
    x = cases.random((7, 129, 512), dtype)
    found = set()
    for _ in range(20):
        there = on.array(x)
        fastpe.add_encoding(there, offset=12345)
        found.add(on.host(there).tobytes())
    assert len(found) == 1, f"{len(found)} different results of one call"
