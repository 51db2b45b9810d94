"""The PTX interpreter runs kernels as CUDA would, and catches every fault that it promises to catch."""

import re
import struct

import numpy as np
import pytest
from ptx import Memory, PTXError
from ptx_programs import aligned, argument, compile_cuda, handwritten, launch

CUDA = r"""
typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64; typedef long long i64;
#define KERNEL extern "C" __global__ void
#define INDEX (blockIdx.x * blockDim.x + threadIdx.x)

KERNEL copy_vec16(uint4* out, const uint4* in, i64 n) { i64 i = INDEX; if (i < n) out[i] = in[i]; }
KERNEL copy_cached(float* out, const float* __restrict__ in) { out[INDEX] = in[INDEX]; }
KERNEL extend(i64* out, const signed char* a, const short* b, const unsigned char* c, const int* d) {
    u32 i = INDEX; out[i] = a[i] + 1000LL * b[i] + 100000000LL * c[i] + 100000000000LL * d[i]; }
KERNEL scale_2d(float* x, int rows, int columns, float factor) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += gridDim.y * blockDim.y)
        x[row * columns + column] *= factor; }
KERNEL place_3d(int* out) {
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread; }
KERNEL collatz(u32* steps, u32* total) {
    u32 i = INDEX, n = i + 1, k = 0, sum = 0;
    while (n != 1) {
        if (n & 1) n = 3 * n + 1;
        else { n >>= 1; for (u32 j = 0; j < (n & 3); j++) sum += j * n; }
        k++; }
    steps[i] = k; total[i] = sum; }

KERNEL shift_racy(int* x) { u32 i = INDEX; x[i] = x[i + 1]; }
KERNEL shift_barrier(int* x) { u32 i = INDEX; int v = x[i + 1]; __syncthreads(); x[i] = v; }
KERNEL write_one(int* x) { x[0] = INDEX; }
KERNEL write_bytes(unsigned char* x) { u32 i = INDEX; x[i] = (unsigned char)i; }
KERNEL reread(volatile int* x, int* out) {
    u32 i = INDEX; x[i] = i; __syncthreads(); out[i] = x[i ^ 1]; __syncthreads(); x[i ^ 1] = 7; }
KERNEL exchange(int* x) { u32 i = INDEX; int v = x[i]; __syncthreads(); x[i ^ 1] = 10 * x[i ^ 1] + v; }
KERNEL reverse(int* x) {
    __shared__ int s[64]; u32 i = threadIdx.x; s[i] = x[INDEX]; __syncthreads(); x[INDEX] = s[63 - i]; }
KERNEL reverse_racy(int* x) {
    __shared__ volatile int s[64]; u32 i = threadIdx.x; s[i] = x[INDEX]; x[INDEX] = s[63 - i]; }
KERNEL half_barrier(int* x) { if (threadIdx.x < 16) { __syncthreads(); x[INDEX] = 1; } else x[INDEX] = 2; }
KERNEL forever(volatile int* x) { while (x[0] == 0) { } }
KERNEL limited(int* x) __launch_bounds__(64);
KERNEL __launch_bounds__(64) limited(int* x) { x[INDEX] = 1; }

struct Layout { float* rows[3]; i64 stride[4]; double scale; float bias; short step; signed char sign; };
__device__ __forceinline__ void fill(const Layout& s, int which, int n) {
    int i = INDEX; if (i >= n) return;
    s.rows[which % 3][i * s.stride[which & 3]] = (float)(s.scale * i) * s.sign + s.bias + s.step; }
KERNEL struct_constant(const __grid_constant__ Layout s, int which, int n) { fill(s, which, n); }
KERNEL struct_plain(Layout s, int which, int n) { fill(s, which, n); }
KERNEL struct_each(const __grid_constant__ Layout s) {
    int i = INDEX; float* row = s.rows[i % 3]; row[i] += row[i + 1]; }
"""


@pytest.fixture(params=(75, 90, 120), ids="compute_{}".format)
def kernels(request):
    return compile_cuda(CUDA, request.param).entries


# ---- results -------------------------------------------------------------------------------------


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


# ---- faults --------------------------------------------------------------------------------------


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
