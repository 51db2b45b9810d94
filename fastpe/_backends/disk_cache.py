"""A private folder for compiled kernels.

Files there are run as code, so the folder must belong to this user and be writable by nobody else. A file's name ends with the hash of its
content: a truncated or changed file is not used. Without a safe folder every process compiles anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


def folder(name: str) -> Path | None:
    """Return the folder for one kind of kernels, made if need be; None if there is no safe one.

    ``FASTPE_CACHE_DIR``, else ``XDG_CACHE_HOME/fastpe`` or the user's cache folder.
    """
    for root in _roots():
        path = root / name
        with contextlib.suppress(OSError, RuntimeError):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
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


def _is_private(path: Path) -> bool:
    if os.name == "nt":
        return True  # profile folders are private there
    status = path.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def key(name: str, *facts: object) -> str:
    """A key from everything that a file's content depends on."""
    return f"{name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}"


def load(folder: Path, key: str) -> Path | None:
    """Return the file stored under a key, if its content is whole."""
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob(f"{key}-*.bin")):
            if path.is_file() and path.name == _file_name(key, path.read_bytes()):  # reading a FIFO would wait for its writer
                return path
            path.unlink()
    return None


def store(folder: Path, key: str, content: bytes) -> Path | None:
    """Write a file in one step, so that no other process reads half of it; None if it cannot be written."""
    path = folder / _file_name(key, content)
    try:
        handle, temporary = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
    except OSError:
        return None
    return path


def _file_name(key: str, content: bytes) -> str:
    return f"{key}-{hashlib.sha256(content).hexdigest()[:32]}.bin"
