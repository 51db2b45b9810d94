"""What the tests of gradients share: encodings, ways to give positions, the check against differences."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch.autograd import gradcheck, gradgradcheck  # noqa: E402

import fastpe  # noqa: E402
from fastpe import Rotary  # noqa: E402
from fastpe.torch import functional  # noqa: E402

YARN = fastpe.scaling.YaRN(8.0, 64)
ROTARIES = {
    "half": Rotary(),
    "interleaved": Rotary(interleaved=True),
    "partial": Rotary(rotary_dim=4, rotary_offset=2),
    "attention_factor": Rotary(scaling=YARN),
    "xpos": Rotary(xpos_scale_base=4, interleaved=True),
}
PLACES = {
    "offset": {"offset": 3},
    "offsets": {"offset": [2, 5]},
    "positions": {"positions": torch.tensor([[0, 2, 1], [5, 3, 4]])},
    "real": {"positions": torch.tensor([0.5, 2.25, 1.0])},
    "cu_seqlens": {"cu_seqlens": [0, 1, 3]},
    "mask": {"mask": torch.tensor([[True, False, True], [False, True, True]])},
    "mask_row": {"mask": [True, False, True], "offset": 2},
}


def random(*shape, requires_grad=True, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_(requires_grad)


def check_gradients(function, *inputs):
    """Along random directions: element by element takes minutes."""
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


def tabulated(pairs=2, rows=8):
    """Not orthogonal: the adjoint is the transpose, which is not the inverse."""
    return Rotary.tabulated(random(rows, pairs, requires_grad=False), random(rows, pairs, requires_grad=False, seed=1))


IDS = torch.tensor([[0, 3, 1], [3, 3, 5]])
WRITERS = {
    "add_encoding": lambda x: fastpe.add_encoding(x),
    "apply_rotary": lambda x: fastpe.apply_rotary(x),
    "rerotate": lambda x: fastpe.rerotate(x, 3),
    "apply_rotary_qkv": lambda x: functional.apply_rotary_qkv(x, 1, seq_axis=0, inplace=True),
}


class Noting(torch.autograd.Function):
    """Hands its gradient on as a new tensor, and notes where that lies."""

    addresses: list[int] = []  # noqa: RUF012

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        grad = grad * 1
        Noting.addresses.append(grad.data_ptr())
        return grad
