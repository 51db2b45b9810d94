"""Tensors whose last axis holds heads one behind the other: eager, with gradients, in graphs, packed, and in the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch_marks

torch = pytest.importorskip("torch")
import fastpe  # noqa: E402
import fastpe.torch  # noqa: E402
from fastpe.torch import functional as F  # noqa: E402

pytestmark = torch_marks.COMPILES

D = 8


def random(*shape: int, seed: int = 0, grad: bool = False) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), requires_grad=grad)


def by_head(x: Any) -> Any:
    return x.unflatten(-1, (-1, D))


def rotated(x: Any, **where: Any) -> Any:
    """What is wanted: the heads with an axis of their own."""
    return F.apply_rotary(by_head(x), seq_axis=-3, **where).flatten(-2)


@pytest.mark.parametrize("positions", [None, torch.tensor([4, 0, 2, 2, 9])])
def test_verb_function_and_module(positions: Any) -> None:
    q, k, where = random(5, 4 * D), random(5, 2 * D, seed=1), {"positions": positions}
    expected = rotated(q, **where), rotated(k, **where)
    module = fastpe.torch.RotaryEmbedding(head_dim=D)
    assert "head_dim=8" in repr(module)
    calls: tuple[Callable[[Any, Any], Any], ...] = (
        lambda q, k: fastpe.apply_rotary(q, k, head_dim=D, **where),
        lambda q, k: F.apply_rotary(q, k, head_dim=D, **where),
        lambda q, k: module(q, k, **where),
    )
    for call in calls:
        for _ in range(2):
            assert all(map(torch.equal, call(q.clone(), k.clone()), expected))


@pytest.mark.parametrize("in_place", [False, True])
def test_gradients(in_place: bool) -> None:
    def turned(x: Any) -> Any:
        return fastpe.apply_rotary(x * 1, head_dim=D, offset=7) if in_place else F.apply_rotary(x, head_dim=D, offset=7)

    weight, found = random(2, 5, 4 * D, seed=3), []
    for call in (turned, lambda x: rotated(x, offset=7)):
        x = random(2, 5, 4 * D, grad=True)
        (call(x) * weight).sum().backward()
        found.append(x.grad)
    assert torch.equal(*found)
    x = torch.randn(2, 3, 2 * D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(turned, x)


def test_graphs() -> None:
    q, k = random(2, 5, 4 * D), random(2, 5, 2 * D, seed=1)
    compiled = torch.compile(lambda q, k: F.apply_rotary(q, k, head_dim=D, offset=3), fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(q, k), (rotated(q, offset=3), rotated(k, offset=3))))


def test_vmap() -> None:
    q = random(3, 5, 4 * D)
    mapped = torch.func.vmap(lambda x: F.apply_rotary(x, head_dim=D, offset=2))(q)
    assert torch.equal(mapped, rotated(q, offset=2))


@pytest.mark.parametrize("inplace", [False, True])
def test_packed(inplace: bool) -> None:
    """(B, T, (q + k + v) * D), as one linear layer writes it."""
    qkv = random(2, 5, 8 * D)
    expected = torch.cat([rotated(qkv[..., : 6 * D]), qkv[..., 6 * D :]], -1)
    assert torch.equal(F.apply_rotary_qkv(qkv.clone(), (4, 2), head_dim=D, inplace=inplace), expected)
    assert torch.equal(F.apply_rotary_qkv(qkv[0].clone(), (4, 2), head_dim=D, inplace=inplace), expected[0])
    x = random(2, 5, 8 * D, grad=True)
    F.apply_rotary_qkv(x * 1, (4, 2), head_dim=D, inplace=inplace).sum().backward()
    y = random(2, 5, 8 * D, grad=True)
    torch.cat([rotated(y[..., : 6 * D]), y[..., 6 * D :]], -1).sum().backward()
    assert torch.equal(x.grad, y.grad)


def test_rerotate() -> None:
    k = random(5, 2 * D)
    wanted = F.rerotate(by_head(k), 3, seq_axis=-3).flatten(-2)
    assert torch.equal(F.rerotate(k, 3, head_dim=D), wanted)
    assert torch.equal(fastpe.rerotate(k, 3, head_dim=D), wanted)


def test_three_axes_may_be_batch_rows_and_channels() -> None:
    """(B, T, 3 * H * D) was taken for T rows of H heads; where it cannot be these, it is told."""
    qkv = random(2, 12, 3 * 2 * D)
    before = qkv.clone()
    text = r"qkv of 3 axes is \(T, H, D\), with 2 \+ 2 heads and as many of v as of k, or none, got shape \(2, 12, 48\). .* head_dim="
    with pytest.raises(ValueError, match=text):
        F.apply_rotary_qkv(qkv, 2, inplace=True)
    for heads, head_dim in ((4, D), ((5, 2), D), (2, 5), (2, 32)):
        with pytest.raises(ValueError, match="head"):
            F.apply_rotary_qkv(qkv, heads, head_dim=head_dim, inplace=True)
    assert torch.equal(qkv, before)
    assert F.apply_rotary_qkv(random(12, 6, D), 2).shape == (12, 6, D)


def test_modules_refuse_what_is_no_width() -> None:
    with pytest.raises(ValueError, match="RotaryEmbedding: head_dim must be at least 1, got 0"):
        fastpe.torch.RotaryEmbedding(head_dim=0)
