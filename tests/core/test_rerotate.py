"""rerotate and convert_layout: keys that move, weights of another layout."""

from __future__ import annotations

import cases
import numpy as np
import pytest
from rotary_cases import random, table

import fastpe
from fastpe import Rotary
from fastpe.scaling import DynamicNTK, YaRN


@pytest.mark.parametrize(
    "encoding", [None, Rotary(interleaved=True, rotary_dim=20), Rotary(xpos_scale_base=512, xpos_centre=3)]
)
def test_keys_move(encoding):
    k = random((2, 3, 9, 24), "float64")
    here = fastpe.apply_rotary(None, k.copy(), encoding, offset=100)
    for delta in (-100, 7, 0.5, np.int64(3), np.array([5, -20]), np.arange(18).reshape(2, 9)):
        steps = np.broadcast_to(
            np.asarray(delta).reshape(np.shape(delta) + (1,) * (2 - np.ndim(delta)) if np.ndim(delta) else (1, 1)), (2, 9)
        )
        expected = fastpe.apply_rotary(None, k.copy(), encoding, positions=100 + np.arange(9) + steps)
        moved = here.copy()
        assert fastpe.rerotate(moved, delta, encoding) is moved
        assert np.abs(moved - expected).max() < 1e-12
    out = np.empty_like(here)
    assert fastpe.rerotate(here, out=out) is out
    assert np.abs(out - here).max() < 1e-14
    cases.assert_same_bits(fastpe.rerotate(here.copy()), here)


def test_many_small_moves_in_sixteen_bits_decay():
    """Each is rounded, and slow pairs may never move; one move by the sum is as good as rotating there."""
    k = cases.random((1, 16, 128), "bfloat16")
    wanted = fastpe.apply_rotary(k.astype(np.float64), offset=512)
    fastpe.apply_rotary(k)
    once = fastpe.rerotate(k.copy(), 512)
    for _ in range(512):
        fastpe.rerotate(k, 1)

    def error(x):
        return np.mean(np.linalg.norm(x.astype(np.float64) - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1))

    assert error(once) < 0.004
    assert error(k) > 20 * error(once)


def test_keys_change_their_rule():
    old, new, k = Rotary(), Rotary(scaling=YaRN(8.0, 16)), random((2, 3, 9, 24), "float64")
    here = fastpe.apply_rotary(None, k.copy(), old, offset=50)
    found = fastpe.rerotate(here.copy(), source=old, target=new, offset=50)
    assert np.abs(found - fastpe.apply_rotary(None, k.copy(), new, offset=50)).max() < 1e-12
    found = fastpe.rerotate(here.copy(), -4, source=old, target=new, positions=50 + np.arange(9))
    assert np.abs(found - fastpe.apply_rotary(None, k.copy(), new, offset=46)).max() < 1e-12
    for before, after in (
        (Rotary(), Rotary(5e5)),
        (Rotary(5e5), Rotary()),
    ):  # slower frequencies and faster ones, between integers
        here = fastpe.apply_rotary(None, k.copy(), before, positions=np.arange(9) / 4)
        found = fastpe.rerotate(here, source=before, target=after, positions=np.arange(9) / 4)
        assert np.abs(found - fastpe.apply_rotary(None, k.copy(), after, positions=np.arange(9) / 4)).max() < 1e-12
    dynamic = Rotary(scaling=DynamicNTK(4.0, 16))
    here = fastpe.apply_rotary(None, k.copy(), dynamic, seq_len=40)
    grown = fastpe.rerotate(here.copy(), encoding=dynamic, seq_len=(40, 80))
    assert np.abs(grown - fastpe.apply_rotary(None, k.copy(), dynamic, seq_len=80)).max() < 1e-12
    mask = np.arange(9) > 3
    kept = fastpe.rerotate(here.copy(), 5, dynamic, seq_len=40, mask=mask)
    cases.assert_same_bits(kept[:, :, :4], here[:, :, :4])
    assert (kept[:, :, 4:] != here[:, :, 4:]).any()
    far = fastpe.apply_rotary(None, k.copy(), Rotary(5e5), offset=10**9)
    back = fastpe.rerotate(far, -(10**9), source=Rotary(5e5), target=Rotary(), offset=10**9)
    assert np.abs(back - fastpe.apply_rotary(None, k.copy())).max() < 1e-8  # 2^-64 turn a position


def test_positions_matter_only_to_a_new_rule():
    k = random((2, 4, 6, 16))
    moved = fastpe.rerotate(k.copy(), 3)
    for given in ({"offset": 70}, {"positions": np.arange(6) * 9}, {"cu_seqlens": [0, 2, 6]}):
        cases.assert_same_bits(fastpe.rerotate(k.copy(), 3, **given), moved)
        change = {"source": Rotary(), "target": Rotary(5e5)}
        assert (fastpe.rerotate(k.copy(), **change, **given) != fastpe.rerotate(k.copy(), **change)).any()
    mask = np.arange(6) < 4  # rows that it protects need no position
    masked = fastpe.rerotate(k.copy(), 3, mask=mask)
    cases.assert_same_bits(masked, np.where(mask[:, None], moved, k))
    for given in ({"offset": 2**31 - 4}, {"positions": np.where(mask, 5.0, np.nan)}):
        cases.assert_same_bits(fastpe.rerotate(k.copy(), 3, mask=mask, **given), masked)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"source": Rotary()}, ValueError, "source and target go together"),
        ({"source": Rotary(), "target": Rotary(), "encoding": Rotary()}, ValueError, "encoding contradicts source and target"),
        ({"source": Rotary(), "target": Rotary(interleaved=True)}, ValueError, "the same interleaved, got False and True"),
        ({"encoding": Rotary(scaling=DynamicNTK(2.0, 4))}, ValueError, "seq_len must be given"),
        ({"encoding": Rotary(), "seq_len": (1, 2, 3)}, ValueError, "one length or a pair"),
        ({"delta": np.arange(5)}, ValueError, r"delta must be one number or have shape \(2,\) or \(2, 6\), got shape \(5,\)"),
        ({"delta": np.nan}, ValueError, "finite"),
        ({"delta": "far"}, TypeError, "delta must be a number"),
        ({"delta": 1, "positions": np.arange(5)}, ValueError, r"positions must have shape \(6,\) or \(2, 6\)"),
        ({"delta": 1, "positions": np.arange(6), "offset": 3}, ValueError, "positions and offset contradict each other"),
        ({"delta": 1, "cu_seqlens": [0, 7]}, ValueError, "end at T, got last value 7 for T = 6"),
        ({"encoding": Rotary.tabulated(*table())}, TypeError, "encoding must be a Rotary"),
    ],
)
def test_bad_moves(given, error, text):
    k = random((2, 4, 6, 16))
    before = k.copy()
    with pytest.raises(error, match=text):
        fastpe.rerotate(k, **given)
    cases.assert_same_bits(k, before)


@pytest.mark.parametrize("partial", [{}, {"rotary_dim": 6}, {"rotary_dim": 4, "rotary_offset": 2}])
def test_converted_weights_give_the_same_scores(partial):
    """Queries and keys of one layout, and those of permuted projections in the other."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((2, 7, 20))
    wq, wk = rng.standard_normal((4 * 8, 20)), rng.standard_normal((2 * 8, 20))
    scores = []
    for interleaved in (True, False):
        if not interleaved:
            wq, wk = (fastpe.convert_layout(w, "interleaved", "half", 8, **partial) for w in (wq, wk))
        q, k = ((hidden @ w.T).reshape(2, 7, -1, 8) for w in (wq, wk))
        fastpe.apply_rotary(q, k, Rotary(interleaved=interleaved, **partial), seq_axis=-3)
        scores.append(np.einsum("bihd,bjhd->bhij", q[:, :, ::2], k))
    assert np.abs(scores[0] - scores[1]).max() < 1e-12
    w = rng.standard_normal((16, 3))
    there = fastpe.convert_layout(w, "half", "interleaved", 8, **partial)
    cases.assert_same_bits(fastpe.convert_layout(there, "interleaved", "half", 8, **partial), w)
    assert (there != w).any()
    bias = np.arange(16)
    assert (fastpe.convert_layout(bias, "half", "half", 8) == bias).all()
    for bad, text in (
        ((w, "half", "round", 8), "to must be one of"),
        ((w, "half", "half", 5), "a multiple of"),
        ((w, "half", "half", 0), "head_dim"),
    ):
        with pytest.raises(ValueError, match=text):
            fastpe.convert_layout(*bad)
    with pytest.raises(TypeError, match="weights must be a NumPy or CuPy array"):
        fastpe.convert_layout([1, 2], "half", "half", 2)
