"""Fixtures that several tests of PyTorch share."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch's own operations, as small as here, lose most of the time to threads that wait for each other; fastpe keeps its threads."""
    import fastpe

    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    fastpe.set_num_threads(fastpe.get_num_threads())
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    fastpe.set_num_threads(None)


@pytest.fixture(autouse=True, scope="module")
def guards_are_not_timed() -> Iterator[None]:
    """PyTorch's compiler times the guards of each graph, to log it, and first empties the processor's caches: 50 ms a graph."""
    guards = sys.modules.get("torch._dynamo.guards")
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(guards, "profile_guard_manager"):
            patch.setattr(guards, "profile_guard_manager", lambda *_: 0.0)
        yield


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """PyTorch's compiler as if nothing had been compiled, before and after."""
    torch = pytest.importorskip("torch")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def rotations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """How often fastpe rotated, and what."""
    from fastpe.torch import _rotation as patching

    found: list[Any] = []
    rotate = patching.Rotation.rotate

    def counted(self: Any, *arguments: Any) -> Any:
        found.append(self)
        return rotate(self, *arguments)

    monkeypatch.setattr(patching.Rotation, "rotate", counted)
    return found


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Whatever a test does, no function is wrapped once its models are gone."""
    from fastpe.torch import _rotation as patching

    yield
    gc.collect()
    assert not any(patching._holders.values())
    assert not patching._wrapped
    gc.freeze()  # what is left stays, and need not be looked at again: a quarter of a second each time
