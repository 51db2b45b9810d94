"""Host memory: compile a kernel for its element type on first use, lay out its argument block, share out the rows."""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import itertools
import mmap
import pickle
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..._arrays import ITEMSIZE, Memory
from ..._arrays import numpy as numpy_arrays
from ..._arrays.locks import unforkable
from ...kernels import blocks as at
from ...kernels import locate_rows
from .. import disk_cache as cache
from ..calls import AddGrid, AddSinusoidal, CallerTable, RotaryTables, Rotate, SumRows, Tables
from ..plans import RotaryPlan, SinusoidalPlan, TablePlan
from ..toeplitz import AddToeplitz
from . import pool

CHUNK_BYTES = 1 << 18  # of x
LARGEST_CHUNK_BYTES = 1 << 21  # where sequences share what is made for them, a chunk takes many of them
CHUNKS = 64  # at least so many for the threads to share, before chunks grow
SHARED_BYTES = 1 << 16  # of encoding made at a time where sequences or heads share it: stays in the second-level cache
STREAMED_BYTES = 1 << 13  # of encoding made at a time before it is streamed out, where nothing shares it
BYTES_PER_HELPER = 3 << 18  # below this a helper wakes too late to help
KEPT_SCRATCH = 4, 1 << 21  # pieces of scratch memory kept between calls, and bytes of the largest


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
    sources = [path.read_text() for path in sorted(Path(at.__file__).parent.glob("*.py"))]
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
    """Compile what ``add_encoding(x)``, ``encode`` and ``apply_rotary(q, k)`` run for one element type."""
    for mode in (_IN_PLACE, _ALONE):
        kernel("add_sinusoidal", dtype, mode)
    kernel("rotate", dtype, _IN_PLACE)


def run(operation: AddSinusoidal | AddGrid | Rotate | SumRows | AddToeplitz) -> None:
    """Run an operation to its end."""
    for call in _calls(operation):
        call.again()


def prepare(operation: AddSinusoidal | AddGrid | Rotate | SumRows | AddToeplitz) -> Any:
    """What runs this operation again for other arrays of the same layout; None where that takes more than one call."""
    calls = list(itertools.islice(_calls(operation), 2))
    return calls[0] if len(calls) == 1 else None


def _calls(
    operation: AddSinusoidal | AddGrid | Rotate | SumRows | AddToeplitz,
) -> Iterator[Call | RotateCall | SumCall | ToeplitzCall]:
    if isinstance(operation, AddToeplitz):
        return _toeplitz(operation)
    if isinstance(operation, Rotate):
        return _rotations(operation)
    if isinstance(operation, AddGrid):
        return _grids(operation)
    return _sums(operation) if isinstance(operation, SumRows) else _additions(operation)


def _additions(operation: AddSinusoidal) -> Iterator[Call]:
    x, out, plan = operation.x, operation.out, operation.plan
    mode = _ALONE if x is None else _IN_PLACE if x.same_elements(out) else _OUT_OF_PLACE
    compiled = kernel("add_sinusoidal", out.dtype, mode)
    tables, alive = _tables(plan)
    for arguments in operation.arguments(tables):
        yield Call(compiled, arguments, out.dtype, mode, _finished(plan, out.dtype), (alive, operation.rows.alive))


def _grids(operation: AddGrid) -> Iterator[Call]:
    """One pass over whole rows, which the parts make up: a pass over each part's channels would take 1.5 times as long."""
    x, out, plan = operation.x, operation.out, operation.plan
    mode = _ALONE if x is None else _IN_PLACE if x.same_elements(out) else _OUT_OF_PLACE
    compiled = kernel("add_sinusoidal", out.dtype, mode)
    tables = [_tables(part.plan) for part in plan.parts]
    parts = [one.arguments(addresses) for one, (addresses, _) in zip(operation.slices, tables, strict=True)]
    alive = tables, [rows.alive for rows in operation.rows]
    for arguments, *made in zip(operation.whole(), *parts, strict=True):
        columns = (part.first_column for part in plan.parts)
        blocks = [(*one[: at.OUT], column, *one[at.OUT + 1 :]) for one, column in zip(made, columns, strict=True)]
        yield Call(compiled, arguments, out.dtype, mode, None, alive, blocks)


_IN_PLACE, _OUT_OF_PLACE, _ALONE = 0, 1, 2  # kernels.add_sinusoidal
_BLOCK = struct.Struct(f"={len(at.ADD_SINUSOIDAL) - 2}q2d")
_ROTATE_BLOCKS = {
    "rotate": struct.Struct(f"={len(at.ROTATE) - 1}q1d"),
    "rotate_table": struct.Struct(f"={len(at.ROTATE_TABLE)}q"),
}


class _Blocks:
    """The memory of one run: control block, argument block, and room for positions. ``alive`` owns what they point to."""

    alive: Any = None

    def __init__(self, block: struct.Struct, control: dict[int, int], arguments: tuple[Any, ...], positions: int) -> None:
        used = at.CONTROL_WORDS + block.size // 8
        array = np.zeros(used + positions, np.int64)
        self.words = array.data
        self.positions = array[used:]
        self.control: int = array.ctypes.data
        self.call = self.control + 8 * at.CONTROL_WORDS
        self.positions_at = self.control + 8 * used
        block.pack_into(self.words, 8 * at.CONTROL_WORDS, *arguments)
        for place, word in control.items():
            self.words[place] = word


class _Prepared:
    """A call whose arguments are checked and packed; a run gives it new addresses and a first position.

    ``rows`` is T. ``addresses`` are those of the arrays that it was made for, in the order in which ``run`` takes others:
    (source, target) to add, (q, k) to rotate (in place; only those that were given), (table, ids, target) to embed.
    """

    rows: int
    addresses: tuple[int, ...]

    def __init__(
        self,
        compiled: Callable[..., None],
        block: struct.Struct,
        arguments: tuple[Any, ...],
        control: dict[int, int],
        nbytes: int,
        offsets: int,
        alive: Any,
    ) -> None:
        self._compiled, self._block, self._arguments, self._control, self._alive = compiled, block, arguments, control, alive
        self._room_bytes = control[at.ROOM_BYTES]
        self._helpers = min(control[at.CHUNKS] - 1, nbytes // BYTES_PER_HELPER, at.MOST_ROOMS - 1)
        self._offsets = offsets
        self._free: list[_Blocks] = []  # of runs at which no helper looks any more

    def _blocks(self) -> _Blocks:
        """Blocks of which all is filled in but what differs from run to run."""
        try:
            return self._free.pop()
        except IndexError:
            return _Blocks(self._block, self._control, self._arguments, self._offsets)

    def _compute(self, blocks: _Blocks, known: Any = None) -> None:
        words, helpers = blocks.words, self._helpers
        if helpers > 0:
            helpers = min(helpers, pool.threads() - 1)
        size, words[at.SCRATCH], _ = scratch = _borrow((1 + helpers) * self._room_bytes)
        words[at.ROOMS] = 1 + helpers
        if _compute(self._compiled, blocks, helpers, (self._alive, known)):
            words[at.FINISHED_CHUNKS] = words[at.LEFT] = 0
            words[at.CALLED] = 1
            for share in range(at.SHARES, at.SHARES + at.SHARE_WORDS * (1 + helpers), at.SHARE_WORDS):
                words[share + at.CLAIMED] = words[share + at.IS_TAKEN] = 0
            self._free.append(blocks)
        if len(_scratch) < KEPT_SCRATCH[0] and size <= KEPT_SCRATCH[1]:
            _scratch.append(scratch)


class Call(_Prepared):
    """A call of ``add_sinusoidal``."""

    def __init__(
        self,
        compiled: Callable[..., None],
        arguments: tuple[Any, ...],
        dtype: str,
        mode: int,
        finished: _Finished | None,
        alive: Any,
        parts: list[tuple[Any, ...]] | None = None,
    ) -> None:
        self.addresses, self._start = (arguments[at.X], arguments[at.OUT]), arguments[at.START]
        batch, self.rows, heads, width = arguments[at.BATCH : at.WIDTH + 1]
        self._itemsize, self._finished, self.is_placed = ITEMSIZE[dtype], finished, bool(parts)
        nbytes = batch * self.rows * heads * width * self._itemsize
        self._knows = finished is not None and arguments[at.POSITIONS] == 0 and nbytes <= FINISHED_FOR_BYTES
        offsets = batch if arguments[at.POSITIONS] != 0 and self.rows == 1 else 0
        control = _way_of_work(arguments, dtype, mode, [part[at.WIDTH] for part in parts or ()])
        if parts:
            packed = np.frombuffer(bytearray(b"".join(_BLOCK.pack(*part) for part in parts)), np.int64)
            control[at.PARTS], control[at.PART_COUNT], alive = packed.ctypes.data, len(parts), (packed, alive)
        super().__init__(compiled, _BLOCK, arguments, control, nbytes, offsets, alive)

    def again(self) -> None:
        """Run on the arrays that it was made for."""
        self.run(self.addresses, self._start)

    def run(self, addresses: Sequence[int], start: int, offsets: Any = None) -> None:
        """Run on the arrays at these addresses: source, target.

        ``start`` is the first row's position in units of 2^-32. ``offsets``: (B,) int64, the position of each sequence's only row.
        """
        blocks = self._blocks()
        words = blocks.words
        words[_X], words[_OUT] = addresses
        words[_START] = start
        known = self._finished.known(self, start) if self._knows and self._finished is not None else None
        words[at.KNOWN] = 0 if known is None else known[0]
        if self._control[at.STREAMS]:
            words[at.STREAMS] = addresses[1] % self._itemsize == 0
        if offsets is not None:
            np.left_shift(offsets, 32, out=blocks.positions)
            words[_POSITIONS] = blocks.positions_at
        self._compute(blocks, known)

    def fill(self, table: int, first: int, rows: int) -> None:
        """Write the rows of the positions first, first + 1, ... to where they belong in the table of a plan's finished rows."""
        control = {at.CHUNKS: 1, at.ROWS_PER_CHUNK: rows, at.BATCH_PER_CHUNK: 1, at.KNOWN: table, at.FILLS: 1}
        blocks = _Blocks(_BLOCK, {**self._control, **control}, self._arguments, 0)
        for place, word in ((_BATCH, 1), (_ROWS, rows), (_HEADS, 1), (_START, first << 32)):
            blocks.words[place] = word
        scratch = _borrow(self._room_bytes)
        blocks.words[at.SCRATCH], blocks.words[at.ROOMS] = scratch[1], 1
        self._compiled(blocks.call, blocks.control, 0)


def _compute(compiled: Callable[..., None], blocks: _Blocks, helpers: int, alive: Any) -> bool:
    """Run a kernel with up to so many helpers; return whether nobody will look at the blocks again. ``alive`` owns its tables."""
    if helpers <= 0:
        blocks.words[at.SEATS] = 0
        compiled(blocks.call, blocks.control, 0)
        return True
    seats = pool.seats(compiled)
    blocks.words[at.SEATS], blocks.words[at.HELPERS] = seats.address, helpers
    blocks.alive = alive
    seats.keep(blocks)
    asleep = helpers - seats.taken()
    if asleep <= 0:
        compiled(blocks.call, blocks.control, 0)
        return seats.let_go(blocks)
    pool.run(compiled, (blocks.call, blocks.control), asleep, blocks, seats)
    seats.let_go(blocks)
    return False  # a helper from the queue that comes late will look at them


_IDS = at.CONTROL_WORDS + at.IDS
_X, _OUT, _BATCH, _ROWS, _HEADS, _POSITIONS, _START = (
    at.CONTROL_WORDS + place for place in (at.X, at.OUT, at.BATCH, at.ROWS, at.HEADS, at.POSITIONS, at.START)
)  # behind the control block


def _way_of_work(arguments: tuple[Any, ...], dtype: str, mode: int, parts: list[int]) -> dict[int, int]:
    """How a call goes about it: the words of its control block that its form settles. ``parts``: the widths of the parts of a row."""
    batch, rows, heads, width = arguments[at.BATCH : at.WIDTH + 1]
    itemsize, real_bytes = ITEMSIZE[dtype], 8 if dtype == "float64" else 4
    row_bytes = width * itemsize
    nbytes = batch * rows * heads * row_bytes
    out_strides = arguments[at.OUT_BATCH_STRIDE : at.OUT_COLUMN_STRIDE + 1]
    source_strides = arguments[at.X_BATCH_STRIDE : at.X_COLUMN_STRIDE + 1] if mode == _OUT_OF_PLACE else out_strides
    contiguous = source_strides[3] == out_strides[3] == itemsize
    dense = contiguous and arguments[at.MASK] == 0 and source_strides[1] == out_strides[1] == row_bytes
    streams = mode != _IN_PLACE and contiguous and nbytes > cache_bytes() and not any(step % itemsize for step in out_strides)
    # Sequences that share their positions share the making of a row: a chunk takes a few rows of many sequences.
    sequences_share = batch > 1 and arguments[at.POSITIONS_BATCH_STRIDE] == 0
    heads_share = heads > 1 and arguments[at.POSITIONS_HEAD_STRIDE] == 0
    shared_rows, streamed_rows = (size // (width * real_bytes) for size in (SHARED_BYTES, STREAMED_BYTES))
    chunk_bytes = min(max(nbytes // CHUNKS, CHUNK_BYTES), LARGEST_CHUNK_BYTES if sequences_share else CHUNK_BYTES)
    rows_per_chunk = shared_rows if sequences_share else chunk_bytes // (row_bytes * heads)
    rows_per_chunk = min(rows, max(8, rows_per_chunk // 8 * 8))
    batch_per_chunk = min(batch, max(1, chunk_bytes // (row_bytes * heads * rows_per_chunk)))
    if sequences_share or heads_share:
        block_rows = min(max(1, shared_rows), rows_per_chunk)
    elif streams:
        block_rows = min(max(1, streamed_rows), rows_per_chunk)
    else:
        block_rows = 0 if contiguous else 1
    functions = sum((columns + 1) // 2 + at.MARGIN for columns in parts or (width,))
    functions_bytes = 0 if dtype == "float64" else 2 * real_bytes * functions
    return {
        at.CHUNKS: -(-rows // rows_per_chunk) * -(-batch // batch_per_chunk),
        at.ROWS_PER_CHUNK: rows_per_chunk,
        at.BATCH_PER_CHUNK: batch_per_chunk,
        at.YIELD_FUNCTION: pool.yield_function(),
        at.CALLED: 1,
        at.ROOM_BYTES: -(-(functions_bytes + block_rows * width * real_bytes) // at.LINE_BYTES) * at.LINE_BYTES,
        at.CONTIGUOUS: contiguous,
        at.DENSE: dense,
        at.STREAMS: streams,
        at.BLOCK_ROWS: block_rows,
        at.BUFFER: functions_bytes,
        at.AHEAD: at.AHEAD_BYTES if source_strides[1] == row_bytes else -(-at.AHEAD_BYTES // row_bytes) * source_strides[1],
    }


_scratch: list[tuple[int, int, Any]] = []


def _borrow(nbytes: int) -> tuple[int, int, Any]:
    """Size, address and array of scratch memory of at least so many bytes, which belongs to the caller until it gives it back."""
    try:
        scratch = _scratch.pop()
    except IndexError:
        scratch = 0, 0, None
    if scratch[0] < nbytes:
        array = np.empty(nbytes + at.LINE_BYTES, np.uint8)
        address = array.ctypes.data
        scratch = nbytes, address + -address % at.LINE_BYTES, array
    return scratch


# ---- rotations ---------------------------------------------------------------------------------------------------------------

ANGLES_BYTES = 1 << 16  # of cosines and sines made at a time: they stay in the second-level cache


def _rotations(operation: Rotate) -> Iterator[RotateCall]:
    pairs, plan = operation.pairs, operation.plan
    dtype = pairs[0].out.dtype
    mode = _IN_PLACE if all(pair.x.same_elements(pair.out) for pair in pairs) else _OUT_OF_PLACE
    compiled = kernel(plan.kernel, dtype, mode)
    tables, alive = _rotary_tables(plan) if isinstance(plan, RotaryPlan) else _caller_table(plan, dtype)
    for arguments in operation.arguments(tables):
        yield RotateCall(compiled, plan.kernel, arguments, dtype, (alive, operation.rows.alive))


class RotateCall(_Prepared):
    """A call of ``rotate`` or ``rotate_table``."""

    def __init__(self, compiled: Callable[..., None], name: str, arguments: tuple[Any, ...], dtype: str, alive: Any) -> None:
        self.addresses = tuple(arguments[place] for place in _ROTATED if arguments[place + at.ARRAY_OUT])
        self._places = [at.CONTROL_WORDS + place for place in _ROTATED if arguments[place + at.ARRAY_OUT]]
        self._start = arguments[at.R_START]
        batch, self.rows = arguments[at.R_BATCH], arguments[at.R_ROWS]
        row_bytes = sum(arguments[place + at.ARRAY_HEADS] for place in _ROTATED) * arguments[at.R_HEAD_DIM] * ITEMSIZE[dtype]
        offsets = batch if arguments[at.R_POSITIONS] != 0 and self.rows == 1 else 0
        control = _way_of_rotating(arguments, row_bytes, 8 if dtype == "float64" else 4)
        super().__init__(compiled, _ROTATE_BLOCKS[name], arguments, control, batch * self.rows * row_bytes, offsets, alive)

    def again(self) -> None:
        """Run on the arrays that it was made for."""
        self._compute(self._blocks())

    def run(self, addresses: Sequence[int], start: int, offsets: Any = None) -> None:
        """Run in place on the arrays at these addresses: q, k, as far as they were given; ``start`` and ``offsets`` as in ``Call.run``."""
        blocks = self._blocks()
        words = blocks.words
        for place, address in zip(self._places, addresses):  # noqa: B905 (0.1 us)
            words[place] = words[place + at.ARRAY_OUT] = address
        words[_R_START] = start
        if offsets is not None:
            np.left_shift(offsets, 32, out=blocks.positions)
            words[_R_POSITIONS] = blocks.positions_at
        self._compute(blocks)


_ROTATED = (at.R_ARRAYS, at.R_ARRAYS + at.R_ARRAY_WORDS)  # where q's words begin, and k's
_R_START, _R_POSITIONS = at.CONTROL_WORDS + at.R_START, at.CONTROL_WORDS + at.R_POSITIONS


def _way_of_rotating(arguments: tuple[Any, ...], row_bytes: int, real_bytes: int) -> dict[int, int]:
    """How a call goes about it. ``row_bytes`` are those of all heads of q and k at a position."""
    batch, rows, pairs = arguments[at.R_BATCH], arguments[at.R_ROWS], arguments[at.R_PAIRS]
    block_rows = min(rows, max(1, ANGLES_BYTES // (2 * pairs * real_bytes)))
    shares = batch > 1 and arguments[at.R_POSITIONS_BATCH_STRIDE] == 0
    rows_per_chunk = max(1, CHUNK_BYTES // row_bytes)
    rows_per_chunk = min(rows, block_rows if shares or rows_per_chunk < block_rows else rows_per_chunk)
    batch_per_chunk = min(batch, max(1, (LARGEST_CHUNK_BYTES if shares else CHUNK_BYTES) // (row_bytes * rows_per_chunk)))
    return {
        at.CHUNKS: -(-rows // rows_per_chunk) * -(-batch // batch_per_chunk),
        at.ROWS_PER_CHUNK: rows_per_chunk,
        at.BATCH_PER_CHUNK: batch_per_chunk,
        at.BLOCK_ROWS: block_rows,
        at.YIELD_FUNCTION: pool.yield_function(),
        at.CALLED: 1,
        at.ROOM_BYTES: -(-2 * real_bytes * (block_rows * pairs + at.MARGIN) // at.LINE_BYTES) * at.LINE_BYTES,
    }


@functools.lru_cache(maxsize=64)
def _rotary_tables(plan: RotaryPlan) -> tuple[RotaryTables, Any]:
    """Addresses of a plan's tables, and the arrays that hold them."""
    fraction, whole = (np.pad(turns, (0, at.MARGIN)) for turns in (plan.turns.fraction, plan.turns.whole))
    axes = np.ascontiguousarray(plan.axes, np.int64) if plan.axes.any() else None
    growths = None if plan.growths is None else np.pad(plan.growths, (0, at.MARGIN))
    arrays = fraction, whole, axes, growths
    return RotaryTables(*(0 if array is None else array.ctypes.data for array in arrays)), arrays


def _caller_table(plan: TablePlan, dtype: str) -> tuple[CallerTable, Any]:
    cosines, sines = plan.table.on(numpy_arrays, None, "float64" if dtype == "float64" else "float32")
    return CallerTable(cosines.address, sines.address, plan.table.rows, cosines.strides[0]), (cosines, sines)


# ---- sums of rows ------------------------------------------------------------------------------------------------------------

UNSHARED_BYTES = 1 << 15  # of PE made at a time where no other sequence shares it
_SUM_BLOCK = struct.Struct(f"={len(at.ADD_SINUSOIDAL) - 2}q2d{len(at.SUM_ROWS) - len(at.ADD_SINUSOIDAL)}q")


def _sums(operation: SumRows) -> Iterator[SumCall]:
    names = [None if memory is None else memory.dtype for memory in (operation.types, operation.learned)]
    first, out, plan = operation.first, operation.out, operation.plan
    if operation.kernel == "add_table":
        compiled = kernel("add_table", first.dtype, names[1])
    else:
        adds = "sinusoidal" if plan is not None else "nothing" if names[1] is None else "learned"
        compiled = kernel("embed", first.dtype, *names, out.dtype, adds)
    tables, alive = _tables(plan) if plan is not None else (Tables(0, 0, 0, 0), None)
    real_bytes = 8 if "float64" in (first.dtype, out.dtype, *names) else 4
    # What the call points to; arrays that the next one brings anew are not kept.
    kept = operation.types, operation.learned, operation.row_scales, operation.zero_points
    for arguments in operation.arguments(tables):
        yield SumCall(compiled, arguments, operation, real_bytes, (alive, operation.rows.alive, kept))


class SumCall(_Prepared):
    """A call of ``embed`` or ``add_table``."""

    def __init__(
        self, compiled: Callable[..., None], arguments: tuple[Any, ...], operation: SumRows, real_bytes: int, alive: Any
    ) -> None:
        batch, self.rows, heads, width = arguments[at.BATCH : at.WIDTH + 1]
        first_bytes, out_bytes = operation.first.array.dtype.itemsize, ITEMSIZE[operation.out.dtype]
        row_bytes = width * max(first_bytes, out_bytes)
        nbytes = batch * self.rows * heads * row_bytes
        makes = operation.plan is not None
        shares = (
            arguments[at.POSITIONS_BATCH_STRIDE] == arguments[at.POSITIONS_HEAD_STRIDE] == 0 and makes and batch * heads > 1
        )
        chunk_bytes = min(max(nbytes // CHUNKS, CHUNK_BYTES), LARGEST_CHUNK_BYTES if shares else CHUNK_BYTES)
        block_rows = (SHARED_BYTES if shares else UNSHARED_BYTES) // (width * real_bytes)
        rows_per_chunk = block_rows if shares else chunk_bytes // (row_bytes * heads)
        rows_per_chunk = min(self.rows, max(8, rows_per_chunk // 8 * 8))
        batch_per_chunk = min(batch, max(1, chunk_bytes // (row_bytes * heads * rows_per_chunk)))
        block_rows = min(rows_per_chunk, max(8, block_rows // 8 * 8)) if makes else rows_per_chunk
        contiguous = arguments[at.X_COLUMN_STRIDE] == first_bytes and arguments[at.OUT_COLUMN_STRIDE] == out_bytes
        out_places = (at.OUT, at.OUT_BATCH_STRIDE, at.OUT_ROW_STRIDE, at.OUT_HEAD_STRIDE)
        aligned = not any(arguments[place] % out_bytes for place in out_places)
        in_place = operation.first.address == operation.out.address
        made_bytes = real_bytes * (2 * ((width + 1) // 2 + at.MARGIN) + (block_rows * width if makes else 0))
        control = {
            at.CHUNKS: -(-self.rows // rows_per_chunk) * -(-batch // batch_per_chunk),
            at.ROWS_PER_CHUNK: rows_per_chunk,
            at.BATCH_PER_CHUNK: batch_per_chunk,
            at.BLOCK_ROWS: block_rows,
            at.YIELD_FUNCTION: pool.yield_function(),
            at.CALLED: 1,
            at.ROOM_BYTES: -(-made_bytes // at.LINE_BYTES) * at.LINE_BYTES,
            at.CONTIGUOUS: contiguous,
            at.STREAMS: contiguous and aligned and not in_place and nbytes > cache_bytes(),
            at.AHEAD: at.AHEAD_BYTES // (width * first_bytes) + 1,
        }
        self._out_bytes = out_bytes
        self.addresses = arguments[at.X], arguments[at.IDS], arguments[at.OUT]
        offsets = batch if arguments[at.POSITIONS] != 0 and self.rows == 1 else 0
        super().__init__(compiled, _SUM_BLOCK, arguments, control, nbytes, offsets, alive)

    def again(self) -> None:
        """Run on the arrays that it was made for."""
        self._compute(self._blocks())

    def run(self, addresses: Sequence[int], start: int, offsets: Any = None) -> None:
        """Embed with the arrays at these addresses: table, ids, target; ``start`` and ``offsets`` as in ``Call.run``."""
        blocks = self._blocks()
        words = blocks.words
        words[_X], words[_IDS], words[_OUT] = addresses
        words[_START] = start
        if self._control[at.STREAMS]:
            words[at.STREAMS] = addresses[2] % self._out_bytes == 0
        if offsets is not None:
            np.left_shift(offsets, 32, out=blocks.positions)
            words[_POSITIONS] = blocks.positions_at
        self._compute(blocks)


# ---- biases on scores --------------------------------------------------------------------------------------------------------

_TOEPLITZ_BLOCK = struct.Struct(f"={len(at.ADD_TOEPLITZ) - 1}q1d")
GATHERED_BYTES = 8 * 512 + at.LINE_BYTES  # a block of kernels/add_toeplitz.py


def _toeplitz(operation: AddToeplitz) -> Iterator[ToeplitzCall]:
    compiled = kernel("add_toeplitz", operation.out.dtype)
    slopes = None if operation.slopes is None else np.ascontiguousarray(operation.slopes, np.float64)
    values_at = 0 if operation.values is None else operation.values.address
    # Not the values, which the operation has: what repeats the call may not keep them from being given up.
    for arguments in operation.arguments(values_at, 0 if slopes is None else slopes.ctypes.data):
        yield ToeplitzCall(compiled, arguments, operation.out.dtype, (slopes, operation.places))


class ToeplitzCall(_Prepared):
    """A call of ``add_toeplitz``. Its values are the caller's to keep alive while it runs."""

    def __init__(self, compiled: Callable[..., None], arguments: tuple[Any, ...], dtype: str, alive: Any) -> None:
        batch, heads, self.rows, self.columns = arguments[at.T_BATCH : at.T_COLUMNS + 1]
        self.addresses, self._dtype = (arguments[at.T_X], arguments[at.T_OUT]), dtype
        itemsize, all_rows = ITEMSIZE[dtype], batch * heads * self.rows
        row_bytes, in_place = self.columns * itemsize, arguments[at.T_X] == arguments[at.T_OUT]
        rows_per_chunk = max(1, CHUNK_BYTES // row_bytes)
        strides = arguments[at.T_X_ROW_STRIDE], arguments[at.T_OUT_ROW_STRIDE]
        contiguous = arguments[at.T_X_COLUMN_STRIDE] == arguments[at.T_OUT_COLUMN_STRIDE] == itemsize
        self._streams = contiguous and all_rows * row_bytes > cache_bytes()
        self._itemsize, self._in_place = itemsize, in_place
        self._steps_are_whole = not any(
            step % itemsize for step in arguments[at.T_OUT_BATCH_STRIDE : at.T_OUT_COLUMN_STRIDE + 1]
        )
        control = {
            at.CHUNKS: -(-all_rows // rows_per_chunk),
            at.ROWS_PER_CHUNK: rows_per_chunk,
            at.YIELD_FUNCTION: pool.yield_function(),
            at.CALLED: 1,
            at.ROOM_BYTES: -(-GATHERED_BYTES // at.LINE_BYTES) * at.LINE_BYTES,
            at.CONTIGUOUS: contiguous,
            at.DENSE: contiguous and strides == (row_bytes, row_bytes),
            at.STREAMS: self._way_of_stores(self.addresses[1]),
            at.AHEAD: -(-at.AHEAD_BYTES // row_bytes) * strides[0],
        }
        super().__init__(compiled, _TOEPLITZ_BLOCK, arguments, control, all_rows * row_bytes, 0, alive)

    def _way_of_stores(self, target: int) -> int:
        """0: to the caches; 1: past them what is -inf; 2: past them everything."""
        if not self._streams or not self._steps_are_whole or target % self._itemsize:
            return 0
        return 1 if self._in_place else 2

    def again(self) -> None:
        """Run on the arrays that it was made for."""
        self._compute(self._blocks())

    def run(self, addresses: Sequence[int], start: int, values: Any = None) -> None:
        """Run on the arrays at these addresses: source, target.

        ``start`` is the first query's position in units of 2^-32; ``values`` is the table that the call was made with.
        """
        blocks = self._blocks()
        words = blocks.words
        words[_T_X], words[_T_OUT] = addresses
        words[_T_START] = start
        if self._streams:
            words[at.STREAMS] = self._way_of_stores(addresses[1])
        self._compute(blocks, values)

    def resized(self, columns: int, x_is_dense: bool, out_is_dense: bool) -> ToeplitzCall:
        """The same call of other arrays that have so many columns: dense ones, or of the same strides."""
        arguments = list(self._arguments)
        arguments[at.T_COLUMNS] = columns
        row = columns * self._itemsize
        dense = row * self.rows * arguments[at.T_HEADS], row * self.rows, row
        if x_is_dense:
            arguments[at.T_X_BATCH_STRIDE : at.T_X_COLUMN_STRIDE] = dense
        if out_is_dense:
            arguments[at.T_OUT_BATCH_STRIDE : at.T_OUT_COLUMN_STRIDE] = dense
        return ToeplitzCall(self._compiled, tuple(arguments), self._dtype, self._alive)


_T_X, _T_OUT, _T_START = (at.CONTROL_WORDS + place for place in (at.T_X, at.T_OUT, at.T_START))


# ---- finished rows -----------------------------------------------------------------------------------------------------------

FINISHED_BYTES = {
    "float32": 1 << 23,
    "float64": 1 << 24,
}  # of a plan's finished rows, at most: beyond that making them is as fast
FINISHED_TOTAL_BYTES = 1 << 24  # of those of all plans
FINISHED_STEP_BYTES = 1 << 20  # made by one call
FINISHED_FOR_BYTES = 1 << 24  # of the largest x that they are used for


class _Finished:
    """The first rows of a plan, ready to be added, for calls so small that making them is most of the work.

    A single call does not pay for them: the second one begins to make them, and each adds a part until all are there that it needs.
    They are given up when other plans need the memory.
    """

    def __init__(self, width: int, real: str) -> None:
        self._width, self._real = width, real
        self._row_bytes, self._most_bytes = width * ITEMSIZE[real], FINISHED_BYTES[real]
        self._asked = False
        self._made: tuple[int, int, Any] = 0, 0, None

    @property
    def nbytes(self) -> int:
        return self._made[1] * self._row_bytes

    def known(self, call: Call, start: int) -> tuple[int, int, Any] | None:
        """Address, number and array of the rows, if all of the call's are among them."""
        made, needed = self._made, (start >> 32) + call.rows
        if start < 0 or start & 0xFFFFFFFF:
            return None
        if needed <= made[1]:
            return made
        # A decoder's single row far in would have all rows before it made.
        if needed * self._row_bytes > self._most_bytes or needed > 8 * call.rows:
            return None
        if not self._asked:
            self._asked = True
            return None
        made = self._make(call, min(1 << (needed - 1).bit_length(), self._most_bytes // self._row_bytes))
        return made if needed <= made[1] else None

    def _make(self, call: Call, wanted: int) -> tuple[int, int, Any]:
        """Make some more rows, of those wanted."""
        address, rows, array = self._made
        if array is None:
            own = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}  # not a fork's
            array = np.frombuffer(mmap.mmap(-1, self._most_bytes, **own), np.uint8)  # takes memory only as it is written
            address = array.ctypes.data
        more = min(wanted - rows, max(1, FINISHED_STEP_BYTES // self._row_bytes))
        call.fill(address, rows, more)
        self._made = made = address, rows + more, array
        if self not in _with_rows.copy():  # copies: other threads lengthen and shorten it
            _with_rows.append(self)
        with contextlib.suppress(IndexError):  # another thread has given up the last ones
            while sum(other.nbytes for other in _with_rows.copy()) > FINISHED_TOTAL_BYTES:
                _with_rows.popleft()._made = 0, 0, None
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
    fraction, whole = (np.pad(turns, (0, at.MARGIN)) for turns in (plan.turns.fraction, plan.turns.whole))
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
