"""Instructions for a cache line of x, counted in the loops that LLVM emits for several processors: ``python -m bench.cpu_counts``.

Nothing is run, and any processor can be asked for. Of each kernel the innermost loops over vectors are counted that prefetch x: the
shortest of those in which rows are made and added in one pass (with fused multiplications), and of those that add a block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fastpe.kernels import abi

from fastpe._arrays.dtypes import ELEMENT_TYPES
from fastpe._backends.host import machine_code, translation

AVX2 = "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+sse4.2,+popcnt,+lzcnt"
AVX512 = f"{AVX2},+avx512f,+avx512dq,+avx512bw,+avx512vl"
PROCESSORS = {"x86-64-v3": AVX2, "znver3": AVX2, "skylake-avx512": AVX512, "znver4": f"{AVX512},+avx512bf16"}


def assembly(bitcode: bytes, name: str, features: str) -> str:
    """What LLVM emits of a translated kernel for a processor."""
    machine, module = machine_code.optimised(bitcode, name, features)
    text: str = machine.emit_assembly(module)
    return text


def innermost_loops(text: str) -> Iterator[list[str]]:
    """The instructions from a label to the last jump back to it, where no other loop lies between."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if found := re.match(r"(\.L\w+):", line):
            labels[found[1]] = len(instructions)
        elif line and line[0] not in ".#" and ":" not in line.split()[0]:
            instructions.append(line)
    jumps = ((index, re.match(r"j\w+\s+(\.L\w+)", line)) for index, line in enumerate(instructions))
    loops = [(labels[jump[1]], index) for index, jump in jumps if jump and labels.get(jump[1], index + 1) <= index]
    for first, last in loops:
        if not any((first, last) != other and first <= other[0] and other[1] <= last for other in loops):
            yield instructions[first : last + 1]


def stored_bytes(line: str, itemsize: int) -> int:
    """Of x, by an instruction: phases that are kept beside float64 are integers, and float16 is converted while it is stored."""
    found = re.match(r"(vmovup\w+|vmovdqu\w*|vcvtps2ph)\s.*%([xyz])mm\d+, .*\)$", line)
    if found is None or (found[1].startswith("vmovdqu") and itemsize > 2):
        return 0
    nbytes = {"x": 16, "y": 32, "z": 64}[found[2]]
    return nbytes // 2 if found[1] == "vcvtps2ph" else nbytes


def per_line(loops: list[list[str]], itemsize: int, *, fused: bool) -> float:
    """Instructions for a line, of the shortest loop over vectors that makes what it adds, or that does not."""
    counts = []
    for loop in loops:
        nbytes = sum(stored_bytes(line, itemsize) for line in loop)
        makes = any(line.startswith(("vfmadd", "vfmsub", "vfnmadd")) for line in loop)
        if nbytes and makes == fused and any("prefetch" in line for line in loop):
            counts.append(len(loop) * abi.LINE_BYTES / nbytes)
    return min(counts)


def counts(dtype: str, processor: str) -> tuple[float, float]:
    """Instructions for a line of ``add_sinusoidal`` in place: where rows are made and added in one pass, and where a block is added."""
    bitcode = translation.translate("add_sinusoidal", dtype, abi.IN_PLACE)
    loops = list(innermost_loops(assembly(bitcode, processor, PROCESSORS[processor])))
    itemsize = ELEMENT_TYPES[dtype].itemsize
    return per_line(loops, itemsize, fused=True), per_line(loops, itemsize, fused=False)


def main() -> None:
    """Print the table."""
    print(f"{'':10}" + "".join(f"{name:>16}" for name in PROCESSORS))
    for dtype in ELEMENT_TYPES:
        cells = ("{:.0f} / {:.0f}".format(*counts(dtype, processor)) for processor in PROCESSORS)
        print(f"{dtype:10}" + "".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
