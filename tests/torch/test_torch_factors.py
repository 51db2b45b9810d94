"""Factors that are trained: gradients where the result is linear in them, and a refusal of every other parameter that would never be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch_marks

torch = pytest.importorskip("torch")
import fastpe  # noqa: E402
import fastpe.torch  # noqa: E402
from fastpe import scaling  # noqa: E402
from fastpe.torch import functional as F  # noqa: E402

pytestmark = torch_marks.COMPILES

MASK = torch.tensor([[True, False, True, True], [True, True, True, False]])
IDS, TYPES = torch.tensor([[3, 0, 2, 4], [1, 4, 0, 3]]), torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]])
TABLE = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def x_of(dtype: Any = torch.float64) -> Any:
    return torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)


def parameter(value: float = 1.5, dtype: Any = torch.float64) -> Any:
    return torch.nn.Parameter(torch.tensor(value, dtype=dtype))


CALLS: dict[str, Callable[..., Any]] = {  # of a scale, and what else is added by a number in its place
    "add_encoding": lambda s: F.add_encoding(x_of(), input_scale=s, offset=3),
    "add_encoding_masked": lambda s: F.add_encoding(x_of(), input_scale=s, mask=MASK),
    "add_encoding_list": lambda s: F.add_encoding(x_of(), input_scale=s, mask=MASK.tolist(), offset=[1, 5]),
    "add_encoding_first": lambda s: F.add_encoding(x_of(), input_scale=s, seq_axis=0, mask=MASK),
    "add_learned": lambda s: F.add_encoding(x_of(), fastpe.Learned(TABLE), input_scale=s),
    "add_bias": lambda s: F.add_bias(x_of()[..., :4], fastpe.ALiBi(2), input_scale=s),
    "embed": lambda s: F.embed(IDS, TABLE, scale=s),
    "embed_positions": lambda s: F.embed(IDS, TABLE, "sinusoidal", scale=s, positions=IDS),
    "embed_types": lambda s: F.embed(IDS, TABLE, "sinusoidal", scale=s, token_types=(TYPES, TABLE[:2])),
    "embed_padding": lambda s: F.embed(IDS, TABLE, "sinusoidal", scale=s, padding_idx=0, mask=MASK, offset=2),
    "embed_padding_alone": lambda s: F.embed(IDS.tolist(), TABLE, scale=s, padding_idx=0),
    "embed_masked": lambda s: F.embed(IDS, TABLE, scale=s, mask=MASK, token_types=(TYPES, TABLE[:2])),
    "embed_one_sequence": lambda s: F.embed(IDS[0], TABLE, "sinusoidal", scale=s, padding_idx=0),
}


@pytest.mark.parametrize("name", CALLS)
def test_scales_are_trained(name: str) -> None:
    call, scale = CALLS[name], parameter()
    plain = call(1.5)
    got = call(scale)
    torch.testing.assert_close(got, plain, rtol=1e-14, atol=1e-14)
    with torch.no_grad():
        assert torch.equal(call(scale), got)  # the bits of training
    assert torch.autograd.gradcheck(call, scale)
    assert torch.autograd.gradgradcheck(call, scale)
    got.sum().backward()
    assert scale.grad.shape == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_gradients_are_those_of_a_number(dtype: Any) -> None:
    found = []
    for scale in (2.0, parameter(2.0, torch.float32)):
        x = x_of(dtype).requires_grad_()
        F.add_encoding(x, input_scale=scale, mask=MASK).sum().backward()
        found.append(x.grad)
    assert torch.equal(*found)


def test_amplitudes_are_trained() -> None:
    """x * input_scale + amplitude * PE, as ESPnet's ScaledPositionalEncoding has it."""
    amplitude, scale = parameter(0.5), parameter(3.0)

    def call(amplitude: Any, scale: Any) -> Any:
        return F.add_encoding(x_of(), amplitude=amplitude, input_scale=scale, mask=MASK, offset=4)

    expected = F.add_encoding(x_of(), fastpe.Sinusoidal(amplitude=0.5), input_scale=3.0, mask=MASK, offset=4)
    torch.testing.assert_close(call(amplitude, scale), expected, rtol=1e-14, atol=1e-14)
    assert torch.autograd.gradcheck(call, (amplitude, scale))
    assert torch.equal(call(amplitude.detach(), scale.detach()), call(amplitude, scale))  # frozen


def test_modules_train_them() -> None:
    x = x_of(torch.float32)
    modules: dict[str, tuple[Any, Any]] = {
        "SinusoidalEncoding": (lambda one: fastpe.torch.SinusoidalEncoding(input_scale=one(2.0), amplitude=one(0.5)), x),
        "LearnedEncoding": (lambda one: fastpe.torch.LearnedEncoding(9, 6, input_scale=one(2.0)), x),
        "TokenEmbedding": (lambda one: fastpe.torch.TokenEmbedding(5, 6, "sinusoidal", scale=one(2.0)), IDS),
    }
    for name, (make, given) in modules.items():
        module = make(lambda value: parameter(value, torch.float32))
        assert "trained" in repr(module), name
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        module(given).square().sum().backward()
        before = {key: value.clone() for key, value in module.state_dict().items()}
        optimizer.step()
        for key, value in module.state_dict().items():
            assert not torch.equal(value, before[key]), (name, key)
        eager = module(given)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")(given)
        torch.testing.assert_close(compiled, eager, rtol=0, atol=0)


SEQUENCES: dict[str, Callable[[Any], Any]] = {
    "Custom": lambda p: scaling.Custom(p.reshape(1).expand(4)),
    "LongRoPE": lambda p: scaling.LongRoPE(p.reshape(1), (1.0,), 64),
    "Fourier.bands": lambda p: fastpe.Fourier(2, p.reshape(1)),
    "Fourier.matrix": lambda p: fastpe.Fourier(1, matrix=p.reshape(1, 1)),
    "Fourier.random": lambda p: fastpe.Fourier.random(p.reshape(1, 1)),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_of_numbers_are_not_trained(name: str) -> None:
    with pytest.raises(TypeError, match="not a tensor that requires a gradient, as there is none for it"):
        SEQUENCES[name](parameter())
    SEQUENCES[name](parameter().detach())


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda p: F.add_encoding(x_of(), input_scale=p.reshape(1).expand(2)), ValueError, "input_scale must be one number"),
        (lambda p: F.add_encoding(x_of(), amplitude=p.reshape(1).expand(2)), ValueError, "amplitude must be one number"),
        (
            lambda p: F.add_encoding(x_of(), amplitude=2.0),
            TypeError,
            "amplitude must be a tensor, got float 2.0. Sinusoidal(amplitude=...) takes",
        ),
        (lambda p: F.embed(IDS, TABLE, scale=p, offset=3), ValueError, "offset"),
        (
            lambda p: F.embed(IDS, TABLE, scale=p, seq_axis=1),
            TypeError,
            "embed() got an unexpected keyword argument 'seq_axis'",
        ),
        (lambda p: F.embed(IDS[None], TABLE, scale=p, padding_idx=0), ValueError, "ids must have shape (T,) or (B, T)"),
        (
            lambda p: fastpe.torch.SinusoidalEncoding(input_scale=p, inplace=True),
            ValueError,
            "SinusoidalEncoding: input_scale must be a number where x is written in place",
        ),
        (lambda p: fastpe.torch.SinusoidalEncoding(amplitude=p, inplace=True), ValueError, "amplitude must be a number where"),
        (
            lambda p: fastpe.torch.SinusoidalEncoding(amplitude=p.detach(), inplace=True),
            ValueError,
            "amplitude must be a number where",
        ),
        (lambda p: fastpe.torch.SinusoidalEncoding(amplitude=2.0), TypeError, "SinusoidalEncoding: amplitude must be a tensor"),
        (lambda p: F.add_encoding(x_of(), amplitude=p.detach().expand(2)), ValueError, "amplitude must be one number"),
        (lambda p: fastpe.torch.SinusoidalEncoding(input_scale="8"), TypeError, "input_scale must be a real number"),
        (
            lambda p: fastpe.torch.TokenEmbedding(5, 6, fastpe.torch.LearnedEncoding(4, 6, input_scale=p)),
            ValueError,
            "learned positions must have an input_scale of 1, got trained",
        ),
    ],
)
def test_errors(call: Callable[[Any], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        call(parameter(1.0))
    assert text in str(caught.value)


def test_products_by_trained_factors_are_rounded() -> None:
    """One rounding more than a number has: PyTorch multiplies, and the sum begins with the product."""
    x, scale = x_of(torch.bfloat16), parameter(1.1, torch.float32)
    wanted = fastpe.add_encoding((x * scale.detach()).clone())
    assert torch.equal(F.add_encoding(x, input_scale=scale), wanted)
    assert not torch.equal(F.add_encoding(x, input_scale=scale.item()), wanted)
