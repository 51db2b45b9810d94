"""Every verb in every array library and every way to split arrays: the bits that NumPy makes of the whole.

DTensors are in ``torch/test_torch_sharded.py``, whose processes run all cases beside their own tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from library_rows import ROWS
from verb_cases import CASES


def calls() -> Iterator[Any]:
    for name, row in ROWS.items():
        for case in CASES.values():
            if row.takes(case):
                yield pytest.param(row, case, marks=row.marks, id=f"{case.name}, {name}")


@pytest.mark.parametrize(("row", "case"), list(calls()))
def test_bits_are_those_of_numpy(row, case):
    row.check(case)
