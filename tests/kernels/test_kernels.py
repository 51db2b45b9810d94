"""The kernel files: each written twice with one name, one argument block and one set of constants; and the compile gate."""

from __future__ import annotations

import ctypes
import importlib
import re
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import cases
import fastpe.kernels
import fit_polynomials
import kept
import kept_nvrtc
import ml_dtypes
import numba
import numpy as np
import pytest
from fastpe.kernels import (
    abi,
    add_sinusoidal,
    add_table,
    add_toeplitz,
    arithmetic,
    embed,
    locate_rows,
    rotate,
    rotate_table,
    scheduler,
)
from numba import types

from fastpe._arrays.dtypes import ELEMENT_TYPES
from fastpe._backends import base, cuda
from fastpe._backends.host import compile, machine_code
from fastpe._tools import translate

KERNELS = Path(fastpe.kernels.__file__).parent
CUDA_FILES = sorted(path.stem for path in KERNELS.glob("*.cu"))
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")


def text(file):
    return (KERNELS / file).read_text()


# ---- twins -------------------------------------------------------------------------------------------------------------------


def test_every_kernel_has_its_twin():
    assert CUDA_FILES == ["add_sinusoidal", "add_table", "add_toeplitz", "embed", "locate_rows", "rotate", "rotate_table"]
    shared = {path.stem for path in KERNELS.glob("*.cuh")}
    assert shared == {"arithmetic", "rotate_pairs", "sinusoidal_rows", "gather_sum"}
    twins = {*CUDA_FILES, *shared - {"sinusoidal_rows"}}
    # What a CUDA kernel needs in no file of its own.
    loops = {f"{name}_loops" for name in ("add_sinusoidal", "add_toeplitz", "gather_sum", "rotate")}
    assert {path.stem for path in KERNELS.glob("*.py")} == {"__init__", *twins, *loops, "abi", "loops", "scheduler", "simd"}


def test_entry_points_carry_their_files_name():
    for name in CUDA_FILES:
        source = text(f"{name}.cu")
        entries = re.findall(r"__launch_bounds__\([\d, ]+\)\s*\\?\s*(\w+?)(?:##|\()", source)
        entries += re.findall(r"^(?:ALL_)?KERNELS\((\w+)\)", source, re.M)
        assert entries
        assert all(entry.startswith(name) for entry in entries), entries
    built = add_sinusoidal.build("float16", abi.IN_PLACE)
    assert built.__name__ == "add_sinusoidal_f16_in_place"
    assert rotate.build("bfloat16", abi.OUT_OF_PLACE).__name__ == "rotate_bf16_out"
    assert embed.build("int8", None, None, "float16", "sinusoidal").__name__ == "embed_int8_none_none_float16_sinusoidal"
    assert add_table.build("float32", "bfloat16").__name__ == "add_table_float32_none_bfloat16_float32_learned"
    assert rotate_table.build("float64", abi.IN_PLACE).__name__ == "rotate_table_f64_in_place"
    assert add_toeplitz.build("bfloat16").__name__ == "add_toeplitz_bf16"
    rows = [name for name in vars(locate_rows) if name.startswith("locate_rows")]
    assert sorted(rows) == sorted(re.findall(r"(locate_rows_\w+)\(const", text("locate_rows.cu")))


# ---- layouts -----------------------------------------------------------------------------------------------------------------


def test_layouts_are_what_nvrtc_compiled(nvrtc):
    """Size and offsets of every struct as the compiler of CUDA sees them, read from a kernel that writes them."""
    from ptx import Memory, Module

    declarations = "".join(layout.declaration for layout in abi.LAYOUTS.values())
    for layout in abi.LAYOUTS.values():
        members = [re.sub("^([qk])_", r"\1.", name) if "q" in vars(layout.index) else name for name, _ in layout.fields]
        stores = "".join(f"out[{i}] = __builtin_offsetof({layout.name}, {member});" for i, member in enumerate(members, 1))
        kernel = f'extern "C" __global__ void offsets(i64* out) {{ out[0] = sizeof({layout.name}); {stores} }}'
        program = nvrtc.createProgram(f"typedef long long i64;\n{declarations}{kernel}", "offsets.cu", (), ())
        nvrtc.compileProgram(program, ("-arch=compute_75", "--std=c++17", "-diag-suppress=1427"))
        out, memory = np.zeros(1 + len(members), np.int64), Memory()
        address = memory.add(out, name="out")
        Module(nvrtc.getPTX(program).decode()).entries["offsets"].launch(memory, (1,), (1,), [struct.pack("<Q", address)])
        indices = [vars(layout.index)[name] for name, _ in layout.fields]
        assert out.tolist() == [layout.nbytes, *(8 * index for index in indices)], layout.name
        assert indices == list(range(layout.words))


def test_layouts_pack_by_name():
    assert abi.ADD_TOEPLITZ.index.x == 0
    names = [name for name, _ in abi.GATHER_SUM.fields]
    assert names[: abi.ADD_SINUSOIDAL.words] == [name for name, _ in abi.ADD_SINUSOIDAL.fields]
    assert abi.ROTATE.index.k_heads - abi.ROTATE.index.k == abi.ROTATED.index.heads
    words = np.frombuffer(abi.ROTATE.pack({"q_out": 3, "centre": -1, "factor": 0.5}), np.int64)
    assert np.flatnonzero(words).tolist() == [abi.ROTATE.index.q_out, abi.ROTATE.index.centre, abi.ROTATE.index.factor]
    assert words.view(np.float64)[abi.ROTATE.index.factor] == 0.5
    element = abi.ROTATE.element({"q_out": 3, "factor": 0.5})
    assert (element["q_out"][0], element["factor"][0], element.nbytes) == (3, 0.5, abi.ROTATE.nbytes)
    with pytest.raises(TypeError, match=r"Rotate has no field \['widht'\]"):
        abi.ROTATE.pack({"widht": 1})


def test_counters_are_on_cache_lines_of_their_own():
    index = vars(abi.CONTROL.index)
    fields = {name: index[name] * abi.WORD_BYTES // abi.LINE_BYTES for name, _ in abi.CONTROL.fields}
    ranges = [f"range_{number}_claimed" for number in range(abi.MOST_THREADS)]
    for counter in ("completed_chunks", "left", *ranges):
        others = {name for name in fields if fields[name] == fields[counter]} - {counter}
        assert others <= {counter.replace("claimed", "slot_is_taken")}
    assert len({fields[name] for name in ranges}) == abi.MOST_THREADS
    assert abi.CHUNK_RANGE.nbytes % abi.LINE_BYTES == abi.SPIN_SLOT.nbytes % abi.LINE_BYTES == 0


def test_element_types_agree():
    """The library's record of an element type and the kernels'."""
    assert ELEMENT_TYPES.keys() == arithmetic.ELEMENTS.keys()
    for name, element in arithmetic.ELEMENTS.items():
        record = ELEMENT_TYPES[name]
        assert (record.suffix, record.itemsize, record.arithmetic) == (
            element.suffix,
            element.itemsize,
            element.number.__name__,
        )
        assert record.rounding == float(ml_dtypes.finfo(cases.DTYPES[name]).eps) / 2


def test_backends_offer_what_is_documented():
    for name, file in base.BACKENDS.items():
        module = importlib.import_module(file)
        members = [member for member in vars(base.Backend) if not member.startswith("_")]
        assert len(members) == 9
        assert all(callable(getattr(module, member)) for member in members), name
    assert base.backend_on(None) is importlib.import_module("fastpe._backends.host.launch")


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
    """Numba's runtime would do it with Python's allocator, in a thread without the GIL (`scheduler.py` says why that must not be)."""
    text = text_of(module, dtype)
    assert "atomicrmw" in text
    assert "NRT_" not in text


def text_of(module, dtype):
    """The kernel in LLVM's language, with what it calls; kept, as translating takes seconds."""
    name = module.__name__.rpartition(".")[2]
    variant = () if module is add_toeplitz else (add_sinusoidal.OUT_OF_PLACE,)

    def make():
        return str(machine_code.llvm.parse_bitcode(translate.reduced((name, dtype, *variant))))

    return kept.text(kept.folder("llvm"), f"{name}-{dtype}.ll", compile._key(name, (dtype,)), make).read_text()


def test_the_folder_is_no_package_of_that_name():
    """In a clone's root, Hugging Face's library finds it, and must not take it for the package that it looks for."""
    pytest.importorskip("transformers")
    code = "from transformers import LlamaForCausalLM, utils; import kernels; print(kernels.__version__, utils.is_kernels_available())"
    run = subprocess.run([sys.executable, "-c", code], cwd=KERNELS.parent, capture_output=True, text=True)
    assert run.stdout.split() == ["0", "False"], run.stderr


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
        assert all(re.fullmatch(r'"\w+\.(cuh|abi)"', file) for file in re.findall(r"#include\s+(\S+)", code))
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
    ("int8", "float32", "float32", "bfloat16", True, ("int32", "int32", "float16", "int32"), 128),
    ("bfloat16", None, None, "float8_e4m3fn", True),
    ("float64", "float32", None, "float8_e5m2", True),
]


@pytest.mark.parametrize("architecture", ["75", "90", "100", "120"])
@pytest.mark.parametrize("types", SUMS)
def test_compile_gate_of_gather_sums(nvrtc, types, architecture):
    """Of the combinations of element types some that need the most, and the most common ones."""
    _, log = kept_nvrtc.compile_source("embed", f"sm_{architecture}", "--ptxas-options=-v", *cuda.gather_sum_options(*types))
    assert faults(log) == []
    assert len(re.findall(r"Used \d+ registers", log)) == 3


@pytest.mark.parametrize("architecture", ["75", "90", "120"])
@pytest.mark.parametrize("name", ["add_sinusoidal", "rotate", "rotate_table", "embed", "add_table"])
def test_compile_gate_of_kernels_that_count(nvrtc, name, architecture):
    """Those for a mask, which have barriers; the others have none."""
    options = cuda.gather_sum_options("float32", None, None, "float32", True) if name == "embed" else ()
    _, log = kept_nvrtc.compile_source(name, f"sm_{architecture}", "--ptxas-options=-v", *options, *cuda.launch.COUNTED)
    assert faults(log) == []
    ptx, counted = (
        kept_nvrtc.compile_source(name, f"compute_{architecture}", *options, *more)[0] for more in ((), cuda.launch.COUNTED)
    )
    assert (len(re.findall(r"\bbar\.", ptx)), len(re.findall(r"bar\.red\.popc", counted)) > 0) == (0, True)


@pytest.mark.parametrize("architecture", ["75", "90", "120"])
@pytest.mark.parametrize("name", ["rotate", "rotate_table"])
def test_compile_gate_of_rotations_to_float8(nvrtc, name, architecture):
    _, log = kept_nvrtc.compile_source(name, f"sm_{architecture}", "--ptxas-options=-v", "-DOUT=e4m3")
    assert faults(log) == []
    assert len(re.findall(r"Used \d+ registers", log)) == 12


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
    monkeypatch.setattr(cuda.compile, "source", lambda name: SPILLING)
    _, log = cuda.compile_source("spills", "sm_90", "--ptxas-options=-v")
    assert faults(log)
    monkeypatch.setattr(cuda.compile, "source", lambda name: 'extern "C" __global__ void warns() { int unused; }')
    _, log = cuda.compile_source("warns", "sm_90", "--ptxas-options=-v")
    assert faults(log)
    monkeypatch.setattr(cuda.compile, "source", lambda name: "this is not CUDA")
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


def test_a_helper_whose_time_is_over_while_it_is_called_takes_the_call():
    """Between reserving a slot and calling, a caller may lose the processor for longer than a helper waits."""
    words = np.zeros(abi.SPIN_SLOT.words * abi.SPIN_SLOTS, np.int64)
    state, found = words[abi.SPIN_SLOT.index.state :], []
    pause = ctypes.cast(
        ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p
    )  # any function: machine_code.py puts in the processor's
    machine_code.llvm.add_symbol(abi.PAUSE, pause.value)

    @numba.njit(types.int64(types.int64), nogil=True)
    def wait(slots):
        return scheduler.wait_in_slot(slots, 0)

    assert wait(words.ctypes.data) == 0  # nobody called
    for _ in range(1000):  # a helper waits for 0.3 ms: this thread may come too late to reserve its slot
        helper = threading.Thread(target=lambda: found.append(wait(words.ctypes.data)))
        helper.start()
        while state[0] != abi.WAITS and helper.is_alive():
            pass
        state[0] = abi.RESERVED
        time.sleep(0.05)
        is_late = not helper.is_alive()
        state[0] = abi.FREE if is_late else abi.CALLED
        helper.join(30)
        assert not helper.is_alive()
        if not is_late:
            break
    assert found[-1] == words.ctypes.data
