"""Transforms of ``torch.func`` and forward mode."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from gradient_cases import IDS, ROTARIES, WRITERS, random, tabulated  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402

from fastpe import Learned, T5Bias  # noqa: E402
from fastpe.torch import functional  # noqa: E402

# What PyTorch itself does when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

TABULATED = tabulated()
LINEAR = {
    "add_encoding": lambda x: functional.add_encoding(x, input_scale=2.0, offset=3),
    "masked": lambda x: functional.add_encoding(x, input_scale=2.0, mask=[True, False, True]),
    "positions": lambda x: functional.apply_rotary(x, positions=torch.tensor([5, 0, 2])),
    "keys": lambda x: functional.apply_rotary(None, x, ROTARIES["xpos"], offset=3),
    "table": lambda x: functional.apply_rotary(x, None, TABULATED),
    "qkv": lambda x: functional.apply_rotary_qkv(x, (1, 1), seq_axis=-3),
    "rerotate": lambda x: functional.rerotate(x, 3, ROTARIES["half"]),
}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_vmap(name, axis):
    """As a loop over the mapped axis; twice mapped; gradients of each sample."""
    form = LINEAR[name]
    x = random(*((3, 3, 8) if name == "qkv" else (2, 3, 8)), 5, requires_grad=False).movedim(-1, axis)
    wanted = torch.stack([form(one) for one in x.unbind(axis)])
    assert torch.equal(torch.func.vmap(form, in_dims=axis)(x), wanted)
    assert torch.equal(torch.func.vmap(form, in_dims=axis, out_dims=1)(x), wanted.movedim(0, 1))
    gradients = torch.func.vmap(torch.func.grad(lambda one: (form(one) ** 2).sum()), in_dims=axis)(x)
    alone = [torch.func.grad(lambda one: (form(one) ** 2).sum())(one) for one in x.unbind(axis)]
    torch.testing.assert_close(gradients, torch.stack(alone), rtol=1e-13, atol=1e-13)
    twice = torch.func.vmap(torch.func.vmap(form, in_dims=axis), in_dims=0)(torch.stack([x, 2 * x]))
    assert torch.equal(twice[0], wanted)


@pytest.mark.parametrize("name", LINEAR)
def test_transforms(name):
    """grad, jvp, jacobians and Hessians agree with autograd; a linear function's derivative is its linear part."""
    form = LINEAR[name]
    x, tangent = random(3, 3, 8, requires_grad=False), random(3, 3, 8, requires_grad=False, seed=1)
    linear = form(tangent) - form(torch.zeros_like(tangent))
    value, derivative = torch.func.jvp(form, (x,), (tangent,))
    assert torch.equal(value, form(x))
    torch.testing.assert_close(derivative, linear, rtol=1e-12, atol=1e-12)
    leaf = x.clone().requires_grad_()
    (form(leaf) ** 2).sum().backward()
    torch.testing.assert_close(torch.func.grad(lambda x: (form(x) ** 2).sum())(x), leaf.grad, rtol=1e-13, atol=1e-13)
    _, back = torch.func.vjp(form, x)
    reverse, forward = torch.func.jacrev(form)(x), torch.func.jacfwd(form)(x)
    torch.testing.assert_close(reverse, forward, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(back(tangent)[0], torch.einsum("ijk,ijkabc->abc", tangent, reverse), rtol=1e-12, atol=1e-12)
    hessian = torch.func.hessian(lambda x: (form(x) ** 3).sum())(x[:3])
    assert hessian.shape == (*x.shape, *x.shape)
    with forward_ad.dual_level():
        dual = form(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, linear, rtol=1e-12, atol=1e-12)


def test_transforms_of_tables():
    """Gradients by tables, also of each sample; forward mode is refused by name."""
    table, learned = random(6, 4, requires_grad=False), random(8, 4, requires_grad=False, seed=1)

    def loss(table, learned, ids):
        return (functional.embed(ids, table, Learned(learned), scale=2.0, token_types=(ids % 2, table[:2])) ** 2).sum()

    wanted = [torch.func.grad(loss, (0, 1))(table, learned, ids) for ids in IDS]
    got = torch.func.vmap(torch.func.grad(loss, (0, 1)), in_dims=(None, None, 0))(table, learned, IDS)
    for one, other in zip(got, zip(*wanted, strict=True), strict=True):
        torch.testing.assert_close(one, torch.stack(other), rtol=1e-13, atol=1e-13)

    def add(learned, x):
        return (functional.add_encoding(x, Learned(learned)) ** 2).sum()

    x = random(5, 3, 4, requires_grad=False)
    wanted = [torch.func.grad(add)(learned, one) for one in x]
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(add), (None, 0))(learned, x), torch.stack(wanted))
    for form in (lambda t: functional.embed(IDS, t), lambda t: functional.add_encoding(torch.zeros(1, 3, 4), Learned(t))):
        with pytest.raises(NotImplementedError, match="no forward-mode derivative by a"):
            torch.func.jvp(form, (table.float(),), (table.float(),))


def test_what_vmap_cannot_map_is_said():
    x = torch.zeros(5, 2, 3, 8)
    for call in (
        lambda: torch.func.vmap(lambda p: functional.add_encoding(x[0], positions=p))(torch.zeros(5, 3)),
        lambda: torch.func.vmap(lambda x, p: functional.apply_rotary(x, positions=p))(x, torch.zeros(5, 3)),
        lambda: torch.func.vmap(lambda x, p: functional.rerotate(x, 1, mask=p))(x, torch.ones(5, 3) > 0),
        lambda: torch.func.vmap(lambda t: functional.embed(IDS, t))(torch.zeros(5, 6, 4)),
    ):
        with pytest.raises(RuntimeError, match="vmap needs"):
            call()


def test_in_place_inside_transforms_is_refused():
    x = torch.zeros(5, 2, 3, 8)
    for write in WRITERS.values():
        with pytest.raises(
            RuntimeError, match=r"torch\.func need functions that do not write in place, .* Call fastpe\.torch\.functional"
        ):
            torch.func.vmap(write)(x)
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode differentiation"):
            write(forward_ad.make_dual(x[0].clone(), x[0]))
    assert not x.any()


def test_gradients_batched_by_autograd_are_refused():
    """``is_grads_batched`` has no way for functions of one's own; what there is instead is said."""
    x, grads = random(2, 3, 8), random(4, 2, 3, 8, requires_grad=False)
    for form in (LINEAR["positions"], LINEAR["rerotate"]):
        with pytest.raises(
            TypeError,
            match=r"^(add_encoding|apply_rotary|rerotate): batched gradients .* Use torch\.func\.jacrev, or vmap of vjp",
        ):
            torch.autograd.grad(form(x), x, grads, is_grads_batched=True)
        _, back = torch.func.vjp(form, x.detach())
        wanted = torch.stack([torch.autograd.grad(form(x), x, one)[0] for one in grads])
        torch.testing.assert_close(torch.func.vmap(back)(grads)[0], wanted, rtol=1e-13, atol=1e-13)
    (got,) = torch.autograd.grad(LINEAR["add_encoding"](x), x, grads, is_grads_batched=True)
    assert torch.equal(got, 2 * grads)


def test_a_learned_bias_that_has_a_tangent():
    """There is no forward-mode derivative by what a bias has learned; by the scores alone there is one."""
    scores, table = torch.zeros(1, 2, 3, 3), torch.ones(32, 2)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(table, torch.ones(32, 2))
        with pytest.raises(NotImplementedError, match="no forward-mode derivative by what a bias has learned"):
            functional.add_bias(scores, T5Bias(dual))
        made = functional.add_bias(forward_ad.make_dual(scores, scores + 2), T5Bias(table), input_scale=3.0)
        assert torch.equal(forward_ad.unpack_dual(made).tangent, scores + 6)
