"""Pictures with a position on both axes, or a position and a channel: heat map, contours, similarity."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...encodings import Rotary, Sinusoidal
from . import figures, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONTOURS = 8  # from the least to the greatest value
CONTOURED = 64  # positions, and channels of the usual picture: beyond, lines of the fastest channels run together
COMPARED = 256


def heatmap(
    encoding: figures.Drawn | None = None,
    length: int | None = None,
    dim: int | None = None,
    *,
    offset: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw an encoding as a heat map, one row a position and one column a channel.

    Parameters
    ----------
    encoding
        One that is added, such as ``Sinusoidal`` or ``Learned``: what is added to x. One that rotates: the cosines and sines that it makes
        of pairs (1, 0); channels that it does not rotate are grey. A text (``fastpe.plot.named``); None for ``Sinusoidal()``.
    length
        Number of positions, ``offset`` ... ``offset + length - 1``. None: 128, at most as many as a table has, or those of a grid.
    dim
        Width D >= 1. None: 128, or that of a table.
    offset
        The first position.
    ax
        Where to draw. None: into a figure of its own.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    TypeError, ValueError
        An argument is wrong; the encoding is a bias on scores.

    Examples
    --------
    >>> import fastpe.plot
    >>> fastpe.plot.heatmap("rotary:base=500000", length=64, dim=32).get_ylabel()
    'position'
    """
    chosen = values.chosen("heatmap", encoding)
    count, width = values.length_of("heatmap", chosen, length, 128), values.width_of("heatmap", chosen, dim)
    rows = values.rows("heatmap", chosen, count, width, offset)
    (axes,), _ = figures.panels(ax)
    limit = values.limit(rows)
    extent = (-0.5, width - 0.5, offset + count - 0.5, offset - 0.5)
    image = axes.imshow(rows, cmap=figures.colour_map(), vmin=-limit, vmax=limit, aspect="auto", extent=extent)
    axes.set_xlabel("channel")
    _finish(axes, image, chosen, limit)
    figures.title(axes, f"{_what(chosen)} at each position? D = {width:,}", chosen)
    return axes


def contour(
    encoding: figures.Drawn | None = None, length: int | None = None, dim: int | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw an encoding as contours of equal value over position and channel.

    Sines and cosines are drawn as two blocks, whatever the layout, and are those of a smooth function through the channels: positions and
    frequencies between them are drawn too, as a line from one channel to the next of another frequency would mean nothing. Of rotations
    it is the angle's cosine and sine alone. A table has no frequencies, and its own values are drawn.

    Parameters
    ----------
    encoding, ax
        As ``heatmap``.
    length, dim
        As ``heatmap``, but 64 where it has 128.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError, TypeError, ValueError
        As ``heatmap``.

    Examples
    --------
    >>> import fastpe.plot
    >>> fastpe.plot.contour("sinusoidal", length=32, dim=16).get_xlabel()
    'channel, sines before cosines'
    """
    chosen = values.chosen("contour", encoding)
    smooth = isinstance(chosen, (Sinusoidal, Rotary))
    count = values.length_of("contour", chosen, length, CONTOURED)
    width = CONTOURED if smooth and dim is None else values.width_of("contour", chosen, dim)
    values.check_size("contour", count, width)
    blocks = values.smooth(chosen, count, width) if smooth else values.as_blocks("contour", chosen, count, width)
    (axes,), _ = figures.panels(ax)
    limit = max(values.limit(block.values) for block in blocks)
    levels = np.linspace(-limit, limit, CONTOURS + 1)
    colours = figures.steps(levels)
    for block in blocks:
        if min(block.values.shape) > 1:  # else there is no area
            coordinates = values.to_edges(block)
            axes.contourf(*coordinates, levels=levels, cmap=colours.cmap, norm=colours.norm)
            axes.contour(*coordinates, levels=[0], colors="black", linewidths=0.5)
    for block in blocks[1:]:
        axes.axvline(block.channels[0] - 0.5, color="black", linewidth=1)
    axes.set_xlim(-0.5, max(block.channels[-1] for block in blocks) + 0.5)
    axes.set_ylim(max(count - 1, 1), 0)
    order = ", sines before cosines" if smooth else ", cosines before sines" if values.is_rotary(chosen) else ""
    axes.set_xlabel(f"channel{order}")
    _finish(axes, colours, chosen, limit)
    figures.title(axes, f"{_what(chosen)} at each position? D = {width:,}", chosen)
    return axes


def _finish(axes: Axes, image: Any, encoding: Any, limit: float) -> None:
    figures.integers(axes.xaxis, axes.yaxis)
    axes.set_ylabel("position")
    label = "cosine or sine of the rotation" if values.is_rotary(encoding) else "value added to x"
    figures.bar(axes, image, label, (-limit, limit))


def _what(encoding: Any) -> str:
    name = type(encoding).__name__
    return f"By which cosine and sine does {name} rotate" if values.is_rotary(encoding) else f"What does {name} add"


def similarity(
    encoding: figures.Drawn | None = None,
    length: int | None = None,
    dim: int | None = None,
    *,
    axes: figures.SeveralAxes | None = None,
) -> tuple[Axes, Axes]:
    """Draw how alike positions are: of each pair, and how it decays with distance.

    Of encodings that are added it is the cosine between two rows. Of those that rotate it is the dot product of a query and a key, equal
    before they were rotated, relative to that at distance 0: the mean of cos(distance * w_i). The distance is query minus key.

    Parameters
    ----------
    encoding
        As ``heatmap``. One with a scaling rule is compared with itself without the rule.
    length
        Number of positions, at most 4096. None: 256, at most as many as a table has, or those of a grid.
    dim
        Width D >= 1. None: 128, or that of a table.
    axes
        Two axes. None: those of a figure of its own.

    Returns
    -------
    (matplotlib.axes.Axes, matplotlib.axes.Axes)
        The map of all pairs, and the curve by distance, with a band from the least to the greatest where it is not one value.

    Raises
    ------
    ImportError, TypeError, ValueError
        As ``heatmap``.

    Examples
    --------
    >>> import fastpe.plot
    >>> fastpe.plot.similarity("rotary", length=64)[1].get_xlabel()
    'distance, query - key (positions)'
    """
    chosen = values.chosen("similarity", encoding)
    count, width = values.length_of("similarity", chosen, length, COMPARED), values.width_of("similarity", chosen, dim)
    compared = values.similarity("similarity", chosen, count, width)
    plain = None
    if getattr(chosen, "scaling", None) is not None:
        plain = values.similarity("similarity", replace(chosen, scaling=None), count, width)
    (left, right), own = figures.panels(axes, 2, ncols=2, width_ratios=(1, 1.15))
    extent = (-0.5, count - 0.5, count - 0.5, -0.5)
    least = min(0.0, float(compared.pairs.min()))
    image = left.imshow(compared.pairs, cmap=figures.MAP, vmin=least, vmax=1, extent=extent)
    what = "dot product, 1 at distance 0" if values.is_rotary(chosen) else "cosine similarity"
    figures.bar(left, image, what, (least, 1), location="bottom")
    left.set_xlabel("key position" if values.is_rotary(chosen) else "position")
    left.set_ylabel("query position" if values.is_rotary(chosen) else "position")
    figures.integers(left.xaxis, left.yaxis)
    distances = np.arange(count)
    if plain is not None:
        right.plot(distances, plain.mean, color=figures.REFERENCE, linewidth=1.2, label="without the rule")
    right.fill_between(distances, compared.least, compared.largest, color=figures.COLOURS[0], alpha=0.25, linewidth=0)
    right.plot(
        distances, compared.mean, color=figures.COLOURS[0], linewidth=1.8, label="with it" if plain is not None else None
    )
    right.axhline(0, color="0.3", linewidth=0.8)
    right.set_xlim(0, max(count - 1, 1))
    right.set_ylim(top=1.02)
    right.set_xlabel("distance, query - key (positions)")
    right.set_ylabel(what)
    figures.integers(right.xaxis)
    figures.lines(right)
    if plain is not None:
        right.legend(frameon=False, loc="upper right", fontsize=9)
    name = type(chosen).__name__
    what = "a query and an equal key" if values.is_rotary(chosen) else "two positions"
    figures.title(left, f"How alike are {what}, by distance? {name}, D = {width:,}", chosen, left.figure if own else None)
    return left, right
