"""Calls on tensors like an earlier one: the bits of the first, and everything that must be looked at every time."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastpe  # noqa: E402
from fastpe._core import call_cache  # noqa: E402
from fastpe.torch import _repeat  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_known():
    call_cache.clear()


@pytest.fixture
def hits(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call on tensors that has a key was a known one."""
    found: list[bool] = []
    repeat = _repeat.repeat

    def noted(*arguments: Any) -> Any:
        result = repeat(*arguments)
        found.append(result is not call_cache.MISS)
        return result

    monkeypatch.setattr(_repeat, "repeat", noted)
    return found


def values(*shape: int, seed: int = 0) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32))


DTYPES = ("float16", "bfloat16", "float32", "float64")


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_encoding_again(dtype, hits):
    for offset in (0, 5, -7, 2**31 - 3):
        x = values(2, 3, 8, seed=offset & 7).to(getattr(torch, dtype))
        expected, version = x.clone().unsqueeze(0).squeeze(0), x._version
        call_cache.clear()
        fastpe.add_encoding(expected, offset=offset)
        fastpe.add_encoding(torch.zeros_like(x))  # known from here on
        hits.clear()
        assert fastpe.add_encoding(x, offset=offset) is x
        assert hits == [True]
        assert x._version == version + 1
        assert torch.equal(x.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", ["qk", "q", "k"])
def test_apply_rotary_again(dtype, which, hits):
    def pair(seed: int) -> list[Any]:
        q, k = (values(2, heads, 3, 8, seed=seed).to(getattr(torch, dtype)) for heads in (4, 2))
        return [q if "q" in which else None, k if "k" in which else None]

    first, again = pair(1), pair(1)
    fastpe.apply_rotary(*first, offset=9)
    result = fastpe.apply_rotary(*again, offset=9)
    assert hits == [False, True]
    for x, expected in zip(again, first, strict=True):
        if x is not None:
            assert torch.equal(x, expected)
            assert x._version == 1
    alone = [x for x in again if x is not None]
    assert result is alone[0] if len(alone) == 1 else all(a is b for a, b in zip(result, alone, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_embed_again(dtype, hits):
    ids, table = torch.tensor([[3, 1], [0, 4]]), values(5, 8).to(getattr(torch, dtype))
    first = fastpe.embed(ids, table, "sinusoidal", scale=2.0, offset=3)
    again = fastpe.embed(ids.clone(), torch.nn.Parameter(table, requires_grad=False), "sinusoidal", scale=2.0, offset=3)
    if dtype != "bfloat16":  # whose result is a view of NumPy's memory, made by the longer way
        assert hits == [False, True]
    assert again.dtype is table.dtype
    assert torch.equal(first, again)
    with pytest.raises(IndexError, match=r"embed: ids must lie in \[0, 5\).*got 5 at \(1, 0\)|embed: .*5"):
        fastpe.embed(torch.tensor([[3, 1], [5, 4]]), table, "sinusoidal", scale=2.0, offset=3)
    with pytest.raises(ValueError, match="offset"):
        fastpe.embed(ids, table, scale=2.0) is not None and fastpe.embed(ids, table, scale=2.0, offset=3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_add_bias_again(dtype, causal, hits):
    bias, buffer = fastpe.Kerple([0.5, 2.0], [0.3, 0.7]), torch.zeros(3, 2, 1, 190, dtype=getattr(torch, dtype))
    for keys in (33, 33, 34, 190, 5):
        made = values(3, 2, 1, keys, seed=keys).to(buffer.dtype)
        for scores in (made.clone(), buffer[..., :keys].copy_(made)):
            version, offset = scores._version, None if keys > 33 else 20
            wanted = fastpe.add_bias(made.clone(), bias, q_positions=[keys - 1 if offset is None else offset], causal=causal)
            assert fastpe.add_bias(scores, bias, q_offset=offset, causal=causal) is scores
            assert scores._version == version + 1
            assert torch.equal(scores.contiguous().view(torch.uint8), wanted.view(torch.uint8))
    assert hits == [False, False, *[True] * 4, False, True, True, True]  # 190 keys have a larger table


def test_a_known_bias_looks_at_what_can_change(hits):
    bias, scores = fastpe.ALiBi(2), values(3, 2, 4, 9)
    fastpe.add_bias(scores, bias)
    leaf = values(3, 2, 4, 9).requires_grad_()
    with pytest.raises(RuntimeError, match="leaf"):
        fastpe.add_bias(leaf, bias)
    inner = leaf * 2
    fastpe.add_bias(inner, bias, input_scale=3.0)
    inner.sum().backward()
    assert torch.equal(leaf.grad, torch.full_like(leaf, 6.0))
    negated = torch._neg_view(torch.ones(3, 2, 4, 9))
    with pytest.raises(TypeError, match="negates its memory"):
        fastpe.add_bias(negated, bias)
    with torch.inference_mode():
        made = torch.zeros(3, 2, 4, 9)
        fastpe.add_bias(made, bias)
    with pytest.raises(RuntimeError, match="inference tensor"):
        fastpe.add_bias(made, bias)
    before = scores.clone()
    for given in ({"q_offset": 2**31 - 3}, {"q_offset": True}, {"causal": 1}, {"validate": 0}, {"input_scale": "1"}):
        with pytest.raises((TypeError, ValueError)):
            fastpe.add_bias(scores, bias, **given)
    with pytest.raises((RuntimeError, TypeError), match=r"torch\.func|transforms"):
        torch.func.vmap(lambda one: fastpe.add_bias(one, bias))(torch.zeros(5, 3, 2, 4, 9))
    assert torch.equal(scores, before)
    assert True not in hits
    table = torch.zeros(32, 2)
    for turn in range(3):
        table.fill_(turn)
        assert (fastpe.add_bias(torch.zeros(3, 2, 4, 9), fastpe.T5Bias(table)) == turn).all()
    slopes = torch.nn.Parameter(torch.ones(2))
    for _ in range(2):
        with pytest.raises(RuntimeError):
            fastpe.add_bias(torch.zeros(3, 2, 4, 9, requires_grad=True), fastpe.ALiBi(2, slopes=slopes))
    assert True not in hits


def test_views_of_the_same_shape_are_other_calls(hits):
    x = values(2, 6, 8)
    fastpe.add_encoding(x[:, :3])
    view = x[:, ::2]
    expected = fastpe.add_encoding(view.numpy().copy())
    fastpe.add_encoding(view)
    assert hits == [False, False]
    cases.assert_same_bits(view.numpy(), expected)


def test_arguments_of_other_types_are_checked_anew(hits):
    x = values(2, 3, 8)
    fastpe.add_encoding(x)
    fastpe.apply_rotary(x)
    hits.clear()
    for call in (
        lambda: fastpe.add_encoding(x, seq_axis=-2.0),
        lambda: fastpe.add_encoding(x, input_scale="1"),
        lambda: fastpe.add_encoding(x, offset=True),
        lambda: fastpe.apply_rotary(x, inverse=0),
        lambda: fastpe.apply_rotary(x, offset=1.5),
        lambda: fastpe.add_encoding(x, validate=0),
    ):
        before = x.clone()
        with pytest.raises(TypeError):
            call()
        assert torch.equal(x, before)
    assert not any(hits)


@pytest.mark.parametrize("offset", [2**31 - 2, -(2**31) - 1, 2**70])
def test_positions_are_checked_every_time(offset):
    x = values(2, 3, 8)
    for verb in (fastpe.add_encoding, fastpe.apply_rotary):
        verb(x)
        before = x.clone()
        with pytest.raises(ValueError, match=r"offset|positions"):
            verb(x, offset=offset)
        assert torch.equal(x, before)


def test_tensors_that_stand_for_other_values():
    """Same dtype, shape and strides as a known call, but not the values of the memory."""
    known = torch.zeros(2, 3, 4)
    fastpe.add_encoding(known)
    imaginary = torch.zeros(2, 3, 4, dtype=torch.complex64).conj().imag
    assert imaginary.is_neg()
    contiguous = torch._neg_view(torch.ones(2, 3, 4))
    for x in (imaginary, contiguous):
        before = x.clone()
        with pytest.raises(TypeError, match="negates its memory"):
            fastpe.add_encoding(x)
        assert torch.equal(x, before)
    with torch.inference_mode():
        made = torch.zeros(2, 3, 4)
        fastpe.add_encoding(made)
    before = made.clone()
    with pytest.raises(RuntimeError, match="inference tensor"):
        fastpe.add_encoding(made)
    assert torch.equal(made, before)


def test_autograd_is_asked_every_time():
    x = torch.zeros(2, 3, 4)
    fastpe.add_encoding(x)
    leaf = torch.zeros(2, 3, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf"):
        fastpe.add_encoding(leaf)
    assert not leaf.any()
    inner = leaf * 1
    fastpe.add_encoding(inner, input_scale=3.0)
    fastpe.add_encoding(inner, input_scale=3.0)
    inner.sum().backward()
    assert torch.equal(leaf.grad, torch.full_like(leaf, 9.0))


def test_q_and_k_that_overlap_otherwise_than_before():
    memory = torch.zeros(2, 8, 3, 8)
    q, k = memory[:, :4], memory[:, 4:]  # interleaved with one another, and apart
    fastpe.apply_rotary(q, k)
    fastpe.apply_rotary(q, k)
    before = memory.clone()
    shifted = memory[:, 2:6]
    with pytest.raises(ValueError, match="apart"):
        fastpe.apply_rotary(q, shifted)
    with pytest.raises(ValueError, match="apart"):
        fastpe.apply_rotary(q, q)
    assert torch.equal(memory, before)


def test_transforms_do_not_reach_the_kernel():
    x = torch.zeros(2, 3, 4)
    fastpe.add_encoding(x)
    with pytest.raises((RuntimeError, TypeError), match=r"torch\.func|transforms"):
        torch.func.vmap(lambda row: fastpe.add_encoding(row))(torch.zeros(5, 2, 3, 4))


def test_forms_are_not_kept_without_end():
    for width in range(1, 2 * call_cache.MOST_ENTRIES):
        fastpe.add_encoding(torch.zeros(1, 1, width))
    assert 0 < len(call_cache.entries) <= call_cache.MOST_ENTRIES


def test_what_is_kept_owns_no_tensor():
    import weakref

    x = torch.zeros(2, 3, 4)
    fastpe.add_encoding(x)
    fastpe.apply_rotary(x)
    fastpe.embed(torch.zeros(2, 3, dtype=torch.int64), x[0])
    fastpe.add_bias(x, fastpe.ALiBi(2))
    gone = weakref.ref(x)
    del x
    assert gone() is None
