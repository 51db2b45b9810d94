"""Claims of PyTorch: what a tensor costs above an array, and rotary forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastpe
from fastpe._tools.benchmark.expressions import as_tensor, random_values
from fastpe._tools.benchmark.probes import torch_if_installed
from fastpe._tools.benchmark.verbs import Rotating

from .. import registry
from .rotating import described, eager_rotation, tables
from .table import Call, Claim, Measuring, at_least, at_most, microseconds, milliseconds


def tensors(measuring: Measuring) -> Iterator[Claim]:
    """PyTorch: what a tensor costs above an array, and rotary forward and backward against Hugging Face's expression."""
    if torch_if_installed() is None:
        return
    yield from _overhead(measuring)
    yield from _beside_torch(measuring)
    yield from _training(measuring)


def _overhead(measuring: Measuring) -> Iterator[Claim]:
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
        medians = measuring.medians(calls)
        above = (medians["tensor"] - medians["array"]) * 1e6
        yield at_most(f"{name}: us above an array", above, 6.0, microseconds(medians, 2))


def _beside_torch(measuring: Measuring) -> Iterator[Claim]:
    """Small calls beside PyTorch's expressions with tables that are there; what has no target is behind."""
    import torch

    from fastpe.torch import SinusoidalEncoding, functional

    positions = torch.arange(4096)[:, None]
    angles = positions * 10000.0 ** -(torch.arange(64).repeat(2) / 64)
    cosines, sines = angles.cos(), angles.sin()

    def turned(x: Any, cos: Any, sin: Any) -> Any:
        return x * cos + torch.cat((-x[..., 64:], x[..., :64]), -1) * sin

    for batch in (1, 8, 32):
        q, k, at = torch.ones(batch, 32, 1, 128), torch.ones(batch, 8, 1, 128), (torch.arange(batch) * 100)[:, None]

        def plain(q: Any = q, k: Any = k, at: Any = at) -> Any:
            cos, sin = cosines[at][:, None], sines[at][:, None]
            return turned(q, cos, sin), turned(k, cos, sin)

        for way, verb in (("in place", fastpe.apply_rotary), ("new tensors", functional.apply_rotary)):
            calls: dict[str, Call] = {"torch": plain, "fastpe": lambda verb=verb, q=q, k=k, at=at: verb(q, k, positions=at)}
            yield _ratio(measuring, f"rotary of ({batch}, 1) positions, {way}", calls, 1.0)
    module = SinusoidalEncoding().eval()
    for shape in ((1, 1, 768), (8, 128, 768)):
        x, table = torch.ones(shape), torch.ones(shape[1:])
        calls = {"torch": lambda x=x, table=table: x + table, "fastpe": lambda x=x: module(x)}
        yield _ratio(measuring, f"SinusoidalEncoding {shape}", calls, None)
    words, ids = torch.ones(32_000, 512), torch.arange(1024).reshape(8, 128)
    rows = torch.ones(128, 512)
    calls = {
        "torch": lambda: torch.nn.functional.embedding(ids, words) + rows,
        "fastpe": lambda: functional.embed(ids, words, "sinusoidal"),
    }
    yield _ratio(measuring, "embed 1024 tokens with sines", calls, None)
    for dtype in (torch.float32, torch.bfloat16):
        weight = words.to(dtype).requires_grad_()
        found = torch.nn.functional.embedding(ids, weight), functional.embed(ids, weight)
        grad = torch.ones_like(found[0])
        calls = {
            name: lambda made=made, weight=weight, grad=grad: torch.autograd.grad(made, weight, grad, retain_graph=True)
            for name, made in zip(("torch", "fastpe"), found, strict=True)
        }
        yield _ratio(measuring, f"gradient of a table (32000, 512), {dtype}", calls, 1.0)


def _ratio(measuring: Measuring, what: str, calls: dict[str, Call], target: float | None) -> Claim:
    medians = measuring.medians(calls)
    return at_least(f"{what}: torch / fastpe", medians["torch"] / medians["fastpe"], target, microseconds(medians))


def _fresh(q: Any, k: Any) -> Any:
    """Results of a layer, as a projection's are: in-place functions may write them."""
    return q * 1, k * 1


def _training(measuring: Measuring) -> Iterator[Claim]:
    """Forward and backward, the gradients of the results given."""
    import torch

    from fastpe.torch import functional

    eager = eager_rotation()
    for case in registry.CLAIMED["training"](measuring.shrink):
        work = Rotating(case)
        cos, sin = tables(work)
        q, k = (as_tensor(array).requires_grad_() for array in (work.q, work.k))
        gradients = tuple(as_tensor(random_values(tuple(x.shape), case.dtype)) for x in (q, k))

        def step(rotate: Callable[..., Any], q: Any = q, k: Any = k, gradients: Any = gradients) -> None:
            torch.autograd.grad(rotate(q, k), (q, k), gradients)

        def in_place(q: Any, k: Any) -> Any:
            return fastpe.apply_rotary(*_fresh(q, k))

        def usual(q: Any, k: Any, cos: Any = cos, sin: Any = sin) -> Any:
            return eager(q, k, cos, sin)

        calls: dict[str, Call] = {
            "functional": lambda step=step: step(functional.apply_rotary),
            "in place": lambda step=step: step(in_place),
            "a layer alone": lambda step=step: step(_fresh),
            "eager": lambda step=step, rotate=usual: step(rotate),
        }
        medians = measuring.medians(calls)
        what, detail = f"{described(work)}, forward + backward", milliseconds(medians)
        yield at_least(f"{what}: times as fast as eager", medians["eager"] / medians["functional"], 3.0, detail)
        alone = medians["in place"] - medians["a layer alone"]
        yield at_least(f"{what}, in place: times as fast as eager", medians["eager"] / alone, 3.0)
