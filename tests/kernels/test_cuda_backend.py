"""The CUDA backend around the kernels: variants, grids, what is launched and what is refused. No GPU needed."""

from __future__ import annotations

import cases
import numpy as np
import pytest

import fastpe
from fastpe._backends import cuda

# ---- variants and grids ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "suffix"), [("float32", "f32"), ("float64", "f64"), ("float16", "f16"), ("bfloat16", "bf16")]
)
def test_aligned_arrays_take_the_vector_kernels(device, dtype, suffix):
    for layout in cases.LAYOUTS:
        fastpe.add_encoding(device.array(cases.random((2, 5, 32), dtype)), fastpe.Sinusoidal(layout=layout))
        assert device.launched[-1][0] == f"add_sinusoidal_{suffix}_vec16_{layout}"
    for x in (cases.random((2, 5, 33), dtype), cases.VIEWS["misaligned_rows"](cases.random((2, 5, 32), dtype))):
        fastpe.add_encoding(device.array(x))
        assert device.launched[-1][0] == f"add_sinusoidal_{suffix}_columns"


def test_concatenated_vectors_need_whole_vectors_in_each_half(device):
    fastpe.add_encoding(device.array(np.zeros((1, 3, 12), np.float32)), fastpe.Sinusoidal(layout="concatenated"))
    assert device.launched[-1][0] == "add_sinusoidal_f32_columns"  # 6 columns a half are one and a half vectors
    fastpe.add_encoding(device.array(np.zeros((1, 3, 12), np.float32)))
    assert device.launched[-1][0] == "add_sinusoidal_f32_vec16_interleaved"


def test_one_launch_for_any_number_of_sequences(device):
    fastpe.add_encoding(device.array(np.zeros((5, 4, 3, 2, 16), np.float32)), seq_axis=1)
    assert len(device.launched) == 1
    device.launched.clear()
    fastpe.add_encoding(device.array(np.zeros((2, 3, 5, 16), np.float32)), positions=device.array(np.arange(5)))
    assert [name for name, _, _ in device.launched] == ["add_sinusoidal_f32_vec16_interleaved"]


@pytest.mark.parametrize("rows", [1, 7, 8, 1000, 10**7, 2**31])
@pytest.mark.parametrize("batch", [1, 3, 10**5])
@pytest.mark.parametrize("units", [1, 17, 128, 5000])
def test_grids_are_within_cuda_limits(monkeypatch, rows, batch, units):
    monkeypatch.setattr(cuda.launch, "_multiprocessors", lambda device: 132)
    for varies in (0, 8):
        call = {"rows": rows, "batch": batch, "positions": varies, "positions_batch_stride": varies, "positions_head_stride": 0}
        (x, y, z), (wide, tall) = cuda.launch._grid(call, units, 0)
        assert x * wide >= units > (x - 1) * wide
        assert 1 <= y <= 65535
        assert 1 <= z <= min(batch, 65535)
        assert wide * tall == 128


def test_few_rows_spread_over_sequences(monkeypatch):
    """Decoding one row of many sequences keeps the device busy; a long array keeps its encoding in registers."""
    monkeypatch.setattr(cuda.launch, "_multiprocessors", lambda device: 132)
    call = {"rows": 1, "batch": 4096, "positions": 0, "positions_batch_stride": 0, "positions_head_stride": 0}
    assert cuda.launch._grid(call, 256, 0)[0][2] > 100
    assert cuda.launch._grid(call | {"rows": 10**6, "batch": 32}, 256, 0)[0][2] == 1


def test_many_rows_few_blocks(device, monkeypatch):
    """Groups and sequences beyond the grid are reached by striding."""
    monkeypatch.setattr(cuda.launch, "MOST_BLOCKS_YZ", 2)
    monkeypatch.setattr(cuda.locate, "MOST_BLOCKS_Y", 2)
    monkeypatch.setattr(cuda.launch, "THREADS", 8)
    x = cases.random((5, 200, 16), "float32")
    for given in ({"offset": 5}, {"offset": np.arange(5) * 100}):
        here, there = x.copy(), device.array(x)
        fastpe.add_encoding(here, **given)
        fastpe.add_encoding(there, **device.arguments(given))
        cases.assert_same_bits(device.host(there), here)
    assert max(grid[1] for _, grid, _ in device.launched) <= 2


def test_misaligned_elements_are_refused(device):
    raw = np.zeros(4 * 3 * 4 + 2, np.uint8)
    x = device.array(raw)
    view = type(x)(np.ndarray((1, 3, 4), np.float32, x._host, 2), x._owner)
    with pytest.raises(ValueError, match="x on a GPU must be aligned to its elements"):
        fastpe.add_encoding(view)


def test_alignment_is_checked_before_anything_is_written(device):
    """Of every axis, those that take several launches included."""
    raw = device.array(np.zeros(3000, np.uint8))
    host = np.ndarray((2, 2, 3, 2, 4), np.float32, raw._host, 0, (514, 200, 32, 16, 4))
    with pytest.raises(ValueError, match="must be aligned to its elements"):
        fastpe.add_encoding(type(raw)(host, raw._owner), seq_axis=2)
    assert not device.host(raw).any()
    one = type(raw)(np.ndarray((1, 3, 4), np.float32, raw._host, 0, (3, 16, 4)), raw._owner)
    fastpe.add_encoding(one)  # no step is taken along an axis of one


def test_tables_may_not_be_captured(device, monkeypatch):
    import cupy

    x = device.array(np.zeros((2, 3, 24), np.float32))
    fastpe.add_encoding(x)
    monkeypatch.setattr(cupy.cuda.get_current_stream(), "is_capturing", lambda: True, raising=False)
    fastpe.add_encoding(x, offset=4)
    monkeypatch.setattr(cuda, "MOST_COUNTED_ROWS", 2)
    for given in ({"mask": np.ones(3, bool)}, {"positions": np.arange(3, dtype=np.int16)}):
        with pytest.raises(RuntimeError, match="would not outlive the call"):
            fastpe.add_encoding(x, **device.arguments(given))


def test_the_first_call_may_not_be_captured(device, monkeypatch):
    import cupy

    x = device.array(np.zeros((1, 3, 24), np.float32))
    stream = cupy.cuda.get_current_stream()
    monkeypatch.setattr(stream, "is_capturing", lambda: True, raising=False)
    with pytest.raises(RuntimeError, match=r"call fastpe\.warmup"):
        fastpe.add_encoding(x)
    assert not device.host(x).any()
    monkeypatch.setattr(stream, "is_capturing", lambda: False)
    fastpe.add_encoding(x)
    monkeypatch.setattr(stream, "is_capturing", lambda: True)
    fastpe.add_encoding(x)  # nothing is left to load


def test_the_first_use_of_a_table_may_not_be_captured(device, monkeypatch):
    """Kernels are loaded, but not what a width, a base or a table of the caller's needs."""
    import cupy

    x, stream = device.array(np.zeros((1, 3, 24), np.float32)), cupy.cuda.get_current_stream()
    angles = np.random.default_rng(0).standard_normal((9, 12))
    tabulated = [fastpe.Rotary.tabulated(np.cos(more), np.sin(more)) for more in (angles, angles + 1)]
    calls = [
        [lambda base=base: fastpe.add_encoding(x, fastpe.Sinusoidal(base=base)) for base in (7.0, 8.0)],
        [lambda base=base: fastpe.apply_rotary(x, None, fastpe.Rotary(base=base)) for base in (7.0, 8.0)],
        [lambda table=table: fastpe.apply_rotary(x, None, table) for table in tabulated],
    ]
    for known, new in calls:
        monkeypatch.setattr(stream, "is_capturing", lambda: False, raising=False)
        known()
        monkeypatch.setattr(stream, "is_capturing", lambda: True)
        known()
        before = device.host(x).copy()
        with pytest.raises(RuntimeError, match=r"call fastpe\.warmup"):
            new()
        cases.assert_same_bits(device.host(x), before)


@pytest.mark.parametrize("given", [{"positions": np.arange(3, dtype=np.int16)}, {"cu_seqlens": np.array([0, 3], np.int16)}])
def test_what_is_missing_is_said_before_anything_is_made(device, monkeypatch, given):
    """CuPy would fail at its own conversions, and not say what to install."""
    from fastpe._arrays import cupy as cupy_arrays
    from fastpe._backends.cuda import available

    x = device.array(np.zeros((1, 3, 24), np.float32))
    arguments = device.arguments(given)
    fastpe.add_encoding(x, **arguments)
    monkeypatch.setattr(available, "problem", lambda: "NVRTC is missing")
    for name in ("empty", "contiguous"):
        monkeypatch.delattr(cupy_arrays, name)
    with pytest.raises(ImportError, match=r"^fastpe: NVRTC is missing\.$"):
        fastpe.add_encoding(x, **arguments)


def test_slopes_of_one_bias_are_not_those_of_the_next(device):
    """Arrays that are not kept under a key are uploaded for each call."""
    keys = np.array([3, 0, 1, 1, 9])
    slopes = [np.array([0.5, 0.25, more]) for more in (0.1, 0.3)]
    learned = [(fastpe.ALiBi(3, slopes=device.array(one)), fastpe.ALiBi(3, slopes=one)) for one in slopes]
    for bias, same in (*((one, one) for one in (fastpe.ALiBi(3), fastpe.ALiBi(3, max_bias=4.0))), *learned):
        scores = cases.random((1, 3, 2, 5), "float32")
        there = fastpe.add_bias(device.array(scores), bias, k_positions=device.array(keys))
        cases.assert_same_bits(device.host(there), fastpe.add_bias(scores.copy(), same, k_positions=keys))


def test_boundaries_that_end_too_early(device):
    """They are not read back to be checked: the last sequence takes the rows that are left, and no offset beyond the last is read."""
    x = cases.random((1, 7, 8), "float32")
    given = {"cu_seqlens": np.array([0, 3, 5]), "offset": np.array([10, 20])}
    there = fastpe.add_encoding(device.array(x), **device.arguments(given))
    expected = fastpe.add_encoding(x.copy(), positions=np.array([10, 11, 12, 20, 21, 22, 23]))
    cases.assert_same_bits(device.host(there), expected)


# ---- rotations ---------------------------------------------------------------------------------------------------------------

PACKED = {  # the shape of q, k and v in one array, the heads of q and of k, arguments
    "prefill": ((2, 5, 8, 32), 4, 2, {"seq_axis": 1}),
    "decode": ((6, 1, 8, 32), 4, 2, {"seq_axis": 1}),
    "one_head_of_k": ((2, 5, 6, 32), 4, 1, {"seq_axis": 1}),
    "one_sequence": ((1, 5, 8, 32), 4, 2, {"seq_axis": 1}),
    "tokens": ((7, 8, 32), 4, 2, {"seq_axis": 0}),
    "tokens_one_head_of_k": ((7, 6, 32), 4, 1, {"seq_axis": 0}),
    "heads_in_channels": ((7, 8 * 32), 4 * 32, 2 * 32, {"head_dim": 32}),
    "batch_heads_in_channels": ((2, 7, 8 * 32), 4 * 32, 2 * 32, {"head_dim": 32}),
}


@pytest.mark.parametrize("name", PACKED)
def test_q_and_k_of_one_packed_array_are_rotated_in_one_launch(device, name):
    shape, queries, keys, given = PACKED[name]
    axis = -1 if "head_dim" in given else -2
    x = cases.random(shape, "bfloat16")

    def parts(whole):
        places = (slice(0, queries), slice(queries, queries + keys))
        return [whole[(..., place) if axis == -1 else (..., place, slice(None))] for place in places]

    there = device.array(x)
    fastpe.apply_rotary(*parts(there), offset=9, **given)
    assert [entry for entry, _, _ in device.launched] == ["rotate_bf16_vec16_half"]
    q, k = parts(x)
    fastpe.apply_rotary(q, k, offset=9, **given)
    cases.assert_same_bits(device.host(there), x)


@pytest.mark.parametrize("threads", [0, 75, 1024])
def test_heads_are_shared_out_among_threads(device, monkeypatch, threads):
    """From one thread for all heads of a pair to one for each; pairs, rows and sequences beyond what a grid takes."""
    monkeypatch.setattr(cuda.launch, "ROTATING_THREADS", threads)
    for width, interleaved in ((32, False), (32, True), (6, False)):
        q, k = (np.random.default_rng(heads).standard_normal((3, heads, 5, width)).astype(np.float32) for heads in (7, 2))
        encoding = fastpe.Rotary(interleaved=interleaved)
        for most in (1, 65535):
            monkeypatch.setattr(cuda.launch, "MOST_BLOCKS_YZ", most)
            there = device.array(q), device.array(k)
            fastpe.apply_rotary(*there, encoding, offset=9)
            for got, expected in zip(there, fastpe.apply_rotary(q.copy(), k.copy(), encoding, offset=9), strict=True):
                assert (device.host(got) == expected).all()


@pytest.mark.parametrize(
    ("batch", "heads", "rows"), [(1, 32, 1), (32, 32, 1), (32, 1, 1), (4, 3, 2), (1, 1, 2048), (3, 5, 7), (70000, 1, 1)]
)
@pytest.mark.parametrize("units", [1, 5, 8, 200])
def test_blocks_of_a_rotation_are_full(monkeypatch, batch, heads, rows, units):
    """Whatever there is enough of: heads, rows or sequences. Every unit has a thread."""
    monkeypatch.setattr(cuda.launch, "_multiprocessors", lambda device: 132)
    call = {"rows": rows, "batch": batch, "q_heads": heads, "k_heads": 1}
    (x, y, z), (wide, tall, deep) = cuda.launch._rotate_grid(call, units, 0)
    assert wide * tall * deep == 128 or deep == 64 or wide * tall * deep >= units * heads * rows * batch
    assert (wide <= 1024, tall <= 1024, deep <= 64) == (True, True, True)
    assert x * wide >= units
    assert (y * tall >= rows, z * deep >= batch or z == 65535) == (True, True)
    groups = x * wide // units
    if units * heads * rows * batch <= 132 * cuda.launch.ROTATING_THREADS:
        assert groups >= heads  # few rows: a thread takes one head
    elif (units, batch, rows) == (200, 32, 1):
        assert groups == 16  # there are threads for 21, of which some would take one head and some two


@pytest.mark.parametrize("wrong", ["threadIdx.x / 2", "0"])
def test_two_threads_that_own_one_pair_are_noticed(tmp_path, monkeypatch, wrong):
    """The interpreter sees them race for it, so in the kernel as it is, which other tests run, every pair has one owner."""
    pytest.importorskip("cupy")
    import simulated_cupy
    from ptx import PTXError

    right = cuda.source("rotate")
    line = "thread = (i64)blockIdx.x * blockDim.x + threadIdx.x"
    assert line in right
    q = np.ones((1, 2, 3, 32), np.float32)
    with simulated_cupy.installed(tmp_path):
        fastpe.apply_rotary(simulated_cupy.view_on_device(q))
    monkeypatch.setattr(cuda.compile, "source", lambda name: right.replace(line, line.replace("threadIdx.x", wrong)))
    (tmp_path / "wrong").mkdir()
    with simulated_cupy.installed(tmp_path / "wrong"):
        there = simulated_cupy.view_on_device(q)
        with pytest.raises(PTXError, match=r"race|written"):
            fastpe.apply_rotary(there)


def test_a_rotation_whose_length_is_on_the_gpu_asks_for_it(device):
    q, positions = device.array(np.ones((1, 2, 3, 8), np.float32)), device.array(np.arange(3))
    dynamic = fastpe.Rotary(scaling=fastpe.scaling.DynamicNTK(2.0, 2))
    with pytest.raises(ValueError, match="seq_len must be given"):
        fastpe.apply_rotary(q, None, dynamic, positions=positions)
    fastpe.apply_rotary(q, None, dynamic, positions=positions, seq_len=3)
    fastpe.apply_rotary(q, None, dynamic, offset=5)
    with pytest.raises(
        TypeError, match="q and k must be of one library and on one device, got cupy on device 0 and numpy on the host"
    ):
        fastpe.apply_rotary(q, np.ones((1, 2, 3, 8), np.float32))


def test_a_module_of_an_unknown_gpu_is_loaded_from_ptx(device, monkeypatch):
    import simulated_cupy

    asked = []
    given = cuda.compile._cubin
    monkeypatch.setattr(simulated_cupy.Device, "compute_capability", "999")
    monkeypatch.setattr(cuda.compile, "_cubin", lambda name, target, *rest: asked.append(target) or given(name, target, *rest))
    fastpe.add_encoding(device.array(np.zeros((1, 3, 8), np.float32)))
    assert asked == [cuda.architecture(999)]
    assert asked[0].startswith("compute_")
