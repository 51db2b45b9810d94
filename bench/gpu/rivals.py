"""What fastpe is compared with: PyTorch, its compiler, a kernel of Triton written for the purpose, and libraries that are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], object]


def rotate_half(x: Any) -> Any:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def eager(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    """The formula of Hugging Face's models, with tables that are there."""
    return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin


def triton_kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    """In place: ``rotate(x, cos, sin)`` of (B, H, T, D), a program a row and all its heads; ``add(x, table)``."""
    import triton
    import triton.language as tl

    @triton.jit
    def turn(x, cos, sin, heads, batch_stride, head_stride, row_stride, HALF: tl.constexpr, HEADS: tl.constexpr):
        row, batch = tl.program_id(0), tl.program_id(1)
        columns = tl.arange(0, HALF)[None, :]
        c = tl.load(cos + row * HALF + columns).to(tl.float32)
        s = tl.load(sin + row * HALF + columns).to(tl.float32)
        head = tl.arange(0, HEADS)[:, None]
        places = (
            x + batch.to(tl.int64) * batch_stride + row.to(tl.int64) * row_stride + head.to(tl.int64) * head_stride + columns
        )
        inside = head < heads
        first = tl.load(places, mask=inside).to(tl.float32)
        second = tl.load(places + HALF, mask=inside).to(tl.float32)
        tl.store(places, (first * c - second * s).to(x.dtype.element_ty), mask=inside)
        tl.store(places + HALF, (second * c + first * s).to(x.dtype.element_ty), mask=inside)

    @triton.jit
    def plus(x, table, period, BLOCK: tl.constexpr):
        places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(x + places, tl.load(x + places) + tl.load(table + places % period))

    def rotate(x: Any, cos: Any, sin: Any) -> None:
        batch, heads, rows, width = x.shape
        by_batch, by_head, by_row, _ = x.stride()
        turn[rows, batch](x, cos, sin, heads, by_batch, by_head, by_row, HALF=width // 2, HEADS=triton.next_power_of_2(heads))

    def add(x: Any, table: Any) -> None:
        assert x.numel() % 2048 == 0
        plus[(x.numel() // 2048,)](x, table, table.numel(), BLOCK=2048)

    return rotate, add


def of_rotary(q: Any, k: Any, positions: Any) -> dict[str, Callable[[], Call]]:
    """Rotations of q and k (B, H, T, D): what makes each call, which may fail where a library is not there or will not."""
    width, rows = q.shape[-1], q.shape[-2]
    angles = positions.double()[:, None] / 10_000.0 ** (torch.arange(0, width, 2, device=q.device) / width)
    cos, sin = angles.cos().float(), angles.sin().float()
    wide = [torch.cat((table, table), -1).to(q.dtype) for table in (cos, sin)]
    flat = [x.transpose(1, 2).reshape(-1, x.shape[1], width) for x in (q, k)]
    places = positions.repeat(q.shape[0])

    def triton() -> Call:
        rotate, _ = triton_kernels()
        return lambda: (rotate(q, cos, sin), rotate(k, cos, sin))

    def compiled() -> Call:
        function = torch.compile(eager, dynamic=False)
        return lambda: function(q, k, *wide)

    def flashinfer() -> Call:
        from flashinfer import apply_rope_pos_ids_inplace

        return lambda: apply_rope_pos_ids_inplace(*flat, places)

    def liger() -> Call:
        from liger_kernel.transformers.rope import liger_rotary_pos_emb

        tables = [table[None] for table in wide]
        return lambda: liger_rotary_pos_emb(q, k, *tables)

    def vllm() -> Call:
        from vllm import _custom_ops

        cache = torch.cat((cos, sin), -1).to(q.dtype)
        ids = torch.arange(rows, device=q.device).repeat(q.shape[0])  # rows of the cache
        given = [x.flatten(1) for x in flat]
        return lambda: _custom_ops.rotary_embedding(ids, *given, width, cache, True)

    return {
        "torch eager": lambda: lambda: eager(q, k, *wide),
        "torch.compile": compiled,
        "Triton": triton,
        "FlashInfer": flashinfer,
        "Liger": liger,
        "vLLM": vllm,
    }


def of_adding(x: Any, table: Any) -> dict[str, Callable[[], Call]]:
    """``x += table`` with a table that is there."""

    def triton() -> Call:
        _, add = triton_kernels()
        return lambda: add(x, table)

    def compiled() -> Call:
        function = torch.compile(torch.add, dynamic=False)
        return lambda: function(x, table)

    return {"torch eager": lambda: lambda: x.add_(table), "torch.compile": compiled, "Triton": triton}
