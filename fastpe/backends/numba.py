"""Host memory: compile a kernel for its element type on first use, lay out its argument block, share out the rows."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .. import kernels
from ..arrays import ITEMSIZE, Memory
from ..arrays import numpy as numpy_arrays
from ..encodings import SinusoidalPlan
from ..kernels import locate_rows
from ..locks import unforkable
from ..operations import AddSinusoidal, Tables
from . import cache, pool

CHUNK_BYTES = 1 << 18  # of x; a chunk and its tables stay in a core's second-level cache
BYTES_PER_HELPER = 1 << 20  # below this a helper wakes too late to help
CONTIGUOUS_BYTES = 1 << 15  # of one sequence, before a chunk goes on to the next sequence

_kernels: dict[tuple[Any, ...], Callable[..., None]] = {}


def kernel(name: str, *variant: Any) -> Callable[..., None]:
    """Return the compiled kernel of an operation; ``variant`` are the arguments of its module's ``build``."""
    key = (name, *variant)
    try:
        return _kernels[key]
    except KeyError:
        with unforkable:
            if key not in _kernels:
                _kernels[key] = _compile(name, *variant)
            return _kernels[key]


def _compile(name: str, *variant: Any) -> Callable[..., None]:
    """Load a kernel from the cache, or compile it and store it there."""
    with contextlib.suppress(Exception):  # the cache leans on Numba's internals; whatever fails there, compiling works
        stored = _load(name, variant)
        if stored is not None:
            return stored
    import numba

    module = importlib.import_module(f"fastpe.kernels.{name}")
    compiled = numba.njit(module.SIGNATURE, nogil=True, error_model="numpy", boundscheck=False)(module.build(*variant))
    (result,) = compiled.overloads.values()
    with contextlib.suppress(Exception):
        _store(name, variant, result)
    return _entry(result)


_alive: list[Any] = []  # compile results own the machine code


def _entry(result: Any) -> Callable[..., None]:
    """What runs the machine code; called directly, without Numba's dispatch on argument types."""
    _alive.append(result)
    entry: Callable[..., None] = result.entry_point
    return entry


# ---- the kernels on disk -----------------------------------------------------------------------------------------------------


def _key(name: str, variant: tuple[Any, ...]) -> str:
    """Everything that machine code depends on: versions, the CPU compiled for, Numba's settings, the kernels' sources."""
    import llvmlite
    import numba
    from numba.core.registry import cpu_target

    settings = [getattr(numba.config, setting, None) for setting in ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK")]
    facts = [
        sys.version,
        sys.platform,
        numba.__version__,
        llvmlite.__version__,
        cpu_target.target_context.codegen().magic_tuple(),
    ]
    sources = [path.read_text() for path in sorted(Path(kernels.__file__).parent.glob("*.py"))]
    return cache.key("-".join((name, *(str(part) for part in variant))), *facts, settings, *sources)


def _load(name: str, variant: tuple[Any, ...]) -> Callable[..., None] | None:
    place = cache.folder("numba")
    content = None if place is None else cache.load(place, _key(name, variant))
    if content is None:
        return None
    from numba.core.compiler import CompileResult
    from numba.core.registry import cpu_target

    context: Any = cpu_target.target_context
    context.refresh()  # makes Numba's runtime known; without it the first call of loaded code crashes
    rebuild: Any = CompileResult._rebuild
    # Unpickling runs what the file says: the folder is this user's alone, and the file's name is the hash of its content.
    return _entry(rebuild(context, *pickle.loads(content.read_bytes())))


def _store(name: str, variant: tuple[Any, ...], result: Any) -> None:
    from numba.core import serialize

    place = cache.folder("numba")
    if place is not None:
        dumps: Any = serialize.dumps
        cache.store(place, _key(name, variant), dumps(result._reduce()))


def warmup(dtype: str, device: int | None) -> None:
    """Compile what ``add_encoding(x)`` and ``encode`` run for one element type with the default layout."""
    for mode in (_IN_PLACE, _ALONE):
        kernel("add_sinusoidal", dtype, mode)


def run(operation: AddSinusoidal) -> None:
    """Run an operation to its end."""
    x, out, plan = operation.x, operation.out, operation.plan
    mode = _ALONE if x is None else _IN_PLACE if x.same_elements(out) else _OUT_OF_PLACE
    compiled = kernel("add_sinusoidal", out.dtype, mode)
    tables, alive = _tables(plan)
    for arguments in operation.arguments(tables):
        _run(compiled, arguments, ITEMSIZE[out.dtype])
    del alive


_IN_PLACE, _OUT_OF_PLACE, _ALONE = 0, 1, 2  # kernels.add_sinusoidal
_BLOCK = struct.Struct("=31q2d")
_CONTROL_WORDS = 40  # kernels.add_sinusoidal.CONTROL_WORDS, and the places in it
_CHUNKS, _ROWS_PER_CHUNK, _BATCH_PER_CHUNK, _YIELD = 32, 33, 34, 35
_NEXT, _FINISHED = 0, 16
_CONTROL, _COUNTER = struct.Struct("=4q"), struct.Struct("=q")


class _Blocks:
    """The memory of one call's control block and argument block."""

    def __init__(self) -> None:
        array = np.zeros(8 * _CONTROL_WORDS + _BLOCK.size, np.uint8)
        self.memory = array.data
        self.control: int = array.ctypes.data
        self.call = self.control + 8 * _CONTROL_WORDS


_free: list[_Blocks] = []  # blocks of calls that had no helpers, which could still look at theirs


def _run(compiled: Callable[..., None], arguments: tuple[Any, ...], itemsize: int) -> None:
    """Cut the rows into chunks and let the caller, and helpers where they are worth waking, work them off."""
    batch, rows, heads, width = arguments[2:6]
    row_bytes = width * heads * itemsize
    # Sequences that share their positions share the making of a row: a chunk takes a few rows of many sequences.
    shared = batch > 1 and arguments[15] == 0
    target_rows = (CONTIGUOUS_BYTES if shared else CHUNK_BYTES) // row_bytes
    rows_per_chunk = min(rows, max(8, target_rows // 8 * 8))
    batch_per_chunk = min(batch, max(1, CHUNK_BYTES // (row_bytes * rows_per_chunk)))
    chunks = -(-rows // rows_per_chunk) * -(-batch // batch_per_chunk)
    helpers = min(chunks - 1, batch * rows * row_bytes // BYTES_PER_HELPER)
    if helpers > 0:
        helpers = min(helpers, pool.get_num_threads() - 1)
    try:
        blocks = _free.pop()
    except IndexError:
        blocks = _Blocks()
    memory = blocks.memory
    _CONTROL.pack_into(memory, 8 * _CHUNKS, chunks, rows_per_chunk, batch_per_chunk, _yield_function())
    _BLOCK.pack_into(memory, 8 * _CONTROL_WORDS, *arguments)
    if helpers > 0:
        pool.run(compiled, (blocks.call, blocks.control), helpers, blocks)
        return
    compiled(blocks.call, blocks.control, True)
    _COUNTER.pack_into(memory, 8 * _NEXT, 0)
    _COUNTER.pack_into(memory, 8 * _FINISHED, 0)
    _free.append(blocks)


@functools.lru_cache(maxsize=1)
def _yield_function() -> int:
    """Address of the C function that gives up the processor while the caller waits for a helper's last chunk; 0 to spin."""
    with contextlib.suppress(OSError, AttributeError):
        if sys.platform == "win32":
            return ctypes.cast(ctypes.windll.kernel32.SwitchToThread, ctypes.c_void_p).value or 0
        return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
    return 0


@functools.lru_cache(maxsize=64)
def _tables(plan: SinusoidalPlan) -> tuple[Tables, tuple[Any, ...]]:
    """Addresses of a plan's tables, and the arrays that hold them."""
    cosines, sines = plan.rotations
    arrays = plan.turns.fraction, plan.turns.whole, cosines, sines
    return Tables(*(array.ctypes.data for array in arrays)), arrays


# ---- positions ---------------------------------------------------------------------------------------------------------------


def _int64(value: Memory | int) -> Any:
    return np.array([value], np.int64) if isinstance(value, int) else value.array.astype(np.int64, copy=False)


def locate_rows_given(library: ModuleType, positions: Memory) -> Memory:
    return numpy_arrays.memory(locate_rows.locate_rows_given(positions.array))


def locate_rows_ragged(library: ModuleType, rows: int, offsets: Memory | int, boundaries: Memory | None) -> Memory:
    table = locate_rows.locate_rows_ragged(rows, _int64(offsets), None if boundaries is None else _int64(boundaries))
    return numpy_arrays.memory(table)


def locate_rows_counted(library: ModuleType, mask: Memory, offsets: Memory | int, boundaries: Memory | None) -> Memory:
    kept = np.atleast_2d(mask.array)
    table = locate_rows.locate_rows_counted(kept, _int64(offsets), None if boundaries is None else _int64(boundaries))
    return numpy_arrays.memory(table)
