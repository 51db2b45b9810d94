"""Launch calls on the caller's current stream: choose a kernel's variant and its grid.

Nothing here synchronises, and nothing that lies on the GPU is read back.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ..._arrays import ITEMSIZE, Memory
from ..._arrays.dtypes import ELEMENT_TYPES, FLOAT8, RESULT_TYPES
from ...kernels import abi
from ..calls import AddSinusoidal, AddToeplitz, Arguments, Call, GatherSum, Rotate
from ..plans import RotaryPlan
from . import tables
from .available import require
from .compile import function, refuse_temporary

THREADS = 128
BLOCKS_PER_MULTIPROCESSOR = 32  # two waves of resident blocks; more would only reread the tables
ROTATING_THREADS = 1024  # a multiprocessor: two waves of resident blocks; more would only make the same angles again
MOST_BLOCKS_YZ, MOST_THREADS_Z = 65535, 64
COUNTED = ("-DCOUNTED",)  # kernels that count the rows that a mask keeps


@functools.lru_cache(maxsize=16)
def _multiprocessors(device: int) -> int:
    import cupy

    return int(cupy.cuda.Device(device).attributes["MultiProcessorCount"])


def warmup(dtype: str, device: int) -> None:
    """Compile and load every kernel that the usual calls on an element type need."""
    require()
    suffix = ELEMENT_TYPES[dtype].suffix
    for name, variants in _VARIANTS.items():
        for variant, options in itertools.product(variants, [()] if name in _COUNT_NOTHING else [(), COUNTED]):
            function(name, f"{name}_{variant}" if name == "locate_rows" else f"{name}_{suffix}_{variant}", device, options)
    sums = [("embed", (None, adds), ids) for adds in (False, True) for ids in ID_TYPES] + [
        ("add_table", (dtype, False), "int64")
    ]
    for name, (learned, adds), ids in sums:
        options = gather_sum_options(dtype, None, learned, dtype, adds, (ids, *_NUMBERS[1:]))
        for variant, more in itertools.product(_VARIANTS["add_sinusoidal"], [(), COUNTED] if adds or learned else [()]):
            function(name, f"{name}_{variant}", device, options + more)


_VARIANTS = {
    "add_sinusoidal": ("vec16_interleaved", "vec16_concatenated", "columns"),
    "rotate": ("vec16_interleaved", "vec16_half", "pairs"),
    "rotate_table": ("vec16_interleaved", "vec16_half", "pairs"),
    "locate_rows": ("given", "counted"),
    "add_toeplitz": ("vec16", "columns"),
}
_COUNT_NOTHING = "locate_rows", "add_toeplitz"

Shape = tuple[tuple[int, ...], tuple[int, ...]]  # grid and block


class Launch(NamedTuple):
    """A launch of a kernel file: ``choose`` names the entry point and the grid for its arguments."""

    name: str
    device: int
    layout: abi.Layout
    arguments: Arguments
    choose: Callable[[Arguments], tuple[str, Shape]]
    options: tuple[str, ...] = ()


def run(call: Call) -> None:
    """Launch a call on the caller's current stream."""
    for one in launches(call):
        entry, shape = one.choose(one.arguments)
        launch(one.name, entry, one.device, *shape, one.layout.element(one.arguments), one.options)


def launches(call: Call) -> Iterator[Launch]:
    """The launches of a call. What they point to is kept while this is iterated."""
    if isinstance(call, AddSinusoidal):
        yield from _additions(call)
    elif isinstance(call, Rotate):
        yield from _rotations(call)
    elif isinstance(call, GatherSum):
        yield from _gather_sums(call)
    elif isinstance(call, AddToeplitz):
        yield from _biases(call)
    else:  # a part of a grid's row is whole sectors of memory: passes over parts move no more bytes
        for part in call.slices:
            yield from _additions(part)


def _device_of(*arrays: Memory | None) -> int:
    """The device of arrays, which all lie on one and are aligned to their elements (`_arrays/dispatch.py`)."""
    device = next(memory.device for memory in arrays if memory is not None)
    assert device is not None
    return device


def _takes_vectors(call: Arguments, sizes: dict[str, int], places: list[tuple[int, int]], elements: int) -> bool:
    """Whether so many elements of the result can be written at a time: columns are contiguous, and all that is read is aligned too.

    ``sizes``: the bytes of an element of each array. ``places``: addresses, and distances in bytes beside the
    arrays' strides, each with the bytes of an element there.
    """
    contiguous = all(call[f"{array}_column_stride"] == size for array, size in sizes.items())
    strides = [(call[f"{array}_{axis}_stride"], size) for array, size in sizes.items() for axis in ("batch", "row", "head")]
    return contiguous and not any(value % min(16, elements * size) for value, size in (*strides, *places))


# ---- sums of rows ------------------------------------------------------------------------------------------------------------


def _additions(call: AddSinusoidal) -> Iterator[Launch]:
    device = _device_of(call.x, call.out)
    suffix, itemsize = ELEMENT_TYPES[call.out.dtype].suffix, ITEMSIZE[call.out.dtype]
    sizes = {"out": itemsize} if call.x is None else {"x": itemsize, "out": itemsize}
    addresses, counts = tables.of(call.plan, device, call.out.dtype), call.rows.counts

    def choose(arguments: Arguments) -> tuple[str, Shape]:
        variant, units = _sum_variant(arguments, sizes, [])
        return f"add_sinusoidal_{suffix}_{variant}", _grid(arguments, units, device, counts)

    for arguments in call.arguments(addresses):
        yield Launch("add_sinusoidal", device, abi.ADD_SINUSOIDAL, arguments, choose, COUNTED * counts)


ID_TYPES = "int32", "int64"
_NUMBERS = "int64", "int64", "float64", "float64"  # of ids, ids of token types, scales and zero points, where there are none
SCALE_TYPES = "float32", "float64", "float16", "bfloat16", "int32", "int64", "uint8"


def gather_sum_options(
    first: str,
    second: str | None,
    learned: str | None,
    out: str,
    adds_sinusoidal: bool,
    numbers: Sequence[str] = _NUMBERS,
    more_zero: int = 0,
) -> tuple[str, ...]:
    """The definitions by which `gather_sum.cuh` is compiled for these element types, and types of ids, token types, scales and zeros."""
    types = {"FIRST": first, "SECOND": second or "float32", "LEARNED": learned or "float32", "OUT": out}
    # The struct that stands for an element type, or for the int8 and uint8 of tables, in the sources.
    structs = {name: RESULT_TYPES[dtype].suffix if dtype in RESULT_TYPES else dtype for name, dtype in types.items()}
    real = "double" if "float64" in types.values() else "float"
    truths = {"HAS_SECOND": second is not None, "ADDS_LEARNED": learned is not None, "ADDS_SINUSOIDAL": adds_sinusoidal}
    structs |= {
        name: ELEMENT_TYPES[dtype].suffix if dtype in ELEMENT_TYPES else dtype
        for name, dtype in zip(("IDS", "TYPE_IDS", "SCALES", "ZEROS"), numbers, strict=True)
    }
    defined = {**structs, "REAL": real, **{name: int(truth) for name, truth in truths.items()}, "MORE_ZERO": more_zero}
    return tuple(f"-D{name}={value}" for name, value in defined.items())


def _gather_sums(call: GatherSum) -> Iterator[Launch]:
    kernel, first, out, plan, types, learned = call.kernel, call.first, call.out, call.plan, call.types, call.learned
    numbers = call.ids, call.type_ids, call.row_scales, call.zero_points
    device = _device_of(first, out, types, learned, *numbers)
    names = [None if memory is None else memory.dtype for memory in (types, learned)]
    kinds = [usual if memory is None else memory.dtype for memory, usual in zip(numbers, _NUMBERS, strict=True)]
    options = gather_sum_options(first.dtype, names[0], names[1], out.dtype, plan is not None, kinds, call.more_zero)
    sizes = {name: memory.array.dtype.itemsize for name, memory in (("x", first), ("out", out))}
    others = [
        (place, memory.array.dtype.itemsize)
        for memory in (types, learned)
        if memory is not None
        for place in (memory.address, memory.strides[0])
    ]
    addresses = {} if plan is None else tables.of(plan, device, out.dtype)
    counts = call.rows.counts and not (plan is None and learned is None)

    def choose(arguments: Arguments) -> tuple[str, Shape]:
        variant, units = _sum_variant(arguments, sizes, others)
        return f"{kernel}_{variant}", _grid(arguments, units, device, counts)

    for arguments in call.arguments(addresses):
        yield Launch(kernel, device, abi.GATHER_SUM, arguments, choose, options + COUNTED * counts)


def _sum_variant(call: Arguments, sizes: dict[str, int], others: list[tuple[int, int]]) -> tuple[str, int]:
    """The vector kernels where they can be used, else one pair of columns a thread; and how many threads a row takes."""
    out_bytes, pairs = sizes["out"], (call["width"] + 1) // 2
    blocks = [call["width"]] if call["interleaved"] else [call["second_half"], call["width"] // 2]
    places = [(call[array], size) for array, size in sizes.items()] + [(block * out_bytes, out_bytes) for block in blocks]
    elements = min(16 // out_bytes, 8)  # of a vector
    if call["width"] % 2 or not _takes_vectors(call, sizes, places + others, elements):
        return "columns", pairs
    # A thread takes one element of each of its pairs: half a vector of interleaved ones, one in each half.
    if call["interleaved"]:
        return "vec16_interleaved", 2 * pairs // elements
    return "vec16_concatenated", pairs // elements


def _grid(call: Arguments, units: int, device: int, counts: bool = False) -> Shape:
    """Threads over units (x), groups of eight rows (y) and sequences (z). Where a mask ``counts``, blocks begin with all their rows."""
    wide = min(THREADS, _power(units))
    tall = THREADS // wide
    groups = (call["rows"] + 14) // 8 if call["positions"] == 0 else (call["rows"] + 7) // 8
    columns = -(-units // wide)
    blocks = _multiprocessors(device) * BLOCKS_PER_MULTIPROCESSOR
    varies = call["positions_batch_stride"] or call["positions_head_stride"] or (counts and call["mask_batch_stride"])
    # Sequences that share their positions share a thread's rows, unless there are too few rows to fill the device.
    down = min(-(-groups // tall), MOST_BLOCKS_YZ if counts else max(1, blocks // columns), MOST_BLOCKS_YZ)
    deep = min(call["batch"], MOST_BLOCKS_YZ, call["batch"] if varies else max(1, blocks // (columns * down)))
    return (columns, down, deep), (wide, tall)


# ---- rotate ------------------------------------------------------------------------------------------------------------------


def _rotations(call: Rotate) -> Iterator[Launch]:
    plan, arrays = call.plan, [memory for pair in call.pairs for memory in pair]
    device, dtype, out = _device_of(*arrays), arrays[0].dtype, arrays[1].dtype
    itemsize, suffix = ITEMSIZE[dtype], ELEMENT_TYPES[dtype].suffix
    options = ((f"-DOUT={FLOAT8[out].suffix}",) if out in FLOAT8 else ()) + COUNTED * call.rows.counts
    layout = abi.ROTATE if isinstance(plan, RotaryPlan) else abi.ROTATE_TABLE
    addresses, kernel = tables.of(plan, device, dtype), plan.kernel

    def choose(arguments: Arguments) -> tuple[str, Shape]:
        variant = _rotate_variant(arguments, itemsize, ITEMSIZE[out])
        units = {
            "pairs": arguments["head_dim"] - arguments["pairs"],
            "vec16_half": arguments["pairs"] * itemsize // 16,
            "vec16_interleaved": 2 * arguments["pairs"] * itemsize // 16,
        }[variant]
        return f"{kernel}_{suffix}_{variant}", _rotate_grid(arguments, units, device)

    for arguments in call.arguments(addresses):
        yield Launch(kernel, device, layout, arguments, choose, options)


def _rotate_variant(call: Arguments, itemsize: int, out_itemsize: int) -> str:
    """The vector kernels where they can be used, else one pair a thread."""
    given = [array for array in ("q", "k") if call.get(f"{array}_out")]
    ends = {"x": itemsize, "out": out_itemsize}
    sizes = {array if end == "x" else f"{array}_out": size for array in given for end, size in ends.items()}
    block = call["pairs"] * itemsize * (2 if call["interleaved"] else 1)
    places = [(place, itemsize) for place in (call["first_channel"] * itemsize, block)]
    places += [(call[f"{array}_{end}"], size) for array in given for end, size in ends.items()]
    copies = call["head_dim"] > 2 * call["pairs"] and any(call[f"{array}_x"] != call[f"{array}_out"] for array in given)
    if copies or not _takes_vectors(call, sizes, places, 16 // itemsize):
        return "pairs"
    return "vec16_interleaved" if call["interleaved"] else "vec16_half"


def _rotate_grid(call: Arguments, units: int, device: int) -> Shape:
    """Threads over units in groups of heads (x), rows (y) and sequences (z)."""
    rows, batch, heads = call["rows"], call["batch"], max(call.get("q_heads", 0), call.get("k_heads", 0))
    # A thread takes every head of its pairs, unless there are too few pairs, rows and sequences to fill the device. All take as many.
    groups = min(
        heads, max(1, min(_multiprocessors(device) * ROTATING_THREADS // (units * rows * batch), (2**31 - 1) // units))
    )
    groups = -(-heads // -(-heads // groups))
    wide = min(THREADS, _power(units * groups))
    tall = min(THREADS // wide, _power(rows))
    deep = min(THREADS // (wide * tall), _power(batch), MOST_THREADS_Z)
    blocks = -(-units * groups // wide), -(-rows // tall), -(-batch // deep)
    return (blocks[0], *(min(count, MOST_BLOCKS_YZ) for count in blocks[1:])), (wide, tall, deep)


def _power(count: int) -> int:
    """The smallest power of two that is not below."""
    return 1 << max(count - 1, 0).bit_length()


# ---- biases on scores --------------------------------------------------------------------------------------------------------

_VALUES = (
    "the values of a learned bias, or of one of many distances, would not outlive the call, but a captured graph would read them: "
    "add this bias outside of the capture"
)


def _biases(call: AddToeplitz) -> Iterator[Launch]:
    out, key = call.out, call.key
    device, itemsize = _device_of(call.x, out), ITEMSIZE[out.dtype]
    values, is_table = call.values, call.slopes is None
    array = call.slopes if values is None else values.array
    if values is not None and values.device is not None:
        refuse_temporary(device, _VALUES)
        address, keepalive = values.address, array
    elif key is not None:
        address, keepalive = tables.kept(key, device, array), None
    else:
        keepalive = tables.uploaded(array, device)
        address = keepalive.data.ptr
    suffix = ELEMENT_TYPES[out.dtype].suffix

    def choose(arguments: Arguments) -> tuple[str, Shape]:
        row_bytes = arguments["columns"] * itemsize
        places = [(place, itemsize) for place in (arguments["x"], arguments["out"], row_bytes)]
        if _takes_vectors(arguments, {"x": itemsize, "out": itemsize}, places, 16 // itemsize):
            return f"add_toeplitz_{suffix}_vec16", _toeplitz_grid(arguments, row_bytes // 16)
        return f"add_toeplitz_{suffix}_columns", _toeplitz_grid(arguments, arguments["columns"])

    for arguments in call.arguments(address if is_table else 0, 0 if is_table else address):
        yield Launch("add_toeplitz", device, abi.ADD_TOEPLITZ, arguments, choose)
    del keepalive


def _toeplitz_grid(call: Arguments, columns: int) -> Shape:
    """Threads over columns (x), groups of four rows (y), sequences and heads (z)."""
    groups = -(-call["rows"] // 4)
    wide = min(THREADS, _power(columns))
    tall = min(THREADS // wide, _power(groups))
    down, deep = min(-(-groups // tall), MOST_BLOCKS_YZ), min(call["batch"] * call["heads"], MOST_BLOCKS_YZ)
    return (-(-columns // wide), down, deep), (wide, tall)


def launch(
    name: str,
    entry: str,
    device: int,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arguments: Any,
    options: tuple[str, ...] = (),
) -> None:
    """Launch an entry point of a kernel file on a device's current stream; ``arguments`` is passed by value."""
    import cupy

    with cupy.cuda.Device(device):
        function(name, entry, device, options)(grid, block, (arguments,))
