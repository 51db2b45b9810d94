"""Data the lab does not ship: the archive of a published package, fetched once, by pip, into the user's cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["LabError", "cache", "fetch"]

# pip asks a package for its metadata before it saves an archive, and would run the archive's own setup.py with whatever setuptools
# it can get. This stands in for setuptools: the metadata lie in the archive, so nothing of it is run and no setuptools is needed.
BACKEND = """
import shutil
from email.parser import HeaderParser
from pathlib import Path

class __legacy__:
    @staticmethod
    def prepare_metadata_for_build_wheel(folder, config_settings=None):
        said = HeaderParser().parsestr(Path("PKG-INFO").read_text("utf-8"))
        name = f"{said['Name']}-{said['Version']}.dist-info"
        Path(folder, name).mkdir()
        shutil.copy("PKG-INFO", Path(folder, name, "METADATA"))
        return name
"""


class LabError(Exception):
    """What the lab was asked for and cannot do, and what to do instead."""


def cache() -> Path:
    """The folder of what the lab fetches and prepares: fastpe/lab in ``$XDG_CACHE_HOME``, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastpe" / "lab"


def fetch(requirement: str, file: str, sha256: str) -> Path:
    """Return the path of a package's source archive, such as ``fetch("name==1.0", "name-1.0.zip", "5d97...")``.

    One that is there is used without asking the network. LabError: it cannot be had, or is another file than it should be.
    """
    path = cache() / "archives" / file
    if not _is(path, sha256):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
            fetched = Path(folder, "fetched", file)
            complaint = _download(f"{requirement} --hash=sha256:{sha256}", fetched.parent)
            if complaint is None and not _is(fetched, sha256):
                complaint = f"{_names(fetched.parent)}, not {file} with this checksum"
            if complaint is not None:
                there = ", where another file is" if path.exists() else ""
                raise LabError(
                    f"fetch: {requirement} must be fetched by pip, got {complaint.rstrip('.')}. "
                    f"Connect once, or put {file} (SHA-256 {sha256}) at {path}{there}."
                )
            os.replace(fetched, path)  # at once: another process may do the same, or read the file already
    return path


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _names(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.glob("*"))) or "nothing"


def _download(requirement: str, folder: Path) -> str | None:
    """Let pip put an archive into a folder, with its bar; return its last word where it fails.

    pip compares the checksum itself, before it opens an archive: that of the requirement, which is therefore in a file.
    """
    wanted, backend = folder.parent / "requirements.txt", folder.parent / "backend"
    wanted.write_text(f"{requirement}\n", "utf-8")
    (backend / "setuptools").mkdir(parents=True)
    (backend / "setuptools" / "__init__.py").touch()
    (backend / "setuptools" / "build_meta.py").write_text(BACKEND, "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--requirement", str(wanted), "--dest", str(folder)]
    command += ["--no-deps", "--no-binary=:all:", "--use-pep517", "--no-build-isolation"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--retries=2", "--timeout=20"]
    first = os.pathsep.join(filter(None, (str(backend), os.environ.get("PYTHONPATH"))))
    finished = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": first}, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    if finished.returncode == 0:
        return None
    lines = [line.strip() for line in finished.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error:")]
    return (errors or lines or [f"exit status {finished.returncode}"])[-1]
