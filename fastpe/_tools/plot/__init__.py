"""Pictures of encodings. They need matplotlib; nothing else in fastpe does.

Every function draws into the axes that it is given, or into a figure of its own, which pyplot does not know, so that nothing has to be
closed; it returns the axes. ``save`` writes them to a file. ``python -m fastpe plot`` does both.

    axes = fastpe.plot.heatmap(fastpe.Sinusoidal(), length=64)
    fastpe.plot.save(axes, "encoding.png")

Encodings are values, or texts such as ``"rotary:base=500000"`` (``fastpe.plot.named``).
"""

from __future__ import annotations

from .curves import bias, error
from .figures import INSTALL, require, save
from .maps import contour, heatmap, similarity
from .spectra import wavelengths

__all__ = ["INSTALL", "bias", "contour", "error", "heatmap", "require", "save", "similarity", "wavelengths"]
