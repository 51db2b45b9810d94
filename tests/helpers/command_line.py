"""Runs the command line, and reads what it says and draws."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fastpe", *argv], capture_output=True, text=True, timeout=120, **options)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What a refused command said: one line on stderr, nothing on stdout."""
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(content) > 10_000
    width, height = struct.unpack(">II", content[16:24])
    return width, height
