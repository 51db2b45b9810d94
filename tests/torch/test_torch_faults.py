"""Writes that autograd must learn of: what PyTorch refuses of its own functions is refused, in graphs too; no gradient is wrong."""

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

SHAPE = (2, 3, 4, 8)


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error_of(call: Callable[[], Any]) -> str:
    """What a call raises, as text; nothing if it does not."""
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return ""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend="aot_eager")


# ---- what autograd saved and what is written then ----------------------------------------------------------------------------

TABLE, IDS = random(11, 8, seed=5), torch.arange(24).reshape(2, 3, 4) % 11
WRITES: dict[str, Callable[[Any], Any]] = {
    "add_encoding": lambda y: fastpe.add_encoding(y),
    "add_encoding_scaled": lambda y: fastpe.add_encoding(y, offset=3, input_scale=2.0),
    "apply_rotary": lambda y: fastpe.apply_rotary(y),
    "apply_rotary_pair": lambda y: fastpe.apply_rotary(torch.ones(SHAPE), y, offset=2),
    "rerotate": lambda y: fastpe.rerotate(y, 3),
    "add_bias": lambda y: fastpe.add_bias(y, fastpe.ALiBi(3)),
    "apply_rotary_qkv": lambda y: F.apply_rotary_qkv(y, 1, inplace=True),
    "add_encoding_out": lambda y: fastpe.add_encoding(torch.ones(SHAPE), out=y),
    "apply_rotary_out": lambda y: fastpe.apply_rotary(torch.ones(SHAPE), out=y),
    "rerotate_out": lambda y: fastpe.rerotate(torch.ones(SHAPE), 3, out=y),
    "add_bias_out": lambda y: fastpe.add_bias(torch.ones(SHAPE), fastpe.ALiBi(3), out=y),
    "embed_out": lambda y: fastpe.embed(IDS, TABLE, out=y),
    "encode_out": lambda y: fastpe.encode(IDS, 8, out=y),
}


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("name", WRITES)
def test_a_factor_written_after_it_was_saved(name, view, graph):
    """The product's gradient by w needs y, or the tensor that y is a view of, as it was: PyTorch says that it was modified."""

    def step(x: Any, w: Any) -> Any:
        y = torch.stack((x, x * 3)) if view else x * 2
        z = y * w
        WRITES[name](y[1] if view else y)
        return z.sum() + y.sum()

    x, w = random(*SHAPE), random(*SHAPE, seed=1).requires_grad_()
    run = compiled(step) if graph else step
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run(x, w).backward()
    assert w.grad is None


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", WRITES)
def test_an_input_written_after_it_was_saved(name, graph):
    """An argument of the compiled function itself: the graph writes it, and knows that it needed it."""
    write = WRITES[name]

    def step(y: Any, w: Any) -> Any:
        z = y * w
        write(y)
        return z.sum()

    y, w = random(*SHAPE), random(*SHAPE, seed=1).requires_grad_()
    before = y.clone()
    run = compiled(step) if graph else step
    said = error_of(lambda: run(y, w).backward())
    if said:
        assert "modified by an inplace operation" in said
        assert w.grad is None
    else:  # a graph may keep a copy
        assert graph
        assert torch.equal(w.grad, before)


def modules() -> dict[str, Any]:
    return {
        "SinusoidalEncoding": fastpe.torch.SinusoidalEncoding(inplace=True),
        "LearnedEncoding": fastpe.torch.LearnedEncoding(9, 8, inplace=True).requires_grad_(False),
        "RotaryEmbedding": fastpe.torch.RotaryEmbedding(inplace=True),
    }


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", modules())
def test_a_module_in_place_behind_a_trained_adapter(name, graph):
    """The adapter's weights need its input as it was."""
    module, adapter = modules()[name], torch.nn.Linear(8, 8)

    def step(x: Any) -> Any:
        h = x * 2  # of frozen layers
        more = adapter(h)
        module(h)
        return (more + h).sum()

    run = compiled(step) if graph else step
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run(random(2, 4, 8)).backward()
    assert adapter.weight.grad is None


@pytest.mark.parametrize("name", WRITES)
def test_what_nobody_saved_is_written_in_a_graph(name):
    """The same gradient as without one."""
    write = WRITES[name]

    def step(x: Any, w: Any) -> Any:
        y = x * 2
        write(y)
        return (y * w).sum()

    grads = []
    for run in (step, compiled(step)):
        w = random(*SHAPE, seed=1).requires_grad_()
        run(random(*SHAPE), w).backward()
        grads.append(w.grad)
    assert torch.equal(*grads)


# ---- out= that requires a gradient -------------------------------------------------------------------------------------------

OUTS: dict[str, Callable[[Any, Any], Any]] = {
    "add_encoding": lambda x, out: fastpe.add_encoding(x, out=out),
    "apply_rotary": lambda x, out: fastpe.apply_rotary(x, out=out),
    "apply_rotary_pair": lambda x, out: fastpe.apply_rotary(x, x.clone(), out=(torch.empty_like(x), out)),
    "rerotate": lambda x, out: fastpe.rerotate(x, 3, out=out),
    "add_bias": lambda x, out: fastpe.add_bias(x, fastpe.ALiBi(3), out=out),
    "embed": lambda x, out: fastpe.embed(IDS, TABLE, out=out),
    "encode": lambda x, out: fastpe.encode(IDS, 8, out=out),
}


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("leaf", [False, True])
@pytest.mark.parametrize("name", OUTS)
def test_an_out_that_requires_a_gradient_is_refused(name, leaf, graph):
    write = OUTS[name]

    def step(x: Any, w: Any) -> Any:
        write(x, w if leaf else w * 2)
        return w.sum()

    x, w = random(*SHAPE), random(*SHAPE, seed=1).requires_grad_()
    before = w.detach().clone()
    run = compiled(step) if graph else step
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        run(x, w)
    assert torch.equal(w, before)
    with torch.no_grad():  # as PyTorch's own functions
        run(x, w)
    assert leaf is not torch.equal(w, before)


# ---- saved tensors that may be written ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("which", ["factor", "result"])
def test_where_saved_tensors_may_be_written(name, which):
    """PyTorch keeps a copy of what its own functions write there; who writes past it must not be answered with a wrong gradient."""
    write = WRITES[name]
    x, w = random(*SHAPE), random(*SHAPE, seed=1).requires_grad_()
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        if which == "factor":
            y = x * 2
            before = y.clone()
            z = y * w
        else:
            y = z = w.exp()  # which autograd saves as its own derivative
            before = y.detach().clone()
        write(y if which == "factor" else y.detach())
        z.sum().backward()
    assert torch.equal(w.grad, before)


# ---- arguments that change until the way back --------------------------------------------------------------------------------


def changed(value: Any) -> None:
    """Every number of a list, of lists perhaps, another one."""
    for i, one in enumerate(value):
        if isinstance(one, list):
            changed(one)
        else:
            value[i] = not one if isinstance(one, bool) else one + 1


PLACES: dict[str, Callable[[], dict[str, Any]]] = {
    "offset": lambda: {"offset": [2, 5]},
    "positions": lambda: {"positions": [4, 0, 7]},
    "positions_of_each": lambda: {"positions": [[4, 0, 7], [1, 2, 9]]},
    "tuple": lambda: {"positions": ([4, 0, 7], [1, 2, 9])},
    "cu_seqlens": lambda: {"cu_seqlens": [0, 1, 3]},
    "mask": lambda: {"mask": [True, False, True], "offset": 1},
}
LEARNED = random(12, 8, seed=7)
POSITIONED: dict[str, Callable[..., Any]] = {
    "add_encoding": lambda x, table, **given: F.add_encoding(x, fastpe.Learned(table, "clip"), **given),
    "add_encoding_": lambda x, table, **given: fastpe.add_encoding(x * 1, fastpe.Learned(table, "clip"), **given),
    "apply_rotary": lambda x, table, **given: F.apply_rotary(x, **given),
    "apply_rotary_": lambda x, table, **given: fastpe.apply_rotary(x * 1, **given),
    "apply_rotary_qkv": lambda x, table, **given: F.apply_rotary_qkv(x[:, :, None], (1, 0), seq_axis=1, **given),
    "apply_rotary_qkv_": lambda x, table, **given: F.apply_rotary_qkv(
        x[:, :, None] * 1, (1, 0), seq_axis=1, inplace=True, **given
    ),
    "rerotate": lambda x, table, **given: F.rerotate(x, 2, source=YARN, target=fastpe.Rotary(), **given),
    "rerotate_": lambda x, table, **given: fastpe.rerotate(x * 1, 2, source=YARN, target=fastpe.Rotary(), **given),
    "embed": lambda x, table, **given: F.embed([[0, 1, 2], [3, 4, 5]], x.reshape(6, 8), fastpe.Learned(table, "clip"), **given),
    "embed_verb": lambda x, table, **given: fastpe.embed(
        [[0, 1, 2], [3, 4, 5]], x.reshape(6, 8), fastpe.Learned(table, "clip"), **given
    ),
}
YARN = fastpe.Rotary(scaling=fastpe.scaling.NTK(4.0))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", POSITIONED)
def test_lists_that_change_before_the_way_back(name, place):
    """Gradients are those of the positions that the way there had."""
    function, grads = POSITIONED[name], []
    weight = random(2, 3, 8, seed=3)
    for changes in (False, True):
        x, table, given = random(2, 3, 8).requires_grad_(), LEARNED.clone().requires_grad_(), PLACES[place]()
        made = function(x, table, **given)
        if changes:
            for value in given.values():
                if not isinstance(value, int):
                    changed(value)
        (made * weight.reshape(made.shape)).sum().backward()
        grads.append([one.grad for one in (x, table) if one.grad is not None])
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


BETWEEN: dict[str, Callable[[], dict[str, Any]]] = {
    "q_offset": lambda: {"q_offset": [2, 4]},
    "q_positions": lambda: {"q_positions": [3, 1, 2, 5]},
    "k_positions": lambda: {"k_positions": [3, 1, 2, 5, 0], "q_offset": 1},
}


@pytest.mark.parametrize("verb", [F.add_bias, lambda x, *rest, **given: fastpe.add_bias(x * 1, *rest, **given)])
@pytest.mark.parametrize("make", ["t5", "fire"])
@pytest.mark.parametrize("place", BETWEEN)
def test_lists_of_a_bias_that_change_before_the_way_back(verb, make, place):
    grads = []
    for changes in (False, True):
        scores = random(2, 3, 4, 5).requires_grad_()
        if make == "t5":
            learned = [random(8, 3, seed=1).requires_grad_()]
            bias = fastpe.T5Bias(*learned)
        else:
            learned = [random(*shape, seed=1).abs().requires_grad_() for shape in ((4, 1), (4,), (3, 4), (3,))]
            bias = fastpe.FIRE(*learned, length=2)  # rows with values of their own
        given = BETWEEN[place]()
        made = torch.where(torch.isinf(made := verb(scores, bias, causal=True, **given)), 0, made)
        if changes:
            for value in given.values():
                if isinstance(value, list):
                    changed(value)
        made.sin().sum().backward()
        grads.append([one.grad for one in (scores, *learned)])
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_moves_that_changes(kind):
    grads = []
    for changes in (False, True):
        x, delta = random(2, 3, 8).requires_grad_(), [2, 7]
        made = F.rerotate(x, kind(delta))
        if changes:
            changed(delta)
        made.sin().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


# ---- memory that is shared ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("slices", [(slice(0, 5), slice(3, 8)), (slice(0, 4), slice(0, 4)), (slice(2, 6), slice(1, 3))])
def test_queries_and_keys_that_overlap_are_refused(graph, grad, slices):
    first, second = slices

    def step(x: Any) -> Any:
        a = x * 1
        fastpe.apply_rotary(a[:, first], a[:, second])
        return a

    run = compiled(step) if graph else step
    with pytest.raises((ValueError, RuntimeError), match="must lie apart"):
        run(random(2, 8, 3, 8).requires_grad_(grad))


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_queries_and_keys_of_one_tensor_that_lie_apart(graph, grad):
    def step(x: Any) -> Any:
        a = x * 1
        fastpe.apply_rotary(a[:, :5], a[:, 5:])
        return a

    x = random(2, 8, 3, 8).requires_grad_(grad)
    found = (compiled(step) if graph else step)(x)
    assert torch.equal(found, F.apply_rotary(x))


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", ["add_encoding", "apply_rotary", "add_bias"])
def test_an_out_that_overlaps_its_input_is_refused(name, graph):
    write = OUTS[name]

    def step(x: Any) -> Any:
        a = x * 1
        write(a[:2], a[1:])
        return a

    with pytest.raises((ValueError, RuntimeError), match="overlap"):
        (compiled(step) if graph else step)(random(3, *SHAPE[1:]))
