"""Learned tables of windows and grids, beside the modules of Swin, BEiT and SAM and their gradients; Shaw's keys beside a loop."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import cases
import numpy as np
import pytest
import torch_marks

import fastpe
from fastpe import positions

torch = pytest.importorskip("torch")
functional = pytest.importorskip("fastpe.torch.functional")
transformers = cases.transformers()

pytestmark = torch_marks.COMPILES


def module_of(model: str) -> Any:
    return importlib.import_module(f"transformers.models.{model}.modeling_{model}")


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compared(module: Any, theirs: Any, bias: Any, queries: Any, keys: Any) -> None:
    """Exactly the module's bias, added to zeros in place, to scores with a history, and in a compiled graph; and its gradient."""
    heads, rows = theirs.shape[-3], theirs.shape[-1]
    where = {"q_positions": queries, "k_positions": keys}
    assert torch.equal(
        fastpe.add_bias(torch.zeros(2, heads, rows, rows), bias.with_arrays(table=bias.table.detach()), **where)[0], theirs[0]
    )
    scores, factors = random(2, heads, rows, rows), random(2, heads, rows, rows, seed=1)
    added = functional.add_bias(scores, bias, **where)
    assert torch.equal(added, scores + theirs)
    (got,) = torch.autograd.grad((added * factors).sum(), bias.table, retain_graph=True)
    (expected,) = torch.autograd.grad((theirs * factors).sum(), module.relative_position_bias_table)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
    compiled = torch.compile(lambda x: functional.add_bias(x, bias, **where), backend="eager", fullgraph=True)
    assert torch.equal(compiled(scores), added)


@pytest.mark.parametrize("size", [(7, 7), (4, 4), (3, 5), (1, 1), (1, 6)])
def test_swin(size):
    module = module_of("swin").SwinRelativePositionBias(3, size)
    module.relative_position_bias_table.data.copy_(random(*module.relative_position_bias_table.shape))
    where = positions.window(size, like=torch.zeros(1))
    compared(module, module(), fastpe.RelativeTable(module.relative_position_bias_table), where, where)


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 2), (1, 1)])
def test_beit(size):
    config = SimpleNamespace(image_size=(16 * size[0], 16 * size[1]), patch_size=16, num_attention_heads=3)
    module = module_of("beit").BeitRelativePositionBias(config)
    module.relative_position_bias_table.data.copy_(random(*module.relative_position_bias_table.shape))
    if size[0] != size[1]:  # its resampling takes rows for columns
        table = module.relative_position_bias_table
        index = module.generate_relative_position_index(size)
        theirs = table[index.view(-1)].view(*index.shape, -1).permute(2, 0, 1)[None]
    else:
        theirs = module(size)
    queries, keys = positions.window(size, class_token=True, like=torch.zeros(1))
    bias = fastpe.RelativeTable(module.relative_position_bias_table, class_token=True)
    compared(module, theirs, bias, queries, keys)


def test_beit_at_another_resolution():
    """The table of 4 x 4 patches for 6 x 6 of them; its gradient goes through resample."""
    module = module_of("beit").BeitRelativePositionBias(SimpleNamespace(image_size=64, patch_size=16, num_attention_heads=3))
    table = module.relative_position_bias_table
    table.data.copy_(random(*table.shape))
    theirs = module((6, 6))
    queries, keys = positions.window((6, 6), class_token=True, like=torch.zeros(1))
    larger = torch.cat([fastpe.resample(table[:-3], (11, 11), method="bilinear"), table[-3:]])
    ours = functional.add_bias(
        torch.zeros(3, 37, 37), fastpe.RelativeTable(larger, class_token=True), q_positions=queries, k_positions=keys
    )
    torch.testing.assert_close(ours, theirs[0], rtol=0, atol=1e-6)
    factors = random(3, 37, 37, seed=1)
    (got,), (expected,) = (torch.autograd.grad((made * factors).sum(), table) for made in (ours, theirs[0]))
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [(4, 6), (8, 8), (14, 3)])
def test_sam(size):
    """As docs/how-to/biases.md does it, with gradients by tables and queries."""
    kind = module_of("sam").SamVisionAttention
    model = SimpleNamespace(get_rel_pos=kind.get_rel_pos.__get__(SimpleNamespace()))
    q = random(2, *size, 16).requires_grad_()
    tables = [random(15, 16, seed=seed).requires_grad_() for seed in (1, 2)]
    theirs = kind.get_decomposed_rel_pos(model, q.reshape(2, -1, 16), *tables, size, size)
    rows, columns = (
        fastpe.resample(table, 2 * n - 1)[torch.arange(n)[:, None] - torch.arange(n) + n - 1]
        for table, n in zip(tables, size, strict=True)
    )
    ours = torch.einsum("bhwc,hkc->bhwk", q, rows)[..., :, None] + torch.einsum("bhwc,wkc->bhwk", q, columns)[..., None, :]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    factors = random(*ours.shape, seed=3)
    found, expected = (torch.autograd.grad((made * factors).sum(), [q, *tables]) for made in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


def test_a_whole_window_of_swin():
    """Its attention's own scores, softmax and values."""
    swin = module_of("swin")
    config = transformers.SwinConfig(embed_dim=24, num_heads=[3])
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    attention = swin.SwinAttention(config, 24, 3, 4).eval()
    table = attention.relative_position_bias.relative_position_bias_table
    table.data.copy_(random(*table.shape))
    x, where = random(5, 16, 24), positions.window((4, 4), like=torch.zeros(1))
    with torch.no_grad():
        expected = attention(x)[0]
        q, k, v = (getattr(attention, f"{name}_proj")(x).view(5, 16, 3, 8).transpose(1, 2) for name in ("q", "k", "v"))
        scores = q @ k.transpose(-1, -2)
        fastpe.add_bias(scores, fastpe.RelativeTable(table.detach()), input_scale=8**-0.5, q_positions=where, k_positions=where)
        got = attention.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_shaws_keys():
    """By a loop over queries and keys."""
    reach, rows, width = 2, 6, 4
    table, q = (
        np.random.default_rng(0).standard_normal((2 * reach + 1, width)),
        np.random.default_rng(1).standard_normal((rows, width)),
    )
    between = np.clip(np.arange(rows) - np.arange(rows)[:, None], -reach, reach) + reach
    found = np.einsum("qc,qkc->qk", q, table[between])
    for i in range(rows):
        for j in range(rows):
            assert found[i, j] == pytest.approx(q[i] @ table[max(-reach, min(reach, j - i)) + reach], rel=1e-12)
