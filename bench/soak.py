"""Changing calls from several threads for a long time: ``python -m bench.soak [--minutes N] [--threads N] [--json FILE]``.

Every call has a new shape, encoding, offset or element type, so that everything that fastpe keeps turns over. Each is made in two ways
that must agree bit for bit. The memory that the process holds is written down as it goes; after the first tenth, in which kernels are
loaded and caches fill, it may grow by MOST_GROWTH. Ends with 1 if a result differed, a thread failed, or memory grew.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import fastpe
from fastpe.encodings.rotary_table import RotaryTable

try:
    import torch
except ImportError:
    torch: Any = None  # type: ignore[no-redef]

MOST_GROWTH = 24 << 20  # bytes
DTYPES = ("float32", "float64", "float16", ml_dtypes.bfloat16)

Rng = random.Random


def _array(rng: Rng, *shape: int, dtype: Any = None) -> Any:
    values = np.random.default_rng(rng.getrandbits(32)).standard_normal(shape, np.float32)
    return values.astype(dtype or rng.choice(DTYPES))


def _base(rng: Rng) -> float:
    return 1 + rng.random() * 1e5


def _same(first: Any, second: Any) -> bool:
    return bool(first.tobytes() == second.tobytes())


def add_encoding(rng: Rng) -> bool:
    """By offset, by positions, and by offset again: a repeated call."""
    x, offset = _array(rng, rng.randrange(1, 4), rng.randrange(1, 60), rng.randrange(2, 80)), rng.randrange(10**6)
    encoding = fastpe.Sinusoidal(base=_base(rng), layout=rng.choice(("interleaved", "concatenated")))
    first, third = (fastpe.add_encoding(x.copy(), encoding, offset=offset) for _ in range(2))
    second = fastpe.add_encoding(x.copy(), encoding, positions=np.arange(offset, offset + x.shape[1]))
    return _same(first, second) and _same(first, third)


def large_arrays(rng: Rng) -> bool:
    """With helpers, and then without: a part of the array."""
    x = _array(rng, 2, 64 * rng.randrange(8, 16), 512, dtype="float32")
    part = fastpe.add_encoding(x[1:, -5:].copy(), offset=x.shape[1] - 5)
    return _same(fastpe.add_encoding(x)[1:, -5:], part)


def grids(rng: Rng) -> bool:
    shape, width = (rng.randrange(1, 12), rng.randrange(1, 12)), 4 * rng.randrange(1, 20)
    x, grid = _array(rng, 2, shape[0] * shape[1], width, dtype="float32"), fastpe.Grid(shape)
    return _same(fastpe.add_encoding(x.copy(), grid), fastpe.add_encoding(x, grid, out=np.empty_like(x)))


def apply_rotary(rng: Rng) -> bool:
    x, offset = _array(rng, 2, rng.randrange(1, 5), rng.randrange(1, 40), 2 * rng.randrange(2, 40)), rng.randrange(10**6)
    rule = rng.choice((None, fastpe.scaling.Linear(1 + 7 * rng.random()), fastpe.scaling.YaRN(1 + 7 * rng.random(), 4096)))
    encoding = fastpe.Rotary(base=10 + _base(rng), interleaved=rng.random() < 0.5, scaling=rule)
    first = fastpe.apply_rotary(x.copy(), None, encoding, offset=offset)
    second = fastpe.apply_rotary(x.copy(), None, encoding, positions=np.arange(offset, offset + x.shape[2]))
    return _same(first, second)


def rotary_tables(rng: Rng) -> bool:
    rows, pairs = rng.randrange(8, 40), rng.randrange(1, 30)
    table = RotaryTable(*(_array(rng, rows, pairs, dtype="float32") for _ in range(2)))
    x = _array(rng, 2, 8, 2 * pairs)
    return _same(fastpe.apply_rotary(x.copy(), None, table), fastpe.apply_rotary(x, None, table, positions=np.arange(8)))


def embed(rng: Rng) -> bool:
    table, width = _array(rng, 50, width := rng.randrange(2, 70), dtype=rng.choice(("float32", "float64"))), width
    ids, learned = (
        np.array([[rng.randrange(50) for _ in range(9)]] * 2),
        fastpe.Learned(_array(rng, 20, width, dtype=table.dtype)),
    )
    encoding = rng.choice((learned, fastpe.Sinusoidal(base=_base(rng))))
    return _same(fastpe.embed(ids, table, encoding), fastpe.add_encoding(table[ids], encoding))


def add_bias(rng: Rng) -> bool:
    heads, queries = rng.randrange(1, 9), rng.randrange(1, 5)
    scores = _array(rng, 2, heads, queries, queries + rng.randrange(60))
    values = tuple(0.1 + rng.random() for _ in range(heads))
    bias = rng.choice(
        (fastpe.Kerple(values, values), fastpe.ALiBi(heads, 1 + 8 * rng.random()), fastpe.ALiBi(heads, slopes=values))
    )
    keys = scores.shape[-1]
    where = {"q_positions": np.arange(keys - queries, keys), "k_positions": np.arange(keys)}
    return _same(fastpe.add_bias(scores.copy(), bias), fastpe.add_bias(scores, bias, **where))


def tensors(rng: Rng) -> bool:
    """Gradients of a sum are those of its parts: an addition passes them on, a rotation keeps their length."""
    x = torch.randn(2, rng.randrange(1, 30), 2 * rng.randrange(2, 40), requires_grad=True)
    encoding, rotary = fastpe.Sinusoidal(base=_base(rng)), fastpe.Rotary(base=10 + _base(rng))
    added = fastpe.add_encoding(x * 1, encoding)
    turned = fastpe.torch.functional.apply_rotary(added, None, rotary, offset=rng.randrange(1000))
    weights = torch.randn_like(turned)
    (turned * weights).sum().backward()
    expected = fastpe.add_encoding(x.detach().numpy().copy(), encoding)
    return _same(added.detach().numpy(), expected) and abs(float(x.grad.norm() / weights.norm()) - 1) < 1e-5


def modules(rng: Rng) -> bool:
    """A module of a new kind each time, trained for one step."""
    width = 2 * rng.randrange(2, 30)
    module = fastpe.torch.TokenEmbedding(40, width, encoding=fastpe.Sinusoidal(base=_base(rng)))
    ids = torch.tensor([[rng.randrange(40) for _ in range(7)]])
    module(ids).sum().backward()
    return float(module.weight.grad.sum()) == 7 * width


CALLS = [add_encoding, large_arrays, grids, apply_rotary, rotary_tables, embed, add_bias]
if torch is not None:
    import fastpe.torch

    CALLS += [tensors, modules]


class Soak:
    """Threads that call until the time is over."""

    def __init__(self, seconds: float, threads: int) -> None:
        self.end = time.monotonic() + seconds
        self.counts, self.wrong, self.errors = [0] * threads, [], []  # type: ignore[var-annotated]
        self.samples: list[tuple[int, int, int]] = []  # seconds, bytes, calls
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]

    def _run(self, number: int) -> None:
        rng = Rng(number)
        call: Callable[[Rng], bool] = add_encoding
        try:
            while time.monotonic() < self.end:
                call = rng.choice(CALLS)
                if not call(rng):
                    self.wrong.append(f"{call.__name__}, thread {number}, call {self.counts[number]}")
                self.counts[number] += 1
        except BaseException as error:
            self.errors.append(f"{call.__name__}: {error!r}")

    def run(self, step: float) -> None:
        begin = time.monotonic()
        for thread in self._threads:
            thread.start()
        while any(thread.is_alive() for thread in self._threads):
            time.sleep(step)
            gc.collect()
            self.samples.append((round(time.monotonic() - begin), resident_bytes(), sum(self.counts)))
            seconds, held, calls = self.samples[-1]
            print(f"{seconds:6d} s  {held / 2**20:8.1f} MiB  {calls:10d} calls", flush=True)

    @property
    def growth(self) -> int:
        """Bytes from the end of the first tenth to the end."""
        return self.samples[-1][1] - self.samples[len(self.samples) // 10][1]


def resident_bytes() -> int:
    """The memory that this process holds; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser("python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=3, help="that call at once; each call may use helpers beside")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the samples there")
    given = parser.parse_args(arguments)
    soak = Soak(60 * given.minutes, given.threads)
    soak.run(max(0.2, given.minutes * 60 / 120))
    found = {"samples": soak.samples, "wrong": soak.wrong, "errors": soak.errors, "growth": soak.growth}
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"{sum(soak.counts)} calls, {len(soak.wrong)} wrong, errors: {soak.errors}, memory grew by {soak.growth / 2**20:.1f} MiB"
    )
    return int(bool(soak.wrong or soak.errors or soak.growth > MOST_GROWTH))


if __name__ == "__main__":
    sys.exit(main())
