"""The in-place contract, clause by clause."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tracemalloc

import cases
import numpy as np
import pytest

import fastpe


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_the_object_returned_is_the_object_given(platform, dtype):
    x = platform.array(cases.random((2, 5, 8), dtype))
    assert fastpe.add_encoding(x) is x
    out = platform.array(cases.random((2, 5, 8), dtype))
    assert fastpe.add_encoding(x, out=out) is out
    if dtype != "bfloat16":
        table = platform.array(np.zeros((5, 8), cases.DTYPES[dtype]))
        assert fastpe.encode(platform.array(np.arange(5)), 8, out=table) is table


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("view", cases.VIEWS)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_views_are_written_without_a_copy(dtype, view, layout):
    """Whatever the strides: the same bits as contiguous memory, and not one byte beside the view."""
    for width in (8, 5):
        plain = cases.random((3, 11, width), dtype)
        x = cases.VIEWS[view](plain)
        base = x if x.base is None else x.base
        before = base.copy()
        encoding = fastpe.Sinusoidal(layout=layout)
        expected = fastpe.add_encoding(plain.copy(), encoding, offset=3)
        assert fastpe.add_encoding(x, encoding, offset=3) is x
        cases.assert_same_bits(x, expected)
        x[...] = plain  # what is left differs from before only where something beside the view was written
        cases.assert_same_bits(base, before)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("view", cases.VIEWS)
def test_out_leaves_x_alone(platform, dtype, view):
    x = cases.random((3, 11, 8), dtype)
    expected = fastpe.add_encoding(x.copy(), input_scale=2.5)
    source = platform.array(cases.VIEWS[view](x))
    out = platform.array(cases.VIEWS[view](np.zeros_like(x)))
    fastpe.add_encoding(source, out=out, input_scale=2.5)
    cases.assert_same_bits(platform.host(out), expected)
    cases.assert_same_bits(platform.host(source), x)


def test_out_may_be_x():
    x = cases.random((2, 9, 8), "float32")
    expected = fastpe.add_encoding(x.copy())
    same_view = x[:]
    assert fastpe.add_encoding(x, out=same_view) is same_view
    cases.assert_same_bits(x, expected)


def test_out_may_not_partly_overlap_x():
    whole = np.zeros((12, 8), np.float32)
    for x, out in ((whole[:8], whole[1:9]), (whole[:8], whole[7::-1]), (whole[:, :4], whole[:, 2:6])):
        with pytest.raises(ValueError, match="out must be x or lie apart from it"):
            fastpe.add_encoding(x, out=out)
    assert not whole.any()
    fastpe.add_encoding(whole[::2], out=whole[1::2])  # interleaved, but no shared element
    cases.assert_same_bits(whole[1::2].copy(), fastpe.encode(np.arange(6), 8))
    assert not whole[::2].any()


def test_out_must_match():
    x = np.zeros((2, 3, 4), np.float32)
    with pytest.raises(ValueError, match=re.escape("add_encoding: out must have shape (2, 3, 4), got (2, 3, 5).")):
        fastpe.add_encoding(x, out=np.zeros((2, 3, 5), np.float32))
    with pytest.raises(TypeError, match="out must have dtype float32, got float64"):
        fastpe.add_encoding(x, out=np.zeros((2, 3, 4)))
    with pytest.raises(TypeError, match=r"out must be a floating-point array .* got int64 of shape"):
        fastpe.add_encoding(x, out=np.zeros((2, 3, 4), int))
    with pytest.raises(TypeError, match="out must be a NumPy or CuPy array or a PyTorch tensor, got builtins"):
        fastpe.add_encoding(x, out=[0.0])
    read_only = np.zeros((2, 3, 4), np.float32)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writable"):
        fastpe.add_encoding(x, out=read_only)
    fastpe.add_encoding(read_only, out=x)  # x itself may be read-only then


def test_read_only():
    x = np.zeros((2, 3, 4), np.float32)
    x.flags.writeable = False
    with pytest.raises(
        ValueError, match=re.escape("x must be writable, got a read-only array of shape (2, 3, 4). Pass a copy, or out=.")
    ):
        fastpe.add_encoding(x)


def test_one_element_twice(platform):
    """Broadcast and sliding views hold an element more than once."""
    row = np.zeros((1, 1, 4), np.float32)
    views = [np.broadcast_to(row, (2, 3, 4)), np.lib.stride_tricks.as_strided(np.zeros(12, np.float32), (5, 4), (8, 4))]
    for view in views:
        view = np.lib.stride_tricks.as_strided(view, view.shape, view.strides, writeable=True)
        array = platform.array(view)
        with pytest.raises(ValueError, match="x must not hold one element twice"):
            fastpe.add_encoding(array)
        assert not platform.host(array).any()
    size_one = np.lib.stride_tricks.as_strided(np.zeros((3, 4), np.float32), (1, 3, 4), (0, 16, 4), writeable=True)
    fastpe.add_encoding(platform.array(size_one))  # a stride of 0 along an axis of one is no repetition
    fastpe.add_encoding(row, out=np.zeros_like(row))


def test_broadcast_x_with_out():
    """x is only read then, and may repeat itself."""
    out = np.zeros((2, 3, 4), np.float32)
    fastpe.add_encoding(np.broadcast_to(np.ones((1, 1, 4), np.float32), (2, 3, 4)), out=out)
    cases.assert_same_bits(out[1], fastpe.add_encoding(np.ones((3, 4), np.float32)))


def test_out_with_another_stride_along_an_axis_of_one():
    """The same elements, whatever the stride that no step is taken along."""
    x = np.zeros((5, 3, 4), np.float32)
    fastpe.add_encoding(x[:1], out=x[::2][:1])
    cases.assert_same_bits(x[0], fastpe.encode(np.arange(3), 4))


def run_alone(code, **environment):
    """Run code in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=200
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{}, {"MALLOC_ARENA_MAX": "1"}, {"MALLOC_MMAP_THRESHOLD_": "131072"}, {"MALLOC_PERTURB_": "85"}],
    ids=["default", "one arena", "small mappings", "freed memory overwritten"],
)
def test_scratch_memory_lives_as_long_as_the_kernel(environment):
    """Whatever the allocator does with memory that is freed too early, nothing changes."""
    code = """
import numpy as np, fastpe
fastpe.add_encoding(np.zeros((1, 4, 8), np.float32))
for shape in ((1, 2_000, 512), (2, 6, 100_000), (1, 8, 400_000)):  # long, wide, wider: several chunks each
    x = np.zeros(shape, np.float32)
    fastpe.set_num_threads(1)
    alone = fastpe.add_encoding(x.copy())
    fastpe.set_num_threads(2)
    wrong = sum(not np.array_equal(fastpe.add_encoding(x.copy()), alone) for _ in range(5))
    table = fastpe.encode(np.arange(4), shape[-1])
    print(wrong, np.array_equal(alone[0, :4], table), abs(float(table[1, 0]) - 0.8414709848) < 1e-6)
"""
    assert run_alone(code, **environment).splitlines() == ["0 True True"] * 3


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (0, 3, 4), (2, 0, 0, 4)])
def test_empty_arrays_return_unchanged(platform, shape):
    x = platform.array(np.zeros(shape, np.float32))
    assert fastpe.add_encoding(x) is x
    assert fastpe.encode(platform.array(np.zeros(shape)), 4).shape == (*shape, 4)


def test_special_values_pass_through(platform):
    x = np.array([np.nan, np.inf, -np.inf, 1e-45, 3e38], np.float32)[None, :].repeat(3, 0)
    array = platform.array(x)
    fastpe.add_encoding(array)
    got = platform.host(array)
    assert np.isnan(got[:, 0]).all()
    assert (got[:, 1:3] == x[:, 1:3]).all()
    tiny = platform.array(x)
    fastpe.add_encoding(tiny, fastpe.Sinusoidal(amplitude=0.0))
    assert platform.host(tiny)[0, 3] == np.float32(1e-45)


def test_no_temporary_of_the_size_of_x():
    x = np.zeros((4, 4096, 256), np.float32)  # 16 MB
    positions = np.arange(4096)
    for given in ({}, {"offset": 9}, {"positions": positions}, {"mask": positions % 2 == 0}, {"out": np.empty_like(x)}):
        fastpe.add_encoding(x, **given)  # the first call loads its kernel
        tracemalloc.start()
        fastpe.add_encoding(x, **given)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 400_000, f"{given.keys()}: {peak} bytes"


@pytest.mark.slow
def test_tracemalloc_may_stop_while_helpers_run():
    """In Python 3.11 a thread that allocates memory without the GIL while `tracemalloc` stops crashes the process."""
    program = """if True:
        import time, tracemalloc, numpy as np, fastpe
        fastpe.set_num_threads(8)
        x = np.zeros((4, 512, 2048), np.float32)
        for i in range(600):
            tracemalloc.start()
            fastpe.add_encoding(x, offset=i)
            tracemalloc.stop()
            time.sleep(0.0006 * (i % 3))
    """
    runs = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors


def test_resident_memory_does_not_grow():
    """What the kernels allocate themselves, which tracemalloc does not see."""
    resource = pytest.importorskip("resource")
    x = np.zeros((1, 65_536, 256), np.float32)  # 64 MB
    fastpe.add_encoding(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(5):
        fastpe.add_encoding(x, offset=7)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096  # KiB


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(1, 5000, 96), (7, 700, 96), (300, 3, 96)])
def test_threads_and_chunks_do_not_change_bits(threads, shape):
    x = cases.random(shape, "float32")
    try:
        fastpe.set_num_threads(1)
        expected = fastpe.add_encoding(x.copy(), offset=3)
        fastpe.set_num_threads(threads)
        cases.assert_same_bits(fastpe.add_encoding(x, offset=3), expected)
    finally:
        fastpe.set_num_threads(None)
    cases.assert_same_bits(expected[0], fastpe.add_encoding(cases.random(shape, "float32")[0], offset=3))


def test_batch_and_width_do_not_change_a_row():
    table = fastpe.encode(np.arange(40), 64)
    x = np.zeros((9, 40, 64), np.float32)
    fastpe.add_encoding(x)
    for b in range(9):
        cases.assert_same_bits(x[b], table)
    for t in (0, 7, 8, 39):
        cases.assert_same_bits(fastpe.add_encoding(np.zeros((1, 64), np.float32), offset=t)[0], table[t])


def test_memmap_is_written(tmp_path):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(3, 4))
    assert fastpe.add_encoding(x) is x
    x.flush()
    cases.assert_same_bits(np.fromfile(tmp_path / "x", np.float32).reshape(3, 4), fastpe.encode(np.arange(3), 4))


def test_scaled_input_is_a_multiply_then_an_add():
    x = cases.random((1, 50, 64), "float32")
    table = fastpe.encode(np.arange(50), 64)
    expected = x * np.float32(np.sqrt(64.0)) + table
    cases.assert_same_bits(fastpe.add_encoding(x, input_scale=np.sqrt(64.0)), expected)


def test_factors_are_rounded_to_the_type_of_the_arithmetic():
    """float32 for all but float64 arrays; what float32 cannot hold is 0."""
    for dtype, real in (("float16", np.float32), ("float32", np.float32), ("float64", np.float64)):
        x, nothing = cases.random((1, 50, 64), dtype), fastpe.Sinusoidal(amplitude=0.0)
        got = fastpe.add_encoding(x.copy(), nothing, input_scale=0.1)
        cases.assert_same_bits(got, (x.astype(real) * real(0.1) + real(0)).astype(dtype))
        small = 7e-46, 8e-46  # on both sides of half the smallest float32
        kept = [fastpe.add_encoding(np.ones((1, 2), real), nothing, input_scale=scale)[0, 0] for scale in small]
        assert [float(one) for one in kept] == [float(real(scale)) for scale in small]
        drawn = fastpe.encode([0], 2, fastpe.Sinusoidal(amplitude=7e-46), dtype=real)
        assert drawn[0, 1] == real(7e-46)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_sums_that_a_type_cannot_hold_are_infinite(platform, dtype):
    kind = cases.DTYPES[dtype]
    least = 2.0**16 - 2.0**4 if dtype == "float16" else 2.0**128 - 2.0**119 if dtype == "bfloat16" else 2.0**128
    for sum_of, wanted in ((least, np.inf), (-least, -np.inf), (least * (1 - 2.0**-9), None)):
        half = np.full((1, 2), sum_of / 2, np.float64).astype(kind)
        x = platform.array(half)
        fastpe.add_encoding(x, fastpe.Sinusoidal(cos_first=True, amplitude=sum_of / 2))
        found = float(platform.host(x)[0, 0])
        assert np.isfinite(found) if wanted is None else found == wanted


def test_types_of_results():
    """float32 where nothing says otherwise; of a table its own type, which an integer table has not."""
    positions = np.arange(3.0)
    assert fastpe.encode(positions, 8).dtype == np.float32
    assert fastpe.encode(positions, 8, like=np.zeros(1, np.float16)).dtype == np.float32
    assert fastpe.encode(positions, 8, out=np.empty((3, 8))).dtype == np.float64
    for dtype in ("float16", "float32", "float64"):
        assert fastpe.embed([0, 1], np.ones((2, 8), dtype)).dtype == dtype
    for dtype in ("int8", "uint8"):
        assert fastpe.embed([0, 1], np.ones((2, 8), dtype), row_scale=[1.0, 2.0]).dtype == np.float32


def test_encodings_that_are_assumed():
    sinusoidal = fastpe.Sinusoidal(10000.0, "interleaved", cos_first=False, frequency_shift=0)
    cases.assert_same_bits(fastpe.encode(range(40), 16), fastpe.encode(range(40), 16, sinusoidal))
    q = cases.random((2, 9, 16), "float32")
    plain = fastpe.apply_rotary(q.copy())
    cases.assert_same_bits(plain, fastpe.apply_rotary(q.copy(), None, fastpe.Rotary(10000.0, interleaved=False, rotary_dim=16)))
    assert (plain != fastpe.apply_rotary(q.copy(), None, fastpe.Rotary(interleaved=True))).any()


def test_flushing_subnormals_is_the_callers_own_business():
    """The setting belongs to a thread; a result must not depend on which thread computed it. And it is left as it was."""
    torch = pytest.importorskip("torch")
    x = np.full((1, 20_000, 64), 1e-41, np.float32)
    none = fastpe.Sinusoidal(amplitude=0.0)
    tiny = fastpe.Sinusoidal(amplitude=1e-40)
    fastpe.set_num_threads(4)
    try:
        expected = fastpe.add_encoding(x.copy(), none)
        table = fastpe.encode(np.arange(20_000), 64, tiny)
        scaled = fastpe.add_encoding(np.ones_like(x), none, input_scale=1e-40)
        if not torch.set_flush_denormal(True):
            pytest.skip("this CPU cannot flush subnormal numbers")
        for _ in range(5):
            cases.assert_same_bits(fastpe.add_encoding(x.copy(), none), expected)
            cases.assert_same_bits(fastpe.encode(np.arange(20_000), 64, tiny), table)
            cases.assert_same_bits(fastpe.add_encoding(np.ones_like(x), none, input_scale=1e-40), scaled)
        assert float((torch.tensor([1e-41]) * 1.0)[0]) == 0.0
    finally:
        torch.set_flush_denormal(False)
        fastpe.set_num_threads(None)
    assert (expected > 0).all()
    assert (scaled > 0).all()
    assert np.abs(table).max() > 0
