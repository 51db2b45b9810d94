"""Training with fastpe's modules, beside the same model in plain PyTorch."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import fastpe  # noqa: E402
import fastpe.torch  # noqa: E402
from fastpe.torch import functional  # noqa: E402

VOCABULARY, WIDTH, HEADS, LENGTH, STEPS = 19, 32, 4, 24, 300
HEAD = WIDTH // HEADS
SAME_LOSS = 1e-4  # of losses from 3 down to 0.1, float32: sums in another order, carried on for 300 steps


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Operations as small as these lose time to threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def angles(length: int, width: int) -> Any:
    """Position times frequency in float64, (T, width/2)."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.arange(length, dtype=torch.float64)[:, None] * frequencies


class Plain(torch.nn.Module):
    """Tokens, sinusoids, learned positions, rotated queries and keys, all written out."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.learned = torch.nn.Embedding(LENGTH, WIDTH)

    def embed(self, ids: Any) -> Any:
        sinusoid = torch.empty(ids.shape[1], WIDTH, dtype=torch.float64)
        sinusoid[:, 0::2], sinusoid[:, 1::2] = angles(ids.shape[1], WIDTH).sin(), angles(ids.shape[1], WIDTH).cos()
        x = self.tokens(ids) * math.sqrt(WIDTH) + sinusoid.float()
        return x + self.learned(torch.arange(ids.shape[1]))

    def rotate(self, qkv: Any) -> Any:
        q, k, v = qkv.unflatten(2, (3, HEADS)).unbind(2)  # (B, T, H, HEAD)
        cos, sin = (f(angles(q.shape[1], HEAD)).float()[:, None].repeat(1, 1, 2) for f in (torch.cos, torch.sin))

        def turned(x: Any) -> Any:
            first, second = x.chunk(2, -1)
            return x * cos + torch.cat((-second, first), -1) * sin

        return turned(q), turned(k), v


class Fast(torch.nn.Module):
    """The same with fastpe, the packed tensor rotated in place."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = fastpe.torch.TokenEmbedding(VOCABULARY, WIDTH, "sinusoidal", scale=math.sqrt(WIDTH))
        self.learned = fastpe.torch.LearnedEncoding(LENGTH, WIDTH, inplace=True)

    def embed(self, ids: Any) -> Any:
        return self.learned(self.tokens(ids))

    def rotate(self, qkv: Any) -> Any:
        return functional.apply_rotary_qkv(qkv, HEADS, inplace=True).unflatten(2, (3, HEADS)).unbind(2)


class Separate(Fast):
    """The same with the module for queries and keys, which writes new ones."""

    def __init__(self) -> None:
        super().__init__()
        self.rotary = fastpe.torch.RotaryEmbedding(seq_axis=1)

    def rotate(self, qkv: Any) -> Any:
        q, k, v = qkv.unflatten(2, (3, HEADS)).unbind(2)
        return *self.rotary(q, k), v


class Decoder(torch.nn.Module):
    """Two layers of attention with what is given for positions."""

    def __init__(self, positions: Any) -> None:
        super().__init__()
        self.positions = positions
        self.qkv = torch.nn.ModuleList(torch.nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(WIDTH) for _ in range(2))
        self.mix = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU()) for _ in range(2))
        self.head = torch.nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Any) -> Any:
        x = self.positions.embed(ids)
        for qkv, norm, mix in zip(self.qkv, self.norms, self.mix, strict=True):
            q, k, v = (one.transpose(1, 2) for one in self.positions.rotate(qkv(norm(x)).unflatten(2, (-1, HEAD))))
            found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + mix(found.transpose(1, 2).flatten(2))
        return self.head(x)


def losses(kind: type) -> list[float]:
    """The loss of every step, learning to repeat a text of some period."""
    torch.manual_seed(0)
    model = Decoder(kind())
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(torch.randn(weights.shape) * 0.15)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    found = []
    for step in range(STEPS):
        drawn = torch.Generator().manual_seed(step)
        period = torch.randint(0, VOCABULARY, (8, 5), generator=drawn)
        text = period.repeat(1, LENGTH)[:, : LENGTH + 1]
        logits = model(text[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.fixture(scope="module")
def plain() -> list[float]:
    found = losses(Plain)
    assert found[-1] < 0.7 * found[0]  # it learns
    return found


@pytest.mark.parametrize("kind", [Fast, Separate])
def test_the_same_losses(plain, kind):
    difference = max(abs(one - other) for one, other in zip(losses(kind), plain, strict=True))
    assert difference <= SAME_LOSS


# ---- memory ------------------------------------------------------------------------------------------------------------------


class Attention(torch.nn.Module):
    """Queries, keys and values of four heads from one product, (B, 12, T, 16), rotated in one of these ways."""

    def __init__(self, rotate: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(12, 64, 16, generator=torch.Generator().manual_seed(0)) / 8)
        self.rotate = rotate

    def forward(self, x: Any) -> Any:
        qkv = self.rotate(torch.matmul(x[:, None], self.weight))
        q, k, v = qkv.unflatten(1, (3, 4)).unbind(1)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class Apart(torch.nn.Module):
    """Queries and keys from a product of their own each, (B, T, H, 16), as attention has them transposed."""

    def __init__(self, rotate: Any) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(0)
        self.weights = torch.nn.ParameterList(torch.randn(64, 64, generator=drawn) / 8 for _ in range(3))
        self.rotate = rotate

    def forward(self, x: Any) -> Any:
        products = (torch.mm(x.flatten(0, 1), weight) for weight in self.weights)
        # No views of other tensors, for autograd: it copies the gradient of a view that was written.
        q, k, v = (torch.ops.aten._unsafe_view(one, (*x.shape[:2], 4, 16)) for one in products)
        q, k = self.rotate(q, k)
        q, k, v = (one.transpose(1, 2) for one in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


SIZE = (4, 256, 64)  # q: 256 KiB


def allocations(model: Any) -> tuple[list[int], int]:
    """What a step of training allocates: PyTorch's memory from half the size of q on, and the peak of Python's and NumPy's."""
    x = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))

    def step() -> None:
        model.zero_grad()
        model(x).square().mean().backward()

    step()
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    found = sorted(event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() >= x.nbytes // 2)
    tracemalloc.start()
    try:
        step()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return found, peak


PACKED = {
    "nothing": lambda qkv: qkv,
    "new": lambda qkv: functional.apply_rotary_qkv(qkv, 4, seq_axis=2),
    "inplace": lambda qkv: functional.apply_rotary_qkv(qkv, 4, seq_axis=2, inplace=True),
}
SEPARATE = {
    "nothing": lambda q, k: (q, k),
    "new": fastpe.torch.RotaryEmbedding(seq_axis=1),
    "inplace": fastpe.torch.RotaryEmbedding(seq_axis=1, inplace=True),
}


def check_allocations(layer: Any, ways: dict[str, Any], tensors: int) -> None:
    without, _ = allocations(layer(ways["nothing"]))
    assert len(without) >= 6
    found, peak = allocations(layer(ways["inplace"]))
    assert found == without
    assert peak < torch.Size(SIZE).numel() * 4 // 4
    new, _ = allocations(layer(ways["new"]))
    assert len(new) == len(without) + tensors


@pytest.mark.parametrize("arguments", ["Attention, PACKED, 1", "Apart, SEPARATE, 2"], ids=["packed", "q and k"])
def test_a_step_in_place_allocates_nothing(arguments):
    """Forward and back: queries, keys and their gradients are turned where they lie. New ones are allocated on the way forward only.

    In a process of its own: once a compilation has failed, PyTorch's frames hold more references, and gradients count as shared.
    """
    code = f"from test_torch_training import *; check_allocations({arguments})"
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
