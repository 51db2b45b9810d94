"""The demo's input: a text, as an array of one random vector for each value of a byte."""

from __future__ import annotations

import importlib.resources
import os
import sys
from typing import Any

import numpy as np

from ..._core.checks import message

DATA = __package__.rpartition(".")[0]
SHIPPED = "data/sonnets.txt"
SEQUENCE = 4096
FEWEST_SEQUENCES, MOST_SEQUENCES = 8, 64
MOST_BYTES = 1 << 26  # of the array; the process stays below 300 MB
MOST_DIM = 1 << 14


class BadArgument(ValueError):
    """An argument that cannot be used; the text says why, in one line."""


def read(file: str | None) -> tuple[str, bytes]:
    """The name of the text and its bytes: at most one byte more than can be used, which says that there is more."""
    most = SEQUENCE * MOST_SEQUENCES + 1
    try:
        if file is None:
            resource = importlib.resources.files(DATA).joinpath(SHIPPED)
            name, content = "Shakespeare's sonnets", resource.read_bytes()
        elif file == "-":
            name = "standard input"
            if sys.stdin is None:
                raise ValueError("standard input is closed")
            buffer = getattr(sys.stdin, "buffer", None)
            content = sys.stdin.read(most).encode() if buffer is None else buffer.read(most)
        else:
            name = os.fsencode(file).decode(errors="replace")
            with open(file, "rb") as opened:
                content = opened.read(most)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadArgument(message("demo", "FILE must be a file that can be read", repr(file), f"{reason}.")) from None
    if not content:
        raise BadArgument(message("demo", "FILE must hold some text", f"nothing from {name}"))
    return name, content


def shape_for(count: int, dim: int, itemsize: int) -> tuple[int, int]:
    """(B, T) for so many tokens: whole sequences, at least eight, within the memory allowed."""
    rows = MOST_BYTES // (dim * itemsize)
    length = min(SEQUENCE, rows // FEWEST_SEQUENCES)
    batch = max(FEWEST_SEQUENCES, -(-count // length))
    return min(batch, MOST_SEQUENCES, rows // length), length


def vectors(content: bytes, batch: int, length: int, dim: int, dtype: Any) -> Any:
    """(B, T, D) on the host: one random vector of variance 1 for each value of a byte; a short text is repeated."""
    tokens = np.resize(np.frombuffer(content, np.uint8), (batch, length))
    table = np.random.default_rng(0).standard_normal((256, dim), np.float32).astype(dtype)
    return table[tokens]
