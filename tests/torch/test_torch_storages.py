"""Storages of tensors: no call changes one, and none is written or read that was freed or cut."""

from __future__ import annotations

import io

import pytest

torch = pytest.importorskip("torch")

import fastpe  # noqa: E402
import fastpe.torch  # noqa: E402
from fastpe import scaling  # noqa: E402
from fastpe.torch import functional  # noqa: E402


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype)


CALLS = {
    "add": lambda x: fastpe.add_encoding(x),
    "add_out": lambda x: fastpe.add_encoding(zeros(2, 3, 4, dtype=x.dtype), out=x),
    "add_positions": lambda x: fastpe.add_encoding(zeros(2, 3, 4), positions=x[:, :, 0].double()),
    "add_learned": lambda x: fastpe.add_encoding(zeros(2, 2, 4, dtype=x.dtype), fastpe.Learned(x[0])),
    "functional": lambda x: functional.add_encoding(x),
    "gradient": lambda x: functional.add_encoding(x.requires_grad_()).sum().backward(),
    "rotate": lambda x: fastpe.apply_rotary(zeros(2, 3, 4, dtype=x.dtype), x),
    "rerotate": lambda x: fastpe.rerotate(x, 1),
    "embed": lambda x: fastpe.embed(torch.tensor([0, 1]), x[0]),
    "embed_ids": lambda x: fastpe.embed(x.long()[0], zeros(5, 4)),
    "bias": lambda x: fastpe.add_bias(x, fastpe.ALiBi(2)),
    "encode": lambda x: fastpe.encode(torch.arange(3), 4, out=x[0]),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CALLS)
def test_a_storage_can_be_resized_after_a_call(name, dtype):
    """A call of tensors that are like those of an earlier one takes another way."""
    for _ in range(3):
        x = zeros(2, 3, 4, dtype=getattr(torch, dtype))
        CALLS[name](x)
        x.requires_grad_(False).resize_(20, 3, 4)
        x.untyped_storage().resize_(0)


def test_ids_can_be_resized_after_a_call():
    table = zeros(5, 4)
    for _ in range(3):
        ids = torch.tensor([[0, 1, 2]])
        fastpe.embed(ids, table)
        ids.resize_(400)


TABLES = {
    "add": lambda x: fastpe.add_encoding(x),
    "add_out": lambda x: fastpe.add_encoding(zeros(4, 4), out=x),
    "add_learned": lambda x: fastpe.add_encoding(zeros(2, 3, 4), fastpe.Learned(x)),
    "functional": lambda x: functional.add_encoding(x),
    "gradient": lambda x: functional.add_encoding(x, fastpe.Learned(x)) if x.requires_grad_() is x else None,
    "rotate": lambda x: fastpe.apply_rotary(zeros(4, 4), x),
    "rerotate": lambda x: fastpe.rerotate(x, 1),
    "embed": lambda x: fastpe.embed(torch.tensor([0, 1]), x),
    "bias": lambda x: functional.add_bias(zeros(1, 4, 2, 2), fastpe.T5Bias(x)),
    "encode": lambda x: fastpe.encode(torch.arange(4), 4, out=x),
}


@pytest.mark.parametrize("nbytes", [0, 60])
@pytest.mark.parametrize("name", TABLES)
def test_a_storage_that_was_freed_or_cut_is_refused(name, nbytes):
    """One that was cut is noticed where all is checked, as a repeated call looks at the address alone."""
    TABLES[name](zeros(4, 4))
    x = zeros(4, 4)
    x.untyped_storage().resize_(nbytes)
    if nbytes:
        fastpe.clear_caches()
    for _ in range(2):
        with pytest.raises(TypeError, match="a tensor whose storage was freed or cut"):
            TABLES[name](x)
    x.untyped_storage().resize_(64)
    TABLES[name](x.requires_grad_(False).zero_())


def test_views_of_a_storage_that_was_cut():
    x = zeros(6, 4)
    first, behind, between = x[:2], x[6:], x[1:3]
    x.untyped_storage().resize_(2 * 16)
    assert torch.equal(functional.add_encoding(first), fastpe.encode(torch.arange(2), 4))
    assert functional.add_encoding(behind).shape == (0, 4)
    with pytest.raises(TypeError, match="freed or cut"):
        fastpe.add_encoding(between)


ENCODINGS = [
    fastpe.Sinusoidal(layout="concatenated"),
    fastpe.Rotary(scaling=scaling.YaRN(4.0, 4096)),
    fastpe.Rotary(scaling=scaling.LongRoPE((1.0,) * 2, (2.0,) * 2, 10, 20)),
    fastpe.Grid.mae((3, 4)),
    fastpe.Fourier.nerf(2, 3),
    fastpe.ALiBi(8),
    fastpe.Kerple([0.5, 1.0], [0.3, 0.2]),
]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: type(encoding).__name__)
def test_encodings_are_read_without_running_code(encoding):
    file = io.BytesIO()
    torch.save({"encoding": encoding}, file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["encoding"] == encoding


def test_tables_of_encodings_are_read_without_running_code():
    table, file = torch.arange(16.0).reshape(4, 4), io.BytesIO()
    torch.save([fastpe.Learned(table), fastpe.T5Bias(table), fastpe.Rotary.tabulated(table, table)], file)
    file.seek(0)
    learned, bias, rotary = torch.load(file, weights_only=True)
    assert all(torch.equal(one, table) for one in (learned.table, bias.table, rotary.cos, rotary.sin))


def test_what_is_read_is_checked():
    broken, file = fastpe.Rotary(), io.BytesIO()
    object.__setattr__(broken, "base", -1.0)
    torch.save(broken, file)
    file.seek(0)
    with pytest.raises(ValueError, match="base must be"):
        torch.load(file, weights_only=True)
