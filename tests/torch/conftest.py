"""Fixtures that several tests of PyTorch share."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """PyTorch's compiler as if nothing had been compiled, before and after."""
    torch = pytest.importorskip("torch")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """How often fastpe rotated, and what."""
    from fastpe.torch import transformers as patching

    found: list[Any] = []
    rotate = patching._Turn.rotate

    def counted(self: Any, *arguments: Any) -> Any:
        found.append(self)
        return rotate(self, *arguments)

    monkeypatch.setattr(patching._Turn, "rotate", counted)
    return found


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Whatever a test does, no function is wrapped once its models are gone."""
    from fastpe.torch import transformers as patching

    yield
    gc.collect()
    assert not any(patching._holders.values())
    assert not patching._wrapped
