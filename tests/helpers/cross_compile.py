"""Compile kernels of the CPU for another processor: ``python tests/helpers/cross_compile.py FOLDER TRIPLE CPU LABEL ...``.

Kernels are translated as they are for a wheel, on this machine. Then LLVM is told that this is another processor, for which it chooses
every instruction: an object file for each kernel, whose entry and C function bear its label.
"""

from __future__ import annotations

import sys
from pathlib import Path

from llvmlite import binding as llvm

KERNELS = {
    **{f"add_{dtype}": ("add_sinusoidal", dtype, 0) for dtype in ("float16", "bfloat16", "float32", "float64")},
    **{f"rotate_{dtype}": ("rotate", dtype, 0) for dtype in ("bfloat16", "float32")},
    "bias_float32": ("add_toeplitz", "float32"),
    "embed_float32": ("embed", "float32", None, None, "float32", "sinusoidal"),
}


def pretend(triple: str) -> None:
    """From now on LLVM's answer to what this machine is."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.get_process_triple = llvm.get_default_triple = lambda: triple
    llvm.Target.from_default_triple = classmethod(lambda cls: cls.from_triple(triple))


def translated(label: str) -> bytes:
    """A kernel as a wheel ships it, for no processor in particular."""
    from fastpe._backends.host import machine_code, translation

    for module in (machine_code, translation):
        module.ENTRY, module.PLAIN = f"entry_{label}", f"plain_{label}"
    return translation.translate(*KERNELS[label])


def main(folder: str, triple: str, cpu: str, *labels: str) -> None:
    translations = {label: translated(label) for label in labels or KERNELS}
    pretend(triple)
    from fastpe._backends.host import machine_code

    for label, bitcode in translations.items():
        machine_code.ENTRY, machine_code.PLAIN = f"entry_{label}", f"plain_{label}"
        Path(folder, f"{label}.o").write_bytes(machine_code.emit(bitcode, cpu, ""))


if __name__ == "__main__":
    main(*sys.argv[1:])
