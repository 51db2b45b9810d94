"""Calls that add a bias like an earlier one: what is skipped, what is not, that the results are the same, and that tables are given up."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cases
import numpy as np
import pytest

import fastpe
from fastpe._arrays import numpy as numpy_arrays
from fastpe._backends.host import chunking
from fastpe._core import bias_tables, call_cache, checks
from fastpe._core.operations import AddBias
from fastpe.encodings.bias import Bias

HEADS = 3
BIASES = {
    "alibi": fastpe.ALiBi(HEADS),
    "symmetric": fastpe.ALiBi(HEADS, symmetric=True, slopes=[0.5, 0.1, 0.3]),
    "kerple": fastpe.Kerple([0.5, 1.0, 2.0], [0.3, 0.2, 0.9]),
    "kerple_symmetric": fastpe.Kerple([0.5, 1.0, 2.0], [0.3, 0.2, 0.9], "power", True),
    "sandwich": fastpe.Sandwich(HEADS, 16),
}


@dataclass(frozen=True)
class Clipped(Bias):
    """A bias that ends on both sides."""

    near: int = -5
    far: int = 9
    heads = HEADS

    @property
    def reach(self):
        return self.near, self.far

    def evaluate(self, xp, distances, queries=None, **parameters):
        return np.clip(distances, self.near, self.far) * np.arange(1, HEADS + 1).reshape((-1,) + (1,) * distances.ndim) / 7


BIASES["clipped"] = Clipped()
BIASES["clipped_beside_a_table"] = Clipped(-129, 129)  # tables of up to 128 distances end one before


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    call_cache.clear()
    monkeypatch.setattr(bias_tables, "_tables", {})


@pytest.fixture
def hits(monkeypatch):
    """Whether each call that has a key was a known one."""
    found = []
    make, run = AddBias.key, call_cache.BiasEntry.run_host

    def noted_key(*arguments):
        key = make(*arguments)
        if key is not None:
            found.append(False)
        return key

    def noted_run(*arguments):
        result = run(*arguments)
        found[-1] = result is not call_cache.MISS
        return result

    monkeypatch.setattr(AddBias, "key", noted_key)
    monkeypatch.setattr(call_cache.BiasEntry, "run_host", noted_run)
    return found


def fresh(shape=(2, HEADS, 4, 9), dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(cases.DTYPES[dtype])


def expected_of(scores, bias, offset=None, **given):
    """The same by another way, that of given positions; ALiBi's slopes have it computed in the kernel."""
    queries, keys = scores.shape[-2:]
    start = keys - queries if offset is None else offset
    return fastpe.add_bias(scores.copy(), bias, q_positions=start + np.arange(queries), k_positions=np.arange(keys), **given)


# ---- the bits of the first call ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", BIASES)
def test_every_further_call_has_the_bits_of_the_first(name, dtype, causal, hits):
    scores, bias = fresh(dtype=dtype), BIASES[name]
    for offset in (None, 0, 7, -3, 100, -100, 1 << 20, 2**31 - 4, -(2**31), 5):
        wanted = expected_of(scores, bias, offset, causal=causal, input_scale=0.3)
        for _ in range(3):
            got = scores.copy()
            assert fastpe.add_bias(got, bias, q_offset=offset, causal=causal, input_scale=0.3) is got
            cases.assert_same_bits(got, wanted)
    assert sum(hits) >= 20
    assert len(call_cache.entries) == 1


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("how", ["new", "in a buffer"])
@pytest.mark.parametrize("name", BIASES)
def test_a_decoder_with_one_more_key_at_each_step(name, how, dtype, hits):
    bias, buffer = BIASES[name], np.zeros((2, HEADS, 1, 600), cases.DTYPES[dtype])
    for keys in (1, 2, 3, *range(250, 270), 600, 40, 41):
        values = fresh((2, HEADS, 1, keys), dtype, keys)
        scores = buffer[..., :keys] if how == "in a buffer" else values.copy()
        for causal in (False, True):
            buffer.fill(9)
            scores[...] = values
            fastpe.add_bias(scores, bias, causal=causal)
            cases.assert_same_bits(scores.copy(), expected_of(values, bias, causal=causal))
            assert how == "new" or (buffer[..., keys:] == 9).all()
    assert sum(hits) >= 30
    assert len(call_cache.entries) <= 4


@pytest.mark.parametrize("name", BIASES)
def test_one_more_key_behind_the_queries_at_each_step(name, hits):
    """Distances grow by one past what a table has, ahead of the queries and behind them."""
    bias = BIASES[name]
    for keys in range(3, 303):
        scores = fresh((HEADS, 2, keys), seed=keys)
        for offset in (0, keys - 2):
            cases.assert_same_bits(fastpe.add_bias(scores.copy(), bias, q_offset=offset), expected_of(scores, bias, offset))
    assert sum(hits) > 200


@pytest.mark.parametrize("how", ["dense", "source", "target", "both"])
def test_out_of_place_with_any_number_of_keys(how, hits):
    bias, buffers = BIASES["kerple"], [np.zeros((2, HEADS, 5, 64), np.float32) for _ in (0, 1)]
    for keys in (7, 7, 8, 9, 30, 6, 64):
        values = fresh((2, HEADS, 5, keys), seed=keys)
        scores = buffers[0][..., :keys] if how in ("source", "both") else values.copy()
        out = buffers[1][..., :keys] if how in ("target", "both") else np.empty_like(values)
        buffers[1].fill(9)
        scores[...] = values
        assert fastpe.add_bias(scores, bias, out=out) is out
        cases.assert_same_bits(out.copy(), expected_of(values, bias))
        cases.assert_same_bits(scores.copy(), values)
        assert how not in ("target", "both") or (buffers[1][..., keys:] == 9).all()
    assert sum(hits) >= 5


def test_outs_of_one_shape_and_other_strides():
    """What was prepared for rows of one array does not write to those of another."""
    bias, scores = BIASES["kerple"], fresh()
    wanted, buffer = expected_of(scores, bias), np.zeros((2, HEADS, 8, 20), np.float32)
    for out in (fresh(), buffer[:, :, :4, :9], buffer[:, :, ::2, 1:10], fresh(), buffer[:, :, :4, :9]):
        buffer.fill(9)
        cases.assert_same_bits(fastpe.add_bias(scores, bias, out=out).copy(), wanted)
        assert (buffer == 9).sum() == buffer.size - (out.size if out.base is buffer else 0)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_streaming_goes_by_where_the_arrays_lie(monkeypatch, dtype):
    """A streaming store to an address that is no element's own ends the process; the form of the call does not tell."""
    monkeypatch.setattr(chunking, "cache_bytes", lambda: 0)
    bias = BIASES["alibi"]
    for keys in (96, 96, 97):
        scores = fresh((HEADS, 8, keys), dtype)
        wanted = expected_of(scores, bias, causal=True)
        buffer = np.zeros(scores.nbytes + 64, np.uint8)
        for shift in (0, 1, 0, 1):
            out = np.ndarray(scores.shape, scores.dtype, buffer, shift)
            cases.assert_same_bits(fastpe.add_bias(scores, bias, causal=True, out=out).copy(), wanted)
            out[...] = scores
            cases.assert_same_bits(fastpe.add_bias(out, bias, causal=True).copy(), wanted)


def test_threads_add_at_once():
    """Large enough for helpers, of one form and several lengths."""
    bias, arrays = BIASES["sandwich"], {keys: fresh((4, HEADS, 40, keys), seed=keys) for keys in (700, 900, 1200)}
    wanted = {keys: expected_of(scores, bias) for keys, scores in arrays.items()}

    def add(keys):
        for _ in range(15):
            cases.assert_same_bits(fastpe.add_bias(arrays[keys].copy(), bias), wanted[keys])

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(add, keys) for keys in (*arrays, *arrays)]:
            done.result()


# ---- what is looked at every time --------------------------------------------------------------------------------------------


def test_a_known_call_takes_arrays_of_its_layout_only():
    bias = BIASES["alibi"]
    fastpe.add_bias(fresh(), bias)
    others = [fresh((2, HEADS, 5, 9)), fresh((3, HEADS, 4, 9)), fresh((HEADS, 4, 9)), fresh(dtype="float64")]
    others += [fresh((2, HEADS, 4, 18))[..., ::2], fresh((HEADS, 2, 4, 9)).transpose(1, 0, 2, 3)]
    others += [fresh((2, HEADS, 9, 4)).swapaxes(2, 3)]
    others += [fresh()[..., ::-1], fresh((2, 2, HEADS, 4, 9)).transpose(1, 0, 2, 3, 4)]
    for scores in others:
        for _ in range(2):
            got = np.array(scores, copy=True, order="K")
            cases.assert_same_bits(fastpe.add_bias(got, bias).copy(), np.ascontiguousarray(expected_of(scores, bias)))
    with pytest.raises(ValueError, match="heads"):
        fastpe.add_bias(fresh((2, HEADS + 1, 4, 9)), bias)


@pytest.mark.parametrize("name", ["kerple", "clipped"])
def test_a_known_call_sees_what_can_change(name):
    """A table of values that end serves every distance, so it does not say which positions there are."""
    scores, bias = fresh(), BIASES[name]
    fastpe.add_bias(scores, bias)
    before = scores.copy()
    for offset in (2**31 - 3, -(2**31) - 1, 2**70):
        with pytest.raises(ValueError, match=r"2\^31"):
            fastpe.add_bias(scores, bias, q_offset=offset)
    locked = scores.copy()
    locked.flags.writeable = False
    with pytest.raises(ValueError, match="scores must be writable"):
        fastpe.add_bias(locked, bias)
    fastpe.add_bias(scores, bias, out=np.empty_like(scores))
    with pytest.raises(ValueError, match="out must be writable"):
        fastpe.add_bias(scores, bias, out=locked)
    buffer = np.zeros((3, HEADS, 4, 9), np.float32)
    with pytest.raises(ValueError, match="out must not partly overlap"):
        fastpe.add_bias(buffer[:2], bias, out=buffer[1:])
    with pytest.raises(ValueError, match="out must have shape"):
        fastpe.add_bias(scores, bias, out=np.empty((2, HEADS, 4, 8), np.float32))
    for given in ({"causal": 0}, {"input_scale": True}, {"q_offset": False}, {"q_offset": 1.0}, {"validate": 0}):
        with pytest.raises(TypeError):
            fastpe.add_bias(scores, bias, **given)
    with pytest.raises(TypeError, match="bias must be"):
        fastpe.add_bias(scores, [])
    cases.assert_same_bits(scores, before)
    again = scores.copy()  # the same elements by another view: in place, and not taken for a pair of arrays
    cases.assert_same_bits(fastpe.add_bias(again, bias, out=again[:]), expected_of(scores, bias))
    cases.assert_same_bits(fastpe.add_bias(scores, bias, out=again), expected_of(scores, bias))
    assert not fastpe.add_bias(np.zeros((2, HEADS, 4, 0), np.float32), bias).size


def test_rows_that_would_overlap_with_more_keys():
    memory = np.zeros(200, np.float32)

    def rows(keys):
        return np.lib.stride_tricks.as_strided(memory, (HEADS, 4, keys), (160, 40, 4))

    fastpe.add_bias(rows(8), BIASES["alibi"])
    fastpe.add_bias(rows(10), BIASES["alibi"])
    before = memory.copy()
    with pytest.raises(ValueError, match="must not hold one element twice"):
        fastpe.add_bias(rows(11), BIASES["alibi"])
    cases.assert_same_bits(memory, before)


@pytest.mark.parametrize("seed", range(20))
def test_most_columns_are_those_that_the_check_lets_pass(seed):
    rng = np.random.default_rng(seed)
    shape, strides, span = [int(size) for size in rng.integers(1, 4, 3)], [], 40
    for size in reversed(shape):
        strides.insert(0, (span + int(rng.integers(0, 9))) * int(rng.choice([1, -1])))
        span += abs(strides[0]) * (size - 1)
    memory = numpy_arrays.memory(np.empty(1, np.float32))._replace(shape=(*shape, 5), strides=(*strides, 4))
    found = call_cache._most_columns(memory)

    def passes(columns):
        try:
            checks.writable("f", "x", memory._replace(shape=(*shape, columns)))
        except ValueError:
            return False
        return True

    assert found >= 10
    if max(shape) == 1:
        assert found == 2**31
    else:
        assert passes(found)
        assert not passes(found + 1)


def test_learned_tables_count_as_they_are_now():
    table = fresh((32, HEADS))
    t5, layers = fastpe.T5Bias(table), [fresh(shape, seed=4) for shape in ((8, 1), (8,), (HEADS, 8), (HEADS,))]
    fire, scores = fastpe.FIRE(*layers, length=20), fresh()
    for bias, changed in ((t5, table), (fire, layers[2])):
        first = fastpe.add_bias(scores.copy(), bias)
        changed *= 2
        second = fastpe.add_bias(scores.copy(), bias)
        assert (first != second).any()
        cases.assert_same_bits(second, expected_of(scores, bias))
    assert not call_cache.entries
    assert not bias_tables._tables


# ---- what is kept ------------------------------------------------------------------------------------------------------------


def test_what_is_kept_owns_no_array_of_the_callers():
    scores, out = fresh(), fresh()
    fastpe.add_bias(scores, BIASES["alibi"])
    fastpe.add_bias(scores, BIASES["alibi"], out=out)
    assert len(call_cache.entries) == 2
    known = weakref.ref(scores), weakref.ref(out)
    del scores, out
    gc.collect()
    assert [one() for one in known] == [None, None]


def test_known_calls_are_bounded():
    for rows in range(1, call_cache.MOST_ENTRIES + 20):
        fastpe.add_bias(np.zeros((HEADS, rows, 2), np.float32), BIASES["alibi"])
    assert 0 < len(call_cache.entries) <= call_cache.MOST_ENTRIES


def test_tables_are_given_up_for_others_and_made_again(monkeypatch, hits):
    monkeypatch.setattr(bias_tables, "KEPT_BYTES", 10_000)
    biases = [fastpe.ALiBi(HEADS, max_bias=one) for one in (1, 2, 4, 8, 16, 32)]
    scores = fresh((HEADS, 1, 200))
    wanted = [expected_of(scores, bias) for bias in biases]
    for _ in range(3):
        for bias, one in zip(biases, wanted, strict=True):
            for _ in range(2):
                cases.assert_same_bits(fastpe.add_bias(scores.copy(), bias), one)
            assert sum(table.nbytes for table in bias_tables._tables.values()) <= 10_000
    assert hits == [False, True] * 18
    alive = [entry._values() is not None for entry in call_cache.entries.values()]
    assert alive.count(True) == len(bias_tables._tables) == 3
    large = fresh((HEADS, 1, 2000))
    for _ in range(2):
        cases.assert_same_bits(fastpe.add_bias(large.copy(), biases[0]), expected_of(large, biases[0]))
    assert len(bias_tables._tables) == 3
