"""Machine code of kernels as bytes: made from what Numba compiled, and loaded without Numba, as functions that Python calls.

Around a kernel stands an entry, ``entry(self, arguments, count)`` of CPython's METH_FASTCALL, which turns three integers into words, lets
the GIL go, and runs the kernel. Only functions of CPython are called from it: a kernel needs neither Numba's runtime nor a library.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable
from typing import Any

from llvmlite import binding as llvm

Kernel = Callable[[int, int, int], None]  # (address of the arguments, address of the control block, number of the thread)

ENTRY = "fastpe_entry"
PLAIN = "fastpe_plain"  # the kernel as a C function of three words, for callers that hold no GIL
METH_FASTCALL = 0x80


def emit(ir_text: str, function: str, cpu: str, features: str, level: int) -> bytes:
    """Object code of a function that Numba compiled to optimised LLVM code, with its entry."""
    machine = _machine(cpu=cpu, features=features, opt=level)
    module = llvm.parse_assembly(ir_text)
    module.link_in(llvm.parse_assembly(_entry(function, module.triple, module.data_layout)))
    module.verify()
    wanted = {one.name for one in module.functions if one.is_declaration and not one.name.startswith(("llvm.", "Py"))}
    if wanted:  # LLVM ends the process where one is missing
        raise RuntimeError(f"fastpe: a kernel must call no function of a library; {function} calls {sorted(wanted)}.")
    code: bytes = machine.emit_object(module)
    return code


def _entry(function: str, triple: str, data_layout: str) -> str:
    from llvmlite import ir

    pointer, word, status = ir.IntType(8).as_pointer(), ir.IntType(64), ir.IntType(32)
    module = ir.Module()
    module.triple, module.data_layout = triple, data_layout

    def declared(name: str, result: Any, *kinds: Any) -> Any:
        return ir.Function(module, ir.FunctionType(result, kinds), name)

    # Numba's own convention: where the result and where an exception go, then the arguments; nothing is written there.
    kernel = declared(function, status, pointer.as_pointer(), pointer.as_pointer(), word, word, word)
    _plain(declared(PLAIN, ir.VoidType(), word, word, word), kernel, pointer)
    entry = declared(ENTRY, pointer, pointer, pointer.as_pointer(), word)
    builder = ir.IRBuilder(entry.append_basic_block())
    _, arguments, count = entry.args
    with builder.if_then(builder.icmp_signed("!=", count, word(3))):
        builder.call(declared("PyErr_BadArgument", status), [])
        builder.ret(pointer(None))
    as_word = declared("PyLong_AsLongLong", word, pointer)
    words = [builder.call(as_word, [builder.load(builder.gep(arguments, [word(index)]))]) for index in range(3)]
    failed = builder.call(declared("PyErr_Occurred", pointer), [])
    with builder.if_then(builder.icmp_unsigned("!=", failed, pointer(None))):
        builder.ret(pointer(None))
    unused = [builder.alloca(pointer) for _ in range(2)]
    state = builder.call(declared("PyEval_SaveThread", pointer), [])
    result = builder.call(kernel, [*unused, *words])
    builder.call(declared("PyEval_RestoreThread", ir.VoidType(), pointer), [state])
    with builder.if_then(builder.icmp_signed("!=", result, status(0))):
        builder.call(declared("PyErr_BadInternalCall", ir.VoidType()), [])
        builder.ret(pointer(None))
    nothing = ir.GlobalVariable(module, ir.IntType(8), "_Py_NoneStruct")
    builder.call(declared("Py_IncRef", ir.VoidType(), pointer), [nothing])
    builder.ret(nothing)
    return str(module)


def _plain(function: Any, kernel: Any, pointer: Any) -> None:
    from llvmlite import ir

    builder = ir.IRBuilder(function.append_basic_block())
    builder.call(kernel, [*(builder.alloca(pointer) for _ in range(2)), *function.args])
    builder.ret_void()


class _MethodDef(ctypes.Structure):
    """``PyMethodDef`` of CPython."""

    _fields_ = (("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p))


_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.POINTER(_MethodDef), ctypes.c_void_p, ctypes.c_void_p)
_keepalive: list[Any] = []  # what functions made here point to, one for each kernel
_addresses: dict[Kernel, int] = {}


def load(name: str, code: bytes) -> Kernel:
    """The entry in object code as a function. It stays loaded until the process ends: a helper may be in it until then."""
    engine, content = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine()), llvm.ObjectFileRef.from_data(code)
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


def _machine(**options: Any) -> Any:
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
