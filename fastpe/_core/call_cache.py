"""Prepared calls, kept to be run again: what was checked once is not checked again, so a row of a decoder costs microseconds.

A key is all that the checks of a call depend on but what is looked at every time: addresses, whether memory may be written, offsets, ids.
Nothing of the caller's is kept alive. The cache is bounded and is emptied by ``fastpe.clear_caches()``; every step of it is one
operation on a dict, which threads cannot interrupt.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from .._arrays import Memory, dispatch
from .bias_tables import Work
from .checks import POSITION_LIMIT
from .operations import Add, Embed, Rotate
from .operations.base import Job

MOST_ENTRIES = 256
SINGLE_VALUES = 64
MISS: Any = object()  # what an entry returns where the call must be checked anew, to be run or to say what is wrong

Key = tuple[Hashable, ...]
entries: dict[Key, Entry] = {}  # looked up directly, as a function around it would cost 0.1 us
_word_at = ctypes.c_size_t.from_address
_DATA = object.__basicsize__  # behind its head, an ndarray's struct holds where its data are, as NumPy's C headers say


class Entry:
    """A prepared kernel call, and what of a call like the one that it was made for is still to be looked at."""

    def __init__(self, call: Any, arrays: Sequence[Memory], counts: bool = True) -> None:
        self.call, self._counts, self._last = call, counts, POSITION_LIMIT - call.rows
        first, last = arrays[0], arrays[-1]
        (low, high), (low_of_last, high_of_last) = _extent(first), _extent(last)
        # Two arrays overlap where the last lies between these distances from the first, if not interleaved as they were then.
        self._low, self._high = low - high_of_last, high - low_of_last
        self._distance = last.address - first.address

    def run(self, addresses: Sequence[int], offset: int) -> bool:
        """Run on the arrays at these addresses, if they lie apart, and if the positions are what they may be."""
        distance = addresses[-1] - addresses[0]
        if distance != self._distance and self._low < distance < self._high:
            return False
        if not -POSITION_LIMIT <= offset <= self._last or (offset and not self._counts):
            return False
        self.call.run(addresses, offset << 32)
        return True

    def run_at(self, addresses: Sequence[int], offset: Any) -> bool:
        """As ``run``; ``offset`` is an int or, of a call that was made with such, an array of offsets or positions."""
        if type(offset) is int:
            return self.run(addresses, offset)
        if not _are_positions(offset):
            return False
        distance = addresses[-1] - addresses[0]
        if distance != self._distance and self._low < distance < self._high:
            return False
        self.call.run(addresses, 0, offset)
        return True

    def run_host(self, arrays: tuple[Any, ...], offset: Any, out: Any) -> Any:
        """Run a call on NumPy's arrays and return its result; MISS if it must be checked anew."""
        raise NotImplementedError


def host_address(array: np.ndarray[Any, Any]) -> int:
    """Where an array lies. Reading NumPy's struct takes 0.17 us, ``ndarray.ctypes`` 1 and a ctypes buffer 0.4 (AMD EPYC, Zen 4)."""
    return _word_at(id(array) + _DATA).value


def are_rows(ids: Any, count: int) -> bool:
    """Whether int64 ids lie in [0, count): as unsigned numbers, negative ones are the largest."""
    return bool(np.maximum.reduce(ids.view(np.uint64), None) < count)


def _are_positions(values: Any) -> bool:
    """Whether an array's integers lie where positions may; single ones are compared faster by Python."""
    if values.size > SINGLE_VALUES:
        low, high = int(np.minimum.reduce(values, None)), int(np.maximum.reduce(values, None))
    else:
        numbers = values.ravel().tolist()
        low, high = min(numbers), max(numbers)
    return low >= -POSITION_LIMIT and high < POSITION_LIMIT


def _extent(memory: Memory) -> tuple[int, int]:
    """From the first byte to behind the last, counted from an array's address."""
    steps = [(size - 1) * stride for size, stride in zip(memory.shape, memory.strides, strict=True)]
    return sum(step for step in steps if step < 0), sum(step for step in steps if step > 0) + memory.array.dtype.itemsize


class _AddEntry(Entry):
    def run_host(self, arrays: tuple[Any, ...], offset: Any, out: Any) -> Any:
        x = arrays[0]
        if out is None or out is x:
            if not x.flags.writeable:
                return MISS
            # Written out, as this is a decoder's row: `run_at` takes 0.3 us longer.
            address = _word_at(id(x) + _DATA).value
            if type(offset) is int and 0 <= offset <= self._last and self._counts:
                self.call.run((address, address), offset << 32)
                return x
            return x if self.run_at((address, address), offset) else MISS
        if not out.flags.writeable:
            return MISS
        return out if self.run_at((host_address(x), host_address(out)), offset) else MISS


class _RotateEntry(Entry):
    def run_host(self, arrays: tuple[Any, ...], offset: Any, out: Any) -> Any:
        q, k = arrays
        if k is None or q is None:
            x = q if k is None else k
            if not x.flags.writeable:
                return MISS
            return x if self.run_at((host_address(x),), offset) else MISS
        if not (q.flags.writeable and k.flags.writeable):
            return MISS
        return arrays if self.run_at((host_address(q), host_address(k)), offset) else MISS


class _EmbedEntry(Entry):
    def run_host(self, arrays: tuple[Any, ...], offset: Any, out: Any) -> Any:
        table, ids = arrays[:2]
        if not are_rows(ids, table.shape[0]):
            return MISS
        if out is None:
            out = np.empty((*ids.shape, table.shape[1]), table.dtype)
        elif not out.flags.writeable or np.may_share_memory(out, ids):  # the table: see `run_at`
            return MISS
        return out if self.run_at((host_address(table), host_address(ids), host_address(out)), offset) else MISS


class BiasEntry(Entry):
    """A decoder has one more key at each step, so a key leaves open how many there are: the call is resized without checking anew.

    Its table of values is one of those that are kept (``bias_tables``), which no entry keeps from being given up.
    """

    def __init__(self, call: Any, work: Work, operation: Any) -> None:
        source, target = work.source, work.target
        super().__init__(call, (source, target))
        self._values, self._span = weakref.ref(operation.values.array), (operation.low, operation.high)
        near, far = work.bias.reach  # of query minus key; beyond these ends values do not change
        self._ends = -np.inf if far is None else -far, np.inf if near is None else -near
        self._causal, self._dense = work.causal, [memory.array.flags.c_contiguous for memory in (source, target)]
        self._most = POSITION_LIMIT if self._dense[1] else _most_columns(target)
        self._itemsize = target.array.dtype.itemsize

    def run_bias(self, addresses: Sequence[int], columns: int, q_offset: int | None) -> bool:
        """Run on scores at these addresses, of so many columns."""
        call = self.call
        start = columns - call.rows if q_offset is None else q_offset
        if not 0 < columns <= self._most or not -POSITION_LIMIT <= start <= POSITION_LIMIT - call.rows:
            return False
        low, high = 1 - start - call.rows, columns - 1 - start
        if self._causal:
            low, high = min(low, 0), min(high, 0)
        (first, last), (low_end, high_end) = self._span, self._ends
        values = self._values() if (low >= first or low_end >= first) and (high <= last or high_end <= last) else None
        if values is None:  # the table has not all of these distances, or is not there any more
            return False
        if columns != call.columns:
            self.call = call = call.resized(columns, *self._dense)  # threads may overwrite each other's: each uses its own
        call.run(addresses, start << 32, values)
        return True

    def run_host(self, arrays: tuple[Any, ...], offset: Any, out: Any) -> Any:
        (scores,) = arrays
        target = scores if out is None else out
        if not target.flags.writeable or not target.size:
            return MISS
        if target is not scores and np.may_share_memory(scores, target):
            return MISS
        return target if self.run_bias((host_address(scores), host_address(target)), scores.shape[-1], offset) else MISS


class DeviceEntry(Entry):
    """A prepared call on arrays of a GPU."""

    def __init__(self, call: Any, arrays: Sequence[Memory], counts: bool = True) -> None:
        super().__init__(call, arrays, counts)
        self.device = arrays[0].device
        self._library = dispatch.library_on(self.device)
        self._misaligned = max(memory.array.dtype.itemsize for memory in arrays) - 1  # bits that no address may have
        self.misaligned_positions = 0  # and these no address of positions
        # As ``_low``, ``_high`` and ``_distance``, of every two.
        self._pairs = []
        for (i, one), (j, other) in itertools.combinations(enumerate(arrays), 2):
            (low, high), (other_low, other_high) = _extent(one), _extent(other)
            self._pairs.append((i, j, low - other_high, high - other_low, other.address - one.address))

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A new array beside the others."""
        return self._library.new(shape, dtype, self.device)

    def apart(self, addresses: Sequence[int]) -> bool:
        """Whether arrays at these addresses overlap no more than those did for which the call was made."""
        for i, j, low, high, distance in self._pairs:
            found = addresses[j] - addresses[i]
            if low < found < high and found != distance:
                return False
        return True

    def launch(self, addresses: Sequence[int], offset: int, positions: int = 0, stream: Any = None) -> bool:
        """Launch on the arrays at these addresses; ``positions``: where those, or the offsets of sequences, are instead of ``offset``."""
        bits = 0
        for address in addresses:
            bits |= address
        if bits & self._misaligned:
            return False
        if positions:
            if positions & self.misaligned_positions:
                return False
            self.call.run(addresses, positions, stream)
            return True
        if not -POSITION_LIMIT <= offset <= self._last or (offset and not self._counts):
            return False
        self.call.run(addresses, offset << 32, stream)
        return True


def _most_columns(memory: Memory) -> int:
    """How many elements rows of these strides can have, one behind the other, so that no element is in two of them."""
    itemsize: int = memory.array.dtype.itemsize
    free, span = POSITION_LIMIT * itemsize, 0
    steps = sorted((abs(step), size) for step, size in zip(memory.strides[:-1], memory.shape[:-1], strict=True) if size > 1)
    for stride, size in steps:
        free, span = min(free, stride - span), span + stride * (size - 1)
    return max(0, free // itemsize)


# ---- the cache ---------------------------------------------------------------------------------------------------------------

_ENTRIES: dict[type, type[Entry]] = {Add: _AddEntry, Rotate: _RotateEntry, Embed: _EmbedEntry}


def keep(key: Key, operation: Any, kernel_call: Any, prepared: Any, job: Job, where: Any) -> None:
    """Keep the prepared form of a checked call's only kernel call, if another call like it may run it."""
    entry: Entry
    if isinstance(job.arrays, Work):
        if kernel_call.key is None or kernel_call.values is None:
            return
        entry = BiasEntry(prepared, job.arrays, kernel_call)
    else:
        assert job.arrays is not None
        offset = where.offset if where.positions is None else where.positions
        if type(offset) is not int and not prepared.takes(offset):
            return
        if len(prepared.addresses) != len(job.arrays):
            return
        encoding, made = operation.encoding, _ENTRIES[type(operation)]
        made = made if job.device is None else DeviceEntry
        entry = made(prepared, job.arrays, encoding is not None and encoding.counts)
        if isinstance(entry, DeviceEntry) and type(offset) is not int:
            entry.misaligned_positions = offset.dtype.itemsize - 1
    if key not in entries and len(entries) >= MOST_ENTRIES:
        entries.clear()
    entries[key] = entry


def clear() -> None:
    """Forget every prepared call."""
    entries.clear()
