"""Translated kernels that a wheel brings, so that a first call needs LLVM alone. ``build_backend.py`` of the source tree has them made.

They are the same for every processor. A ZIP archive holds one file of LLVM's bitcode for each kernel; its comment says of which sources,
and by which LLVM: a newer one reads what an older one wrote, not the other way round. What is missing, damaged, or of other sources is
translated by Numba.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...kernels import abi
from . import translation

ARCHIVE = Path(abi.__file__).with_name("translations.zip")


def find(name: str, variant: tuple[Any, ...], features: str) -> bytes | None:
    """The bitcode of a kernel, for a processor with these features."""
    import zipfile

    from llvmlite import binding as llvm

    if not ARCHIVE.is_file() or ("float16" in variant and not _converts_float16(features)):
        return None
    try:
        with zipfile.ZipFile(ARCHIVE) as archive:
            sources, version = archive.comment.decode().split()
            if sources == translation.sources() and int(version) <= llvm.llvm_version_info[0]:
                return archive.read(file_name(name, variant))
    except Exception:  # damaged files raise nearly everything
        return None
    return None


def _converts_float16(features: str) -> bool:
    """Whether a processor does, as it does for the kernels of the archive."""
    from llvmlite import binding as llvm

    return "+f16c" in features.split(",") or llvm.get_process_triple().startswith(("aarch64", "arm64"))


def file_name(name: str, variant: tuple[Any, ...]) -> str:
    return "-".join((name, *(str(part) for part in variant)))
