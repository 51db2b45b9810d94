"""The folder of compiled kernels as a boundary: what another user, a link, a device or a damaged file can do there, which is nothing."""

from __future__ import annotations

import ast
import os
import shutil
import stat
from pathlib import Path

import pytest

import fastpe
from fastpe._backends import disk_cache as cache

# ---- who may write there -----------------------------------------------------------------------------------------------------

posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTPE_CACHE_DIR", str(tmp_path / "cache"))
    return cache.folder("numba")


@pytest.fixture
def stored(folder):
    assert cache.store(folder, "key", b"content")
    assert cache.load(folder, "key") == b"content"
    (path,) = folder.iterdir()
    return path


@posix
@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "link_to_fifo", "link_to_device", "socket"])
def test_only_regular_files_are_read(folder, stored, tmp_path, kind):
    """Reading a FIFO would wait for ever for somebody who writes to it; a link may be to a file that somebody else changes."""
    import socket

    whole = stored.read_bytes()
    stored.unlink()
    if kind == "folder":
        stored.mkdir()
    elif kind == "fifo":
        os.mkfifo(stored)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(stored))
    else:
        target = Path("/dev/zero") if kind == "link_to_device" else tmp_path / "target"
        if kind == "link":
            target.write_bytes(whole)
        elif kind == "link_to_fifo":
            os.mkfifo(target)
        stored.symlink_to(target)
    assert cache.load(folder, "key") is None
    assert cache.store(folder, "key", b"other content") == (kind != "folder")
    assert cache.load(folder, "key") == (None if kind == "folder" else b"other content")
    if kind == "link":
        assert (tmp_path / "target").read_bytes() == whole, "the link's target was written"


@posix
def test_no_device_is_read():
    assert cache._read(Path("/dev/zero")) == b""


def test_no_huge_file_is_read(folder, stored, monkeypatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 100)
    assert cache.load(folder, "key") == b"content"
    os.truncate(stored, 101)
    assert cache._read(stored) == b""
    assert cache.load(folder, "key") is None


@posix
@pytest.mark.parametrize("mode", [0o602, 0o622, 0o666, 0o777, 0o620])
def test_no_file_that_others_may_write_is_read(folder, stored, monkeypatch, mode):
    monkeypatch.setattr(cache, "_is_own_group", lambda group: False)
    stored.chmod(mode)
    assert cache.load(folder, "key") is None
    stored.chmod(0o600)
    assert cache.load(folder, "key") == b"content"


@posix
def test_no_file_of_another_user_is_read(folder, stored, monkeypatch):
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    assert cache.load(folder, "key") is None


@posix
def test_no_folder_of_another_user_is_used(folder, monkeypatch):
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    assert cache.folder("numba") is None


@posix
@pytest.mark.parametrize("which", ["numba", "cache", "above"])
@pytest.mark.parametrize("mode", [0o702, 0o720, 0o777])
def test_no_folder_that_others_may_change_is_used(tmp_path, monkeypatch, which, mode):
    """Who may write to a folder above may put another one in its place."""
    monkeypatch.setattr(cache, "_is_own_group", lambda group: False)
    monkeypatch.setenv("FASTPE_CACHE_DIR", str(tmp_path / "above" / "cache"))
    folder = cache.folder("numba")
    assert folder == tmp_path / "above" / "cache" / "numba"
    assert stat.S_IMODE(folder.parent.stat().st_mode) == stat.S_IMODE(folder.stat().st_mode) == 0o700
    changed = {"numba": folder, "cache": folder.parent, "above": folder.parent.parent}[which]
    changed.chmod(mode)
    assert cache.folder("numba") is None
    changed.chmod(0o755)
    assert cache.folder("numba") == folder
    changed.chmod(mode | stat.S_ISVTX)  # as /tmp: nobody can rename or delete what is another's there
    assert cache.folder("numba") == (None if which == "numba" else folder)


@posix
def test_a_folder_above_of_another_user_is_not_trusted(tmp_path, monkeypatch):
    """A user of sudo keeps HOME: root must not run what that user can change."""
    monkeypatch.setenv("FASTPE_CACHE_DIR", str(tmp_path / "above" / "cache"))
    folder = cache.folder("numba")
    lstat, above = Path.lstat, tmp_path / "above"

    def of_another(path):
        status = lstat(path)
        return os.stat_result((*status[:4], os.geteuid() + 1, *status[5:])) if path == above else status

    monkeypatch.setattr(Path, "lstat", of_another)
    assert cache.folder("numba") is None
    monkeypatch.setattr(Path, "lstat", lstat)
    assert cache.folder("numba") == folder


@posix
def test_a_link_to_the_folder_is_followed_once(tmp_path, monkeypatch):
    """The real folder is checked and used: where the link leads later does not matter, and the link itself is nobody's concern."""
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir(mode=0o700)
    link.symlink_to(real)
    monkeypatch.setenv("FASTPE_CACHE_DIR", str(link))
    folder = cache.folder("numba")
    assert folder == real / "numba"
    assert cache.store(folder, "key", b"content")
    link.unlink()
    link.symlink_to("/tmp")
    assert cache.load(folder, "key") == b"content"
    link.unlink()
    link.symlink_to(link)
    assert cache.folder("numba") is None


@posix
def test_a_folder_that_becomes_a_link_is_not_used(tmp_path, monkeypatch):
    """Somebody else may make what is not there yet in /tmp, between the look at the links and the making."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("FASTPE_CACHE_DIR", str(tmp_path / "cache"))
    make = cache._make

    def late(path):
        if not (tmp_path / "cache").is_symlink():
            (tmp_path / "cache").symlink_to(elsewhere)
        make(path)

    monkeypatch.setattr(cache, "_make", late)
    assert cache.folder("numba") is None


@posix
def test_the_users_own_group(monkeypatch):
    import grp
    import pwd
    from types import SimpleNamespace

    user = SimpleNamespace(pw_name="ada", pw_gid=1000)
    groups = {
        1000: SimpleNamespace(gr_gid=1000, gr_name="ada", gr_mem=[]),
        1001: SimpleNamespace(gr_gid=1001, gr_name="staff", gr_mem=[]),
    }
    monkeypatch.setattr(pwd, "getpwuid", lambda number: user)
    monkeypatch.setattr(grp, "getgrgid", groups.__getitem__)
    assert cache._is_own_group(1000)
    assert not cache._is_own_group(1001)
    assert not cache._is_own_group(1002)
    groups[1000].gr_mem = ["ada", "eve"]
    assert not cache._is_own_group(1000)
    groups[1000] = SimpleNamespace(gr_gid=1000, gr_name="users", gr_mem=[])
    assert not cache._is_own_group(1000)


# ---- what a file says --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 15, 16, 23, 24, 55, 56, -1])
def test_every_byte_is_checked(folder, stored, at):
    whole = bytearray(stored.read_bytes())
    whole[at] ^= 1
    stored.write_bytes(whole)
    assert cache.load(folder, "key") is None


@pytest.mark.parametrize("length", [0, 1, 55, 56, 62])
def test_half_a_file_is_not_used(folder, stored, length):
    assert stored.stat().st_size == 63
    os.truncate(stored, length)
    assert cache.load(folder, "key") is None


def test_more_than_the_content_is_not_used(folder, stored):
    with stored.open("ab") as file:
        file.write(b"more")
    assert cache.load(folder, "key") is None


def test_the_file_of_another_key_is_not_used(folder, stored):
    """Whole, and under the wrong name: it would be run with another kernel's arguments."""
    assert cache.store(folder, "other", b"other content")
    shutil.copy(cache._path(folder, "other"), stored)
    assert cache.load(folder, "key") is None
    assert cache.load(folder, "other") == b"other content"


def test_what_was_checked_is_what_is_used(folder, stored, monkeypatch):
    """A file that is replaced, or written to, once it has been read changes nothing: it is opened once."""
    header, opened, original = cache._header, [], os.open

    def replace(key, content):
        stored.write_bytes(b"written")
        os.replace(shutil.copy(__file__, folder / "new"), stored)
        return header(key, content)

    monkeypatch.setattr(cache, "_header", replace)
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: opened.append(path) or original(path, *rest, **more))
    assert cache.load(folder, "key") == b"content"
    assert opened.count(stored) == 1


def test_nothing_is_unpickled():
    """A pickle runs what it says. No module of fastpe can read one."""
    readers = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    for path in Path(fastpe.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not readers & {name.partition(".")[0] for name in names}, path
