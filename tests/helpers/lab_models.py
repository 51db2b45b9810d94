"""The lab's models, small and untrained."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from bench.extrapolation.encodings import ENCODINGS, TRAININGS, Size  # noqa: E402
from bench.extrapolation.model import Decoder  # noqa: E402

SIZE = Size(length=32, width=16, heads=2, longest=512)


def model(name: str, factor: int = 1, size: Size = SIZE) -> Decoder:
    """A model of an encoding that reads texts of ``factor`` times the length."""
    entry = ENCODINGS[name]
    torch.manual_seed(3)
    found = Decoder(11, 11, TRAININGS[entry.training].make(size), size, layers=2).eval()
    found.encoding = entry.at(found.encoding, factor, size)
    return found
