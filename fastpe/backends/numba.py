"""Host memory: compile a kernel for its element type on first use, lay out its argument block, share out the rows."""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import itertools
import pickle
import struct
import sys
from collections.abc import Callable, Iterator
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

CHUNK_BYTES = 1 << 18  # of x
LARGEST_CHUNK_BYTES = 1 << 21  # where sequences share what is made for them, a chunk takes many of them
CHUNKS = 64  # at least so many for the threads to share, before chunks grow
SHARED_BYTES = 1 << 16  # of encoding made for the sequences of a chunk; kernels.add_sinusoidal.SHARED_BYTES
MARGIN = 16  # kernels.add_sinusoidal.MARGIN
BYTES_PER_HELPER = 3 << 18  # below this a helper wakes too late to help
FINISHED_BYTES = 1_900_000  # of a plan's finished rows, at most
FINISHED_FOR_BYTES = 1 << 24  # of the largest x that they are used for
FINISHED_PLANS = 4  # that have finished rows at a time


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
    for call in _calls(operation):
        call.run(call.source, call.target, call.start)


def prepare(operation: AddSinusoidal) -> Call | None:
    """What runs this operation again for other arrays of the same layout; None where that takes more than one call."""
    calls = list(itertools.islice(_calls(operation), 2))
    return calls[0] if len(calls) == 1 else None


def _calls(operation: AddSinusoidal) -> Iterator[Call]:
    x, out, plan = operation.x, operation.out, operation.plan
    mode = _ALONE if x is None else _IN_PLACE if x.same_elements(out) else _OUT_OF_PLACE
    compiled = kernel("add_sinusoidal", out.dtype, mode)
    tables, alive = _tables(plan)
    for arguments in operation.arguments(tables):
        yield Call(compiled, arguments, out.dtype, mode, _finished(plan, out.dtype), (alive, operation.rows.alive))


_IN_PLACE, _OUT_OF_PLACE, _ALONE = 0, 1, 2  # kernels.add_sinusoidal
_BLOCK = struct.Struct("=31q2d")
_X, _OUT, _BATCH, _ROWS, _HEADS, _POSITIONS, _START = 0, 1, 2, 3, 4, 14, 18  # places in it: kernels.add_sinusoidal.ARGUMENTS
_CONTROL_WORDS = 64  # kernels.add_sinusoidal.CONTROL_WORDS, and the places in it
_NEXT, _FINISHED, _LEFT, _CHUNKS, _ROWS_PER_CHUNK, _BATCH_PER_CHUNK, _YIELD = 0, 16, 32, 48, 49, 50, 51
_STREAMS, _KNOWN, _FILLS, _SEATS, _HELPERS, _CALLED = 52, 53, 54, 55, 56, 57


class _Blocks:
    """The memory of one run: control block, argument block, and room for positions. ``alive`` owns what they point to."""

    alive: Any = None

    def __init__(self, control: dict[int, int], arguments: tuple[Any, ...], positions: int) -> None:
        used = _CONTROL_WORDS + _BLOCK.size // 8
        array = np.zeros(used + positions, np.int64)
        self.words = array.data
        self.positions = array[used:]
        self.control: int = array.ctypes.data
        self.call = self.control + 8 * _CONTROL_WORDS
        self.positions_at = self.control + 8 * used
        _BLOCK.pack_into(self.words, 8 * _CONTROL_WORDS, *arguments)
        for place, word in control.items():
            self.words[place] = word


class Call:
    """A kernel call of which all is settled but where the arrays are and where the first row stands."""

    def __init__(
        self, compiled: Callable[..., None], arguments: tuple[Any, ...], dtype: str, mode: int, finished: _Finished, alive: Any
    ) -> None:
        self.source, self.target, self.start = arguments[_X], arguments[_OUT], arguments[_START]
        self._compiled, self._arguments, self._alive, self._finished = compiled, arguments, alive, finished
        batch, self.rows, heads, width = arguments[_BATCH : _BATCH + 4]
        row_bytes, real_bytes = width * heads * ITEMSIZE[dtype], 8 if dtype == "float64" else 4
        nbytes = batch * self.rows * row_bytes
        # Sequences that share their positions share the making of a row: a chunk takes a few rows of many sequences.
        shared = batch > 1 and arguments[_POSITIONS + 1] == 0
        chunk_bytes = min(max(nbytes // CHUNKS, CHUNK_BYTES), LARGEST_CHUNK_BYTES if shared else CHUNK_BYTES)
        target_rows = SHARED_BYTES // (width * real_bytes) if shared else chunk_bytes // row_bytes
        rows_per_chunk = min(self.rows, max(8, target_rows // 8 * 8))
        batch_per_chunk = min(batch, max(1, chunk_bytes // (row_bytes * rows_per_chunk)))
        chunks = -(-self.rows // rows_per_chunk) * -(-batch // batch_per_chunk)
        self._helpers = min(chunks - 1, nbytes // BYTES_PER_HELPER)
        self._control = {
            _CHUNKS: chunks,
            _ROWS_PER_CHUNK: rows_per_chunk,
            _BATCH_PER_CHUNK: batch_per_chunk,
            _YIELD: pool.yield_function(),
            _CALLED: 1,
            _STREAMS: mode != _IN_PLACE and nbytes > cache_bytes(),
        }
        self._knows = arguments[_POSITIONS] == 0 and self.rows <= finished.most_rows and nbytes <= FINISHED_FOR_BYTES
        self._offsets = batch if arguments[_POSITIONS] != 0 and self.rows == 1 else 0
        self._free: list[_Blocks] = []  # of runs that had no helpers, which could still look at theirs

    def run(self, source: int, target: int, start: int, offsets: Any = None) -> None:
        """Run on the arrays at these addresses.

        ``start`` is the first row's position in units of 2^-32. ``offsets``: (B,) int64, the position of each sequence's only row.
        """
        try:
            blocks = self._free.pop()
        except IndexError:
            blocks = _Blocks(self._control, self._arguments, self._offsets)
        words = blocks.words
        words[_CONTROL_WORDS + _X], words[_CONTROL_WORDS + _OUT], words[_CONTROL_WORDS + _START] = source, target, start
        known = self._finished.known(self, start) if self._knows else None
        words[_KNOWN] = 0 if known is None else known[0]
        if offsets is not None:
            np.left_shift(offsets, 32, out=blocks.positions)
            words[_CONTROL_WORDS + _POSITIONS] = blocks.positions_at
        helpers = self._helpers
        if helpers > 0:
            helpers = min(helpers, pool.threads() - 1)
        if helpers <= 0:
            words[_SEATS] = 0
            self._compiled(blocks.call, blocks.control, True)
        else:
            seats = pool.seats(self._compiled)
            words[_SEATS], words[_HELPERS] = seats.address, helpers
            blocks.alive = self._alive, known
            seats.keep(blocks)
            asleep = helpers - seats.taken()
            if asleep > 0:
                pool.run(self._compiled, (blocks.call, blocks.control), asleep, blocks, seats)
                seats.let_go(blocks)
                return  # not to be used again: a helper that comes late will look at them
            self._compiled(blocks.call, blocks.control, True)
            if not seats.let_go(blocks):
                return
        words[_NEXT] = words[_FINISHED] = words[_LEFT] = 0
        words[_CALLED] = 1
        self._free.append(blocks)

    def fill(self, table: int, rows: int) -> None:
        """Write the rows of the positions 0, 1, ... to a table."""
        control = {**self._control, _CHUNKS: 1, _ROWS_PER_CHUNK: rows, _BATCH_PER_CHUNK: 1, _KNOWN: table, _FILLS: 1}
        blocks = _Blocks(control, self._arguments, 0)
        for place, word in ((_BATCH, 1), (_ROWS, rows), (_HEADS, 1), (_START, 0)):
            blocks.words[_CONTROL_WORDS + place] = word
        self._compiled(blocks.call, blocks.control, True)


# ---- finished rows -----------------------------------------------------------------------------------------------------------


class _Finished:
    """The first rows of a plan, ready to be added, for calls so small that making them is most of the work.

    They are made for the second such call, so that a single one does not pay for them, and given up when other plans need them.
    """

    def __init__(self, width: int, real: str) -> None:
        self._width, self._real = width, real
        self.most_rows = FINISHED_BYTES // (width * ITEMSIZE[real])
        self._asked = False
        self._made: tuple[int, int, Any] = 0, 0, None

    def known(self, call: Call, start: int) -> tuple[int, int, Any] | None:
        """Address, number and array of the rows, if all of the call's are among them."""
        needed = (start >> 32) + call.rows
        if start < 0 or start & 0xFFFFFFFF or needed > self.most_rows:
            return None
        made = self._made
        if needed <= made[1]:
            return made
        if not self._asked:
            self._asked = True
            return None
        rows = min(self.most_rows, 1 << (needed - 1).bit_length())
        array = np.empty((rows, self._width), self._real)
        call.fill(array.ctypes.data, rows)
        if made[2] is None:
            _with_rows.append(self)
            while len(_with_rows) > FINISHED_PLANS:
                _with_rows.popleft()._made = 0, 0, None
        self._made = made = array.ctypes.data, rows, array
        return made


_with_rows: collections.deque[_Finished] = collections.deque()


@functools.lru_cache(maxsize=64)
def _finished_of(plan: SinusoidalPlan, real: str) -> _Finished:
    return _Finished(plan.width, real)


def _finished(plan: SinusoidalPlan, dtype: str) -> _Finished:
    return _finished_of(plan, "float64" if dtype == "float64" else "float32")


# ---- what the system says ----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def cache_bytes() -> int:
    """Bytes of the last-level cache; 32 MiB where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        sizes = (path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
        return max(int(size[:-1]) << {"K": 10, "M": 20, "G": 30}[size[-1]] for size in sizes)
    return 32 << 20


@functools.lru_cache(maxsize=64)
def _tables(plan: SinusoidalPlan) -> tuple[Tables, tuple[Any, ...]]:
    """Addresses of a plan's tables, and the arrays that hold them."""
    cosines, sines = plan.rotations
    fraction, whole = (np.pad(turns, (0, MARGIN)) for turns in (plan.turns.fraction, plan.turns.whole))
    arrays = fraction, whole, cosines, sines
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
