"""Training with fastpe's modules, beside the same model in plain PyTorch."""

from __future__ import annotations

import math
import subprocess
import sys
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


def test_a_step_in_place_allocates_gradients_only():
    """Queries and keys are turned where they lie; their gradients are someone else's, and turned into new ones."""
    script = Path(__file__).parents[1] / "helpers" / "step_allocations.py"
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=200)
    assert run.stdout == "gradients only\n", run.stderr
