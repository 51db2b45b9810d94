"""Prepared calls: arguments and control block packed once, for any number of runs on other arrays of the same layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...kernels import abi
from ..calls import Arguments
from . import chunking, pool
from .machine_code import Kernel
from .row_cache import RowCache

OWN_SCRATCH_BYTES = 1 << 15  # up to so many stay with a call's blocks; more are borrowed for each run
MOST_KEPT, MOST_KEPT_BYTES = 4, 1 << 21  # pieces of scratch memory kept between runs, and bytes of the largest

ctl = abi.CONTROL.index
_control_words: dict[str, int] = vars(ctl)


class Blocks:
    """The memory of one run: control block, argument block, positions that a run was given, and a small call's scratch slot."""

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

    ``arguments`` and ``control`` are the fields of both blocks that are not 0, ``itemsize`` is that of an element that is written, and
    ``keepalive`` owns what the arguments point to.
    """

    arrays: tuple[str, ...] = ("x", "out")  # whose addresses ``run`` takes
    positions = 0  # how many of them ``run`` may be given: as many as the table has with which the call was made

    def __init__(
        self, kernel: Kernel, layout: abi.Layout, arguments: Arguments, control: chunking.Control, itemsize: int, keepalive: Any
    ) -> None:
        self._kernel, self._layout, self._arguments, self._keepalive = kernel, layout, arguments, keepalive
        self._nbytes = control.pop("nbytes")
        control["yield_function"], control["called"] = pool.yield_function(), 1
        self._control = control
        self._itemsize, self._slot_bytes, self._helpers = itemsize, control["slot_bytes"], control["helpers"]
        self._streams = control.get("streams", 0)
        self._owns_scratch = self._helpers <= 0 and self._slot_bytes <= OWN_SCRATCH_BYTES
        self.rows, self.columns = arguments["rows"], arguments.get("columns", 0)  # of a bias
        self.addresses = tuple([arguments[array] for array in self.arrays if array in arguments])
        self._positions_word = _behind + layout.index.positions if arguments.get("positions") else 0
        self._idle: list[Blocks] = []  # blocks that no thread reads any more

    def takes(self, where: Any) -> bool:
        """Whether ``run`` may be given this array of positions or offsets."""
        return bool(where.dtype == np.int64 and where.size == self.positions)

    def again(self) -> None:
        """Run on the arrays that it was made for."""
        self._compute(self._blocks(), self.addresses[-1])

    def _blocks(self) -> Blocks:
        """Blocks of this thread's own, in which only the fields that differ from run to run are left to write."""
        try:
            return self._idle.pop()
        except IndexError:
            scratch_bytes = self._slot_bytes if self._owns_scratch else 0
            return Blocks(self._layout, self._control, self._arguments, self.positions, scratch_bytes)

    def _compute(self, blocks: Blocks, target: int, positions: Any = None) -> None:
        """Run the kernel on these blocks, which write to ``target``; the caller owns what only this run points to."""
        if self._streams:  # past the caches only whole elements can go
            blocks.words[ctl.streams] = 0 if target % self._itemsize else self._streams
        if positions is not None:
            np.left_shift(positions.ravel(), 32, out=blocks.positions)
            blocks.words[self._positions_word] = blocks.positions_at
        if self._owns_scratch:
            self._kernel(blocks.call, blocks.control, abi.ALONE)
            self._idle.append(blocks)
            return
        try:
            helpers, wakes, cores = pool.enter(self._helpers, self._nbytes)
            slots = pool.spin_slots(self._kernel, cores) if helpers > 0 else None
            waiting = 0 if slots is None else slots.waiting()
            if not waiting and not wakes:
                helpers = 0
            borrowed = _borrow((1 + helpers) * self._slot_bytes)
            blocks.words[ctl.scratch] = borrowed.address
            if slots is None or helpers <= 0:
                self._kernel(blocks.call, blocks.control, abi.ALONE)
                self._idle.append(blocks)
            elif self._compute_with(helpers, helpers - waiting if wakes else 0, slots, blocks):
                _reset_counters(blocks, 1 + helpers)
                self._idle.append(blocks)
        finally:
            pool.leave()
        if len(_kept) < MOST_KEPT and borrowed.nbytes <= MOST_KEPT_BYTES:
            _kept.append(borrowed)

    def _compute_with(self, helpers: int, woken: int, slots: pool.SpinSlots, blocks: Blocks) -> bool:
        """Run the kernel with up to so many helpers, some of them woken; return whether no thread will read the blocks again.

        What they point to is read for a chunk only, and all chunks are finished when the kernel returns.
        """
        words = blocks.words
        words[ctl.slots], words[ctl.spin_slots], words[ctl.helpers] = 1 + helpers, slots.address, helpers
        slots.keep(blocks)
        if woken <= 0:
            self._kernel(blocks.call, blocks.control, abi.CALLER)
            return slots.release(blocks)
        pool.run(self._kernel, (blocks.call, blocks.control), woken, blocks, slots)
        slots.release(blocks)
        return False  # a helper from the queue that comes late will read them


class Piece(NamedTuple):
    """Scratch memory; ``array`` owns it."""

    nbytes: int
    address: int
    array: Any


_kept: list[Piece] = []


def _borrow(nbytes: int) -> Piece:
    """A piece of at least so many bytes, which nobody else uses until it is kept again."""
    try:
        piece = _kept.pop()
    except IndexError:
        piece = Piece(0, 0, None)
    if piece.nbytes < nbytes:
        array = np.empty(nbytes + abi.LINE_BYTES, np.uint8)
        address = array.ctypes.data
        piece = Piece(nbytes, address + -address % abi.LINE_BYTES, array)
    return piece


def _reset_counters(blocks: Blocks, slots: int) -> None:
    words = blocks.words
    words[ctl.completed_chunks] = words[ctl.left] = 0
    words[ctl.called] = 1
    claimed, taken = ctl.range_0_claimed, ctl.range_0_slot_is_taken
    for skipped in range(0, slots * abi.CHUNK_RANGE.words, abi.CHUNK_RANGE.words):
        words[claimed + skipped] = words[taken + skipped] = 0


# ---- the calls of each kernel ------------------------------------------------------------------------------------------------

_behind = abi.CONTROL.words  # the argument block lies behind the control block
_sum, _rotate, _bias = (layout.index for layout in (abi.GATHER_SUM, abi.ROTATE_PAIRS, abi.ADD_TOEPLITZ))
_X, _OUT, _START, _IDS = (_behind + at for at in (_sum.x, _sum.out, _sum.start, _sum.ids))
_Q_X, _Q_OUT, _K_X, _K_OUT = (_behind + at for at in (_rotate.q_x, _rotate.q_out, _rotate.k_x, _rotate.k_out))
_Q, _K, _ROTATE_START = (_Q_X, _Q_OUT, _K_X, _K_OUT), (_K_X, _K_OUT), _behind + _rotate.start
_BIAS_X, _BIAS_OUT, _BIAS_START = (_behind + at for at in (_bias.x, _bias.out, _bias.start))


class Addition(PreparedCall):
    """A call of ``add_sinusoidal``."""

    row_cache: RowCache | None  # the one that it uses

    def again(self) -> None:
        """Run on the arrays that it was made for."""
        self.run(self.addresses, self._arguments["start"])

    def run(self, addresses: Sequence[int], start: int, positions: Any = None) -> None:
        """Run on the arrays at these addresses."""
        blocks, cached = self._blocks(), None
        words = blocks.words
        words[_X], words[_OUT] = addresses
        words[_START] = start
        if self.row_cache is not None:
            cached = self.row_cache.rows(start, self.rows, self._fill)
            words[ctl.cached_rows] = 0 if cached is None else cached.address
        self._compute(blocks, addresses[1], positions)

    def _fill(self, address: int, first: int, rows: int) -> None:
        """Write the rows of the positions first, first + 1, ... to where they belong in a row cache at this address."""
        control = {**self._control, "chunks": 1, "rows_per_chunk": rows, "batch_per_chunk": 1, "cached_rows": address}
        arguments = {**self._arguments, "batch": 1, "rows": rows, "heads": 1, "start": first << 32}
        blocks = Blocks(self._layout, {**control, "fills_cache": 1}, arguments, 0, self._slot_bytes)
        self._kernel(blocks.call, blocks.control, abi.ALONE)


class Summation(PreparedCall):
    """A call of ``embed`` or ``add_table``; x of embed is the table."""

    arrays = ("x", "ids", "out")

    def run(self, addresses: Sequence[int], start: int, positions: Any = None) -> None:
        """Run on the arrays at these addresses."""
        blocks = self._blocks()
        words = blocks.words
        words[_X], words[_IDS], words[_OUT] = addresses
        words[_START] = start
        self._compute(blocks, addresses[2], positions)


class Rotation(PreparedCall):
    """A call of ``rotate`` or ``rotate_table``. The kernels in place read no other address than those that they write to."""

    arrays = ("q_out", "k_out")

    def run(self, addresses: Sequence[int], start: int, positions: Any = None) -> None:
        """Run in place on the arrays at these addresses."""
        blocks = self._blocks()
        words = blocks.words
        if len(addresses) == 2:
            words[_Q_OUT], words[_K_OUT] = addresses
        else:
            words[_Q_OUT if "q_out" in self._arguments else _K_OUT] = addresses[0]
        words[_ROTATE_START] = start
        self._compute(blocks, addresses[0], positions)


class RotationApart(PreparedCall):
    """A call of ``rotate`` that writes to other arrays than it reads."""

    arrays = ("q_x", "q_out", "k_x", "k_out")

    def run(self, addresses: Sequence[int], start: int, positions: Any = None) -> None:
        """Run on the arrays at these addresses."""
        blocks = self._blocks()
        words = blocks.words
        for word, address in zip(_Q if "q_out" in self._arguments else _K, addresses, strict=False):
            words[word] = address
        words[_ROTATE_START] = start
        self._compute(blocks, addresses[1], positions)


class Bias(PreparedCall):
    """A call of ``add_toeplitz``. Its values are the caller's to keep alive while it runs."""

    def run(self, addresses: Sequence[int], start: int, values: Any = None) -> None:
        """Run on the arrays at these addresses; ``values`` owns the values that the call was made with."""
        blocks = self._blocks()
        words = blocks.words
        words[_BIAS_X], words[_BIAS_OUT] = addresses
        words[_BIAS_START] = start
        self._compute(blocks, addresses[1])

    def resized(self, columns: int, x_is_dense: bool, out_is_dense: bool) -> Bias:
        """The same call for arrays of so many columns: dense ones, or of the same strides."""
        arguments = {**self._arguments, "columns": columns}
        row = columns * self._itemsize
        dense = {"batch": row * self.rows * arguments["heads"], "head": row * self.rows, "row": row}
        for name, is_dense in (("x", x_is_dense), ("out", out_is_dense)):
            if is_dense:
                arguments.update({f"{name}_{axis}_stride": stride for axis, stride in dense.items()})
        control = chunking.of_bias(arguments, self._itemsize)
        return Bias(self._kernel, self._layout, arguments, control, self._itemsize, self._keepalive)
