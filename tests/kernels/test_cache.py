"""The compiled kernels on disk: found again, never wrong, never needed, and never another user's."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cases
import numpy as np
import pytest
from fastpe.kernels import abi

import fastpe
from fastpe._backends import disk_cache as cache
from fastpe._backends.host import compile, machine_code, translation, tuning
from fastpe._tools import cli

# Adds to a fixed array of every element type named, prints the bytes and whether a kernel was compiled for it.
PROGRAM = """
import sys, numpy, fastpe
from fastpe._backends.host import compile as backend
compiled, make = [], backend._compile
backend._compile = lambda *arguments: (compiled.append(arguments), make(*arguments))[1]
for dtype in sys.argv[1:]:
    import ml_dtypes
    x = numpy.linspace(-2, 2, 3 * 40 * 34).reshape(3, 40, 34).astype(dtype)
    fastpe.add_encoding(x, offset=1_000_003, input_scale=3.0)
    print(x.tobytes().hex())
assert ("numba" in sys.modules) == bool(compiled), "loading takes no Numba"
print(f"compiled-{len(compiled)}" if compiled else "loaded")
"""


def start(place: Path | str | None, *dtypes: str, changes: dict[str, str | None] | None = None, before: str = ""):
    """Run the program with a cache folder; return the results and whether it compiled, which is quick without optimisation."""
    environment = dict(os.environ) | {"FASTPE_CACHE_DIR": str(place), "NUMBA_OPT": "0"}
    for name, value in (changes or {}).items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    run = subprocess.run(
        [sys.executable, "-c", before + PROGRAM, *(dtypes or ("float32",))],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    *results, how = run.stdout.split()
    return results, how


def expected(dtype: str = "float32") -> str:
    x = np.linspace(-2, 2, 3 * 40 * 34).reshape(3, 40, 34).astype(cases.DTYPES[dtype])
    return fastpe.add_encoding(x, offset=1_000_003, input_scale=3.0).tobytes().hex()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The file of each element type's kernel, compiled by a process of its own."""
    place, files = tmp_path_factory.mktemp("compiled"), {}
    for dtype in cases.DTYPES:
        assert start(place, dtype) == ([expected(dtype)], "compiled-1")
        (files[dtype],) = {*(place / "numba").iterdir()} - {*files.values()}
    return files


@pytest.fixture
def files(compiled, tmp_path):
    """The same in a cache folder that is the test's own."""
    place = tmp_path / "numba"
    place.mkdir(mode=0o700)
    return {dtype: Path(shutil.copy(file, place)) for dtype, file in compiled.items()}


@pytest.fixture
def file(files):
    """One of them alone."""
    for dtype, path in files.items():
        if dtype != "float32":
            path.unlink()
    return files["float32"]


def test_the_second_process_compiles_nothing(tmp_path, file):
    assert start(tmp_path) == ([expected()], "loaded")
    assert list((tmp_path / "numba").iterdir()) == [file]


def test_damaged_files_are_replaced(tmp_path, files):
    whole = files["float64"].read_bytes()
    damaged = {"float16": b"", "bfloat16": b"short", "float64": whole[:-1] + bytes([whole[-1] ^ 1])}
    for dtype, content in damaged.items():
        files[dtype].write_bytes(content)
    results = [expected(dtype) for dtype in files]
    assert start(tmp_path, *files) == (results, "compiled-3")
    assert start(tmp_path, *files) == (results, "loaded")


def test_whole_files_that_are_no_kernels_are_not_fatal(tmp_path, monkeypatch, files):
    """LLVM would end the process, or jump to address 0."""
    monkeypatch.setenv("FASTPE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("NUMBA_OPT", "0")  # as in the process
    keys = {dtype: compile._key("add_sinusoidal", (dtype, 0)) for dtype in files}
    whole = cache.load(cache.folder("numba"), keys["float32"])
    nothing = machine_code.llvm.parse_assembly("define i32 @other() { ret i32 0 }")
    no_entry = machine_code.target_machine().emit_object(nothing)
    for key, content in zip(keys.values(), (b"", b"no object file", whole[: len(whole) // 2], no_entry), strict=True):
        assert cache.store(cache.folder("numba"), key, content)
        with pytest.raises(ValueError, match=r"^fastpe: the machine code of k is no object file with an entry\.$"):
            machine_code.load("k", content)
    results = [expected(dtype) for dtype in files]
    assert start(tmp_path, *files) == (results, "compiled-4")
    assert start(tmp_path, *files) == (results, "loaded")


def test_x_goes_to_the_first_level_or_the_second(monkeypatch):
    """Machine code says where, so it is kept for each."""
    sizes, bitcode = tuning.here(), translation.translate("add_sinusoidal", "float32", abi.IN_PLACE)
    found = {}
    for near, level in ((0, "prefetcht1"), (1, "prefetcht0")):
        monkeypatch.setattr(tuning, "here", lambda near=near: sizes._replace(near=near))
        machine, module = machine_code.optimised(bitcode, *machine_code.processor())
        text = machine.emit_assembly(module)
        found[compile._key("add_sinusoidal", ("float32", abi.IN_PLACE))] = text
        if "x86_64" in module.triple:
            assert set(re.findall(r"prefetch\w+", text)) == {level}
    assert len(set(found.values())) == len(found) == 2


def test_a_kernel_calls_no_library():
    """LLVM ends a process that loads code which calls a function that is not there."""
    text = "define void @fastpe_plain(i64, i64, i64) {\n %a = call i32 @elsewhere()\n ret void\n}\ndeclare i32 @elsewhere()"
    bitcode = machine_code.llvm.parse_assembly(text).as_bitcode()
    wanted = r"^fastpe: a kernel must call no function of a library; this one calls \['elsewhere'\]\.$"
    with pytest.raises(RuntimeError, match=wanted):
        machine_code.emit(bitcode, machine_code.llvm.get_host_cpu_name(), "")


@pytest.mark.parametrize("arguments", [(), (1, 2), (1, 2, 3, 4), (1, 2, "3"), (1, None, 3), (2**64, 2, 3)], ids=repr)
def test_an_entry_checks_what_it_is_given(arguments):
    fastpe.add_encoding(np.zeros((1, 2, 8), np.float32))
    with pytest.raises((TypeError, OverflowError)):
        compile.kernel("add_sinusoidal", "float32", 0)(*arguments)


def test_a_kernel_is_made_of_the_bytes_that_were_checked(tmp_path, file, monkeypatch):
    """And not of what the file says by then."""
    before = "from fastpe._backends import disk_cache\nload = disk_cache.load\ndef late(folder, key):\n content = load(folder, key)\n"
    before += f" open({str(file)!r}, 'wb').write(b'other')\n return content\ndisk_cache.load = late\n"
    assert start(tmp_path, before=before) == ([expected()], "loaded")
    assert file.read_bytes() == b"other"


def test_four_processes_start_at_once(tmp_path):
    with ThreadPoolExecutor(4) as executor:
        results = list(executor.map(lambda _: start(tmp_path), range(4)))
    assert [values for values, _ in results] == [[expected()]] * 4
    assert start(tmp_path) == ([expected()], "loaded")
    assert [path for path in (tmp_path / "numba").iterdir() if path.suffix != ".bin"] == []


def test_without_a_folder_every_process_compiles(tmp_path):
    (tmp_path / "file").write_text("")
    assert start(tmp_path / "file") == ([expected()], "compiled-1")
    nowhere = {"FASTPE_CACHE_DIR": None, "XDG_CACHE_HOME": None, "HOME": os.devnull}
    assert start(None, changes=nowhere) == ([expected()], "compiled-1")


def test_an_unset_home_is_not_fatal(tmp_path):
    changes = {"HOME": None, "FASTPE_CACHE_DIR": None, "XDG_CACHE_HOME": str(tmp_path)}
    assert start(None, changes=changes) == ([expected()], "compiled-1")
    assert (tmp_path / "fastpe" / "numba").is_dir()


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX's")
def test_a_full_disk_is_not_fatal(tmp_path):
    """Files may grow to 1000 bytes only: every write of a kernel fails half way."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    assert start(tmp_path, before=limit) == ([expected()], "compiled-1")
    assert list((tmp_path / "numba").iterdir()) == []


GENERIC = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}  # no vectors, fused multiply-add or float16 conversion


@pytest.mark.usefixtures("file")
def test_another_cpu_has_its_own_kernels(tmp_path):
    assert start(tmp_path, changes=GENERIC) == ([expected()], "compiled-1")
    assert start(tmp_path) == start(tmp_path, changes=GENERIC) == ([expected()], "loaded")


def test_code_for_another_cpu_has_the_same_bits():
    """Slower, and not one bit different, optimised as it is for this one."""
    results, _ = start(os.environ["FASTPE_CACHE_DIR"], *cases.DTYPES, changes={**GENERIC, "NUMBA_OPT": None})
    assert results == [expected(dtype) for dtype in cases.DTYPES]


def test_every_operation_has_the_same_bits_on_another_cpu():
    import digest

    script = Path(digest.__file__)
    done = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, **GENERIC}, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest.digest()


def test_the_key_holds_what_the_code_depends_on(monkeypatch):
    first = compile._key("add_sinusoidal", ("float32", 0))
    assert compile._key("add_sinusoidal", ("float32", 0)) == first
    assert compile._key("add_sinusoidal", ("float32", 1)) != first
    with monkeypatch.context() as patch:
        patch.setattr(compile, "_version", lambda package: "0")
        assert compile._key("add_sinusoidal", ("float32", 0)) != first
    for setting, value in (("OPT", "1"), ("CPU_NAME", "generic"), ("CPU_FEATURES", ""), ("LOOP_VECTORIZE", "0")):
        with monkeypatch.context() as patch:
            patch.setenv(f"NUMBA_{setting}", value)
            assert compile._key("add_sinusoidal", ("float32", 0)) != first
    with monkeypatch.context() as patch:
        patch.setattr(machine_code.llvm, "get_host_cpu_name", lambda: "another")
        assert compile._key("add_sinusoidal", ("float32", 0)) != first
    monkeypatch.setattr(translation, "sources", translation.sources.__wrapped__)  # read again
    read_text = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda path, *rest, **more: read_text(path, *rest, **more) + ("#" if path.name == "arithmetic.py" else ""),
    )
    assert compile._key("add_sinusoidal", ("float32", 0)) != first


def test_a_processor_that_llvm_does_not_know_has_its_features(monkeypatch):
    """LLVM calls it generic; compiled without its conversions, float16 needs functions that older versions do not bring."""
    for setting in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        monkeypatch.delenv(setting, raising=False)
    known = machine_code.processor()
    monkeypatch.setattr(machine_code.llvm, "get_host_cpu_name", lambda: "generic")
    assert machine_code.processor() == ("generic", known[1])
    assert known[1]
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert machine_code.processor() == ("generic", "")


def test_versions_tell_packages_apart(monkeypatch):
    """From a file beside the package, which is not imported for it; or else from the package."""
    for package in ("numba", "llvmlite"):
        known = importlib.import_module(package).__version__
        assert f'"{known}"' in compile._version(package).replace("'", '"')
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda name: None)
            assert compile._version(package) == known


@pytest.mark.usefixtures("file")
def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTPE_CACHE_DIR", str(tmp_path))
    assert cli.main(["cache", "--info"]) == cli.main(["cache"]) == 0
    (kernel,) = cache.files()
    mebibytes = kernel.stat().st_size / 2**20
    assert 0.01 < mebibytes < 1
    assert capsys.readouterr().out.count(f"1 compiled kernels, {mebibytes:.1f} MiB, in {tmp_path}\n") == 2
    assert cli.main(["cache", "--clear"]) == 0
    assert f"deleted 1 compiled kernels in {tmp_path}" in capsys.readouterr().out
    assert cache.files() == []
    monkeypatch.setenv("FASTPE_CACHE_DIR", os.devnull)
    assert cli.main(["cache"]) == 0
    assert "every process compiles" in capsys.readouterr().out


def test_kernels_that_different_processes_compiled_work_side_by_side(tmp_path, files):
    """Helpers of the same name and signature must not be taken for one another (they were, and wrote beyond their memory)."""
    for order in (tuple(files), tuple(reversed(files))):
        assert start(tmp_path, *order) == ([expected(dtype) for dtype in order], "loaded")


def test_python_without_the_gil_is_warned_of():
    code = (
        "import sys; sys._is_gil_enabled = lambda: False; import fastpe, numpy; fastpe.add_encoding(numpy.zeros((1, 2), 'f'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0
    assert done.stderr.count("RuntimeWarning: fastpe is not tested on Python without the GIL") == 1
