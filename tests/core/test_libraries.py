"""Every verb in every array library and every way to split arrays: the bits that NumPy makes of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from library_rows import ROWS
from ranks import LAYOUTS, Ranks
from verb_cases import CASES


def calls() -> Iterator[Any]:
    for name, row in ROWS.items():
        for case in CASES.values():
            if row.takes(case):
                yield pytest.param(row, case, marks=row.marks, id=f"{case.name}, {name}")
    for count in LAYOUTS:  # processes that are started once
        row = Ranks(count)
        yield pytest.param(row, None, marks=row.marks, id=f"all cases, torch, {count} ranks")


@pytest.mark.parametrize(("row", "case"), list(calls()))
def test_bits_are_those_of_numpy(row, case):
    row.check(case)
