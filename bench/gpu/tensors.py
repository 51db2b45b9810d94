"""PyTorch's half: streams, graphs, gradients, the compiler, threads."""

from __future__ import annotations

import argparse
import threading
import warnings
from typing import Any

import cases
import numpy as np
import torch
import torch_cases

import fastpe
import fastpe.torch
from fastpe.torch import functional

from .records import checking

CUDA = torch.device("cuda")


def tensors(options: argparse.Namespace) -> None:
    for check in (_quiet, _bits, _stream, _threads, _replayed, _decoding, _ids, _gradients, _compiled):
        with checking(check.__doc__ or check.__name__):
            check()


def _quiet() -> None:
    """no library warns"""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fastpe.add_encoding(torch.zeros(1, 3, 8, device=CUDA))
    assert not caught, sorted({f"{one.category.__name__}: {one.message}" for one in caught})


def _bits() -> None:
    """tensors have the CPU's bits"""
    for dtype in cases.DTYPES:
        x = cases.random((2, 33, 4, 32), dtype)
        there = torch_cases.tensor(x, CUDA)
        for one, ones in ((x, np.ones((2, 33), bool)), (there, torch.ones(2, 33, dtype=torch.bool, device=CUDA))):
            fastpe.apply_rotary(one, seq_axis=1, offset=3)
            fastpe.add_encoding(one, seq_axis=1, mask=ones)
        cases.assert_same_bits(torch_cases.host(there), x)


def _stream() -> None:
    """work on a stream of PyTorch's is waited for"""
    side, x = torch.cuda.Stream(), torch.zeros(64, 1024, 1024, device=CUDA)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        for _ in range(30):
            x.add_(1)
        fastpe.add_encoding(x)
        y = x.clone()
    side.synchronize()
    wanted = fastpe.add_encoding(torch.full((1, 1024, 1024), 30.0)).to(CUDA)
    assert torch.equal(y, wanted.expand_as(y))


def _threads() -> None:
    """two threads, each with a stream"""
    wrong: list[str] = []

    def work(number: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for turn in range(200):
                    start = 1000 * number + turn
                    x = torch.zeros(3, 65, 64, device=CUDA)
                    fastpe.add_encoding(x, offset=torch.full((3,), start, device=CUDA))
                    if not np.array_equal(x[0, 0].cpu().numpy(), fastpe.encode(start, 64)):
                        wrong.append(f"thread {number}, turn {turn}")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]


def _captured(call: Any) -> Any:
    """A graph of a call that was made once before."""
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def _replayed() -> None:
    """a captured rotation is replayed"""
    q, k = torch.randn(1, 4, 7, 64, device=CUDA), torch.randn(1, 2, 7, 64, device=CUDA)
    graph = _captured(lambda: fastpe.apply_rotary(q, k, offset=5))
    before = q.clone()
    graph.replay()
    assert torch.equal(q, fastpe.apply_rotary(before, offset=5))


def _decoding() -> None:
    """a captured step of decoding is replayed with new positions"""
    x, places = torch.zeros(4, 1, 64, device=CUDA), torch.zeros(4, 1, dtype=torch.int64, device=CUDA)
    graph = _captured(lambda: fastpe.add_encoding(x.zero_(), positions=places))
    for step in (3, 900):
        places.fill_(step)
        graph.replay()
        assert np.array_equal(x[0, 0].cpu().numpy(), fastpe.encode(step, 64)), step


def _ids() -> None:
    """int32 ids in a captured graph, and nothing else is written"""
    import cupy

    table, ids = torch.randn(50, 64, device=CUDA), torch.zeros(2, 300, dtype=torch.int32, device=CUDA)
    out = torch.empty(2, 300, 64, device=CUDA)
    graph = _captured(lambda: fastpe.embed(ids, table, out=out))
    others = [cupy.full(600, 7, "int64") for _ in range(64)]  # what is freed is given to the next who asks
    cupy.cuda.Device(0).synchronize()
    ids.fill_(3)
    graph.replay()
    torch.cuda.synchronize()
    assert all(bool((one == 7).all()) for one in others), "a replay wrote into memory of others"
    assert torch.equal(out[0, 0], table[3])


def _gradients() -> None:
    """gradients"""
    x = torch.randn(2, 4, 9, 32, device=CUDA, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: functional.apply_rotary(x, offset=3), (x,))


def _compiled() -> None:
    """torch.compile"""
    torch.set_float32_matmul_precision("high")  # or PyTorch warns

    def layer(x: Any) -> Any:
        return (functional.add_encoding(x * 2, fastpe.Sinusoidal(), offset=3) + 1).sum()

    x = torch.randn(2, 40, 64, device=CUDA)
    assert torch.allclose(torch.compile(layer, fullgraph=True)(x), layer(x))
