"""The pictures of the documentation: ``python -m fastpe plot all -o docs/pictures``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...encodings import Grid, Rotary, Sinusoidal
from ...encodings.bias import ALiBi
from ...scaling import YaRN
from . import curves, figures, maps, spectra

COLOURS = 256  # of a file: a third of the bytes, no visible difference

PICTURES: dict[str, Callable[[], Any]] = {
    "heatmap": lambda: maps.heatmap(Sinusoidal()),
    "rotary": lambda: maps.heatmap(Rotary()),
    "grid": lambda: maps.heatmap(Grid.mae((8, 8))),
    "contour": lambda: maps.contour(Sinusoidal()),
    "similarity": lambda: maps.similarity(Rotary(scaling=YaRN(factor=8, original_max_position=512)), length=512),
    "wavelengths": spectra.wavelengths,
    "error": lambda: curves.error(Sinusoidal()),
    "bias": lambda: curves.bias(ALiBi(8)),
}


def draw(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Draw every picture into a folder, which is made if need be, and yield where each one is."""
    figures.require()
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES.items():
        path = Path(folder) / f"{name}.png"
        save_small(picture(), path)
        yield path


def save_small(axes: Any, path: Path) -> None:
    """Save with a palette; Pillow comes with matplotlib."""
    from PIL import Image

    canvas = np.ravel(np.array(axes, dtype=object))[0].figure.canvas
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    # Without kmeans greys get a tint.
    small = Image.fromarray(pixels).quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
