"""Gradients that someone else holds keep their values, whoever holds them and however."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from gradient_cases import random  # noqa: E402

import fastpe  # noqa: E402
from fastpe.torch import functional  # noqa: E402

# What PyTorch itself does when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

FORMS = {
    "apply_rotary": (
        lambda x: functional.apply_rotary(x, offset=3),
        lambda g: fastpe.apply_rotary(g.clone(), offset=3, inverse=True),
    ),
    "add_encoding": (lambda x: functional.add_encoding(x, input_scale=2.0), lambda g: g * 2.0),
}


def _hook_that_keeps(y, kept):
    y.register_hook(kept.append)


def _hook_that_keeps_a_view(y, kept):
    y.register_hook(lambda g: kept.append(g[:]))


def _hook_that_keeps_memory(y, kept):
    y.register_hook(lambda g: kept.append(g.numpy()))


def _hook_that_keeps_storage(y, kept):
    y.register_hook(lambda g: kept.append(g.untyped_storage()))


def _hook_that_detaches(y, kept):
    y.register_hook(lambda g: kept.append(g.detach()))


def _hook_that_exports(y, kept):
    y.register_hook(lambda g: kept.append(torch.utils.dlpack.to_dlpack(g.detach())))


def _node_prehook(y, kept):
    y.grad_fn.register_prehook(lambda grads: kept.extend(grads))


def _node_hook(y, kept):
    y.grad_fn.register_hook(lambda inputs, outputs: kept.extend(outputs))


def _retained(y, kept):
    y.retain_grad()
    kept.append(y)


WATCHERS = {
    function.__name__.strip("_"): function
    for function in (
        _hook_that_keeps,
        _hook_that_keeps_a_view,
        _hook_that_keeps_memory,
        _hook_that_keeps_storage,
        _hook_that_detaches,
        _hook_that_exports,
        _node_prehook,
        _node_hook,
        _retained,
    )
}


def values(kept):
    """What was kept, as a flat tensor."""
    if isinstance(kept, torch.UntypedStorage):
        return torch.empty(0, dtype=torch.float64).set_(kept)
    if type(kept).__name__ == "PyCapsule":
        return torch.utils.dlpack.from_dlpack(kept).reshape(-1)
    if isinstance(kept, torch.Tensor):
        return (kept if kept.grad_fn is None else kept.grad).reshape(-1)
    return torch.from_numpy(kept).reshape(-1)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("watcher", WATCHERS)
@pytest.mark.parametrize("retain", [False, True])
def test_a_gradient_that_is_kept_stays(name, watcher, retain):
    form, adjoint = FORMS[name]
    x, kept = random(2, 3, 8), []
    y = form(x)
    WATCHERS[watcher](y, kept)
    loss = (y**2).sum()
    loss.backward(retain_graph=retain)
    wanted = 2 * y.detach()
    torch.testing.assert_close(x.grad, adjoint(wanted), rtol=1e-13, atol=1e-13)
    (one,) = kept
    assert torch.equal(values(one), wanted.reshape(-1))
    if retain:
        x.grad = None
        loss.backward()
        torch.testing.assert_close(x.grad, adjoint(wanted), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("watcher", WATCHERS)
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_view_of_a_gradient_that_is_kept_stays(name, watcher, where):
    """What comes back through a transposition is a view: whoever keeps it, or the gradient that it is a view of, keeps it as it was."""
    form, adjoint = FORMS[name]
    x, kept = random(2, 3, 8), []
    y = form(x)
    z = y.transpose(0, 1)
    WATCHERS[watcher](y if where == "before" else z, kept)
    (z * z * 1.5).sum().backward()
    wanted = 3 * y.detach()
    torch.testing.assert_close(x.grad, adjoint(wanted), rtol=1e-13, atol=1e-13)
    (one,) = kept
    got = values(one).sort().values  # in whatever order they lie
    torch.testing.assert_close(got, wanted.reshape(-1).sort().values, rtol=1e-13, atol=1e-13)


class _Windows(torch.autograd.Function):
    """A gradient whose elements overlap."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return windows()


def windows():
    return torch.arange(200.0, dtype=torch.float64).as_strided((2, 3, 8), (16, 4, 1))


@pytest.mark.parametrize("name", FORMS)
def test_gradients_that_overlap_themselves(name):
    form, adjoint = FORMS[name]
    x = random(2, 3, 8)
    _Windows.apply(form(x)).sum().backward()
    torch.testing.assert_close(x.grad, adjoint(windows().clone()), rtol=1e-13, atol=1e-13)


class _Buffered(torch.autograd.Function):
    """Hands on a gradient that it keeps."""

    @staticmethod
    def forward(ctx, x, buffer):
        ctx.buffer = buffer
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return (torch.from_numpy(ctx.buffer) if not isinstance(ctx.buffer, torch.Tensor) else ctx.buffer), None


@pytest.mark.parametrize("name", FORMS)
def test_gradients_of_other_functions_stay(name):
    """Those that they keep, as a tensor or as memory of NumPy's; those that the caller gave; expanded ones; those used twice."""
    form, adjoint = FORMS[name]
    ones = torch.ones(2, 3, 8, dtype=torch.float64)
    for buffer in (ones.clone(), ones.numpy().copy()):
        x = random(2, 3, 8)
        _Buffered.apply(form(x), buffer).sum().backward()
        assert torch.equal(torch.as_tensor(buffer), ones)
        assert torch.equal(x.grad, adjoint(ones))
    x, given = random(2, 3, 8), ones.clone()
    form(x).backward(given)
    assert torch.equal(given, ones)
    (got,) = torch.autograd.grad(form(x), x, given)
    assert torch.equal(given, ones)
    assert torch.equal(got, adjoint(ones))
    form(y := random(2, 3, 8)).sum().backward()  # expanded from one number
    assert torch.equal(y.grad, adjoint(ones))
    form(y := random(2, 3, 8))[:, :1].expand(2, 3, 8).sum().backward()
    assert torch.equal(y.grad[:, 0], adjoint(ones * 3)[:, 0])


@pytest.mark.parametrize("name", FORMS)
def test_gradients_used_twice(name):
    form, adjoint = FORMS[name]
    ones = torch.ones(2, 3, 8, dtype=torch.float64)
    a, b, c = random(2, 3, 8), random(2, 3, 8, seed=1), random(2, 3, 8, seed=2)
    ((form(a) + form(b) + c) * 2).sum().backward()  # one gradient for three
    for x, wanted in ((a, adjoint(2 * ones)), (b, adjoint(2 * ones)), (c, 2 * ones)):
        assert torch.equal(x.grad, wanted)
    x = random(2, 3, 8)
    y = form(x)
    (y * 2 + y.relu() * 0 + y).sum().backward()  # three gradients for one
    assert torch.equal(x.grad, adjoint(3 * ones))
    for _ in range(2):  # added to what is there
        (form(x) * 2).sum().backward()
    torch.testing.assert_close(x.grad, adjoint(7 * ones), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", FORMS)
def test_two_gradients_of_one_graph(name):
    """Captured gradients of the result and of x; then of second order."""
    form, adjoint = FORMS[name]
    x = random(2, 3, 8)
    y = form(x)
    of_x, of_y = torch.autograd.grad((y**3).sum(), (x, y))
    assert torch.equal(of_y, 3 * y.detach() ** 2)
    torch.testing.assert_close(of_x, adjoint(of_y), rtol=1e-13, atol=1e-13)
    y = form(x)
    first, of_y = torch.autograd.grad((y**3).sum(), (x, y), create_graph=True)
    kept = of_y.detach().clone()
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(of_y, kept)
    ones = torch.ones_like(x)
    through = ones * 2.0 if name == "add_encoding" else fastpe.apply_rotary(ones.clone(), offset=3)
    torch.testing.assert_close(second, adjoint(6 * y.detach() * through), rtol=1e-12, atol=1e-12)


def test_gradients_that_negate_their_memory():
    """The imaginary part's gradient of a conjugate has no memory of its own values."""
    x = random(2, 3, 8)
    y = functional.apply_rotary(x)
    z = torch.complex(torch.zeros_like(y), y).conj()
    z.imag.sum().backward()
    assert torch.equal(x.grad, -fastpe.apply_rotary(torch.ones_like(x), inverse=True))
