"""Encodings, rules and biases of a user's own in graphs, and what is refused there."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch_marks

torch = pytest.importorskip("torch")
pytest.importorskip("torch._dynamo.testing")
from graph_cases import F, inputs  # noqa: E402

import fastpe  # noqa: E402
from fastpe import Learned, Rotary, scaling  # noqa: E402
from fastpe._core import text  # noqa: E402
from fastpe.encodings import protocol  # noqa: E402

pytestmark = torch_marks.COMPILES


@dataclasses.dataclass(frozen=True)
class Halving(scaling.Scaling):
    factor: float = 2.0

    def apply(self, plain: scaling.Plain) -> Any:
        return [w / int(self.factor) for w in plain.frequencies()], 1.0


class Derived(Rotary):
    pass


@dataclasses.dataclass(frozen=True)
class Steps(protocol.Additive):
    """Sines and cosines of frequencies of its own."""

    step: float = 0.5

    def plan(self, dim: int, seq_len: int | None = None) -> Any:
        return protocol.sinusoids((self, dim), dim, [self.step * (i + 1) for i in range(dim // 2)])


@dataclasses.dataclass(frozen=True)
class Turning(protocol.Rotational):
    """All pairs turn by one angle."""

    angle: float = 0.25

    def plan(self, dim: int, seq_len: int | None = None) -> Any:
        return protocol.rotations((self, dim), dim, [self.angle] * (dim // 2))


OWN: dict[str, Any] = {
    "rule": lambda x, w: F.apply_rotary(x * w, None, Rotary(scaling=Halving(4.0))),
    "derived": lambda x, w: F.apply_rotary(x * w, None, Derived(base=500.0)),
    "additive": lambda x, w: F.add_encoding(x * w, Steps(0.75), offset=3, input_scale=2.0),
    "embedded": lambda x, w: F.embed([1, 0, 1], x[0, :2] * w, Steps(0.75), offset=3),
    "encoded": lambda x, w: x * w + fastpe.encode(torch.arange(6), 8, Steps(0.75)),
    "rotational": lambda x, w: F.apply_rotary(x * w, None, Turning(0.125), positions=torch.arange(6) * 2),
    "in place": lambda x, w: fastpe.apply_rotary(fastpe.add_encoding(x * w, Steps()), encoding=Turning()) * 1,
    "moved": lambda x, w: F.rerotate(x * w, 3, Turning(0.125)),
}


@pytest.mark.parametrize("name", OWN)
def test_own_classes_in_graphs(name):
    """Values and gradients are those without a graph."""
    function, x = OWN[name], inputs().x.requires_grad_()
    weight = torch.linspace(0.5, 2, 8).requires_grad_()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found, wanted = compiled(x, weight), function(x, weight)
    assert torch.equal(found, wanted)
    for one, other in zip(
        torch.autograd.grad(found.sin().sum(), (x, weight)), torch.autograd.grad(wanted.sin().sum(), (x, weight)), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert not torch.equal(wanted, x * weight)


def test_own_classes_are_found_by_module_and_name():
    """Those of one name are told apart, and all can be read back."""
    assert text.name_of(Steps).endswith("test_torch_own_classes.Steps")
    assert text.name_of(Rotary) == "Rotary"
    for value in (Halving(3.0), Derived(base=3.0), Steps(3.0), Turning(3.0)):
        again = text.read(text.write(value))
        assert type(again) is type(value)
        assert again == value

    def made(factor: float) -> Any:
        @dataclasses.dataclass(frozen=True)
        class Local(scaling.Scaling):
            def apply(self, plain: scaling.Plain) -> Any:
                return plain.frequencies(), factor

        return Local()

    x = inputs().x
    rules = [made(2.0), made(3.0)]
    assert text.write(rules[0]) != text.write(rules[1])
    for rule in rules:
        assert type(text.read(text.write(rule))) is type(rule)
        compiled = torch.compile(
            lambda x, rule=rule: F.apply_rotary(x, None, Rotary(scaling=rule)), fullgraph=True, backend="eager"
        )
        assert torch.equal(compiled(x), F.apply_rotary(x, None, Rotary(scaling=rule)))


@pytest.mark.parametrize(
    ("encoding", "error", "rule"),
    [
        (3.0, TypeError, r"encoding must be a Rotary or None, got float 3\.0"),
        ("learned", TypeError, r"encoding must be a Rotary or None"),
    ],
)
def test_what_is_no_encoding_is_refused_in_a_graph(encoding, error, rule):
    x = torch.zeros(2, 6, 8)
    with pytest.raises(error, match=rule):
        F.apply_rotary(x, None, encoding)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=rule):
        torch.compile(lambda x: F.apply_rotary(x, None, encoding), fullgraph=True, backend="eager")(x)
    assert not x.any()


def test_unknown_names_are_refused():
    known = Rotary(scaling=Halving()).text
    unknown = known.replace("Halving", "Missing")
    text.refuse_unknown("here", known)
    with pytest.raises(TypeError, match=r"here: encodings and biases in a graph must consist of .*, got a .*Missing"):
        text.refuse_unknown("here", unknown)
    with pytest.raises(TypeError, match=r"must be known when it runs, got .*Missing.* Import their module first"):
        text.read(unknown)


def test_arrays_of_numpy_are_refused_in_a_graph():
    x, table = torch.zeros(2, 6, 8), Learned(np.ones((9, 8), np.float32))
    with pytest.raises((torch._dynamo.exc.Unsupported, TypeError), match=r"must be tensors|a numpy\.ndarray"):
        torch.compile(lambda x: F.add_encoding(x, table), fullgraph=True, backend="eager")(x)
    assert not x.any()


class Stateful(protocol.Additive):
    """No dataclass: what it holds is not in its text."""

    def __init__(self, step: float = 0.5) -> None:
        self.step = step
        self.__post_init__()

    def plan(self, dim: int, seq_len: int | None = None) -> Any:
        return protocol.sinusoids((self, dim), dim, [self.step] * (dim // 2))


def test_a_class_whose_values_would_be_lost_is_refused():
    """Its text could not be read back to an equal value."""
    x, own = torch.zeros(2, 6, 8), Stateful(0.125)
    wanted = F.add_encoding(x, own)
    with pytest.raises((torch._dynamo.exc.Unsupported, TypeError), match="must consist of numbers, tensors and known classes"):
        torch.compile(lambda x: F.add_encoding(x, own), fullgraph=True, backend="eager")(x)
    assert torch.equal(F.add_encoding(x, own), wanted)
