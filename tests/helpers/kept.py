"""What the tests compile, kept between runs and shared by the processes of one: kernels of the CPU, cubins, PTX.

A file's name holds a hash of the sources, versions and options that its content depends on, so none is ever out of date. It all lies
in ``FASTPE_CACHE_DIR`` if that is set, else in ``.cache`` of the checkout, from which what was not used lately is deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DAYS = 14
MOST_BYTES = 1 << 30
_temporary: list[tempfile.TemporaryDirectory[str]] = []


def prepare() -> None:
    """Choose the folder, for this process and those that it starts. Call it before fastpe is first asked for a kernel."""
    if os.environ.get("FASTPE_CACHE_DIR"):
        return
    place = ROOT / ".cache"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()
        prune(place)
    except OSError:  # a checkout that cannot be written to: for this run only
        _temporary.append(tempfile.TemporaryDirectory(prefix="fastpe-tests-"))
        place = Path(_temporary[0].name)
    os.environ["FASTPE_CACHE_DIR"] = str(place)


def folder(name: str) -> Path:
    """The folder of one kind of files."""
    path = Path(os.environ["FASTPE_CACHE_DIR"]) / name
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def prune(place: Path, days: float = DAYS, most_bytes: int = MOST_BYTES) -> None:
    """Delete files that nothing read for so many days, and then the oldest until the rest fits."""
    files = []
    for path in place.glob("*/*"):
        with contextlib.suppress(OSError):
            status = path.stat()
            files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    kept = 0
    for used, size, path in sorted(files, reverse=True):
        kept += size
        if used < time.time() - days * 86_400 or kept > most_bytes:
            with contextlib.suppress(OSError):
                path.unlink()


def text(place: Path, name: str, facts: object, make: Callable[[], str]) -> Path:
    """The file with the text that ``make`` returns, made unless it exists; ``facts`` are all that the text depends on."""
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
    stem, _, suffix = name.rpartition(".")
    path = place / f"{stem}-{digest}.{suffix}"
    if not path.exists():
        content = make()
        handle, temporary = tempfile.mkstemp(dir=place)
        with os.fdopen(handle, "w") as file:
            file.write(content)
        os.replace(temporary, path)  # in one step: another process may read it already
    return path
