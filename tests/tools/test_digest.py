"""The digest of results: the same tree gives the same file, and a comparison names what differs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.digest import __main__ as command

ROOT = Path(__file__).resolve().parents[2]
ONLY = "numpy/embed/ids_"  # a few cases, and a few errors


def test_two_runs_of_a_tree_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        line = [sys.executable, "-m", "bench.digest", str(path), "--only", ONLY]
        done = subprocess.run(line, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "gave something else" not in done.stderr
    hashes, errors = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "a.errors.json"))
    assert {"numpy/embed/ids_(9,)/sinusoidal", "numpy/embed/ids_(9,)/sinusoidal#2"} < hashes.keys()
    assert "fastpe" not in "".join(hashes.values())  # a hash, not an error
    assert errors["error/numpy/embed/ids_range"].startswith("IndexError: embed: ")
    assert errors.keys() < hashes.keys()
    assert all(ONLY in name for name in hashes)
    assert command.main(["--compare", *map(str, paths)]) == 0
    assert capsys.readouterr().out == f"0 of {len(hashes)} differ or are missing\n"


def test_a_comparison_names_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(json.dumps({"same": "1 f", "bits": "1 f", "form": "1 f", "text": "1", "written": "1", "gone": "1 f"}))
    b.write_text(json.dumps({"same": "1 f", "bits": "2 f", "form": "1 g", "text": "2", "written": "2", "new": "1 f"}))
    (tmp_path / "a.errors.json").write_text(json.dumps({"text": "ValueError: x", "written": "ValueError: y"}))
    (tmp_path / "b.errors.json").write_text(json.dumps({"text": "TypeError: x", "written": "ValueError: y"}))
    assert command.main(["--compare", str(a), str(b)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "differs: bits",
        "same bits, other form: form",
        f"only in {a}: gone",
        f"only in {b}: new",
        "differs: text",
        "    ValueError: x",
        "    TypeError: x",
        "differs: written",
        "    the same text, but an array was written",
        "6 of 7 differ or are missing",
    ]


@pytest.mark.parametrize(
    "arguments", [[], ["out.json", "--compare", "a.json", "b.json"], ["--compare", "a", "b", "--only", "x"]]
)
def test_a_digest_is_either_written_or_compared(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert "give either OUT.json" in capsys.readouterr().err
