"""Kernels of the CPU, compiled for their element types on first use and kept on disk.

Numba's own disk cache is not used: a race between processes can leave it permanently wrong, and it fails where no folder is writable.
"""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..._arrays.locks import unforkable
from ...kernels import abi
from .. import disk_cache as cache

Kernel = Callable[[int, int, int], None]  # (address of the arguments, address of the control block, number of the thread)

_kernels: dict[tuple[Any, ...], Kernel] = {}
_keepalive: list[Any] = []  # compile results own the machine code


def kernel(name: str, *variant: Any) -> Kernel:
    """Return the compiled kernel of an operation; ``variant`` are the arguments of its module's ``build``."""
    key = (name, *variant)
    try:
        return _kernels[key]
    except KeyError:
        with unforkable:
            if key not in _kernels:
                _kernels[key] = _compile(name, *variant)
            return _kernels[key]


def _compile(name: str, *variant: Any) -> Kernel:
    """Load a kernel from the disk, or compile it and store it there."""
    with contextlib.suppress(Exception):  # the disk cache uses Numba's internals; whatever fails there, compiling works
        stored = _load(name, variant)
        if stored is not None:
            return stored
    import numba

    from ...kernels import scheduler

    module = importlib.import_module(f"fastpe.kernels.{name}")
    compiled = numba.njit(scheduler.SIGNATURE, nogil=True, error_model="numpy", boundscheck=False)(module.build(*variant))
    (result,) = compiled.overloads.values()
    with contextlib.suppress(Exception):
        _store(name, variant, result)
    return _entry(result)


def _entry(result: Any) -> Kernel:
    """The function that runs the machine code directly, without Numba's dispatch on argument types."""
    _keepalive.append(result)
    entry: Kernel = result.entry_point
    return entry


def _key(name: str, variant: tuple[Any, ...]) -> str:
    """Everything that machine code depends on: versions, the CPU compiled for, Numba's settings, the kernels' sources."""
    import llvmlite
    import numba
    from numba.core.registry import cpu_target

    settings = [getattr(numba.config, setting, None) for setting in ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK")]
    machine = cpu_target.target_context.codegen().magic_tuple()
    facts = sys.version, sys.platform, numba.__version__, llvmlite.__version__, machine, settings
    sources = [path.read_text() for path in sorted(Path(abi.__file__).parent.glob("*.py"))]
    return cache.key("-".join((name, *(str(part) for part in variant))), *facts, *sources)


def _load(name: str, variant: tuple[Any, ...]) -> Kernel | None:
    folder = cache.folder("numba")
    content = None if folder is None else cache.load(folder, _key(name, variant))
    if content is None:
        return None
    from numba.core.compiler import CompileResult
    from numba.core.registry import cpu_target

    context: Any = cpu_target.target_context
    context.refresh()  # makes Numba's runtime known; without it the first call of loaded code crashes
    rebuild: Any = CompileResult._rebuild
    # Unpickling runs what the file says: the folder is this user's alone, and the file's name is the hash of its content.
    return _entry(rebuild(context, *pickle.loads(content.read_bytes())))


def _store(name: str, variant: tuple[Any, ...], result: Any) -> None:
    from numba.core import serialize

    folder = cache.folder("numba")
    if folder is not None:
        dumps: Any = serialize.dumps
        cache.store(folder, _key(name, variant), dumps(result._reduce()))
