"""Microseconds that a call takes the CPU, and time on the GPU as a share of a copy of the same bytes."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Callable

import torch

import fastpe

from . import rivals
from .clock import gpu_seconds, host_seconds
from .records import checking

CUDA = torch.device("cuda")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Contenders = dict[str, Callable[[], Callable[[], object]]]


def host(options: argparse.Namespace) -> None:
    """What a call costs the CPU where the GPU has next to nothing to do: a step of decoding for 32 sequences."""
    import cupy

    bfloat16 = {"device": CUDA, "dtype": torch.bfloat16}
    x, y = torch.zeros(32, 1, 1024, **bfloat16), cupy.zeros((32, 1, 1024), "float32")
    q, k = (torch.randn(32, heads, 1, 128, **bfloat16) for heads in (32, 8))
    cos = torch.randn(32, 1, 1, 128, **bfloat16)
    places, ids = torch.full((32, 1), 7, device=CUDA), torch.zeros(32, 1, dtype=torch.int64, device=CUDA)
    words, scores = torch.randn(4000, 1024, device=CUDA), torch.zeros(8, 32, 1, 4096, device=CUDA)
    calls = {
        "torch: x.add_(1)": lambda: x.add_(1),
        "torch: rotary, tables of cosines": lambda: rivals.eager(q, k, cos, cos),
        "torch: embedding": lambda: torch.nn.functional.embedding(ids, words),
        "add_encoding, CuPy": lambda: fastpe.add_encoding(y, offset=5),
        "add_encoding": lambda: fastpe.add_encoding(x, offset=5),
        "apply_rotary": lambda: fastpe.apply_rotary(q, k, offset=5),
        "apply_rotary, positions": lambda: fastpe.apply_rotary(q, k, positions=places),
        "embed": lambda: fastpe.embed(ids, words, fastpe.Sinusoidal(), offset=5),
        "add_bias": lambda: fastpe.add_bias(scores, fastpe.ALiBi(32)),
    }
    with torch.no_grad():
        for name, call in calls.items():
            with checking(name) as more:
                more["host_us"] = round(host_seconds(call) * 1e6, 2)
                with contextlib.suppress(Exception):
                    more["gpu_us"] = round(gpu_seconds(call) * 1e6, 2)


def _copy_seconds(nbytes: int) -> float:
    source, target = (torch.empty(nbytes, dtype=torch.uint8, device=CUDA) for _ in range(2))
    return gpu_seconds(lambda: target.copy_(source))


def compare(name: str, dtype: str, moved: int, contenders: Contenders) -> None:
    """One record: the share of a copy of ``moved`` bytes, read and written together, that each contender reaches."""
    with checking(name, dtype=dtype) as more:
        copy = _copy_seconds(moved // 2)
        more.update(MB=moved >> 20, copy_GBps=round(moved / copy / 1e9), of_copy={}, failed={})
        for contender, make in contenders.items():
            try:
                more["of_copy"][contender] = round(copy / gpu_seconds(make()), 3)
            except Exception as error:
                more["failed"][contender] = f"{type(error).__name__}: {error}"[:200]
        assert "fastpe" in more["of_copy"], more["failed"].get("fastpe")


def speed(options: argparse.Namespace) -> None:
    with torch.no_grad():
        for dtype, shape in itertools.product(DTYPES, ((1, 131_072, 1024), (32, 4096, 1024))):
            _adding(dtype, shape)
        for dtype in ("bfloat16", "float32"):
            _rotating("apply_rotary (1, 32 + 8, 8192, 128), prefill", dtype, 1, 8192)
            _rotating("apply_rotary (256, 32 + 8, 1, 128), decode", dtype, 256, 1)
            _embedding(dtype)
            _biases(dtype)


def _adding(dtype: str, shape: tuple[int, int, int]) -> None:
    x = torch.zeros(shape, device=CUDA, dtype=DTYPES[dtype])
    table = torch.zeros(shape[1:], device=CUDA, dtype=DTYPES[dtype])
    contenders: Contenders = {
        "fastpe": lambda: lambda: fastpe.add_encoding(x),
        "fastpe, concatenated": lambda: lambda: fastpe.add_encoding(x, fastpe.Sinusoidal(layout="concatenated")),
    }
    compare(f"add_encoding {shape}", dtype, 2 * x.nbytes, contenders | rivals.of_adding(x, table))


def _rotating(name: str, dtype: str, batch: int, rows: int) -> None:
    q, k = (torch.randn(batch, heads, rows, 128, device=CUDA).to(DTYPES[dtype]) for heads in (32, 8))
    contenders: Contenders = {
        "fastpe": lambda: lambda: fastpe.apply_rotary(q, k, offset=3),
        "fastpe, interleaved": lambda: lambda: fastpe.apply_rotary(q, k, fastpe.Rotary(interleaved=True), offset=3),
    }
    positions = torch.arange(3, 3 + rows, device=CUDA)
    compare(name, dtype, 2 * (q.nbytes + k.nbytes), contenders | rivals.of_rotary(q, k, positions))


def _embedding(dtype: str) -> None:
    words = torch.randn(128_256, 4096, device=CUDA).to(DTYPES[dtype])
    ids = torch.randint(0, 128_256, (8, 8192), device=CUDA)
    out = torch.empty(8, 8192, 4096, dtype=DTYPES[dtype], device=CUDA)
    flat = out.view(-1, 4096)
    contenders: Contenders = {
        "fastpe": lambda: lambda: fastpe.embed(ids, words, out=out),
        "fastpe, sinusoidal": lambda: lambda: fastpe.embed(ids, words, fastpe.Sinusoidal(), scale=64.0, out=out),
        "torch eager": lambda: lambda: torch.index_select(words, 0, ids.view(-1), out=flat),
    }
    compare("embed (8, 8192) of 128256 x 4096", dtype, 2 * out.nbytes, contenders)


def _biases(dtype: str) -> None:
    scores = torch.zeros(4, 32, 2048, 2048, device=CUDA, dtype=DTYPES[dtype])
    bias = torch.zeros(32, 2048, 2048, device=CUDA, dtype=DTYPES[dtype])
    contenders: Contenders = {
        "fastpe": lambda: lambda: fastpe.add_bias(scores, fastpe.ALiBi(32)),
        "fastpe, causal": lambda: lambda: fastpe.add_bias(scores, fastpe.ALiBi(32), causal=True),
    }
    compare("add_bias (4, 32, 2048, 2048), ALiBi", dtype, 2 * scores.nbytes, contenders | rivals.of_adding(scores, bias))
