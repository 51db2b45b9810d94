"""What PyTorch forbids is refused; hooks, checkpoints and anomaly detection work as they do elsewhere."""

from __future__ import annotations

import contextlib

import pytest

torch = pytest.importorskip("torch")
from gradient_cases import IDS, WRITERS, Noting, random  # noqa: E402

import fastpe  # noqa: E402
from fastpe import Learned, Rotary, Sinusoidal  # noqa: E402
from fastpe.torch import functional  # noqa: E402

# What PyTorch itself does when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


# ---- what PyTorch forbids ----------------------------------------------------------------------------------------------------


class _Viewing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view(x.shape)

    @staticmethod
    def backward(ctx, grad):
        return grad


def _no_grad(function, x):
    with torch.no_grad():
        return function(x)


def _inference(function):
    with torch.inference_mode():
        return function()


TENSORS = {
    "plain": lambda: random(2, 3, 8, requires_grad=False),
    "non_leaf": lambda: random(2, 3, 8) * 1,
    "view": lambda: (random(2, 4, 8) * 1)[:, 1:],
    "view_of_view": lambda: (random(2, 4, 8) * 1)[:, 1:].transpose(0, 1),
    "detached": lambda: random(2, 3, 8).detach(),
    "view_of_detached": lambda: random(2, 4, 8).detach()[:, 1:],
    "plain_split": lambda: random(4, 3, 8, requires_grad=False).split(2)[0],
    "leaf": lambda: random(2, 3, 8),
    "parameter": lambda: torch.nn.Parameter(random(2, 3, 8)),
    "view_of_leaf": lambda: random(2, 4, 8)[:, 1:],
    "split": lambda: (random(4, 3, 8) * 1).split(2)[0],
    "chunk": lambda: (random(4, 3, 8) * 1).chunk(2)[1],
    "unbind": lambda: (random(4, 2, 3, 8) * 1).unbind(0)[1],
    "split_of_leaf": lambda: random(4, 3, 8).split(2)[0],
    "no_grad_view": lambda: _no_grad(lambda x: x[:, 1:], random(2, 4, 8) * 1),
    "no_grad_view_of_leaf": lambda: _no_grad(lambda x: x[:, 1:], random(2, 4, 8)),
    "no_grad_view_of_plain": lambda: _no_grad(lambda x: x[:, 1:], random(2, 4, 8, requires_grad=False)),
    "no_grad_leaf": lambda: _no_grad(lambda x: x[:, 1:], random(2, 4, 8, requires_grad=False)).requires_grad_(),
    "custom_view": lambda: _Viewing.apply(random(2, 3, 8) * 1),
    "inference_view": lambda: (lambda x: _inference(lambda: x[:, 1:]))(random(2, 4, 8) * 1),
}


def refusal(function, x):
    """The error that a function raises, or None; nothing is written where there is one."""
    before, version = x.detach().clone(), x._version
    try:
        function(x)
    except RuntimeError as error:
        assert torch.equal(x.detach(), before)
        assert x._version == version
        return str(error)
    assert x._version == version + 1
    return None


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("name", WRITERS)
def test_refuses_what_pytorch_refuses(name, kind):
    expected = refusal(lambda x: x.mul_(2), TENSORS[kind]())
    got = refusal(WRITERS[name], TENSORS[kind]())
    assert (got is None) == (expected is None), got or expected
    if got is not None:
        start, *_, remedy = got.split(": ", 1)[0], got
        assert start == name
        assert "Call fastpe.torch.functional." in remedy
        rule = got.removeprefix(f"{name}: ").partition(" Call fastpe")[0]
        assert rule.rstrip(".").partition(" and must not")[0] in expected
    with torch.no_grad():  # there all of them may be written
        assert refusal(WRITERS[name], TENSORS[kind]()) is None


@pytest.mark.parametrize("kind", TENSORS)
def test_refuses_where_only_the_table_needs_a_gradient(kind):
    table = random(5, 8)
    expected = refusal(lambda x: x.add_(table[0]), TENSORS[kind]())
    got = refusal(lambda x: fastpe.add_encoding(x, Learned(table)), TENSORS[kind]())
    assert (got is None) == (expected is None), got or expected


def test_second_of_a_pair_is_refused_before_the_first_is_written():
    for kind in ("leaf", "split", "no_grad_view"):
        first = random(2, 3, 8) * 1
        second = TENSORS[kind]()
        assert refusal(lambda x, s=second: fastpe.apply_rotary(x, s), first) is not None
        assert refusal(lambda x, s=second: fastpe.apply_rotary(s, x), first) is not None


def test_inference_tensors():
    """Written nowhere but in inference mode, as PyTorch has it."""
    for table in (None, random(5, 8)):
        x = _inference(lambda: torch.zeros(2, 3, 8, dtype=torch.float64))
        with pytest.raises(RuntimeError, match=r"add_encoding: an inference tensor must not be written outside InferenceMode"):
            fastpe.add_encoding(x, None if table is None else Learned(table))
        assert not x.clone().any()
        with pytest.raises(RuntimeError, match="outside InferenceMode"):
            x.add_(1)  # which writes first
    for write in (lambda: fastpe.apply_rotary(x), lambda: fastpe.rerotate(x), lambda: fastpe.encode([1, 2], 8, out=x[0, :2])):
        with pytest.raises(RuntimeError, match="inference tensor"):
            write()
    with torch.inference_mode():
        assert fastpe.add_encoding(x) is x


@pytest.mark.parametrize("requires_grad", [False, True])
def test_inference_tensors_get_no_bias(requires_grad):
    """Nor where autograd watches, as the bias has learned."""
    scores = _inference(lambda: torch.zeros(2, 3, 4, dtype=torch.float64))
    bias = fastpe.T5Bias(random(32, 2).requires_grad_(requires_grad))
    with pytest.raises(RuntimeError, match="an inference tensor must not be written outside InferenceMode"):
        fastpe.add_bias(scores, bias)
    assert not scores.clone().any()


OUTS = {
    "add_encoding": lambda x, out: fastpe.add_encoding(x, out=out),
    "apply_rotary": lambda x, out: fastpe.apply_rotary(x, out=out),
    "rerotate": lambda x, out: fastpe.rerotate(x, 3, out=out),
    "embed": lambda x, out: fastpe.embed(torch.tensor([[0, 1, 2], [2, 1, 0]]), x.reshape(-1, 8), out=out),
}


@pytest.mark.parametrize("name", OUTS)
def test_out_has_no_history(name):
    for x, out in (
        (random(2, 3, 8), torch.zeros(2, 3, 8, dtype=torch.float64)),
        (random(2, 3, 8, requires_grad=False), random(2, 3, 8) * 1),
    ):
        before, version = out.detach().clone(), out._version
        with pytest.raises(RuntimeError, match=r"functions with out=... arguments don't support automatic differentiation"):
            torch.mul(x, 2, out=out)
        with pytest.raises(
            RuntimeError, match=f"{name}: functions with out=... arguments don't support automatic differentiation"
        ):
            OUTS[name](x, out)
        assert torch.equal(out, before)
        assert out._version == version
        with torch.no_grad():
            assert OUTS[name](x, out) is out
    target = random(3, 8) * 1
    with pytest.raises(RuntimeError, match="encode: functions with out="):
        fastpe.encode([0, 1, 2], 8, out=target)


def test_no_gradient_for_positions_scales_and_rotary_tables():
    x, real = random(2, 3, 8), random(3)
    table = random(8, 2)
    turned = Rotary.tabulated(table, table.detach())
    for function, name, call in (
        ("add_encoding", "positions", lambda: functional.add_encoding(x, positions=real)),
        ("add_encoding", "positions", lambda: fastpe.add_encoding(x.detach(), positions=real)),
        ("apply_rotary", "positions", lambda: functional.apply_rotary(x, positions=real)),
        ("apply_rotary", "positions", lambda: fastpe.apply_rotary(x.detach(), positions=real)),
        ("apply_rotary", "cos", lambda: functional.apply_rotary(x, None, turned)),
        ("apply_rotary", "cos", lambda: fastpe.apply_rotary(x.detach(), None, turned)),
        ("apply_rotary_qkv", "positions", lambda: functional.apply_rotary_qkv(x[None], 1, positions=real)),
        ("rerotate", "delta", lambda: functional.rerotate(x, delta=random(2))),
        ("rerotate", "delta", lambda: fastpe.rerotate(x.detach(), random(2))),
        ("rerotate", "positions", lambda: functional.rerotate(x, positions=real)),
        ("embed", "positions", lambda: functional.embed(IDS, random(6, 4), Sinusoidal(), positions=real)),
        (
            "embed",
            "row_scale",
            lambda: functional.embed(IDS, torch.zeros(6, 4, dtype=torch.int8), row_scale=random(6)),
        ),
        ("encode", "positions", lambda: fastpe.encode(real, 8)),
    ):
        before = x.detach().clone()
        with pytest.raises(RuntimeError, match=rf"{function}: there is no gradient for {name}, .* Pass {name}\.detach\(\)"):
            call()
        assert torch.equal(x, before)
    with torch.no_grad():
        assert not fastpe.encode(real, 8).requires_grad


# ---- training as it is done --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_and_saved_tensor_hooks(reentrant):
    """Recomputed activations, saved tensors moved away: the gradients of the plain run."""
    from torch.utils.checkpoint import checkpoint

    def block(x):
        y = x * 2
        fastpe.add_encoding(y, input_scale=3.0)
        q, k = y[..., :8], y[..., 8:]
        fastpe.apply_rotary(q, k, positions=torch.tensor([4, 0, 1]))
        return (y**2).sum()

    x = random(2, 3, 16)
    (wanted,) = torch.autograd.grad(block(x), x)
    for context in (contextlib.nullcontext(), torch.autograd.graph.save_on_cpu()):
        with context:
            leaf = x.detach().clone().requires_grad_()
            checkpoint(block, leaf, use_reentrant=reentrant).backward()
            torch.testing.assert_close(leaf.grad, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
def test_anomaly_detection():
    x = random(2, 3, 8)
    with torch.autograd.set_detect_anomaly(True):
        (Noting.apply(functional.apply_rotary(x, offset=3)) * 2).sum().backward()
    assert torch.equal(x.grad, fastpe.apply_rotary(torch.full_like(x, 2.0).detach(), offset=3, inverse=True))


def test_module_hooks_and_autocast():
    """Hooks on modules keep gradients; under autocast a result has x's own type."""
    linear, kept = torch.nn.Linear(8, 8), []
    linear.register_full_backward_hook(lambda module, inputs, outputs: kept.extend(outputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = linear(torch.ones(2, 3, 8, requires_grad=True))
        z = functional.apply_rotary(y)
        assert z.dtype == torch.bfloat16
        z.float().sum().backward()
    expected = fastpe.apply_rotary(torch.ones(2, 3, 8, dtype=torch.bfloat16), inverse=True)
    assert torch.equal(kept[0], expected)
