"""The additive sinusoidal encoding and its plan."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .. import checks, phase

LAYOUTS = ("interleaved", "concatenated")
ANCHOR_ROWS = 8  # rows that share one evaluation of the polynomials; part of the definition of the bits


@dataclass(frozen=True)
class Sinusoidal:
    """Sines and cosines of geometrically spaced frequencies, to be added to an embedding.

    ``PE[p, f] = amplitude * sin(p * w_f)`` and ``amplitude * cos(p * w_f)``, with ``w_f = position_scale * base^(-f / (F - shift))``.

    Parameters
    ----------
    base
        The longest wavelength is about ``2 pi base`` positions. A finite number > 0.
    layout
        ``"interleaved"``: column 2f is the sine and 2f + 1 the cosine of frequency f (Vaswani et al. 2017).
        ``"concatenated"``: all sines, then all cosines (tensor2tensor, fairseq, Whisper, diffusion models).
    cos_first
        Swap the roles of sine and cosine: each cosine stands before its sine.
    frequency_shift
        ``F - shift`` is the denominator of the exponent. 0: Vaswani et al.; 1: tensor2tensor, fairseq, Whisper, DDPM. A finite
        number.
    amplitude
        Factor on the encoding. A finite number.
    position_scale
        Factor on the positions; 1/4 stretches the context four times (position interpolation, Chen et al. 2023). A finite
        number > 0.

    Notes
    -----
    Odd widths D follow the sources. With shift 0, ``w_f = base^(-2f/D)``, ``F = ceil(D/2)``, and the column without a partner holds
    the function that comes first: the last column of the interleaved layout, the last of the first block of the concatenated one.
    Otherwise ``F = floor(D/2)``, the denominator is ``max(F - shift, 1)`` and the last column is zero.

    References
    ----------
    Vaswani et al., "Attention Is All You Need", 2017, section 3.5. tensor2tensor, ``common_attention.get_timing_signal_1d``.
    """

    base: float = 10000.0
    layout: str = "interleaved"
    cos_first: bool = False
    frequency_shift: float = 0
    amplitude: float = 1.0
    position_scale: float = 1.0

    def __post_init__(self) -> None:
        numbers = {
            "base": checks.positive_number("Sinusoidal", "base", self.base),
            "frequency_shift": checks.number("Sinusoidal", "frequency_shift", self.frequency_shift),
            "amplitude": checks.number("Sinusoidal", "amplitude", self.amplitude),
            "position_scale": checks.positive_number("Sinusoidal", "position_scale", self.position_scale),
        }
        checks.one_of("Sinusoidal", "layout", self.layout, LAYOUTS)
        checks.boolean("Sinusoidal", "cos_first", self.cos_first)
        for name, value in numbers.items():  # plain floats, whatever kind of number came
            object.__setattr__(self, name, value)

    def frequencies(self, dim: int) -> tuple[npt.NDArray[np.float64], float]:
        """Return the angular frequencies for a width and the amplitude.

        Parameters
        ----------
        dim
            Width D >= 1.

        Returns
        -------
        frequencies : (F,) float64
            Radians per position, correctly rounded.
        amplitude : float

        Examples
        --------
        >>> import fastpe
        >>> fastpe.Sinusoidal().frequencies(4)
        (array([1.  , 0.01]), 1.0)
        """
        checks.width("Sinusoidal.frequencies", "dim", dim)
        return self._spectrum(dim)[0].copy(), float(self.amplitude)

    def plan(self, dim: int) -> SinusoidalPlan:
        """Return what the kernels need for width ``dim``; cached by value."""
        return _plan(self, dim)

    def _spectrum(self, dim: int) -> tuple[npt.NDArray[np.float64], phase.Turns]:
        if self.frequency_shift == 0:
            return phase.geometric(self.base, (2, dim), (dim + 1) // 2, self.position_scale)
        count = dim // 2
        denominator = max(count - self.frequency_shift, 1)
        return phase.geometric(self.base, (1, denominator), count, self.position_scale)


@dataclass(frozen=True, eq=False)
class SinusoidalPlan:
    """Exact frequencies and column layout for one width D; F = ceil(D/2).

    ``second_half`` is the first column of the second block of the concatenated layout. ``tail_column`` is the column without a
    partner (-1 if D is even); its frequency is the last one.
    """

    key: tuple[Sinusoidal, int]
    width: int
    turns: phase.Turns
    interleaved: bool
    cosine_first: bool
    second_half: int
    tail_column: int
    tail_is_cosine: bool
    amplitude: float

    @property
    def columns(self) -> tuple[int | float, ...]:
        """The layout as the kernels' argument block has it."""
        return (self.interleaved, self.cosine_first, self.second_half, self.tail_column, self.tail_is_cosine, self.amplitude)

    # No cached_property: before Python 3.12 it holds a lock, which a fork could leave locked. The backends keep what they need.
    @property
    def rotations(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """cos(j w_f) and sin(j w_f), each (8, F) float32, for j = 0 ... 7.

        The sines are negated where the cosine comes first: then one rotation serves both orders,
        ``first' = first cos + second sin`` and ``second' = second cos - first sin``.
        """
        rows = np.arange(ANCHOR_ROWS, dtype=np.uint64)[:, None]
        sine, cosine = phase.sine_cosine(rows * self.turns.fraction[None, :])
        return cosine.astype(np.float32), (-sine if self.cosine_first else sine).astype(np.float32)


@functools.lru_cache(maxsize=128)
def _plan(encoding: Sinusoidal, dim: int) -> SinusoidalPlan:
    try:
        _, turns = encoding._spectrum(dim)
    except OverflowError as error:
        rule = "base and position_scale must give frequencies below 2^32 turns a position"
        raise ValueError(checks.message("Sinusoidal", rule, f"{error} for {encoding} and width {dim}")) from None
    odd, source_pads = dim % 2 == 1, encoding.frequency_shift != 0
    if odd and source_pads:  # the zero column: the sine of frequency zero
        turns = phase.Turns(np.append(turns.fraction, np.uint64(0)), np.append(turns.whole, np.uint64(0)))
    interleaved = encoding.layout == "interleaved"
    tail = -1 if not odd else dim // 2 if not interleaved and not source_pads else dim - 1
    return SinusoidalPlan(
        key=(encoding, dim),
        width=dim,
        turns=turns,
        interleaved=interleaved,
        cosine_first=encoding.cos_first,
        second_half=dim // 2 if source_pads else (dim + 1) // 2,
        tail_column=tail,
        tail_is_cosine=odd and encoding.cos_first and not source_pads,
        amplitude=float(encoding.amplitude),
    )
