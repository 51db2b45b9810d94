"""Translate the usual kernels, for a wheel: ``python -m fastpe._tools.translate FILE``, or those of some types, or of some names.

Names of element types and of kernels, behind the file, leave the others out.
"""

from __future__ import annotations

import itertools
import sys
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from llvmlite import binding as llvm

from .._arrays.dtypes import ELEMENT_TYPES
from .._backends.host import machine_code, translation, translations
from ..kernels import abi, arithmetic

# Passes that depend on no processor: variables become values, and what is not called goes, and names. A tenth remains.
PASSES = ("sroa", "simplify_cfg", "instruction_combine", "global_dead_code_eliminate", "strip_symbols", "strip_dead_prototype")


def usual() -> Iterator[tuple[Any, ...]]:
    """The kernels whose arrays have one element type, and sums with a table in float32: names and variants."""
    for dtype in ELEMENT_TYPES:
        if dtype == "float16" and arithmetic.f16_to_f32 is not arithmetic.f16_to_f32_hardware:
            continue  # translated on an old processor
        yield from (("add_sinusoidal", dtype, mode) for mode in abi.MODES)
        yield from itertools.product(("rotate", "rotate_table"), (dtype,), (abi.IN_PLACE, abi.OUT_OF_PLACE))
        yield "add_toeplitz", dtype
        yield from (("add_table", dtype, learned) for learned in dict.fromkeys((dtype, "float32")))
        for types, (learned, adds) in itertools.product(
            (None, dtype), ((None, "nothing"), (None, "sinusoidal"), (dtype, "learned"))
        ):
            yield "embed", dtype, types, learned, dtype, adds


def reduced(kernel: tuple[Any, ...]) -> bytes:
    """A translation without what is not needed."""
    module = llvm.parse_bitcode(translation.translate(*kernel))
    builder = llvm.create_pass_builder(machine_code.target_machine(), llvm.create_pipeline_tuning_options(1))
    passes = llvm.create_new_module_pass_manager()
    for name in PASSES:
        getattr(passes, f"add_{name}_pass")()
    passes.run(module, builder)
    code: bytes = module.as_bitcode()
    return code


def make(path: Path, kernels: Sequence[tuple[Any, ...]] = ()) -> None:
    """Translate the usual kernels into an archive, always to the same bytes."""
    kernels = kernels or [*usual()]
    with ProcessPoolExecutor() as pool, zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for (name, *variant), code in zip(kernels, pool.map(reduced, kernels, chunksize=4), strict=True):
            archive.writestr(zipfile.ZipInfo(translations.file_name(name, tuple(variant))), code, zipfile.ZIP_LZMA)
        archive.comment = f"{translation.sources()} {llvm.llvm_version_info[0]}".encode()


def named(*names: str) -> list[tuple[Any, ...]]:
    """The usual kernels of these element types, or of all, and of these names, or of all."""
    dtypes, kernels = ({*names} & {*ELEMENT_TYPES}) or {*ELEMENT_TYPES}, {*names} - {*ELEMENT_TYPES}
    return [kernel for kernel in usual() if kernel[1] in dtypes and (not kernels or kernel[0] in kernels)]


if __name__ == "__main__":
    make(Path(sys.argv[1]), named(*sys.argv[2:]))
