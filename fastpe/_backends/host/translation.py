"""Kernels in LLVM's language, as Numba translates them from Python: not optimised yet, and the same for every processor.

Numba would optimise each function that a kernel is made of, and load it so that Python could call it: half of the time of a first call.
What is needed is one module, in which LLVM inlines and optimises all of them once (`machine_code.py`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...kernels import abi
from .machine_code import ENTRY, PLAIN, keep_only

FILES = (*sorted(Path(abi.__file__).parent.glob("*.py")), Path(__file__))


@functools.lru_cache(maxsize=1)
def sources() -> str:
    """A hash of the source of every kernel and of this file."""
    return hashlib.sha256(repr([(path.name, path.read_text()) for path in FILES]).encode()).hexdigest()


def translate(name: str, *variant: Any) -> bytes:
    """A kernel and its entries as LLVM's bitcode, with all that they call; ``variant`` are the arguments of its module's ``build``."""
    import numba
    from llvmlite import binding as llvm
    from numba.core.compiler_lock import global_compiler_lock

    from ...kernels import scheduler

    built = importlib.import_module(f"fastpe.kernels.{name}").build(*variant)
    options: Any = {
        "nogil": True,
        "error_model": "numpy",
        "boundscheck": False,
        "no_cpython_wrapper": True,
        "no_cfunc_wrapper": True,
    }
    with global_compiler_lock, _only_translating():
        compiled: Any = numba.njit(scheduler.SIGNATURE, **options)(built)
        ((signature, result),) = compiled.overloads.items()
        module = llvm.parse_assembly(compiled.inspect_llvm(signature))
    module.link_in(llvm.parse_assembly(_entries(result.fndesc.mangled_name, module.triple, module.data_layout)))
    keep_only(module, ENTRY, PLAIN)
    code: bytes = module.as_bitcode()
    return code


def _entries(function: str, triple: str, data_layout: str) -> str:
    """What Python calls, and what others call, around a kernel."""
    from llvmlite import ir

    pointer, word, status = ir.IntType(8).as_pointer(), ir.IntType(64), ir.IntType(32)
    module = ir.Module()
    module.triple, module.data_layout = triple, data_layout

    def declared(name: str, result: Any, *kinds: Any) -> Any:
        return ir.Function(module, ir.FunctionType(result, kinds), name)

    # Numba's own convention: where the result and where an exception go, then the arguments; nothing is written there.
    kernel = declared(function, status, pointer.as_pointer(), pointer.as_pointer(), word, word, word)
    plain = declared(PLAIN, ir.VoidType(), word, word, word)
    builder = ir.IRBuilder(plain.append_basic_block())
    builder.call(kernel, [*(builder.alloca(pointer) for _ in range(2)), *plain.args])
    builder.ret_void()
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


@contextlib.contextmanager
def _only_translating() -> Iterator[None]:
    """Numba neither optimises nor loads what it compiles."""
    from numba.core.registry import cpu_target

    context = cpu_target.target_context
    codegen = context.codegen()
    codegen._library_class, context.get_executable = _library(), _executable
    try:
        yield
    finally:
        del codegen._library_class, context.get_executable  # those of the classes are found again


def _executable(library: Any, description: Any, environment: Any) -> Any:
    """What Python would call: a built-in function of its own for each, as Numba wants it, which raises whatever it is given."""
    library._ensure_finalized()
    return [].index


@functools.lru_cache(maxsize=1)
def _library() -> Any:
    from numba.core.codegen import JITCodeLibrary

    class Translation(JITCodeLibrary):
        """Functions that are linked into others, and not run."""

        def _optimize_functions(self, module: Any) -> None:
            module.data_layout = self._codegen._data_layout

        def _optimize_final_module(self) -> None:
            pass

        def _finalize_final_module(self) -> None:
            self._finalize_dynamic_globals()  # type: ignore[no-untyped-call]
            self._verify_declare_only_symbols()  # type: ignore[no-untyped-call]
            self._finalized = True

    return Translation
