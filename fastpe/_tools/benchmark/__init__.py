"""Benchmarks for the machine at hand: ``python -m fastpe bench``.

fastpe's verbs and the expressions that they replace run on the same arrays, in turns, round by round, and their medians are compared;
each result is checked against NumPy's in float64 first. A figure is also given as a share of the bandwidth of the fastest ``x += 1``
over as many bytes, measured in the same rounds.
"""

from __future__ import annotations

from ..machine import describe, machine
from .races import Case, WrongResult, cases
from .results import EXPLANATION, compare, read, table, write
from .running import devices, measure

__all__ = [
    "EXPLANATION",
    "Case",
    "WrongResult",
    "cases",
    "compare",
    "describe",
    "devices",
    "machine",
    "measure",
    "read",
    "table",
    "write",
]
