"""Launch calls on the caller's current stream: choose a kernel's variant and its grid.

Nothing here synchronises, and nothing that lies on the GPU is read back.
"""

from __future__ import annotations

import functools
from typing import Any

from ..._arrays import ITEMSIZE, Memory, errors
from ..._arrays.dtypes import ELEMENT_TYPES
from ...kernels import abi
from ..calls import AddSinusoidal, AddToeplitz, Arguments, Call, GatherSum, Rotate
from ..plans import RotaryPlan
from . import tables
from .available import require
from .compile import module, refuse_capture

THREADS = 128
BLOCKS_PER_MULTIPROCESSOR = 32  # two waves of resident blocks; more would only reread the tables
MOST_BLOCKS_YZ = 65535


@functools.lru_cache(maxsize=16)
def _multiprocessors(device: int) -> int:
    import cupy

    return int(cupy.cuda.Device(device).attributes["MultiProcessorCount"])


_PAIR_BYTES = {"vec16_interleaved": 8, "vec16_concatenated": 16}  # of a thread: one element of each of its pairs


def warmup(dtype: str, device: int) -> None:
    """Compile and load every kernel for a device (the element types share one module)."""
    require()
    for name in ("add_sinusoidal", "rotate", "rotate_table", "locate_rows", "add_toeplitz"):
        module(name, device)


def prepare(call: Call) -> None:
    """None: calls on devices are not prepared."""


def run(call: Call) -> None:
    """Launch a call on the caller's current stream."""
    if isinstance(call, AddSinusoidal):
        _add(call)
    elif isinstance(call, Rotate):
        _rotate(call)
    elif isinstance(call, GatherSum):
        _gather_sum(call)
    elif isinstance(call, AddToeplitz):
        _add_toeplitz(call)
    else:  # a part of a grid's row is whole sectors of memory: passes over parts move no more bytes
        for part in call.slices:
            _add(part)


def _add(call: AddSinusoidal) -> None:
    device = call.out.device
    assert device is not None
    for memory in (call.x, call.out):
        if memory is not None:
            _check_alignment("encode" if call.x is None else "add_encoding", memory)
    suffix, itemsize = ELEMENT_TYPES[call.out.dtype].suffix, ITEMSIZE[call.out.dtype]
    for arguments in call.arguments(tables.of(call.plan, device, call.out.dtype)):
        variant = _variant(arguments, itemsize)
        pairs = (arguments["width"] + 1) // 2
        units = pairs if variant == "columns" else pairs * itemsize // _PAIR_BYTES[variant]
        grid, block = _grid(arguments, units, device)
        element = abi.ADD_SINUSOIDAL.element(arguments)
        launch("add_sinusoidal", f"add_sinusoidal_{suffix}_{variant}", device, grid, block, element)


def _variant(call: Arguments, itemsize: int) -> str:
    """The 16-byte vector kernels where address, outer strides and width allow, else one pair of columns a thread."""
    arrays = ("x", "out") if call["x"] else ("out",)
    outer = [call[f"{array}{part}"] for array in arrays for part in ("", "_batch_stride", "_row_stride", "_head_stride")]
    contiguous = all(call[f"{array}_column_stride"] == itemsize for array in arrays)
    blocks = [call["width"]] if call["interleaved"] else [call["second_half"], call["width"] // 2]
    unaligned = any(block * itemsize % 16 for block in blocks)
    if not contiguous or call["width"] % 2 or unaligned or any(value % 16 for value in outer):
        return "columns"
    return "vec16_interleaved" if call["interleaved"] else "vec16_concatenated"


def _check_alignment(function: str, memory: Memory) -> None:
    itemsize = memory.array.dtype.itemsize
    strides = [stride for stride, size in zip(memory.strides, memory.shape, strict=True) if size > 1]
    if any(value % itemsize for value in (memory.address, *strides)):
        rule = "an array on a GPU must be aligned to its elements"
        raise ValueError(errors.message(function, rule, f"{memory.dtype} with strides {memory.strides}", "Pass a copy."))


def _grid(call: Arguments, units: int, device: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Threads over units (x), groups of eight rows (y) and sequences (z)."""
    wide = min(THREADS, 1 << max(units - 1, 0).bit_length())
    tall = THREADS // wide
    groups = (call["rows"] + 14) // 8 if call["positions"] == 0 else (call["rows"] + 7) // 8
    columns = -(-units // wide)
    blocks = _multiprocessors(device) * BLOCKS_PER_MULTIPROCESSOR
    varies = call["positions_batch_stride"] or call["positions_head_stride"]
    # Sequences that share their positions share a thread's rows, unless there are too few rows to fill the device.
    down = min(-(-groups // tall), max(1, blocks // columns), MOST_BLOCKS_YZ)
    deep = min(call["batch"], MOST_BLOCKS_YZ, call["batch"] if varies else max(1, blocks // (columns * down)))
    return (columns, down, deep), (wide, tall)


# ---- rotate ------------------------------------------------------------------------------------------------------------------


def _rotate(call: Rotate) -> None:
    pairs, plan = call.pairs, call.plan
    device, dtype = pairs[0].out.device, pairs[0].out.dtype
    assert device is not None
    for pair in pairs:
        for memory in pair:
            _check_alignment("apply_rotary", memory)
    itemsize, suffix = ITEMSIZE[dtype], ELEMENT_TYPES[dtype].suffix
    layout = abi.ROTATE if isinstance(plan, RotaryPlan) else abi.ROTATE_TABLE
    addresses = tables.of(plan, device, dtype)
    for arguments in call.arguments(addresses):
        variant = _rotate_variant(arguments, itemsize)
        units = {
            "pairs": arguments["head_dim"] - arguments["pairs"],
            "vec16_half": arguments["pairs"] * itemsize // 16,
            "vec16_interleaved": 2 * arguments["pairs"] * itemsize // 16,
        }[variant]
        grid, block = _rotate_grid(arguments, units, device)
        launch(plan.kernel, f"{plan.kernel}_{suffix}_{variant}", device, grid, block, layout.element(arguments))


def _rotate_variant(call: Arguments, itemsize: int) -> str:
    """The 16-byte vector kernels where addresses, strides and channels allow, else one pair a thread."""
    given = [array for array in ("q", "k") if call.get(f"{array}_out")]
    arrays = [f"{array}{part}" for array in given for part in ("", "_out")]
    outer = [call[f"{array}_{axis}_stride"] for array in arrays for axis in ("batch", "row", "head")]
    outer += [call[f"{array}_{end}"] for array in given for end in ("x", "out")] + [call["first_channel"] * itemsize]
    block = call["pairs"] * itemsize * (2 if call["interleaved"] else 1)
    contiguous = all(call[f"{array}_column_stride"] == itemsize for array in arrays)
    copies = call["head_dim"] > 2 * call["pairs"] and any(call[f"{array}_x"] != call[f"{array}_out"] for array in given)
    if not contiguous or copies or block % 16 or any(value % 16 for value in outer):
        return "pairs"
    return "vec16_interleaved" if call["interleaved"] else "vec16_half"


def _rotate_grid(call: Arguments, units: int, device: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Threads over units and groups of heads (x), rows (y) and sequences (z)."""
    wide = min(THREADS, 1 << max(units - 1, 0).bit_length())
    tall = min(THREADS // wide, 1 << max(call["rows"] - 1, 0).bit_length())
    columns, down, deep = -(-units // wide), min(-(-call["rows"] // tall), MOST_BLOCKS_YZ), min(call["batch"], MOST_BLOCKS_YZ)
    blocks = _multiprocessors(device) * BLOCKS_PER_MULTIPROCESSOR
    # A thread takes every head of its pairs, unless there are too few pairs, rows and sequences to fill the device.
    groups = min(max(call.get("q_heads", 0), call.get("k_heads", 0)), max(1, blocks // (columns * down * deep)))
    return (columns * groups, down, deep), (wide, tall)


# ---- sums of rows ------------------------------------------------------------------------------------------------------------


def gather_sum_options(first: str, second: str | None, learned: str | None, out: str, adds_sinusoidal: bool) -> tuple[str, ...]:
    """The definitions by which `gather_sum.cuh` is compiled for these element types."""
    types = {"FIRST": first, "SECOND": second, "LEARNED": learned, "OUT": out}
    defined = {name: _struct(dtype or "float32") for name, dtype in types.items()}
    defined["REAL"] = "double" if "float64" in types.values() else "float"
    truths = {"HAS_SECOND": second is not None, "ADDS_LEARNED": learned is not None, "ADDS_SINUSOIDAL": adds_sinusoidal}
    return tuple(
        f"-D{name}={int(value) if isinstance(value, bool) else value}" for name, value in {**defined, **truths}.items()
    )


def _struct(dtype: str) -> str:
    """The struct that stands for an element type, or for the int8 and uint8 of tables, in the sources."""
    return ELEMENT_TYPES[dtype].suffix if dtype in ELEMENT_TYPES else dtype


def _gather_sum(call: GatherSum) -> None:
    first, out, plan, types, learned = call.first, call.out, call.plan, call.types, call.learned
    device = out.device
    assert device is not None
    function = "embed" if call.kernel == "embed" else "add_encoding"
    for memory in (first, out, types, learned):
        if memory is not None:
            _check_alignment(function, memory)
    names = [None if memory is None else memory.dtype for memory in (types, learned)]
    options = gather_sum_options(first.dtype, names[0], names[1], out.dtype, plan is not None)
    addresses = {} if plan is None else tables.of(plan, device, out.dtype)
    sizes = {name: memory.array.dtype.itemsize for name, memory in (("x", first), ("out", out))}
    others = [
        (memory.address, memory.strides[0], memory.array.dtype.itemsize) for memory in (types, learned) if memory is not None
    ]
    for arguments in call.arguments(addresses):
        variant = _gather_sum_variant(arguments, sizes, others)
        pairs = (arguments["width"] + 1) // 2
        units = pairs if variant == "columns" else pairs * sizes["out"] // _PAIR_BYTES[variant]
        grid, block = _grid(arguments, units, device)
        element = abi.GATHER_SUM.element(arguments)
        launch(call.kernel, f"{call.kernel}_{variant}", device, grid, block, element, options)


def _gather_sum_variant(call: Arguments, sizes: dict[str, int], tables: list[tuple[int, int, int]]) -> str:
    """The kernels that write 16 bytes at a time where all that they read is aligned too, else one pair of columns a thread."""
    elements = 16 // sizes["out"]
    block = call["width"] if call["interleaved"] else call["second_half"]
    offsets = [
        call[f"{array}{part}"] % min(16, elements * size)
        for array, size in sizes.items()
        for part in ("", "_batch_stride", "_row_stride", "_head_stride")
    ]
    offsets += [value % min(16, elements * size) for address, stride, size in tables for value in (address, stride)]
    contiguous = all(call[f"{array}_column_stride"] == size for array, size in sizes.items())
    if not contiguous or call["width"] % 2 or block % elements or any(offsets):
        return "columns"
    return "vec16_interleaved" if call["interleaved"] else "vec16_concatenated"


# ---- biases on scores --------------------------------------------------------------------------------------------------------

_VALUES = (
    "the values of a learned bias, or of one of many distances, would not outlive the call, but a captured graph would read them: "
    "add this bias outside of the capture"
)


def _add_toeplitz(call: AddToeplitz) -> None:
    out, key = call.out, call.key
    device, itemsize = out.device, ITEMSIZE[out.dtype]
    assert device is not None
    for memory in (call.x, out):
        _check_alignment("add_bias", memory)
    values, is_table = call.values, call.slopes is None
    array = call.slopes if values is None else values.array
    if values is not None and values.device is not None:
        refuse_capture(device, _VALUES)
        address, keepalive = values.address, array
    elif key is not None:
        address, keepalive = tables.kept(key, device, array), None
    else:
        import cupy

        refuse_capture(device, _VALUES)
        with cupy.cuda.Device(device):
            keepalive = cupy.asarray(array)
        address = keepalive.data.ptr
    for arguments in call.arguments(address if is_table else 0, 0 if is_table else address):
        variant = _toeplitz_variant(arguments, itemsize)
        columns = arguments["columns"] if variant == "columns" else arguments["columns"] * itemsize // 16
        grid, block = _toeplitz_grid(arguments, columns)
        entry = f"add_toeplitz_{ELEMENT_TYPES[out.dtype].suffix}_{variant}"
        launch("add_toeplitz", entry, device, grid, block, abi.ADD_TOEPLITZ.element(arguments))
    del keepalive


def _toeplitz_variant(call: Arguments, itemsize: int) -> str:
    """The 16-byte vector kernel where addresses, outer strides and columns allow, else one column a thread."""
    outer = [call[f"{array}{part}"] for array in ("x", "out") for part in ("", "_batch_stride", "_head_stride", "_row_stride")]
    contiguous = all(call[f"{array}_column_stride"] == itemsize for array in ("x", "out"))
    aligned = not any(value % 16 for value in (*outer, call["columns"] * itemsize))
    return "vec16" if contiguous and aligned else "columns"


def _toeplitz_grid(call: Arguments, columns: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Threads over columns (x), groups of four rows (y), sequences and heads (z)."""
    groups = -(-call["rows"] // 4)
    wide = min(THREADS, 1 << max(columns - 1, 0).bit_length())
    tall = min(THREADS // wide, 1 << max(groups - 1, 0).bit_length())
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
        module(name, device, options).get_function(entry)(grid, block, (arguments,))
