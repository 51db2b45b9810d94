"""The PTX interpreter catches every fault that it promises to catch."""

import re

import numpy as np
import pytest
from ptx import Memory, PTXError
from ptx_programs import aligned, argument, handwritten, launch


def test_misaligned_vector_access(kernels):
    source, out = aligned(64, np.float32, offset=4), aligned(64, np.float32)
    with pytest.raises(PTXError, match=r"misaligned 16-byte load at array 1 \+ 0 .* in: ld.global"):
        launch(kernels["copy_vec16"], (1,), (8,), out, source, 8)


def test_out_of_bounds(kernels):
    source, out = aligned(32, np.float32), aligned(28, np.float32)
    with pytest.raises(PTXError, match=r"out of bounds: 16-byte store at array 0 \+ 112"):
        launch(kernels["copy_vec16"], (1,), (8,), out, source, 8)
    launch(kernels["copy_vec16"], (1,), (8,), out, source, 7)
    for floats in (25, 27):  # the last access begins inside and ends outside
        with pytest.raises(PTXError, match=r"out of bounds: 16-byte store at array 0 \+ 96"):
            launch(kernels["copy_vec16"], (1,), (8,), aligned(floats, np.float32), source, 7)
        with pytest.raises(PTXError, match=r"out of bounds: 16-byte load at array 1 \+ 96"):
            launch(kernels["copy_vec16"], (1,), (8,), out, aligned(floats, np.float32), 7)
    with pytest.raises(PTXError, match="out of bounds"):
        launch(kernels["copy_vec16"], (1,), (8,), 0, source, 7)
    with pytest.raises(PTXError, match="out of bounds"):
        launch(kernels["copy_vec16"], (1,), (8,), np.zeros(0, np.float32), source, 7)


def test_write_to_read_only_memory(kernels):
    source, out = aligned(32, np.float32), aligned(32, np.float32)
    with pytest.raises(PTXError, match="write to read-only memory: array 0"):
        launch(kernels["copy_vec16"], (1,), (8,), out, source, 8, readonly={0})
    out.flags.writeable = False
    with pytest.raises(PTXError, match="write to read-only memory: array 0"):
        launch(kernels["copy_vec16"], (1,), (8,), out, source, 8)


def test_read_of_uninitialised_memory(kernels):
    memory = Memory()
    a, b, c = (aligned(32, np.float32) for _ in range(3))
    addresses = [memory.add(x, name=name, initialised=name == "a") for x, name in ((a, "a"), (b, "b"), (c, "c"))]
    first, second, third = (argument(address) for address in addresses)
    copy = kernels["copy_vec16"]
    copy.launch(memory, (1,), (8,), [second, first, argument(7)])
    copy.launch(memory, (1,), (8,), [third, second, argument(7)])
    with pytest.raises(PTXError, match="read of uninitialised memory: b, byte 112"):
        copy.launch(memory, (1,), (8,), [third, second, argument(8)])


def test_cached_load_of_what_the_launch_writes(kernels):
    x, out = np.zeros(64, np.float32), np.zeros(64, np.float32)
    launch(kernels["copy_cached"], (1,), (64,), out, x)
    with pytest.raises(PTXError, match="race on array 0"):
        launch(kernels["copy_cached"], (1,), (32,), x, x.ctypes.data + 4)
    body = "ld.param.u64 %d0, [out]; mov.b32 %r0, 1; st.global.b32 [%d0], %r0; ld.global.nc.b32 %r1, [%d0];"
    with pytest.raises(PTXError, match="non-coherent load of array 0, byte 0"):
        launch(handwritten(body), (1,), (1,), x)


@pytest.mark.parametrize("grid", [1, 2])
def test_race_between_threads(kernels, grid):
    with pytest.raises(PTXError, match=r"race on array 0, byte \d+: read by .*thread.*, written by thread"):
        launch(kernels["shift_racy"], (grid,), (64,), np.arange(200, dtype=np.int32))


def test_barrier_orders_the_threads_of_one_block_only(kernels):
    x = np.arange(65, dtype=np.int32)
    launch(kernels["shift_barrier"], (1,), (64,), x)
    np.testing.assert_array_equal(x, [*range(1, 65), 64])
    with pytest.raises(
        PTXError,
        match="race on array 0, byte 256: read by thread 63 of block 0, written by thread 0 of block 1",
    ):
        launch(kernels["shift_barrier"], (2,), (64,), np.arange(129, dtype=np.int32))
    x = np.arange(64, dtype=np.int32)
    launch(kernels["exchange"], (2,), (32,), x)
    np.testing.assert_array_equal(x, 10 * np.arange(64) + (np.arange(64) ^ 1))
    out = np.zeros(64, np.int32)
    launch(kernels["reread"], (1,), (64,), x, out)
    np.testing.assert_array_equal(out, np.arange(64) ^ 1)


def test_race_of_writes(kernels):
    with pytest.raises(PTXError, match=r"race on array 0, byte 0: written by .*, written by"):
        launch(kernels["write_one"], (1,), (2,), np.zeros(4, np.int32))
    launch(kernels["write_one"], (1,), (1,), np.zeros(4, np.int32))


def test_neighbouring_bytes_are_no_race(kernels):
    x = np.zeros(256, np.uint8)
    launch(kernels["write_bytes"], (4,), (64,), x)
    np.testing.assert_array_equal(x, np.arange(256))


def test_reads_of_several_blocks_are_remembered():
    """Thread 1 of block 0 reads what block 1 has read too; block 0 may not write it after its barrier."""
    body = """
        ld.param.u64 %d0, [out]; ld.global.b32 %r0, [%d0]; bar.sync 0;
        mov.u32 %r1, %ctaid.x; mov.u32 %r2, %tid.x; or.b32 %r1, %r1, %r2; setp.eq.u32 %p0, %r1, 0;
        @%p0 st.global.b32 [%d0], %r0;"""
    launch(handwritten(body), (1,), (32,), np.zeros(1, np.int32))
    with pytest.raises(
        PTXError,
        match="race on array 0, byte 0: read by threads of several blocks, written by thread 0 of block 0",
    ):
        launch(handwritten(body), (2,), (32,), np.zeros(1, np.int32))


@pytest.mark.parametrize("writer", [0, 15, 31])
def test_reads_of_several_threads_are_remembered(writer):
    body = f"""
        ld.param.u64 %d0, [out]; ld.global.b32 %r0, [%d0];
        mov.u32 %r1, %tid.x; setp.eq.u32 %p0, %r1, {writer};
        @%p0 st.global.b32 [%d0], %r0;"""
    with pytest.raises(PTXError, match="read by several threads of block 0, written by thread"):
        launch(handwritten(body), (1,), (32,), np.zeros(1, np.int32))


def test_reads_by_separate_instructions_are_remembered():
    body = """
        ld.param.u64 %d0, [out]; mov.u32 %r1, %tid.x; setp.eq.u32 %p0, %r1, 0;
        @%p0 ld.global.b32 %r0, [%d0];
        @!%p0 ld.global.b32 %r0, [%d0];
        @!%p0 st.global.b32 [%d0], %r0;"""
    with pytest.raises(PTXError, match="read by several threads of block 0, written by thread 1 of block 0"):
        launch(handwritten(body), (1,), (2,), np.zeros(1, np.int32))


def test_launches_do_not_race_with_each_other(kernels):
    x = np.ones((16, 16), np.float32)
    memory = Memory()
    arguments = [argument(value) for value in (memory.add(x, name="x"), np.int32(16), np.int32(16), np.float32(2))]
    for block in ((16, 4), (4, 16)):
        kernels["scale_2d"].launch(memory, (4, 1), block, arguments)
    np.testing.assert_array_equal(x, 4)


def test_shared_memory(kernels):
    x = np.arange(256, dtype=np.int32)
    launch(kernels["reverse"], (4,), (64,), x)
    np.testing.assert_array_equal(x, np.arange(256).reshape(4, 64)[:, ::-1].ravel())
    with pytest.raises(PTXError, match=r"race on shared memory|uninitialised memory: shared memory"):
        launch(kernels["reverse_racy"], (4,), (64,), x)
    with pytest.raises(PTXError, match="out of bounds: 4 bytes at shared address 256"):
        launch(kernels["reverse"], (2,), (128,), np.arange(256, dtype=np.int32))


def test_barrier_divergence(kernels):
    launch(kernels["half_barrier"], (2,), (16,), np.zeros(32, np.int32))
    with pytest.raises(PTXError, match="barrier divergence: 16 of 32 threads of block 0"):
        launch(kernels["half_barrier"], (2,), (32,), np.zeros(64, np.int32))


def test_endless_loop(kernels):
    with pytest.raises(PTXError, match="still running after 1000 steps"):
        launch(kernels["forever"], (1,), (4,), np.zeros(1, np.int32), max_steps=1000)
    launch(kernels["forever"], (1,), (4,), np.ones(1, np.int32), max_steps=1000)


def test_arguments_must_fit(kernels):
    x = np.zeros(64, np.float32)
    with pytest.raises(PTXError, match="copy_vec16: takes 3 arguments, got 2"):
        launch(kernels["copy_vec16"], (1,), (8,), x, x.ctypes.data)
    with pytest.raises(PTXError, match=r"copy_vec16: .* is 8 bytes, got 4"):
        launch(kernels["copy_vec16"], (1,), (8,), x, x.ctypes.data, np.int32(3))


@pytest.mark.parametrize(
    ("grid", "block"),
    [((0,), (1,)), ((1,), (1025,)), ((1, 65536), (1,)), ((1,), (1, 1, 65)), ((1,), (65,)), ((1,), (33, 2))],
)
def test_launch_shape_must_fit(kernels, grid, block):
    with pytest.raises(PTXError, match=r"limited: (grid|block)"):
        launch(kernels["limited"], grid, block, np.zeros(64, np.int32))


def test_unwritten_register():
    with pytest.raises(PTXError, match=r"read of register %r1, which was never written, in: add\.s32 %r0, %r1, 1"):
        launch(handwritten("add.s32 %r0, %r1, 1;"), (1,), (1,), 0)
    some_lanes = "mov.u32 %r0, %tid.x; setp.gt.u32 %p0, %r0, 3; @%p0 mov.u32 %r1, 7; {} add.u32 %r2, %r1, 1;"
    launch(handwritten(some_lanes.format("@%p0")), (1,), (8,), 0)
    with pytest.raises(PTXError, match="read of register %r1"):
        launch(handwritten(some_lanes.format("")), (1,), (8,), 0)


@pytest.mark.parametrize(
    "statement",
    [
        "call.uni (retval0), helper, (param0);",
        "atom.global.add.u32 %r0, [%d0], 1;",
        "shfl.sync.down.b32 %r0, %r1, 1, 31, -1;",
        "ex2.approx.f32 %r0, %r1;",
        "add.rz.f32 %r0, %r1, %r2;",
        "div.full.f32 %r0, %r1, %r2;",
        "add.f16 %h0, %h1, %h2;",
        "setp.lt.f16 %p0, %h1, %h2;",
        "cvt.rz.bf16.f32 %h0, %r1;",
        "mul.s32 %r0, %r1, %r2;",
        "ld.global.surprise.b32 %r0, [%d0];",
        "bar.sync 1;",
        "membar.gl;",
        "frobnicate.u32 %r0, %r1;",
    ],
)
def test_unsupported_instruction_is_named(statement):
    with pytest.raises(PTXError, match=r"k: unsupported .*in: ") as caught:
        handwritten(statement)
    assert str(caught.value).endswith(statement.rstrip(";"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("add.u32 %r0, %r1;", "2 sources and 1 results"),
        ("add.u32 %r0, %r1, nobody;", "unknown name nobody"),
        ("add.u64 %d0, %r1, %d2;", "%r1 holds uint32, not uint64"),
        ("mov.u32 %r0, %p1;", "%p1 holds bool"),
        ("bra nowhere;", "no label nowhere"),
        ("a: a: bra a; a: ret;", "label a occurs twice"),
        ("{ .reg .b32 %inner; mov.u32 %inner, 1; } mov.u32 %r0, %inner;", "unknown name %inner"),
        ("mov.u32 %r0, 1", "%r0"),
    ],
)
def test_malformed_text(body, message):
    with pytest.raises(PTXError, match=re.escape(message)):
        handwritten(body)


def test_integer_division_by_zero():
    with pytest.raises(PTXError, match=r"integer division by zero in: div\.u32"):
        launch(handwritten("mov.u32 %r0, 0; div.u32 %r1, 7, %r0;"), (1,), (1,), 0)


def test_only_contiguous_arrays_that_do_not_overlap_are_memory():
    memory = Memory()
    x = np.zeros((8, 8), np.float32)
    with pytest.raises(PTXError, match="x: only C-contiguous"):
        memory.add(x[:, ::2], name="x")
    address = memory.add(x[2:4], name="middle")
    assert address == x[2:].ctypes.data
    for part in (x, x[3:5], x[1:3], x[2:3]):
        with pytest.raises(PTXError, match="part: overlaps middle"):
            memory.add(part, name="part")
    memory.add(x[:2], name="before")
    memory.add(x[4:], name="after")
    memory.remove(address)
    memory.add(x[2:4], name="middle again")
