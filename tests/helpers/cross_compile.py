"""Compile kernels of the CPU for another processor: ``python tests/helpers/cross_compile.py FOLDER TRIPLE CPU LABEL ...``.

Numba compiles for the processor that it runs on. Here it is told that this is another one, before anything of fastpe is imported, so that
every instruction is chosen for that one: an object file for each kernel, and its assembly, whose entry and C function bear its label.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from llvmlite import binding as llvm

KERNELS = {
    **{f"add_{dtype}": ("add_sinusoidal", dtype, 0) for dtype in ("float16", "bfloat16", "float32", "float64")},
    **{f"rotate_{dtype}": ("rotate", dtype, 0) for dtype in ("bfloat16", "float32")},
    "bias_float32": ("add_toeplitz", "float32"),
    "embed_float32": ("embed", "float32", None, None, "float32", "sinusoidal"),
}


def pretend(triple: str, cpu: str) -> None:
    """From now on LLVM's answer to what this machine is."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.get_process_triple = llvm.get_default_triple = lambda: triple
    llvm.Target.from_default_triple = classmethod(lambda cls: cls.from_triple(triple))
    os.environ.update(NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES="")


def compile_kernel(label: str, folder: Path) -> None:
    from fastpe._backends.host import compile, machine_code

    machine_code.ENTRY, machine_code.PLAIN = f"entry_{label}", f"plain_{label}"
    emitted = machine_code.emit
    said: list[str] = []

    def emit(ir_text: str, function: str, *options: object) -> bytes:
        said.append(
            machine_code._machine(**dict(zip(("cpu", "features", "opt"), options, strict=True))).emit_assembly(
                llvm.parse_assembly(ir_text)
            )
        )
        return emitted(ir_text, function, *options)

    machine_code.emit = emit
    try:
        code = compile._compile(*KERNELS[label])
    finally:
        machine_code.emit = emitted
    (folder / f"{label}.s").write_text(said[0])
    (folder / f"{label}.o").write_bytes(code)


def main(folder: str, triple: str, cpu: str, *labels: str) -> None:
    pretend(triple, cpu)
    for label in labels or KERNELS:
        compile_kernel(label, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
