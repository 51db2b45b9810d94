"""Benchmarks for the machine at hand: ``python -m fastpe bench``.

fastpe's verbs and the expressions that they replace run on the same arrays, in interleaved rounds; each result is checked against the
formula in float64 first. A ratio is that of the same rounds, and is given where it is larger than the rounds' spread. The roofline is the
bandwidth of the fastest ``x += 1`` over as many bytes, measured in the same rounds.
"""

from __future__ import annotations

from ..machine import describe, machine
from .case import Case, cases
from .results import EXPLANATION, as_json, compare, failed, noisy, read, table, write
from .running import devices, measure_line
from .spread import warnings
from .workload import WrongResult

__all__ = [
    "EXPLANATION",
    "Case",
    "WrongResult",
    "as_json",
    "cases",
    "compare",
    "describe",
    "devices",
    "failed",
    "machine",
    "measure_line",
    "noisy",
    "read",
    "table",
    "warnings",
    "write",
]
