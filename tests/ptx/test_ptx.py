"""The PTX interpreter runs kernels as CUDA would."""

import struct

import numpy as np
import pytest
from ptx import Memory, PTXError
from ptx_programs import aligned, argument, handwritten, launch


def test_vector_copy_with_a_guarded_tail(kernels):
    source, out = aligned(400, np.float32), aligned(400, np.float32)
    source[:] = np.arange(400)
    counts = launch(kernels["copy_vec16"], (2,), (64,), out, source, 99, readonly={1})
    np.testing.assert_array_equal(out[:396], source[:396])
    assert not out[396:].any()
    loads = sum(count for name, count in counts.items() if name.startswith("ld.global.v4"))
    assert loads == 99
    assert counts["ret"] <= 128


def test_narrow_loads_are_extended_by_their_sign(kernels):
    rng = np.random.default_rng(0)
    sources = [rng.integers(np.iinfo(t).min, np.iinfo(t).max, 256, t, True) for t in (np.int8, np.int16, np.uint8, np.int32)]
    out = np.zeros(256, np.int64)
    launch(kernels["extend"], (4,), (64,), out, *sources)
    a, b, c, d = (source.astype(np.int64) for source in sources)
    np.testing.assert_array_equal(out, a + 1000 * b + 10**8 * c + 10**11 * d)


def test_two_dimensional_grid_with_strides(kernels):
    x = np.arange(37 * 50, dtype=np.float32).reshape(37, 50)
    expected = x * np.float32(1.5)
    launch(kernels["scale_2d"], (4, 2), (16, 4), x, np.int32(37), np.int32(50), np.float32(1.5))
    np.testing.assert_array_equal(x, expected)


def test_three_dimensional_grid_and_block(kernels):
    out = np.zeros((24, 30), np.int32)
    launch(kernels["place_3d"], (2, 3, 4), (5, 3, 2), out)
    np.testing.assert_array_equal(out, np.arange(24)[:, None] * 1000 + np.arange(30))


def test_loops_whose_trip_count_depends_on_the_thread(kernels):
    steps, total = np.zeros(512, np.uint32), np.zeros(512, np.uint32)
    launch(kernels["collatz"], (4,), (128,), steps, total)
    for i in range(512):
        n, k, accumulated = i + 1, 0, 0
        while n != 1:
            if n % 2:
                n = 3 * n + 1
            else:
                n //= 2
                accumulated += sum(j * n for j in range(n & 3))
            k += 1
        assert (steps[i], total[i]) == (k, accumulated % 2**32)


@pytest.mark.parametrize("name", ["struct_constant", "struct_plain"])
@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_struct_passed_by_value(kernels, name, which):
    memory = Memory()
    rows = [np.zeros(100, np.float32) for _ in range(3)]
    addresses = [memory.add(row, name=f"row {k}") for k, row in enumerate(rows)]
    layout = struct.pack("<3Q4qdfhb", *addresses, 1, 2, 3, 4, 0.25, 2.0, -3, -1)
    layout += bytes(-len(layout) % 8)
    kernels[name].launch(memory, (1,), (32,), [layout, argument(np.int32(which)), argument(np.int32(25))])
    expected = np.zeros(100, np.float32)
    expected[: 25 * (which + 1) : which + 1] = np.arange(25) * -0.25 - 1
    np.testing.assert_array_equal(rows[which % 3], expected)
    assert len(kernels[name].parameters) == 3
    assert kernels[name].parameters[0].size == len(layout) == 72


def test_lanes_of_one_access_may_lie_in_different_arrays(kernels):
    memory = Memory()
    rows = [np.arange(65, dtype=np.float32) * 10**k for k in range(3)]
    expected = [row.copy() for row in rows]
    for i in range(64):
        expected[i % 3][i] += expected[i % 3][i + 1]
    addresses = [memory.add(row, name=f"row {k}") for k, row in enumerate(rows)]
    kernels["struct_each"].launch(memory, (2,), (32,), [struct.pack("<3Q", *addresses) + bytes(48)])
    np.testing.assert_array_equal(rows, expected)
    memory.remove(addresses[1])
    with pytest.raises(PTXError, match="out of bounds"):
        kernels["struct_each"].launch(memory, (2,), (32,), [struct.pack("<3Q", *addresses) + bytes(48)])


def test_a_register_is_changed_in_the_lanes_that_execute_only():
    body = """
        mov.u32 %r0, %tid.x; mov.u32 %r1, %r0; setp.gt.u32 %p0, %r0, 3; @%p0 mov.u32 %r1, 100;
        add.u32 %r1, %r1, %r0;
        ld.param.u64 %d0, [out]; mad.wide.u32 %d0, %r0, 4, %d0; st.global.u32 [%d0], %r1;"""
    out = np.zeros(8, np.uint32)
    launch(handwritten(body), (1,), (8,), out)
    assert out.tolist() == [0, 2, 4, 6, 104, 105, 106, 107]


def test_a_barrier_counts_in_its_own_block():
    """The threads of three blocks for whom a predicate is true: 6, 3 and none; some of two blocks have ended."""
    body = """
        mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; ld.param.u64 %d0, [out];
        mad.lo.u32 %r2, %r1, 8, %r0; mad.wide.u32 %d0, %r2, 4, %d0;
        add.u32 %r3, %r0, %r2; setp.gt.u32 %p1, %r3, 20; @%p1 ret;
        mul.lo.u32 %r3, %r1, 3; sub.u32 %r3, 6, %r3; setp.lt.u32 %p2, %r0, %r3;
        bar.red.popc.u32 %r4, 0, %p2; st.global.u32 [%d0], %r4;"""
    out = np.full(24, 99, np.uint32)
    launch(handwritten(body), (3,), (8,), out)
    assert out.tolist() == [6] * 8 + [3] * 7 + [99] + [0] * 3 + [99] * 5


def test_threads_that_end_while_others_wait():
    """Of every three threads one ends first; the others wait at two labels, one with a register more."""
    body = """
        mov.u32 %r0, %tid.x; ld.param.u64 %d0, [out]; mad.wide.u32 %d0, %r0, 4, %d0;
        rem.u32 %r1, %r0, 3; setp.eq.u32 %p0, %r1, 1; setp.eq.u32 %p1, %r1, 2;
        @%p0 mov.u32 %r2, 100;
        @%p0 bra one;
        @%p1 bra two;
        st.global.u32 [%d0], 7; ret;
        one: add.u32 %r2, %r2, %r0; st.global.u32 [%d0], %r2; ret;
        two: st.global.u32 [%d0], %r0;"""
    out = np.zeros(9, np.uint32)
    launch(handwritten(body), (1,), (9,), out)
    assert out.tolist() == [7, 101, 2, 7, 104, 5, 7, 107, 8]
