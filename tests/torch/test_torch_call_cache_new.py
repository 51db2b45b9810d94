"""Calls on tensors like an earlier one that make new tensors, or are given positions: the bits of the first, and no check anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastpe  # noqa: E402
from fastpe._core import call_cache  # noqa: E402
from fastpe._core.operations import Add, AddBias, Embed, Rotate  # noqa: E402
from fastpe.torch import functional  # noqa: E402

DTYPES = ("float16", "bfloat16", "float32", "float64")
TABLE, IDS, BIAS = torch.arange(40.0).reshape(5, 8), torch.tensor([[3, 1, 0], [0, 4, 4]]), fastpe.Kerple([0.5, 2.0], [0.3, 0.7])


@pytest.fixture(autouse=True)
def nothing_known():
    call_cache.clear()


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """From when it is called on, only known calls run."""

    def forbid() -> None:
        for kind in (Add, AddBias, Embed, Rotate):
            monkeypatch.delattr(kind, "check")

    return forbid


def values(*shape: int, seed: int = 0, dtype: str = "float32") -> Any:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32)).to(getattr(torch, dtype))


def same(one: Any, other: Any) -> bool:
    pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) and a.stride() == b.stride() for a, b in pairs)


def calls(where: dict[str, Any], dtype: str = "float32") -> dict[str, Any]:
    """Every functional form, on arguments of its own, with what must stay as it is."""
    x, q, k, scores = (values(*shape, dtype=dtype) for shape in ((2, 3, 8), (2, 4, 3, 8), (2, 2, 3, 8), (2, 2, 3, 5)))
    table = TABLE.to(x.dtype)
    forms = {
        "add": (lambda: functional.add_encoding(x, **where), (x,)),
        "rotate": (lambda: functional.apply_rotary(q, k, **where), (q, k)),
        "keys": (lambda: functional.apply_rotary(None, k, **where), (k,)),
        "embed": (lambda: functional.embed(IDS, table, "sinusoidal", **where), (IDS, table)),
    }
    if "positions" not in where:
        forms["bias"] = lambda: functional.add_bias(scores, BIAS, q_offset=where["offset"]), (scores,)
    return forms


PLACES = {
    "offset": lambda seed: {"offset": 7 + seed},
    "rows": lambda seed: {"positions": torch.tensor([5, 2**31 - 1, -9]) - seed},
    "sequences": lambda seed: {"positions": torch.arange(6).reshape(3, 2).T * 1000 + seed},
}


def reals(where: dict[str, Any]) -> dict[str, Any]:
    """Another way to say the same, which is checked each time."""
    if "positions" in where:
        return {"positions": where["positions"].double()}
    return {"positions": torch.arange(3.0).double() + where["offset"]}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_functional_forms_again(dtype, place, unchecked):
    given = [PLACES[place](seed) for seed in range(3)]
    wanted = [{name: form() for name, (form, _) in calls(reals(where), dtype).items()} for where in given]
    bias = [calls(where, dtype)["bias"][0]() if place == "offset" else None for where in given]
    for form, _ in calls(given[0], dtype).values():
        form()
    unchecked()
    for where, expected, of_bias in zip(given, wanted, bias, strict=True):
        for name, (form, inputs) in calls(where, dtype).items():
            before = [(one.clone(), one._version) for one in inputs]
            assert same(form(), of_bias if name == "bias" else expected[name]), name
            for one, (value, version) in zip(inputs, before, strict=True):
                assert torch.equal(one, value)
                assert one._version == version


@pytest.mark.parametrize("place", PLACES)
def test_in_place_with_positions_again(place, unchecked):
    given = [PLACES[place](seed) for seed in range(3)]
    wanted = [
        (functional.add_encoding(values(2, 3, 8), **reals(g)), functional.apply_rotary(values(2, 4, 3, 8), **reals(g)))
        for g in given
    ]
    fastpe.add_encoding(values(2, 3, 8), **given[0])
    fastpe.apply_rotary(values(2, 4, 3, 8), **given[0])
    unchecked()
    for where, (added, rotated) in zip(given, wanted, strict=True):
        x, q = values(2, 3, 8), values(2, 4, 3, 8)
        assert fastpe.add_encoding(x, **where) is x
        assert fastpe.apply_rotary(q, **where) is q
        assert same(x, added)
        assert same(q, rotated)
        assert (x._version, q._version) == (1, 1)


def test_one_token_of_each_sequence(unchecked):
    """As servers decode: an offset for each sequence, or a position."""
    q, k, offsets = values(4, 2, 1, 8), values(4, 1, 1, 8), torch.tensor([0, 9, 2**31 - 1, -4])
    wanted = functional.apply_rotary(q, k, positions=offsets[:, None].double())
    for where in ({"offset": offsets}, {"positions": offsets[:, None]}):
        functional.apply_rotary(q, k, **where)
    unchecked()
    for where in ({"offset": offsets}, {"positions": offsets[:, None]}):
        assert same(functional.apply_rotary(q, k, **where), wanted)


@pytest.mark.parametrize("form", ["transposed", "sliced", "expanded", "permuted"])
def test_new_tensors_have_the_strides_of_the_first(form):
    whole = values(6, 4, 3, 16)
    x = {"transposed": whole.transpose(1, 2), "sliced": whole[::2, ..., 2:10], "expanded": whole[:1].expand(3, 4, 3, 16)}.get(
        form, whole.permute(3, 0, 2, 1).permute(1, 2, 3, 0)
    )
    first, strides = functional.apply_rotary(x, offset=3), torch.empty_like(x).stride()
    for _ in range(2):
        again = functional.apply_rotary(x, offset=3)
        assert again.stride() == strides
        assert same(again, first)
        added = functional.add_encoding(x, offset=3)
        assert added.stride() == strides
        assert same(added, functional.add_encoding(x, positions=torch.arange(x.shape[2]) + 3.0))


def test_scores_with_other_keys_have_strides_of_their_own():
    buffer = values(2, 2, 9, 3)
    for count in (9, 4, 7):
        for scores in (buffer.transpose(2, 3)[..., :count], values(2, 2, 3, count), buffer[:, :, :count].transpose(2, 3)):
            got = functional.add_bias(scores, BIAS)
            assert got.stride() == torch.empty_like(scores).stride()
            wanted = fastpe.add_bias(scores.numpy().copy(), BIAS)
            assert np.array_equal(got.numpy(), wanted)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own forward-mode rules
def test_a_known_call_looks_at_what_can_change():
    x, positions = values(2, 3, 8), torch.arange(3)
    functional.add_encoding(x, positions=positions)
    functional.add_encoding(x)
    for bad in (torch.tensor([0, 2**31, 1]), torch.tensor([0, -(2**31) - 1, 1])):
        with pytest.raises(ValueError, match="positions must be finite and lie in"):
            functional.add_encoding(x, positions=bad)
    with pytest.raises(ValueError, match="offset"):
        functional.add_encoding(x, offset=2**31 - 2)
    with pytest.raises(ValueError, match="contradict"):
        functional.add_encoding(x, positions=positions, offset=1)
    leaf = values(2, 3, 8).requires_grad_()
    functional.add_encoding(leaf, positions=positions).sum().backward()
    assert (leaf.grad == 1).all()
    assert functional.add_encoding(leaf.detach(), positions=positions).grad_fn is None
    for nothing in (torch._efficientzerotensor(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64).to_sparse()):
        with pytest.raises(TypeError, match="positions"):
            functional.add_encoding(x, positions=nothing)
    negated = torch._neg_view(x)
    with pytest.raises(TypeError, match="negates its memory"):
        functional.add_encoding(negated, positions=positions)
    with torch.inference_mode():
        made, inside = functional.add_encoding(x, positions=positions), torch.arange(3)
        assert made.is_inference()
    assert not functional.add_encoding(x, positions=inside).is_inference()
    assert not functional.add_encoding(made).is_inference()
    mapped = torch.func.vmap(lambda one: functional.add_encoding(one, positions=positions))(values(4, 2, 3, 8))
    assert mapped.shape == (4, 2, 3, 8)
    tangent = torch.func.jvp(lambda one: functional.add_encoding(one, positions=positions), (x,), (torch.ones_like(x),))[1]
    assert (tangent == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_table_alone_are_looked_up_by_torch(dtype, monkeypatch):
    """It copies them as we do, but for the bits of NaN; whatever else is asked for, and every error, is ours."""
    table, ids = values(5, 8, dtype=dtype), torch.tensor([[3, 1], [0, 4]])
    table[1, :2] = torch.tensor([float("inf"), -0.0])
    wanted = functional.embed(ids, table, dtype=table.dtype)
    looked_up = []
    monkeypatch.setattr(torch, "embedding", lambda *given: looked_up.append(1) or torch.ops.aten.embedding(*given))
    for one in (ids, ids.int()):
        for given in ({}, {"frozen_idx": 1}, {"sparse": True}):
            assert torch.equal(functional.embed(one, table, **given).view(torch.uint8), wanted.view(torch.uint8))
    assert len(looked_up) == 6
    for given in ({"scale": 2.0}, {"padding_idx": 1}, {"token_types": (ids % 2, table)}, {"mask": ids > 0}):
        assert not torch.equal(functional.embed(ids, table, **given).view(torch.uint8), wanted.view(torch.uint8))
    for given, error in (({"offset": 3}, ValueError), ({"frozen_idx": 5}, ValueError), ({"seq_len": -1}, ValueError)):
        with pytest.raises(error, match="embed"):
            functional.embed(ids, table, **given)
    assert len(looked_up) == 6
    for bad in (5, -1):
        with pytest.raises(IndexError, match=rf"embed: ids must lie in \[0, 5\), got {bad} at index"):
            functional.embed(torch.tensor([0, bad]), table)
