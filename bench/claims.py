"""What fastpe claims of the CPU, each as a ratio inside one run: ``python bench/claims.py [--only NAME] [--quick] [--json FILE]``.

Contenders take turns, round by round, and their medians are compared. Without ``--only`` all of it takes about twelve minutes and 13 GB
of memory. A line that misses its target says so; ``docs/performance.md`` explains the figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from contenders import (
    DTYPES,
    Call,
    Timed,
    as_tensor,
    host_probes,
    interleave,
    is_small,
    random_values,
    settle_threads,
    torch_if_installed,
)
from report import describe, machine

import fastpe
from fastpe import bias_values, repeated
from fastpe._backends import host as backend
from fastpe._backends.host import pool
from fastpe._tools.benchmark.expressions import numpy_embed, torch_embed

MB = 1 << 20


class Claim(NamedTuple):
    """A measured figure and what it is to be, if anything."""

    what: str
    figure: float
    target: float | None
    at_least: bool
    detail: str

    @property
    def holds(self) -> bool:
        return self.target is None or (self.figure >= self.target if self.at_least else self.figure <= self.target)

    def __str__(self) -> str:
        if self.target is None:
            return f"{self.what:<58} {self.figure:7.2f} {self.detail}".rstrip()
        sign = ">=" if self.at_least else "<="
        return f"{self.what:<58} {self.figure:7.2f} {sign} {self.target:<6g} {'' if self.holds else 'MISSED':<7}{self.detail}"


class Run(NamedTuple):
    """How long to measure, how many threads, and how much smaller than real."""

    threads: int
    seconds: float
    shrink: int

    def medians(self, calls: dict[str, Call]) -> dict[str, float]:
        for call in calls.values():  # compiles, and makes what later calls find made
            for _ in range(3):
                call()
        return interleave({name: Timed(call) for name, call in calls.items()}, self.seconds * len(calls) / 3, 61)


def _milliseconds(medians: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds * 1e3:.3g}" for name, seconds in medians.items()) + " ms"


# ---- beyond the caches -------------------------------------------------------------------------------------------------------


def large(run: Run) -> Iterator[Claim]:
    """Share of the bandwidth of the fastest ``x += 1``, and speed over torch's cached table."""
    concatenated = fastpe.Sinusoidal(layout="concatenated")
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        for batch in (32, 1):
            item = DTYPES[dtype].itemsize
            rows = 512 * MB // run.shrink // 1024 // max(item, 4) // batch
            x = random_values((batch, rows, 1024), dtype)
            padded = random_values((batch, rows, 1536), dtype)
            view = padded[..., :1024]
            ones = host_probes(np.zeros(x.nbytes // 4, np.float32), run.threads)
            probes = {f"{name} +1": call for name, call in ones.items()}  # over the same bytes
            calls: dict[str, Call] = {
                "interleaved": lambda x=x: fastpe.add_encoding(x),
                "concatenated": lambda x=x: fastpe.add_encoding(x, concatenated),
                "torch": _torch_add(x, rows),
                **probes,
            }
            medians = run.medians({name: call for name, call in calls.items() if call is not None})
            roofline = min(medians[name] for name in probes)
            target = 0.90 if item >= 4 else 0.75 if batch > 1 else 0.60
            shape = f"{dtype} ({batch}, {rows}, 1024)"
            for layout in ("interleaved", "concatenated"):
                yield Claim(f"{shape} {layout}: roofline", roofline / medians[layout], target, True, _milliseconds(medians))
            if "torch" in medians:
                ratio = medians["torch"] / max(medians["interleaved"], medians["concatenated"])
                yield Claim(f"{shape}: over torch's cached table", ratio, 1.0, True, "")
            del x, calls, ones
            probes = _strided_probes(view)
            medians = run.medians({"fastpe": lambda view=view: fastpe.add_encoding(view), **probes})
            roofline = min(medians[name] for name in probes)
            yield Claim(
                f"{shape} of rows 1536 wide: roofline", roofline / medians["fastpe"], target, True, _milliseconds(medians)
            )
            del view, padded, probes
            gc.collect()


def _strided_probes(view: np.ndarray) -> dict[str, Call]:
    """``x += 1`` of the same rows; those of 16 bits as pairs in a float32."""
    same = view if view.dtype.itemsize >= 4 else view.view(np.float32)
    probes: dict[str, Call] = {"numpy +1": lambda: np.add(same, 1, out=same)}
    torch = torch_if_installed()
    if torch is not None:
        tensor = torch.from_numpy(same)
        probes["torch +1"] = lambda: tensor.add_(1)
    return probes


def _torch_add(x: np.ndarray, rows: int) -> Call | None:
    if torch_if_installed() is None:
        return None
    tensor, table = as_tensor(x), as_tensor(_small(rows, x.shape[-1], x.dtype))
    return lambda: tensor.add_(table[:rows])


def _small(rows: int, width: int, dtype: Any) -> np.ndarray:
    """A table of values so small that thousands of additions leave x finite."""
    return random_values((rows, width), np.dtype(dtype).name) * np.dtype(dtype).type(1e-4)


# ---- in the caches -----------------------------------------------------------------------------------------------------------


def cached(run: Run) -> Iterator[Claim]:
    """Against ``x += table[:T]`` of NumPy and torch with the table in the caches too."""
    shapes = [(1, 32, 768), (1, 128, 768), (4, 64, 512), (1, 256, 768), (1, 256, 1024), (1, 512, 1024), (8, 256, 512)]
    shapes += [(1, 1024, 1024), (1, 2048, 1024), (8, 1024, 512), (1, 4096, 1024), (16, 256, 1024)]
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        for batch, rows, width in shapes:
            x = random_values((batch, rows, width), dtype)
            if x.nbytes > 17_000_000 or x.nbytes * run.shrink < 100_000:
                continue
            table = _small(rows, width, x.dtype)
            calls: dict[str, Call] = {"fastpe": lambda x=x: fastpe.add_encoding(x), "torch": _torch_add(x, rows)}
            if dtype in ("float32", "float64"):
                calls["numpy"] = lambda x=x, table=table, rows=rows: np.add(x, table[:rows], out=x)
            medians = run.medians({name: call for name, call in calls.items() if call is not None})
            ours = medians.pop("fastpe")
            best = min(medians.values(), default=ours)
            what = f"{dtype} ({batch}, {rows}, {width}) {x.nbytes / 1e6:.2f} MB"
            detail = f"fastpe {ours * 1e6:.1f}, " + ", ".join(f"{name} {value * 1e6:.1f}" for name, value in medians.items())
            if x.nbytes >= 1_000_000:
                yield Claim(f"{what}: speed over the best", best / ours, 1.0, True, detail + " us")
            else:
                yield Claim(f"{what}: us behind the best", (ours - best) * 1e6, 5.0, False, detail + " us")


def row(run: Run) -> Iterator[Claim]:
    """One row: decoding."""
    table = np.random.default_rng(0).random((5000, 1024)).astype(np.float32)
    torch = torch_if_installed()
    starts = 4095 - 61 * np.arange(32)
    for batch, offset in ((1, 4095), (32, starts)):
        x = random_values((batch, 1, 1024), "float32")
        calls: dict[str, Call] = {"fastpe": lambda x=x, offset=offset: fastpe.add_encoding(x, offset=offset)}
        if batch == 1:
            calls["numpy"] = lambda x=x: np.add(x, table[4095], out=x)
        else:
            calls["numpy"] = lambda x=x: np.add(x, table[starts][:, None], out=x)
        if torch is not None:
            tensor, tensors, where = as_tensor(x), as_tensor(table), torch.from_numpy(starts)
            if batch == 1:
                calls["torch"] = lambda tensor=tensor, tensors=tensors: tensor.add_(tensors[4095:4096])
            else:
                calls["torch"] = lambda tensor=tensor, tensors=tensors, where=where: tensor.add_(tensors[where].unsqueeze(1))
        medians = run.medians(calls)
        detail = ", ".join(f"{name} {value * 1e6:.2f}" for name, value in medians.items()) + " us"
        what = f"float32 ({batch}, 1, 1024)"
        yield Claim(f"{what}: us above NumPy", (medians["fastpe"] - medians["numpy"]) * 1e6, 6.0, False, detail)
        if torch is not None:
            yield Claim(f"{what}: times torch", medians["fastpe"] / medians["torch"], 1.5, False, "")


def profile(run: Run) -> Iterator[Claim]:
    """Where the microseconds of one row go: what a repeated call does, step by step."""
    x = random_values((1, 1, 1024), "float32")
    form = repeated.form_of(x, None, 4095, -2, 1.0, None)
    assert form is not None
    fastpe.add_encoding(x, offset=4095)
    call, is_buffer = repeated._calls[form]
    address, start = x.ctypes.data, 4095 << 32

    def empty(x: Any, encoding: Any = None, *, offset: Any = 0, **others: Any) -> Any:
        return x

    steps: dict[str, Call] = {
        "a Python function of the same arguments": lambda: empty(x, offset=4095),
        "the call's form": lambda: repeated.form_of(x, None, 4095, -2, 1.0, None),
        "finding the form": lambda: repeated._calls[form],
        "whether x may be written": lambda: x.flags.writeable,
        "x's address": lambda: repeated.address(x, is_buffer),
        "argument block, scratch memory and kernel": lambda: call.run((address, address), start),
        "the whole call": lambda: fastpe.add_encoding(x, offset=4095),
    }
    nothing: Call = lambda: None  # noqa: E731
    medians = run.medians({"": nothing, **steps})
    for name in steps:
        yield Claim(f"float32 (1, 1, 1024): {name}, us", (medians[name] - medians[""]) * 1e6, None, False, "")


# ---- positions, out, size ----------------------------------------------------------------------------------------------------


def positions(run: Run) -> Iterator[Claim]:
    """``positions=`` against an offset."""
    for batch in (1, 32):
        rows = 512 * MB // run.shrink // 4096 // batch
        x = random_values((batch, rows, 1024), "float32")
        consecutive = np.arange(rows)
        scattered = np.random.default_rng(0).integers(0, 1 << 20, (batch, rows))
        medians = run.medians(
            {
                "offset": lambda x=x: fastpe.add_encoding(x, offset=5),
                "consecutive": lambda x=x, p=consecutive: fastpe.add_encoding(x, positions=p),
                "random": lambda x=x, p=scattered: fastpe.add_encoding(x, positions=p),
            }
        )
        what = f"float32 ({batch}, {rows}, 1024)"
        detail = _milliseconds(medians)
        yield Claim(
            f"{what}: consecutive positions, times offset", medians["consecutive"] / medians["offset"], 1.15, False, detail
        )
        yield Claim(f"{what}: random positions, times offset", medians["random"] / medians["offset"], 2.5, False, "")


def out(run: Run) -> Iterator[Claim]:
    """Out of place against ``np.add(x, table, out=out)``, one thread each."""
    fastpe.set_num_threads(1)
    try:
        for batch, rows in ((32, 4096), (1, 131072), (1, 65536), (8, 256), (1, 128)):
            if rows > 1024:
                rows //= run.shrink
            x = random_values((batch, rows, 1024), "float32")
            target, table = np.empty_like(x), _small(rows, 1024, x.dtype)
            calls = {
                "fastpe": lambda x=x, target=target: fastpe.add_encoding(x, out=target),
                "numpy": lambda x=x, target=target, table=table: np.add(x, table, out=target),
            }
            medians = run.medians(calls)
            is_large = x.nbytes > 64 * MB
            ratio = medians["numpy"] / medians["fastpe"]
            what = f"float32 ({batch}, {rows}, 1024), out: speed over np.add"
            if is_large or x.nbytes >= 8 * MB:
                yield Claim(what, ratio, 1.3 if is_large else 1.0, True, _milliseconds(medians))
            else:
                behind = (medians["fastpe"] - medians["numpy"]) * 1e6
                yield Claim(what.replace("speed over", "us behind"), behind, 5.0, False, _milliseconds(medians))
    finally:
        fastpe.set_num_threads(None)


def size(run: Run) -> Iterator[Claim]:
    """Time per byte from 64 MB to 4 GB, and memory beside x."""
    import resource

    block = random_values((1, 4096 * MB // run.shrink // 4096, 1024), "float32")
    fastpe.add_encoding(block[:, :4096])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calls: dict[str, Call] = {}
    nbytes = 64 * MB // run.shrink
    while nbytes <= block.nbytes:
        calls[str(nbytes)] = lambda x=block[:, : nbytes // 4096]: fastpe.add_encoding(x)
        nbytes *= 2
    medians = run.medians(calls)
    per_byte = {int(name): seconds / int(name) for name, seconds in medians.items()}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6
    detail = ", ".join(f"{n // MB} MB {2 / t / 1e9:.1f} GB/s" for n, t in per_byte.items())
    yield Claim(
        "time per byte, 64 MB to 4 GB: most over least", max(per_byte.values()) / min(per_byte.values()), 1.15, False, detail
    )
    yield Claim("memory beside x, MB", grown, 2.0, False, "")


# ---- rotations ---------------------------------------------------------------------------------------------------------------


def rotary(run: Run) -> Iterator[Claim]:
    """``apply_rotary(q, k)``: the roofline, torch's eager expression (as in Hugging Face's Llama) and its compiled form; decoding."""
    length, interleaved = 8192 // run.shrink, fastpe.Rotary(interleaved=True)
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        q, k = random_values((1, 32, length, 128), dtype), random_values((1, 8, length, 128), dtype)
        packed = random_values((1, length, 40, 128), dtype)
        ones = host_probes(np.zeros((q.nbytes + k.nbytes) // 4, np.float32), run.threads)
        probes = {f"{name} +1": call for name, call in ones.items()}
        calls: dict[str, Call] = {
            "half": lambda q=q, k=k: fastpe.apply_rotary(q, k),
            "interleaved": lambda q=q, k=k: fastpe.apply_rotary(q, k, interleaved),
            "(B, T, H, D)": lambda x=packed: fastpe.apply_rotary(x[:, :, :32], x[:, :, 32:], seq_axis=-3),
            **probes,
        }
        medians = run.medians(calls)
        roofline = min(medians[name] for name in probes)
        what = f"{dtype} q (1, 32, {length}, 128), k 8 heads"
        for layout in ("half", "interleaved", "(B, T, H, D)"):
            target = 0.85 if dtype == "float32" and layout == "half" else None
            yield Claim(f"{what}, {layout}: roofline", roofline / medians[layout], target, True, _milliseconds(medians))
        del packed, ones, probes, calls
        if torch_if_installed() is not None and dtype != "float16":
            yield from _over_torch(run, what, q, k)
        gc.collect()
    yield from _decoding(run)


def _over_torch(run: Run, what: str, q: np.ndarray, k: np.ndarray) -> Iterator[Claim]:
    import torch

    cos, sin = _angles(q.shape[2], q.dtype)
    tensors = as_tensor(q), as_tensor(k), cos[None], sin[None]
    eager = _eager()
    calls: dict[str, Call] = {"fastpe": lambda: fastpe.apply_rotary(q, k), "eager": lambda: eager(*tensors)}
    if run.shrink == 1 and q.dtype == np.float32:
        compiled = torch.compile(eager)
        calls["compiled"] = lambda: compiled(*tensors)
    with torch.no_grad():
        medians = run.medians(calls)
    for name, target in (("eager", 5.0), ("compiled", 1.5)):
        if name in medians:
            target = target if q.dtype.itemsize != 8 else None
            yield Claim(
                f"{what}: times as fast as {name}", medians[name] / medians["fastpe"], target, True, _milliseconds(medians)
            )


def _decoding(run: Run) -> Iterator[Claim]:
    """One token of 32 sequences, each at its own position."""
    starts = 4095 - 61 * np.arange(32)
    for dtype in ("float32", "bfloat16"):
        q, k = random_values((32, 32, 1, 128), dtype), random_values((32, 8, 1, 128), dtype)
        calls: dict[str, Call] = {"fastpe": lambda q=q, k=k: fastpe.apply_rotary(q, k, offset=starts)}
        torch = torch_if_installed()
        if torch is not None:
            eager, (cos, sin), where = _eager(), _angles(4096, q.dtype), torch.from_numpy(starts)
            tensors = as_tensor(q), as_tensor(k)
            known = cos[where][:, None], sin[where][:, None]
            calls["gathering"] = lambda t=tensors, c=cos, s=sin, w=where, f=eager: f(*t, c[w][:, None], s[w][:, None])
            calls["gathered"] = lambda t=tensors, known=known, f=eager: f(*t, *known)
        medians = run.medians(calls)
        detail = ", ".join(f"{name} {value * 1e6:.1f}" for name, value in medians.items()) + " us"
        for name in list(medians)[1:]:
            what = f"{dtype} q (32, 32, 1, 128), k 8 heads: times torch, cos and sin {name}"
            yield Claim(what, medians[name] / medians["fastpe"], 1.0, True, detail)


def _angles(rows: int, dtype: Any) -> tuple[Any, Any]:
    """Cosines and sines as models keep them, (rows, 128), each column twice."""
    angle = np.arange(rows)[:, None] * fastpe.Rotary().frequencies(128)[0]
    twice = np.concatenate((angle, angle), -1)
    return as_tensor(np.cos(twice).astype(dtype)), as_tensor(np.sin(twice).astype(dtype))


def _eager() -> Callable[..., Any]:
    """Hugging Face's function, or the same expression."""
    try:
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        found: Callable[..., Any] = apply_rotary_pos_emb
        return found
    except ImportError:
        import torch

        def turn(x: Any, cos: Any, sin: Any) -> Any:
            half = x.shape[-1] // 2
            return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin

        return lambda q, k, cos, sin: tuple(turn(x, cos.unsqueeze(1), sin.unsqueeze(1)) for x in (q, k))


# ---- embedding ---------------------------------------------------------------------------------------------------------------


def embed(run: Run) -> Iterator[Claim]:
    """``embed(ids, table, Sinusoidal(), scale=, out=)``: against gathering, scaling and adding; and a bare gather past the caches."""
    rows, width, scale = 32_000 // run.shrink, 1024, 32.0
    ids = np.random.default_rng(0).integers(0, rows, (32, 4096 // run.shrink))
    encoding, length, torch = fastpe.Sinusoidal(), ids.shape[1], torch_if_installed()
    for dtype in ("float32", "bfloat16"):
        table = random_values((rows, width), dtype)
        out = np.zeros((*ids.shape, width), table.dtype)
        added = fastpe.encode(np.arange(length), width).astype(table.dtype)
        gather = _bare_gather(ids, table, out, run.threads)
        calls: dict[str, Call] = {
            "fastpe": lambda t=table, o=out: fastpe.embed(ids, t, encoding, scale=scale, out=o),
            "no encoding": lambda t=table, o=out: fastpe.embed(ids, t, scale=scale, out=o),
            "gather": gather,
        }
        if dtype == "float32":
            calls["numpy"] = lambda t=table, o=out, p=added: numpy_embed(ids, t, o, p, scale)
            quantised, scales = np.zeros(table.shape, np.int8), np.full(rows, 0.01)
            calls["int8"] = lambda t=quantised, o=out, s=scales: fastpe.embed(ids, t, encoding, scale=scale, row_scale=s, out=o)
        if torch is not None:
            tensors = as_tensor(table), as_tensor(out), torch.from_numpy(ids), as_tensor(added)
            calls["torch"] = lambda t=tensors: torch_embed(*t, scale)
        medians = run.medians(calls)
        detail, what = _milliseconds(medians), f"{dtype} ids (32, {length}), table ({rows}, {width})"
        yield Claim(f"{what}: of a bare gather's bandwidth", medians["gather"] / medians["fastpe"], 0.8, True, detail)
        for name, target in (("torch", 2.2), ("numpy", 2.8)):
            if name in medians:
                yield Claim(f"{what}: times as fast as {name}", medians[name] / medians["fastpe"], target, True, detail)
        if "int8" in medians:
            yield Claim(f"{what}: int8 table, speed over float32", medians["fastpe"] / medians["int8"], 1.0, True, detail)
        allocating: dict[str, Call] = {"fastpe": lambda t=table: fastpe.embed(ids, t, encoding, scale=scale)}
        if dtype == "float32":
            allocating["numpy"] = lambda t=table, p=added: t[ids] * np.float32(scale) + p
        if torch is not None:
            allocating["torch"] = lambda t=tensors: torch.nn.functional.embedding(t[2], t[0]) * scale + t[3]
        medians = run.medians(allocating)
        for name in list(medians)[1:]:
            yield Claim(
                f"{what}, all allocating: times as fast as {name}",
                medians[name] / medians["fastpe"],
                None,
                True,
                _milliseconds(medians),
            )
        del table, out, calls, allocating
        gc.collect()


def _bare_gather(ids: np.ndarray, table: np.ndarray, out: np.ndarray, threads: int) -> Call:
    """Copy rows past the caches and do nothing else: C with streaming stores, a part for each thread; NumPy where that does not compile."""
    import ctypes
    import shutil

    source = r"""
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
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "gather.c").write_text(source)
        command = [shutil.which("cc") or "cc", "-O2", "-shared", "-fPIC", "-o", f"{folder}/gather.so", f"{folder}/gather.c"]
        try:
            subprocess.run(command, check=True, capture_output=True)
            function = ctypes.CDLL(f"{folder}/gather.so").gather
        except (OSError, subprocess.CalledProcessError):
            return lambda: np.take(table, ids, axis=0, out=out, mode="clip")
    flat, bytes_of_row = np.ascontiguousarray(ids.reshape(-1)), table.shape[1] * table.itemsize
    room = np.empty(out.nbytes + 64, np.uint8)
    base = room.ctypes.data + -room.ctypes.data % 64
    parts = np.array_split(np.arange(flat.size), threads)
    pool_of_threads = ThreadPoolExecutor(threads)

    def copy(part: np.ndarray) -> None:
        first, address = int(part[0]), ctypes.c_void_p
        function(
            address(flat.ctypes.data + 8 * first),
            ctypes.c_long(part.size),
            address(table.ctypes.data),
            address(base + first * bytes_of_row),
            ctypes.c_long(bytes_of_row),
        )

    def call() -> None:
        assert room.size  # keeps it alive
        list(pool_of_threads.map(copy, parts))

    return call


# ---- tensors -----------------------------------------------------------------------------------------------------------------


def tensors(run: Run) -> Iterator[Claim]:
    """PyTorch: what a tensor costs above an array, and rotary forward and backward against Hugging Face's expression."""
    if torch_if_installed() is None:
        return
    yield from _tensor_overhead(run)
    yield from _training(run)


def _tensor_overhead(run: Run) -> Iterator[Claim]:
    q, k = random_values((1, 32, 1, 128), "float32"), random_values((1, 8, 1, 128), "float32")
    table, ids = random_values((1000, 1024), "float32"), np.zeros((32, 1), np.int64)
    verbs: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
        "add_encoding (1, 1, 1024)": (lambda x: fastpe.add_encoding(x, offset=4095), (random_values((1, 1, 1024), "float32"),)),
        "add_encoding bfloat16": (lambda x: fastpe.add_encoding(x, offset=4095), (random_values((1, 1, 1024), "bfloat16"),)),
        "apply_rotary q 32 heads, k 8": (lambda q, k: fastpe.apply_rotary(q, k, offset=4095), (q, k)),
        "embed 32 ids": (lambda ids, table: fastpe.embed(ids, table, "sinusoidal", scale=32.0, offset=4095), (ids, table)),
    }
    for name, (verb, arrays) in verbs.items():
        given = tuple(as_tensor(array) for array in arrays)
        calls: dict[str, Call] = {
            "array": lambda verb=verb, arrays=arrays: verb(*arrays),
            "tensor": lambda verb=verb, given=given: verb(*given),
        }
        medians = run.medians(calls)
        detail = ", ".join(f"{kind} {value * 1e6:.2f}" for kind, value in medians.items()) + " us"
        yield Claim(f"{name}: us above an array", (medians["tensor"] - medians["array"]) * 1e6, 6.0, False, detail)


def _fresh(q: Any, k: Any) -> Any:
    """Results of a layer, as a projection's are: in-place functions may write them."""
    return q * 1, k * 1


def _training(run: Run) -> Iterator[Claim]:
    """Forward and backward, the gradients of the results given."""
    import torch

    from fastpe.torch import functional

    length, eager = 4096 // run.shrink, _eager()
    for dtype in ("float32", "bfloat16"):
        q, k = (as_tensor(random_values((1, heads, length, 128), dtype)).requires_grad_() for heads in (32, 8))
        grads = tuple(as_tensor(random_values(tuple(x.shape), dtype)) for x in (q, k))
        cos, sin = (one[None] for one in _angles(length, DTYPES[dtype]))

        def step(turn: Callable[..., Any], q: Any = q, k: Any = k, grads: Any = grads) -> None:
            torch.autograd.grad(turn(q, k), (q, k), grads)

        def in_place(q: Any, k: Any) -> Any:
            return fastpe.apply_rotary(*_fresh(q, k))

        def usual(q: Any, k: Any, cos: Any = cos, sin: Any = sin) -> Any:
            return eager(q, k, cos, sin)

        calls: dict[str, Call] = {
            "functional": lambda step=step: step(functional.apply_rotary),
            "in place": lambda step=step: step(in_place),
            "a layer alone": lambda step=step: step(_fresh),
            "eager": lambda step=step, turn=usual: step(turn),
        }
        medians = run.medians(calls)
        what, detail = f"{dtype} q (1, 32, {length}, 128), k 8 heads, forward + backward", _milliseconds(medians)
        yield Claim(f"{what}: times as fast as eager", medians["eager"] / medians["functional"], 3.0, True, detail)
        alone = medians["in place"] - medians["a layer alone"]
        yield Claim(f"{what}, in place: times as fast as eager", medians["eager"] / alone, 3.0, True, "")


# ---- biases ------------------------------------------------------------------------------------------------------------------


def bias(run: Run) -> Iterator[Claim]:
    """``add_bias(scores, ALiBi or T5Bias)``: share of the roofline; over torch adding a cached bias of every head, and masking; memory."""
    heads, length, torch = 32, max(32, 2048 // run.shrink), torch_if_installed()
    alibi = fastpe.ALiBi(heads)
    t5 = fastpe.T5Bias(random_values((32, heads), "float32") * np.float32(1e-4), bidirectional=False)
    for dtype, target in (("float32", 0.90), ("bfloat16", 0.75)):
        scores = random_values((8 if run.shrink == 1 else 2, heads, length, length), dtype)
        ones = np.zeros(min(scores.nbytes, 1024 * MB) // 4, np.float32)
        probes = {f"{name} +1": call for name, call in host_probes(ones, run.threads).items()}
        calls: dict[str, Call] = {
            "alibi": lambda x=scores: fastpe.add_bias(x, alibi),
            "t5": lambda x=scores: fastpe.add_bias(x, t5),
            "causal": lambda x=scores: fastpe.add_bias(x, alibi, causal=True),
            **probes,
        }
        if torch is not None:
            tensor = as_tensor(scores)
            cached = as_tensor(alibi.values(np.subtract.outer(np.arange(length), np.arange(length))).astype(scores.dtype))
            future = torch.ones(length, length, dtype=torch.bool).triu(1)
            calls["torch"] = lambda x=tensor, f=cached: x.add_(f)
            calls["torch causal"] = lambda x=tensor, f=cached, m=future: x.add_(f).masked_fill_(m, -torch.inf)
        medians = run.medians(calls)
        roofline = min(medians[name] for name in probes) * (scores.nbytes / ones.nbytes)
        detail, what = _milliseconds(medians), f"{dtype} {scores.shape}"
        for name in ("alibi", "t5"):
            yield Claim(f"{what} {name}: roofline", roofline / medians[name], target, True, detail)
        if torch is not None:
            yield Claim(f"{what}: over torch's cached bias", medians["torch"] / medians["alibi"], 1.2, True, "")
            yield Claim(f"{what} causal: over torch's, then masked", medians["torch causal"] / medians["causal"], 3.0, True, "")
        yield Claim(f"{what}: memory of a call, MB", _peak(lambda x=scores: fastpe.add_bias(x, alibi)), 4.0, False, "")
        del scores, ones, probes, calls
        gc.collect()


def _peak(call: Call) -> float:
    """MB that NumPy and Python allocate for a call that finds nothing made."""
    import tracemalloc

    bias_values._tables.clear()
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / MB


# ---- grids -------------------------------------------------------------------------------------------------------------------


def grids(run: Run) -> Iterator[Claim]:
    """``add_encoding(x, Grid)`` against one axis on all channels of the same array."""
    one = fastpe.Sinusoidal(layout="concatenated")
    for dtype in ("float32", "bfloat16"):
        for batch, side in ((8, 64), (1, 256)):
            side = max(8, side // run.shrink)
            x = random_values((batch, side * side, 1024), dtype)
            names = {
                "mae": fastpe.Grid.mae((side, side)),
                "timm": fastpe.Grid.timm((side, side)),
                "detr": fastpe.Grid.detr((side, side)),
            }
            calls: dict[str, Call] = {"one axis": lambda x=x: fastpe.add_encoding(x, one)}
            calls |= {name: lambda x=x, grid=grid: fastpe.add_encoding(x, grid) for name, grid in names.items()}
            medians = run.medians(calls)
            for name in names:
                what = f"{dtype} ({batch}, {side * side}, 1024), {name}: times one axis"
                yield Claim(what, medians[name] / medians["one axis"], 1.15, False, _milliseconds(medians))


# ---- start and threads -------------------------------------------------------------------------------------------------------


def start(run: Run) -> Iterator[Claim]:
    """``import fastpe`` and a first call, over ``import numpy``."""
    code = (
        "import numpy as np, time; t = time.perf_counter(); import fastpe; fastpe.add_encoding(np.zeros((1, 8, 64), np.float32));"
        "print(time.perf_counter() - t)"
    )

    def once(folder: str) -> float:
        environment = {**os.environ, "FASTPE_CACHE_DIR": folder}
        command = [sys.executable, "-c", code]
        return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder, str(number)) for number in range(3)]
        for one in folders:
            one.mkdir(mode=0o700)
        compiled = sorted(once(str(one)) for one in folders)[1]
        loaded = sorted(once(str(folders[0])) for _ in range(5))[2]
    yield Claim("first call, kernel compiled, s", compiled, 3.0, False, "")
    yield Claim("first call, kernel from the disk cache, s", loaded, 1.0, False, "")


def threads(run: Run) -> Iterator[Claim]:
    """One thread and all, small and large."""
    most = run.threads
    for shape in ((1, 64, 768), (1, 1024, 1024), (8, 1024, 512), (1, 131072 // run.shrink, 1024)):
        x = random_values(shape, "float32")

        def with_threads(count: int, x: np.ndarray = x) -> Call:
            def call() -> None:
                fastpe.set_num_threads(count)
                fastpe.add_encoding(x)

            return call

        medians = run.medians({"1": with_threads(1), str(most): with_threads(most)} if most > 1 else {"1": with_threads(1)})
        what = f"float32 {shape}: speed of {most} threads over one"
        yield Claim(what, medians["1"] / medians[str(most)], 0.95, True, _milliseconds(medians))
    fastpe.set_num_threads(None)


# Assumed, from what one core and two cores were measured to do.
CLAIM_SECONDS = 1e-7  # an atomic addition that other cores want too, one after the other
HAND_OVER_SECONDS = 1e-7  # of the caller, for a helper that waits in a spin slot
WAKE_SECONDS, COME_SECONDS = 5e-6, 5e-5  # of the caller, for one that sleeps; until it comes
CORE_BYTES, SOCKET_BYTES = 25e9, 200e9  # bytes of x a second that a core and all cores together can add to


def simulate(nbytes: int, cores: int, asleep: bool) -> float:
    """Seconds of a call on so many cores: helpers come one after the other, and claims are served one at a time."""
    chunk = backend.CHUNK_BYTES
    chunks = -(-nbytes // chunk)
    helpers = max(0, min(chunks - 1, nbytes // backend.BYTES_PER_HELPER, min(cores, pool.MOST_THREADS) - 1))
    calling = WAKE_SECONDS if asleep else HAND_OVER_SECONDS
    coming = COME_SECONDS if asleep else 0.0
    free = [calling * helpers, *(calling * (number + 1) + coming for number in range(helpers))]
    rate = min(CORE_BYTES, SOCKET_BYTES / (helpers + 1))
    counter, end = 0.0, 0.0
    for number in range(chunks):
        worker = min(range(len(free)), key=free.__getitem__)
        counter = max(counter, free[worker]) + (CLAIM_SECONDS if helpers else 0.0)
        free[worker] = counter + min(chunk, nbytes - number * chunk) / rate
        end = max(end, free[worker])
    return end


def cores(run: Run) -> Iterator[Claim]:
    """Simulated: what claims and calling helpers cost on machines with more cores than this one."""
    for nbytes in (256 << 10, 1 << 20, 4 << 20, 16 << 20, 256 << 20):
        for asleep in (False, True):
            alone = simulate(nbytes, 1, asleep)
            speedups = {count: alone / simulate(nbytes, count, asleep) for count in (2, 4, 16, 64)}
            what = f"{nbytes / MB:g} MB, helpers {'asleep' if asleep else 'waiting'}: slowest of 2 to 64 cores over one"
            detail = ", ".join(f"{count} cores {value:.2f}x" for count, value in speedups.items())
            yield Claim(what, min(speedups.values()), 0.8 if asleep else 1.0, True, detail)


SECTIONS: dict[str, Callable[[Run], Iterator[Claim]]] = {
    "row": row,
    "profile": profile,
    "start": start,
    "cached": cached,
    "threads": threads,
    "cores": cores,
    "positions": positions,
    "out": out,
    "rotary": rotary,
    "embed": embed,
    "tensors": tensors,
    "bias": bias,
    "grids": grids,
    "large": large,
    "size": size,
}


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(SECTIONS), help="one section")
    parser.add_argument("--quick", action="store_true", help="small arrays and few rounds: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    given = parser.parse_args(arguments)
    quick = given.quick or is_small()
    run = Run(settle_threads(), 0.02 if quick else 2.0, 64 if quick else 1)
    known = machine(run.threads)
    print(describe(known))
    if quick:
        print("Small arrays and few rounds: the figures mean nothing.")
    found: dict[str, list[dict[str, Any]]] = {}
    for name, section in SECTIONS.items():
        if given.only in (None, name):
            print(f"\n{name}: {section.__doc__}")
            begin = time.perf_counter()
            for claim in section(run):
                print(claim, flush=True)
                found.setdefault(name, []).append({**claim._asdict(), "holds": claim.holds})
            print(f"({time.perf_counter() - begin:.0f} s)")
            gc.collect()
    if given.json is not None:
        given.json.write_text(json.dumps({"machine": known, "claims": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
