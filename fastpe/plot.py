"""A picture of an encoding. Needs matplotlib; nothing else in fastpe does."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks
from .api import encode
from .encodings import NAMES, Sinusoidal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INSTALL = "plots need matplotlib: pip install 'fastpe[plot]'"
MOST_ELEMENTS = 1 << 24  # ten times the pixels of the picture


def heatmap(
    encoding: Sinusoidal | str | None = None,
    positions: int = 128,
    dim: int = 128,
    path: str | os.PathLike[str] | None = None,
    *,
    offset: int = 0,
) -> Figure:
    """Draw an encoding as a heat map, one row a position and one column a channel.

    Parameters
    ----------
    encoding
        A ``Sinusoidal``, the name ``"sinusoidal"``, or None for ``Sinusoidal()``.
    positions
        Number of positions drawn, ``offset`` ... ``offset + positions - 1``.
    dim
        Width D >= 1.
    path
        Where to save the picture (1200 x 800 pixels). The ending chooses the format; PNG without one.
    offset
        The first position.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot, so there is nothing to close.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    TypeError, ValueError
        An argument is wrong, or ``path`` has an ending that matplotlib cannot write.

    Examples
    --------
    >>> from fastpe.plot import heatmap
    >>> figure = heatmap(positions=64, dim=32)
    """
    checks.width("heatmap", "dim", dim)
    checks.integer("heatmap", "offset", offset)
    if checks.integer("heatmap", "positions", positions) < 1:
        raise ValueError(checks.message("heatmap", "positions must be at least 1", str(positions)))
    if positions * dim > MOST_ELEMENTS:
        rule = f"positions * dim must be at most {MOST_ELEMENTS}"
        raise ValueError(checks.message("heatmap", rule, f"{positions} * {dim}", "No picture shows more."))
    if not -checks.POSITION_LIMIT <= offset <= checks.POSITION_LIMIT - positions:
        raise ValueError(checks.message("heatmap", "positions must lie in [-2^31, 2^31)", f"offset {offset}"))
    require(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    values = encode(np.arange(offset, offset + positions), dim, encoding)
    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display and without pyplot's global state
    value = Sinusoidal() if encoding is None else NAMES[encoding]() if isinstance(encoding, str) else encoding
    _draw(figure, values, offset)
    figure.axes[0].set_title(_settings(value), fontsize=12)
    figure.suptitle(f"{type(value).__name__} positional encoding, D = {dim}", fontsize=18)
    if path is not None:
        figure.savefig(path, format=_ending(path) or "png")
    return figure


def require(path: str | os.PathLike[str] | None = None) -> None:
    """Raise if matplotlib is missing (ImportError) or cannot write a file with this ending (ValueError)."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise ImportError(f"heatmap: {INSTALL} ({error}).") from None
    known = FigureCanvasAgg.get_supported_filetypes()
    if path is not None and (_ending(path) or "png") not in known:
        rule = f"path must end with one of {', '.join(sorted(known))}"
        raise ValueError(checks.message("heatmap", rule, repr(os.fspath(path))))


def _ending(path: str | os.PathLike[str]) -> str:
    return os.path.splitext(os.fspath(path))[1][1:].lower()


def _draw(figure: Any, values: np.ndarray[Any, Any], offset: int) -> None:
    from matplotlib.ticker import MaxNLocator

    count, dim = values.shape
    limit = float(np.abs(values).max()) or 1.0
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    axes = figure.add_subplot()
    image = axes.imshow(
        values,
        cmap="RdBu",
        vmin=-limit,
        vmax=limit,
        aspect="auto",
        extent=(-0.5, dim - 0.5, offset + count - 0.5, offset - 0.5),
    )
    axes.set_xlabel("column", fontsize=14)
    axes.set_ylabel("position", fontsize=14)
    axes.tick_params(labelsize=12)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=9, steps=[1, 2, 4, 5, 10], integer=True, min_n_ticks=1))
        axis.set_major_formatter("{x:,.0f}")
    bar = figure.colorbar(image, ax=axes, pad=0.02, ticks=[-limit, -limit / 2, 0, limit / 2, limit], format="{x:.3g}")
    bar.set_label("value added to x", fontsize=14)
    bar.ax.tick_params(labelsize=12)


def _settings(encoding: Sinusoidal) -> str:
    """Every setting that differs from its default, in lines of at most 100 characters."""
    fields = [(field.name, getattr(encoding, field.name), field.default) for field in dataclasses.fields(encoding)]
    changed = [f"{name.replace('_', ' ')}: {given}" for name, given, default in fields if given != default]
    return textwrap.fill(", ".join(changed), 100)
