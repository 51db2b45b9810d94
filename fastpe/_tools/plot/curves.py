"""Curves by position and by distance: errors of angles, biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..._core import checks
from ..._core.checks import describe, message
from ...encodings.bias import ALiBi, Bias
from ...encodings.buckets import LogBuckets, RelativeTable
from . import figures, named, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAR = 10**7
MOST_DISTANCES = 1 << 17
LABELLED = 8  # heads that have a label of their own


def error(
    encoding: figures.Drawn | None = None, length: int | None = None, dim: int | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the largest error of sines and cosines by position, of fastpe and of the ways in which tables are usually made.

    All are compared with angles that are reduced in integers. "Float32 angles" are float32 positions times float32 frequencies, as models
    compute them; the same stored in a bfloat16 table; and with frequencies that were cast to bfloat16 with the model.

    Parameters
    ----------
    encoding
        A ``Sinusoidal`` or a ``Rotary``, a text, or None for ``Sinusoidal()``. Amplitude, attention factor and xPos are left out.
    length
        Positions from 1 to this. None: 10^7.
    dim
        Width D >= 2. None: 128.
    ax
        As ``heatmap``.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError, TypeError, ValueError
        As ``heatmap``; the encoding has no angles.

    Examples
    --------
    >>> import fastpe.plot
    >>> fastpe.plot.error("rotary", length=100_000).get_yscale()
    'log'
    """
    chosen = values.chosen("error", encoding)
    count, width = values.length_of("error", chosen, length, FAR), values.width_of("error", chosen, dim)
    positions, computed = values.errors("error", chosen, count, width)
    (axes,), own = figures.panels(ax)
    for (name, errors), colour, style in zip(computed.items(), figures.COLOURS, figures.STYLES, strict=False):
        width_of_line = 2.4 if name == values.FASTPE else 1.5
        axes.plot(positions, errors, label=name, color=colour, linestyle=style, linewidth=width_of_line)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1, count)
    axes.set_xlabel("position")
    axes.set_ylabel("largest error of a sine or cosine")
    figures.lines(axes)
    figures.legend(axes, own)
    figures.title(axes, f"How wrong do angles become? {type(chosen).__name__}, D = {width:,}", chosen)
    return axes


def bias(encoding: Bias | str | None = None, length: int | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw what a bias adds to scores, by distance, one curve a head.

    Parameters
    ----------
    encoding
        ``ALiBi``, ``T5Bias``, ``Kerple``, ``Sandwich``, ``FIRE`` or another bias, a text such as ``"alibi:heads=12"``, or None for
        ``ALiBi(8)``.
    length
        The greatest distance, query minus key. None: 256. Biases that serve encoders are drawn for keys after the query too.
    ax
        As ``heatmap``.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError, TypeError, ValueError
        As ``heatmap``; the encoding is no bias.

    Notes
    -----
    FIRE depends on the query's position beside the distance; it is drawn for the query at ``length``.

    Examples
    --------
    >>> import fastpe.plot
    >>> fastpe.plot.bias("alibi:heads=4", length=64).get_ylabel()
    'added to the score (logarithmic)'
    """
    chosen = ALiBi(8) if encoding is None else named.encoding(encoding) if isinstance(encoding, str) else encoding
    if not isinstance(chosen, Bias):
        kinds = ", ".join(name for name, kind in named.encodings().items() if issubclass(kind, Bias))
        rule = f"encoding must be a bias on scores ({kinds})"
        raise TypeError(message("bias", rule, describe(chosen), "fastpe.plot.heatmap (plot heatmap) shows others."))
    reach = 256 if length is None else checks.integer("bias", "length", length)
    if not 1 <= reach <= MOST_DISTANCES:
        raise ValueError(message("bias", f"length must lie in [1, {MOST_DISTANCES}]", str(reach)))
    first = -reach if _for_encoders(chosen) else 0
    distances = np.arange(first, reach + 1)
    biases = chosen.values(distances, np.full_like(distances, reach) if chosen.normalises else None)
    (axes,), _ = figures.panels(ax)
    _heads(axes, distances, biases)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set_xlim(first, reach)
    axes.set_xlabel("distance, query - key (positions)")
    axes.set_ylabel("added to the score")
    _separate(axes, biases)
    figures.integers(axes.xaxis)
    figures.lines(axes)
    at = f", query at {reach:,}" if chosen.normalises else ""
    figures.title(axes, f"What does {type(chosen).__name__} add to the scores of its {chosen.heads:,} heads{at}?", chosen)
    return axes


def _for_encoders(bias: Bias) -> bool:
    """Whether keys after the query get a bias that a model uses."""
    return isinstance(bias, (LogBuckets, RelativeTable)) or bool(
        getattr(bias, "symmetric", False) or getattr(bias, "bidirectional", False)
    )


def _separate(axes: Axes, biases: Any) -> None:
    """A logarithmic scale where heads differ by so much that on a linear one the weak ones would lie on zero."""
    greatest = np.abs(biases).max(tuple(range(1, biases.ndim)))
    if 0 < greatest.min() < greatest.max() / 30:
        axes.set_yscale("symlog", linthresh=float(greatest.min()) / 4, linscale=0.4)
        axes.set_ylim(min(1.3 * float(biases.min()), 0), max(1.3 * float(biases.max()), 0))
        axes.set_ylabel("added to the score (logarithmic)")


def _heads(axes: Axes, distances: Any, biases: Any) -> None:
    """A curve a head; few have labels, many a bar."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    heads = len(biases)
    colours = colormaps[figures.MAP].resampled(256)
    scale = Normalize(1, max(heads, 2))
    end = 0.75  # the map's last yellows are hard to see on white
    for head, curve in enumerate(biases, 1):
        axes.plot(distances, curve, color=colours(scale(head) * end), linewidth=1.5, label=f"{head}")
    if heads <= LABELLED:
        axes.legend(title="head", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        from matplotlib.colors import ListedColormap

        shown = ListedColormap(colours(np.linspace(0, end, 256)))
        figures.bar(axes, ScalarMappable(scale, shown), "head", (1, heads))
