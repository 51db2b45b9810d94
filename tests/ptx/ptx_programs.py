"""PTX for the tests of its interpreter, compiled from CUDA or written by hand, and launched with NumPy arrays."""

from __future__ import annotations

import struct
from functools import cache

import kept
import numpy as np
import pytest
from ptx import Memory, Module

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


@cache
def compile_cuda(source: str, architecture: int) -> Module:
    """The PTX of a source for compute capability `architecture` / 10; skips the test without NVRTC."""
    cupy = pytest.importorskip("cupy", reason="needs CuPy and NVRTC to compile", exc_type=ImportError)
    nvrtc = cupy.cuda.nvrtc
    try:
        nvrtc.getVersion()
    except Exception as error:
        pytest.skip(f"NVRTC cannot be loaded: {error}")
    options = (f"-arch=compute_{architecture}", "--std=c++17", "-fmad=false", "-lineinfo")

    def make() -> str:
        program = nvrtc.createProgram(source, "test_ptx.cu", (), ())
        nvrtc.compileProgram(program, options)
        return nvrtc.getPTX(program).decode()

    facts = (source, options, nvrtc.getVersion())
    return Module(kept.text(kept.folder("ptx"), f"test_ptx-{architecture}.ptx", facts, make).read_text())


def argument(value) -> bytes:
    """An int becomes 8 bytes, a NumPy scalar those it has."""
    return struct.pack("<Q", value % 2**64) if isinstance(value, int) else value.tobytes()


def launch(kernel, grid, block, *arguments, readonly=(), blank=(), **options):
    """Run with arrays in the place of pointers; `readonly` and `blank` (uninitialised) name some by index."""
    memory = Memory()
    values = [
        memory.add(value, name=f"array {k}", writable=k not in readonly, initialised=k not in blank)
        if isinstance(value, np.ndarray)
        else value
        for k, value in enumerate(arguments)
    ]
    return kernel.launch(memory, grid, block, [argument(value) for value in values], **options)


def aligned(size: int, dtype, offset: int = 0) -> np.ndarray:
    """Zeros whose address is `offset` bytes after a multiple of 64."""
    raw = np.zeros(size * np.dtype(dtype).itemsize + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    return raw[start : start + size * np.dtype(dtype).itemsize].view(dtype)


def handwritten_text(body: str, parameters: str = ".param .u64 out", registers: str = "", target: str = "sm_90") -> str:
    return f"""
        .version 8.0
        .target {target}
        .address_size 64
        .visible .entry k({parameters}) {{
            .reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %d<9>; {registers}
            {body}
            ret;
        }}"""


def handwritten(*text: str) -> object:
    return Module(handwritten_text(*text)).entries["k"]
