"""PTX for the tests of its interpreter, compiled from CUDA or written by hand, and launched with NumPy arrays."""

from __future__ import annotations

import struct
from functools import cache

import kept
import numpy as np
import pytest
from ptx import Memory, Module


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


def handwritten(body: str, parameters: str = ".param .u64 out", registers: str = "") -> object:
    text = f"""
        .version 8.0
        .target sm_90
        .address_size 64
        .visible .entry k({parameters}) {{
            .reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %d<9>; {registers}
            {body}
            ret;
        }}"""
    return Module(text).entries["k"]
