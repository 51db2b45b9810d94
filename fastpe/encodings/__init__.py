"""The encodings: frozen values that know their formula and nothing about arrays, devices or threads.

Those of attention scores, in `bias.py` and `buckets.py`, are imported where they are needed.
"""

from __future__ import annotations

from .fourier import Fourier
from .grid import Grid
from .learned import Learned
from .rotary import Rotary
from .rotary_table import RotaryTable
from .sinusoidal import Sinusoidal

__all__ = [
    "NAMES",
    "Fourier",
    "Grid",
    "Learned",
    "Rotary",
    "RotaryTable",
    "Sinusoidal",
]

# What the `encoding` argument accepts by name.
NAMES: dict[str, type[Sinusoidal]] = {"sinusoidal": Sinusoidal}
