"""What PyTorch's other tracers record, forward-mode differentiation in graphs, and numbers that require a gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch.autograd import forward_ad  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import fastpe  # noqa: E402
import fastpe.torch  # noqa: E402
from fastpe.torch import functional as F  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings(
        # Of PyTorch's compiler and of its older tracer
        "ignore::DeprecationWarning:torch.*",
        "ignore::FutureWarning:torch.*",
        "ignore:.*torch.jit.*:DeprecationWarning",
        "ignore::torch.jit.TracerWarning",
    ),
    pytest.mark.usefixtures("fresh_compiler"),
]

SHAPE = (2, 3, 4, 8)


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- other tracers -----------------------------------------------------------------------------------------------------------

IDS, LEARNED = torch.arange(24).reshape(2, 3, 4) % 11, random(40, 8, seed=4)
FORMS: dict[str, Callable[[Any], Any]] = {
    "add_encoding": lambda x: F.add_encoding(x, offset=3, input_scale=2.0),
    "add_learned": lambda x: F.add_encoding(x, fastpe.Learned(LEARNED)),
    "add_positions": lambda x: F.add_encoding(x, positions=torch.arange(4) * 2),
    "apply_rotary": lambda x: F.apply_rotary(x, offset=5),
    "apply_rotary_pair": lambda x: F.apply_rotary(x, x * 2)[1],
    "apply_rotary_qkv": lambda x: F.apply_rotary_qkv(x, 1),
    "rerotate": lambda x: F.rerotate(x, 3),
    "add_bias": lambda x: F.add_bias(x, fastpe.ALiBi(3), causal=True),
    "embed": lambda x: F.embed(IDS, x.reshape(-1, 8), "sinusoidal"),
    "encode": lambda x: x + fastpe.encode(torch.arange(4), 8),
    "in_place": lambda x: fastpe.add_encoding(x * 1, offset=3),
    "rotary_in_place": lambda x: fastpe.apply_rotary(x * 1, offset=3),
    "out": lambda x: fastpe.add_encoding(x, out=torch.empty_like(x)),
    "embed_out": lambda x: fastpe.embed(IDS, x.reshape(-1, 8), out=torch.empty(*SHAPE)),
    "encode_out": lambda x: x + fastpe.encode(torch.arange(4), 8, out=torch.empty(4, 8)),
}


class Module(torch.nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            [
                fastpe.torch.SinusoidalEncoding(inplace=inplace),
                fastpe.torch.LearnedEncoding(9, 8, inplace=inplace),
                fastpe.torch.RotaryEmbedding(inplace=inplace),
            ]
        )
        torch.nn.init.constant_(self.layers[1].weight, 0.5)

    def forward(self, x: Any) -> Any:
        x = x * 1
        for layer in self.layers:
            x = layer(x)
        return x


MODULES = {"modules": Module(False), "modules_in_place": Module(True)}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", [*FORMS, *MODULES])
def test_traced_by_jit(name, grad):
    """The graph holds the operator, and calculates anew for another input."""
    function = {**FORMS, **MODULES}[name]
    if grad and name.endswith("out") and name != "encode_out":
        pytest.skip("an out has no history")
    with contextlib.nullcontext() if grad else torch.no_grad():
        traced = torch.jit.trace(function, (random(*SHAPE).requires_grad_(grad),))
        assert "fastpe::run" in str(traced.inlined_graph)
        for seed in (0, 1, 2):
            x = random(*SHAPE, seed=seed).requires_grad_(grad)
            found, wanted = traced(x), function(x)
            assert torch.equal(found, wanted)
            if grad:
                (one,), (other,) = (torch.autograd.grad(made.tanh().sum(), x) for made in (found, wanted))
                torch.testing.assert_close(one, other)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("name", [*FORMS, *MODULES])
def test_traced_by_make_fx(name, mode):
    function = {**FORMS, **MODULES}[name]
    if mode != "real" and name in ("add_learned", "embed", "embed_out", "add_positions", *MODULES):
        pytest.skip("has tensors that are not inputs")
    with torch.no_grad():
        traced = make_fx(function, tracing_mode=mode)(random(*SHAPE))
        assert "fastpe.run" in traced.code
        for seed in (0, 1):
            x = random(*SHAPE, seed=seed)
            assert torch.equal(traced(x), function(x))


@pytest.mark.parametrize("name", [name for name in FORMS if not name.endswith("out")])
def test_gradients_traced_by_make_fx(name):
    """The way back is in the graph too."""
    function = FORMS[name]

    def gradient(x: Any) -> Any:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(function(leaf).tanh().sum(), leaf)[0]

    traced = make_fx(gradient)(random(*SHAPE))
    for seed in (0, 1):
        x = random(*SHAPE, seed=seed)
        torch.testing.assert_close(traced(x), gradient(x))


LEARNED_BIASES: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "t5": (fastpe.T5Bias, [(8, 3)]),
    "kerple": (fastpe.Kerple, [(3,), (3,)]),
    "fire": (lambda *layers: fastpe.FIRE(*layers, length=2), [(4, 1), (4,), (3, 4), (3,)]),
}


@pytest.mark.parametrize("name", [*FORMS, *LEARNED_BIASES])
def test_under_a_mode_that_sees_every_operator(name):
    """As one that counts operations does: values and gradients are those without it."""
    if name in LEARNED_BIASES:
        make, shapes = LEARNED_BIASES[name]
        learned = [random(*shape, seed=i).abs() for i, shape in enumerate(shapes)]
        function = lambda x, *learned: F.add_bias(x, make(*learned))  # noqa: E731
    else:
        learned, function = [], FORMS[name]
    if name in ("out", "embed_out"):
        pytest.skip("an out has no history")
    outcomes = []
    for mode in (contextlib.nullcontext(), Seeing()):
        leaves = [x.clone().requires_grad_() for x in (random(*SHAPE), *learned)]
        with mode:
            made = function(*leaves)
            made.tanh().sum().backward()
        outcomes.append([made.detach(), *(x.grad for x in leaves)])
    assert "fastpe::run" in mode.seen
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other)


class Seeing(TorchDispatchMode):
    """Notes what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(function.name())
        return function(*args, **(kwargs or {}))


# ---- forward mode in graphs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name in FORMS if name not in ("add_learned", "embed", "encode") and "out" not in name]
)
@pytest.mark.parametrize("way", ["jvp", "dual"])
def test_tangents_in_a_graph(name, way):
    """The tangent that there is without one, or an error; never none."""
    function = FORMS[name]

    def tangent(x: Any, t: Any) -> Any:
        if way == "jvp":
            return torch.func.jvp(function, (x,), (t,))[1]
        with forward_ad.dual_level():
            made = forward_ad.unpack_dual(function(forward_ad.make_dual(x, t)))
            return torch.full_like(x, torch.nan) if made.tangent is None else made.tangent.clone()

    x, t = random(*SHAPE), random(*SHAPE, seed=1)
    in_place = "in_place" in name
    if in_place:
        with pytest.raises(RuntimeError, match="do not write in place"):
            tangent(x, t)
    else:
        wanted = tangent(x, t)
        assert not wanted.isnan().any()
    found, said = [], ""
    try:
        found.append(torch.compile(tangent, backend="aot_eager")(x, t))
    except (RuntimeError, TypeError) as error:
        said = str(error)
    if said:
        assert "forward-mode" in said or "torch.func" in said or "in place" in said
    else:
        assert not in_place
        torch.testing.assert_close(found[0], wanted)


# ---- numbers that require a gradient -----------------------------------------------------------------------------------------


def scale(value: float = 2.0) -> Any:
    return torch.nn.Parameter(torch.tensor(value))


NUMBERS: dict[str, Callable[[Any], Any]] = {
    "add_encoding": lambda n: fastpe.add_encoding(torch.ones(3, 8), input_scale=n),
    "add_bias": lambda n: fastpe.add_bias(torch.ones(3, 4, 5), fastpe.ALiBi(3), input_scale=n),
    "embed": lambda n: fastpe.embed([1, 2], torch.ones(3, 8), scale=n),
    "amplitude": lambda n: fastpe.Sinusoidal(amplitude=n),
    "base": lambda n: fastpe.Sinusoidal(base=n),
    "position_scale": lambda n: fastpe.Sinusoidal(position_scale=n),
    "rotary base": lambda n: fastpe.Rotary(n),
    "attention_factor": lambda n: fastpe.Rotary(attention_factor=n),
    "factor": lambda n: fastpe.scaling.Linear(n),
    "max_bias": lambda n: fastpe.ALiBi(3, n),
    "grid": lambda n: fastpe.Grid.mae((2, 3), base=n),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_requires_a_gradient_is_refused(name):
    """It would be taken for its value, and never learn."""
    use = NUMBERS[name]
    for value in (scale(), scale() * 1):
        with pytest.raises(
            TypeError, match=r"must be a real number, not a tensor that requires a gradient.*Pass value\.item\(\)"
        ):
            use(value)
    for value in (scale().detach(), scale().item()):
        use(value)


@pytest.mark.parametrize("name", ["add_encoding", "add_bias", "embed", "base"])
def test_a_number_that_requires_a_gradient_is_refused_in_a_graph(name):
    use = NUMBERS[name]

    def step(n: Any) -> Any:
        use(n)
        return n * 2

    with pytest.raises((TypeError, RuntimeError), match=r"must be a real number|requires? a gradient|item"):
        torch.compile(step, fullgraph=True, backend="aot_eager")(scale())


def test_lists_of_real_numbers_are_as_exact_in_a_graph():
    """Python's numbers have float64; a tensor that a graph makes of them has float32 if it is not told."""
    x, positions, delta = random(1, 3, 8), [0.1, 12345.678, 1e6 + 0.3], [1e5 + 0.1]
    for function in (
        lambda x: F.add_encoding(x, positions=positions),
        lambda x: F.apply_rotary(x, positions=positions),
        lambda x: F.rerotate(x, delta),
        lambda x: fastpe.encode(positions, 8, like=x),
    ):
        assert torch.equal(torch.compile(function, fullgraph=True, backend="aot_eager")(x), function(x))
