"""How the threads of a call on the CPU divide a kernel's work among themselves, and what that needs of the processor.

Each thread takes a scratch slot. It works off the chunk range of the slot's number and then claims chunks of the other ranges (`abi.py`).
A range is the same in every call, so that the part of a small array that lies in a core's cache stays there. The calling thread,
number 0, returns when all chunks are finished. Helpers have other numbers; they come from a queue, or from spin slots, in which they
wait a while for the next call. A caller without helpers takes the chunks in order and counts nothing. On a GPU the hardware does all this.

Nothing here or in a kernel allocates memory: Numba would ask Python's allocator for it, without the GIL, and a thread that does so
while another one ends ``tracemalloc`` crashes the process (with Python 3.11; python/cpython issue 128679).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import abi, simd
from .simd import F64, I32, I64

at, ctl, spin, chunk_range = (layout.index for layout in (abi.ROWS, abi.CONTROL, abi.SPIN_SLOT, abi.CHUNK_RANGE))
SPIN_SLOT_BYTES, RANGE_WORDS = abi.SPIN_SLOT.nbytes, abi.CHUNK_RANGE.words
WORD = types.int64  # addresses too


def emitted(result: Any, *kinds: Any) -> Callable[[Any], Any]:
    """Make ``emit(builder, *values)``, which emits instructions and may return a value, callable from Numba functions."""

    def decorate(emit: Any) -> Any:
        def typing(typingctx: Any, *values: Any) -> Any:
            def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
                value = emit(builder, *arguments)
                return context.get_dummy_value() if value is None else value

            return result(*kinds), generate

        typing.__name__ = getattr(emit, "func", emit).__name__
        typing.__signature__ = inspect.signature(emit)  # type: ignore[attr-defined]
        return intrinsic(typing)

    return decorate


REAL = object()  # among the kinds of ``variants``: the type of an element's arithmetic


def variants(result: Any, *kinds: Any) -> Callable[[Any], Callable[..., Any]]:
    """As ``emitted``, where the instructions depend on an element type and perhaps on more.

    Where ``fill(element, streams, builder, address)`` is decorated with ``variants(types.void, WORD)``, a kernel is built with
    ``stream_fill = fill(element, True)`` and calls ``stream_fill(address)``: ``kinds`` are the types of what comes after the builder.
    """

    def decorate(emit: Any) -> Callable[..., Any]:
        def make(element: Any, *others: Any) -> Any:
            its_kinds = [element.numba_real if kind is REAL else kind for kind in kinds]
            return emitted(result, *its_kinds)(functools.partial(emit, element, *others))

        return make

    return decorate


def inline(function: Any) -> Any:
    """Compile a helper that LLVM may inline into its caller."""
    return numba.njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def inline_as(variant: str) -> Callable[[Any], Any]:
    """As ``inline``, for a helper that exists in several variants: each gets a name of its own.

    Numba tells functions of one name and signature apart by a number that counts up in each process. Kernels loaded from the disk,
    compiled by different processes, would share such a name, and one would run the other's helper.
    """

    def decorate(function: Any) -> Any:
        function.__name__ = function.__qualname__ = f"{function.__name__}_{variant}"
        return inline(function)

    return decorate


# ---- memory ------------------------------------------------------------------------------------------------------------------


def load_word(builder: ir.IRBuilder, block: ir.Value, index: int) -> ir.Value:
    """The word at an index of a block."""
    return builder.load(_pointer(builder, block, I64(index), I64))


def _pointer(builder: ir.IRBuilder, block: ir.Value, index: ir.Value, kind: ir.Type) -> ir.Value:
    return builder.gep(builder.inttoptr(block, kind.as_pointer()), [index])


@emitted(WORD, WORD, WORD)
def word(builder, block, index):  # type: ignore[no-untyped-def]
    """The word at an index of a block."""
    return builder.load(_pointer(builder, block, index, I64))


@emitted(types.float64, WORD, WORD)
def number(builder, block, index):  # type: ignore[no-untyped-def]
    """The float64 at an index of a block."""
    return builder.load(_pointer(builder, block, index, F64))


@emitted(types.void, WORD, WORD, WORD)
def set_word(builder, block, index, value):  # type: ignore[no-untyped-def]
    builder.store(value, _pointer(builder, block, index, I64))


@emitted(types.uint8, WORD)
def byte(builder, address):  # type: ignore[no-untyped-def]
    return builder.load(builder.inttoptr(address, ir.IntType(8).as_pointer()))


@emitted(WORD, WORD, WORD, WORD)
def fetch_add(builder, block, index, value):  # type: ignore[no-untyped-def]
    """Add to a word of a block atomically; return the word before."""
    return builder.atomic_rmw("add", _pointer(builder, block, index, I64), value, "seq_cst")


@emitted(WORD, WORD, WORD)
def atomic_load(builder, block, index):  # type: ignore[no-untyped-def]
    return builder.load_atomic(_pointer(builder, block, index, I64), "seq_cst", 8)


@emitted(types.void, WORD, WORD, WORD)
def atomic_store(builder, block, index, value):  # type: ignore[no-untyped-def]
    builder.store_atomic(value, _pointer(builder, block, index, I64), "seq_cst", 8)


@emitted(types.boolean, WORD, WORD, WORD, WORD)
def exchange_if(builder, block, index, expected, value):  # type: ignore[no-untyped-def]
    """Replace a word of a block atomically if it is the expected one; return whether it was."""
    result = builder.cmpxchg(_pointer(builder, block, index, I64), expected, value, "seq_cst", "seq_cst")
    return builder.extract_value(result, 1)


# ---- the processor -----------------------------------------------------------------------------------------------------------


@emitted(types.void)
def pause(builder):  # type: ignore[no-untyped-def]
    """Tell the processor that this loop only waits."""
    simd.outside(builder, abi.PAUSE, ir.VoidType())


@emitted(types.int32, WORD)
def call_function(builder, address):  # type: ignore[no-untyped-def]
    """Call the C function ``int f(void)`` at this address."""
    return builder.call(builder.inttoptr(address, ir.FunctionType(I32, []).as_pointer()), [])


@emitted(WORD)
def enter_float_mode(builder):  # type: ignore[no-untyped-def]
    """Set this thread's default float mode, and return what it was: round to nearest, nothing trapped, subnormal numbers kept.

    Flushing subnormal numbers to zero is a setting of each thread: without this a result could depend on which thread computed it.
    """
    return simd.outside(builder, abi.ENTER_FLOAT_MODE, I64)


@emitted(types.void, WORD)
def leave_float_mode(builder, mode):  # type: ignore[no-untyped-def]
    simd.outside(builder, abi.LEAVE_FLOAT_MODE, ir.VoidType(), mode)


# ---- spin slots --------------------------------------------------------------------------------------------------------------

SPINS = 1 << 13  # pauses: about 0.3 ms, no more than twice what it takes to wake a thread on an idle core


@inline
def call_helpers(call, control):
    """Hand the call to helpers that wait in spin slots."""
    slot = word(control, ctl.spin_slots)
    if slot == 0:
        return
    for _ in range(abi.SPIN_SLOTS):
        called = word(control, ctl.called)
        if called > word(control, ctl.helpers):
            return
        if atomic_load(slot, spin.state) == abi.WAITS and exchange_if(slot, spin.state, abi.WAITS, abi.RESERVED):
            set_word(control, ctl.called, called + 1)  # before the helper can leave
            set_word(slot, spin.call, call)
            set_word(slot, spin.control, control)
            atomic_store(slot, spin.state, abi.CALLED)
        slot += SPIN_SLOT_BYTES


@inline
def wait_in_slot(slot, yield_function):
    """Wait in a free spin slot for a call; return the slot that holds it, or 0 if none came."""
    last = slot + SPIN_SLOT_BYTES * (abi.SPIN_SLOTS - 1)
    while slot != 0 and not exchange_if(slot, spin.state, abi.FREE, abi.WAITS):
        slot = 0 if slot == last else slot + SPIN_SLOT_BYTES
    if slot == 0:
        return slot
    for spins in range(SPINS):
        if atomic_load(slot, spin.state) == abi.CALLED:
            return slot
        if spins & 63 == 63 and yield_function != 0:  # other threads may need the processor more
            call_function(yield_function)
        pause()
    if exchange_if(slot, spin.state, abi.WAITS, abi.FREE):
        return 0
    while atomic_load(slot, spin.state) != abi.CALLED:  # a caller is writing to it
        pause()
    return slot


# ---- scratch slots and chunks ------------------------------------------------------------------------------------------------


@inline
def take_slot(control, thread):
    """Return the number of a free scratch slot, the thread's own if it is free; -1 if there is none."""
    slots = word(control, ctl.slots)
    own = thread if thread < slots else 1 + (thread - 1) % max(1, slots - 1)  # 0 is the caller's
    for others in range(slots):
        slot = (own + others) % slots
        if exchange_if(control, ctl.range_0 + RANGE_WORDS * slot + chunk_range.slot_is_taken, 0, 1):
            return slot
    return -1


@inline
def claim_chunk(control, which):
    """Return a chunk of a range, or -1 when all of them are claimed."""
    chunks, ranges = word(control, ctl.chunks), word(control, ctl.slots)
    claimed = fetch_add(control, ctl.range_0 + RANGE_WORDS * which + chunk_range.claimed, 1)
    chunk = which * chunks // ranges + claimed
    return chunk if chunk < (which + 1) * chunks // ranges else -1


@inline
def rows_of_chunk(rows, batch, control, chunk):
    """The first row and the end of a chunk's rows, and the first and the end of its sequences."""
    rows_per_chunk, batch_per_chunk = word(control, ctl.rows_per_chunk), word(control, ctl.batch_per_chunk)
    batch_chunks = (batch + batch_per_chunk - 1) // batch_per_chunk
    t_first, b_first = (chunk // batch_chunks) * rows_per_chunk, (chunk % batch_chunks) * batch_per_chunk
    return t_first, min(rows, t_first + rows_per_chunk), b_first, min(batch, b_first + batch_per_chunk)


# ---- rows --------------------------------------------------------------------------------------------------------------------


@inline
def row_at(call, base, strides, i, j, k):
    """Address of a row at three indices; ``strides`` is the index of their strides in the block, which follow each other."""
    return base + i * word(call, strides) + j * word(call, strides + 1) + k * word(call, strides + 2)


@inline
def position_of(call, b, t, other):
    """The position of a row; ``other`` is its head or an axis."""
    if word(call, at.positions) == 0:
        return word(call, at.start) + (t << 32)
    return word(row_at(call, word(call, at.positions), at.positions_batch_stride, b, t, other), 0)


@inline
def is_kept(call, b, t):
    """Whether the mask leaves a row in."""
    mask = word(call, at.mask)
    return mask == 0 or byte(mask + b * word(call, at.mask_batch_stride) + t * word(call, at.mask_row_stride)) != 0


# ---- the kernel around the work ----------------------------------------------------------------------------------------------

SIGNATURE = numba.void(WORD, WORD, WORD)


def scheduled(work: Any, name: str) -> Any:
    """Return the kernel of this name, not compiled yet, around ``work(call, control, scratch, chunk)``, which does one chunk."""

    def kernel(call, control, thread):  # type: ignore[no-untyped-def]
        alone, waits = thread == abi.ALONE, thread == abi.CALLER
        if waits:
            call_helpers(call, control)
        # A helper from the queue keeps the memory alive itself and is not counted; its call, which may be 0, may be over.
        counted, spin_slots, yield_function = waits, word(control, ctl.spin_slots), word(control, ctl.yield_function)
        while True:
            slot = -1
            if alone:
                slot = 0
            elif call != 0:
                slot = take_slot(control, thread)
            if slot >= 0:
                float_mode = enter_float_mode()
                scratch, ranges = word(control, ctl.scratch) + slot * word(control, ctl.slot_bytes), word(control, ctl.slots)
                which, tried, chunk = slot, 0, np.int64(-1)
                while True:
                    if alone:
                        chunk += 1
                        if chunk == word(control, ctl.chunks):
                            break
                    else:
                        chunk = claim_chunk(control, which)
                    if chunk >= 0:
                        work(call, control, scratch, chunk)
                        if not alone:
                            fetch_add(control, ctl.completed_chunks, 1)
                    else:
                        which, tried = (which + 1) % ranges, tried + 1
                        if tried == ranges:
                            break
                leave_float_mode(float_mode)
            if alone:
                return
            if waits:
                while atomic_load(control, ctl.completed_chunks) < word(control, ctl.chunks):
                    if yield_function != 0:
                        call_function(yield_function)
            if counted:
                fetch_add(control, ctl.left, 1)
            if waits:
                return
            spin_slot = wait_in_slot(spin_slots, yield_function)
            if spin_slot == 0:
                return
            call, control, counted = word(spin_slot, spin.call), word(spin_slot, spin.control), True
            atomic_store(spin_slot, spin.state, abi.FREE)

    kernel.__name__ = kernel.__qualname__ = name
    return kernel
