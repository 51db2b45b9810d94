"""Kernels of CUDA, compiled by NVRTC on first use for a device's architecture, and kept on disk.

CuPy's own compiler is not used: it appends ``-ftz=true``, with which subnormal numbers would be lost.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

from ...kernels import abi
from .. import disk_cache as cache
from .available import require

OPTIONS = ("--std=c++17", "-fmad=false")
KERNELS = Path(abi.__file__).parent

lock = threading.RLock()
_modules: dict[tuple[str, int, tuple[str, ...]], tuple[Any, dict[str, Any]]] = {}


def source(name: str) -> str:
    """The source of a kernel file as one string: included files are in place, and structs generated (`"X.abi"` is layout X's)."""
    included: set[str] = set()

    def include(match: re.Match[str]) -> str:
        stem, ending = match.groups()
        if stem in included:
            return ""
        included.add(stem)
        return abi.LAYOUTS[stem].declaration if ending == "abi" else expand(f"{stem}.cuh")

    def expand(file: str) -> str:
        return re.sub(r'#include "(\w+)\.(cuh|abi)"\n', include, (KERNELS / file).read_text())

    return expand(f"{name}.cu")


def compile_source(name: str, architecture: str, *options: str) -> tuple[bytes, str]:
    """Compile a kernel file for ``sm_XY`` (to a cubin) or ``compute_XY`` (to PTX); return the result and the compiler's log."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(source(name), f"{name}.cu", (), ())
    try:
        try:
            nvrtc.compileProgram(program, (f"-arch={architecture}", *OPTIONS, *options))
        except nvrtc.NVRTCError as error:
            raise RuntimeError(
                f"fastpe: {name}.cu does not compile for {architecture}:\n{nvrtc.getProgramLog(program)}"
            ) from error
        # CuPy takes the last byte of a cubin for the end of a string.
        result = nvrtc.getCUBIN(program) + b"\0" if architecture.startswith("sm_") else nvrtc.getPTX(program)
        return result, str(nvrtc.getProgramLog(program))
    finally:
        nvrtc.destroyProgram(program)


def architecture(capability: int) -> str:
    """What to compile for: machine code; for a GPU that NVRTC does not know, the newest PTX below it, which the driver translates."""
    from cupy.cuda import nvrtc

    below = [known for known in nvrtc.getSupportedArchs() if known <= capability]
    return f"sm_{capability}" if capability in below or not below else f"compute_{max(below)}"


def function(name: str, entry: str, device: int, options: tuple[str, ...] = ()) -> Any:
    """An entry point of a kernel file, compiled with these definitions for a device's architecture, and loaded."""
    import cupy

    with lock:
        key = (name, device, options)
        if key not in _modules:
            require()
            refuse_capture(device, FIRST_CALL)
            with cupy.cuda.Device(device):
                loaded = cupy.cuda.Module()
                loaded.load(_cubin(name, architecture(int(cupy.cuda.Device(device).compute_capability)), *options))
            _modules[key] = loaded, {}
        loaded, functions = _modules[key]
        if entry not in functions:
            with cupy.cuda.Device(device):
                found = functions[entry] = loaded.get_function(entry)
                # The driver loads a function when it is first asked for more than its name, which a capture must not wait for.
                cupy.cuda.driver.funcGetAttribute(cupy.cuda.driver.CU_FUNC_ATTRIBUTE_NUM_REGS, found.ptr)
        return functions[entry]


FIRST_CALL = (
    "the first call for a width loads kernels and tables, which a graph capture forbids: "
    "call fastpe.warmup(device=...) and this function once before the capture"
)


def is_capturing(device: int) -> bool:
    """Whether the current stream is being captured into a graph."""
    import cupy

    with cupy.cuda.Device(device):
        return bool(getattr(cupy.cuda.get_current_stream(), "is_capturing", lambda: False)())


def refuse_capture(device: int, reason: str) -> None:
    """Raise if the current stream is being captured into a graph, for what is then not allowed or not safe."""
    if is_capturing(device):
        raise RuntimeError(f"fastpe: {reason}.")


def refuse_temporary(device: int | None, reason: str) -> None:
    """Raise if a graph is being captured that would read what this call alone keeps. Memory of PyTorch's stays as long as its graphs."""
    import cupy

    if device is not None and not getattr(cupy.cuda.get_allocator(), "keeps_for_graphs", False):
        refuse_capture(device, reason)


def _cubin(name: str, architecture: str, *options: str) -> bytes:
    from cupy.cuda import nvrtc

    key = cache.key(f"{name}-{architecture}", source(name), nvrtc.getVersion(), OPTIONS, options)
    folder = cache.folder("cuda")
    content = None if folder is None else cache.load(folder, key)
    if content is None:
        content, _ = compile_source(name, architecture, *options)
        if folder is not None:
            cache.store(folder, key, content)
    return content
