"""Entries: what the handler needs to know of one kind of call. They are made in Python, once, on arrays in place of the buffers.

An entry says for each kernel call the words of both blocks, and which of them are addresses in which buffer.
"""

from __future__ import annotations

import ctypes
import json
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

NUMBERS = np.zeros(MOST_ENTRIES, np.int64)  # of kinds of calls, 0 where there is none
VALUES = np.zeros(MOST_ENTRIES, np.int64)  # addresses of their entries
_owners: list[Any] = []  # of what entries point to
_messages: dict[str, Any] = {}

# Fields of argument blocks that are addresses of what a call is given
_FIELDS = ["x", "out", "positions", "mask", "ids", "type_ids", "types", "queries", "keys", "q_x", "q_out", "k_x", "k_out"]

Range = tuple[int, int, int]  # address, bytes, number of the buffer


def _made(whole: str) -> tuple[Any, list[Any]]:
    """An entry, and what it points to, for a call's text and the shapes of its operands."""
    call_text, _, rest = whole.rpartition("\n")
    call, shapes = read(call_text), json.loads(rest)
    operands, aliases = call.on_host(shapes), call.aliases
    arrays, where = call.arguments(operands)
    outs = [operands[i] if i in aliases else empty(*spec, None) for i, spec in enumerate(call.results(shapes))]
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


@ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)  # type: ignore[untyped-decorator]
def prepare(number: int, place: int, nbytes: int) -> int:
    """The address of the entry for this call; of an error's message, negative, where there can be none."""
    try:
        whole = ctypes.string_at(place, nbytes).decode()
        with unforkable:
            return _entry(number, whole)
    except Exception:
        text = f"fastpe: a call could not be prepared.\n{traceback.format_exc(limit=-3)}"
        if len(_messages) < 64:
            _messages.setdefault(text, ctypes.create_string_buffer(text.encode()))
        found = _messages.get(text) or next(iter(_messages.values()))
        return -ctypes.addressof(found)


def _entry(number: int, whole: str) -> int:
    slot = number % MOST_ENTRIES
    while NUMBERS[slot] not in (0, number):
        slot = (slot + 1) % MOST_ENTRIES
    if NUMBERS[slot] == number:
        return int(VALUES[slot])
    if len(_owners) > MOST_ENTRIES // 2:
        raise RuntimeError(f"fastpe: a process has at most {MOST_ENTRIES // 2} kinds of calls; jit fewer shapes.")
    entry, owned = _made(whole)
    _owners.append((entry, owned))
    VALUES[slot] = entry.ctypes.data
    NUMBERS[slot] = number
    return int(entry.ctypes.data)
