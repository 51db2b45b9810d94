"""Graphs of a GPU: a step that was captured once runs again with new positions, offsets and ids, and reads nothing that was given up."""

from __future__ import annotations

import cases
import numpy as np
import pytest

import fastpe
from fastpe import ALiBi, Learned, Rotary, Sinusoidal, T5Bias, scaling


def captured(step):
    """The graph of a call, made as usual: once before the capture, so that all is loaded."""
    import cupy

    stream = cupy.cuda.get_current_stream()
    step()
    stream.begin_capture()
    step()
    return stream.end_capture()


PLACES = {
    "positions_int64": ("positions", lambda step: np.array([step, 7 * step + 1, 1000 - step])[:, None]),
    "positions_int32": ("positions", lambda step: np.array([step, 7 * step + 1, -step], np.int32)[:, None]),
    "positions_float32": ("positions", lambda step: np.array([step + 0.375, 1e9, np.nan], np.float32)[:, None]),
    "positions_float64": ("positions", lambda step: np.array([step / 3, -1e9 / 7, 2.0**31])[:, None]),
    "offset_int64": ("offset", lambda step: np.array([step, 2**31 - 1 - step, 5])),
    "offset_int32": ("offset", lambda step: np.array([step, 3 * step, 77], np.int32)),
    "mask": ("mask", lambda step: np.array([[True], [step % 2 == 0], [False]])),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_step_of_decoding_is_replayed_with_new_positions(device, place):
    """One row of three sequences, added to and rotated: the bits of a GPU that calls anew, which are the CPU's."""
    name, at = PLACES[place]
    x, q, k = (
        cases.random((3, 1, 24), "float32"),
        cases.random((3, 4, 1, 16), "bfloat16"),
        cases.random((3, 2, 1, 16), "bfloat16"),
    )
    given, there, queries, keys = (device.array(one) for one in (at(0), x, q, k))

    def step():
        fastpe.add_encoding(there, Sinusoidal(), **{name: given})
        fastpe.apply_rotary(queries, keys, Rotary(), **{name: given})

    graph = captured(step)
    for number in (1, 2, 30):
        for array, values in ((given, at(number)), (there, x), (queries, q), (keys, k)):
            array._host[...] = values
        graph.launch()
        is_real = np.isfinite(np.asarray(at(number), np.float64)) & (np.asarray(at(number), np.float64) < 2.0**31)
        if not is_real.all():  # on the host an error, on a GPU a row of NaN
            assert np.isnan(device.host(there)[~is_real[:, 0]]).all()
        kept = slice(None) if is_real.ndim == 1 else is_real[:, 0]
        here = {name: at(number)[kept]}
        cases.assert_same_bits(device.host(there)[kept], fastpe.add_encoding(x[kept], Sinusoidal(), **here))
        for got, expected in zip((queries, keys), fastpe.apply_rotary(q[kept], k[kept], Rotary(), **here), strict=True):
            cases.assert_same_bits(device.host(got)[kept], expected)


def test_positions_of_many_rows_are_replayed(device):
    """A piece of a prefill: positions for each sequence, in any strides, with a mask beside them."""
    x, mask = cases.random((2, 9, 16), "float16"), np.arange(18).reshape(2, 9) % 4 != 1
    positions = np.arange(36, dtype=np.int32).reshape(2, 9, 2)
    there, given, protects = device.array(x), device.array(positions), device.array(mask)
    graph = captured(lambda: fastpe.add_encoding(there, Sinusoidal(), positions=given[:, :, 1], mask=protects))
    for more in (0, 5):
        there._host[...], given._host[...] = x, positions + more
        graph.launch()
        expected = fastpe.add_encoding(x.copy(), Sinusoidal(), positions=positions[:, :, 1] + more, mask=mask)
        cases.assert_same_bits(device.host(there), expected)


BOUNDARIES = [0, 3, 3, 11], [0, 1, 9, 11], [0, 0, 0, 11], [0, 11, 11, 11]


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("offset", [0, 2**31 - 11, np.array([5, -9, 1000]), np.array([7, 2**31 - 20, 3], np.int32)], ids=str)
def test_sequences_one_behind_the_other_are_replayed_with_new_lengths(device, kind, offset):
    """Serving's layout: kernels look for boundaries and offsets in the caller's memory; no launch makes a table of positions."""
    import simulated_cupy

    x, table, learned = (
        cases.random((1, 11, 24), "bfloat16"),
        cases.random((9, 16), "float32"),
        cases.random((40, 16), "float32", 2),
    )
    q, k = cases.random((11, 4 * 16), "float16"), cases.random((11, 2, 16), "float32")
    ids = np.arange(11, dtype=np.int32) % 9
    moves = isinstance(offset, np.ndarray)
    small = np.abs(offset) % 20

    def step(x, q, k, ids, table, learned, cuts, offset, small, outs):
        given = {"cu_seqlens": cuts, "offset": offset}
        fastpe.add_encoding(x, Sinusoidal(), **given)
        fastpe.apply_rotary(q, None, Rotary(), head_dim=16, seq_axis=0, **given)
        fastpe.apply_rotary(None, k, Rotary(interleaved=True), seq_axis=0, **given)
        fastpe.embed(ids, table, Sinusoidal(layout="concatenated"), out=outs[0], **given)
        fastpe.embed(ids, table, Learned(learned), out=outs[1], **{**given, "offset": small})

    def new(array, cuts):
        outs = [array(np.zeros((11, 16), np.float32)) for _ in range(2)]
        numbers = [array(one) if moves else one for one in (offset, small)]
        return [array(one) for one in (x, q, k, ids, table, learned, np.array(cuts, kind))], numbers, outs

    arrays, numbers, outs = new(device.array, BOUNDARIES[0])
    launches = len(simulated_cupy.launched)
    graph = captured(lambda: step(*arrays, *numbers, outs))
    assert not any(name.startswith("locate_rows") for name, *_ in simulated_cupy.launched[launches:])
    for cuts in BOUNDARIES:
        for array, values in zip(arrays, (x, q, k, ids, table, learned, np.array(cuts, kind)), strict=True):
            array._host[...] = values
        graph.launch()
        here, numbers_here, outs_here = new(np.copy, cuts)
        step(*here, *numbers_here, outs_here)
        for got, expected in zip([*arrays[:3], *outs], [*here[:3], *outs_here], strict=True):
            cases.assert_same_bits(device.host(got), expected)


BETWEEN = {
    "q_offset_int64": lambda step: {"q_offset": np.array([step, 3 * step])},
    "q_offset_int32": lambda step: {"q_offset": np.array([4 + step, 0], np.int32)},
    "q_positions_int32": lambda step: {"q_positions": np.array([step, 2, 9], np.int32)},
    "k_positions_int64": lambda step: {"k_positions": np.arange(10).reshape(2, 5) * (step + 1)},
    "both_uint64": lambda step: {
        "q_positions": np.arange(6, dtype=np.uint64).reshape(2, 3) + np.uint64(step),
        "k_positions": np.array([9, 1, step, 4, 4], np.uint64),
    },
}


@pytest.mark.parametrize("name", BETWEEN)
def test_a_bias_is_replayed_between_new_positions(device, name):
    """Slopes at positions where the caller has them, in any strides; T5's values are made anew by each call, which no graph would keep."""
    import simulated_cupy

    scores, at, table = cases.random((2, 4, 3, 5), "float32"), BETWEEN[name], cases.random((32, 4), "float32", 3)
    wide = {key: device.array(np.stack([value, value], -1)) for key, value in at(0).items()}
    given = {key: one[..., 1] for key, one in wide.items()}
    there, t5, launches = device.array(scores), T5Bias(device.array(table)), len(simulated_cupy.launched)
    graph = captured(lambda: fastpe.add_bias(there, ALiBi(4), causal=True, **given))
    for number in (0, 1, 700):
        there._host[...] = scores
        for key, values in at(number).items():
            wide[key]._host[...] = np.stack([values, values], -1)
        graph.launch()
        cases.assert_same_bits(device.host(there), fastpe.add_bias(scores.copy(), ALiBi(4), causal=True, **at(number)))
        again = fastpe.add_bias(device.array(scores), t5, **given)
        cases.assert_same_bits(device.host(again), fastpe.add_bias(scores.copy(), T5Bias(table), **at(number)))
    assert not any(name.startswith("locate_rows") for name, *_ in simulated_cupy.launched[launches:])


def test_positions_of_a_bias_that_are_none_make_rows_of_nan(device):
    scores = np.zeros((1, 2, 2, 3), np.float32)
    there = fastpe.add_bias(device.array(scores), ALiBi(2), q_positions=device.array(np.array([4, 2**31])))
    got = device.host(there)
    assert np.isnan(got[:, :, 1]).all()
    cases.assert_same_bits(got[:, :, :1], fastpe.add_bias(scores[:, :, :1].copy(), ALiBi(2), q_positions=[4]))
    with pytest.raises(ValueError, match=r"q_positions must lie in \[-2\^31, 2\^31\), got 2147483648"):
        fastpe.add_bias(there, ALiBi(2), q_positions=device.array(np.array([4, 2**31])), validate=True)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_embedding_is_replayed_with_new_ids(device, kind):
    """Ids and types of tokens as the caller has them; scales of a quantised table, which no call converts."""
    table, types = cases.random((9, 16), "float32"), cases.random((2, 16), "float32", 1)
    words, scales = np.arange(144, dtype=np.int8).reshape(9, 16), np.linspace(0.1, 2.0, 9, dtype=np.float32)
    ids, kinds = np.array([[3], [0]], kind), np.array([[1], [0]], kind)
    given = [device.array(one) for one in (ids, kinds, np.array([4, 9]), table, types, words, scales)]
    there = [device.array(np.zeros((2, 1, 16), np.float32)) for _ in range(3)]
    learned = cases.random((40, 16), "float32", 2)

    def step(ids, kinds, offset, table, types, words, scales, learned, outs):
        fastpe.embed(ids, table, Sinusoidal(), offset=offset, token_types=(kinds, types), out=outs[0])
        fastpe.embed(ids, words, None, row_scale=scales, out=outs[1])
        fastpe.embed(ids, table, Learned(learned), offset=offset, out=outs[2])

    rows = device.array(learned)
    graph = captured(lambda: step(*given, rows, there))
    for number in (1, 5):
        new = np.array([[number], [8 - number]], kind), np.array([[0], [1]], kind), np.array([number, 30])
        for array, values in zip(given[:3], new, strict=True):
            array._host[...] = values
        graph.launch()
        here = [np.zeros((2, 1, 16), np.float32) for _ in range(3)]
        step(*new, table, types, words, scales, learned, here)
        for got, expected in zip(there, here, strict=True):
            cases.assert_same_bits(device.host(got), expected)


def test_what_a_call_alone_would_own_is_refused_in_a_capture(device):
    """Each says what to pass instead; nothing is launched."""
    import cupy
    import simulated_cupy

    table, words = device.array(cases.random((9, 8), "float32")), device.array(np.ones((9, 8), np.int8))
    x, scores = device.array(np.zeros((2, 3, 8), np.float32)), device.array(np.zeros((1, 2, 3, 3), np.float32))
    ids, good = device.array(np.zeros((2, 3), np.int16)), device.array(np.zeros((2, 3), np.int32))
    scales = device.array(np.ones(18, np.float32)[::2])
    calls = [
        (lambda: fastpe.embed(ids, table), "ids of int16 are converted"),
        (lambda: fastpe.embed(good, table, padding_idx=0), "padding_idx makes a mask"),
        (lambda: fastpe.embed(good, words, row_scale=scales), "row_scale of float32 is converted"),
        (lambda: fastpe.add_encoding(x, positions=ids), "small integers"),
        (lambda: fastpe.add_encoding(x, cu_seqlens=device.array(np.array([0, 3], np.int16))), "small integers"),
        (lambda: fastpe.add_bias(scores, ALiBi(2), q_positions=device.array(np.arange(3, dtype=np.int16))), "small integers"),
    ]
    stream = cupy.cuda.get_current_stream()
    for call, text in calls:
        call()
        launches = len(simulated_cupy.launched)
        stream.begin_capture()
        with pytest.raises(RuntimeError, match=text):
            call()
        stream.end_capture()
        assert len(simulated_cupy.launched) == launches


# ---- tables of one length ----------------------------------------------------------------------------------------------------


def test_tables_of_a_length_are_bounded_and_nothing_waits_for_them(device, monkeypatch):
    """A rule that depends on the length has other frequencies at every step of decoding."""
    import simulated_cupy

    from fastpe._backends.cuda import tables

    monkeypatch.setattr(tables, "MOST_PASSING", 32)

    rope = Rotary(scaling=scaling.DynamicNTK(2.0, 16))
    q = cases.random((1, 2, 1, 16), "float32")
    fastpe.apply_rotary(device.array(q), None, rope, offset=3)
    simulated_cupy.synchronised.clear()
    live = len(simulated_cupy.memory.buffers)
    for step in range(20, 20 + 2 * tables.MOST_PASSING):
        there = device.array(q)
        fastpe.apply_rotary(there, None, rope, offset=step)
        cases.assert_same_bits(device.host(there), fastpe.apply_rotary(q.copy(), None, rope, offset=step))
    assert simulated_cupy.synchronised == []
    assert len(tables._passing) == tables.MOST_PASSING
    assert len(simulated_cupy.memory.buffers) < live + 3 * tables.MOST_PASSING


def test_tables_of_a_length_stay_for_a_graph(device, monkeypatch):
    from fastpe._backends.cuda import tables

    monkeypatch.setattr(tables, "MOST_PASSING", 32)

    rope = Rotary(scaling=scaling.DynamicNTK(2.0, 16))
    q = cases.random((1, 2, 1, 16), "float32")
    there, given = device.array(q), device.array(np.array([[3]]))
    graph = captured(lambda: fastpe.apply_rotary(there, None, rope, positions=given, seq_len=40))
    for step in range(2 * tables.MOST_PASSING):
        fastpe.apply_rotary(device.array(q), None, rope, offset=60 + step)
    there._host[...], given._host[...] = q, 39
    graph.launch()
    cases.assert_same_bits(device.host(there), fastpe.apply_rotary(q.copy(), None, rope, offset=39))


def test_numbers_of_the_host_stay_for_a_graph(device, monkeypatch):
    """By how much keys move, and where the rows of each sequence begin in a table: uploaded once, and not given up."""
    from fastpe._backends.cuda import tables

    monkeypatch.setattr(tables, "MOST_PASSING", 32)

    k, angles = cases.random((2, 2, 3, 16), "float32"), cases.random((2, 3, 8), "float64", 1)
    own = [np.cos(angles), np.sin(angles)]
    there, keys = device.array(k), device.array(k)
    table, host_table = (Rotary.tabulated(*(put(one) for one in own)) for put in (device.array, np.array))

    def step():
        fastpe.rerotate(there, [5, -7])
        fastpe.apply_rotary(None, keys, table)

    graph = captured(step)
    for number in range(2 * tables.MOST_PASSING):
        fastpe.rerotate(device.array(k), [number, 9])
    for array in (there, keys):
        array._host[...] = k
    graph.launch()
    cases.assert_same_bits(device.host(there), fastpe.rerotate(k.copy(), [5, -7]))
    cases.assert_same_bits(device.host(keys), fastpe.apply_rotary(None, k.copy(), host_table))
