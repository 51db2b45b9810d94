"""Heads that lie one behind the other in the last axis, as projections write them and servers pass them."""

from __future__ import annotations

import cases
import numpy as np
import pytest

import fastpe
from fastpe._core.operations import Rotate
from fastpe._core.run import run
from fastpe._core.where import Where

D = 8
ENCODING = fastpe.Rotary(rotary_dim=6)
WHERE = {
    "offset": {"offset": 3},
    "positions": {"positions": np.array([5, 0, 9, 2, 2])},
    "mask": {"mask": np.array([True, False, True, True, False])},
    "cu_seqlens": {"cu_seqlens": [0, 2, 5]},
}


def flat(*shape, dtype="float32", seed=0):
    return cases.random(shape, dtype, seed=seed)


def by_head(x):
    return x.reshape(*x.shape[:-1], -1, D)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("where", WHERE)
def test_heads_of_tokens(where, dtype):
    """(tokens, heads * D) with fewer heads of k, as vLLM's layers have them."""
    q, k = flat(5, 4 * D, dtype=dtype), flat(5, 2 * D, dtype=dtype, seed=1)
    expected = [by_head(x.copy()) for x in (q, k)]
    for one in expected:
        fastpe.apply_rotary(one, None, ENCODING, seq_axis=0, **WHERE[where])
    for _ in range(2):  # checked, and repeated
        got = q.copy(), k.copy()
        result = fastpe.apply_rotary(*got, ENCODING, head_dim=D, **WHERE[where])
        assert result[0] is got[0]
        assert result[1] is got[1]
        for one, wanted in zip(got, expected, strict=True):
            cases.assert_same_bits(by_head(one), wanted)


@pytest.mark.parametrize("seq_axis", [0, 1, -2])
def test_sequences_differ_along_the_batch_not_along_heads(seq_axis):
    q = flat(3, 3, 3 * D)  # as many heads as sequences and rows
    axis = seq_axis if seq_axis >= 0 else -3
    for where in ({"positions": np.array([[0, 1, 2], [5, 6, 7], [2, 1, 0]])}, {"offset": [3, 0, 8]}):
        expected = by_head(q.copy())
        fastpe.apply_rotary(expected, None, seq_axis=axis, **where)
        out = np.zeros_like(q)
        assert fastpe.apply_rotary(q, None, head_dim=D, seq_axis=seq_axis, out=out, **where) is out
        cases.assert_same_bits(by_head(out), expected)
        cases.assert_same_bits(by_head(fastpe.apply_rotary(q.copy(), head_dim=D, seq_axis=seq_axis, **where)), expected)


def test_slices_of_packed_rows():
    qkv = flat(2, 5, 6 * D)
    expected = by_head(qkv.copy())
    fastpe.apply_rotary(expected[:, :, :3], expected[:, :, 3:5], seq_axis=-3)
    fastpe.apply_rotary(qkv[..., : 3 * D], qkv[..., 3 * D : 5 * D], head_dim=D)
    cases.assert_same_bits(by_head(qkv), expected)


def test_a_backward_order_of_channels():
    q = flat(5, 4 * D)
    expected = fastpe.apply_rotary(by_head(q[:, ::-1].copy()), seq_axis=0)
    fastpe.apply_rotary(q[:, ::-1], head_dim=D)
    cases.assert_same_bits(by_head(q[:, ::-1].copy()), expected)


def test_inverse_and_rerotate():
    k = flat(5, 2 * D)
    turned = fastpe.apply_rotary(k.copy(), head_dim=D, offset=100)
    wanted = fastpe.rerotate(by_head(turned.copy()), -90, seq_axis=0)
    cases.assert_same_bits(by_head(fastpe.rerotate(turned.copy(), -90, head_dim=D)), wanted)
    fastpe.apply_rotary(turned, head_dim=D, offset=100, inverse=True)
    np.testing.assert_allclose(turned, k, atol=1e-6)


def test_a_call_with_another_head_dim_is_another_call():
    q = flat(5, 4 * D)
    for head_dim in (D, 2 * D, 4 * D, D):
        expected = fastpe.apply_rotary(q.copy().reshape(5, -1, head_dim), seq_axis=0).reshape(q.shape)
        for _ in range(2):
            cases.assert_same_bits(fastpe.apply_rotary(q.copy(), head_dim=head_dim), expected)


def test_parts_have_the_bits_of_the_whole():
    q = flat(2, 7, 4 * D)
    whole = fastpe.apply_rotary(q.copy(), head_dim=D, offset=[3, 40])
    operation, where = Rotate(fastpe.Rotary(), head_dim=D), Where([3, 40])
    for batch in range(2):
        for first, last in ((0, 3), (3, 7)):
            part, place = operation.part(where, q.shape, ((batch, batch + 1), (first, last), (0, 4 * D)))
            run(part, (q[batch : batch + 1, first:last], None), place)
    cases.assert_same_bits(q, whole)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda q, k: fastpe.apply_rotary(q, k),
            ValueError,
            "apply_rotary: q and k must have heads of the same width D, got 32 and 16. "
            "Where the last axis holds several heads, give head_dim=.",
        ),
        (
            lambda q, k: fastpe.apply_rotary(q, k, head_dim=12),
            ValueError,
            "the last axis of q must hold whole heads of head_dim = 12, got shape (5, 32)",
        ),
        (lambda q, k: fastpe.apply_rotary(q, k, head_dim=32), ValueError, "the last axis of k must hold whole heads"),
        (lambda q, k: fastpe.apply_rotary(q, k, head_dim=0), ValueError, "head_dim must be at least 1, got 0"),
        (lambda q, k: fastpe.apply_rotary(q, k, head_dim=8.0), TypeError, "head_dim must be an integer"),
        (lambda q, k: fastpe.apply_rotary(q, k, head_dim=True), TypeError, "head_dim must be an integer"),
        (
            lambda q, k: fastpe.rerotate(k, 1, head_dim=5),
            ValueError,
            "the last axis of k must hold whole heads of head_dim = 5",
        ),
        (lambda q, k: fastpe.apply_rotary(q, head_dim=8, out=by_head(q) * 0), ValueError, "out must have shape (5, 32)"),
    ],
)
def test_errors(call, error, text):
    q, k = flat(5, 4 * D), flat(5, 2 * D)
    before = q.copy(), k.copy()
    with pytest.raises(error) as caught:
        call(q, k)
    assert text in str(caught.value)
    for one, wanted in zip((q, k), before, strict=True):
        cases.assert_same_bits(one, wanted)


def test_heads_after_rows_are_told_where_shapes_tell_them():
    """(B, T, H, D) with fewer heads in k, and the axis of the default."""
    q, k = np.zeros((2, 5, 4, D), np.float32), np.zeros((2, 5, 2, D), np.float32)
    text = r"same number of rows T, got 4 and 2. Where heads come after rows, \(..., T, H, D\), give seq_axis=-3."
    with pytest.raises(ValueError, match=text):
        fastpe.apply_rotary(q, k)
