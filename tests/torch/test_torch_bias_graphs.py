"""Biases in graphs of PyTorch, compiled and exported, and as the text that graphs carry."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

import fastpe

torch = pytest.importorskip("torch")
testing = pytest.importorskip("torch._dynamo.testing")
from torch_biases import GIVEN, HEADS, LEARNED, parameters, without_inf  # noqa: E402

import fastpe.torch  # noqa: E402
from fastpe._core import text  # noqa: E402
from fastpe.encodings.bias import Bias  # noqa: E402

functional = fastpe.torch.functional


@pytest.mark.parametrize("name", ["t5", "alibi", "kerple_log", "fire_beyond"])
def test_compiled(name):
    """One graph, forward and backward, of the function and in place."""
    make, shapes = LEARNED[name]
    learned = [parameters(*shape, dtype=torch.float32, seed=i) for i, shape in enumerate(shapes)]
    bias, scores = make(*learned), torch.randn(2, HEADS, 4, 5, requires_grad=True)
    for given in (GIVEN["causal"], GIVEN["queries"], GIVEN["offsets"]):

        def new(x, given=given):
            return without_inf(functional.add_bias(x * 2, bias, **given)).sin()

        def in_place(x, given=given):
            doubled = x * 2
            fastpe.add_bias(doubled, bias, **given)
            return without_inf(doubled).sin()

        wanted = new(scores)
        gradients = torch.autograd.grad(wanted.sum(), [scores, *learned])
        for function in (new, in_place):
            torch._dynamo.reset()
            compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
            found = compiled(scores)
            torch.testing.assert_close(found, wanted)
            for got, expected in zip(torch.autograd.grad(found.sum(), [scores, *learned]), gradients, strict=True):
                torch.testing.assert_close(got, expected)
            with torch.no_grad():
                torch.testing.assert_close(compiled(scores), wanted)


# What has nothing to learn, or not everything.
PLAIN = {
    "alibi": (lambda: fastpe.ALiBi(HEADS, max_bias=16), []),
    "alibi_slopes": (lambda: fastpe.ALiBi(HEADS, 8.0, True, [0.5, 2, 1]), []),
    "sandwich": (lambda: fastpe.Sandwich(HEADS, width=32), []),
    "kerple": (lambda: fastpe.Kerple((1.0, 2.0, 0.5), (0.1, 0.2, 0.3)), []),
    "kerple_mixed": (lambda p: fastpe.Kerple(p, (0.1, 0.2, 0.3), symmetric=True), [(HEADS,)]),
    "fire_numbers": (lambda *layers: fastpe.FIRE(*layers, c=0.2, length=3, eps=1e-3), [(4,), (4,), (HEADS, 4), (HEADS,)]),
}
MADE = {**LEARNED, **{f"plain_{name}": value for name, value in PLAIN.items()}}


def counted(function):
    """A function compiled as a whole, and what counts its compilations."""
    counter = testing.CompileCounterWithBackend("aot_eager")
    return torch.compile(function, fullgraph=True, backend=counter), counter


def outcome(function, scores, learned):
    """The result and the gradients by the scores and by all that is learned."""
    found = without_inf(function(scores, *learned))
    return found.detach(), *torch.autograd.grad(found.sin().sum(), [scores, *learned])


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", MADE)
def test_made_in_a_graph(name):
    """A bias that the compiled function makes itself: the values and gradients of one made without a graph."""
    make, shapes = MADE[name]
    learned = [parameters(*shape, dtype=torch.float32, seed=i) for i, shape in enumerate(shapes)]
    scores = torch.randn(2, HEADS, 4, 5, generator=torch.Generator().manual_seed(2), requires_grad=True)
    given = GIVEN["causal"]
    for function in (
        lambda x, *learned: functional.add_bias(x, make(*learned), **given),
        lambda x, *learned: fastpe.add_bias(x * 1, make(*learned), **given),
    ):
        compiled, counter = counted(function)
        found, wanted = outcome(compiled, scores, learned), outcome(function, scores, learned)
        assert torch.equal(found[0], wanted[0])
        for got, expected in zip(found[1:], wanted[1:], strict=True):
            torch.testing.assert_close(got, expected)
        assert counter.frame_count == 1
        with torch.no_grad():
            assert torch.equal(compiled(scores, *learned), function(scores, *learned))


class Attention(torch.nn.Module):
    """Makes its biases of its parameters in each forward."""

    def __init__(self):
        super().__init__()
        for name, shape in {"weight": (8, HEADS), "p": (HEADS,), "a": (HEADS,)}.items():
            setattr(self, name, torch.nn.Parameter(parameters(*shape, dtype=torch.float32).detach()))
        self.first, self.second = torch.nn.Linear(1, 4), torch.nn.Linear(4, HEADS)
        self.c = torch.nn.Parameter(torch.tensor(0.1))
        for value in (self.first.weight, self.first.bias, self.second.weight, self.second.bias):
            torch.nn.init.constant_(value, 0.3)

    def forward(self, scores):
        scores = functional.add_bias(scores, fastpe.T5Bias(self.weight))
        scores = fastpe.add_bias(scores, fastpe.Kerple(self.p, self.a))
        first, second = self.first, self.second
        return functional.add_bias(scores, fastpe.FIRE(first.weight, first.bias, second.weight, second.bias, self.c, 3.0))


@pytest.mark.usefixtures("fresh_compiler")
def test_training_in_one_graph():
    """Steps of an optimiser change the tables, and nothing is compiled again."""
    losses, weights = [], []
    counter = testing.CompileCounterWithBackend("aot_eager")
    for compiles in (False, True):
        module = Attention()
        run = torch.compile(module, fullgraph=True, backend=counter) if compiles else module
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        generator = torch.Generator().manual_seed(3)
        for _ in range(4):
            loss = run(torch.randn(2, HEADS, 5, 7, generator=generator)).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        assert all(value.grad.any() for value in module.parameters())
        weights.append([value.detach() for value in module.parameters()])
    torch.testing.assert_close(losses[:4], losses[4:])
    torch.testing.assert_close(*weights)
    assert losses[4] > losses[7]
    assert counter.frame_count == 1


@pytest.mark.usefixtures("fresh_compiler")
def test_equal_biases_share_a_graph_and_others_do_not():
    """Given as an argument, held by a module, or made in the graph: whatever differs, the result does."""
    scores, one, other = (
        torch.randn(2, HEADS, 4, 5),
        *(parameters(8, HEADS, dtype=torch.float32, seed=i).detach() for i in (0, 1)),
    )
    different = [
        *(fastpe.ALiBi(HEADS, max_bias) for max_bias in (8.0, 9.0, 10.0)),
        fastpe.ALiBi(HEADS, symmetric=True),
        fastpe.ALiBi(HEADS, slopes=one[0]),
        *(fastpe.T5Bias(one, False, end) for end in (10, 11)),
        fastpe.LogBuckets(one),
        fastpe.Kerple(one[0], one[1]),
        fastpe.Kerple(one[0], one[1], "power"),
        fastpe.Kerple((1.0, 2.0, 3.0), (1.0, 2.0, 3.0)),
        fastpe.Kerple((1.0, 2.0, 4.0), (1.0, 2.0, 3.0)),
        fastpe.Sandwich(HEADS, 8),
    ]
    expected = [functional.add_bias(scores, bias) for bias in different]
    limit = (
        torch._dynamo.config.patch(recompile_limit=64) if hasattr(torch._dynamo.config, "recompile_limit") else nullcontext()
    )
    with limit:
        compiled, counter = counted(lambda x, bias: functional.add_bias(x, bias))
        for bias, wanted in zip(different, expected, strict=True):
            for _ in range(2):
                assert torch.equal(compiled(scores, dataclasses.replace(bias)), wanted)
        assert counter.frame_count == len(different)
        for table in (other, one, other):  # another tensor is not another bias
            bias = fastpe.T5Bias(table, False, 10)
            assert torch.equal(compiled(scores, bias), functional.add_bias(scores, bias))
        assert counter.frame_count == len(different)

        class Holder(torch.nn.Module):
            def forward(self, x):
                return functional.add_bias(x, self.bias)

        module = Holder()
        compiled, counter = counted(module)
        for bias, wanted in zip(different, expected, strict=True):
            module.bias = bias
            assert torch.equal(compiled(scores), wanted)
        assert counter.frame_count == len(different)


NUMBERS = {
    "heads": (lambda x, n: functional.add_bias(x[:, :n], fastpe.ALiBi(x[:, :n].shape[1])), (1, 2, 3)),
    "max_bias": (lambda x, n: functional.add_bias(x, fastpe.ALiBi(HEADS, n)), (8.0, 9.0, 10.5, 8.0)),
    "integer": (lambda x, n: functional.add_bias(x, fastpe.ALiBi(HEADS, n)), (8, 9, 10, 8)),
    "width": (lambda x, n: functional.add_bias(x, fastpe.Sandwich(HEADS, n)), (8, 10, 12)),
    "tuple": (lambda x, n: functional.add_bias(x, fastpe.Kerple((n,) * HEADS, (n, 1.0, 2.0))), (0.5, 0.75, 1.5)),
    "max_distance": (lambda x, n: functional.add_bias(x, fastpe.T5Bias(BUCKETS, False, n)), (5, 6, 7)),
}
BUCKETS = torch.linspace(-1, 1, 8 * HEADS).reshape(8, HEADS)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", NUMBERS)
def test_made_in_a_graph_of_numbers_that_change(name):
    function, numbers = NUMBERS[name]
    compiled, _ = counted(function)
    scores = torch.randn(2, HEADS, 6, 7)
    for number in numbers:
        assert torch.equal(compiled(scores, number), function(scores, number))


@pytest.mark.usefixtures("fresh_compiler")
def test_a_graph_serves_every_length():
    compiled, counter = counted(lambda x, table: functional.add_bias(x, fastpe.T5Bias(table), causal=True))
    table = BUCKETS.clone().requires_grad_()
    for length in (3, 7, 9, 12):
        scores = torch.randn(2, HEADS, length, length + 2, requires_grad=True)
        found = outcome(compiled, scores, [table])
        wanted = outcome(lambda x, table: functional.add_bias(x, fastpe.T5Bias(table), causal=True), scores, [table])
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)
    assert counter.frame_count <= 2


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("strict", [False, True])
def test_exported(strict):
    module, scores = Attention(), torch.randn(2, HEADS, 4, 5)
    exported = torch.export.export(module, (scores,), strict=strict).module()
    torch.testing.assert_close(exported(scores), module(scores))


@pytest.mark.parametrize("name", MADE)
def test_biases_survive_as_text(name):
    make, shapes = MADE[name]
    bias = make(*[parameters(*shape, seed=i) for i, shape in enumerate(shapes)])
    json.loads(bias.text)
    text.refuse_unknown("here", bias.text)
    again = text.read(bias.text, text.tensors_in(bias))
    assert type(again) is type(bias)
    assert again.text == bias.text
    for field in dataclasses.fields(bias):
        one, other = getattr(bias, field.name), getattr(again, field.name)
        assert type(one) is type(other)
        assert one is other if isinstance(one, torch.Tensor) else one == other
    assert dataclasses.replace(bias).text == bias.text
    assert "text" not in repr(bias)


class Derived(fastpe.ALiBi):
    pass


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian(Bias):
    """A bias of a user's own: -amount * (distance / width)^2, with an amount for each head that can be learned."""

    amount: Any
    width: float = 2.0
    heads = HEADS

    @property
    def parameters(self) -> dict[str, Any]:
        return {"amount": self.amount}

    def evaluate(self, xp: Any, distances: Any, queries: Any = None, **parameters: Any) -> Any:
        amount = parameters["amount"].reshape((-1,) + (1,) * distances.ndim)
        return -amount * (distances / self.width) ** 2


OWN = {
    "derived": (lambda: Derived(HEADS, max_bias=4.0), []),
    "numbers": (lambda: Gaussian((0.5, 0.25, 1.0), 3.0), []),
    "tensor": (lambda amount: Gaussian(amount, 3.0), [(HEADS,)]),
}


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("where", ["made", "held"])
def test_own_biases_in_graphs(name, where):
    """Classes that derive from fastpe's are known, made in the graph or before: values and gradients are those without one."""
    make, shapes = OWN[name]
    learned = [parameters(*shape, dtype=torch.float32) for shape in shapes]
    scores, held = torch.randn(2, HEADS, 4, 5, requires_grad=True), make(*learned)
    for function in (
        lambda x, *learned: functional.add_bias(x, make(*learned) if where == "made" else held, causal=True),
        lambda x, *learned: fastpe.add_bias(x * 1, make(*learned) if where == "made" else held, causal=True),
    ):
        compiled, counter = counted(function)
        found, wanted = outcome(compiled, scores, learned), outcome(function, scores, learned)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)
        assert counter.frame_count == 1
        assert not torch.equal(without_inf(function(scores, *learned)), without_inf(scores))


class Stateful(Bias):
    """No dataclass: what it holds is not in its text."""

    heads = HEADS

    def __init__(self, width: float) -> None:
        self.width = width

    def evaluate(self, xp: Any, distances: Any, queries: Any = None, **parameters: Any) -> Any:
        return (xp.zeros_like(distances) + xp.abs(distances) / self.width)[None] * np.ones((HEADS,) + (1,) * distances.ndim)


REFUSED = {
    "float": (3.0, r"bias must be a bias such as fastpe\.ALiBi\(heads\)"),
    "none": (None, r"bias must be a bias such as fastpe\.ALiBi\(heads\)"),
    "array": (fastpe.T5Bias(np.ones((8, HEADS), np.float32)), r"a numpy\.ndarray object.* Arrays must be tensors"),
    "stateful": (Stateful(2.0), r"Stateful object.* classes of your own are dataclasses"),
}


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", REFUSED)
def test_what_no_graph_can_hold_is_refused(name):
    bias, rule = REFUSED[name]
    scores = torch.zeros(1, HEADS, 4, 5)
    for verb in (functional.add_bias, fastpe.add_bias):
        with pytest.raises((RuntimeError, TypeError), match=rule):
            torch.compile(lambda x, verb=verb: verb(x, bias), fullgraph=True, backend="aot_eager")(scores)
    assert not scores.any()


@pytest.mark.usefixtures("fresh_compiler")
def test_names_that_are_not_known_are_refused():
    written = Gaussian((0.5, 0.25, 1.0)).text
    text.refuse_unknown("here", written)
    unknown = written.replace("Gaussian", "Missing")
    with pytest.raises(TypeError, match=r"must consist of numbers, tensors and known classes, got a .*Missing"):
        text.refuse_unknown("here", unknown)
    with pytest.raises(TypeError, match=r"must be known when it runs, got .*Missing"):
        text.read(unknown)


@pytest.mark.usefixtures("fresh_compiler")
def test_values_are_checked_when_a_graph_runs():
    scores, table = torch.zeros(1, HEADS, 4, 5), torch.ones(8, HEADS)
    compiled, _ = counted(lambda x, table: fastpe.add_bias(x, fastpe.T5Bias(table)))
    compiled(scores.clone(), table)
    table[3, 1] = torch.nan
    with pytest.raises(ValueError, match="T5Bias: table must be finite"):
        compiled(scores, table)
    assert not scores.any()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"table must have shape \(buckets, H\)"):
        compiled(scores, table[0])
