"""The additive sinusoidal encoding and its plan."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .._backends.plans import SinusoidalPlan, Turns
from .._core import checks, phase
from .protocol import Additive

if TYPE_CHECKING:
    from .. import scaling

LAYOUTS = ("interleaved", "concatenated")


@dataclass(frozen=True)
class Sinusoidal(Additive):
    """Sines and cosines of geometrically spaced frequencies, to be added to an embedding.

    ``PE[p, f] = amplitude * sin(p * w_f)`` and ``amplitude * cos(p * w_f)``, with ``w_f = position_scale * base^(-f / (F - shift))``.

    Odd widths D follow the sources. With shift 0 and without ``zero_pad``, ``w_f = base^(-2f/D)`` and ``F = ceil(D/2)``. The column without
    a partner then has the function that comes first; it is the last column of the interleaved layout, and the last of the first block of
    the concatenated one. Otherwise ``F = floor(D/2)``, the denominator is ``max(F - shift, 1)`` and the last column is zero.

    Vaswani et al., "Attention Is All You Need", 2017, section 3.5. tensor2tensor, ``common_attention.get_timing_signal_1d``.

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
        ``F - shift`` is the denominator of the exponent. 0: Vaswani et al.; 1: tensor2tensor, fairseq, Whisper, DDPM. Finite.
    amplitude, position_scale
        Finite factors on the encoding, and (> 0) on the positions; 1/4 stretches the context four times (position interpolation, Chen et
        al. 2023).
    scaling
        A rule of ``fastpe.scaling`` for contexts longer than those trained on, or None: it takes the plain frequencies (without
        ``position_scale``) to others. Its attention factor is not used, as there is no attention to scale.
    zero_pad
        Make the last column of an odd width zero even with shift 0, as in diffusion models.
    """

    base: float = 10000.0
    layout: str = "interleaved"
    cos_first: bool = False
    frequency_shift: float = 0
    amplitude: float = 1.0
    position_scale: float = 1.0
    scaling: scaling.Scaling | None = None
    zero_pad: bool = False

    __hash__ = Additive.__hash__

    def __post_init__(self) -> None:
        numbers = {
            "base": checks.positive_number("Sinusoidal", "base", self.base),
            "frequency_shift": checks.number("Sinusoidal", "frequency_shift", self.frequency_shift),
            "amplitude": checks.number("Sinusoidal", "amplitude", self.amplitude),
            "position_scale": checks.positive_number("Sinusoidal", "position_scale", self.position_scale),
        }
        checks.one_of("Sinusoidal", "layout", self.layout, LAYOUTS)
        checks.boolean("Sinusoidal", "cos_first", self.cos_first)
        checks.boolean("Sinusoidal", "zero_pad", self.zero_pad)
        if self.scaling is not None:
            from .. import scaling

            scaling.check("Sinusoidal", self.scaling)
        super().__post_init__(**numbers)

    @classmethod
    def timesteps(
        cls, *, flip_sin_to_cos: bool = False, downscale_freq_shift: float = 1, scale: float = 1.0, max_period: float = 10000.0
    ) -> Sinusoidal:
        """Return the embedding of a diffusion model's timesteps, with the names and defaults of diffusers' ``get_timestep_embedding``.

        ``scale * t * max_period^(-i / (D//2 - downscale_freq_shift))``, all sines, then all cosines (or, with ``flip_sin_to_cos``, the
        other way round); an odd width ends with zero. The shift is 1 in DDPM. Stable Diffusion, GLIDE and DiT have shift 0 and cosines
        first. ``scale`` is 1000 where timesteps go from 0 to 1.

        Examples
        --------
        >>> import fastpe
        >>> fastpe.encode([0, 0.5, 999.25], 4, fastpe.Sinusoidal.timesteps(flip_sin_to_cos=True, downscale_freq_shift=0)).round(3)
        array([[ 1.   ,  1.   ,  0.   ,  0.   ],
               [ 0.878,  1.   ,  0.479,  0.005],
               [ 0.975, -0.843,  0.222, -0.538]], dtype=float32)
        """
        return cls(max_period, "concatenated", flip_sin_to_cos, downscale_freq_shift, 1.0, scale, zero_pad=True)

    @property
    def needs_length(self) -> bool:
        return self.scaling is not None and self.scaling.needs_length

    def frequencies(self, dim: int, seq_len: int | None = None) -> tuple[npt.NDArray[np.float64], float]:
        """Return the frequencies for a width D, (F,) float64 in radians a position, correctly rounded; and the amplitude.

        ``seq_len`` is for a rule that depends on the length of the sequence; None is the length that the model was trained on.

        Examples
        --------
        >>> import fastpe
        >>> fastpe.Sinusoidal().frequencies(4)
        (array([1.  , 0.01]), 1.0)
        """
        checks.width("Sinusoidal.frequencies", "dim", dim)
        checks.sequence_length("Sinusoidal.frequencies", seq_len)
        return self._spectrum(dim, seq_len)[0].copy(), float(self.amplitude)

    def plan(self, dim: int, seq_len: int | None = None) -> SinusoidalPlan:
        return _plan(self, dim, seq_len if self.needs_length else None)

    @property
    def _pads(self) -> bool:
        """Whether an odd width ends with zero."""
        return self.frequency_shift != 0 or self.zero_pad

    def _spectrum(self, dim: int, seq_len: int | None) -> tuple[npt.NDArray[np.float64], Turns]:
        count = dim // 2 if self._pads else (dim + 1) // 2
        width = 2 * max(count - self.frequency_shift, 1) if self._pads else dim  # of base^(-2f/width)
        if self.scaling is None:
            return phase.geometric(self.base, (2, width), count, self.position_scale)
        from .. import scaling

        with phase.precise():
            frequencies, _ = self.scaling.apply(scaling.Plain(self.base, width, count, seq_len))
            return phase.rounded([w * Decimal(self.position_scale) for w in frequencies])


@functools.lru_cache(maxsize=128)
def _plan(encoding: Sinusoidal, dim: int, seq_len: int | None) -> SinusoidalPlan:
    try:
        _, turns = encoding._spectrum(dim, seq_len)
    except OverflowError as error:
        rule = "base and position_scale must give frequencies below 2^32 turns a position"
        raise ValueError(checks.message("Sinusoidal", rule, f"{error} for {encoding} and width {dim}")) from None
    odd, source_pads = dim % 2 == 1, encoding._pads
    if odd and source_pads:  # the zero column: the sine of frequency zero
        turns = Turns(np.append(turns.fraction, np.uint64(0)), np.append(turns.whole, np.uint64(0)))
    interleaved = encoding.layout == "interleaved"
    tail = -1 if not odd else dim // 2 if not interleaved and not source_pads else dim - 1
    return SinusoidalPlan(
        key=(encoding, dim, seq_len),
        width=dim,
        turns=turns,
        interleaved=interleaved,
        cosine_first=encoding.cos_first,
        second_half=dim // 2 if source_pads else (dim + 1) // 2,
        tail_column=tail,
        tail_is_cosine=odd and encoding.cos_first and not source_pads,
        amplitude=float(encoding.amplitude),
        of_length=seq_len is not None,
    )
