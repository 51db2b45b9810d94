"""CUDA memory: compile a kernel with NVRTC on first use, choose its variant and its grid, launch it on the caller's stream.

Nothing here synchronises, and nothing that lies on the GPU is read back.
"""

from __future__ import annotations

import atexit
import functools
import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..._arrays import ITEMSIZE, Memory, errors
from ...kernels import blocks as at
from .. import disk_cache as cache
from ..calls import AddGrid, AddSinusoidal, CallerTable, RotaryTables, Rotate, SumRows, Tables
from ..plans import RotaryPlan, SinusoidalPlan, TablePlan
from ..toeplitz import AddToeplitz

OPTIONS = ("--std=c++17", "-fmad=false")  # and no -ftz, which CuPy's own compiler would append: subnormal numbers survive
KERNELS = Path(at.__file__).parent
THREADS = 128
BLOCKS_PER_MULTIPROCESSOR = 32  # two waves of resident blocks; more would only reread the tables
MOST_BLOCKS_YZ = 65535

_lock = threading.RLock()
_modules: dict[tuple[str, str, tuple[str, ...]], Any] = {}
_tables_found: dict[tuple[object, int], tuple[list[int], Any]] = {}  # never freed: a graph may hold their addresses


# ---- is there a GPU ----------------------------------------------------------------------------------------------------------


def problem() -> str | None:
    """Say why CUDA cannot be used here and what to do about it; None if it can."""
    found = _problem()
    if found is not None:
        _problem.cache_clear()  # it may be mended while this process runs
    return found


@functools.lru_cache(maxsize=1)
def _problem() -> str | None:
    try:
        import cupy
    except ImportError as error:
        if getattr(error, "name", None) == "cupy":
            return "CuPy is not installed: pip install 'fastpe[cuda13]' (CUDA 13 driver) or 'fastpe[cuda12]' (CUDA 12 driver)"
        return f"CuPy cannot be imported ({error}): reinstall it with pip install 'fastpe[cuda13]' or 'fastpe[cuda12]'"
    runtime = cupy.cuda.runtime
    if runtime.is_hip:
        return "this CuPy is built for ROCm; fastpe's kernels are CUDA: pip install 'fastpe[cuda13]' or 'fastpe[cuda12]'"
    if tuple(int(part) for part in re.findall(r"\d+", cupy.__version__)[:2]) < (14, 2):
        return f"CuPy {cupy.__version__} is too old, 14.2 is needed: pip install -U 'fastpe[cuda13]' or 'fastpe[cuda12]'"
    try:
        devices = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        return f"no CUDA device can be used ({error}): install or update the NVIDIA driver"
    if devices == 0:
        return "no CUDA device was found: check nvidia-smi and CUDA_VISIBLE_DEVICES"
    try:
        from cupy.cuda import nvrtc

        compiler = nvrtc.getVersion()[0]
    except Exception as error:
        package = "nvidia-cuda-nvrtc" if runtime.runtimeGetVersion() >= 13000 else "nvidia-cuda-nvrtc-cu12"
        return f"NVRTC, the compiler, was not found ({type(error).__name__}): pip install {package}"
    driver = runtime.driverGetVersion() // 1000
    if compiler > driver:
        return f"NVRTC {compiler} is newer than the driver's CUDA {driver}: pip install 'fastpe[cuda{driver}]', or update the driver"
    return None


def require() -> None:
    """Raise ImportError with what to install if CUDA cannot be used."""
    found = problem()
    if found is not None:
        raise ImportError(f"fastpe: {found}.")


# ---- modules -----------------------------------------------------------------------------------------------------------------


def source(name: str) -> str:
    """The source of a kernel file with its includes in place, so that one string is all that is compiled."""
    seen: set[str] = set()

    def include(match: re.Match[str]) -> str:
        file = match.group(1)
        if file in seen:
            return ""
        seen.add(file)
        return expand(file)

    def expand(file: str) -> str:
        return re.sub(r'#include "(\w+\.cuh)"\n', include, (KERNELS / file).read_text())

    return expand(f"{name}.cu")


def compile_source(name: str, architecture: str, *options: str) -> tuple[bytes, str]:
    """Compile a kernel file for ``sm_XY`` (to a cubin) or ``compute_XY`` (to PTX); return the result and the compiler's log."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(source(name), f"{name}.cu", (), ())
    try:
        try:
            nvrtc.compileProgram(program, (f"-arch={architecture}", *OPTIONS, *options))
        except nvrtc.NVRTCError as error:
            raise RuntimeError(
                f"fastpe: {name}.cu does not compile for {architecture}:\n{nvrtc.getProgramLog(program)}"
            ) from error
        log: str = nvrtc.getProgramLog(program)
        # CuPy takes the last byte of a cubin for the end of a string.
        result = nvrtc.getCUBIN(program) + b"\0" if architecture.startswith("sm_") else nvrtc.getPTX(program)
        return result, log
    finally:
        nvrtc.destroyProgram(program)


def _module(name: str, device: int, options: tuple[str, ...] = ()) -> Any:
    """The loaded module of a kernel file, compiled with these definitions, for a device's architecture."""
    import cupy

    architecture = f"sm_{cupy.cuda.Device(device).compute_capability}"
    with _lock:
        key = (name, architecture, options)
        if key not in _modules:
            require()
            _refuse_capture(device, _FIRST_CALL)
            _modules[key] = cupy.RawModule(path=str(_cubin(name, architecture, *options)))
        return _modules[key]


_FIRST_CALL = (
    "the first call for a width loads kernels and tables, which a graph capture forbids: "
    "call fastpe.warmup(device=...) and this function once before the capture"
)
_TABLE = (
    "positions, mask, cu_seqlens and arrays of offsets make a table that would not outlive the call, but a captured graph would "
    "read it: give an int offset"
)


def _refuse_capture(device: int, reason: str) -> None:
    """Refuse what is not allowed, or not safe, while the current stream is captured into a graph."""
    import cupy

    with cupy.cuda.Device(device):
        capturing = getattr(cupy.cuda.get_current_stream(), "is_capturing", lambda: False)
        if capturing():
            raise RuntimeError(f"fastpe: {reason}.")


def _cubin(name: str, architecture: str, *options: str) -> Path:
    from cupy.cuda import nvrtc

    key = cache.key(f"{name}-{architecture}", source(name), nvrtc.getVersion(), OPTIONS, options)
    place = cache.folder("cuda")
    found = cache.load(place, key) if place is not None else None
    if found is not None:
        return found
    content, _ = compile_source(name, architecture, *options)
    return (place and cache.store(place, key, content)) or _temporary(key, content)


def _temporary(key: str, content: bytes) -> Path:
    """A file for this process alone, where there is no cache."""
    place = Path(tempfile.mkdtemp(prefix="fastpe-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    path = cache.store(place, key, content)
    if path is None:
        raise RuntimeError(
            f"fastpe: no folder can hold a compiled kernel; set FASTPE_CACHE_DIR to one that can be written (tried {place})."
        )
    return path


def _launch(
    name: str,
    entry: str,
    device: int,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arguments: Any,
    options: tuple[str, ...] = (),
) -> None:
    import cupy

    with cupy.cuda.Device(device):
        _module(name, device, options).get_function(entry)(grid, block, (arguments,))


@functools.lru_cache(maxsize=16)
def _multiprocessors(device: int) -> int:
    import cupy

    count: int = cupy.cuda.Device(device).attributes["MultiProcessorCount"]
    return count


def _block(names: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    """An argument block as one structured element, which CuPy passes by value."""
    reals = ("amplitude", "input_scale", "factor")
    dtype = np.dtype([(name, "<f8" if name in reals else "<i8") for name in names])
    return np.array([values], dtype)


# ---- add_sinusoidal ----------------------------------------------------------------------------------------------------------

_SUFFIX = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"}
_PAIRS = {"vec16_interleaved": 8, "vec16_concatenated": 16}  # bytes of a thread's pairs, counted once a pair


def warmup(dtype: str, device: int) -> None:
    """Compile and load every kernel for a device (the element types share one module)."""
    require()
    for name in ("add_sinusoidal", "rotate", "rotate_table", "locate_rows", "add_toeplitz"):
        _module(name, device)


def run(operation: AddSinusoidal | AddGrid | Rotate | SumRows | AddToeplitz) -> None:
    """Launch an operation on the caller's current stream."""
    if isinstance(operation, AddToeplitz):
        _toeplitz(operation)
        return
    if isinstance(operation, Rotate):
        _rotate(operation)
        return
    if isinstance(operation, SumRows):
        _sum(operation)
        return
    if isinstance(operation, AddGrid):  # a part of a row is whole sectors of memory: passes over parts move no more bytes
        for part in operation.slices:
            run(part)
        return
    device = operation.out.device
    assert device is not None
    for memory in (operation.x, operation.out):
        if memory is not None:
            _check_alignment("encode" if operation.x is None else "add_encoding", memory)
    suffix, itemsize = _SUFFIX[operation.out.dtype], ITEMSIZE[operation.out.dtype]
    tables = _tables(operation.plan, device)
    for arguments in operation.arguments(tables):
        call: dict[str, Any] = dict(zip(at.ADD_SINUSOIDAL, arguments, strict=True))
        variant = _variant(call, itemsize)
        pairs = (call["width"] + 1) // 2
        units = pairs if variant == "columns" else pairs * itemsize // _PAIRS[variant]
        grid, block = _grid(call, units, device)
        entry = f"add_sinusoidal_{suffix}_{variant}"
        _launch("add_sinusoidal", entry, device, grid, block, _block(at.ADD_SINUSOIDAL, arguments))


def _variant(call: dict[str, Any], itemsize: int) -> str:
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


def _grid(call: dict[str, Any], units: int, device: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
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


def _tables(plan: SinusoidalPlan, device: int) -> Tables:
    return Tables(*_uploaded(plan.key, device, lambda: (plan.turns.fraction, plan.turns.whole, *plan.rotations)))


def kept(key: Any, device: int, array: Any) -> int:
    """Address of a copy of an array on a device, made once."""
    return _uploaded(key, device, lambda: (array,))[0]


def _uploaded(key: Any, device: int, arrays: Callable[[], tuple[Any, ...]]) -> list[int]:
    """Addresses of a plan's tables on a device, uploaded once; 0 for None."""
    with _lock:
        if (key, device) not in _tables_found:
            import cupy

            require()
            _refuse_capture(device, _FIRST_CALL)
            with cupy.cuda.Device(device):
                there = [None if array is None else cupy.asarray(array) for array in arrays()]
                cupy.cuda.get_current_stream().synchronize()  # once: any stream may read them from now on
            _tables_found[key, device] = [0 if array is None else array.data.ptr for array in there], there
        return _tables_found[key, device][0]


# ---- rotate ------------------------------------------------------------------------------------------------------------------


def _rotate(operation: Rotate) -> None:
    pairs, plan = operation.pairs, operation.plan
    device, dtype = pairs[0].out.device, pairs[0].out.dtype
    assert device is not None
    for pair in pairs:
        for memory in pair:
            _check_alignment("apply_rotary", memory)
    names = at.ROTATE if plan.kernel == "rotate" else at.ROTATE_TABLE
    tables = _rotary_tables(plan, device) if isinstance(plan, RotaryPlan) else _caller_table(plan, device, dtype)
    for arguments in operation.arguments(tables):
        call: dict[str, Any] = dict(zip(names, arguments, strict=True))
        variant = _rotate_variant(call, ITEMSIZE[dtype])
        vector = 16 // ITEMSIZE[dtype]
        units = {
            "pairs": call["head_dim"] - call["pairs"],
            "vec16_half": call["pairs"] // vector,
            "vec16_interleaved": 2 * call["pairs"] // vector,
        }[variant]
        grid, block = _rotate_grid(call, units, device)
        _launch(plan.kernel, f"{plan.kernel}_{_SUFFIX[dtype]}_{variant}", device, grid, block, _block(names, arguments))


def _rotate_variant(call: dict[str, Any], itemsize: int) -> str:
    """The 16-byte vector kernels where addresses, strides and channels allow, else one pair a thread."""
    present = [array for array in ("q", "k") if call[f"{array}_out"]]
    arrays = [f"{array}{part}" for array in present for part in ("", "_out")]
    outer = [call[f"{array}{part}"] for array in arrays for part in ("_batch_stride", "_row_stride", "_head_stride")]
    outer += [call[array] for array in arrays] + [call["first_channel"] * itemsize]
    block = call["pairs"] * itemsize * (2 if call["interleaved"] else 1)
    contiguous = all(call[f"{array}_column_stride"] == itemsize for array in arrays)
    copies = call["head_dim"] > 2 * call["pairs"] and any(call[array] != call[f"{array}_out"] for array in present)
    if not contiguous or copies or block % 16 or any(value % 16 for value in outer):
        return "pairs"
    return "vec16_interleaved" if call["interleaved"] else "vec16_half"


def _rotate_grid(call: dict[str, Any], units: int, device: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Threads over units and groups of heads (x), rows (y) and sequences (z)."""
    wide = min(THREADS, 1 << max(units - 1, 0).bit_length())
    tall = min(THREADS // wide, 1 << max(call["rows"] - 1, 0).bit_length())
    columns, down, deep = -(-units // wide), min(-(-call["rows"] // tall), MOST_BLOCKS_YZ), min(call["batch"], MOST_BLOCKS_YZ)
    blocks = _multiprocessors(device) * BLOCKS_PER_MULTIPROCESSOR
    # A thread takes every head of its pairs, unless there are too few pairs, rows and sequences to fill the device.
    groups = min(max(call["q_heads"], call["k_heads"]), max(1, blocks // (columns * down * deep)))
    return (columns * groups, down, deep), (wide, tall)


def _rotary_tables(plan: RotaryPlan, device: int) -> RotaryTables:
    axes = plan.axes if plan.axes.any() else None
    return RotaryTables(*_uploaded(plan.key, device, lambda: (plan.turns.fraction, plan.turns.whole, axes, plan.growths)))


def _caller_table(plan: TablePlan, device: int, dtype: str) -> CallerTable:
    real = "float64" if dtype == "float64" else "float32"
    if (device, real) not in plan.table._copies:
        _refuse_capture(device, _FIRST_CALL)
    from ..._arrays import cupy as cupy_arrays

    cosines, sines = plan.table.on(cupy_arrays, device, real)
    return CallerTable(cosines.address, sines.address, plan.table.rows, cosines.strides[0])


# ---- sums of rows ------------------------------------------------------------------------------------------------------------


def sum_options(first: str, second: str | None, learned: str | None, out: str, adds_sinusoidal: bool) -> tuple[str, ...]:
    """The definitions by which `sum_rows.cuh` is compiled for these element types."""
    types = {"FIRST": first, "SECOND": second, "LEARNED": learned, "OUT": out}
    defined = {name: _SUFFIX.get(dtype or "float32", dtype) for name, dtype in types.items()}
    defined["REAL"] = "double" if "float64" in types.values() else "float"
    truths = {"HAS_SECOND": second is not None, "ADDS_LEARNED": learned is not None, "ADDS_SINUSOIDAL": adds_sinusoidal}
    return tuple(
        f"-D{name}={int(value) if isinstance(value, bool) else value}" for name, value in {**defined, **truths}.items()
    )


def _sum(operation: SumRows) -> None:
    first, out, plan, types, learned = operation.first, operation.out, operation.plan, operation.types, operation.learned
    device = out.device
    assert device is not None
    function = "embed" if operation.kernel == "embed" else "add_encoding"
    for memory in (first, out, types, learned):
        if memory is not None:
            _check_alignment(function, memory)
    names = [None if memory is None else memory.dtype for memory in (types, learned)]
    options = sum_options(first.dtype, names[0], names[1], out.dtype, plan is not None)
    tables = Tables(0, 0, 0, 0) if plan is None else _tables(plan, device)
    sizes = {name: 1 if memory is None else memory.array.dtype.itemsize for name, memory in (("x", first), ("out", out))}
    more = [
        (memory.address, memory.strides[0], memory.array.dtype.itemsize) for memory in (types, learned) if memory is not None
    ]
    for arguments in operation.arguments(tables):
        call: dict[str, Any] = dict(zip(at.SUM_ROWS, arguments, strict=True))
        if plan is None:
            call["interleaved"] = 1
        variant = _sum_variant(call, sizes, more)
        pairs = (call["width"] + 1) // 2
        units = pairs if variant == "columns" else pairs * sizes["out"] // _PAIRS[variant]
        grid, block = _grid(call, units, device)
        arguments = tuple(call.values())
        _launch(operation.kernel, f"{operation.kernel}_{variant}", device, grid, block, _block(at.SUM_ROWS, arguments), options)


def _sum_variant(call: dict[str, Any], sizes: dict[str, int], tables: list[tuple[int, int, int]]) -> str:
    """The kernels that write 16 bytes at a time where all that they read is aligned too, else one pair of columns a thread."""
    elements = 16 // sizes["out"]
    block = call["width"] if call["interleaved"] else call["second_half"]
    places = [("x", sizes["x"]), ("out", sizes["out"])]
    aligned = [
        call[f"{array}{part}"] % min(16, elements * size)
        for array, size in places
        for part in ("", "_batch_stride", "_row_stride", "_head_stride")
    ]
    aligned += [value % min(16, elements * size) for address, stride, size in tables for value in (address, stride)]
    contiguous = all(call[f"{array}_column_stride"] == size for array, size in places)
    if not contiguous or call["width"] % 2 or block % elements or any(aligned):
        return "columns"
    return "vec16_interleaved" if call["interleaved"] else "vec16_concatenated"


# ---- biases on scores --------------------------------------------------------------------------------------------------------

_VALUES = (
    "the values of a learned bias, or of one of many distances, would not outlive the call, but a captured graph would read them: "
    "add this bias outside of the capture"
)


def _toeplitz(operation: AddToeplitz) -> None:
    out, key = operation.out, operation.key
    device, itemsize = out.device, ITEMSIZE[out.dtype]
    assert device is not None
    for memory in (operation.x, out):
        _check_alignment("add_bias", memory)
    made, is_table = operation.values, operation.slopes is None
    array = operation.slopes if made is None else made.array
    if made is not None and made.device is not None:
        _refuse_capture(device, _VALUES)
        address, alive = made.address, array
    elif key is not None:
        address, alive = _uploaded(key, device, lambda: (array,))[0], None
    else:
        import cupy

        _refuse_capture(device, _VALUES)
        with cupy.cuda.Device(device):
            alive = cupy.asarray(array)
        address = alive.data.ptr
    for arguments in operation.arguments(address if is_table else 0, 0 if is_table else address):
        call: dict[str, Any] = dict(zip(at.ADD_TOEPLITZ, arguments, strict=True))
        variant = _toeplitz_variant(call, itemsize)
        columns = call["columns"] if variant == "columns" else call["columns"] * itemsize // 16
        grid, block = _toeplitz_grid(call, columns)
        entry = f"add_toeplitz_{_SUFFIX[out.dtype]}_{variant}"
        _launch("add_toeplitz", entry, device, grid, block, _block(at.ADD_TOEPLITZ, arguments))
    del alive


def _toeplitz_variant(call: dict[str, Any], itemsize: int) -> str:
    """The 16-byte vector kernel where addresses, outer strides and columns allow, else one column a thread."""
    outer = [call[f"{array}{part}"] for array in ("x", "out") for part in ("", "_batch_stride", "_head_stride", "_row_stride")]
    contiguous = all(call[f"{array}_column_stride"] == itemsize for array in ("x", "out"))
    aligned = not any(value % 16 for value in (*outer, call["columns"] * itemsize))
    return "vec16" if contiguous and aligned else "columns"


def _toeplitz_grid(call: dict[str, Any], columns: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Threads over columns (x), groups of four rows (y), sequences and heads (z)."""
    groups = -(-call["rows"] // 4)
    wide = min(THREADS, 1 << max(columns - 1, 0).bit_length())
    tall = min(THREADS // wide, 1 << max(groups - 1, 0).bit_length())
    down, deep = min(-(-groups // tall), MOST_BLOCKS_YZ), min(call["batch"] * call["heads"], MOST_BLOCKS_YZ)
    return (-(-columns // wide), down, deep), (wide, tall)


# ---- locate_rows -------------------------------------------------------------------------------------------------------------

_LOCATE_ROWS = (
    *("table", "batch", "rows", "positions", "positions_kind", "mask", "mask_batch_stride", "mask_row_stride"),
    *("offset", "offsets", "offsets_kind", "offsets_stride"),
    *("boundaries", "boundaries_kind", "boundaries_stride", "sequences", "segment"),
)
_KINDS = {"int32": 0, "int64": 1, "float32": 2, "float64": 3, "uint64": 4}
_LOCATE_THREADS = 256


def _locate(variant: str, device: int, grid: tuple[int, int], **given: int) -> None:
    _refuse_capture(device, _TABLE)
    values = tuple(given.get(name, 0) for name in _LOCATE_ROWS)
    _launch("locate_rows", f"locate_rows_{variant}", device, grid, (_LOCATE_THREADS,), _block(_LOCATE_ROWS, values))


def _integers(library: ModuleType, memory: Memory) -> Memory:
    """An integer array as int32, int64 or uint64."""
    if memory.dtype in ("int32", "int64", "uint64"):
        return memory
    result: Memory = library.memory(library.contiguous(memory.array, "int64"))
    return result


def locate_rows_given(library: ModuleType, positions: Memory) -> Memory:
    require()
    device = positions.device
    assert device is not None
    real = positions.array.dtype.kind == "f"
    kind = positions.dtype if positions.dtype in _KINDS else "float32" if real else "int64"
    flat = library.memory(library.contiguous(positions.array, kind))
    table: Memory = library.memory(library.empty(positions.shape, "int64", device))
    rows = int(np.prod(positions.shape, dtype=np.int64))
    if rows:
        grid = (-(-rows // _LOCATE_THREADS), 1)
        _locate("given", device, grid, table=table.address, rows=rows, positions=flat.address, positions_kind=_KINDS[kind])
    return table


def locate_rows_ragged(library: ModuleType, rows: int, offsets: Memory | int, boundaries: Memory | None) -> Memory:
    batch = 1 if isinstance(offsets, int) or boundaries is not None else offsets.shape[0]
    return _counted(library, "ragged", batch, rows, None, offsets, boundaries)


def locate_rows_counted(library: ModuleType, mask: Memory, offsets: Memory | int, boundaries: Memory | None) -> Memory:
    batch = mask.shape[0] if len(mask.shape) == 2 else 1
    if isinstance(offsets, Memory) and boundaries is None:
        batch = offsets.shape[0]
    return _counted(library, "counted", batch, mask.shape[-1], mask, offsets, boundaries)


def _counted(
    library: ModuleType,
    variant: str,
    batch: int,
    rows: int,
    mask: Memory | None,
    offsets: Memory | int,
    boundaries: Memory | None,
) -> Memory:
    require()
    given = {"batch": batch, "rows": rows, "segment": -(-rows // _LOCATE_THREADS)}
    known = [memory for memory in (mask, offsets, boundaries) if isinstance(memory, Memory)]
    device = known[0].device
    assert device is not None
    if mask is not None:
        by_batch = mask.strides[0] if len(mask.shape) == 2 else 0
        given |= {"mask": mask.address, "mask_batch_stride": by_batch, "mask_row_stride": mask.strides[-1]}
    if isinstance(offsets, int):
        given["offset"] = offsets
    else:
        offsets = _integers(library, offsets)
        given |= {"offsets": offsets.address, "offsets_kind": _KINDS[offsets.dtype], "offsets_stride": offsets.strides[0]}
    if boundaries is not None:
        boundaries = _integers(library, boundaries)
        given |= {
            "boundaries": boundaries.address,
            "boundaries_kind": _KINDS[boundaries.dtype],
            "boundaries_stride": boundaries.strides[0],
            "sequences": boundaries.shape[0] - 1,
        }
    table: Memory = library.memory(library.empty((batch, rows), "int64", device))
    if batch * rows:
        grid = (batch, 1) if variant == "counted" else (-(-rows // _LOCATE_THREADS), min(batch, MOST_BLOCKS_YZ))
        _locate(variant, device, grid, table=table.address, **given)
    return table
