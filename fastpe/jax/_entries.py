"""Entries: what the handler needs to know of one kind of call. They are made in Python, once, on arrays in place of the buffers.

An entry says for each kernel call the words of both blocks, and which of them are addresses in which buffer.
"""

from __future__ import annotations

import ctypes
import traceback
from typing import Any

import numpy as np

from .._arrays.locks import unforkable
from .._arrays.numpy import empty
from .._backends.calls import AddGrid, AddToeplitz
from .._backends.host import launch, machine_code
from .._backends.host.prepared import Blocks
from ..kernels import abi
from ._call import Call, read

MOST_ENTRIES = 1 << 14  # of a process: twice as many as are made

# An entry: how many kernel calls, then for each of them these words.
CODE, WORDS, WORDS_AT, SLOT_BYTES, HELPERS, MOVES, MOVES_AT, PARTS_AT = range(8)
CALL_WORDS = 8
ADDRESS, START = range(2)  # kinds of moves; a move is (word, buffer, bytes into it, kind)

KEYS = np.zeros(MOST_ENTRIES, np.int64)  # hashes of kinds of calls, 0 where there is none
VALUES = np.zeros(MOST_ENTRIES, np.int64)  # addresses of their entries
_owners: list[Any] = []  # of what entries point to
_messages: dict[str, Any] = {}

# Fields of argument blocks that are addresses of what a call is given
_FIELDS = ["x", "out", "positions", "mask", "ids", "type_ids", "types", "queries", "keys", "q_x", "q_out", "k_x", "k_out"]

Shape = tuple[int, ...]
Range = tuple[int, int, int]  # address, bytes, number of the buffer


def _made(program_text: str, shapes: list[Shape], aliases: list[tuple[int, int]]) -> tuple[Any, list[Any]]:
    """An entry, and what it points to. ``aliases``: results that lie where an operand does."""
    call = read(program_text)
    operands = call.on_host(shapes)
    arrays, where = call.arguments(operands)
    places = {result: operands[operand] for result, operand in aliases if call.replaced[result : result + 1] == [operand]}
    outs = [places[i] if i in places else empty(spec.shape, spec.dtype, None) for i, spec in enumerate(call.results(shapes))]
    job = call.operation.check(arrays, where, outs[0] if len(outs) == 1 else tuple(outs), False)
    buffers = [(array.ctypes.data, array.nbytes, index) for index, array in enumerate([*operands, *outs])]
    words: list[int] = [0]
    owners: list[Any] = []
    for one in job.calls:
        ranges = [*buffers, *_tables(call, one)]
        for prepared in launch._prepared(one):
            packed, owned = _packed(prepared, ranges, call.names)
            words[0] += 1
            words += packed
            owners += owned
        owners.append(getattr(one, "values", None))
    return np.array(words, np.int64), owners


def _tables(call: Call, one: Any) -> list[Range]:
    """The tables of positions that checks made, as memory of the operands that they were made of."""
    tables: list[tuple[str | None, Any]] = []
    if isinstance(one, AddToeplitz):
        tables = [("q_positions", one.rows.queries), ("k_positions", one.rows.keys)]
    else:
        rows = one.rows if isinstance(one, AddGrid) else [one.rows]
        tables = [(call.positions_of(one), part.keepalive[0]) for part in rows if part.table]
    return [(table.address, table.array.nbytes, call.names.index(name)) for name, table in tables if name and table is not None]


def _packed(prepared: Any, ranges: list[Range], names: list[str]) -> tuple[list[int], tuple[Any, ...]]:
    """The words of an entry for one kernel call, and what they point to."""
    layout, arguments, control = prepared._layout, prepared._arguments, prepared._control
    index, first = vars(layout.index), abi.CONTROL.words
    words = np.frombuffer(bytes(Blocks(layout, control, arguments, 0, 0).words), np.int64)[: first + layout.words]
    blocks, parts_at = [(first, arguments)], 0
    if control.get("part_count"):
        parts_at = len(words)
        parts = np.frombuffer(ctypes.string_at(control["parts"], control["part_count"] * layout.nbytes), np.int64)
        words = np.concatenate([words, parts])
        for at in range(0, len(parts), layout.words):
            blocks.append((parts_at + at, {name: int(parts[at + index[name]]) for name in ("positions", "mask")}))
    moves = []
    for at, values in blocks:
        for name in _FIELDS:
            address = values.get(name, 0)
            inside = ((buffer, address - begin) for begin, nbytes, buffer in ranges if begin <= address < begin + nbytes)
            moves += [(at + index[name], buffer, distance, ADDRESS) for buffer, distance in inside][:1]
        if "start" in names:
            moves.append((at + index["start"], names.index("start"), 0, START))
    table = np.array(moves, np.int64).ravel()
    places = words.ctypes.data, prepared._slot_bytes, max(0, prepared._helpers), len(moves), table.ctypes.data, parts_at
    return [machine_code.address_of(prepared._kernel), len(words), *places], (prepared, words, table)


def _shape(buffer: int) -> tuple[int, ...]:
    rank, dims = _word(buffer + 32), _word(buffer + 40)  # XLA_FFI_Buffer: struct_size, extension, dtype, data, rank, dims
    return tuple(_word(dims + 8 * axis) for axis in range(rank))


def _word(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


@ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)  # type: ignore[untyped-decorator]
def prepare(frame: int, key: int) -> int:
    """The address of the entry for this call; of an error's message, negative, where there can be none."""
    try:
        attribute = _word(_word(frame + 8 * 20))
        program_text = ctypes.string_at(_word(attribute), _word(attribute + 8)).decode()
        operands, results = (
            [_word(_word(frame + 8 * at) + 8 * index) for index in range(_word(frame + 8 * count))]
            for count, at in ((7, 9), (12, 14))
        )
        data = [_word(buffer + 24) for buffer in operands]
        aliases = [(i, data.index(_word(one + 24))) for i, one in enumerate(results) if _word(one + 24) in data]
        with unforkable:
            return _entry(key, lambda: _made(program_text, [_shape(one) for one in operands], aliases))
    except Exception:
        text = f"fastpe: a call could not be prepared.\n{traceback.format_exc(limit=-3)}"
        if len(_messages) < 64:
            _messages.setdefault(text, ctypes.create_string_buffer(text.encode()))
        found = _messages.get(text) or next(iter(_messages.values()))
        return -ctypes.addressof(found)


def _entry(key: int, make: Any) -> int:
    slot = key % MOST_ENTRIES
    while KEYS[slot] not in (0, key):
        slot = (slot + 1) % MOST_ENTRIES
    if KEYS[slot] == key:
        return int(VALUES[slot])
    if len(_owners) > MOST_ENTRIES // 2:
        raise RuntimeError(f"fastpe: a process has at most {MOST_ENTRIES // 2} kinds of calls; jit fewer shapes.")
    entry, owned = make()
    _owners.append((entry, owned))
    VALUES[slot] = entry.ctypes.data
    KEYS[slot] = key
    return int(entry.ctypes.data)
