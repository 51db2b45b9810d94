"""The kernel files: each written twice with one name, one argument block and one set of constants; and the compile gate."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import fastpe.kernels
import fit_polynomials
import kept
import kept_nvrtc
import numba
import pytest
from fastpe.kernels import (
    add_sinusoidal,
    add_table,
    add_toeplitz,
    arithmetic,
    blocks,
    embed,
    locate_rows,
    rotate,
    rotate_pairs,
    rotate_table,
)

from fastpe._backends import cuda
from fastpe._backends import host as numba_backend

KERNELS = Path(fastpe.kernels.__file__).parent
CUDA_FILES = sorted(path.stem for path in KERNELS.glob("*.cu"))
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")


def text(file):
    return (KERNELS / file).read_text()


# ---- twins -------------------------------------------------------------------------------------------------------------------


def test_every_kernel_has_its_twin():
    assert CUDA_FILES == ["add_sinusoidal", "add_table", "add_toeplitz", "embed", "locate_rows", "rotate", "rotate_table"]
    shared = {path.stem for path in KERNELS.glob("*.cuh")}
    assert shared == {"arithmetic", "rotate_pairs", "rows", "sum_rows"}
    for name in [*CUDA_FILES, *shared]:
        assert (KERNELS / f"{name}.py").exists()
    of_the_cpu = {"blocks", "lanes", "sharing", "sums"}  # what a CUDA kernel needs in no file of its own
    assert {path.stem for path in KERNELS.glob("*.py")} == {"__init__", *CUDA_FILES, *shared, *of_the_cpu}


def test_entry_points_carry_their_files_name():
    for name in CUDA_FILES:
        source = text(f"{name}.cu")
        entries = re.findall(r"__launch_bounds__\([\d, ]+\)\s*\\?\s*(\w+?)(?:##|\()", source)
        entries += re.findall(r"^(?:ALL_)?KERNELS\((\w+)\)", source, re.M)
        assert entries
        assert all(entry.startswith(name) for entry in entries), entries
    built = add_sinusoidal.build("float16", add_sinusoidal.IN_PLACE)
    assert built.__name__ == "add_sinusoidal_f16_in_place"
    assert rotate.build("bfloat16", rotate_pairs.OUT_OF_PLACE).__name__ == "rotate_bf16_out"
    assert embed.build("int8", None, None, "float16", "sinusoidal").__name__ == "embed_int8_none_none_float16_sinusoidal"
    assert add_table.build("float32", "bfloat16").__name__ == "add_table_float32_none_bfloat16_float32_learned"
    assert rotate_table.build("float64", rotate_pairs.IN_PLACE).__name__ == "rotate_table_f64_in_place"
    assert add_toeplitz.build("bfloat16").__name__ == "add_toeplitz_bf16"
    rows = [name for name in vars(locate_rows) if name.startswith("locate_rows")]
    assert sorted(rows) == sorted(re.findall(r"(locate_rows_\w+)\(const", text("locate_rows.cu")))


def struct_fields(name, struct="Arguments"):
    source = cuda.source(name)
    body = re.search(rf"struct {struct} \{{(.*?)\}};", source, re.S)
    if body is None:  # another name for it
        return struct_fields(name, re.search(rf"typedef (\w+) {struct};", source)[1])
    found = []
    for kind, field in re.findall(r"^ +(\w+) (\w+);", body[1], re.M):
        found += [(kind, field)] if kind in ("i64", "double") else struct_fields(name, kind)
    return found


def test_argument_blocks_agree():
    """The struct in the .cu, and what both backends pack: same fields, same order; and the places by which Numba finds them."""
    packers = {"add_sinusoidal": numba_backend._BLOCK, **numba_backend._ROTATE_BLOCKS}
    packers |= dict.fromkeys(("embed", "add_table"), numba_backend._SUM_BLOCK)
    packers["add_toeplitz"] = numba_backend._TOEPLITZ_BLOCK
    prefixes = {"rotate": "R_", "rotate_table": "R_", "add_toeplitz": "T_"}
    for name, expected in (
        ("add_sinusoidal", blocks.ADD_SINUSOIDAL),
        ("rotate", blocks.ROTATE),
        ("rotate_table", blocks.ROTATE_TABLE),
        ("embed", blocks.SUM_ROWS),
        ("add_table", blocks.SUM_ROWS),
        ("add_toeplitz", blocks.ADD_TOEPLITZ),
    ):
        fields = struct_fields(name)
        assert tuple(field for _, field in fields) == expected
        kinds = "".join({"i64": "q", "double": "d"}[kind] for kind, _ in fields)
        assert re.sub(r"(\d+)(\w)", lambda run: int(run[1]) * run[2], packers[name].format) == f"={kinds}"
        places = {field: getattr(blocks, f"{prefixes.get(name, '')}{field.upper()}", None) for field in expected}
        for place, field in enumerate(expected):
            assert places[field] in (place, None), field
    assert None not in [getattr(blocks, field.upper(), None) for field in blocks.SUM_ROWS]
    assert None not in [getattr(blocks, f"T_{field.upper()}", None) for field in blocks.ADD_TOEPLITZ]
    q, k = (
        blocks.ROTATE[start : start + blocks.R_ARRAY_WORDS]
        for start in (blocks.R_ARRAYS, blocks.R_ARRAYS + blocks.R_ARRAY_WORDS)
    )
    assert [name.replace("q", "k", 1) for name in q] == list(k)
    for place, field in ((blocks.ARRAY, ""), (blocks.ARRAY_OUT, "_out"), (blocks.ARRAY_HEADS, "_heads")):
        assert q[place] == f"q{field}"
    assert q[blocks.ARRAY_STRIDES] == "q_batch_stride"
    assert q[blocks.ARRAY_OUT_STRIDES] == "q_out_batch_stride"
    assert tuple(name for _, name in struct_fields("locate_rows")) == cuda._LOCATE_ROWS


def test_control_block_has_a_place_for_every_word():
    source = text("blocks.py").split("# ---- the control block")[1].split("# ---- seats")[0]
    names = [name for line in re.findall(r"^([A-Z_, ]+) =", source, re.M) for name in line.split(", ")]
    places = {name: getattr(blocks, name) for name in names if not re.search("SHARE|ROOMS$|CLAIMED|IS_TAKEN|CONTROL", name)}
    places["ROOMS"] = blocks.ROOMS
    assert len(places) > 16
    assert len(set(places.values())) == len(places)
    assert max(places.values()) < blocks.SHARES
    lines = {name: place * 8 // blocks.LINE_BYTES for name, place in places.items()}
    assert [name for name in places if lines[name] in (lines["FINISHED_CHUNKS"], lines["LEFT"])] == ["FINISHED_CHUNKS", "LEFT"]
    assert blocks.SHARE_WORDS * 8 % blocks.LINE_BYTES == 0
    assert blocks.SHARES + blocks.MOST_ROOMS * blocks.SHARE_WORDS == blocks.CONTROL_WORDS


def test_modes_agree():
    modes = (numba_backend._IN_PLACE, numba_backend._OUT_OF_PLACE, numba_backend._ALONE)
    assert modes == (add_sinusoidal.IN_PLACE, add_sinusoidal.OUT_OF_PLACE, add_sinusoidal.ALONE)
    assert modes[:2] == (rotate_pairs.IN_PLACE, rotate_pairs.OUT_OF_PLACE)


@pytest.mark.parametrize(
    ("module", "dtype"),
    [
        (add_sinusoidal, "bfloat16"),
        (add_sinusoidal, "float64"),
        (rotate, "float16"),
        (rotate_table, "float32"),
        (add_toeplitz, "bfloat16"),
    ],
)
def test_kernels_allocate_nothing(module, dtype):
    """Numba's runtime would do it with Python's allocator, in a thread without the GIL (`sharing.py` says what came of it)."""
    ours = functions_of(module, dtype)
    assert any("atomicrmw" in text for text in ours.values())
    assert not [name for name, text in ours.items() if "NRT_" in text]


def functions_of(module, dtype):
    """The kernel's functions in LLVM's language by name, without the ways in from Python and C; kept, as compiling takes seconds."""

    def make():
        variant = () if module is add_toeplitz else (add_sinusoidal.OUT_OF_PLACE,)
        kernel = numba.njit(module.SIGNATURE, nogil=True, error_model="numpy")(module.build(dtype, *variant))
        (source,) = kernel.inspect_llvm().values()
        functions = {text.split("@")[1].split("(")[0]: text for text in re.findall(r"^define .*?^\}", source, re.M | re.S)}
        return json.dumps({name: text for name, text in functions.items() if name.startswith("_ZN6fastpe")})

    name = module.__name__.rpartition(".")[2]
    facts = numba_backend._key(name, (dtype,))
    return json.loads(kept.text(kept.folder("llvm"), f"{name}-{dtype}.json", facts, make).read_text())


def test_kernels_is_no_top_level_package():
    import subprocess
    import sys

    run = subprocess.run([sys.executable, "-c", "import kernels"], cwd=KERNELS.parent, capture_output=True, text=True)
    if KERNELS.name == "kernels" and (KERNELS / "__init__.py").exists():
        assert run.returncode != 0
        assert "fastpe.kernels" in run.stderr or "No module named" in run.stderr


# ---- constants ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_polynomials_are_the_fitted_ones(dtype):
    """Refit by Remez; a unit in the last place of slack, for another version of the arithmetic library."""
    fitted = fit_polynomials.constants(dtype)
    fitted = {
        "SIN_HIGH": fitted["SIN_HIGH"],
        "SIN": (*fitted["SIN_LOW"], *fitted["SIN"]),
        "COS": (1.0, *fitted["COS"]),
        "EXP2": fitted["EXP2"],
    }
    bits = "32" if dtype == "float32" else "64"
    for name, values in fitted.items():
        ours = getattr(arithmetic, f"{name}_{bits}")
        ours = tuple(float(value) for value in (ours if isinstance(ours, tuple) else (ours,)))
        assert len(ours) == len(values)
        for got, expected in zip(ours, values, strict=True):
            assert abs(_ordinal(got, dtype) - _ordinal(expected, dtype)) <= 1, (name, got, expected)


def _ordinal(value, dtype):
    """Position of a float among the floats of its type."""
    kind, unsigned = ("<f", "<I") if dtype == "float32" else ("<d", "<Q")
    return struct.unpack(unsigned, struct.pack(kind, value))[0]


def test_constants_are_the_same_in_both_languages():
    here = []
    for bits in ("32", "64"):
        here += [getattr(arithmetic, f"SIN_HIGH_{bits}"), *getattr(arithmetic, f"SIN_{bits}")]
        here += getattr(arithmetic, f"COS_{bits}")[1:]  # the first is 1, which is written 1
        here += getattr(arithmetic, f"EXP2_{bits}")[1:]
    literals = re.findall(r"-?0x1\.[0-9a-f]+p[+-]\d+f?", text("arithmetic.cuh"))
    there = [float.fromhex(literal.rstrip("f")) for literal in literals]
    scales = {2.0**-32, 2.0**-64}
    assert sorted(value for value in there if value not in scales) == sorted(here)
    assert scales <= set(there)


# ---- CUDA house rules and the compile gate -----------------------------------------------------------------------------------


def test_cuda_house_rules():
    """No headers, no fast or library functions, no operator that the compiler may contract."""
    for name in [f"{name}.cu" for name in CUDA_FILES] + [path.name for path in KERNELS.glob("*.cuh")]:
        code = re.sub(r"//[^\n]*", "", text(name))
        assert all(re.fullmatch(r'"\w+\.cuh"', file) for file in re.findall(r"#include\s+(\S+)", code))
        assert not re.search(r"\b(__sinf|__cosf|__sincosf|sinf?|cosf?|sincosf?|sincospi|powf?|expf?|fdividef)\s*\(", code)
        assert not re.search(r"__half|__nv_bfloat16|__shared__|atomic", code)


@pytest.fixture(scope="module")
def nvrtc():
    pytest.importorskip("cupy", reason="NVRTC is reached through CuPy")
    from cupy.cuda import nvrtc

    return nvrtc


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", CUDA_FILES)
def test_compile_gate(nvrtc, name, architecture):
    """Every kernel for every architecture: no warning, no stack frame, no spilled register."""
    _, log = kept_nvrtc.compile_source(name, f"sm_{architecture}", "--ptxas-options=-v")
    assert faults(log) == []
    assert len(re.findall("Compiling entry function", log)) == len(re.findall(r"Used \d+ registers", log)) > 0


SUMS = [
    ("float32", None, None, "float32", True),
    ("bfloat16", None, None, "bfloat16", True),
    ("int8", None, None, "float16", True),
    ("float64", "float32", None, "bfloat16", True),
    ("bfloat16", "bfloat16", "bfloat16", "bfloat16", False),
    ("uint8", "float32", "float32", "float64", False),
]


@pytest.mark.parametrize("architecture", ["75", "90", "100", "120"])
@pytest.mark.parametrize("types", SUMS)
def test_compile_gate_of_sums(nvrtc, types, architecture):
    """Of the combinations of element types some that need the most, and the most common ones."""
    _, log = kept_nvrtc.compile_source("embed", f"sm_{architecture}", "--ptxas-options=-v", *cuda.sum_options(*types))
    assert faults(log) == []
    assert len(re.findall(r"Used \d+ registers", log)) == 3


def faults(log):
    warnings = [line for line in log.splitlines() if "warning" in line.lower()]
    uses = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    return warnings + [use for use in uses if use != ("0", "0", "0")]


SPILLING = """
extern "C" __global__ void spills(float* x, int n) {
    float v[64];
    for (int i = 0; i < 64; i++) v[i] = x[i];
    for (int i = 0; i < n; i++) v[(int)x[i] & 63] += v[(int)x[i + n] & 63];
    for (int i = 0; i < 64; i++) x[i] = v[i];
}
"""


def test_the_gate_catches_faults(nvrtc, monkeypatch):
    monkeypatch.setattr(cuda, "source", lambda name: SPILLING)
    _, log = cuda.compile_source("spills", "sm_90", "--ptxas-options=-v")
    assert faults(log)
    monkeypatch.setattr(cuda, "source", lambda name: 'extern "C" __global__ void warns() { int unused; }')
    _, log = cuda.compile_source("warns", "sm_90", "--ptxas-options=-v")
    assert faults(log)
    monkeypatch.setattr(cuda, "source", lambda name: "this is not CUDA")
    with pytest.raises(RuntimeError, match=r"broken\.cu does not compile for sm_90"):
        cuda.compile_source("broken", "sm_90")


def test_source_is_one_string_without_includes():
    for name in CUDA_FILES:
        source = cuda.source(name)
        assert "#include" not in source
        assert source.count("#define DEVICE ") == 1


def test_subnormals_are_not_flushed(nvrtc):
    """CuPy's own compiler would append -ftz=true."""
    ptx, _ = cuda.compile_source("add_sinusoidal", "compute_90")
    assert b".ftz" not in (ptx if isinstance(ptx, bytes) else ptx.encode())
