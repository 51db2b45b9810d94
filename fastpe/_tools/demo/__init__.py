"""``python -m fastpe demo``: encode a text in place, check the result against the formula, time it."""

from __future__ import annotations

from .report import Report, table
from .running import STEPS, run
from .text import MOST_DIM, BadArgument

__all__ = ["MOST_DIM", "STEPS", "BadArgument", "Report", "run", "table"]
