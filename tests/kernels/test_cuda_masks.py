"""Masks that kernels of a GPU count themselves: the CPU's bits, no launch and no memory for a table, graphs that see a new mask."""

from __future__ import annotations

import cases
import numpy as np
import pytest

import fastpe
from fastpe import Learned, Rotary, Sinusoidal
from fastpe._backends.cuda import launch, locate

RNG = np.random.default_rng(5)
ROWS = 301  # several blocks, the last of which is not full


def spread(mask, axis=-1):
    """The same mask, every third byte along an axis."""
    wide = np.repeat(mask, 3, axis)
    return wide[(slice(None),) * (axis % mask.ndim) + (slice(None, None, 3),)]


def shifted(mask):
    """The same mask at an odd address; sequences have each another alignment."""
    return np.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(3, 2)])[..., 3:-2]


def random_mask(*shape):
    return RNG.random(shape) < 0.6


MASKS = {
    "dense": lambda B, T: {"mask": random_mask(B, T)},
    "row": lambda B, T: {"mask": random_mask(T), "offset": 11},
    "left_padded": lambda B, T: {"mask": np.arange(T) >= np.arange(B)[:, None] * (T // 2), "offset": np.arange(B) * 50 - 7},
    "offsets_of_int32": lambda B, T: {"mask": random_mask(T), "offset": np.array([2**31 - T] * B, np.int32)},
    "strided": lambda B, T: {"mask": spread(random_mask(B, T)), "offset": 3},
    "reversed": lambda B, T: {"mask": random_mask(B, T)[:, ::-1]},
    "unaligned": lambda B, T: {"mask": shifted(random_mask(B, T))},
    "none": lambda B, T: {"mask": np.zeros((B, T), bool), "offset": -4},
    "all": lambda B, T: {"mask": np.ones((B, T), bool)},
    "bytes": lambda B, T: {"mask": (random_mask(B, T) * RNG.integers(1, 256, (B, T))).astype(np.uint8).view(bool)},
    "restarting": lambda B, T: {
        "mask": random_mask(B, T),
        "cu_seqlens": np.array([0, 5, 5, T // 2 + 3, T], np.int32),
        "offset": np.array([9, 1, 700, -3]),
    },
}


@pytest.fixture
def watched(device, monkeypatch):
    """The simulated GPU, and the names of the kernels launched and the arrays made while it is used."""
    import simulated_cupy

    made, allocate = [], simulated_cupy._allocate
    monkeypatch.setattr(simulated_cupy, "_allocate", lambda *args: made.append(args) or allocate(*args))
    device.made = made
    return device


def calls(x, q, k, ids, table, learned, tabulated, heads, outs):
    """Every kernel that counts, and each of its layouts: pairs of arrays to write, and what to call with arguments for rows."""
    return [
        lambda **given: fastpe.add_encoding(x[0], Sinusoidal(layout="interleaved"), **given),
        lambda **given: fastpe.add_encoding(x[1], Sinusoidal(layout="concatenated"), **given),
        lambda **given: fastpe.add_encoding(x[2][..., :7], Sinusoidal(), **given),
        lambda **given: fastpe.add_encoding(heads, Sinusoidal(), seq_axis=-3, **given),
        lambda **given: fastpe.apply_rotary(q[0], k, Rotary(), **given),
        lambda **given: fastpe.apply_rotary(q[1], None, Rotary(interleaved=True, rotary_dim=6), seq_axis=-2, **given),
        lambda **given: fastpe.apply_rotary(q[2], None, tabulated, **{**given, "offset": 0}),
        lambda **given: fastpe.embed(ids, table, Sinusoidal(), out=outs[0], **given),
        lambda **given: fastpe.embed(ids, table, Learned(learned, "clip"), out=outs[1], **given),
        lambda **given: fastpe.embed(ids, table, None, mask=given["mask"], out=outs[2]),
        lambda **given: fastpe.add_encoding(x[3], Learned(learned, "clip"), **given),
    ]


def arrays(dtype, batch=3, rows=ROWS):
    made = {
        "x": [cases.random((batch, rows, 16), dtype, seed) for seed in range(4)],
        "q": [cases.random((batch, heads, rows, 16), dtype, heads) for heads in (4, 3, 2)],
        "k": cases.random((batch, 2, rows, 16), dtype),
        "ids": RNG.integers(0, 9, (batch, rows)),
        "table": cases.random((9, 16), "float32"),
        "learned": cases.random((40, 16), "float32", 2),
        "heads": cases.random((batch, rows, 3, 16), dtype),
        "outs": [np.zeros((batch, rows, 16), np.float32) for _ in range(3)],
    }
    angles = cases.random((rows + 1, 8), "float64")
    return made, (np.cos(angles), np.sin(angles))


def put(value, to):
    return [to(one) for one in value] if isinstance(value, list) else to(value)


def written(made):
    return [*made["x"], *made["q"], made["k"], made["heads"], *made["outs"]]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", MASKS)
def test_kernels_count_as_the_host_does(watched, name, dtype):
    """In every layout of masks and offsets; nothing is launched before and nothing allocated."""
    given, (made, angles) = MASKS[name](3, ROWS), arrays(dtype)
    there = {key: put(value, watched.array) for key, value in made.items()}
    here = {key: put(value, np.copy) for key, value in made.items()}
    on_device, table = watched.arguments(given), Rotary.tabulated(*(watched.array(one) for one in angles))
    run = calls(**there, tabulated=table), calls(**here, tabulated=Rotary.tabulated(*angles))
    host = {**given, "mask": given["mask"].view(np.uint8) != 0}
    for on_gpu, on_host in zip(*run, strict=True):
        on_gpu(**on_device)  # loads kernels, frequencies and tables
        on_host(**host)
        watched.made.clear()
        watched.launched.clear()
        on_gpu(**on_device)
        on_host(**host)
        assert [one for one, *_ in watched.launched if one.startswith("locate_rows")] == []
        assert watched.made == []
    for got, expected in zip(written(there), written(here), strict=True):
        cases.assert_same_bits(watched.host(got), expected)


def test_rows_in_front_of_a_batch(watched):
    """(T, B) masks, where the first axis is T."""
    x, mask = cases.random((ROWS, 3, 16), "float32"), random_mask(ROWS, 3)
    for one in (mask, np.asfortranarray(mask), mask[:, 0].copy(), spread(mask, 0)):
        given = {"mask": one, "offset": np.array([5, 0, 99]), "seq_axis": 0}
        got = fastpe.add_encoding(watched.array(x), Sinusoidal(), **watched.arguments(given))
        cases.assert_same_bits(watched.host(got), fastpe.add_encoding(x.copy(), Sinusoidal(), **given))
    assert not any(name.startswith("locate_rows") for name, *_ in watched.launched)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("name", ["dense", "row", "restarting"])
def test_blocks_that_go_on_to_other_rows_and_sequences(watched, monkeypatch, name, blocks):
    """A grid has at most 65535 blocks along y and z; a thread that comes to another sequence begins to count anew."""
    monkeypatch.setattr(launch, "MOST_BLOCKS_YZ", blocks)
    given, (made, angles) = MASKS[name](5, ROWS), arrays("float32", 5)
    there = {key: put(value, watched.array) for key, value in made.items()}
    here = {key: put(value, np.copy) for key, value in made.items()}
    table = Rotary.tabulated(*(watched.array(one) for one in angles))
    run = calls(**there, tabulated=table), calls(**here, tabulated=Rotary.tabulated(*angles))
    for on_gpu, on_host in zip(*run, strict=True):
        on_gpu(**watched.arguments(given))
        on_host(**given)
    for got, expected in zip(written(there), written(here), strict=True):
        cases.assert_same_bits(watched.host(got), expected)


@pytest.mark.parametrize("rows", [2, 8, 40])
def test_a_graph_counts_the_mask_of_its_replay(watched, rows):
    """A piece of a prefill, or a batch of drafts: the mask changes between replays."""
    import cupy

    x, q = cases.random((3, rows, 16), "bfloat16"), cases.random((3, 4, rows, 16), "bfloat16")
    mask, offset = watched.array(np.ones((3, rows), bool)), watched.array(np.zeros(3, np.int64))
    there, queries, stream = watched.array(x), watched.array(q), cupy.cuda.get_current_stream()

    def step(x, q, **given):
        fastpe.add_encoding(x, Sinusoidal(), **given)
        fastpe.apply_rotary(q, None, Rotary(), **given)

    step(there, queries, mask=mask, offset=offset)
    watched.made.clear()
    stream.begin_capture()
    step(there, queries, mask=mask, offset=offset)
    graph = stream.end_capture()
    assert watched.made == []
    for number in range(4):
        kept, first = np.zeros((3, rows), bool) if number == 3 else random_mask(3, rows), np.array([number, 70, -number])
        for array, values in ((there, x), (queries, q), (mask, kept), (offset, first)):
            array._host[...] = values
        graph.launch()
        expected = x.copy(), q.copy()
        step(*expected, mask=kept, offset=first)
        for got, one in zip((there, queries), expected, strict=True):
            cases.assert_same_bits(watched.host(got), one)


class Keeping:
    """An allocator whose memory graphs keep, as PyTorch's."""

    keeps_for_graphs = True


def test_a_longer_mask_is_counted_by_a_launch(watched, monkeypatch):
    """CuPy alone refuses to capture it, as nothing would keep its table; PyTorch's memory stays for the graph, which counts anew."""
    import cupy

    monkeypatch.setattr(locate, "MOST_COUNTED_ROWS", 20)
    monkeypatch.setattr(fastpe._backends.cuda, "MOST_COUNTED_ROWS", 20)
    x, stream = cases.random((2, 21, 16), "float32"), cupy.cuda.get_current_stream()
    there, mask = watched.array(x), watched.array(np.ones((2, 21), bool))
    fastpe.add_encoding(there, mask=mask)
    fastpe.add_encoding(watched.array(x[:, :20]), mask=mask[:, :20])
    assert [name for name, *_ in watched.launched if name.startswith("locate_rows")] == ["locate_rows_counted"]
    stream.begin_capture()
    with pytest.raises(RuntimeError, match=r"a mask of more than 16384 rows, validate=True"):
        fastpe.add_encoding(there, mask=mask)
    stream.end_capture()
    with cupy.cuda.using_allocator(Keeping()):
        stream.begin_capture()
        fastpe.add_encoding(there, mask=mask)
        graph = stream.end_capture()
    for _ in range(2):
        kept = random_mask(2, 21)
        there._host[...], mask._host[...] = x, kept
        graph.launch()
        cases.assert_same_bits(watched.host(there), fastpe.add_encoding(x.copy(), mask=kept))


def test_what_only_the_host_could_know_is_asked_for(watched):
    """The length that a counted mask leads to, and rows of a learned table that it leads beyond: an error, and rows of NaN."""
    q, mask = cases.random((1, 2, 30, 16), "float32"), random_mask(30)
    rope = Rotary(scaling=fastpe.scaling.DynamicNTK(2.0, 16))
    with pytest.raises(
        ValueError, match="seq_len must be given where the scaling rule depends on the length and positions lie on a GPU"
    ):
        fastpe.apply_rotary(watched.array(q), None, rope, mask=watched.array(mask))
    got = fastpe.apply_rotary(watched.array(q), None, rope, mask=watched.array(mask), seq_len=30)
    cases.assert_same_bits(watched.host(got), fastpe.apply_rotary(q.copy(), None, rope, mask=mask, seq_len=30))
    x, table = np.zeros((1, 30, 16), np.float32), cases.random((9, 16), "float32")
    there = fastpe.add_encoding(watched.array(x), Learned(watched.array(table)), mask=watched.array(mask))
    lost = mask & (np.cumsum(mask) > 9)
    assert np.array_equal(np.isnan(watched.host(there)).all(axis=(0, 2)), lost)
    with pytest.raises(IndexError, match=r"positions must lie in the table's \[0, 9\), got 9 at row"):
        fastpe.add_encoding(watched.array(x), Learned(watched.array(table)), mask=watched.array(mask), validate=True)
