"""Machine code of kernels as bytes: made by LLVM from what Numba translated, and loaded as functions that Python calls. No Numba is needed.

Around a kernel stands an entry, ``entry(self, arguments, count)`` of CPython's METH_FASTCALL, which turns three integers into words, lets
the GIL go, and runs the kernel. Only functions of CPython are called from it: a kernel needs neither Numba's runtime nor a library.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable
from typing import Any

from llvmlite import binding as llvm

from ...kernels import abi
from . import tuning

Kernel = Callable[[int, int, int], None]  # (address of the arguments, address of the control block, number of the thread)

ENTRY = "fastpe_entry"
PLAIN = "fastpe_plain"  # the kernel as a C function of three words, for callers that hold no GIL
METH_FASTCALL = 0x80


def processor() -> tuple[str, str]:
    """The name and the features of the processor to compile for: this one, or what Numba's settings in the environment say."""
    asked = os.environ.get("NUMBA_CPU_NAME")
    name = (
        asked or llvm.get_host_cpu_name()
    )  # "generic" for a processor that is newer than LLVM, which has features all the same
    features = os.environ.get("NUMBA_CPU_FEATURES", "" if asked and asked.lower() == "generic" else None)
    if features is not None:
        return name, features
    found = llvm.get_host_cpu_features()
    without = "avx" if _setting("ENABLE_AVX", 1) == 0 else "-"
    return name, ",".join(
        f"{'+' if has and not feature.startswith(without) else '-'}{feature}" for feature, has in found.items()
    )


def emit(bitcode: bytes, name: str, features: str) -> bytes:
    """Object code of a translated kernel, optimised for a processor."""
    machine, module = optimised(bitcode, name, features)
    code: bytes = machine.emit_object(module)
    return code


def optimised(bitcode: bytes, name: str, features: str) -> tuple[Any, Any]:
    """What emits code for a processor, and a translated kernel optimised for it."""
    level = min(3, _setting("OPT", 3))
    machine = target_machine(cpu=name, features=features, opt=level)
    module = llvm.parse_bitcode(bitcode)
    module.triple, module.data_layout = llvm.get_process_triple(), str(machine.target_data)
    module.link_in(llvm.parse_assembly(_of_this_processor(module, features)))
    keep_only(module, ENTRY, PLAIN)
    module.verify()
    options = llvm.create_pipeline_tuning_options(level)
    options.loop_vectorization, options.slp_vectorization = (
        bool(_setting("LOOP_VECTORIZE", 1)),
        bool(_setting("SLP_VECTORIZE", 0)),
    )
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    wanted = {one.name for one in module.functions if one.is_declaration and not one.name.startswith(("llvm.", "Py"))}
    if wanted:  # LLVM ends the process where one is missing
        raise RuntimeError(f"fastpe: a kernel must call no function of a library; this one calls {sorted(wanted)}.")
    return machine, module


def keep_only(module: Any, *names: str) -> None:
    """Nothing remains of what has other names once it is inlined or not used."""
    for one in (*module.functions, *module.global_variables):
        if not one.is_declaration:
            one.linkage = llvm.Linkage.external if one.name in names else llvm.Linkage.internal


def _setting(name: str, default: int) -> int:
    """One of Numba's settings in the environment."""
    text = os.environ.get(f"NUMBA_{name}", "")
    return int(text) if text.isdigit() else default


def _of_this_processor(kernel: Any, features: str) -> str:
    """What a kernel leaves open (`kernels/abi.py`), for the processors whose pause and float mode are known (MXCSR, FPCR)."""
    from llvmlite import ir

    triple = kernel.triple
    byte, half, word, nothing = (ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64), ir.VoidType())
    module = ir.Module()
    module.triple, module.data_layout = triple, kernel.data_layout

    def function(name: str, result: Any, *kinds: Any) -> Any:
        return ir.Function(module, ir.FunctionType(result, kinds), name)

    def defined(name: str, result: Any, *kinds: Any) -> tuple[Any, Any]:
        made = function(name, result, *kinds)
        made.attributes.add("alwaysinline")
        return made, ir.IRBuilder(made.append_basic_block())

    (_, pause), (_, enter) = defined(abi.PAUSE, nothing), defined(abi.ENTER_FLOAT_MODE, word)
    leaving, leave = defined(abi.LEAVE_FLOAT_MODE, nothing, word)
    mode = word(0)
    if triple.startswith(("x86_64", "i386", "i686")):
        pause.call(function("llvm.x86.sse2.pause", nothing), [])
        store, load = (function(f"llvm.x86.sse.{name}mxcsr", nothing, byte) for name in ("st", "ld"))
        old, default, given = enter.alloca(half), enter.alloca(half), leave.alloca(half)
        enter.call(store, [enter.bitcast(old, byte)])
        enter.store(half(0x1F80), default)
        enter.call(load, [enter.bitcast(default, byte)])
        mode = enter.zext(enter.load(old), word)
        leave.store(leave.trunc(leaving.args[0], half), given)
        leave.call(load, [leave.bitcast(given, byte)])
    elif triple.startswith(("aarch64", "arm64")):
        pause.call(function("llvm.aarch64.hint", nothing, half), [half(1)])
        put = function("llvm.aarch64.set.fpcr", nothing, word)
        mode = enter.call(function("llvm.aarch64.get.fpcr", word), [])
        enter.call(put, [word(0)])
        leave.call(put, [leaving.args[0]])
    fetch = module.declare_intrinsic("llvm.prefetch", [byte], ir.FunctionType(nothing, [byte, half, half, half]))
    for name, is_near in ((abi.PREFETCH, tuning.here().near), (abi.PREFETCH_NEAR, True)):
        prefetching, builder = defined(name, nothing, word)
        locality = half(3 if is_near else 2)  # LLVM's names for the first level and the second
        builder.call(fetch, [builder.inttoptr(prefetching.args[0], byte), half(0), locality, half(1)])
        builder.ret_void()
    enter.ret(mode)
    leave.ret_void()
    pause.ret_void()
    for name in {one.name for one in kernel.functions if one.name.startswith(abi.IN_QUADRANT)}:
        count = int(name.removeprefix(abi.IN_QUADRANT))
        real, words = ir.VectorType(ir.DoubleType(), count), ir.VectorType(word, count)
        converting, builder = defined(name, real, words)
        in_steps = triple.startswith("x86_64") and "+avx512dq" not in features.split(",")
        builder.ret((_in_quadrant_in_steps if in_steps else _in_quadrant)(builder, converting.args[0], real))
    has_bfloat16 = triple.startswith("x86_64") and {"+avx512bf16", "+avx512dq"} <= set(features.split(","))
    bodies = {abi.CONVERTS: (ir.IntType(1), _converts), abi.TO_BFLOAT16: (ir.IntType(16), _to_bfloat16)}
    for name in sorted({one.name for one in kernel.functions if one.name.startswith(tuple(bodies))}):
        begin, count = name.rsplit("_", 1)
        kind, body = bodies[f"{begin}_"]
        result = kind if body is _converts else ir.VectorType(kind, int(count))
        converting, builder = defined(name, result, ir.VectorType(ir.FloatType(), int(count)))
        builder.ret(body(builder, converting.args[0]) if has_bfloat16 else ir.Constant(result, None))
    return str(module)


def _parts(builder: Any, values: Any) -> list[Any]:
    """A vector of float32 as vectors of 16."""
    from llvmlite import ir

    masks = (ir.Constant(ir.VectorType(ir.IntType(32), 16), list(range(at, at + 16))) for at in range(0, values.type.count, 16))
    return [builder.shuffle_vector(values, values, mask) for mask in masks]


def _converts(builder: Any, values: Any) -> Any:
    """Whether none is subnormal, which AVX512-BF16 takes for 0, or a NaN. Anything else it rounds to nearest even, whatever the mode."""
    from llvmlite import ir

    flags, half, number = ir.VectorType(ir.IntType(1), 16), ir.IntType(16), ir.IntType(32)
    classify = _intrinsic(builder, "llvm.x86.avx512.fpclass.ps.512", flags, ir.VectorType(ir.FloatType(), 16), number)
    found = half(0)
    for part in _parts(builder, values):
        found = builder.or_(found, builder.bitcast(builder.call(classify, [part, number(0xA1)]), half))
    return builder.icmp_unsigned("==", found, half(0))


def _to_bfloat16(builder: Any, values: Any) -> Any:
    """16 or 32 float32 by the processor's own instruction."""
    from llvmlite import ir

    class BFloat(ir.Type):  # type: ignore[misc]  # llvmlite has none
        def _to_string(self) -> str:
            return "bfloat" if llvm.llvm_version_info >= (16,) else "i16"

    parts, kind = _parts(builder, values), ir.VectorType(ir.FloatType(), 16)
    name = "cvtneps2bf16" if len(parts) == 1 else "cvtne2ps2bf16"
    result = ir.VectorType(BFloat(), values.type.count)
    convert = _intrinsic(builder, f"llvm.x86.avx512bf16.{name}.512", result, *[kind] * len(parts))
    return builder.bitcast(builder.call(convert, parts[::-1]), ir.VectorType(ir.IntType(16), values.type.count))


def _intrinsic(builder: Any, name: str, result: Any, *kinds: Any) -> Any:
    from llvmlite import ir

    return builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(result, kinds), name)


def _in_quadrant(builder: Any, turns: Any, real: Any) -> Any:
    """Turns in units of 2^-64, one eighth added, less whole quarters and that eighth: as float64 in [-1/8, 1/8], rounded once."""
    rest = builder.sub(builder.and_(turns, _each(turns.type, 2**62 - 1)), _each(turns.type, 2**61))
    return builder.fmul(builder.sitofp(rest, real), _each(real, 2.0**-64))


def _in_quadrant_in_steps(builder: Any, turns: Any, real: Any) -> Any:
    """The same where no instruction makes floats of 64-bit integers: LLVM would convert them one by one.

    The halves become exact floats as mantissas behind 2^-12 and 2^20. These, and the eighth, are subtracted again before the only rounding.
    """
    from llvmlite import ir

    count = turns.type.count
    halves = ir.VectorType(ir.IntType(32), 2 * count)
    order = [half for number in range(0, 2 * count, 2) for half in (number, 2 * count + number + 1)]
    low, exponents = (builder.bitcast(words, halves) for words in (turns, _each(turns.type, (1023 - 12) << 52)))
    low = builder.bitcast(builder.shuffle_vector(low, exponents, ir.Constant(halves, order)), real)
    high = builder.and_(builder.lshr(turns, _each(turns.type, 32)), _each(turns.type, 2**30 - 1))
    high = builder.bitcast(builder.or_(high, _each(turns.type, (1023 + 20) << 52)), real)
    return builder.fadd(builder.fsub(high, _each(real, 2.0**20 + 2.0**-3 + 2.0**-12)), low)


def _each(kind: Any, number: float) -> Any:
    """A constant vector of one number."""
    from llvmlite import ir

    return ir.Constant(kind, [number] * kind.count)


class _MethodDef(ctypes.Structure):
    """``PyMethodDef`` of CPython."""

    _fields_ = (("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p))


_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.POINTER(_MethodDef), ctypes.c_void_p, ctypes.c_void_p)
_keepalive: list[Any] = []  # what functions made here point to, one for each kernel
_addresses: dict[Kernel, int] = {}


def load(name: str, code: bytes) -> Kernel:
    """The entry in object code as a function. It stays loaded until the process ends: a helper may be in it until then."""
    engine, content = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine()), llvm.ObjectFileRef.from_data(code)
    address = plain = 0
    if content:
        engine.add_object_file(content)
        engine.finalize_object()
        address, plain = (engine.get_function_address(one) for one in (ENTRY, PLAIN))
    if not address:
        raise ValueError(f"fastpe: the machine code of {name} is no object file with an entry.")
    engine.detach()
    method = _MethodDef(name.encode(), address, METH_FASTCALL, None)
    _keepalive.append(method)
    function: Kernel = _new(("PyCFunction_NewEx", ctypes.pythonapi))(method, None, None)
    _addresses[function] = plain
    return function


def address_of(kernel: Kernel) -> int:
    """The address of a kernel's C function, ``void kernel(int64_t arguments, int64_t control, int64_t thread)``."""
    return _addresses[kernel]


def target_machine(**options: Any) -> Any:
    """What LLVM generates code for, set as Numba sets it."""
    _initialize()
    target = llvm.Target.from_default_triple()
    relocation = "static" if target.name.startswith("x86") else "default"
    return target.create_target_machine(reloc=relocation, codemodel="jitdefault", jit=True, **options)


@functools.lru_cache(maxsize=1)
def _initialize() -> None:
    with contextlib.suppress(RuntimeError):  # newer versions do it themselves, and say so
        llvm.initialize()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
