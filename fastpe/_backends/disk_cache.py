"""A private folder for compiled kernels: files of machine code, with a header that says what they hold.

What a file says is run as code, so nobody but this user and root may be able to write it, or to put another one in its place:

- The folder is this user's and writable by nobody else. Symbolic links on the way to it are followed once; every folder above the real
  one is this user's or root's, and writable by nobody else or sticky, as /tmp is. A group that is the user's own counts as the user.
- A file is opened once, never through a symbolic link and without waiting. It is a regular file of this user, writable by nobody else.
- Its header has the length, and the SHA-256 of the key and the content. The bytes that were checked are the bytes that are used.

What fails a check is compiled anew and replaced. Without a safe folder every process compiles. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

MAGIC = b"fastpe kernel 2\n"
HEADER = struct.Struct("<16sQ32s")  # MAGIC, bytes of content, their digest
MOST_BYTES = 1 << 26  # of a file; a kernel has 20 to 300 KB
OPENED = sum(getattr(os, flag, 0) for flag in ("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"))


def folder(name: str) -> Path | None:
    """Return the folder for one kind of kernels, made if need be; None if there is no safe one.

    ``FASTPE_CACHE_DIR``, else ``XDG_CACHE_HOME/fastpe`` or the user's cache folder.
    """
    for root in _roots():
        with contextlib.suppress(OSError, RuntimeError):
            path = Path(os.path.realpath(root)) / name  # a link that is changed later leads nowhere else
            _make(path)
            if _is_private(path) and os.access(path, os.W_OK):
                return path
    return None


def root() -> Path | None:
    """The folder of all kinds; None if there is no safe one."""
    kernels = folder("numba")
    return None if kernels is None else kernels.parent


def files() -> list[Path]:
    """Every compiled kernel in the cache."""
    folders = root()
    return [] if folders is None else sorted(folders.glob("*/*.bin"))


def clear() -> int:
    """Delete every compiled kernel in the cache; return how many there were."""
    compiled = files()
    for path in compiled:
        with contextlib.suppress(OSError):
            path.unlink()
    return len(compiled)


def _roots() -> Iterator[Path]:
    if os.environ.get("FASTPE_CACHE_DIR"):
        yield Path(os.environ["FASTPE_CACHE_DIR"])
        return
    if os.environ.get("XDG_CACHE_HOME"):
        yield Path(os.environ["XDG_CACHE_HOME"]) / "fastpe"
    with contextlib.suppress(RuntimeError):  # no home
        caches = "Library/Caches" if sys.platform == "darwin" else "AppData/Local" if os.name == "nt" else ".cache"
        yield Path.home() / caches / "fastpe"


# ---- who may write there -----------------------------------------------------------------------------------------------------


def _make(path: Path) -> None:
    """Make a folder and those above it, for this user alone."""
    if not path.is_dir():
        if not path.parent.is_dir():
            _make(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def _is_private(path: Path) -> bool:
    """Whether nobody else can write to a folder, or rename it or one above it; the path has no symbolic links."""
    if os.name == "nt":
        return True  # profile folders are private there
    own = path.lstat()
    if not stat.S_ISDIR(own.st_mode) or own.st_uid != os.geteuid() or _others_write(own):
        return False
    above = [parent.lstat() for parent in path.parents]
    return all(one.st_uid in (0, os.geteuid()) and (one.st_mode & stat.S_ISVTX or not _others_write(one)) for one in above)


def _others_write(status: os.stat_result) -> bool:
    mode = status.st_mode
    return bool(mode & stat.S_IWOTH or (mode & stat.S_IWGRP and not _is_own_group(status.st_gid)))


def _is_own_group(group: int) -> bool:
    """Whether a group is the one of the user's own name, with nobody else in it, as many systems make it (with umask 002)."""
    import grp
    import pwd

    try:
        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_gid == user.pw_gid and found.gr_name == user.pw_name and set(found.gr_mem) <= {user.pw_name}


# ---- files -------------------------------------------------------------------------------------------------------------------


def key(name: str, *facts: object) -> str:
    """A key from everything that a file's content depends on."""
    return f"{name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}"


def load(folder: Path, key: str) -> bytes | None:
    """Return the content stored under a key, if there is a file that passes every check."""
    with contextlib.suppress(OSError):
        found = _read(_path(folder, key))
        content = found[HEADER.size :]
        if found == _header(key, content) + content:
            return content
    return None


def _read(path: Path) -> bytes:
    """The bytes of a file that only this user can have written; none of another."""
    with os.fdopen(os.open(path, OPENED), "rb") as file:
        status = os.fstat(file.fileno())
        is_own = os.name == "nt" or (status.st_uid == os.geteuid() and not _others_write(status))
        is_whole = stat.S_ISREG(status.st_mode) and status.st_size <= MOST_BYTES
        return file.read(MOST_BYTES) if is_own and is_whole else b""


def _header(key: str, content: bytes) -> bytes:
    return HEADER.pack(MAGIC, len(content), hashlib.sha256(key.encode() + b"\0" + content).digest())


def store(folder: Path, key: str, content: bytes) -> bool:
    """Write a file in one step, so that no other process reads half of it; return whether it could be written."""
    try:
        handle, temporary = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_header(key, content) + content)
            os.replace(temporary, _path(folder, key))
        except OSError:
            os.unlink(temporary)
            raise
    except OSError:
        return False
    return True


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.bin"
