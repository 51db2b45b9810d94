"""Gradients of resample: of PyTorch's own interpolation, of themselves, in graphs and under transforms."""

from __future__ import annotations

from typing import Any

import pytest
import torch_marks

import fastpe

torch = pytest.importorskip("torch")

pytestmark = [
    *torch_marks.COMPILES,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore::torch.jit.TracerWarning"),
]
CASES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((9, 3), {"new_size": 5}),
    ((1, 10, 3), {"new_size": 17, "prefix_tokens": 1}),
    ((9, 3), {"new_size": [2, 5]}),
    ((1, 14, 3), {"new_size": (5, 6), "prefix_tokens": 2, "grid": [3, 4], "method": "bilinear"}),
    ((12, 3), {"new_size": (2, 7), "grid": (3, 4), "method": "antialias"}),
    ((17, 3), {"new_size": (3, 6), "prefix_tokens": 1, "method": "bicubic_antialias"}),
    ((17, 3), {"new_size": (5, 6), "prefix_tokens": 1, "interpolate_offset": 0.1}),
]


def table_of(shape: tuple[int, ...], dtype: Any = torch.double) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.double).to(dtype)


@pytest.mark.parametrize(("shape", "options"), CASES)
def test_gradients_of_gradients(shape, options):
    table = table_of(shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: fastpe.resample(x, **options), table, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: fastpe.resample(x, **options), table)


@pytest.mark.parametrize(("shape", "options"), CASES)
def test_the_adjoint_is_the_transposed_matrix(shape, options):
    """Of every type, by the products of both with random numbers."""
    table = table_of(shape).requires_grad_()
    made = fastpe.resample(table, **options)
    other = table_of(made.shape)
    (gradient,) = torch.autograd.grad(made, table, other)
    matrix = torch.autograd.functional.jacobian(lambda x: fastpe.resample(x, **options), table.detach())
    torch.testing.assert_close(gradient, torch.tensordot(other, matrix, dims=made.dim()), rtol=0, atol=1e-14)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_of_interpolate(mode, antialias, dtype):
    method = {("bilinear", True): "antialias", ("bicubic", True): "bicubic_antialias"}.get((mode, antialias), mode)
    table = table_of((42, 4), dtype).requires_grad_()
    made = fastpe.resample(table, (9, 5), method=method, grid=(6, 7))
    picture = table.reshape(6, 7, 4).movedim(-1, 0)[None]
    theirs = torch.nn.functional.interpolate(picture, (9, 5), mode=mode, antialias=antialias, align_corners=False)
    other = table_of((45, 4), dtype)
    (got,) = torch.autograd.grad(made, table, other)
    (expected,) = torch.autograd.grad(theirs, table, other.T.reshape(1, 4, 9, 5))
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6 if dtype is torch.float32 else 1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_parameter_learns(dtype):
    """Through a sum, whose gradient is one number in all places; and what stays in front has its own."""
    weight = torch.nn.Parameter(table_of((10, 4), dtype))
    made = fastpe.resample(weight, (6, 5), prefix_tokens=1)
    assert made.grad_fn is not None
    assert torch.equal(made, fastpe.resample(weight.detach(), (6, 5), prefix_tokens=1))
    made.sum().backward()
    assert weight.grad.dtype is dtype
    assert (weight.grad[0] == 1).all()
    total = weight.grad[1:].double().sum(0)
    assert (total - 30).abs().max() <= 30 * torch.finfo(dtype).eps
    with torch.no_grad():
        assert fastpe.resample(weight, 8).grad_fn is None


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend, grad):
    compiled = torch.compile(lambda x: fastpe.resample(x * 2, (4, 5), prefix_tokens=1).tanh(), backend=backend, fullgraph=True)
    for seed in (0, 1):
        x = (table_of((10, 4)) + seed).requires_grad_(grad)
        expected = fastpe.resample(x * 2, (4, 5), prefix_tokens=1).tanh()
        got = compiled(x)
        assert torch.equal(got, expected)
        if grad:
            (one,), (other,) = (torch.autograd.grad(made.square().sum(), x) for made in (got, expected))
            torch.testing.assert_close(one, other)


def test_sizes_that_change():
    """Tables and lengths of any size, in graphs that are made for such."""
    compiled = torch.compile(lambda x, n: fastpe.resample(x, n) * 2, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows, length in ((9, 5), (12, 5), (12, 30), (9, (2, 5))):
        x = table_of((rows, 4)).requires_grad_()
        got, expected = compiled(x, length), fastpe.resample(x, length) * 2
        assert torch.equal(got, expected)
        (one,), (other,) = (torch.autograd.grad(made.square().sum(), x) for made in (got, expected))
        torch.testing.assert_close(one, other)


def test_traced_and_exported():
    def function(x: Any) -> Any:
        return fastpe.resample(x, [4, 5], prefix_tokens=1)

    class Module(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return function(x)

    x = table_of((1, 10, 4))
    for made in (torch.jit.trace(function, x), torch.export.export(Module(), (x,)).module()):
        assert torch.equal(made(x + 1), function(x + 1))


def test_transforms():
    tables, options = table_of((5, 9, 3)), {"new_size": (2, 5)}

    def function(x: Any) -> Any:
        return fastpe.resample(x, **options)

    each = torch.stack([function(one) for one in tables])
    torch.testing.assert_close(torch.func.vmap(function)(tables), each, rtol=0, atol=1e-15)
    torch.testing.assert_close(torch.func.vmap(function, in_dims=1)(tables.movedim(0, 1)), each, rtol=0, atol=1e-15)
    gradient = torch.func.grad(lambda x: function(x).tanh().sum())
    expected = torch.stack([gradient(one) for one in tables])
    torch.testing.assert_close(torch.func.vmap(gradient)(tables), expected, rtol=0, atol=1e-15)
    made, tangent = torch.func.jvp(function, (tables[0],), (tables[1],))
    assert torch.equal(made, function(tables[0]))
    assert torch.equal(tangent, function(tables[1]))
    hessian = torch.func.hessian(lambda x: function(x).pow(3).sum())(tables[0])
    assert hessian.shape == (9, 3, 9, 3)
    assert (hessian != 0).any()
