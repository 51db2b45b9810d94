"""``python -m fastpe warmup``: compile before the first call does."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import fastpe

from ..._backends import disk_cache
from ..._core.checks import FLOATS
from ..progress import steps
from .cache import NO_CACHE

HEADS, ROWS, DIM = 2, 3, 8  # sizes choose no kernel


def add_parser(commands: Any) -> Any:
    """Add the command to those of ``python -m fastpe``."""
    described = "Compile what the usual calls of every verb need and keep it on disk, so that no later process waits for it."
    parser = commands.add_parser("warmup", help="compile the kernels of every verb now", description=described)
    known = "every one that NumPy has here"
    parser.add_argument(
        "--dtype", action="append", choices=FLOATS, help=f"an element type, or several of them (default: {known})"
    )
    parser.add_argument("--device", type=int, metavar="N", help="of a CUDA device instead of the processor")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Compile, and say how much and where it is kept."""
    usable = [name for name in FLOATS if name != "bfloat16" or importlib.util.find_spec("ml_dtypes")]
    dtypes = [*dict.fromkeys(arguments.dtype or usable)]
    before, begun = {*disk_cache.files()}, time.perf_counter()
    calls = [*_calls(dtypes, arguments.device)]
    with steps(len(calls), "compiling") as show:
        for name, call in calls:
            show(name)
            call()
    seconds, folder, new = time.perf_counter() - begun, disk_cache.root(), len({*disk_cache.files()} - before)
    if arguments.json:
        known = {"dtypes": dtypes, "device": arguments.device, "compiled": new, "seconds": round(seconds, 3)}
        print(json.dumps({**known, "folder": None if folder is None else str(folder)}))
    else:
        kept = f"{new} kernels are new in {folder}" if folder is not None else f"kept nowhere ({NO_CACHE})"
        print(f"{', '.join(dtypes)}: ready after {seconds:.1f} s; {kept}")
    return 0


def _calls(dtypes: list[str], device: int | None) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Usual calls of each verb, and their names."""
    for dtype in dtypes:
        yield f"warmup {dtype}", functools.partial(fastpe.warmup, dtype, device=device)
        if device is None:  # warmup on a device compiles all of them
            for name, verb in VERBS.items():
                yield f"{name} {dtype}", functools.partial(verb, dtype)


def _rows(dtype: str) -> Any:
    return fastpe.encode(range(ROWS), DIM, dtype=dtype)


def _add(dtype: str) -> None:
    x = _rows(dtype)
    fastpe.add_encoding(x, out=x.copy())
    fastpe.add_encoding(x, fastpe.Learned(x.copy()))
    fastpe.add_encoding(x, positions=[0.5, 1.5, 2.5], input_scale=2.0)


def _rotate(dtype: str) -> None:
    q = _rows(dtype)
    fastpe.apply_rotary(q, out=q.copy())
    fastpe.apply_rotary(q, encoding=fastpe.Rotary.tabulated(*_rows("float64").reshape(2, ROWS, DIM // 2)))
    fastpe.rerotate(q, 1)


def _embed(dtype: str) -> None:
    fastpe.embed(range(ROWS), _rows(dtype))
    fastpe.embed(range(ROWS), _rows(dtype), "sinusoidal")


def _bias(dtype: str) -> None:
    scores = _rows(dtype)[:, :ROWS][None].repeat(HEADS, 0)
    fastpe.add_bias(scores, fastpe.ALiBi(HEADS), causal=True)


VERBS = {"add_encoding": _add, "apply_rotary": _rotate, "embed": _embed, "add_bias": _bias}
