"""Compiled CUDA kernels: for which GPU, and what is kept on the disk. No GPU needed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fastpe._backends import cuda
from fastpe._backends import disk_cache as cache


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    pytest.importorskip("cupy")
    monkeypatch.setenv("FASTPE_CACHE_DIR", str(tmp_path / "cache"))
    compiled = []
    compile_source = cuda.compile.compile_source
    monkeypatch.setattr(cuda.compile, "compile_source", lambda *args: compiled.append(args) or compile_source(*args))
    return tmp_path / "cache" / "cuda", compiled


def test_a_cubin_is_compiled_once(cache_folder):
    folder, compiled = cache_folder
    first = cuda.compile._cubin("locate_rows", "sm_90")
    assert first.startswith(b"\x7fELF")
    (file,) = folder.iterdir()
    assert file.read_bytes().endswith(first)
    assert cuda.compile._cubin("locate_rows", "sm_90") == first
    assert len(compiled) == 1
    assert cuda.compile._cubin("locate_rows", "sm_80") != first
    assert [path for path in folder.iterdir() if not path.name.endswith(".bin")] == []


@pytest.mark.parametrize(
    ("capability", "target"), [(90, "sm_90"), (100, "sm_100"), (93, "compute_90"), (130, "compute_100"), (70, "sm_70")]
)
def test_a_gpu_that_nvrtc_does_not_know_gets_ptx(monkeypatch, capability, target):
    """Of the newest architecture before it; one that is too old is left for NVRTC to refuse."""
    pytest.importorskip("cupy")
    from cupy.cuda import nvrtc

    monkeypatch.setattr(nvrtc, "getSupportedArchs", lambda: (75, 80, 90, 100))
    assert cuda.architecture(capability) == target


def test_ptx_is_kept_as_a_cubin_is(cache_folder):
    _, compiled = cache_folder
    target = cuda.architecture(999)
    text = cuda.compile._cubin("locate_rows", target)
    assert f".target {target.replace('compute', 'sm')}".encode() in text
    assert cuda.compile._cubin("locate_rows", target) == text
    assert len(compiled) == 1


def test_a_damaged_cubin_is_compiled_anew(cache_folder):
    folder, compiled = cache_folder
    first = cuda.compile._cubin("locate_rows", "sm_90")
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1] + b"x", first):
        file.write_bytes(damaged)
        assert cuda.compile._cubin("locate_rows", "sm_90") == first
        assert file.read_bytes() == whole
    assert len(compiled) == 5


def test_another_source_is_another_key(cache_folder, monkeypatch):
    folder, compiled = cache_folder
    cuda.compile._cubin("locate_rows", "sm_90")
    source = cuda.source("locate_rows")
    monkeypatch.setattr(cuda.compile, "source", lambda name: source + "// changed\n")
    cuda.compile._cubin("locate_rows", "sm_90")
    assert len(compiled) == len(list(folder.iterdir())) == 2


def test_without_a_cache_a_cubin_is_compiled(cache_folder, monkeypatch):
    monkeypatch.setattr(cache, "folder", lambda name: None)
    assert cuda.compile._cubin("locate_rows", "sm_90").startswith(b"\x7fELF")


@pytest.mark.skipif(os.name == "nt", reason="file modes are POSIX's")
def test_only_a_private_folder_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTPE_CACHE_DIR", str(tmp_path))
    place = cache.folder("cuda")
    assert place == tmp_path / "cuda"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    place.chmod(0o777)
    assert cache.folder("cuda") is None


def test_cache_places(tmp_path, monkeypatch):
    monkeypatch.delenv("FASTPE_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder("cuda") == tmp_path / "xdg" / "fastpe" / "cuda"
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FASTPE_CACHE_DIR", str(tmp_path / "file"))
    assert cache.folder("cuda") is None
    monkeypatch.delenv("FASTPE_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert cache.folder("cuda") is None
