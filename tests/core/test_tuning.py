"""How work on the CPU is cut to fit its caches, and how the environment overrides it. That no bit depends on it: test_translations.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastpe
from fastpe._backends.host import chunking, tuning


def described(folder: Path, *caches: tuple[str, str, str]) -> str:
    for number, texts in enumerate(caches):
        (folder / f"index{number}").mkdir()
        for name, text in zip(("level", "type", "size"), texts, strict=True):
            (folder / f"index{number}" / name).write_text(text + "\n")
    return str(folder)


def test_caches_are_those_that_linux_describes(tmp_path):
    levels = (("1", "Data", "48K"), ("1", "Instruction", "96K"), ("2", "Unified", "2048K"), ("3", "Unified", "1G"))
    assert tuning.caches(described(tmp_path, *levels)) == (48 << 10, 2 << 20, 1 << 30)


def test_without_a_third_level_the_second_is_the_last(tmp_path):
    assert tuning.caches(described(tmp_path, ("1", "Data", "64K"), ("2", "Unified", "4M"))) == (64 << 10, 4 << 20, 4 << 20)


@pytest.mark.parametrize("levels", [(), (("", "", ""),), (("1", "Data", "many"), ("2", "Unified", "0K"))])
def test_what_is_not_described_is_usual(levels, tmp_path):
    assert tuning.caches(described(tmp_path, *levels)) == tuning.Caches()
    assert tuning.caches(str(tmp_path / "none")) == tuning.Caches()


def test_blocks_stay_in_the_caches():
    """Of Zen 4, on which the sizes were measured; of Zen 3, of Apple's M1; and of a processor with hardly any."""
    zen4 = tuning.of(tuning.Caches(32 << 10, 1 << 20, 32 << 20))
    assert (zen4.block, zen4.shared, zen4.chunk, zen4.stream_above) == (16 << 10, 64 << 10, 256 << 10, 32 << 20)
    for caches in (
        tuning.Caches(32 << 10, 512 << 10, 32 << 20),
        tuning.Caches(128 << 10, 12 << 20, 12 << 20),
        tuning.Caches(8 << 10, 64 << 10, 64 << 10),
    ):
        sizes = tuning.of(caches)
        assert sizes.block + sizes.streamed < caches.first
        assert sizes.shared + sizes.angles + sizes.ahead < caches.second  # x comes by way of the second level
        assert all(sizes[:-1])


def test_x_goes_to_the_first_level_where_rotations_stay_beside_it():
    """Of Zen 4 and Zen 5. Their rotations of eight rows of 1024 columns take 32 KB."""
    assert [tuning.of(tuning.Caches(size << 10)).near for size in (32, 48)] == [0, 1]


def test_the_environment_overrides_sizes():
    usual = tuning.of(tuning.Caches())
    assert tuning.overridden(usual, " block = 8K,ahead=0 , chunk=1M,helper=77, near=1 ") == usual._replace(
        block=8192, ahead=0, chunk=1 << 20, helper=77, near=1
    )
    assert tuning.overridden(usual, "") == usual


@pytest.mark.parametrize("text", ["blocks=8K", "block", "block=", "block=-1", "block=8k", "chunk=0", "block=8 K", "near=2"])
def test_what_is_no_size_is_ignored_with_a_warning(text):
    usual = tuning.of(tuning.Caches())
    with pytest.warns(RuntimeWarning, match=r"FASTPE_TUNING must give sizes like 16K to ahead, block.*It is ignored"):
        assert tuning.overridden(usual, f"{text}, ahead=1K") == usual._replace(ahead=1024)


def test_calls_are_cut_as_the_environment_says():
    code = (
        "import fastpe; from fastpe._backends.host import chunking as c; print(c.BLOCK_BYTES, c.AHEAD_BYTES, c.cache_bytes())"
    )
    environment = {**os.environ, "FASTPE_TUNING": "block=3K, ahead=5, stream_above=1M", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3072", "5", str(1 << 20)]
    assert tuning.here().block == chunking.BLOCK_BYTES


def test_info_shows_them(capsys):
    from fastpe._tools import cli

    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    assert f"ahead {tuning.here().ahead >> 10}K" in said
    assert fastpe.__version__ in said
