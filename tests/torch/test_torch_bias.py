"""add_bias on tensors: the same bits as on arrays, gradients by scores and by all that is learned, and graphs."""

from __future__ import annotations

import cases
import numpy as np
import pytest

import fastpe

torch = pytest.importorskip("torch")
testing = pytest.importorskip("torch._dynamo.testing")
from torch_biases import GIVEN, HEADS, LEARNED, parameters, without_inf  # noqa: E402

import fastpe.torch  # noqa: E402

functional = fastpe.torch.functional


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", LEARNED)
def test_gradients(name, given):
    make, shapes = LEARNED[name]
    learned = [parameters(*shape, seed=i) for i, shape in enumerate(shapes)]
    scores = torch.randn(2, HEADS, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    given = GIVEN[given]

    def new(scores, *learned):
        return without_inf(functional.add_bias(scores, make(*learned), **given))

    def in_place(scores, *learned):
        copied = scores * 1
        assert fastpe.add_bias(copied, make(*learned), **given) is copied
        return without_inf(copied)

    whole = "input_scale" in given and not name.startswith("fire")  # elsewhere along random directions
    assert torch.autograd.gradcheck(new, (scores, *learned), fast_mode=not whole)
    assert torch.autograd.gradcheck(in_place, (scores, *learned), fast_mode=True)
    if name in ("t5", "kerple_power", "fire_beyond"):
        assert torch.autograd.gradgradcheck(new, (scores, *learned), fast_mode=True)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_tensors_have_the_bits_of_arrays(dtype):
    x = cases.random((2, HEADS, 6, 9), dtype)
    table = cases.random((16, HEADS), "float32", 1)
    for bias, same in ((fastpe.ALiBi(HEADS), None), (fastpe.T5Bias(table), fastpe.T5Bias(torch.from_numpy(table)))):
        wanted = fastpe.add_bias(x.copy(), bias, causal=True)
        tensor = as_tensor(x.copy())
        version = tensor._version
        assert fastpe.add_bias(tensor, same or bias, causal=True) is tensor
        assert tensor._version == version + 1
        cases.assert_same_bits(as_array(tensor, x.dtype), wanted)
        given = as_tensor(x.copy())
        cases.assert_same_bits(as_array(functional.add_bias(given, same or bias, causal=True), x.dtype), wanted)
        cases.assert_same_bits(as_array(given, x.dtype), x)
        out = torch.empty_like(given)
        assert fastpe.add_bias(given, same or bias, causal=True, out=out) is out
        cases.assert_same_bits(as_array(out, x.dtype), wanted)


def as_tensor(x):
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype.name == "bfloat16" else torch.from_numpy(x)


def as_array(tensor, dtype):
    return tensor.view(torch.int16).numpy().view(dtype) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def test_sums_by_distance_of_many_rows():
    """More rows than are summed at a time, against the gradient of indexing; 16-bit scores are summed in float32."""
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 1e-4)):
        table = parameters(32, 4, dtype=torch.float32)
        scores = torch.randn(2, 4, 700, 900, generator=torch.Generator().manual_seed(0)).to(dtype)
        weights = torch.randn(2, 4, 700, 900, generator=torch.Generator().manual_seed(1)).to(dtype)
        bias = fastpe.T5Bias(table)
        (found,) = torch.autograd.grad(functional.add_bias(scores, bias, q_offset=50), table, weights)
        rows = torch.from_numpy(bias.rows(np.arange(50, 750)[:, None] - np.arange(900)))
        (wanted,) = torch.autograd.grad(table[rows].permute(2, 0, 1).expand(2, -1, -1, -1), table, weights.float())
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own forward-mode rules
def test_transforms():
    scores, table = torch.randn(5, 2, HEADS, 4, 6), torch.rand(8, HEADS)
    plain, bias = fastpe.ALiBi(HEADS), fastpe.T5Bias
    wanted = functional.add_bias(scores, plain, causal=True)
    mapped = torch.func.vmap(lambda x: functional.add_bias(x, plain, causal=True))
    torch.testing.assert_close(mapped(scores), wanted)
    found = torch.func.grad(lambda table: functional.add_bias(scores, bias(table)).sin().sum())(table)
    leaf = table.clone().requires_grad_()
    functional.add_bias(scores, bias(leaf)).sin().sum().backward()
    torch.testing.assert_close(found, leaf.grad)
    tangent = torch.func.jvp(lambda x: functional.add_bias(x, plain, causal=True, input_scale=3.0), (scores,), (scores,))[1]
    torch.testing.assert_close(tangent, torch.where(torch.isneginf(wanted), 0, 3 * scores))


def test_errors():
    scores, bias = torch.zeros(1, HEADS, 4, 5), fastpe.ALiBi(HEADS)
    with pytest.raises(TypeError, match="bias must be a bias"):
        fastpe.add_bias(scores, None)
    with pytest.raises(TypeError, match="arrays beside a tensor must be tensors"):
        fastpe.add_bias(scores, bias, q_positions=np.arange(4))
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        fastpe.add_bias(scores.clone().requires_grad_(), bias)
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        fastpe.add_bias(scores.clone().requires_grad_(), bias, out=torch.zeros_like(scores))
    with pytest.raises(TypeError, match="scores must be a tensor"):
        functional.add_bias(np.zeros((1, HEADS, 4, 5)), bias)
    with pytest.raises(ValueError, match="8 heads"):
        functional.add_bias(scores, fastpe.T5Bias(torch.zeros(32, 8, requires_grad=True)))
    assert not scores.any()


def test_values_that_are_not_there_are_not_checked():
    """A tensor without values, or one whose values would have to be waited for, may hold NaN."""
    with pytest.raises(ValueError, match="table must be finite"):
        fastpe.T5Bias(torch.full((32, 2), torch.nan))
    assert fastpe.T5Bias(torch.full((32, 2), torch.nan, device="meta")).heads == 2
