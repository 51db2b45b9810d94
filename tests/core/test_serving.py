"""Shapes of servers: a part of a head and a shared key in one call, chunks of a prompt, trees of draft tokens."""

from __future__ import annotations

import cases
import numpy as np
import pytest
from rotary_cases import random

import fastpe
from fastpe import Rotary
from fastpe.scaling import YaRN

MLA = Rotary(interleaved=True, scaling=YaRN(40.0, 4096, mscale=1.0, mscale_all_dim=1.0))


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(
    "given", [{"offset": 700}, {"offset": np.array([3, 9000])}, {"positions": np.arange(10).reshape(2, 5)}]
)
def test_a_part_of_each_query_and_one_key_for_all_heads(platform, dtype, given):
    """DeepSeek's: the last channels of wider arrays, of which the others stay as they are."""
    q, latent = random((2, 5, 6, 40), dtype), random((2, 5, 72), dtype, 1)
    q_pe, k_pe = q[..., 24:].copy(), latent[:, :, None, 56:].copy()
    fastpe.apply_rotary(q_pe, None, MLA, seq_axis=-3, **given)
    fastpe.apply_rotary(None, k_pe, MLA, seq_axis=-3, **given)
    own_q, own_latent = platform.array(q), platform.array(latent)
    parts = own_q[..., 24:], own_latent[:, :, None, 56:]
    assert fastpe.apply_rotary(*parts, MLA, seq_axis=-3, **platform.arguments(given))[1] is parts[1]
    cases.assert_same_bits(platform.host(own_q), np.concatenate([q[..., :24], q_pe], axis=-1))
    cases.assert_same_bits(platform.host(own_latent), np.concatenate([latent[..., :56], k_pe[:, :, 0]], axis=-1))


def test_heads_before_rows():
    """(B, H, T, D) and a key with an axis of one head."""
    q, latent = random((2, 6, 5, 40)), random((2, 5, 72), seed=1)
    by_rows = q.swapaxes(1, 2).copy(), latent.copy()
    fastpe.apply_rotary(by_rows[0][..., 24:], by_rows[1][:, :, None, 56:], MLA, offset=9, seq_axis=-3)
    fastpe.apply_rotary(q[..., 24:], latent[:, None, :, 56:], MLA, offset=9)
    cases.assert_same_bits(q.swapaxes(1, 2), by_rows[0])
    cases.assert_same_bits(latent, by_rows[1])


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("size", [1, 7, 64, 100])
def test_chunks_have_the_bits_of_the_whole(platform, dtype, size):
    q, k = random((2, 100, 4, 32), dtype), random((2, 100, 2, 32), dtype, 1)
    whole = fastpe.apply_rotary(q.copy(), k.copy(), offset=5, seq_axis=-3)
    chunked = platform.array(q), platform.array(k)
    for start in range(0, 100, size):
        fastpe.apply_rotary(*(x[:, start : start + size] for x in chunked), offset=5 + start, seq_axis=-3)
    for got, expected in zip(chunked, whole, strict=True):
        cases.assert_same_bits(platform.host(got), expected)


def test_chunks_of_several_prompts_in_one_step():
    """Packed, each continuing where it was: one offset a sequence."""
    prompts = [random((n, 4, 32), seed=n) for n in (900, 116)]
    expected = [
        fastpe.apply_rotary(x.copy(), seq_axis=0)[slice(*cut)] for x, cut in zip(prompts, [(768, 900), (0, 116)], strict=True)
    ]
    packed = np.concatenate([prompts[0][768:900], prompts[1]])
    fastpe.apply_rotary(packed, cu_seqlens=[0, 132, 248], offset=[768, 0], seq_axis=0)
    cases.assert_same_bits(packed, np.concatenate(expected))


def test_a_tree_of_draft_tokens():
    """Each node stands at its depth: the branch that is accepted has the bits of plain decoding."""
    parents, lengths = [-1, 0, 0, 1, 1, 2, 5], np.array([17, 9000])
    depths = np.zeros(len(parents), np.int64)
    for node, parent in enumerate(parents[1:], start=1):
        depths[node] = depths[parent] + 1
    assert depths.tolist() == [0, 1, 1, 2, 2, 2, 3]
    k = random((2, 4, len(parents), 32))
    tree = fastpe.apply_rotary(None, k.copy(), positions=lengths[:, None] + depths)
    for leaf in (3, 4, 6):
        branch = [leaf]
        while parents[branch[0]] >= 0:
            branch.insert(0, parents[branch[0]])
        decoded = fastpe.apply_rotary(None, k[:, :, branch].copy(), offset=lengths)
        cases.assert_same_bits(tree[:, :, branch], decoded)
