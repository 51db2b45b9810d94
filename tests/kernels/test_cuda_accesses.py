"""How the CUDA kernels access memory: in the global address space, and vectors of columns in whole accesses, in PTX and in SASS."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import kept
import kept_nvrtc
import pytest

from fastpe._backends import cuda

NAMES = ("add_sinusoidal", "add_table", "add_toeplitz", "embed", "locate_rows", "rotate", "rotate_table")
ARCHITECTURES = ("75", "90", "120")
IN_PARTS = {"add_table", "embed"}  # up to sm_90 the compiler makes four stores of a vector of float32


def disassembler() -> str | None:
    """NVIDIA's, from the toolkit or its wheel."""
    found = importlib.util.find_spec("nvidia")
    places = [Path(place) for place in (found.submodule_search_locations or [])] if found else []
    return shutil.which("nvdisasm") or next((str(path) for place in places for path in place.glob("*/bin/nvdisasm")), None)


def entries(text: str, begin: str) -> dict[str, str]:
    """The code of each entry point, by name."""
    parts = re.split(begin, text)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", NAMES)
def test_ptx_knows_that_memory_is_global(name: str, architecture: str) -> None:
    pytest.importorskip("cupy", reason="NVRTC is reached through CuPy")
    ptx, _ = kept_nvrtc.compile_source(name, f"compute_{architecture}")
    found = entries(ptx, r"\.entry (\w+)\(")
    assert len(found) >= (2 if name == "locate_rows" else 3)
    for entry, code in found.items():
        accesses = re.findall(r"\b(?:ld|st)\.[\w.:]+", code)
        stores = [access for access in accesses if access.startswith("st.")]
        assert [access for access in accesses if not re.match(r"ld\.param|(ld|st)\.global", access)] == []
        assert stores
        if "vec16" in entry and name not in IN_PARTS:
            assert {access for access in stores if not re.search(r"\.v4\.[ub]32|\.v2\.[ub]64", access)} == set()


def machine_code(name: str, architecture: str, program: str) -> str:
    """The loads and stores of each entry point, a line an entry: kept, as compiling and disassembling take a second."""
    from cupy.cuda import nvrtc

    def make() -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
            cubin.write(cuda.compile_source(name, f"sm_{architecture}")[0])
            cubin.flush()
            text = subprocess.run([program, "-c", cubin.name], capture_output=True, text=True, check=True, timeout=60).stdout
        pattern = re.compile(r"^\s+/\*\w+\*/\s+(?:@!?U?P\w+\s+)?((?:LD|ST)(?:[GLS]?)\b[\w.]*)", re.MULTILINE)
        found = entries(text, r"\.text\.(\w+):")
        return "\n".join(" ".join([entry, *pattern.findall(code)]) for entry, code in found.items())

    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    facts = (
        cuda.compile.source(name),
        architecture,
        cuda.compile.OPTIONS,
        nvrtc.getVersion(),
        version,
        inspect.getsource(machine_code),
    )
    return kept.text(kept.folder("nvrtc"), f"{name}-sm_{architecture}.accesses", facts, make).read_text()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", NAMES)
def test_machine_code_does_too(name: str, architecture: str) -> None:
    """LDG and STG, which need no look at which memory an address lies in, and 16 bytes a store; nothing local, which would be spilled."""
    pytest.importorskip("cupy", reason="NVRTC is reached through CuPy")
    program = disassembler()
    if program is None:
        pytest.skip("no disassembler: pip install nvidia-cuda-nvdisasm")
    found = [line.split() for line in machine_code(name, architecture, program).splitlines()]
    assert len(found) >= (2 if name == "locate_rows" else 3)
    for entry, *accesses in found:
        stores = [access for access in accesses if access.startswith("ST")]
        assert [access for access in accesses if access[:3] not in ("LDG", "STG")] == []
        assert stores
        if "vec16" in entry and name not in IN_PARTS:
            assert {access for access in stores if ".128" not in access} == set()
