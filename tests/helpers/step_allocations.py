"""What a step of training allocates where fastpe rotates in place: gradients only. ``python step_allocations.py`` checks it."""

from __future__ import annotations

import tracemalloc
from typing import Any

import torch

import fastpe.torch
from fastpe.torch import functional


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
    assert len(found) == len(without) + tensors, "the gradients that are turned back"
    assert peak < torch.Size(SIZE).numel() * 4 // 4
    new, _ = allocations(layer(ways["new"]))
    assert len(new) == len(without) + 2 * tensors


if __name__ == "__main__":
    check_allocations(Attention, PACKED, 1)
    check_allocations(Apart, SEPARATE, 2)
    print("gradients only")
