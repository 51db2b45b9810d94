"""Results in float8 as tensors: PyTorch's own conversion of what is clamped, graphs, and no gradients."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
import fastpe  # noqa: E402
import fastpe.torch  # noqa: E402
from fastpe.torch import functional  # noqa: E402

FLOAT8 = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


def expected(exact, scale, dtype):
    """As PyTorch converts it; its reciprocal of a number is the kernels'."""
    return (exact * (1 / scale)).clamp(-FLOAT8[dtype], FLOAT8[dtype]).to(dtype).view(torch.uint8)


@pytest.mark.parametrize("dtype", FLOAT8)
def test_rotations(device, dtype):
    q, k = (300 * torch.randn(2, heads, 6, 32, device=device).bfloat16() for heads in (4, 2))
    outs = tuple(torch.empty(x.shape, dtype=dtype, device=device) for x in (q, k))
    assert fastpe.apply_rotary(q, k, offset=5, out=outs, out_scale=(0.5, 0.3)) is outs
    exact = functional.apply_rotary(q.float(), k.float(), offset=5)
    for out, one, scale in zip(outs, exact, (0.5, 0.3), strict=True):
        assert torch.equal(out.view(torch.uint8), expected(one, scale, dtype))
    assert [out._version for out in outs] == [1, 1]


@pytest.mark.parametrize("dtype", FLOAT8)
def test_embeddings(device, dtype):
    table, ids = torch.randn(9, 16, device=device), torch.tensor([[1, 8, 3]], device=device)
    exact = functional.embed(ids, table, "sinusoidal")
    out = torch.empty(1, 3, 16, dtype=dtype, device=device)
    assert fastpe.embed(ids, table, "sinusoidal", out=out, out_scale=0.01) is out
    made = functional.embed(ids, table, "sinusoidal", dtype=dtype, out_scale=0.01)
    for one in (out, made):
        assert torch.equal(one.view(torch.uint8), expected(exact, 0.01, dtype))


def test_graphs(device):
    def both(q, table, ids, out):
        fastpe.apply_rotary(q, out=out, out_scale=0.5)
        return out, functional.embed(ids, table, dtype=torch.float8_e5m2, out_scale=2.0)

    q, table, ids = torch.randn(3, 8, device=device), torch.randn(5, 4, device=device), torch.tensor([4, 0], device=device)
    out = torch.empty(3, 8, dtype=torch.float8_e4m3fn, device=device)
    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)(q, table, ids, out.clone())
    for one, other in zip(compiled, both(q, table, ids, out), strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def test_there_are_no_gradients():
    table, ids = torch.randn(5, 4, requires_grad=True), torch.tensor([1])
    out = torch.zeros(1, 4, dtype=torch.float8_e4m3fn)
    with pytest.raises(RuntimeError, match=r"out=\.\.\. arguments don't support automatic differentiation"):
        fastpe.embed(ids, table, out=out)
    with pytest.raises(RuntimeError, match=r"out=\.\.\. arguments don't support automatic differentiation"):
        fastpe.apply_rotary(table[1:2], out=out)
    with pytest.raises(RuntimeError, match="no gradient for table"):
        functional.embed(ids, table, dtype=torch.float8_e4m3fn)
    scale = torch.ones(1, requires_grad=True)
    with pytest.raises(RuntimeError, match="no gradient for scale"):
        functional.embed(ids, table.detach(), scale=scale, dtype="float8_e5m2")
    assert not out.view(torch.uint8).any()


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated:DeprecationWarning")
def test_a_script_cannot_record_it():
    out = torch.zeros(2, 4, dtype=torch.float8_e4m3fn)
    with pytest.raises(RuntimeError, match="cannot record out in float8"):
        torch.jit.trace(lambda q: fastpe.apply_rotary(q, out=out), torch.ones(2, 4))
