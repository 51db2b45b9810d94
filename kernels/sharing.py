"""How threads share a kernel's work, and what that asks of the processor. It is for the CPU alone: a GPU shares out by itself.

Each thread takes a room and with it a share of the chunks, and when that is done chunks of the others' shares (`blocks.py`). It is the
same share in every call, so that what of a small array is in a core's cache stays there. The thread that calls, number 0, returns when
all chunks are finished; helpers, of other numbers, come from a queue, or from seats, in which they wait a while for the next call.

Nothing here or in a kernel allocates memory: Numba would ask Python's allocator for it, without the GIL, and a thread that does so
while another one ends ``tracemalloc`` crashes the process (seen with Python 3.11; python/cpython issue 128679).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from . import blocks as at
from .lanes import F64, I32, I64

WORD = types.int64  # addresses too


def emitted(result: Any, *kinds: Any) -> Callable[[Any], Any]:
    """Make of ``emit(builder, *values)``, which emits instructions and may return a value, what a Numba function can call."""

    def decorate(emit: Any) -> Any:
        def typing(typingctx: Any, *given: Any) -> Any:
            def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
                value = emit(builder, *arguments)
                return context.get_dummy_value() if value is None else value

            return result(*kinds), generate

        typing.__name__ = emit.__name__
        typing.__signature__ = inspect.signature(emit)  # type: ignore[attr-defined]
        return intrinsic(typing)

    return decorate


def inline(function: Any) -> Any:
    """Compile a helper that LLVM may inline into its caller."""
    return numba.njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def inline_as(variant: str) -> Callable[[Any], Any]:
    """``inline`` for a helper of which there are variants, each under a name of its own.

    Numba tells functions of one name and signature apart by a number that counts up in each process. Kernels loaded from the disk,
    compiled by different processes, would share such a name, and one would run the other's helper.
    """

    def decorate(function: Any) -> Any:
        function.__name__ = function.__qualname__ = f"{function.__name__}_{variant}"
        return inline(function)

    return decorate


# ---- memory ------------------------------------------------------------------------------------------------------------------


def load_word(builder: ir.IRBuilder, address: ir.Value, place: int) -> ir.Value:
    """The word at a place of a block."""
    return builder.load(_place(builder, address, I64(place), I64))


def _place(builder: ir.IRBuilder, address: ir.Value, place: ir.Value, kind: ir.Type) -> ir.Value:
    return builder.gep(builder.inttoptr(address, kind.as_pointer()), [place])


@emitted(WORD, WORD, WORD)
def word(builder, address, place):  # type: ignore[no-untyped-def]
    """The word at a place of a block."""
    return builder.load(_place(builder, address, place, I64))


@emitted(types.float64, WORD, WORD)
def number(builder, address, place):  # type: ignore[no-untyped-def]
    """The float64 at a place of a block."""
    return builder.load(_place(builder, address, place, F64))


@emitted(types.void, WORD, WORD, WORD)
def set_word(builder, address, place, value):  # type: ignore[no-untyped-def]
    builder.store(value, _place(builder, address, place, I64))


@emitted(types.uint8, WORD)
def byte(builder, address):  # type: ignore[no-untyped-def]
    return builder.load(builder.inttoptr(address, ir.IntType(8).as_pointer()))


@emitted(WORD, WORD, WORD, WORD)
def fetch_add(builder, address, place, value):  # type: ignore[no-untyped-def]
    """Add to a word of a block atomically; return what it was."""
    return builder.atomic_rmw("add", _place(builder, address, place, I64), value, "seq_cst")


@emitted(WORD, WORD, WORD)
def atomic_load(builder, address, place):  # type: ignore[no-untyped-def]
    return builder.load_atomic(_place(builder, address, place, I64), "seq_cst", 8)


@emitted(types.void, WORD, WORD)
def atomic_store(builder, address, value):  # type: ignore[no-untyped-def]
    builder.store_atomic(value, builder.inttoptr(address, I64.as_pointer()), "seq_cst", 8)


@emitted(types.boolean, WORD, WORD, WORD, WORD)
def exchange_if(builder, address, place, expected, value):  # type: ignore[no-untyped-def]
    """Set a word of a block atomically if it is what was expected; return whether it was."""
    result = builder.cmpxchg(_place(builder, address, place, I64), expected, value, "seq_cst", "seq_cst")
    return builder.extract_value(result, 1)


# ---- the processor -----------------------------------------------------------------------------------------------------------

_X86 = cpu_target.target_context.codegen().magic_tuple()[0].startswith(("x86_64", "i386", "i686"))
_ARM = cpu_target.target_context.codegen().magic_tuple()[0].startswith(("aarch64", "arm64"))
DEFAULT_FLOAT_MODE = 0x1F80 if _X86 else 0  # round to nearest, nothing trapped, subnormal numbers kept


@emitted(types.void)
def pause(builder):  # type: ignore[no-untyped-def]
    """Tell the processor that this is a loop that waits."""
    if _X86:
        builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", fnty=ir.FunctionType(ir.VoidType(), [])), [])
    elif _ARM:
        kind = ir.FunctionType(ir.VoidType(), [I32])
        builder.call(builder.module.declare_intrinsic("llvm.aarch64.hint", fnty=kind), [I32(1)])


@emitted(types.int32, WORD)
def call_function(builder, address):  # type: ignore[no-untyped-def]
    """Call the C function ``int f(void)`` at this address."""
    return builder.call(builder.inttoptr(address, ir.FunctionType(I32, []).as_pointer()), [])


@emitted(WORD, WORD)
def exchange_float_mode(builder, mode):  # type: ignore[no-untyped-def]
    """Set this thread's float mode (MXCSR on x86, FPCR on ARM) and return what it was.

    Flushing subnormal numbers to zero is a setting of each thread, so without this a result could depend on who computed it.
    """
    byte = ir.IntType(8).as_pointer()
    if _X86:
        place = cgutils.alloca_once(builder, I32, size=2)
        kind = ir.FunctionType(ir.VoidType(), [byte])
        store = builder.module.declare_intrinsic("llvm.x86.sse.stmxcsr", fnty=kind)
        load = builder.module.declare_intrinsic("llvm.x86.sse.ldmxcsr", fnty=kind)
        new = builder.gep(place, [I32(1)])
        builder.store(builder.trunc(mode, I32), new)
        builder.call(store, [builder.bitcast(place, byte)])
        builder.call(load, [builder.bitcast(new, byte)])
        return builder.zext(builder.load(place), I64)
    if _ARM:
        get = builder.module.declare_intrinsic("llvm.aarch64.get.fpcr", fnty=ir.FunctionType(I64, []))
        put = builder.module.declare_intrinsic("llvm.aarch64.set.fpcr", fnty=ir.FunctionType(ir.VoidType(), [I64]))
        old = builder.call(get, [])
        builder.call(put, [mode])
        return old
    return mode


# ---- seats -------------------------------------------------------------------------------------------------------------------

WAIT_TURNS = 1 << 13  # pauses: about 0.3 ms, no more than twice what it takes to wake a thread on an idle core


@inline
def call_helpers(call, control):
    """Give the call to helpers that wait in seats."""
    seat = word(control, at.SEATS)
    if seat == 0:
        return
    for _ in range(at.SEAT_COUNT):
        called = word(control, at.CALLED)
        if called > word(control, at.HELPERS):
            return
        if atomic_load(seat, 0) == at.WAITS and exchange_if(seat, 0, at.WAITS, at.TAKEN):
            set_word(control, at.CALLED, called + 1)  # before it can leave
            set_word(seat, at.SEAT_CALL, call)
            set_word(seat, at.SEAT_CONTROL, control)
            atomic_store(seat, at.CALLS)
        seat += 8 * at.SEAT_WORDS


@inline
def wait_in_seat(seat, yield_function):
    """Wait for a call; return the seat that holds it, or 0 if none came."""
    last = seat + 8 * at.SEAT_WORDS * (at.SEAT_COUNT - 1)
    while seat != 0 and not exchange_if(seat, 0, at.FREE, at.WAITS):
        seat = 0 if seat == last else seat + 8 * at.SEAT_WORDS
    if seat == 0:
        return seat
    for turn in range(WAIT_TURNS):
        if atomic_load(seat, 0) == at.CALLS:
            return seat
        if turn & 63 == 63 and yield_function != 0:  # others may need it more
            call_function(yield_function)
        pause()
    if exchange_if(seat, 0, at.WAITS, at.FREE):
        return 0
    while atomic_load(seat, 0) != at.CALLS:  # a caller is writing to it
        pause()
    return seat


# ---- rooms and chunks --------------------------------------------------------------------------------------------------------


@inline
def take_room(control, thread):
    """Return the number of a room, -1 if there is none: the thread's own if it can be had."""
    rooms = word(control, at.ROOMS)
    own = thread if thread < rooms else 1 + (thread - 1) % max(1, rooms - 1)  # 0 is the caller's
    for turn in range(rooms):
        room = (own + turn) % rooms
        if exchange_if(control, at.SHARES + at.SHARE_WORDS * room + at.IS_TAKEN, 0, 1):
            return room
    return -1


@inline
def claim_chunk(control, share):
    """Return a chunk of a room's share, or -1 when all are claimed."""
    chunks, rooms = word(control, at.CHUNKS), word(control, at.ROOMS)
    chunk = share * chunks // rooms + fetch_add(control, at.SHARES + at.SHARE_WORDS * share + at.CLAIMED, 1)
    return chunk if chunk < (share + 1) * chunks // rooms else -1


# ---- the kernel around the work ----------------------------------------------------------------------------------------------

SIGNATURE = numba.void(WORD, WORD, WORD)


def shared(work: Any, name: str) -> Any:
    """Return the kernel of this name, not compiled yet, around ``work(call, control, room)``, which works off chunks of all shares."""

    def kernel(call, control, thread):  # type: ignore[no-untyped-def]
        waits = thread == 0
        if waits:
            call_helpers(call, control)
        # A helper from the queue holds the memory itself, and is not counted; its call, which may be 0, may be over.
        counted, seats, yield_function = waits, word(control, at.SEATS), word(control, at.YIELD_FUNCTION)
        while True:
            room = take_room(control, thread) if call != 0 else -1
            if room >= 0:
                float_mode = exchange_float_mode(DEFAULT_FLOAT_MODE)
                work(call, control, room)
                exchange_float_mode(float_mode)
            if waits:
                while atomic_load(control, at.FINISHED_CHUNKS) < word(control, at.CHUNKS):
                    if yield_function != 0:
                        call_function(yield_function)
            if counted:
                fetch_add(control, at.LEFT, 1)
            if waits:
                return
            seat = wait_in_seat(seats, yield_function)
            if seat == 0:
                return
            call, control, counted = word(seat, at.SEAT_CALL), word(seat, at.SEAT_CONTROL), True
            atomic_store(seat, at.FREE)

    kernel.__name__ = kernel.__qualname__ = name
    return kernel
