"""Kernels of the CPU, compiled for their element types on first use and kept on disk.

Numba's own disk cache is not used: a race between processes can leave it permanently wrong, it fails where no folder is writable, and it
unpickles what it finds. What is kept here is machine code alone (`machine_code.py`), and loading it takes no Numba.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from ..._arrays.locks import unforkable
from .. import disk_cache as cache
from . import machine_code, translation, translations, tuning
from .machine_code import Kernel

# Numba's settings on which machine code depends. A program that makes them itself may find code that was compiled without: of another
# speed, with the same bits.
SETTINGS = ("CPU_FEATURES", "CPU_NAME", "ENABLE_AVX", "LOOP_VECTORIZE", "OPT", "SLP_VECTORIZE")

_kernels: dict[tuple[Any, ...], Kernel] = {}

if not getattr(sys, "_is_gil_enabled", lambda: True)():
    text = "fastpe is not tested on Python without the GIL, where calls from several threads may go wrong. Set PYTHON_GIL=1."
    warnings.warn(text, RuntimeWarning, stacklevel=2)


def kernel(name: str, *variant: Any) -> Kernel:
    """Return the compiled kernel of an operation; ``variant`` are the arguments of its module's ``build``."""
    key = (name, *variant)
    try:
        return _kernels[key]
    except KeyError:
        with unforkable:
            if key not in _kernels:
                _kernels[key] = _load_or_compile(name, *variant)
            return _kernels[key]


def _load_or_compile(name: str, *variant: Any) -> Kernel:
    """Load a kernel from the disk, or compile it and store it there."""
    folder, key = cache.folder("numba"), _key(name, variant)
    code = None if folder is None else cache.load(folder, key)
    if code is not None:
        with contextlib.suppress(ValueError):
            return machine_code.load(name, code)
    _announce("once" if folder is not None else "in every process, as there is no folder to keep them in")
    code = _compile(name, *variant)
    loaded = machine_code.load(name, code)
    if folder is not None:
        cache.store(folder, key, code)
    return loaded


@functools.lru_cache(maxsize=1)
def _announce(how_often: str) -> None:
    """Say why the first call takes seconds, on a terminal alone."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # a program may have closed or replaced its stderr
        if sys.stderr.isatty() and not os.environ.get("FASTPE_QUIET"):
            print(f"fastpe: compiling kernels for this machine, {how_often} ...", file=sys.stderr, flush=True)


def _compile(name: str, *variant: Any) -> bytes:
    target = machine_code.processor()
    shipped = translations.find(name, variant, target[1])
    if shipped is not None:
        with contextlib.suppress(RuntimeError):  # of an LLVM that reads it in another way
            return machine_code.emit(shipped, *target)
    return machine_code.emit(translation.translate(name, *variant), *target)


def _key(name: str, variant: tuple[Any, ...]) -> str:
    """Everything that machine code depends on: versions, the CPU compiled for, Numba's settings, the kernels' sources."""
    from llvmlite import binding as llvm

    settings = [os.environ.get(f"NUMBA_{setting}") for setting in SETTINGS]
    machine = llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    versions = sys.version, *(_version(package) for package in ("numba", "llvmlite"))
    own = [Path(__file__).with_name(file).read_text() for file in ("compile.py", "machine_code.py")]
    kind = "-".join((name, *(str(part) for part in variant)))
    return cache.key(kind, versions, machine, settings, tuning.here().near, translation.sources(), *own)


def _version(package: str) -> str:
    """What tells a package's versions apart, without importing it: Numba takes half a second, and importlib.metadata 10 ms."""
    try:
        return Path(importlib.util.find_spec(package).origin).with_name("_version.py").read_text()  # type: ignore[union-attr, arg-type]
    except (AttributeError, OSError, TypeError):  # in a program that was packed without it
        found: str = importlib.import_module(package).__version__
        return found
