"""The encodings: frozen values that know their formula and nothing about devices or threads.

``protocol`` says what an encoding is. ``fourier`` and the biases of attention scores, ``bias``, ``buckets`` and ``fire``, are loaded on
first use.
"""

from __future__ import annotations

from typing import Any

from .._core.checks import describe, message
from .grid import Grid
from .learned import Learned
from .protocol import Additive, Encoding, Rotational
from .rotary import Rotary
from .rotary_table import RotaryTable
from .sinusoidal import Sinusoidal

__all__ = [
    "NAMES",
    "Additive",
    "Encoding",
    "Grid",
    "Learned",
    "Rotary",
    "RotaryTable",
    "Rotational",
    "Sinusoidal",
    "additive",
    "rotational",
    "source_and_target",
]

# What the `encoding` argument accepts by name.
NAMES: dict[str, type[Sinusoidal]] = {"sinusoidal": Sinusoidal}
_SINUSOIDAL, _ROTARY = Sinusoidal(), Rotary()


def additive(function: str, encoding: Any, ability: str = "adds") -> Any:
    """An encoding given by value or by name, None for ``Sinusoidal()``. ``ability`` is the class attribute that a verb requires."""
    if encoding is None:
        return _SINUSOIDAL
    if isinstance(encoding, Encoding) and getattr(type(encoding), ability):
        return encoding
    known = ", ".join([repr(name) for name in NAMES])
    rule = f"encoding must be an encoding such as Sinusoidal() or one of {known}"
    if not isinstance(encoding, str):
        raise TypeError(message(function, rule, describe(encoding)))
    if encoding not in NAMES:
        remedy = f"What published models use, if {encoding!r} is one, is fastpe.recipe({encoding!r}).encoding."
        raise TypeError(message(function, rule, repr(encoding), remedy))
    return _SINUSOIDAL


def rotational(function: str, encoding: Any, name: str = "encoding", tables: bool = True) -> Any:
    """A rotary encoding, None for ``Rotary()``."""
    if encoding is None:
        return _ROTARY
    if not isinstance(encoding, Rotational) or (not tables and isinstance(encoding, RotaryTable)):
        raise TypeError(message(function, f"{name} must be a Rotary or None", describe(encoding)))
    return encoding


def source_and_target(encoding: Any, source: Any, target: Any) -> tuple[Any, Any]:
    """The encoding that rotated keys have, and the one that they get."""
    function = "rerotate"
    if (source is None) != (target is None):
        raise ValueError(message(function, "source and target go together", "one of them", "Or give encoding alone."))
    if encoding is not None and source is not None:
        raise ValueError(message(function, "encoding contradicts source and target", "all of them"))
    if source is None:
        chosen = rotational(function, encoding, tables=False)
        return chosen, chosen
    return rotational(function, source, "source", tables=False), rotational(function, target, "target", tables=False)
