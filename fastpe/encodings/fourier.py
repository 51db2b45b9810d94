"""Fourier features of coordinates: sines and cosines of several axes, with frequencies of any kind."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from .._arrays import Memory
from .._backends.plans import RotaryPlan, SinusoidalPlan, Turns
from .._core import checks, phase
from .._core.checks import message
from .._core.fourier_features import features
from .._core.grid_rows import check_axes
from .protocol import Encoding
from .sinusoidal import Sinusoidal

if TYPE_CHECKING:
    from .._core.annotations import Reals

ORDER = ("axis", "band", "function")
# Kernels have positions in steps of 2^-32. They get coordinates 2^16 times as large, and frequencies 2^16 times as small.
FINE = 16
LIMIT = 2.0 ** (31 - FINE)


@dataclass(frozen=True)
class Fourier(Encoding):
    """Sines and cosines of coordinates, for ``encode``: random features, NeRF's octaves, the bands of images.

    ``a_k = sum over axes c_a * matrix[a][k]`` in radians, ``c = position_scale * position + position_shift``. With ``bands`` each axis has
    angles of its own: ``a_(a, k) = c_a * bands[k]``.

    Coordinates lie in (-32768, 32768) and are rounded to 2^-48. All is computed in float64 and rounded once.

    Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains", 2020 (arXiv 2006.10739).
    Mildenhall et al., "NeRF", 2020 (arXiv 2003.08934).

    Parameters
    ----------
    axes
        How many axes positions have; it is the size of their first axis.
    bands : (F,) numbers
        Radians a unit, the same for each axis.
    matrix : (axes, F) numbers
        In place of bands: radians a unit of each axis, of any sign.
    order
        The order of channels: "axis", "band" and "function" (sine or cosine), slowest first. With a matrix "axis" has no effect.
    cos_first, include_input
        Cosine before sine; the coordinates themselves before both.
    position_scale, position_shift
        Take positions to coordinates.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.encode([[0.0, 0.125]], 4, fastpe.Fourier.nerf(1, 2)).round(4)     # (axes, points)
    array([[0.    , 1.    , 0.    , 1.    ],
           [0.3827, 0.9239, 0.7071, 0.7071]], dtype=float32)
    """

    axes: int
    bands: tuple[float, ...] | None = None
    matrix: tuple[tuple[float, ...], ...] | None = None
    order: tuple[str, ...] = ORDER
    cos_first: bool = False
    include_input: bool = False
    position_scale: float = 1.0
    position_shift: float = 0.0

    encodes: ClassVar[bool] = True
    limit: ClassVar[float] = LIMIT  # of coordinates
    steps: ClassVar[float] = 2.0**FINE  # of positions in a unit of coordinates

    def __post_init__(self) -> None:
        found: dict[str, Any] = {"axes": checks.width("Fourier", "axes", self.axes)}
        if (self.bands is None) == (self.matrix is None):
            given = "both" if self.bands is not None else "neither"
            raise ValueError(message("Fourier", "bands or matrix must be given", given))
        if self.bands is not None:
            found["bands"] = checks.numbers("Fourier", "bands", self.bands)
        else:
            rows = checks.listed("Fourier", "matrix", self.matrix)
            if not isinstance(rows, (tuple, list)) or len(rows) != found["axes"]:
                rule = f"matrix must have {found['axes']} rows: one for each axis"
                raise ValueError(message("Fourier", rule, checks.describe(rows)))
            found["matrix"] = tuple(checks.numbers("Fourier", f"matrix[{i}]", row) for i, row in enumerate(rows))
            if len({len(row) for row in found["matrix"]}) > 1:
                raise ValueError(message("Fourier", "matrix must have rows of one length", "others"))
        if not isinstance(self.order, (tuple, list)) or sorted(self.order) != list(ORDER):
            raise ValueError(message("Fourier", f"order must have {', '.join(ORDER)}, each once", checks.describe(self.order)))
        found["order"] = tuple(self.order)
        checks.boolean("Fourier", "cos_first", self.cos_first)
        checks.boolean("Fourier", "include_input", self.include_input)
        for name in ("position_scale", "position_shift"):
            found[name] = checks.number("Fourier", name, getattr(self, name))
        super().__post_init__(**found)

    # ---- what models do --------------------------------------------------------------------------------------------------

    @classmethod
    def nerf(cls, axes: int, octaves: int, *, include_input: bool = False, with_pi: bool = True) -> Fourier:
        """Return NeRF's positional encoding: bands ``2^k pi``, for each band the sines of all axes and their cosines.

        Points and directions have 3 axes; points have 10 octaves, directions 4. The authors' code puts the coordinates first
        (``include_input``) and has bands ``2^k`` (``with_pi=False``).
        """
        count = checks.width("Fourier.nerf", "octaves", octaves)
        checks.boolean("Fourier.nerf", "with_pi", with_pi)
        unit = float(np.pi) if with_pi else 1.0
        bands, order = tuple(unit * 2.0**k for k in range(count)), ("band", "function", "axis")
        return cls(axes, bands, order=order, include_input=include_input)

    @classmethod
    def random(cls, matrix: Reals, *, unit_square: bool = True) -> Fourier:
        """Return random features, ``sin(2 pi c B)`` and then ``cos(2 pi c B)``, as SAM has them.

        The matrix B, (axes, F) numbers on the host, is drawn from a normal distribution, and stored with a model. ``unit_square``:
        positions x lie in 0 ... 1 and coordinates c are ``2 x - 1``, as in SAM. Otherwise coordinates are the positions.

        Examples
        --------
        >>> import numpy as np, fastpe
        >>> points = np.random.default_rng(0).random((20, 2))
        >>> features = fastpe.Fourier.random(np.random.default_rng(1).standard_normal((2, 64)))
        >>> fastpe.encode(points.T, 128, features).shape
        (20, 128)
        """
        values = np.asarray(checks.listed("Fourier.random", "matrix", matrix), np.float64)
        if values.ndim != 2:
            raise ValueError(message("Fourier.random", "matrix must have shape (axes, F)", f"shape {values.shape}"))
        checks.boolean("Fourier.random", "unit_square", unit_square)
        scale, shift = (2.0, -1.0) if unit_square else (1.0, 0.0)
        rows = tuple(tuple(row) for row in (2 * np.pi * values).tolist())
        order = ("axis", "function", "band")
        return cls(len(values), matrix=rows, order=order, position_scale=scale, position_shift=shift)

    @classmethod
    def timm(
        cls,
        num_bands: int = 64,
        *,
        axes: int = 2,
        max_res: float = 224.0,
        linear_bands: bool = True,
        temperature: float | None = None,
        include_grid: bool = True,
    ) -> Fourier:
        """Return timm's ``FourierEmbed``: for each function and band all axes, with ``include_grid`` the coordinates first.

        F = ``num_bands`` bands go from pi to ``pi max_res / 2``, in equal steps (``linear_bands``) or in equal ratios. With a
        ``temperature`` they are ``temperature^(-k/F)`` instead, for coordinates that are counted.

        Examples
        --------
        >>> import fastpe
        >>> pixels = fastpe.positions.pixels((3, 3))        # -1, 0, 1
        >>> fastpe.encode(pixels, 18, fastpe.Fourier.timm(4)).shape
        (9, 18)
        """
        count = checks.width("Fourier.timm", "num_bands", num_bands)
        most = checks.positive_number("Fourier.timm", "max_res", max_res)
        checks.boolean("Fourier.timm", "linear_bands", linear_bands)
        if temperature is not None:
            found = checks.positive_number("Fourier.timm", "temperature", temperature) ** (-np.arange(count) / count)
        elif linear_bands:
            found = np.pi * np.linspace(1.0, most / 2, count)
        else:
            found = np.pi * 2 ** np.linspace(0.0, np.log2(most) - 1, count)
        order = ("function", "band", "axis")
        return cls(axes, tuple(found.tolist()), order=order, include_input=include_grid)

    # ---- what verbs ask for ----------------------------------------------------------------------------------------------

    @property
    def angles(self) -> int:
        """How many angles a point has."""
        return len(self.matrix[0]) if self.matrix is not None else self.axes * len(self.bands or ())

    @property
    def width(self) -> int:
        """How many channels a point has."""
        return 2 * self.angles + self.axes * self.include_input

    def frequencies(self, dim: int | None = None) -> tuple[npt.NDArray[np.float64], float]:
        """Return the factors of the coordinates, (axes, angles) float64, and 1.0; ``dim`` must be the width."""
        self.check_width("Fourier.frequencies", self.width if dim is None else dim)
        return np.array(self.rows(), np.float64), 1.0

    def rows(self) -> tuple[tuple[float, ...], ...]:
        """The matrix; for bands, each axis has columns of its own."""
        if self.matrix is not None:
            return self.matrix
        bands = self.bands or ()
        none = (0.0,) * len(bands)
        return tuple(none * axis + bands + none * (self.axes - 1 - axis) for axis in range(self.axes))

    def check_width(self, function: str, dim: int) -> None:
        if checks.width(function, "dim", dim) != self.width:
            raise ValueError(message(function, f"dim must be {self.width}, the channels of this Fourier", str(dim)))

    def encodings(
        self, library: ModuleType, positions: Memory | None, out: Memory, seq_len: int | None, validate: bool
    ) -> Iterable[Any]:
        assert positions is not None
        return features("encode", self, library, positions, out, validate)

    def encoded_shape(self, function: str, positions: tuple[int, ...] | None) -> tuple[int, ...]:
        return check_axes(function, self, self.axes, super().encoded_shape(function, positions))

    def plans(self) -> tuple[SinusoidalPlan, tuple[RotaryPlan, ...]]:
        """Return the plan for the first axis, and the rotations for each other axis; cached by value."""
        return _plans(self)

    def arranged(self, made: Any) -> Any:
        """A view of cosines and sines (2, ..., angles) in the order of channels: (..., axis, band and function in ``order``)."""
        count = self.axes if self.matrix is None else 1
        split = made.reshape(*made.shape[:-1], count, self.angles // count)
        last = split.ndim - 1
        places = {"axis": last - 1, "band": last, "function": 0}
        functions = split if self.cos_first else split[::-1]
        return functions.transpose(*range(1, last - 1), *(places[name] for name in self.order))


@functools.lru_cache(maxsize=32)
def _plans(fourier: Fourier) -> tuple[SinusoidalPlan, tuple[RotaryPlan, ...]]:
    width, axes = 2 * fourier.angles, np.zeros(fourier.angles, np.int64)
    (turns, _), *others = (_turns(row) for row in fourier.rows())
    first = replace(Sinusoidal(layout="concatenated", cos_first=True).plan(width), key=("fourier", fourier, 0), turns=turns)
    rotations = (
        RotaryPlan(key=("fourier", fourier, axis), head_dim=width, rotary_dim=width, angular=angular, turns=turns, axes=axes)
        for axis, (turns, angular) in enumerate(others, 1)
    )
    return first, tuple(rotations)


def _turns(row: tuple[float, ...]) -> tuple[Turns, npt.NDArray[np.float64]]:
    """Frequencies of any sign, in turns modulo 2^64, for coordinates 2^16 times as large."""
    with phase.precise():
        magnitudes = [Decimal(abs(value)) / 2**FINE for value in row]
        try:
            angular, turns = phase.rounded(magnitudes)
        except OverflowError as error:
            raise ValueError(message("Fourier", "frequencies must lie below 2^48 turns a unit", f"{error} / 2^16")) from None
    negative = np.array(row) < 0
    fraction = np.where(negative, -turns.fraction, turns.fraction)
    whole = np.where(negative, -turns.whole - (turns.fraction != 0), turns.whole)  # the borrow
    return Turns(fraction, whole), np.where(negative, -angular, angular)
