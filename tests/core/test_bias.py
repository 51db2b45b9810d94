"""Biases: what other projects compute, the formulas of the papers, and the verb on every element type, layout and kind of position."""

from __future__ import annotations

from pathlib import Path

import cases
import numpy as np
import pytest
import reference

import fastpe

DATA = np.load(Path(__file__).parents[1] / "data" / "biases.npz")
NEAR = 1e-6  # what float32 numbers of other projects, of the size of one, are off


def random_biases(heads=3):
    """One of each kind, and a function of (distances, queries) by the reference."""
    rng = np.random.default_rng(5)
    p, a = rng.uniform(0.1, 1.5, heads), rng.uniform(0.1, 0.9, heads)
    layers = [rng.standard_normal(shape) for shape in ((8, 1), 8, (heads, 8), heads)]
    slopes = reference.alibi_slopes(heads)
    biases = {
        "alibi": (fastpe.ALiBi(heads), lambda n, q: reference.alibi(slopes, n)),
        "alibi_symmetric": (fastpe.ALiBi(heads, symmetric=True), lambda n, q: reference.alibi(slopes, n, True)),
        "kerple_log": (fastpe.Kerple(p, a), lambda n, q: reference.kerple(p, a, n, "log")),
        "kerple_power": (fastpe.Kerple(p, a, "power"), lambda n, q: reference.kerple(p, a, n, "power")),
        "sandwich": (fastpe.Sandwich(heads), lambda n, q: reference.sandwich(heads, n)),
        "fire": (fastpe.FIRE(*layers, length=20), lambda n, q: reference.fire(*layers, 0.1, 20, n, q)),
    }
    for name, bidirectional in (("t5", True), ("t5_causal", False)):
        table = rng.standard_normal((32, heads)).astype(np.float32)
        rows = DATA[f"t5_bidir{int(bidirectional)}_nb32_md128"]
        biases[name] = (
            fastpe.T5Bias(table, bidirectional),
            lambda n, q, table=table, rows=rows: np.moveaxis(table[rows[2100 - np.clip(n, -2100, 2100)]], -1, 0),
        )
    table = rng.standard_normal((64, heads))
    rows = DATA["deberta_32_128"]
    biases["deberta"] = (
        fastpe.LogBuckets(table, max_distance=128),
        lambda n, q: np.moveaxis(table[np.clip(rows[np.clip(n, -1500, 1500) + 1500] + 32, 0, 63)], -1, 0),
    )
    near, own = rng.standard_normal((25, heads)), rng.standard_normal((28, heads))
    biases["relative"] = (fastpe.RelativeTable(near), lambda n, q: np.moveaxis(near[np.clip(n, -12, 12) + 12], -1, 0))
    biases["class_token"] = (
        fastpe.RelativeTable(own, class_token=True),
        lambda n, q: np.moveaxis(own[np.where(n <= 12, np.clip(n, -12, 12) + 12, 25 + (n > 25) + (n > 38))], -1, 0),
    )
    return biases


BIASES = random_biases()

# Ways to say where queries and keys stand: the arguments, and the positions by themselves, (Tq,) or (B, Tq), and (Tk,) or (B, Tk).
MODES = {
    "ends": lambda B, Tq, Tk: ({}, np.arange(Tk - Tq, Tk), np.arange(Tk)),
    "offset": lambda B, Tq, Tk: ({"q_offset": 7}, np.arange(7, 7 + Tq), np.arange(Tk)),
    "offset_behind": lambda B, Tq, Tk: ({"q_offset": -300}, np.arange(-300, Tq - 300), np.arange(Tk)),
    "offset_far": lambda B, Tq, Tk: ({"q_offset": 9000}, np.arange(9000, 9000 + Tq), np.arange(Tk)),
    "offsets": lambda B, Tq, Tk: (
        {"q_offset": np.arange(B) * 30 - 9},
        np.add.outer(np.arange(B) * 30 - 9, np.arange(Tq)),
        np.arange(Tk),
    ),
    "queries": lambda B, Tq, Tk: _given({"q_positions": np.random.default_rng(1).integers(-40, 90, Tq)}, Tk),
    "both": lambda B, Tq, Tk: _given(
        {
            "q_positions": np.random.default_rng(2).integers(-40, 90, (B, Tq)),
            "k_positions": np.random.default_rng(3).integers(0, 70, (B, Tk)),
        },
        Tk,
    ),
    "keys": lambda B, Tq, Tk: _keys(np.arange(Tk) // 2 * 3, Tq),
    "keys_by_sequence": lambda B, Tq, Tk: _keys(np.maximum(np.arange(Tk) - 2 * np.arange(B)[:, None], 0), Tq),
}


def _given(given, columns):
    return given, given["q_positions"], given.get("k_positions", np.arange(columns))


def _keys(keys, rows):
    if rows > keys.shape[-1]:
        return {"k_positions": keys, "q_offset": 3}, np.arange(3, 3 + rows), keys
    return {"k_positions": keys}, keys[..., keys.shape[-1] - rows :], keys


def expected(name, scores, queries, keys, causal=False, input_scale=1.0):
    """By the reference, as (B, H, Tq, Tk)."""
    n = queries[..., :, None] - keys[..., None, :]
    bias = BIASES[name][1](n, queries[..., :, None])
    bias = np.moveaxis(bias, 0, -3)
    return reference.add_bias(scores, bias, n[..., None, :, :] < 0 if causal else None, input_scale)


def assert_near(got, wanted, dtype):
    """-inf and NaN in the same places, and all else within the roundings of its type."""
    wide = got.astype(np.float64)
    assert (np.isneginf(wide) == np.isneginf(wanted)).all()
    finite = np.isfinite(wanted)
    cases.assert_close(np.where(finite, got, got.dtype.type(0)), np.where(finite, wanted, 0), dtype, amplitude=_slack(wanted))


def _slack(wanted):
    """The error of the arithmetic is relative to the larger summand, which is about the largest result."""
    return max(1.0, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)))


# ---- numbers of other projects -----------------------------------------------------------------------------------------------


def test_alibi_slopes():
    heads = [int(name.rpartition("_")[2]) for name in DATA if name.startswith("slopes_mpt")]
    assert len(heads) == 26
    for number in heads:
        slopes = np.array(fastpe.ALiBi(number).slopes_of)
        np.testing.assert_allclose(slopes, DATA[f"slopes_mpt_{number}"], rtol=1.2e-7)
        np.testing.assert_allclose(slopes, DATA[f"slopes_bloom_{number}"], rtol=8e-7)


@pytest.mark.parametrize("max_bias", [4, 8, 10.5])
def test_alibi_slopes_are_the_papers(max_bias):
    for number in range(1, 130):
        slopes = fastpe.ALiBi(number, max_bias).slopes_of
        np.testing.assert_allclose(slopes, reference.alibi_slopes(number, max_bias), rtol=1e-15)


def test_bloom_masked():
    mask = DATA["bloom_mask"].astype(np.int64)
    keys = (np.cumsum(mask, -1) - 1) * mask
    scores = np.zeros((3, 12, 1, 8), np.float32)
    fastpe.add_bias(scores, fastpe.ALiBi(12), q_positions=np.zeros(1, np.int64), k_positions=keys)
    np.testing.assert_allclose(scores, DATA["bloom_alibi"], rtol=NEAR)


def test_x_transformers_alibi():
    scores = np.zeros((6, 8, 12), np.float32)
    fastpe.add_bias(scores, fastpe.ALiBi(6, symmetric=True))
    np.testing.assert_array_equal(scores, DATA["x_transformers_alibi"])


T5_NAMES = [name for name in DATA if name.startswith("t5_bidir")]


@pytest.mark.parametrize("name", T5_NAMES)
def test_t5_buckets(name):
    bidirectional, buckets, max_distance = (int(part.lstrip("bidrnm")) for part in name.split("_")[1:])
    bias = fastpe.T5Bias(np.zeros((buckets, 2), np.float32), bool(bidirectional), max_distance)
    relative = DATA["t5_relative_position"]
    np.testing.assert_array_equal(bias.buckets(-relative), DATA[name])
    near, far = bias.reach
    ends = bias.buckets([far, far + 1, 10**9, near, near - 1, -(10**9)])
    assert len(set(ends[:3].tolist())) == len(set(ends[3:].tolist())) == 1


@pytest.mark.parametrize("name", [name for name in DATA if name.startswith(("deberta", "wavlm"))])
def test_log_buckets(name):
    rule, size, max_distance = name.split("_")
    rows = int(size) * (2 if rule == "deberta" else 1)
    bias = fastpe.LogBuckets(np.arange(rows, dtype=np.float64)[:, None], rule, int(max_distance))
    relative = DATA["log_relative_position"].astype(np.int64)
    distances = relative if rule == "deberta" else -relative
    np.testing.assert_array_equal(bias.buckets(distances), DATA[name])
    near, far = bias.reach
    ends = bias.rows([far, far + 1, 10**9, near, near - 1, -(10**9)])
    assert len(set(ends[:3].tolist())) == len(set(ends[3:].tolist())) == 1
    if rule == "deberta":  # the whole table is used
        assert set(bias.rows(np.arange(near, far + 1)).tolist()) >= {0, rows - 1}


def test_defaults_of_log_buckets():
    assert fastpe.LogBuckets(np.zeros((512, 1))).reach == (-512, 512)
    assert fastpe.LogBuckets(np.zeros((320, 1)), "wavlm").reach == (-800, 800)


@pytest.mark.parametrize("length", [16, 700])
def test_fire(length):
    bias = fastpe.FIRE(*(DATA[f"fire_{name}"] for name in ("w1", "b1", "w2", "b2")), c=0.1, length=DATA["fire_L"])
    scores = np.zeros((6, 8, length), np.float32)
    fastpe.add_bias(scores, bias)
    np.testing.assert_allclose(scores, DATA[f"fire_bias_{length}_last8rows"], atol=NEAR)


def test_fire_takes_absolute_values():
    layers = [DATA[f"fire_{name}"] for name in ("w1", "b1", "w2", "b2")]
    n, queries = np.arange(-20, 700), np.arange(720)
    plain = fastpe.FIRE(*layers, c=0.3, length=50.0).values(n, queries)
    for c, length in ((-0.3, 50.0), (0.3, -50.0), (-0.3, -50.0)):
        assert (fastpe.FIRE(*layers, c=c, length=length).values(n, queries) == plain).all()
    assert (fastpe.FIRE(*layers, c=0.2, length=50.0).values(n, queries) != plain).any()


def test_fire_takes_numbers_as_arrays_of_one():
    layers = [DATA[f"fire_{name}"] for name in ("w1", "b1", "w2", "b2")]
    numbers = fastpe.FIRE(*layers, c=0.25, length=50.0), fastpe.FIRE(*layers, c=np.array([0.25]), length=np.array([50.0]))
    one, other = (fastpe.add_bias(np.zeros((bias.heads, 3, 90), np.float32), bias) for bias in numbers)
    assert (one == other).all()


@pytest.mark.parametrize("name", BIASES)
def test_values_are_the_formulas(name):
    bias, formula = BIASES[name]
    n, queries = np.arange(-300, 1200), np.arange(1500)
    np.testing.assert_allclose(bias.values(n, queries), formula(n, queries), atol=1e-12, rtol=1e-12)


def test_kerple_clamps_as_its_code():
    for kind, largest in (("log", 3.0), ("power", 2.0)):
        bias = fastpe.Kerple([3.0, -1.0], [0.001, 0.5], kind)
        wanted = reference.kerple(np.array([largest, 0.01]), np.array([0.01, 0.5]), np.arange(20), kind)
        np.testing.assert_allclose(bias.values(np.arange(20)), wanted, rtol=1e-14)


# ---- the verb ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", BIASES)
def test_every_bias(name, dtype):
    for shape in ((2, 3, 5, 9), (1, 3, 1, 200), (2, 3, 70, 70), (2, 3, 50, 33)):
        for mode in ("ends", "offset", "both"):
            for causal in (False, True):
                scores = cases.random(shape, dtype)
                given, queries, keys = MODES[mode](shape[0], *shape[2:])
                wanted = expected(name, scores, queries, keys, causal, 0.5)
                assert fastpe.add_bias(scores, BIASES[name][0], causal=causal, input_scale=0.5, **given) is scores
                assert_near(scores, wanted, dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BIASES)
def test_positions(name, mode):
    for shape in ((3, 3, 6, 40), (2, 3, 40, 7)):
        scores = cases.random(shape, "float32")
        given, queries, keys = MODES[mode](shape[0], *shape[2:])
        for causal in (False, True):
            got = fastpe.add_bias(scores.copy(), BIASES[name][0], causal=causal, **given)
            assert_near(got, expected(name, scores, queries, keys, causal), "float32")


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("view", cases.VIEWS)
def test_views(view, dtype):
    """The bits do not depend on the layout, nor on whether the result goes elsewhere."""
    bias = BIASES["t5"][0]
    for shape in ((2, 3, 17, 40), (2, 3, 40, 33)):
        x = cases.random(shape, dtype)
        for given in ({"causal": True}, {}, {"q_positions": np.arange(shape[2]) * 2, "causal": True}):
            wanted = fastpe.add_bias(x.copy(), bias, **given)
            there = cases.VIEWS[view](x)
            assert fastpe.add_bias(there, bias, **given) is there
            cases.assert_same_bits(np.array(there), wanted)
            out = cases.VIEWS[view](np.zeros_like(x))
            source = cases.VIEWS[view](x)
            assert fastpe.add_bias(source, bias, out=out, **given) is out
            cases.assert_same_bits(np.array(out), wanted)
            cases.assert_same_bits(np.array(source), x)


def test_ways_of_giving_positions_have_the_same_bits():
    """Counted, by a table, by formula, row by row: rounded once from the same float64."""
    x = cases.random((2, 3, 30, 50), "float32")
    for bias, _ in BIASES.values():
        for causal in (False, True):
            wanted = fastpe.add_bias(x.copy(), bias, causal=causal)
            for given in (
                {"q_offset": 20},
                {"q_offset": [20, 20]},
                {"q_positions": range(20, 50)},
                {"k_positions": np.arange(50, dtype=np.int32)},
                {"q_positions": np.arange(20, 50) + 10**6, "k_positions": np.tile(np.arange(50) + 10**6, (2, 1))},
            ):
                if bias.normalises and "q_positions" in given and "k_positions" in given:
                    continue  # another query, another normaliser
                cases.assert_same_bits(fastpe.add_bias(x.copy(), bias, causal=causal, **given), wanted)


@pytest.mark.parametrize("name", BIASES)
def test_positions_that_span_everything(name):
    """No table holds what lies 2^32 apart."""
    queries = np.array([0, 5, 2**31 - 1, -(2**31), 77])
    keys = np.array([[0, 2**31 - 1, -(2**31), 3, 70], [1, 2, 3, 4, -5]])
    scores = cases.random((2, 3, 5, 5), "float64")
    got = fastpe.add_bias(scores.copy(), BIASES[name][0], q_positions=queries, k_positions=keys, causal=True)
    n = queries[:, None] - keys[:, None, :]
    bias = np.moveaxis(BIASES[name][0].values(n, queries[:, None]), 0, 1)
    wanted = reference.add_bias(scores, bias, n[:, None] < 0)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_extra_axes():
    """The first axis is the batch; all further ones before the heads have its positions."""
    x = cases.random((2, 4, 5, 3, 6, 8), "float32")
    bias = BIASES["kerple_log"][0]
    for given, queries in (({}, np.arange(2, 8)), ({"q_offset": np.array([2, 9])}, np.add.outer([2, 9], np.arange(6)))):
        got = fastpe.add_bias(np.swapaxes(x, 1, 2).copy().swapaxes(1, 2), bias, **given)
        flat = fastpe.add_bias(x[:, 0, 0].copy(), bias, **given)
        cases.assert_same_bits(np.ascontiguousarray(got[:, 0, 0]), flat)
        n = queries[..., :, None] - np.arange(8)
        value = np.moveaxis(bias.values(n), 0, -3)
        if value.ndim == 4:
            value = value[:, None, None]
        np.testing.assert_allclose(got, x + value, atol=1e-6)


def test_three_axes_and_empty_scores():
    x = cases.random((3, 4, 6), "float32")
    got = fastpe.add_bias(x.copy(), BIASES["alibi"][0])
    cases.assert_same_bits(got, fastpe.add_bias(x[None].copy(), BIASES["alibi"][0])[0])
    for shape in ((0, 3, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)):
        for bias, _ in BIASES.values():
            empty = np.zeros(shape, np.float32)
            assert fastpe.add_bias(empty, bias) is empty


def test_causal_hides_whatever_was_there():
    future = ~np.tri(4, dtype=bool)
    x = np.where(future, np.float32(np.nan), np.ones((1, 3, 4, 4), np.float32))
    for given in ({}, {"k_positions": np.arange(4)}):
        got = fastpe.add_bias(x.copy(), BIASES["alibi"][0], causal=True, **given)
        assert np.isneginf(got[:, :, future]).all()
        assert np.isfinite(got[:, :, ~future]).all()


def test_nothing_is_fused():
    """A product rounded before the sum."""
    x = np.full((1, 1, 1, 64), 1 + 2.0**-12, np.float32)
    table = np.full((8, 1), -1, np.float32)
    fastpe.add_bias(x, fastpe.T5Bias(table), input_scale=float(np.float32(1 + 2.0**-12)))
    wanted = np.float32(np.float32(1 + 2.0**-12) * np.float32(1 + 2.0**-12)) - np.float32(1)
    assert (x == wanted).all()


def test_a_table_may_change():
    table = np.zeros((32, 2), np.float32)
    bias = fastpe.T5Bias(table)
    assert not fastpe.add_bias(np.zeros((2, 3, 3), np.float32), bias).any()
    table[:] = 1
    assert (fastpe.add_bias(np.zeros((2, 3, 3), np.float32), bias) == 1).all()


def test_large_scores_on_threads():
    """More than one chunk, rows longer than what is asked for ahead, streamed -inf."""
    from fastpe._backends.host import chunking

    x = cases.random((2, 3, 300, 2100), "float32")
    wanted = expected("t5", x, np.arange(1800, 2100), np.arange(2100), True)
    got = fastpe.add_bias(x.copy(), BIASES["t5"][0], causal=True)
    assert_near(got, wanted, "float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "cache_bytes", lambda: 0)
        for dtype in cases.DTYPES:
            y = x.astype(cases.DTYPES[dtype])
            wanted = fastpe.add_bias(y[:, :, :, :].copy(), BIASES["t5"][0], causal=True)
            out = np.empty(y.size + 3, y.dtype)[3:].reshape(y.shape)  # no line begins with a row
            fastpe.add_bias(y, BIASES["t5"][0], causal=True, out=out)
            cases.assert_same_bits(out, wanted)


def test_many_threads_at_once():
    from concurrent.futures import ThreadPoolExecutor

    x, bias = cases.random((2, 3, 200, 700), "float32"), BIASES["alibi"][0]
    wanted = fastpe.add_bias(x.copy(), bias, causal=True)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: fastpe.add_bias(x.copy(), bias, causal=True), range(40)))
    for got in found:
        cases.assert_same_bits(got, wanted)


def test_little_memory():
    import tracemalloc

    x = np.zeros((1, 32, 512, 2048), np.float32)
    bias = fastpe.ALiBi(32)
    fastpe.add_bias(x[:, :, :4], bias)
    tracemalloc.start()
    fastpe.add_bias(x, bias)
    fastpe.add_bias(x, bias, causal=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
