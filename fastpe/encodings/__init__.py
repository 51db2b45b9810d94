"""The encodings: frozen values that know their formula and nothing about arrays, devices or threads."""

from __future__ import annotations

from .sinusoidal import Sinusoidal, SinusoidalPlan

__all__ = ["NAMES", "Sinusoidal", "SinusoidalPlan"]

# What the `encoding` argument accepts by name.
NAMES: dict[str, type[Sinusoidal]] = {"sinusoidal": Sinusoidal}
