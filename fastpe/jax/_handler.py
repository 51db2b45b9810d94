"""The CPU's FFI target of XLA: a function that Numba compiled, which runs prepared kernel calls on the buffers that it is given.

It holds no GIL. The first call of its kind asks `_entries.py` for an entry; later calls find it by its number in a table of this process.
So no address is in a program, and one that was exported runs in another process. Helpers come from XLA's pool.

The structs are those of XLA's ``c_api.h``, major version 0; the comments at the numbers name the fields. What is read has not moved since
version 0.1.
"""

from __future__ import annotations

import ctypes
from typing import Any

import jax
import numpy as np
from llvmlite import ir
from numba import cfunc, types

from ..kernels import abi
from ..kernels.scheduler import WORD, emitted, fetch_add, inline, set_word, word
from . import _entries as entries

TARGET = "fastpe_cpu"
I32, I64 = ir.IntType(32), ir.IntType(64)
ctl = abi.CONTROL.index
PARTS, SCRATCH, SLOTS, CONTROL_BYTES = ctl.parts, ctl.scratch, ctl.slots, abi.CONTROL.nbytes
NUMBERS_AT, VALUES_AT = entries.NUMBERS.ctypes.data, entries.VALUES.ctypes.data
OTHER_VERSION = ctypes.create_string_buffer(b"fastpe: the program was exported by another version of fastpe. Export it again.")
OTHER_VERSION_AT = ctypes.addressof(OTHER_VERSION)
PREPARE = ctypes.cast(entries.prepare, ctypes.c_void_p).value
_libc = ctypes.CDLL(None)
MALLOC, FREE = (ctypes.cast(function, ctypes.c_void_p).value for function in (_libc.malloc, _libc.free))


# ---- instructions ------------------------------------------------------------------------------------------------------------


def _called(builder: Any, address: Any, *values: Any) -> Any:
    """What a C function at an address makes of words. Nobody reads the result of one that has none."""
    kind = ir.FunctionType(I64, [I64] * len(values)).as_pointer()
    return builder.call(builder.inttoptr(address, kind), values)


call_1 = emitted(WORD, *[WORD] * 2)(lambda builder, address, a: _called(builder, address, a))
call_3 = emitted(WORD, *[WORD] * 4)(lambda builder, address, a, b, c: _called(builder, address, a, b, c))


@emitted(WORD, WORD)
def load_int32(builder, address):  # type: ignore[no-untyped-def]
    return builder.sext(builder.load(builder.inttoptr(address, I32.as_pointer())), I64)


# ---- XLA's functions ---------------------------------------------------------------------------------------------------------

CREATE_ERROR, DESTROY_ERROR, SCHEDULE, COUNT_THREADS = 6, 8, 17, 18  # the words of the API's struct that have their addresses


@inline
def asked(api, function, size, a, b, c):  # type: ignore[no-untyped-def]
    """An error or 0, of a function whose argument is a struct: its size in bytes, no extension, and up to three words."""
    given = call_1(MALLOC, 40)
    set_word(given, 0, size)
    set_word(given, 1, 0)
    set_word(given, 2, a)
    set_word(given, 3, b)
    set_word(given, 4, c)
    error = call_1(word(api, function), given)
    call_1(FREE, given)
    return error


@inline
def done(api, function, size, a, b, c):  # type: ignore[no-untyped-def]
    """The same, and whether there was no error."""
    error = asked(api, function, size, a, b, c)
    if error != 0:
        asked(api, DESTROY_ERROR, 24, error, 0, 0)
    return error == 0


@inline
def helpers_of(api, context, wanted):  # type: ignore[no-untyped-def]
    """How many threads XLA's pool has besides, up to so many; 0 without one."""
    if wanted <= 0:
        return 0
    count = call_1(MALLOC, 8)
    found = 0
    if done(api, COUNT_THREADS, 32, context, count, 0):
        found = max(0, min(wanted, word(count, 0) - 1))
    call_1(FREE, count)
    return found


# ---- the target --------------------------------------------------------------------------------------------------------------


@inline
def release(job):  # type: ignore[no-untyped-def]
    """A job is freed by the last thread that leaves it. Words: references, next number, kernel, arguments, control."""
    if fetch_add(job, 0, -1) == 1:
        call_1(FREE, job)


@cfunc(types.void(WORD), error_model="numpy")
def _help(job):  # type: ignore[no-untyped-def]
    number = fetch_add(job, 1, 1)
    call_3(word(job, 2), word(job, 3), word(job, 4), number)
    release(job)


HELP = _help.address


@inline
def run_call(frame, entry):  # type: ignore[no-untyped-def]
    """Run one kernel call of an entry to its end."""
    api, context, operands = word(frame, 2), word(frame, 3), word(frame, 7)
    helpers = helpers_of(api, context, word(entry, entries.HELPERS))
    count, given, moves = word(entry, entries.WORDS), word(entry, entries.WORDS_AT), word(entry, entries.MOVES_AT)
    job = call_1(MALLOC, 8 * (8 + count) + 192 + (1 + helpers) * word(entry, entries.SLOT_BYTES))
    control = (job + 127) & -64
    scratch = (control + 8 * count + 63) & -64
    for index in range(count):
        set_word(control, index, word(given, index))
    for index in range(word(entry, entries.MOVES)):
        move = moves + 32 * index
        at, buffer = word(move, 0), word(move, 1)
        buffer = word(word(frame, 9), buffer) if buffer < operands else word(word(frame, 14), buffer - operands)
        if word(move, 3) == entries.ADDRESS:
            set_word(control, at, word(buffer, 3) + word(move, 2))
        else:
            set_word(control, at, word(control, at) + (load_int32(word(buffer, 3)) << 32))
    if word(entry, entries.PARTS_AT) != 0:
        set_word(control, PARTS, control + 8 * word(entry, entries.PARTS_AT))
    set_word(control, SCRATCH, scratch)
    set_word(control, SLOTS, 1 + helpers)
    code, arguments = word(entry, entries.CODE), control + CONTROL_BYTES
    set_word(job, 0, 1 + helpers)
    set_word(job, 1, 1)
    set_word(job, 2, code)
    set_word(job, 3, arguments)
    set_word(job, 4, control)
    for _ in range(helpers):
        if not done(api, SCHEDULE, 40, context, HELP, job):
            release(job)
    call_3(code, arguments, control, abi.ALONE if helpers == 0 else abi.CALLER)
    release(job)


@cfunc(WORD(WORD), error_model="numpy")
def _handler(frame):  # type: ignore[no-untyped-def]
    # XLA_FFI_CallFrame: size, extension, api, context, stage, args (size, extension, count, types, args), rets, attrs (..., names, attrs)
    extension = word(frame, 1)
    while extension != 0:
        if word(extension, 1) & 0xFFFFFFFF == 1:  # XLA asks for which version this was written
            set_word(word(extension, 3), 3, np.int64(1) << 32)  # 0.1
            return 0
        extension = word(extension, 2)
    if word(frame, 17) != 2:
        return asked(word(frame, 2), CREATE_ERROR, 32, OTHER_VERSION_AT, 3, 0)
    attributes = word(frame, 20)  # in the order of their names: the text, and its number behind its type
    text, number = word(attributes, 0), word(word(word(attributes, 1), 1), 0)
    slot, entry = number & (entries.MOST_ENTRIES - 1), np.int64(0)
    while word(NUMBERS_AT, slot) != 0:
        if word(NUMBERS_AT, slot) == number:
            entry = word(VALUES_AT, slot)
            break
        slot = (slot + 1) & (entries.MOST_ENTRIES - 1)
    if entry == 0:
        entry = call_3(PREPARE, number, word(text, 0), word(text, 1))
    if entry < 0:
        return asked(word(frame, 2), CREATE_ERROR, 32, -entry, 3, 0)  # 3: an invalid argument
    for index in range(word(entry, 0)):
        run_call(frame, entry + 8 + 8 * entries.CALL_WORDS * index)
    return 0


jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(_handler.address), platform="cpu")
