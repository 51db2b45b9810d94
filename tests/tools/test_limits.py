"""The page of what is rounded, clipped or assumed: every row names a test that exists."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
from fastpe.kernels import abi

from fastpe._backends.host import row_cache
from fastpe._core import bias_tables, call_cache

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "limits.md").read_text()
HEADER = ["where", "what happens", "rule, or how large", "test"]


def rows(page: str) -> list[list[str]]:
    """The cells of every row of the page's tables, but for headers and the lines below them."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    return [row for row in cells if row != HEADER and set("".join(row)) != {"-"}]


@functools.cache
def functions_of(path: str) -> set[str]:
    """The test functions of a file, by its text."""
    file = ROOT / path
    found = ast.parse(file.read_text()).body if file.is_file() else []
    return {one.name for one in found if isinstance(one, ast.FunctionDef) and one.name.startswith("test_")}


def faults(row: list[str]) -> list[str]:
    """What is wrong with a row."""
    if len(row) != len(HEADER) or not row[0] or not row[1]:
        return [f"{row} must have the columns {HEADER}"]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[3])
    if not named or re.sub(r"`[^`]+`|[, ]", "", row[3]):
        return [f"{row[0]}: no test is named"]
    return [f"{row[0]}: there is no {path}::{name}" for path, name in named if name not in functions_of(path)]


def test_every_row_has_a_test_that_exists() -> None:
    found = rows(PAGE)
    assert len(found) > 60
    assert PAGE.count("| " + " | ".join(HEADER) + " |") == PAGE.count("\n## ")
    assert [fault for row in found for fault in faults(row)] == []


@pytest.mark.parametrize(
    "line",
    [
        "| a | b | c | |",
        "| a | b | c | a test |",
        "| a | b | c | `tests/core/test_where.py` |",
        "| a | b | c | `tests/core/test_where.py::test_that_is_not_there` |",
        "| a | b | c | `tests/core/test_no_file.py::test_modes` |",
        "| a | b | `tests/core/test_where.py::test_modes` |",
        "| | b | c | `tests/core/test_where.py::test_modes` |",
    ],
)
def test_a_row_without_one_is_noticed(line: str) -> None:
    assert faults(rows(line)[0])
    assert not faults(rows("| a | b | | `tests/core/test_where.py::test_modes` |")[0])


def test_the_numbers_are_those_of_the_code() -> None:
    for number, text in (
        (call_cache.MOST_ENTRIES, "{} are kept; one more empties"),
        (bias_tables.KEPT_BYTES >> 20, "{} MiB are kept, the oldest"),
        (bias_tables.LARGEST_SPAN.bit_length() - 1, "more than 2^{} distances"),
        (row_cache.MOST_BYTES_OF_ALL >> 20, "| {} MiB are kept |"),
        (row_cache.RowCache.MOST_BYTES_OF_X >> 20, "calls on up to {} MiB"),
        (abi.MOST_THREADS, "a call uses {} |"),
    ):
        assert PAGE.count(text.format(number)) == 1, text
