"""Memory of the PTX interpreter: NumPy arrays at their own addresses, and every fault an access can have."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

WIDEST_ACCESS = 32  # bytes moved by the widest vector load or store (v4 of 64 bits)
UNTOUCHED = -1


class PTXError(Exception):
    """The module cannot be run, or a thread did what a GPU would punish or leave undefined."""


def some(mask: np.ndarray) -> bool:
    """As ``mask.any()``, in a tenth of the time for as few lanes as here."""
    return np.count_nonzero(mask) > 0


def every(mask: np.ndarray) -> bool:
    return np.count_nonzero(mask) == mask.size


class Agents(NamedTuple):
    """Names for whoever touched a byte, as integers: `identity + len(blocks) * epoch`.

    Identity t < threads is one thread, threads + b is "several threads of block b", the last one is "threads
    of several blocks". The epoch counts the barriers that the block has passed.

    blocks: (threads + number of blocks + 1,) the block of each identity, -1 for the last.
    """

    threads: int
    threads_per_block: int
    blocks: np.ndarray

    @classmethod
    def of_launch(cls, number_of_blocks: int, threads_per_block: int) -> Agents:
        one_each = np.arange(number_of_blocks)
        blocks = np.concatenate([np.repeat(one_each, threads_per_block), one_each, [-1]])
        return cls(number_of_blocks * threads_per_block, threads_per_block, blocks)

    def may_follow(self, earlier: np.ndarray, agent: np.ndarray) -> np.ndarray:
        """True where `agent` is ordered after `earlier`: nobody, itself, or its block before a barrier."""
        earlier_epoch, earlier_identity = np.divmod(earlier, len(self.blocks))
        epoch, identity = np.divmod(agent, len(self.blocks))
        same_block = self.blocks[earlier_identity] == self.blocks[identity]
        return (earlier == UNTOUCHED) | (earlier_identity == identity) | (same_block & (earlier_epoch < epoch))

    def merge(self, earlier: np.ndarray, agent: np.ndarray) -> np.ndarray:
        """The agent that stands for both of two readers that nothing orders."""
        epoch, identity = np.divmod(agent, len(self.blocks))
        block = self.blocks[identity]
        same_block = self.blocks[earlier % len(self.blocks)] == block
        several_of_block = self.threads + block + epoch * len(self.blocks)
        return np.where(same_block, several_of_block, len(self.blocks) - 1)

    def describe(self, agent: int) -> str:
        identity = int(agent) % len(self.blocks)
        if identity < self.threads:
            return f"thread {identity % self.threads_per_block} of block {identity // self.threads_per_block}"
        if identity < len(self.blocks) - 1:
            return f"several threads of block {identity - self.threads}"
        return "threads of several blocks"


def _index(address: np.ndarray, first: int, size: int) -> np.ndarray:
    """Which element of `size` bytes, a power of two, each address is, counted from address `first`."""
    return ((address - np.uint64(first)) >> np.uint64(size.bit_length() - 1)).view(np.int64)


class Buffer:
    """One registered array and, per cell of bytes, who read it, who wrote it, whether it has a value.

    A cell is as large as the smallest access seen so far. Accesses are aligned to their own size, a power of
    two, so every one covers whole cells and a cell can be split without losing anything.
    """

    def __init__(self, array: np.ndarray, name: str, writable: bool, initialised: bool) -> None:
        self.array, self.name, self.writable = array, name, writable
        self.raw = array.reshape(-1).view(np.uint8)
        self.start = array.ctypes.data
        self.end = self.start + self.raw.size
        self.unit = WIDEST_ACCESS
        self.origin = self.start - self.start % WIDEST_ACCESS
        self.blank = None if initialised else np.ones(self._cell_count(), bool)
        self.windows: dict[np.dtype, tuple[int, np.ndarray]] = {}
        self.forget()

    def forget(self) -> None:
        """Start a launch: nobody has touched anything."""
        self.reader = self.writer = None
        self.was_read = self.was_written = False

    def _cell_count(self) -> int:
        return -(-(self.end - self.origin) // self.unit)

    def window(self, dtype: np.dtype) -> tuple[int, np.ndarray]:
        """(first address, elements): the buffer as the elements of `dtype` at aligned addresses within it."""
        if dtype not in self.windows:
            skip = -self.start % dtype.itemsize
            count = max(self.raw.size - skip, 0) // dtype.itemsize
            self.windows[dtype] = (
                self.start + skip,
                self.raw[skip : skip + count * dtype.itemsize].view(dtype),
            )
        return self.windows[dtype]

    def cells(self, address: np.ndarray, size: int) -> np.ndarray:
        """(lanes, cells per access): the cells of an access of `size` bytes."""
        if size < self.unit:
            ratio, self.unit = self.unit // size, size
            count = self._cell_count()
            self.reader, self.writer, self.blank = (
                None if state is None else np.repeat(state, ratio)[:count] for state in (self.reader, self.writer, self.blank)
            )
        first = _index(address, self.origin, self.unit)[:, None]
        return first if size == self.unit else first + np.arange(size // self.unit)

    def start_tracking(self) -> None:
        if self.reader is None:
            self.reader = np.full(self._cell_count(), UNTOUCHED, np.int64)
            self.writer = np.full(self._cell_count(), UNTOUCHED, np.int64)

    def byte(self, cell: int) -> int:
        return max(self.origin + int(cell) * self.unit - self.start, 0)


class Memory:
    """What the threads may touch: arrays registered by `add`, addressed as the host addresses them.

    An access is an error if it is misaligned, leaves its array, writes a read-only array, reads bytes that
    nobody has written, or touches a byte that another thread wrote in the same launch (or writes one that
    another read) with no barrier of a common block in between.
    """

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []  # sorted by address; empty arrays have no bytes and are not in it
        self._starts: list[int] = []  # theirs
        self._agents: Agents | None = None

    def add(self, array: np.ndarray, *, name: str, writable: bool = True, initialised: bool = True) -> int:
        """Register a C-contiguous array and return its address; a read-only array is never writable."""
        if not array.flags.c_contiguous:
            raise PTXError(f"{name}: only C-contiguous arrays can be registered, got strides {array.strides}")
        buffer = Buffer(array, name, writable and array.flags.writeable, initialised)
        if array.size:
            at = bisect_right(self._starts, buffer.start)
            for other in self.buffers[max(at - 1, 0) : at + 1]:
                if buffer.start < other.end and other.start < buffer.end:
                    raise PTXError(f"{name}: overlaps {other.name}, which is registered already")
            self.buffers.insert(at, buffer)
            self._starts.insert(at, buffer.start)
        return buffer.start

    def remove(self, address: int) -> None:
        """Take back the array at this address; an empty one was never kept."""
        self.buffers = [buffer for buffer in self.buffers if buffer.start != address]
        self._starts = [buffer.start for buffer in self.buffers]

    def begin(self, agents: Agents) -> None:
        """Forget the accesses of earlier launches."""
        self._agents = agents
        for buffer in self.buffers:
            buffer.forget()

    def load(
        self, address: np.ndarray, dtype: np.dtype, count: int, agent: np.ndarray, *, coherent: bool = True
    ) -> list[np.ndarray]:
        """`count` vectors over lanes, element k of each lane's access. address: (lanes,) uint64."""
        pieces = self._locate(address, dtype.itemsize * count, "load")
        if len(pieces) == 1:
            return self._load_from(pieces[0][0], address, dtype, count, agent, coherent)
        result = [np.empty(address.size, dtype) for _ in range(count)]
        for buffer, lanes in pieces:
            values = self._load_from(buffer, address[lanes], dtype, count, agent[lanes], coherent)
            for whole, part in zip(result, values, strict=True):
                whole[lanes] = part
        return result

    def store(self, address: np.ndarray, values: list[np.ndarray], agent: np.ndarray) -> None:
        """Write one vector over lanes, or one value for all, per element of the access."""
        dtype = values[0].dtype
        for buffer, lanes in self._locate(address, dtype.itemsize * len(values), "store"):
            at = address[lanes]
            self._check_store(buffer, at, dtype.itemsize * len(values), agent[lanes])
            first, elements = buffer.window(dtype)
            index = _index(at, first, dtype.itemsize)
            for k, value in enumerate(values):
                elements[index + k] = value if value.size == 1 else value[lanes]

    def _locate(self, address: np.ndarray, size: int, what: str) -> list[tuple[Buffer, slice | np.ndarray]]:
        """The buffers that the lanes' accesses lie in, each with its lanes."""
        if size > 1 and int(np.bitwise_or.reduce(address)) & (size - 1):
            where = self._place(int(address[(address & np.uint64(size - 1)) != 0][0]))
            raise PTXError(f"misaligned {size}-byte {what} at {where}")
        starts = self._starts
        found = bisect_right(starts, int(np.minimum.reduce(address))) - 1
        if found >= 0 and int(np.maximum.reduce(address)) + size <= self.buffers[found].end:
            return [(self.buffers[found], slice(None))]
        index = np.searchsorted(np.array(starts, np.uint64), address, side="right") - 1
        ends = np.array([buffer.end for buffer in self.buffers] or [0], np.uint64)[index]
        outside = (index < 0) | (ends <= address) | (ends - address < np.uint64(size))
        if some(outside):
            where = self._place(int(address[outside][0]))
            raise PTXError(f"out of bounds: {size}-byte {what} at {where}")
        return [(self.buffers[k], np.flatnonzero(index == k)) for k in np.unique(index)]

    def _place(self, address: int) -> str:
        below = bisect_right(self._starts, address) - 1
        if below < 0:
            return f"address {address:#x}, below every array"
        buffer = self.buffers[below]
        return f"{buffer.name} + {address - buffer.start} (address {address:#x}; {buffer.raw.size} bytes long)"

    def _load_from(
        self,
        buffer: Buffer,
        address: np.ndarray,
        dtype: np.dtype,
        count: int,
        agent: np.ndarray,
        coherent: bool,
    ) -> list[np.ndarray]:
        if buffer.blank is not None:
            cells = buffer.cells(address, dtype.itemsize * count)
            if some(buffer.blank[cells]):
                byte = buffer.byte(cells[buffer.blank[cells]][0])
                raise PTXError(f"read of uninitialised memory: {buffer.name}, byte {byte}")
        if buffer.writable:
            self._note_read(buffer, buffer.cells(address, dtype.itemsize * count), agent, coherent)
        first, elements = buffer.window(dtype)
        index = _index(address, first, dtype.itemsize)
        return [elements.take(index + k) for k in range(count)]

    def _check_store(self, buffer: Buffer, address: np.ndarray, size: int, agent: np.ndarray) -> None:
        if not buffer.writable:
            raise PTXError(f"write to read-only memory: {self._place(int(address[0]))}")
        cells = buffer.cells(address, size)
        self._note_write(buffer, cells, agent)
        if buffer.blank is not None:
            buffer.blank[cells] = False

    def _note_read(self, buffer: Buffer, cells: np.ndarray, agent: np.ndarray, coherent: bool) -> None:
        buffer.start_tracking()
        reader = agent = agent[:, None]
        if buffer.was_written:
            writer = buffer.writer.take(cells)
            if not coherent and some(writer != UNTOUCHED):
                byte = buffer.byte(cells[writer != UNTOUCHED][0])
                raise PTXError(f"non-coherent load of {buffer.name}, byte {byte}, which this launch has written")
            self._demand_order(buffer, cells, writer, agent, "written", "read")
        if buffer.was_read:
            before = buffer.reader.take(cells)
            if some((before != agent) & (before != UNTOUCHED)):
                reader = np.where(self._agents.may_follow(before, agent), agent, self._agents.merge(before, agent))
        buffer.was_read = True
        buffer.reader[cells] = reader
        lost = buffer.reader.take(cells) != reader  # lanes of this very load that share a cell
        if some(lost):
            shared = cells[lost]
            merged = self._agents.merge(buffer.reader[shared], np.broadcast_to(agent, cells.shape)[lost])
            # one block is left out only by "several blocks", whose identity is the largest and epoch-free
            across = merged % len(self._agents.blocks) == len(self._agents.blocks) - 1
            buffer.reader[shared] = merged
            buffer.reader[shared[across]] = len(self._agents.blocks) - 1

    def _note_write(self, buffer: Buffer, cells: np.ndarray, agent: np.ndarray) -> None:
        buffer.start_tracking()
        agent = agent[:, None]
        if buffer.was_read:
            self._demand_order(buffer, cells, buffer.reader.take(cells), agent, "read", "written")
        if buffer.was_written:
            self._demand_order(buffer, cells, buffer.writer.take(cells), agent, "written", "written")
        buffer.was_written = True
        buffer.writer[cells] = agent
        self._demand_order(buffer, cells, buffer.writer.take(cells), agent, "written", "written")

    def _demand_order(
        self,
        buffer: Buffer,
        cells: np.ndarray,
        earlier: np.ndarray,
        agent: np.ndarray,
        before: str,
        now: str,
    ) -> None:
        """Raise where an earlier access may be by a thread that nothing orders before this one."""
        open_questions = earlier != agent
        if some(open_questions):
            open_questions &= earlier != UNTOUCHED
        if not some(open_questions):
            return
        agent = np.broadcast_to(agent, cells.shape)[open_questions]
        cells, earlier = cells[open_questions], earlier[open_questions]
        race = ~self._agents.may_follow(earlier, agent)
        if some(race):
            k = np.flatnonzero(race)[0]
            first, second = self._agents.describe(earlier[k]), self._agents.describe(agent[k])
            raise PTXError(f"race on {buffer.name}, byte {buffer.byte(cells[k])}: {before} by {first}, {now} by {second}")
