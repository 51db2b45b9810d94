"""What the tests keep between runs is made once, and goes when nothing reads it any more."""

from __future__ import annotations

import os
import time

import kept


def test_a_text_is_made_once_for_the_same_facts(tmp_path):
    made = []

    def make():
        made.append("text")
        return "text"

    path = kept.text(tmp_path, "kernel.ptx", ("source", 1), make)
    assert (
        path == kept.text(tmp_path, "kernel.ptx", ("source", 1), make) != kept.text(tmp_path, "kernel.ptx", ("source", 2), make)
    )
    assert path.read_text() == "text"
    assert made == ["text"] * 2
    assert [one.suffix for one in tmp_path.iterdir()] == [".ptx"] * 2


def test_old_files_go_and_then_the_oldest(tmp_path):
    (tmp_path / "numba").mkdir()
    paths = [tmp_path / "numba" / f"{days}.bin" for days in (0, 1, 2, 30)]
    for path, days in zip(paths, (0, 1, 2, 30), strict=True):
        path.write_bytes(bytes(100))
        os.utime(path, times=(time.time() - days * 86_400,) * 2)
    kept.prune(tmp_path)
    assert [path.exists() for path in paths] == [True, True, True, False]
    kept.prune(tmp_path, most_bytes=200)
    assert [path.exists() for path in paths] == [True, True, False, False]
