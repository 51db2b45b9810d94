"""Prepared calls: arguments and control block packed once, for any number of runs on other arrays of the same layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..._arrays.dtypes import ELEMENT_TYPES
from ...kernels import abi
from ..calls import Arguments, GatherSum
from . import chunking, pool, scratch
from .compile import Kernel
from .row_cache import RowCache

OWN_SCRATCH_BYTES = 1 << 15  # up to so many stay with a call's blocks; more are borrowed for each run

ctl = abi.CONTROL.index
_control_words: dict[str, int] = vars(ctl)


class Blocks:
    """The memory of one run: control block, argument block, positions of ``offsets``, and a small call's scratch slot."""

    keepalive: Any = None  # owns what the blocks point to

    def __init__(
        self, layout: abi.Layout, control: chunking.Control, arguments: Arguments, positions: int, scratch_bytes: int
    ) -> None:
        used = abi.CONTROL.words + layout.words + positions
        array = np.zeros(used + (scratch_bytes + abi.LINE_BYTES) // abi.WORD_BYTES, np.int64)
        self.words = array.data
        self.positions = array[used - positions : used]
        self.control: int = array.ctypes.data
        self.call = self.control + abi.CONTROL.nbytes
        self.positions_at = self.call + layout.nbytes
        behind = self.control + abi.WORD_BYTES * used
        for name, value in control.items():
            self.words[_control_words[name]] = value
        self.words[ctl.scratch] = behind + -behind % abi.LINE_BYTES
        layout.pack_into(self.words, abi.CONTROL.nbytes, arguments)


class PreparedCall:
    """A call whose arguments are checked and packed (`fastpe._backends.base.Prepared`).

    Parameters
    ----------
    kernel : Kernel
    layout : Layout
        Of the argument block.
    arguments, control : dict
        The fields of both blocks that are not 0.
    nbytes : int
        Bytes of x, which decide how many helpers are called.
    offsets : int
        How many positions a run may be given; 0 for none.
    keepalive : object
        Owns what the arguments point to.
    """

    rows: int
    addresses: tuple[int, ...]

    def __init__(
        self,
        kernel: Kernel,
        layout: abi.Layout,
        arguments: Arguments,
        control: chunking.Control,
        nbytes: int,
        offsets: int,
        keepalive: Any,
    ) -> None:
        self._kernel, self._layout, self._arguments, self._keepalive = kernel, layout, arguments, keepalive
        self._control = control
        control["yield_function"], control["called"] = pool.yield_function(), 1
        self._slot_bytes = control["slot_bytes"]
        self._helpers = min(control["chunks"] - 1, nbytes // chunking.BYTES_PER_HELPER, abi.MOST_THREADS - 1)
        self._owns_scratch = self._helpers <= 0 and self._slot_bytes <= OWN_SCRATCH_BYTES
        self._offsets = offsets
        self._idle: list[Blocks] = []  # blocks that no thread reads any more

    def again(self) -> None:
        """Run on the arrays that it was made for."""
        self._compute(self._blocks())

    def _blocks(self) -> Blocks:
        """Blocks of this thread's own, in which only the fields that differ from run to run are left to write."""
        try:
            return self._idle.pop()
        except IndexError:
            scratch_bytes = self._slot_bytes if self._owns_scratch else 0
            return Blocks(self._layout, self._control, self._arguments, self._offsets, scratch_bytes)

    def _compute(self, blocks: Blocks, keepalive: Any = None) -> None:
        """Run the kernel on these blocks; ``keepalive`` owns what only this run points to."""
        if self._owns_scratch:
            self._kernel(blocks.call, blocks.control, abi.ALONE)
            self._idle.append(blocks)
            return
        helpers = min(self._helpers, pool.threads() - 1) if self._helpers > 0 else 0
        borrowed = scratch.borrow((1 + helpers) * self._slot_bytes)
        blocks.words[ctl.scratch] = borrowed.address
        if helpers <= 0:
            self._kernel(blocks.call, blocks.control, abi.ALONE)
            self._idle.append(blocks)
        elif self._compute_with(helpers, blocks, (self._keepalive, keepalive)):
            _reset_counters(blocks, 1 + helpers)
            self._idle.append(blocks)
        scratch.give_back(borrowed)

    def _compute_with(self, helpers: int, blocks: Blocks, keepalive: Any) -> bool:
        """Run the kernel with up to so many helpers; return whether no thread will read the blocks again."""
        slots, words = pool.spin_slots(self._kernel), blocks.words
        words[ctl.slots], words[ctl.spin_slots], words[ctl.helpers] = 1 + helpers, slots.address, helpers
        blocks.keepalive = keepalive
        slots.keep(blocks)
        asleep = helpers - slots.waiting()
        if asleep <= 0:
            self._kernel(blocks.call, blocks.control, abi.CALLER)
            return slots.release(blocks)
        pool.run(self._kernel, (blocks.call, blocks.control), asleep, blocks, slots)
        slots.release(blocks)
        return False  # a helper from the queue that comes late will read them


def _reset_counters(blocks: Blocks, slots: int) -> None:
    words = blocks.words
    words[ctl.completed_chunks] = words[ctl.left] = 0
    words[ctl.called] = 1
    claimed, taken = ctl.range_0_claimed, ctl.range_0_slot_is_taken
    for skipped in range(0, slots * abi.CHUNK_RANGE.words, abi.CHUNK_RANGE.words):
        words[claimed + skipped] = words[taken + skipped] = 0


def _offsets(arguments: Arguments) -> int:
    """How many positions a run may be given: one for each sequence of a single row, if there is a table of positions."""
    return arguments["batch"] if arguments["positions"] and arguments["rows"] == 1 else 0


# ---- the calls of each kernel ------------------------------------------------------------------------------------------------

_sum, _rotate, _bias = (layout.index for layout in (abi.GATHER_SUM, abi.ROTATE_PAIRS, abi.ADD_TOEPLITZ))
_behind = abi.CONTROL.words  # the argument block lies behind the control block
_X, _OUT, _START, _POSITIONS, _IDS = (_behind + at for at in (_sum.x, _sum.out, _sum.start, _sum.positions, _sum.ids))
_ROTATE_START, _ROTATE_POSITIONS = _behind + _rotate.start, _behind + _rotate.positions
_BIAS_X, _BIAS_OUT, _BIAS_START = _behind + _bias.x, _behind + _bias.out, _behind + _bias.start


class Addition(PreparedCall):
    """A call of ``add_sinusoidal``. Addresses: source, target."""

    def __init__(
        self,
        kernel: Kernel,
        arguments: Arguments,
        dtype: str,
        mode: int,
        row_cache: RowCache | None,
        keepalive: Any,
        parts: Sequence[Arguments] = (),
    ) -> None:
        self.addresses, self._start, self.rows = (arguments["x"], arguments["out"]), arguments["start"], arguments["rows"]
        self._itemsize, self.is_placed = ELEMENT_TYPES[dtype].itemsize, bool(parts)
        nbytes = chunking.bytes_added(arguments, self._itemsize)
        control = chunking.of_addition(arguments, dtype, mode, [part["width"] for part in parts])
        self._streams = control["streams"]
        if parts:
            packed = np.frombuffer(b"".join(abi.ADD_SINUSOIDAL.pack(part) for part in parts), np.int64)
            control.update(parts=packed.ctypes.data, part_count=len(parts))
            keepalive = packed, keepalive
        super().__init__(kernel, abi.ADD_SINUSOIDAL, arguments, control, nbytes, _offsets(arguments), keepalive)
        is_cached = row_cache is not None and not arguments["positions"] and nbytes <= RowCache.MOST_BYTES_OF_X
        self._row_cache = row_cache if is_cached else None

    def again(self) -> None:
        """Run on the arrays that it was made for."""
        self.run(self.addresses, self._start)

    def run(self, addresses: Sequence[int], start: int, offsets: Any = None) -> None:
        """Run on the arrays at these addresses."""
        blocks, cached = self._blocks(), None
        words = blocks.words
        words[_X], words[_OUT] = addresses
        words[_START] = start
        if self._row_cache is not None:
            cached = self._row_cache.rows(start, self.rows, self._fill)
            words[ctl.cached_rows] = 0 if cached is None else cached.address
        if self._streams:
            words[ctl.streams] = addresses[1] % self._itemsize == 0
        if offsets is not None:
            np.left_shift(offsets, 32, out=blocks.positions)
            words[_POSITIONS] = blocks.positions_at
        self._compute(blocks, cached)

    def _fill(self, address: int, first: int, rows: int) -> None:
        """Write the rows of the positions first, first + 1, ... to where they belong in a row cache at this address."""
        control = {**self._control, "chunks": 1, "rows_per_chunk": rows, "batch_per_chunk": 1, "cached_rows": address}
        arguments = {**self._arguments, "batch": 1, "rows": rows, "heads": 1, "start": first << 32}
        blocks = Blocks(self._layout, {**control, "fills_cache": 1}, arguments, 0, self._slot_bytes)
        self._kernel(blocks.call, blocks.control, abi.ALONE)


class Summation(PreparedCall):
    """A call of ``embed`` or ``add_table``. Addresses: table (or x of add_table), ids (or 0), target."""

    def __init__(self, kernel: Kernel, arguments: Arguments, call: GatherSum, real_bytes: int, keepalive: Any) -> None:
        self.addresses, self.rows = (arguments["x"], arguments["ids"], arguments["out"]), arguments["rows"]
        first_bytes, self._itemsize = call.first.array.dtype.itemsize, ELEMENT_TYPES[call.out.dtype].itemsize
        control = chunking.of_gather_sum(arguments, first_bytes, self._itemsize, real_bytes, call.plan is not None)
        self._streams = control["streams"]
        nbytes = chunking.bytes_added(arguments, max(first_bytes, self._itemsize))
        super().__init__(kernel, abi.GATHER_SUM, arguments, control, nbytes, _offsets(arguments), keepalive)

    def run(self, addresses: Sequence[int], start: int, offsets: Any = None) -> None:
        """Run on the arrays at these addresses."""
        blocks = self._blocks()
        words = blocks.words
        words[_X], words[_IDS], words[_OUT] = addresses
        words[_START] = start
        if self._streams:
            words[ctl.streams] = addresses[2] % self._itemsize == 0
        if offsets is not None:
            np.left_shift(offsets, 32, out=blocks.positions)
            words[_POSITIONS] = blocks.positions_at
        self._compute(blocks)


class Rotation(PreparedCall):
    """A call of ``rotate`` or ``rotate_table``. Addresses: q, k, in place, as far as they were given."""

    def __init__(self, kernel: Kernel, layout: abi.Layout, arguments: Arguments, dtype: str, keepalive: Any) -> None:
        given = [name for name in ("q", "k") if arguments.get(f"{name}_out")]
        self.addresses, self.rows = tuple(arguments[f"{name}_x"] for name in given), arguments["rows"]
        self._words = [(_behind + vars(_rotate)[f"{name}_x"], _behind + vars(_rotate)[f"{name}_out"]) for name in given]
        heads = sum(arguments[f"{name}_heads"] for name in given)
        element = ELEMENT_TYPES[dtype]
        row_bytes = heads * arguments["head_dim"] * element.itemsize
        control = chunking.of_rotation(arguments, row_bytes, element.arithmetic_itemsize)
        nbytes = arguments["batch"] * self.rows * row_bytes
        super().__init__(kernel, layout, arguments, control, nbytes, _offsets(arguments), keepalive)

    def run(self, addresses: Sequence[int], start: int, offsets: Any = None) -> None:
        """Run in place on the arrays at these addresses."""
        blocks = self._blocks()
        words = blocks.words
        for (x, out), address in zip(self._words, addresses):  # noqa: B905 (0.1 us)
            words[x] = words[out] = address
        words[_ROTATE_START] = start
        if offsets is not None:
            np.left_shift(offsets, 32, out=blocks.positions)
            words[_ROTATE_POSITIONS] = blocks.positions_at
        self._compute(blocks)


class Bias(PreparedCall):
    """A call of ``add_toeplitz``. Addresses: source, target. Its values are the caller's to keep alive while it runs."""

    def __init__(self, kernel: Kernel, arguments: Arguments, dtype: str, keepalive: Any) -> None:
        self.rows, self.columns = arguments["rows"], arguments["columns"]
        self.addresses, self._dtype = (arguments["x"], arguments["out"]), dtype
        self._itemsize, self._in_place = ELEMENT_TYPES[dtype].itemsize, arguments["x"] == arguments["out"]
        control = chunking.of_bias(arguments, self._itemsize)
        nbytes = arguments["batch"] * arguments["heads"] * self.rows * self.columns * self._itemsize
        is_large = control["contiguous"] and nbytes > chunking.cache_bytes()
        self._streams = is_large and chunking.has_whole_strides(arguments, self._itemsize)
        control["streams"] = self._streaming(self.addresses[1])
        super().__init__(kernel, abi.ADD_TOEPLITZ, arguments, control, nbytes, 0, keepalive)

    def _streaming(self, target: int) -> int:
        """0: all stores go to the caches; 1: -inf goes past them; 2: everything does."""
        if not self._streams or target % self._itemsize:
            return 0
        return 1 if self._in_place else 2

    def run(self, addresses: Sequence[int], start: int, values: Any = None) -> None:
        """Run on the arrays at these addresses; ``values`` owns the values that the call was made with."""
        blocks = self._blocks()
        words = blocks.words
        words[_BIAS_X], words[_BIAS_OUT] = addresses
        words[_BIAS_START] = start
        if self._streams:
            words[ctl.streams] = self._streaming(addresses[1])
        self._compute(blocks, values)

    def resized(self, columns: int, x_is_dense: bool, out_is_dense: bool) -> Bias:
        """The same call for arrays of so many columns: dense ones, or of the same strides."""
        arguments = {**self._arguments, "columns": columns}
        row = columns * self._itemsize
        dense = {"batch": row * self.rows * arguments["heads"], "head": row * self.rows, "row": row}
        for name, is_dense in (("x", x_is_dense), ("out", out_is_dense)):
            if is_dense:
                arguments.update({f"{name}_{axis}_stride": stride for axis, stride in dense.items()})
        return Bias(self._kernel, arguments, self._dtype, self._keepalive)
