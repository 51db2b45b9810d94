"""fastpe in graphs of PyTorch: compiled to the same results, seldom, and with the same errors."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch_marks

torch = pytest.importorskip("torch")
pytest.importorskip("torch._dynamo.testing")
from graph_cases import FUNCTIONAL, LENGTHS, NTK, VERBS, WITHOUT_GRADIENT, YARN, F, all_of, assert_same, counted, inputs, run  # noqa: E402

import fastpe  # noqa: E402
import fastpe.torch  # noqa: E402
from fastpe import Learned, Rotary, Sinusoidal, scaling  # noqa: E402

pytestmark = torch_marks.COMPILES


# ---- the same as without a graph ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_compiled_is_the_same(name):
    """Bit for bit, gradients too; `fullgraph` makes a graph break an error."""
    compiled, counter = counted(FUNCTIONAL[name])
    assert_same(run(compiled, inputs(), True), run(FUNCTIONAL[name], inputs(), True))
    assert counter.frame_count == 1


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", VERBS)
def test_compiled_verbs_are_the_same(name, grad):
    compiled, counter = counted(VERBS[name])
    assert_same(run(compiled, inputs(), grad), run(VERBS[name], inputs(), grad))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_compiled_is_the_same_without_gradients(name):
    function = WITHOUT_GRADIENT[name]
    compiled, _ = counted(function)
    assert_same(run(compiled, inputs(), False), run(function, inputs(), False))


def test_another_dtype():
    given = SimpleNamespace(
        **{name: value.half() if value.is_floating_point() else value for name, value in vars(inputs()).items()}
    )
    for name in ("rotate", "packed_in_place"):
        compiled, _ = counted(FUNCTIONAL[name])
        assert_same(run(compiled, given, True), run(FUNCTIONAL[name], given, True))


def test_an_input_is_written_itself():
    x, q, k = (torch.ones(2, 6, 8) for _ in range(3))
    for function, arrays in (
        (fastpe.add_encoding, (x,)),
        (fastpe.apply_rotary, (q, k)),
        (functools.partial(fastpe.rerotate, delta=3), (q,)),
    ):
        compiled, _ = counted(function)
        expected = [one.detach().clone() for one in arrays]
        function(*expected)
        found = all_of(compiled(*arrays))
        for given, result, other in zip(arrays, found, expected, strict=True):
            assert result is given
            assert torch.equal(given, other)


def test_in_place_with_a_history_elsewhere():
    """Written after another operation read it: the other's gradient needs what it read."""

    def function(x: Any, w: Any) -> Any:
        y = x * w
        z = y.sin()
        return fastpe.apply_rotary(z)[..., :4].square() + fastpe.add_encoding(y * 1)[..., 4:]

    found = []
    for one in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        x, w = torch.linspace(-1, 1, 96).reshape(2, 6, 8).requires_grad_(), torch.linspace(0, 1, 8).requires_grad_()
        one(x, w).sum().backward()
        found.append((x.grad, w.grad))
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(*found, strict=True))


def test_gradients_of_gradients():
    def function(x: Any) -> Any:
        return (F.apply_rotary(x, None, YARN) ** 3).sum()

    x = inputs().x.requires_grad_()
    found = torch.compile(lambda x: F.apply_rotary(x, None, YARN), fullgraph=True, backend="eager")(x)
    first = torch.autograd.grad((found**3).sum(), x, create_graph=True)[0]
    expected = torch.autograd.grad(function(x), x, create_graph=True)[0]
    assert torch.equal(first, expected)
    second = torch.autograd.grad(first.square().sum(), x)[0]
    assert torch.allclose(second, torch.autograd.grad(expected.square().sum(), x)[0], rtol=1e-6)


# ---- how often is compiled ---------------------------------------------------------------------------------------------------

BY_LENGTH: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "add": (lambda x: F.add_encoding(x), ("x",)),
    "add_in_place": (lambda x: fastpe.add_encoding(x * 1), ("x",)),
    "learned": (lambda x, table: F.add_encoding(x, Learned(table)), ("x", "learned")),
    "rotate": (lambda q, k: F.apply_rotary(q, k), ("q", "k")),
    "rotate_in_place": (lambda q, k: fastpe.apply_rotary(q * 1, k * 1), ("q", "k")),
    "rotate_length": (lambda q, k: F.apply_rotary(q, k, NTK), ("q", "k")),
    "packed": (lambda qkv: F.apply_rotary_qkv(qkv, (2, 1)), ("packed",)),
    "rerotate": (lambda k: F.rerotate(k, 5), ("k",)),
    "embed": (lambda ids, table: F.embed(ids, table, "sinusoidal"), ("ids", "table")),
    "encode": (lambda x: x + fastpe.encode(torch.arange(x.shape[1]), 8, like=x), ("x",)),
}


@pytest.mark.parametrize("marked", [False, True], ids=["automatic", "mark_dynamic"])
@pytest.mark.parametrize("name", BY_LENGTH)
def test_a_graph_serves_every_length(name, marked):
    function, names = BY_LENGTH[name]
    compiled, counter = counted(function)
    for length in LENGTHS:
        given = [getattr(inputs(length), name).requires_grad_(name not in ("ids", "learned", "table")) for name in names]
        for tensor, name in zip(given, names, strict=True):
            if marked and name not in ("learned", "table"):
                torch._dynamo.mark_dynamic(tensor, 2 if name in ("q", "k") else 1)
        found, expected = all_of(compiled(*given)), all_of(function(*given))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        if found[0].requires_grad:
            gradients = [
                torch.autograd.grad(sum(one.square().sum() for one in ones), given[0])[0] for ones in (found, expected)
            ]
            assert torch.equal(*gradients)
    assert counter.frame_count <= (1 if marked else 2)


@pytest.mark.parametrize("first", [0, 7])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, offset: F.add_encoding(x, offset=offset),
        lambda x, offset: fastpe.apply_rotary(x * 1, x * 2, offset=offset),
        lambda x, offset: F.apply_rotary(x, None, NTK, offset=offset),
        lambda x, offset: F.apply_rotary(x, None, NTK, offset=offset, seq_len=offset + 9),
        lambda x, offset: F.rerotate(x, offset),
    ],
    ids=["add", "rotate", "length", "seq_len", "rerotate"],
)
def test_a_graph_serves_every_offset(function, first):
    """Decoding, token by token: once for the first offset, once for any."""
    compiled, counter = counted(function)
    x = torch.ones(2, 1, 8)
    for offset in range(first, first + 6):
        assert all(torch.equal(a, b) for a, b in zip(all_of(compiled(x, offset)), all_of(function(x, offset)), strict=True))
    assert counter.frame_count <= 2


def test_a_graph_serves_every_width_and_equal_encodings():
    compiled, counter = counted(lambda p, dim: fastpe.encode(p, dim))
    for dim in (8, 12, 16, 20):
        assert torch.equal(compiled(torch.arange(3), dim), fastpe.encode(torch.arange(3), dim))
    assert counter.frame_count <= 2
    compiled, counter = counted(lambda x, encoding: F.apply_rotary(x, None, encoding))
    for _ in range(3):
        compiled(torch.ones(2, 3, 8), Rotary(base=500.0, scaling=scaling.Linear(2.0)))
    assert counter.frame_count == 1


def test_another_encoding_is_another_graph():
    """Given, made in the graph, in a module or from a global name: whatever differs, the result does."""
    compiled, counter = counted(lambda x, encoding: F.apply_rotary(x, None, encoding))
    x = inputs().x
    different = [None, *(Rotary(base=base) for base in (2.0, 3.0, 4.0)), YARN, dataclasses.replace(YARN, interleaved=True)]
    different += [Rotary(scaling=scaling.YaRN(5.0, 16)), Rotary(rotary_dim=4)]
    for encoding in different:
        assert torch.equal(compiled(x, encoding), F.apply_rotary(x, None, encoding))
    assert counter.frame_count == len(different)
    torch._dynamo.reset()
    module = fastpe.torch.RotaryEmbedding()
    compiled, _ = counted(module)
    for encoding in (Rotary(), Rotary(base=7.0), Rotary(base=8.0)):
        module.encoding = encoding
        assert torch.equal(compiled(x), F.apply_rotary(x, None, encoding))
    torch._dynamo.reset()
    compiled, _ = counted(lambda x, base: F.add_encoding(x, Sinusoidal(base, "concatenated", amplitude=0.5)))
    assert torch.equal(compiled(x, 50.0), F.add_encoding(x, Sinusoidal(50.0, "concatenated", amplitude=0.5)))


MADE: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "detr": (lambda x: F.add_encoding(x, fastpe.Grid.detr(x.shape[1:3])), (16,)),
    "detr_in_place": (lambda x: fastpe.add_encoding(x * 1, fastpe.Grid.detr((x.shape[1], x.shape[2]), normalize=False)), (16,)),
    "mae": (lambda x: F.add_encoding(x, fastpe.Grid.mae(x.shape[1:3], base_size=7, interpolation_scale=2)), (16,)),
    "timm": (lambda x: F.add_encoding(x, fastpe.Grid.timm(x.shape[1:3], reverse_coord=True)), (16,)),
    "cogvideox": (lambda x: F.add_encoding(x, fastpe.Grid.cogvideox((x.shape[1], x.shape[2], 2))), (2, 64)),
    "grid": (
        lambda x: F.add_encoding(
            x, fastpe.Grid((x.shape[1], x.shape[2]), None, Sinusoidal(), start=x.shape[1], extent=(2, 3.5))
        ),
        (16,),
    ),
    "nerf": (lambda x: fastpe.encode(x[:2, 0, :, 0] / 8, 4 * x.shape[1], fastpe.Fourier.nerf(2, x.shape[1])), (1,)),
    "fourier": (lambda x: fastpe.encode(x[:2, 0, :, 0] / 8, 4, fastpe.Fourier(2, matrix=((1.0, 2), (0.5, x.shape[1])))), (1,)),
}


@pytest.mark.parametrize("name", MADE)
def test_made_in_a_graph_of_sizes_that_change(name):
    """A grid of the shape of an image: an encoding is a string in a graph, so each shape has one."""
    function, width = MADE[name]
    compiled, counter = counted(function)
    sizes = ((2, 3), (4, 3), (5, 6), (2, 3))
    for size in sizes:
        x = torch.linspace(-1, 1, 2 * size[0] * size[1] * math.prod(width)).reshape(2, *size, *width)
        assert torch.equal(compiled(x), function(x))
    assert counter.frame_count == 3


def test_made_in_a_graph_of_numbers_that_change():
    x, counts = inputs().x, (2, 3, 5)
    for function in (
        lambda x, n: F.add_encoding(x, Sinusoidal(n)),
        lambda x, n: F.add_encoding(x, Sinusoidal(n / 2, amplitude=n, frequency_shift=1)),
        lambda x, n: F.apply_rotary(x, None, Rotary(n, scaling=scaling.Linear(n))),
    ):
        compiled, _ = counted(function)
        for number in (*counts, *(count + 0.5 for count in counts)):
            assert torch.equal(compiled(x, number), function(x, number))


# ---- errors ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "error", "text"),
    [
        (lambda i: F.add_encoding(i.ids[..., None]), TypeError, "x must be a floating-point array"),
        (lambda i: fastpe.add_encoding(i.x * 1, Learned(i.learned), offset=36), IndexError, r"\[0, 40\), got 40 at row 4"),
        (lambda i: F.apply_rotary(i.x[..., :7]), ValueError, "must be even, got 7"),
        (lambda i: F.embed(i.ids + 1, i.table), IndexError, "ids"),
        (lambda i: F.add_encoding(i.x, positions=i.places[:4]), ValueError, "positions must have shape"),
    ],
)
def test_errors_are_those_without_a_graph(function, error, text):
    given = inputs()
    given.ids[0, 0] = 10
    for one in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        with pytest.raises(error, match=text):
            one(given)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork on this system")
def test_a_process_may_begin_with_a_graph():
    """What the first call loads is loaded while it is traced. Each is a fork of a process that has loaded PyTorch, and no fastpe."""
    code = """if True:
        import os, sys, traceback, torch, torch._dynamo
        def begin(call):
            import fastpe
            x, t, i = torch.ones(1, 2, 3, 8), torch.ones(9, 8), torch.zeros(2, 3, dtype=torch.int64)
            names = {"fastpe": fastpe}
            made = torch.compile(eval(f"lambda x, t, i: {call}", names), fullgraph=True, backend="aot_eager")(x, t, i)
            assert torch.equal(made, eval(call, {**names, "x": x, "t": t, "i": i}))
        for call in sys.argv[1:]:
            process = os.fork()
            if process == 0:
                try:
                    begin(call)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            assert os.waitpid(process, 0)[1] == 0, call
    """
    calls = (
        "fastpe.add_encoding(x * 1)",
        "fastpe.add_encoding(x * 1, fastpe.Learned(t))",
        "fastpe.apply_rotary(x * 1)",
        "fastpe.embed(i, t, fastpe.Learned(t))",
        "fastpe.add_bias(x * 1, fastpe.ALiBi(2))",
    )
    done = subprocess.run([sys.executable, "-c", code, *calls], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda i: F.apply_rotary(None), "q or k must be a tensor"),
        (lambda i: F.add_encoding(i.x, Rotary()), "encoding must be an encoding such as Sinusoidal"),
        (lambda i: F.add_encoding(i.x, positions=i.x[0, :, 0]), "no gradient for positions"),
        (lambda i: F.apply_rotary(i.x, None, Rotary.tabulated(i.learned[:, :4], i.learned[:, :4])), "no gradient for cos"),
        (lambda i: F.rerotate(i.x, i.x[0, :, 0]), "no gradient for delta"),
        (lambda i: F.embed(i.ids, i.table, row_scale=i.table[:, 0]), "no gradient for row_scale"),
        (lambda i: fastpe.add_encoding(i.x, out=torch.empty_like(i.x)), "don't support automatic differentiation"),
        (lambda i: fastpe.apply_rotary(i.x, out=torch.empty_like(i.x)), "don't support automatic differentiation"),
        (lambda i: fastpe.rerotate(i.x, 1, out=torch.empty_like(i.x)), "don't support automatic differentiation"),
        (lambda i: fastpe.add_encoding(i.x), "a leaf Variable that requires grad is being used in an in-place operation"),
    ],
)
def test_what_is_refused_without_a_graph_is_refused_while_tracing(function, text):
    given = inputs()
    for tensor in (given.x, given.table, given.learned):
        tensor.requires_grad_()
    with pytest.raises((RuntimeError, TypeError), match=text):
        function(given)
    # The compiler quotes the errors of what it traces.
    with pytest.raises(RuntimeError, match=text):
        torch.compile(function, fullgraph=True, backend="aot_eager")(given)
