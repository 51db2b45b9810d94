"""The translated kernels that a wheel brings: used where they fit, with the same bits, and never needed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fastpe._backends.host import compile, machine_code, translation, translations
from fastpe._tools import translate

# What each of these kernels makes of fixed arrays, printed as a hash, and whether Numba was needed for it.
PROGRAM = """
import hashlib, pathlib, sys
import ml_dtypes, numpy as np, fastpe
from fastpe._backends.host import translations
translations.ARCHIVE = pathlib.Path(sys.argv[1])
def x(*shape, dtype):
    return np.sin(np.arange(np.prod(shape)) * 0.7).reshape(shape).astype(dtype)
results = [
    fastpe.add_encoding(x(2, 9, 70, dtype="float32"), offset=100_003),
    fastpe.apply_rotary(x(2, 3, 9, 40, dtype="bfloat16"), offset=99),
    fastpe.embed(np.arange(9), x(9, 38, dtype="float16"), fastpe.Sinusoidal(), scale=3.3),
    fastpe.add_bias(x(1, 2, 9, 37, dtype="float64"), fastpe.ALiBi(2), causal=True),
]
print(hashlib.sha256(b"".join(np.ascontiguousarray(result).tobytes() for result in results)).hexdigest(), "numba" in sys.modules)
"""
KERNELS = (
    ("add_sinusoidal", "float32", 0),
    ("rotate", "bfloat16", 0),
    ("embed", "float16", None, None, "float16", "sinusoidal"),
    ("add_toeplitz", "float64"),
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("wheel") / "translations.zip"
    translate.make(path, KERNELS)
    return path


def first_calls(archive: Path, folder: Path, **environment: str) -> list[str]:
    """What the program says, of a process that finds no machine code."""
    environment = {**os.environ, "FASTPE_CACHE_DIR": str(folder), **environment}
    run = subprocess.run([sys.executable, "-c", PROGRAM, archive], env=environment, capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run.stdout.split()


@pytest.fixture(scope="module")
def expected():
    """The hash of what Numba translates here, now or for an earlier test: a checkout has no archive."""
    return first_calls(Path("nowhere"), Path(os.environ["FASTPE_CACHE_DIR"]))[0]


def test_a_first_call_needs_no_numba_and_has_the_same_bits(archive, expected, tmp_path):
    assert first_calls(archive, tmp_path) == [expected, "False"]
    assert len([*(tmp_path / "numba").iterdir()]) == len(KERNELS), "they are kept as machine code"


FORCED_SIZES = (
    "near=0, ahead=0, block=64, shared=64, angles=64, summed=64, streamed=64, chunk=64, largest_chunk=64, helper=64, stream_above=0",
    "near=1, ahead=1M, block=1M, shared=1M, angles=1M, summed=1M, streamed=1M, chunk=64M, largest_chunk=64M, helper=1G, stream_above=1G",
)
PROCESSORS = {
    "x86-64-v3": ("avx2", "bmi2", "fma", "movbe"),
    "znver3": ("avx2", "bmi2", "fma", "clzero", "vaes", "sse4a"),
    "skylake-avx512": ("avx512f", "avx512dq", "avx512vl", "avx512bw", "clwb", "adx"),
    "znver4": ("avx512f", "avx512dq", "avx512bf16", "avx512vbmi2", "gfni", "sse4a"),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_other_processors_get_the_same_bits(archive, expected, tmp_path, name):
    has = machine_code.llvm.get_host_cpu_features()
    if not all(has.get(feature) for feature in PROCESSORS[name]):
        pytest.skip(f"this processor cannot run what is compiled for {name}")
    features = ",".join(f"+{feature}" for feature in ("f16c", *PROCESSORS[name]))
    settings = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    assert first_calls(archive, tmp_path, **settings) == [expected, "False"]
    for sizes in FORCED_SIZES:
        assert first_calls(archive, tmp_path, **settings, FASTPE_TUNING=sizes) == [expected, "False"], sizes


def test_the_sizes_of_the_processor_change_no_bit():
    """Every operation, cut into the smallest pieces and into one, prefetched far ahead and not, through the caches and past them."""
    import digest

    for sizes in FORCED_SIZES:
        command = [sys.executable, digest.__file__]
        done = subprocess.run(command, env={**os.environ, "FASTPE_TUNING": sizes}, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == digest.digest(), sizes


@pytest.mark.parametrize("part", ["all", "half", "content", "sources", "llvm"])
def test_what_does_not_fit_is_translated_here(archive, part, tmp_path, monkeypatch):
    content, found = archive.read_bytes(), translations.find("add_toeplitz", ("float64",), "")
    assert found is None, "a checkout has no archive"
    monkeypatch.setattr(translations, "ARCHIVE", tmp_path / "translations.zip")
    translations.ARCHIVE.write_bytes(content)
    assert translations.find("add_toeplitz", ("float64",), "") is not None
    assert translations.find("add_toeplitz", ("float32",), "") is None
    if part in ("sources", "llvm"):
        with zipfile.ZipFile(translations.ARCHIVE, "a") as changed:
            sources, version = changed.comment.split()
            changed.comment = b"0" * 64 + b" " + version if part == "sources" else sources + b" %d" % (int(version) + 1)
    else:
        with zipfile.ZipFile(translations.ARCHIVE) as whole:
            at = whole.getinfo("add_toeplitz-float64").header_offset + 1000
        damaged = {"all": b"", "half": content[: len(content) // 2], "content": content[:at] + b"~" * 9 + content[at + 9 :]}
        translations.ARCHIVE.write_bytes(damaged[part])
    assert translations.find("add_toeplitz", ("float64",), "") is None


def test_a_processor_that_does_not_convert_float16_gets_other_kernels(archive, monkeypatch):
    monkeypatch.setattr(translations, "ARCHIVE", archive)
    monkeypatch.setattr(machine_code.llvm, "get_process_triple", lambda: "x86_64-unknown-linux-gnu")
    assert translations.find(*KERNELS[2][:1], KERNELS[2][1:], "+sse4.2") is None
    assert translations.find(*KERNELS[2][:1], KERNELS[2][1:], "+sse4.2,+f16c") is not None


def test_what_llvm_cannot_read_is_translated_here(monkeypatch):
    monkeypatch.setattr(translations, "find", lambda *_: b"BC\xc0\xdeno bitcode")
    assert b"\x7fELF" in compile._compile("add_toeplitz", "float64")[:4] or sys.platform != "linux"


def test_the_archive_is_always_the_same(archive, tmp_path):
    translate.make(tmp_path / "again.zip", KERNELS)
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


def test_usual_kernels_are_those_of_warmup():
    """What one element type's calls need, in each mode."""
    usual = {*translate.usual()}
    for dtype in ("float32", "bfloat16"):
        assert {
            ("add_sinusoidal", dtype, 2),
            ("rotate", dtype, 1),
            ("rotate_table", dtype, 0),
            ("add_table", dtype, dtype),
        } <= usual
        assert ("embed", dtype, dtype, None, dtype, "sinusoidal") in usual
    assert len(usual) == len([*translate.usual()])


def test_a_translation_depends_on_no_processor():
    """Its functions call what machine code gets from the processor at hand."""
    module = machine_code.llvm.parse_bitcode(translation.translate("add_toeplitz", "float32"))
    declared = {function.name for function in module.functions if function.is_declaration}
    assert {"fastpe_pause", "fastpe_enter_float_mode", "fastpe_leave_float_mode"} <= declared
    assert not [name for name in declared if name.startswith(("llvm.x86", "llvm.aarch64"))]


def test_numba_compiles_other_functions_as_before():
    """Also those that share a helper with a kernel, which was translated and never loaded."""
    code = """if True:
        import numba
        from fastpe._backends.host import translation
        translation.translate("add_toeplitz", "float32")
        @numba.njit
        def other(a, b):
            return max(a, b) * 100 + min(a, b) * 10 + abs(a - b) + a // b
        assert other(3, 7) == 734 and other(7, 3) == 736, other(7, 3)
        assert numba.vectorize(["int64(int64, int64)"])(lambda a, b: max(a, b))(3, 7) == 7
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)
