"""What all pictures share: figures without a display, their size, colours and marks, and how they are saved."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..._core import checks
from ...encodings.protocol import Additive, Rotational

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    SeveralAxes: TypeAlias = Sequence[Axes] | npt.NDArray[Any]  # matplotlib's subplots makes arrays

Drawn: TypeAlias = Additive | Rotational | str

INSTALL = "plots need matplotlib: pip install 'fastpe[plot]'"
WIDTH, HEIGHT, DPI = 8.0, 4.5, 150  # 1200 pixels, sharp where a page shows them 800 wide
MAP = "cividis"  # its lightness grows with the value: told apart by people who are colour-blind, and in grey
ABSENT = "0.85"
# Okabe and Ito's colours, without their yellow, which is pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))  # beside colours, for a print in grey
REFERENCE = "0.45"  # of lines that others are compared with


def require(path: str | os.PathLike[str] | None = None) -> None:
    """Raise if matplotlib is missing (ImportError) or cannot write a file with this ending (ValueError)."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise ImportError(f"plot: {INSTALL} ({error}).") from None
    known = FigureCanvasAgg.get_supported_filetypes()
    if path is not None and (_ending(path) or "png") not in known:
        rule = f"path must end with one of {', '.join(sorted(known))}"
        raise ValueError(checks.message("plot", rule, repr(os.fspath(path))))


def _ending(path: str | os.PathLike[str]) -> str:
    return os.path.splitext(os.fspath(path))[1][1:].lower()


def panels(
    given: Axes | SeveralAxes | None, count: int = 1, height: float = HEIGHT, width: float = WIDTH, **options: Any
) -> tuple[list[Axes], bool]:
    """The caller's axes, or those of a new figure, and whether it is new. ``options`` are those of ``Figure.subplots``."""
    if given is not None:
        given_axes = list(np.ravel(np.array(given, dtype=object)))
        if len(given_axes) != count or not all(hasattr(one, "plot") for one in given_axes):
            rule = "axes must be " + ("one of matplotlib's axes" if count == 1 else f"{count} of matplotlib's axes")
            raise TypeError(checks.message("plot", rule, checks.describe(given)))
        return given_axes, False
    require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    FigureCanvasAgg(figure)  # draws without a display and without pyplot's global state
    return list(np.ravel(figure.subplots(**options))), True


def save(axes: Axes | SeveralAxes, path: str | os.PathLike[str]) -> None:
    """Write the figure of axes to a file. Its ending chooses the format; PNG without one.

    Parameters
    ----------
    axes
        What a function of ``fastpe.plot`` returned.
    path
        Where to. A file that exists is replaced.

    Raises
    ------
    ValueError
        ``path`` has an ending that matplotlib cannot write.
    OSError
        The file cannot be written.
    """
    require(path)
    ending = _ending(path) or "png"
    first = np.ravel(np.array(axes, dtype=object))[0]
    # Without the version that matplotlib would write, the same picture has the same bytes.
    options: dict[str, Any] = {"metadata": {"Software": None}} if ending == "png" else {}
    first.figure.savefig(path, format=ending, **options)


# ---- marks -------------------------------------------------------------------------------------------------------------------


def lines(axes: Axes) -> None:
    """The look of a picture of curves: no box, a faint grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def integers(*axes: Any, most: int = 8) -> None:
    """Ticks at round integers, with separated thousands."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(nbins=most, steps=[1, 2, 4, 5, 10], integer=True, min_n_ticks=1))
        axis.set_major_formatter("{x:,.0f}")


def bar(axes: Axes, image: Any, label: str | None, limits: tuple[float, float], **options: Any) -> None:
    """What colours mean, with ticks at the ends and evenly between."""
    from matplotlib.ticker import MaxNLocator

    ticks = [tick for tick in MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(*limits) if limits[0] <= tick <= limits[1]]
    colorbar = axes.figure.colorbar(image, ax=axes, ticks=ticks, format="{x:.4g}", pad=0.02, aspect=30, **options)
    colorbar.outline.set_linewidth(0.5)
    if label is not None:
        colorbar.set_label(label)


def colour_map() -> Any:
    """The map of values; grey where there is none."""
    from matplotlib import colormaps

    return colormaps[MAP].with_extremes(bad=ABSENT)


def steps(levels: Any) -> Any:
    """Colours between levels: for filled contours, and for a bar whichever of them were drawn."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    colours = colour_map()
    return ScalarMappable(BoundaryNorm(levels, colours.N), colours)


def legend(axes: Axes, own: bool) -> None:
    """What curves mean: under a figure of its own, where nothing is covered, else in the caller's axes."""
    if own:
        handles, labels = axes.get_legend_handles_labels()
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9.5)
    else:
        axes.legend(frameon=False, fontsize=9)


def title(axes: Axes, what: str, encoding: Any = None, above: Any = None) -> None:
    """What is shown, and under it in small letters every setting of the encoding that is not its default.

    ``above``: the figure, where the title is that of several axes, of which ``axes`` are the first.
    """
    under = settings(encoding)
    if above is not None:
        above.suptitle(what, fontsize=12, x=0.015, ha="left", fontweight="bold")
        axes.set_title(under, loc="left", fontsize=9, color="0.3")
        return
    pad = 12 * (under.count("\n") + 1) if under else 0
    axes.set_title(what, loc="left", fontsize=12, fontweight="bold", pad=7 + pad)
    if under:
        axes.annotate(under, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=9, color="0.3")


def settings(encoding: Any) -> str:
    """Every setting that differs from its default, in lines of at most 100 characters."""
    if encoding is None:
        return ""
    changed = []
    for field in dataclasses.fields(encoding):
        if not field.repr or field.name == "heads":  # titles have the number of heads
            continue
        given = getattr(encoding, field.name)
        if isinstance(given, np.ndarray) or hasattr(given, "shape"):
            changed.append(f"{field.name}: {' x '.join(map(str, given.shape))}")
        elif given != field.default:
            changed.append(f"{field.name.replace('_', ' ')}: {number(given)}")
    return textwrap.fill(", ".join(changed), 100)


def number(value: Any) -> str:
    """A setting in few characters."""
    if isinstance(value, float):
        return f"{value:,.6g}" if 1e-4 <= abs(value) < 1e9 or value == 0 else f"{value:g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, tuple) and len(value) > 6:
        return f"{len(value)} numbers"
    if dataclasses.is_dataclass(value):
        name, _, inside = rule(value).partition(", ")
        return f"{name} ({inside})" if inside else name
    return str(value)


def rule(value: Any) -> str:
    """A scaling rule by its name and what it was given: ``YaRN, factor 4, original max position 32,768``."""
    if value is None:
        return "plain"
    inside = [type(value).__name__]
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        if field.name in ("factor", "original_max_position") or field.default is dataclasses.MISSING or given != field.default:
            inside.append(f"{field.name.replace('_', ' ')} {number(given)}")
    return ", ".join(inside)
