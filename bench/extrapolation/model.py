"""A small causal transformer, the same for every task and encoding."""

from __future__ import annotations

import numpy as np
import torch

from .encodings import PositionEncoding, Size

__all__ = ["Decoder"]

Tensor = torch.Tensor
Past = tuple[Tensor, Tensor]  # keys and values of the tokens read so far, (B, H, T, D) each


class Block(torch.nn.Module):
    """Attention, and two layers of four times the width between them: each normalised before and added."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width
        self.heads = size.heads
        self.first_norm, self.second_norm = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.qkv, self.mixed = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.wide, self.narrow = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, x: Tensor, encoding: PositionEncoding, past: Past | None = None) -> tuple[Tensor, Past]:
        batch, length, width = x.shape
        q, k, v = (
            self.qkv(self.first_norm(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )  # (B, H, T, D) each
        if past is not None:
            k, v = torch.cat((past[0], k), -2), torch.cat((past[1], v), -2)
        mixed = encoding.attend(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.mixed(mixed)
        return x + self.narrow(torch.nn.functional.gelu(self.wide(self.second_norm(x)))), (k, v)


class Decoder(torch.nn.Module):
    """Blocks between a table of tokens and a linear layer: ids (B, T) -> scores (B, T, outputs)."""

    def __init__(self, tokens: int, outputs: int, encoding: PositionEncoding, size: Size, layers: int = 3) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(tokens, size.width) * size.width**-0.5)
        self.blocks = torch.nn.ModuleList(Block(size) for _ in range(layers))
        self.norm = torch.nn.LayerNorm(size.width)
        self.head = torch.nn.Linear(size.width, outputs)
        self.encoding = encoding

    def forward(self, ids: Tensor, rng: np.random.Generator | int = 0) -> Tensor:
        """Read whole sequences; rng draws what the encoding has of chance."""
        self.encoding.begin(ids.shape[-1], rng)
        return self.head(self.norm(self._read(ids, [None] * len(self.blocks), 0)[0]))

    @torch.no_grad()
    def write(self, ids: Tensor, length: int, temperature: float = 0.0, seed: int = 0) -> Tensor:
        """Return ids (B, T) with what the model writes after them, up to a length: the likeliest tokens, or drawn at a temperature."""
        generator = torch.Generator().manual_seed(seed)
        self.encoding.begin(length, seed)
        x, past = self._read(ids, [None] * len(self.blocks), 0)
        while True:
            scores = self.head(self.norm(x[:, -1]))
            chances = (scores / temperature).softmax(-1) if temperature else None
            new = scores.argmax(-1, keepdim=True) if chances is None else torch.multinomial(chances, 1, generator=generator)
            ids = torch.cat((ids, new), -1)
            if ids.shape[-1] >= length:
                return ids
            x, past = self._read(new, past, ids.shape[-1] - 1)

    def _read(self, ids: Tensor, past: list[Past | None], start: int) -> tuple[Tensor, list[Past | None]]:
        x, now = self.encoding.embed(ids, self.table, start), []
        for block, before in zip(self.blocks, past, strict=True):
            x, pair = block(x, self.encoding, before)
            now.append(pair)
        return x, now
