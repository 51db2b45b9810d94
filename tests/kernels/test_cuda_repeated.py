"""Calls on a GPU that are like an earlier one: they launch without checks, and with the bits of a call that is checked."""

from __future__ import annotations

import cases
import ml_dtypes
import numpy as np
import pytest

import fastpe
from fastpe import Rotary, Sinusoidal, scaling
from fastpe._core import call_cache, operations

X, Q, K = cases.random((2, 3, 16), "float32"), cases.random((2, 4, 3, 8), "bfloat16"), cases.random((2, 1, 3, 8), "bfloat16")
FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
TABLE, IDS = cases.random((5, 16), "float32"), np.array([[0, 3, 1], [2, 2, 0]])
OFFSETS, POSITIONS = np.array([5, 2**31 - 9]), np.arange(6).reshape(2, 3)
PLACES = [
    {"offset": 3},
    {"offset": 40},
    {"offset": OFFSETS},
    {"offset": OFFSETS // 3},
    {"positions": POSITIONS},
    {"positions": POSITIONS * 9 - 1},
    {"positions": POSITIONS.astype(np.float32) + 0.25},
    {"positions": POSITIONS.astype(np.int32)[0]},
]


def verbs(array, place):
    """A call of every kind that is kept; every result is new."""
    given = {name: array(value) if isinstance(value, np.ndarray) else value for name, value in place.items()}
    narrow = [array(np.zeros(x.shape, FLOAT8)) for x in (Q, K, X, K)]
    made = array(np.zeros_like(X)), array(np.zeros_like(K))
    fastpe.apply_rotary(array(Q), array(K), Rotary(), out=tuple(narrow[:2]), out_scale=(0.5, 0.25), **given)
    fastpe.apply_rotary(None, array(K), Rotary(), out=narrow[3], out_scale=0.125, **given)
    fastpe.apply_rotary(array(K), None, Rotary(), out=made[1], **given)
    fastpe.embed(array(IDS), array(TABLE), Sinusoidal(), out=narrow[2], out_scale=0.5, **given)
    fastpe.embed(array(IDS), array(TABLE), Sinusoidal(), out=made[0], **given)
    return (
        *narrow,
        *made,
        fastpe.add_encoding(array(X), Sinusoidal(), **given),
        fastpe.add_encoding(array(X), Sinusoidal(), input_scale=2.0, out=array(np.zeros_like(X)), **given),
        *fastpe.apply_rotary(array(Q), array(K), Rotary(), **given),
        fastpe.apply_rotary(None, array(K), Rotary(interleaved=True), **given),
        fastpe.embed(array(IDS.astype(np.int32)), array(TABLE), Sinusoidal(), **given),
        fastpe.embed(array(IDS), array(TABLE), Sinusoidal(), scale=3.0, **given),
    )


def test_repeated_calls_have_the_same_bits(device, monkeypatch):
    for place in PLACES:
        verbs(device.array, place)
    for place in PLACES:
        with monkeypatch.context() as patch:
            for operation in (operations.Add, operations.Rotate, operations.Embed):
                patch.setattr(operation, "check", None)
            there = verbs(device.array, place)
        for got, expected in zip(there, verbs(np.copy, place), strict=True):
            cases.assert_same_bits(device.host(got), expected)


def test_what_a_repeated_call_must_look_at(device):
    """Alignment, offsets and overlap; nothing of what differs takes the kernel of another call."""
    import simulated_cupy

    raw = device.array(np.zeros(200, np.float32))
    whole, shifted = raw[:96].reshape(2, 3, 16), raw[1:97].reshape(2, 3, 16)
    for there in (whole, shifted, whole, shifted):
        before = device.host(there)
        fastpe.add_encoding(there)
        cases.assert_same_bits(device.host(there), fastpe.add_encoding(before))
    names = [name for name, _, _ in simulated_cupy.launched[-4:]]
    assert names == ["add_sinusoidal_f32_vec16_interleaved", "add_sinusoidal_f32_columns"] * 2
    with pytest.raises(ValueError, match=r"offset 2147483647 with 3 rows"):
        fastpe.add_encoding(whole, offset=2**31 - 1)
    out = raw[100:196].reshape(2, 3, 16)
    assert fastpe.add_encoding(whole, out=out) is out
    with pytest.raises(ValueError, match="partly overlaps x"):
        fastpe.add_encoding(whole, out=raw[4:100].reshape(2, 3, 16))
    odd = simulated_cupy.ndarray(np.ndarray((2, 3, 16), np.float32, raw._host, 2), raw._owner)
    with pytest.raises(ValueError, match="must be aligned to its elements"):
        fastpe.add_encoding(odd)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("name", ["positions", "offset", "cu_seqlens", "q_positions"])
def test_positions_must_be_aligned_in_every_call(device, name, kind):
    """A first call, one like an earlier one, and one that reads them back: the same error, and nothing is written."""
    import simulated_cupy

    values = {"positions": [[4, 5, 6], [1, 9, 2]], "offset": [7, 3], "cu_seqlens": [0, 2, 3], "q_positions": [5, 4]}[name]
    if name != "positions" and kind in (np.float32, np.float64):
        pytest.skip("integers only")
    size = np.dtype(kind).itemsize * np.size(values)
    raw, x = device.array(np.zeros(size + 8, np.uint8)), device.array(X)
    good, bad = (simulated_cupy.ndarray(np.ndarray(np.shape(values), kind, raw._host, at), raw._owner) for at in (0, 2))
    scores = device.array(np.zeros((2, 2, 2, 3), np.float32))

    def call(at, **options):
        if name == "q_positions":
            return fastpe.add_bias(scores, fastpe.ALiBi(2), q_positions=at, **options)
        return fastpe.add_encoding(x, Sinusoidal(), **{name: at}, **options)

    for options in ({}, {}, {"validate": True}):
        good._host[...] = values
        before, launches = device.host(call(good, **options)), len(simulated_cupy.launched)
        with pytest.raises(ValueError, match=f"{name} on a GPU must be aligned to its elements, got .* Pass a copy"):
            call(bad, **options)
        assert len(simulated_cupy.launched) == launches
        cases.assert_same_bits(device.host(scores if name == "q_positions" else x), before)


def test_a_repeated_call_may_not_write_what_it_reads(device):
    """Every two of the arrays are looked at; a pair of results is no single one."""
    raw = device.array(np.zeros(2000, np.float32))
    q, k, q_out, k_out = (raw[begin : begin + 192].reshape(2, 4, 3, 8) for begin in (0, 400, 800, 1200))
    table, ids, out = raw[1600:1680].reshape(5, 16), device.array(IDS.astype(np.int32)), raw[0:96].reshape(2, 3, 16)
    shifted = raw[4:196].reshape(2, 4, 3, 8)
    for _ in range(2):
        fastpe.apply_rotary(q, k, Rotary(), out=(q_out, k_out))
        fastpe.apply_rotary(q, None, Rotary(), out=q_out)
        fastpe.embed(ids, table, Sinusoidal(), out=out)
        fastpe.apply_rotary(q, k, Rotary())
        for wrong in ((q_out, shifted), (k, k_out), (q_out, q_out), (shifted, k_out)):
            with pytest.raises(ValueError, match="must lie apart"):
                fastpe.apply_rotary(q, k, Rotary(), out=wrong)
        with pytest.raises(ValueError, match="must lie apart"):
            fastpe.apply_rotary(q, shifted, Rotary())
        with pytest.raises(TypeError, match="out must be a pair"):
            fastpe.apply_rotary(q, k, Rotary(), out=q_out)
        with pytest.raises(TypeError, match="out must be"):
            fastpe.apply_rotary(q, None, Rotary(), out=(q_out,))
        with pytest.raises(ValueError, match="overlaps"):
            fastpe.embed(ids, table, Sinusoidal(), out=raw[1590:1686].reshape(2, 3, 16))
        assert fastpe.apply_rotary(q, None, Rotary(), out=q) is q
    with pytest.raises(ValueError, match="out_scale"):
        fastpe.apply_rotary(q, k, Rotary(), out_scale=2.0)


def test_what_is_not_kept(device):
    """Masks, lengths of rules, converted positions and learned tables, of which each call says anew what they are."""
    x, learned = device.array(X), device.array(cases.random((9, 16), "float32"))
    call_cache.clear()
    fastpe.add_encoding(x, mask=device.array(np.ones(3, bool)))
    fastpe.add_encoding(x, positions=device.array(np.arange(3, dtype=np.int16)))
    fastpe.add_encoding(x, fastpe.Learned(learned))
    fastpe.add_encoding(x, validate=True)
    fastpe.apply_rotary(x, None, Rotary(scaling=scaling.DynamicNTK(2.0, 16)), seq_len=40)
    fastpe.encode(device.array(POSITIONS), 16)
    assert call_cache.entries == {}


def test_threads_repeat_one_call(device):
    """Each packs an argument block of its own, whenever it is interrupted."""
    x = device.array(X)
    call_cache.clear()
    fastpe.add_encoding(x)
    (entry,) = call_cache.entries.values()
    starts, prepared = [], entry.call
    _, *shape = prepared._variants[True]

    def launched(grid, block, arguments, stream=None):
        if not starts:  # another thread comes between this call's packing and its launch
            starts.append(None)
            fastpe.add_encoding(x, offset=9)
        starts.append(int(arguments[0]["start"][0]) >> 32)

    prepared._variants[True] = (launched, *shape)
    fastpe.add_encoding(x, offset=4)
    assert starts == [None, 9, 4]


def test_warmup_loads_every_function(device):
    """The driver loads a function when it is first used, which must not be in a capture."""
    import cupy
    import simulated_cupy

    simulated_cupy.loaded.clear()
    fastpe.warmup("float32", device=0)
    x, scores = device.array(X), device.array(np.zeros((1, 2, 3, 16), np.float32))
    calls = [
        lambda: fastpe.add_encoding(x),
        lambda: fastpe.apply_rotary(x),
        lambda: fastpe.embed(device.array(IDS.astype(np.int32)), device.array(TABLE), Sinusoidal()),
        lambda: fastpe.add_encoding(x, mask=device.array(np.ones(3, bool))),
        lambda: fastpe.add_encoding(x, fastpe.Learned(device.array(cases.random((9, 16), "float32")))),
        lambda: fastpe.add_bias(scores, fastpe.ALiBi(2)),
    ]
    launches = len(simulated_cupy.launched)
    for call in calls:
        call()
    used = {name for name, _, _ in simulated_cupy.launched[launches:]}
    assert used <= set(simulated_cupy.loaded)
    # Embed has six sets of definitions with the same names; others for rows have two, one of which counts masks.
    assert len(simulated_cupy.loaded) == len({*simulated_cupy.loaded}) + 3 * 5 + 3 * 4
    assert cupy.cuda.get_current_stream().captured is None
