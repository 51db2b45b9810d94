"""The blocks of memory by which kernels are called: every field of every block is named here, and nowhere else.

An argument block says what to compute; the CPU kernel and the CUDA kernel of an operation read the same one. A control block says how a
call on the CPU is divided among threads, and counts what they have done. All fields are 64-bit words: int64, or float64 where marked.

Everything else is generated from a ``Layout``: the index of each word, which Numba takes as a constant; the bytes of a block from named
values; the NumPy type by which a block is passed to a CUDA kernel; and the C++ struct that the kernel reads.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

WORD_BYTES = 8
LINE_BYTES = 64  # of a cache line
LINE_WORDS = 16  # two lines, as processors fetch them in pairs: what different threads write lies so far apart


class Field(NamedTuple):
    """One word of a block; ``code`` is the one by which ``struct`` packs it."""

    name: str
    code: str = "q"


PADDING = Field("", "8x")
NEXT_LINE = "|"  # among the names of fields: what follows begins on a cache line of its own


class Layout:
    """The order of a block's fields.

    Parameters
    ----------
    name : str
        The C++ struct's name.
    *members : str
        Names of fields, several in a string, or ``NEXT_LINE``.
    base : Layout, optional
        Its fields come before the others; in C++ it is the base class.
    reals : str
        Names of float64 fields, which come after the others.
    **groups : Layout
        Blocks at the end, each under a prefix: the field ``heads`` of group ``q`` is ``q_heads`` in Python and ``q.heads`` in C++, and
        ``q`` is the index of the group's first word.
    """

    def __init__(self, name: str, *members: str, base: Layout | None = None, reals: str = "", **groups: Layout) -> None:
        self.name, self._base, self._groups = name, base, groups
        words: list[Field] = [] if base is None else list(base._words)
        starts: dict[str, int] = {} if base is None else dict(base._starts)
        named = [Field(field) for field in " ".join(members).split()] + [Field(field, "d") for field in reals.split()]
        for field in named:
            words += [PADDING] * (-len(words) % LINE_WORDS) if field.name == NEXT_LINE else [field]
        self._own = [field for field in named if field.name != NEXT_LINE]
        for prefix, group in groups.items():
            starts[prefix] = len(words)
            words += [word if word is PADDING else word._replace(name=f"{prefix}_{word.name}") for word in group._words]
        self._words, self._starts = tuple(words), starts
        self.fields = tuple(word for word in words if word is not PADDING)
        self.words, self.nbytes = len(words), WORD_BYTES * len(words)
        # A module, because Numba takes a module's attributes for constants: `at.width` in a kernel is a number in the machine code.
        self.index: Any = ModuleType(name)
        vars(self.index).update(starts)
        vars(self.index).update({word.name: number for number, word in enumerate(words) if word is not PADDING})
        self._zeros = dict.fromkeys((field.name for field in self.fields), 0)
        self._in_order = operator.itemgetter(*self._zeros)
        self._struct = struct.Struct("=" + "".join(word.code for word in words))

    def pack_into(self, buffer: Any, offset: int, values: Mapping[str, Any]) -> None:
        """Write a block of these values at so many bytes into a buffer; fields that are not given are 0."""
        all_values = {**self._zeros, **values}
        if len(all_values) != len(self._zeros):
            raise TypeError(f"{self.name} has no field {sorted(values.keys() - self._zeros.keys())}")
        self._struct.pack_into(buffer, offset, *self._in_order(all_values))

    def pack(self, values: Mapping[str, Any]) -> bytearray:
        """A block of these values; fields that are not given are 0."""
        buffer = bytearray(self.nbytes)
        self.pack_into(buffer, 0, values)
        return buffer

    @property
    def dtype(self) -> np.dtype[Any]:
        """The block as one element of a NumPy array, as CuPy passes it to a kernel by value."""
        return np.dtype([(field.name, "<f8" if field.code == "d" else "<i8") for field in self.fields])

    def element(self, values: Mapping[str, Any]) -> Any:
        """A block of these values as an array of one such element."""
        return np.frombuffer(self.pack(values), self.dtype)

    @property
    def declaration(self) -> str:
        """The C++ struct; those of its base and its groups come before it."""
        base = "" if self._base is None else f" : {self._base.name}"
        members = [f"{'double' if field.code == 'd' else 'i64'} {field.name};" for field in self._own]
        members += [f"{group.name} {prefix};" for prefix, group in self._groups.items()]
        return "\n".join([f"struct {self.name}{base} {{", *(f"    {member}" for member in members), "};\n"])


# ---- argument blocks: addresses, sizes, strides in bytes, numbers ---------------------------------------------------------------

# An address of 0 says that there is no such array.

# What kernels for rows have in common: where the rows are, in units of 2^-32, and which of them are kept. A rotation has
# positions by axis instead of by head. On CUDA there may be `sequences` one behind the other, of which `positions` has the boundaries.
ROWS = Layout(
    "Rows",
    "batch rows positions positions_batch_stride positions_row_stride positions_head_stride start",
    "sequences offsets offsets_kind offsets_stride",
    "mask mask_batch_stride mask_row_stride",
)

ADD_SINUSOIDAL = Layout(
    "AddSinusoidal",
    "x out heads width",
    "x_batch_stride x_row_stride x_head_stride x_column_stride",
    "out_batch_stride out_row_stride out_head_stride out_column_stride",
    "frequencies whole_turns cosines sines",
    "interleaved cosine_first second_half tail_column tail_is_cosine",
    base=ROWS,
    reals="amplitude input_scale",
)

# Of embed and add_table: x of embed is the table of which ids choose rows.
GATHER_SUM = Layout(
    "GatherSum",
    "ids ids_batch_stride ids_row_stride ids_head_stride table_rows row_scales zero_points",
    "type_ids type_ids_batch_stride type_ids_row_stride type_ids_head_stride",
    "types types_row_stride type_rows",
    "learned learned_row_stride learned_rows clips",
    base=ADD_SINUSOIDAL,
    reals="out_factor",
)

# q or k of a rotation. Results in float8 are multiplied by `out_factor` before they are rounded.
ROTATED = Layout(
    "Rotated",
    "x out heads",
    "batch_stride row_stride head_stride column_stride",
    "out_batch_stride out_row_stride out_head_stride out_column_stride",
    reals="out_factor",
)
# What rotate and rotate_table have in common.
ROTATE_PAIRS = Layout("RotatePairs", "pairs head_dim first_channel interleaved inverse", base=ROWS, q=ROTATED, k=ROTATED)
ROTATE = Layout("Rotate", "frequencies whole_turns axes growths grows centre", base=ROTATE_PAIRS, reals="factor")
ROTATE_TABLE = Layout("RotateTable", "cosines sines table_rows table_row_stride", base=ROTATE_PAIRS)

ADD_TOEPLITZ = Layout(
    "AddToeplitz",
    "x out batch heads rows columns",
    "x_batch_stride x_head_stride x_row_stride x_column_stride",
    "out_batch_stride out_head_stride out_row_stride out_column_stride",
    "values values_head_stride values_batch_stride values_row_stride low high slopes symmetric",
    "queries queries_batch_stride queries_row_stride start",
    "keys keys_batch_stride keys_column_stride keys_kind by_column causal",
    reals="input_scale",
)

# Read on CUDA only; on the CPU NumPy does it.
LOCATE_ROWS = Layout("LocateRows", "table segment", base=ROWS)

LAYOUTS = {
    layout.name: layout
    for layout in (ROWS, ADD_SINUSOIDAL, GATHER_SUM, ROTATED, ROTATE_PAIRS, ROTATE, ROTATE_TABLE, ADD_TOEPLITZ, LOCATE_ROWS)
}

# ---- the control block ------------------------------------------------------------------------------------------------------------

MOST_THREADS = 64  # of a call

# Each thread computes in a scratch slot of its own, and works off the chunk range of the same number before it helps with the others.
CHUNK_RANGE = Layout("ChunkRange", "claimed slot_is_taken", NEXT_LINE)  # `claimed`: how many of its chunks
CONTROL = Layout(
    "Control",
    "completed_chunks",
    NEXT_LINE,
    # How many threads will not read the blocks again, of those counted in `called`: the caller and the helpers that it calls from their
    # spin slots. When both are equal the blocks may be freed or used again.
    "left",
    NEXT_LINE,
    "chunks rows_per_chunk batch_per_chunk",
    "yield_function",  # address of the C function that gives up the processor, or 0
    "spin_slots helpers called",  # address of the spin slots, or 0; how many helpers to call from them at most; how many are called, plus 1
    "scratch slot_bytes slots",  # a slot for each thread; a thread that gets none leaves
    # How add_sinusoidal and the others go about their work; kernels/add_sinusoidal.py explains them.
    "contiguous dense streams block_rows ahead ahead_bytes cached_rows fills_cache",
    "parts part_count buffer",
    NEXT_LINE,
    **{f"range_{number}": CHUNK_RANGE for number in range(MOST_THREADS)},
)

# ---- spin slots -------------------------------------------------------------------------------------------------------------------

# A helper's mailbox: it spins there for a while to be called to the next call of its kernel, which reaches it sooner than a queue would.
SPIN_SLOT = Layout("SpinSlot", "state call control", NEXT_LINE)
SPIN_SLOTS = 16  # of a kernel
FREE, WAITS, RESERVED, CALLED = range(4)  # states

# ---- what callers and kernels agree on ----------------------------------------------------------------------------------------------

# Where x is. Each mode is a kernel of its own: the compiler must know that a row in place reads what it writes.
IN_PLACE, OUT_OF_PLACE, ENCODING_ONLY = range(3)
MODES = {IN_PLACE: "in_place", OUT_OF_PLACE: "out", ENCODING_ONLY: "alone"}  # in the kernels' names

# A row's position is int64 in units of 2^-32. This value stands for "not a position" and makes a NaN row; no integer and no float64 in
# [-2^31, 2^31) converts to it.
NOT_A_POSITION = -(2**63) + 1

# The number of a thread that runs a kernel: helpers count from 1. A caller that is ALONE calls no helpers and counts nothing in the control
# block.
CALLER, ALONE = 0, -1

MARGIN = 16  # numbers behind the frequencies, and behind what is made of them: loops read and write whole vectors
GATHERED_VALUES = 512  # of a bias, which add_toeplitz gathers at a time in a scratch slot

# ---- what is left open to the processor -----------------------------------------------------------------------------------------------

# Functions that kernels declare and call, each with as many arguments as it needs; `host/machine_code.py` has their bodies.
ENTER_FLOAT_MODE, LEAVE_FLOAT_MODE, PAUSE = "fastpe_enter_float_mode", "fastpe_leave_float_mode", "fastpe_pause"
PREFETCH, PREFETCH_NEAR = "fastpe_prefetch", "fastpe_prefetch_near"  # lines in turn; lines that the processor does not expect
IN_QUADRANT = "fastpe_in_quadrant_"  # and a number: for so many uint64, `arithmetic.sincos`
TO_BFLOAT16 = "fastpe_to_bfloat16_"  # and a number: for so many float32, `arithmetic.f32_to_bf16`, in the processor's own way
CONVERTS = "fastpe_converts_to_bfloat16_"  # and a number: whether that is right for these
