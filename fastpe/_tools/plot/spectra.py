"""What a scaling rule does to wavelengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..._core import checks
from ..._core.checks import describe, message
from ...encodings import Rotary, Sinusoidal
from ...scaling import NTK, Linear, Llama3, Scaling, YaRN
from . import figures, named

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HasWavelengths: TypeAlias = Rotary | Sinusoidal | Scaling | str
FUNCTION = "wavelengths"
MOST_RULES = len(figures.COLOURS)
WIDTH = 128
USUAL = (Linear(8), NTK(8), YaRN(factor=8, original_max_position=8192), Llama3(factor=8, original_max_position=8192))


class Spectrum(NamedTuple):
    """Wavelengths in positions (F,), inf where a pair is not rotated; those without the rule; the attention factor."""

    scaled: npt.NDArray[np.float64]
    plain: npt.NDArray[np.float64]
    attention_factor: float

    @property
    def stretch(self) -> npt.NDArray[np.float64]:
        """How many times longer a wavelength is than without the rule."""
        return self.scaled / self.plain


def spectrum(encoding: Rotary | Sinusoidal, dim: int, seq_len: int | None) -> Spectrum:
    """Wavelengths with and without the rule of an encoding."""
    scaled, factor = encoding.frequencies(dim, seq_len)
    plain, _ = replace(encoding, scaling=None).frequencies(dim, seq_len)
    with np.errstate(divide="ignore"):
        return Spectrum(2 * math.pi / scaled, 2 * math.pi / plain, factor if isinstance(encoding, Rotary) else 1.0)


def wavelengths(
    encodings: HasWavelengths | Sequence[HasWavelengths] | None = None,
    length: int | None = None,
    dim: int | None = None,
    *,
    trained: int | None = None,
    axes: figures.SeveralAxes | None = None,
) -> tuple[Axes, Axes]:
    """Draw the wavelengths of scaling rules beside the plain ones, and how many times each is stretched.

    A pair whose wavelength exceeds the trained length has never made a whole turn in training; rules for longer contexts stretch those, and
    leave alone the ones that turned often.

    Parameters
    ----------
    encodings
        A ``Rotary`` or ``Sinusoidal``, a rule of ``fastpe.scaling`` (of a ``Rotary()``), a text of either, or a sequence of up to seven of
        them, of one base. None: ``Rotary()``. One without a rule is drawn with the usual rules: ``Linear``, ``NTK``, ``YaRN`` and
        ``Llama3``, by 8 from 8192.
    length
        The context to reach, in positions; it is also the length of rules that depend on it. None: the trained one times the rule's factor,
        where both are known.
    dim
        Width D of a head, or of embeddings. None: 128.
    trained
        The context of the training. None: ``original_max_position`` of the rules, where they have one.
    axes
        Two axes. None: those of a figure of its own.

    Returns
    -------
    (matplotlib.axes.Axes, matplotlib.axes.Axes)
        Wavelengths, and by how much they are stretched.

    Raises
    ------
    ImportError, TypeError, ValueError
        As ``heatmap``; an encoding has no wavelengths.

    Examples
    --------
    >>> import fastpe.plot
    >>> rules = [fastpe.scaling.YaRN(factor=8, original_max_position=4096), "ntk:factor=8"]
    >>> fastpe.plot.wavelengths(rules)[1].get_ylabel()
    'times longer'
    """
    several = list(encodings) if isinstance(encodings, Sequence) and not isinstance(encodings, str) else [encodings]
    if not 1 <= len(several) <= MOST_RULES:
        rule = f"encodings must be 1 to {MOST_RULES} of them"
        raise ValueError(message(FUNCTION, rule, str(len(several)), "More curves could not be told apart."))
    chosen = [_chosen(one) for one in several]
    if len(chosen) == 1 and chosen[0].scaling is None:
        chosen = [replace(chosen[0], scaling=rule) for rule in USUAL]
    width = WIDTH if dim is None else checks.width(FUNCTION, "dim", dim)
    checks.sequence_length(FUNCTION, length)
    if trained is not None and checks.integer(FUNCTION, "trained", trained) < 1:
        raise ValueError(message(FUNCTION, "trained must be at least 1", str(trained)))
    known = {getattr(one.scaling, "original_max_position", None) for one in chosen} - {None}
    trained = trained if trained is not None else known.pop() if len(known) == 1 else None
    target = length if length is not None else _target(chosen, trained)
    spectra = [spectrum(one, width, target) for one in chosen]
    (upper, lower), own = figures.panels(axes, 2, 5.4, nrows=2, sharex=True, height_ratios=(1.7, 1))
    _draw(upper, lower, chosen, spectra)
    _lengths(upper, trained, target)
    if own:
        one = chosen[0]
        base = f"base {figures.number(one.base)}, D = {width:,}"
        figures.title(upper, f"Which wavelengths do rules stretch? {type(one).__name__}, {base}", above=upper.figure)
    figures.legend(upper, own)
    return upper, lower


def _chosen(given: Any) -> Rotary | Sinusoidal:
    if isinstance(given, str):
        name = given.partition(":")[0].partition("(")[0].strip().lower()
        given = named.rule(given) if name in named.rules() else named.encoding(given)
    if given is None:
        return Rotary()
    if isinstance(given, Scaling):
        return Rotary(scaling=given)
    if not isinstance(given, (Rotary, Sinusoidal)):
        rule = "encodings must be a Rotary, a Sinusoidal or a rule of fastpe.scaling, which have wavelengths"
        raise TypeError(message(FUNCTION, rule, describe(given)))
    return given


def _target(chosen: list[Any], trained: int | None) -> int | None:
    factors = [one.scaling.factor for one in chosen if hasattr(one.scaling, "factor")]
    return round(trained * max(factors)) if trained is not None and factors else None


def _draw(upper: Axes, lower: Axes, chosen: list[Any], spectra: list[Spectrum]) -> None:
    """Wavelengths above, and below by how much they are stretched."""
    upper.plot(spectra[0].plain, color=figures.REFERENCE, linewidth=3.5, alpha=0.5, label="plain", solid_capstyle="butt")
    lower.axhline(1, color=figures.REFERENCE, linewidth=3.5, alpha=0.5)
    thickness = np.linspace(2.4, 1.6, len(chosen)) if len(chosen) > 1 else [1.8]  # so that all curves that coincide are visible
    looks = zip(figures.COLOURS, figures.STYLES, thickness, strict=False)
    for one, spectrum_of, (colour, style, wide) in zip(chosen, spectra, looks, strict=False):
        if one.scaling is None:
            continue
        finite = np.isfinite(spectrum_of.scaled)
        label = figures.rule(one.scaling)
        if spectrum_of.attention_factor != 1:
            label += f", attention x {spectrum_of.attention_factor:.3g}"
        if not finite.all():
            label += f", {np.count_nonzero(~finite)} stand still"
        upper.plot(np.where(finite, spectrum_of.scaled, np.nan), color=colour, linestyle=style, linewidth=wide, label=label)
        lower.plot(np.where(finite, spectrum_of.stretch, np.nan), color=colour, linestyle=style, linewidth=wide)
    upper.set_yscale("log")
    upper.set_ylabel("wavelength (positions)")
    lower.set_ylabel("times longer")
    lower.set_xlabel("frequency (0 is the fastest)")
    lower.set_ylim(0, max(1.5, lower.get_ylim()[1]))
    lower.margins(y=0.15)
    figures.integers(lower.yaxis, most=5)
    for axes in (upper, lower):
        figures.lines(axes)
        figures.integers(axes.xaxis)
        axes.set_xlim(0, max(len(spectra[0].plain) - 1, 1))


def _lengths(axes: Axes, trained: int | None, target: int | None) -> None:
    """Lines at the trained length and at the one to reach."""
    for what, length, style in (("trained", trained, "--"), ("target", target, ":")):
        if length is not None and not (what == "target" and length == trained):
            axes.axhline(length, color="black", linewidth=1, linestyle=style)
            axes.annotate(
                f"{what} length {length:,}", (0, length), (4, 3), ("axes fraction", "data"), "offset points", fontsize=9
            )
