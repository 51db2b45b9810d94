"""What the tests of biases of tensors share."""

from __future__ import annotations

import pytest

import fastpe

torch = pytest.importorskip("torch")
testing = pytest.importorskip("torch._dynamo.testing")
import fastpe.torch  # noqa: E402

HEADS = 3


def parameters(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed + len(shape))
    return (torch.rand(shape, dtype=dtype, generator=generator) * 0.8 + 0.1).requires_grad_()


# A bias of its tensors, and their shapes.
LEARNED = {
    "t5": (fastpe.T5Bias, [(8, HEADS)]),
    "t5_causal": (lambda table: fastpe.T5Bias(table, False, 12), [(8, HEADS)]),
    "deberta": (lambda table: fastpe.LogBuckets(table, max_distance=9), [(16, HEADS)]),
    "wavlm": (lambda table: fastpe.LogBuckets(table, "wavlm", 9), [(8, HEADS)]),
    "relative": (fastpe.RelativeTable, [(7, HEADS)]),
    "alibi": (lambda slopes: fastpe.ALiBi(HEADS, slopes=slopes), [(HEADS,)]),
    "alibi_symmetric": (lambda slopes: fastpe.ALiBi(HEADS, symmetric=True, slopes=slopes), [(HEADS,)]),
    "kerple_log": (fastpe.Kerple, [(HEADS,), (HEADS,)]),
    "kerple_power": (lambda p, a: fastpe.Kerple(p, a, "power"), [(HEADS,), (HEADS, 1, 1)]),
    "fire_within": (lambda *layers: fastpe.FIRE(*layers, length=20), [(4, 1), (4,), (HEADS, 4), (HEADS,), (1,)]),
    "fire_beyond": (lambda *layers: fastpe.FIRE(*layers), [(4, 1), (4,), (HEADS, 4), (HEADS,), (1,), ()]),
}
GIVEN = {
    "counted": {},
    "causal": {"causal": True, "input_scale": 0.5},
    "offset": {"q_offset": -2},
    "offsets": {"q_offset": torch.tensor([3, 1])},
    "queries": {"q_positions": torch.tensor([[0, 4, 2, 8], [3, 3, 1, 0]]), "causal": True},
    "keys": {"k_positions": torch.arange(5) * 2},
}


def without_inf(x):
    return torch.where(torch.isinf(x), 0, x)
