"""The encoding of grids, such as images and video: one-axis sinusoids on blocks of channels."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .._arrays import Memory
from .._backends.plans import GridPart, GridPlan, SinusoidalPlan, Turns
from .._core import checks, grid_rows
from .._core.arguments import Target
from .._core.checks import message
from .._core.where import Where
from .protocol import Additive
from .sinusoidal import Sinusoidal

LAYOUTS = ("axes", "functions")
REMAINDERS = ("refuse", "truncate", "zero")
_BLOCKS = Sinusoidal(layout="concatenated")


@dataclass(frozen=True)
class Grid(Additive):
    """Sinusoids of the coordinates of a grid, each axis on channels of its own, to be added to embeddings of images or video.

    ``PE[(i_0, ..., i_n), block of axis a] = PE_a[c_a]``, ``c_a = (i_a + start) * extent_a / (n_a + epsilon)``, or ``i_a + start``.

    An axis's channels have the bits that ``sinusoid`` alone has at its coordinates. If an axis is stretched, its frequencies are multiplied
    by its step, so that coordinates stay exact; ``positions`` are rounded to 2^-32.

    He et al., "Masked Autoencoders Are Scalable Vision Learners", 2021 (arXiv 2111.06377). Carion et al., "End-to-End Object Detection
    with Transformers", 2020 (arXiv 2005.12872).

    Parameters
    ----------
    shape : (n_0, ..., n_n)
        Sizes of the axes, slowest first: (H, W) or (T, H, W). None: every call gives ``positions``.
    axes
        The axes in the order of their channels. None: the order of ``shape``. (1, 0) has the columns first, as MAE and DiT.
    sinusoid : Sinusoidal, or one for each axis of ``shape``
        Frequencies and layout of an axis's channels, as if they were alone: base, shift, ``position_scale``, ...
    layout
        ``"axes"``: the channels of an axis lie together. ``"functions"``: the first functions of all axes, then the second ones (timm:
        sines of rows, sines of columns, cosines of rows, cosines of columns).
    shares : integers, one for each axis of ``shape``
        How the channels are divided among the axes; None: equally. (2, 3, 3) is a quarter and twice three eighths.
    remainder
        What happens if a width does not give each axis an even number of channels. ``"refuse"``: ValueError. ``"truncate"``: each axis
        gets the next larger even number, and the last channels are cut off. ``"zero"``: each axis gets the next smaller even number, and
        zero is added to the last channels.
    column_major
        Rows of x count down the columns of the grid: the first axis is the fastest.
    start, epsilon
        The first coordinate, 1 in DETR, which counts pixels; and what is added to an axis's size before dividing by it.
    extent : number, or one for each axis of ``shape``
        Each axis is stretched or shrunk to this length: the grid on which a model was trained, or 2 pi. None: steps of 1.

    Examples
    --------
    >>> import numpy as np, fastpe
    >>> x = np.zeros((8, 14 * 14, 768), np.float32)      # (B, H*W, D); (B, H, W, D) too
    >>> fastpe.add_encoding(x, fastpe.Grid.mae((14, 14))) is x
    True
    >>> fastpe.encode(None, 4, fastpe.Grid((2, 2))).round(2)   # sine and cosine of the row, then of the column
    array([[[0.  , 1.  , 0.  , 1.  ],
            [0.  , 1.  , 0.84, 0.54]],
           [[0.84, 0.54, 0.  , 1.  ],
            [0.84, 0.54, 0.84, 0.54]]], dtype=float32)
    """

    shape: tuple[int, ...] | None
    axes: tuple[int, ...] | None = None
    sinusoid: Sinusoidal | tuple[Sinusoidal, ...] = _BLOCKS
    layout: str = "axes"
    shares: tuple[int, ...] | None = None
    remainder: str = "refuse"
    column_major: bool = False
    start: float = 0.0
    extent: float | tuple[float, ...] | None = None
    epsilon: float = 0.0

    embeds: ClassVar[bool] = False
    counts: ClassVar[bool] = False
    is_whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        shape, axes = _shape(self.shape), self.axes
        if axes is None:
            if shape is None:
                raise ValueError(message("Grid", "axes must be given where shape is None", "None", "E.g. axes=(0, 1)."))
            axes = tuple(range(len(shape)))
        found: dict[str, Any] = {"shape": shape, "axes": _order(axes, shape)}
        count = len(found["axes"])
        found["sinusoid"] = _sinusoids(self.sinusoid, count)
        if self.shares is not None:
            found["shares"] = _each("shares", self.shares, count, checks.width)
        checks.one_of("Grid", "layout", self.layout, LAYOUTS)
        checks.one_of("Grid", "remainder", self.remainder, REMAINDERS)
        checks.boolean("Grid", "column_major", self.column_major)
        found["start"] = checks.number("Grid", "start", self.start)
        if isinstance(self.extent, (tuple, list)):
            found["extent"] = _each("extent", self.extent, count, checks.positive_number)
        elif self.extent is not None:
            found["extent"] = checks.positive_number("Grid", "extent", self.extent)
        found["epsilon"] = checks.number("Grid", "epsilon", self.epsilon)
        if found["epsilon"] < 0:
            raise ValueError(message("Grid", "epsilon must be 0 or more", f"{found['epsilon']}"))
        super().__post_init__(**found)
        self._check_layout()

    def _check_layout(self) -> None:
        layouts = {one.layout for one in self.sinusoids}
        if self.layout == "functions" and (layouts != {"concatenated"} or self.remainder == "truncate"):
            rule = "layout 'functions' needs concatenated sinusoids and a remainder that is not cut off"
            raise ValueError(message("Grid", rule, f"{', '.join(sorted(layouts))} and {self.remainder!r}"))
        if self.layout == "functions" and len({(one.cos_first, one.amplitude) for one in self.sinusoids}) > 1:
            raise ValueError(message("Grid", "layout 'functions' needs one order and amplitude", "several"))
        if self.remainder == "truncate" and layouts != {"interleaved"}:
            rule = "remainder 'truncate' needs interleaved sinusoids"
            raise ValueError(message("Grid", rule, ", ".join(sorted(layouts))))

    # ---- what models do --------------------------------------------------------------------------------------------------

    @classmethod
    def mae(
        cls,
        shape: tuple[int, ...],
        *,
        base: float = 10000.0,
        base_size: int | tuple[int, ...] | None = None,
        interpolation_scale: float = 1.0,
    ) -> Grid:
        """Return the grid (H, W) of MAE, DiT, PixArt and Stable Diffusion 3: columns first, sines before cosines.

        ``base`` is that of the frequencies. Coordinates are ``i * base_size / n / interpolation_scale``, with a ``base_size`` for both
        axes or for each, (H, W), or ``i / interpolation_scale``.

        Examples
        --------
        >>> import fastpe
        >>> fastpe.Grid.mae((64, 64), base_size=32, interpolation_scale=2).coordinates()[0, :3, 0]
        array([0.  , 0.25, 0.5 ])
        """
        scale = checks.positive_number("Grid.mae", "interpolation_scale", interpolation_scale)
        if base_size is None:
            return cls(shape, (1, 0), Sinusoidal(base, "concatenated", position_scale=1 / scale))
        sizes = base_size if isinstance(base_size, (tuple, list)) else [base_size] * len(_shape(shape) or (0, 0))
        extent = tuple(checks.positive_number("Grid.mae", "base_size", size) / scale for size in sizes)
        return cls(shape, (1, 0), Sinusoidal(base, "concatenated"), extent=extent)

    @classmethod
    def timm(
        cls,
        shape: tuple[int, ...],
        *,
        temperature: float = 10000.0,
        reverse_coord: bool = False,
        interleave_sin_cos: bool = False,
    ) -> Grid:
        """Return the grid (H, W) of timm's ``build_sincos2d_pos_embed``: sines of rows and columns, then their cosines.

        ``temperature`` is the base of the frequencies. ``reverse_coord``: columns first, and tokens that count down the columns.
        ``interleave_sin_cos``: sines and cosines of rows, then sines and cosines of columns.

        Examples
        --------
        >>> import fastpe
        >>> fastpe.encode([[1.0], [2.0]], 4, fastpe.Grid.timm((4, 4))).round(2)
        array([[ 0.84,  0.91,  0.54, -0.42]], dtype=float32)
        """
        sinusoid = Sinusoidal(temperature, "concatenated")
        checks.boolean("Grid.timm", "reverse_coord", reverse_coord)
        checks.boolean("Grid.timm", "interleave_sin_cos", interleave_sin_cos)
        layout = "axes" if interleave_sin_cos else "functions"
        return cls(shape, (1, 0) if reverse_coord else (0, 1), sinusoid, layout, column_major=reverse_coord)

    @classmethod
    def detr(
        cls,
        shape: tuple[int, ...] | None = None,
        *,
        temperature: float = 10000.0,
        normalize: bool = True,
        scale: float = 2 * math.pi,
    ) -> Grid:
        """Return the grid of DETR: rows first, sine and cosine side by side, coordinates that count from 1.

        ``shape`` is (H, W) of images without padding; None: ``positions`` are ``fastpe.positions.detr(mask)``. ``temperature`` is the base
        of the frequencies, 20 in DAB-DETR. ``normalize``: coordinates go up to ``scale``, as in all models, instead of 1, 2, 3, ...

        Examples
        --------
        >>> import numpy as np, fastpe
        >>> x, mask = np.zeros((2, 13, 17, 256), np.float32), np.ones((2, 13, 17), bool)
        >>> x = fastpe.add_encoding(x, fastpe.Grid.detr(), positions=fastpe.positions.detr(mask))
        """
        checks.boolean("Grid.detr", "normalize", normalize)
        sinusoid, axes = Sinusoidal(temperature), (0, 1) if shape is None else None
        if not normalize:
            return cls(shape, axes, sinusoid, start=1.0)
        return cls(shape, axes, sinusoid, start=1.0, extent=scale, epsilon=1e-6)

    @classmethod
    def cogvideox(
        cls, shape: tuple[int, ...], *, spatial_interpolation_scale: float = 1.0, temporal_interpolation_scale: float = 1.0
    ) -> Grid:
        """Return the grid (T, H, W) of CogVideoX: a quarter of the channels for time, then columns, then rows.

        The scales divide the coordinates.

        Examples
        --------
        >>> import fastpe
        >>> fastpe.encode(None, 64, fastpe.Grid.cogvideox((3, 6, 4))).shape
        (3, 6, 4, 64)
        """
        spatial = checks.positive_number("Grid.cogvideox", "spatial_interpolation_scale", spatial_interpolation_scale)
        temporal = checks.positive_number("Grid.cogvideox", "temporal_interpolation_scale", temporal_interpolation_scale)
        each = tuple(replace(_BLOCKS, position_scale=1 / scale) for scale in (temporal, spatial, spatial))
        return cls(shape, (0, 2, 1), each, shares=(2, 3, 3))

    # ---- what verbs ask for ----------------------------------------------------------------------------------------------

    @property
    def sinusoids(self) -> tuple[Sinusoidal, ...]:
        """The sinusoid of each axis of ``shape``."""
        assert self.axes is not None
        return self.sinusoid if isinstance(self.sinusoid, tuple) else (self.sinusoid,) * len(self.axes)

    @property
    def rows(self) -> int:
        """How many rows the grid has."""
        return math.prod(self.shape or ())

    def coordinates(self) -> npt.NDArray[Any]:
        """Return the coordinates of every row of the grid, as ``positions`` take them.

        Their shape is (number of axes, n_0, ..., n_n), their dtype int64, or float64 if they are not integers.

        Examples
        --------
        >>> import fastpe
        >>> fastpe.Grid((2, 3)).coordinates()[1]
        array([[0, 1, 2],
               [0, 1, 2]])
        """
        if self.shape is None:
            raise ValueError(message("Grid.coordinates", "shape must be given", "None"))
        counted = self.counted()
        if self.extent is None:
            return counted
        steps: npt.NDArray[np.float64] = np.reshape(self.steps, (-1,) + (1,) * len(self.shape))
        return counted * steps

    def counted(self) -> npt.NDArray[Any]:
        """The coordinates in steps."""
        shape = self.shape or ()
        along = [np.arange(size) + (int(self.start) if self.start.is_integer() else self.start) for size in shape]
        if not self.column_major:
            return np.stack(np.meshgrid(*along, indexing="ij"))
        turned = np.stack(np.meshgrid(*along[::-1], indexing="ij"))[::-1]  # rows count down the columns: (W, H) in C order
        return turned.reshape(len(shape), *shape)

    @property
    def steps(self) -> tuple[float, ...]:
        """The step along each axis of ``shape``, in coordinates."""
        shape = self.shape or ()
        if self.extent is None:
            return (1.0,) * len(shape)
        extents = self.extent if isinstance(self.extent, tuple) else (self.extent,) * len(shape)
        return tuple(extent / (size + self.epsilon) for size, extent in zip(shape, extents, strict=True))

    def frequencies(self, dim: int) -> tuple[npt.NDArray[np.float64], float]:
        """Return the angular frequencies of all axes, in the order of ``axes``, and the amplitude of the first.

        Examples
        --------
        >>> import fastpe
        >>> fastpe.Grid((14, 14)).frequencies(8)
        (array([1.  , 0.01, 1.  , 0.01]), 1.0)
        """
        assert self.axes is not None
        widths = self.widths(checks.width("Grid.frequencies", "dim", dim), "Grid.frequencies")
        found = [self.sinusoids[axis].frequencies(width)[0] for axis, width in zip(self.axes, widths, strict=True) if width]
        return np.concatenate(found), self.sinusoids[self.axes[0]].amplitude

    def widths(self, dim: int, function: str = "Grid") -> list[int]:
        """How many channels each axis has, in the order of ``axes``; their sum is larger than ``dim`` if the last ones are cut off."""
        assert self.axes is not None
        shares = [1 if self.shares is None else self.shares[axis] for axis in self.axes]
        whole = 2 * sum(shares)
        if self.remainder == "truncate":
            return [2 * -(-dim * share // whole) for share in shares]
        found = [2 * (dim * share // whole) for share in shares]
        if self.remainder == "refuse" and sum(found) != dim:
            step = next(n for n in range(2, whole + 1, 2) if all(n * share % whole == 0 for share in shares))
            rule = f"a grid of {len(shares)} axes must have a width that is a multiple of {step}"
            raise ValueError(message(function, rule, str(dim), "Or choose a remainder: 'truncate' or 'zero'."))
        return found

    def with_coordinates(self, function: str) -> tuple[Grid, npt.NDArray[Any]]:
        """A grid without a shape that has the same bits at the positions of this one's rows, (axes, n_0, ..., n_n), which count steps."""
        if self.shape is None:
            raise ValueError(message(function, "positions must be given where a Grid has no shape", "None"))
        each = zip(self.sinusoids, self.steps, strict=True)
        scaled = tuple(replace(one, position_scale=one.position_scale * step) for one, step in each)
        return replace(self, shape=None, sinusoid=scaled, extent=None), self.counted()

    def additions(self, target: Target, where: Where, out: Memory, scale: float, seq_len: int | None) -> Sequence[Any]:
        for sinusoid in self.sinusoids:
            checks.fits(target.function, "the encoding's amplitude", sinusoid.amplitude, out.dtype)
        calls = grid_rows.additions(target, self, where, target.memory, out, scale)
        return () if 0 in out.shape else calls

    def encodings(
        self, library: ModuleType, positions: Memory | None, out: Memory, seq_len: int | None, validate: bool
    ) -> Iterable[Any]:
        for sinusoid in self.sinusoids:
            checks.fits("encode", "the encoding's amplitude", sinusoid.amplitude, out.dtype)
        call = grid_rows.encoding("encode", self, library, positions, out, validate)
        return () if 0 in out.shape else (call,)

    def encoded_shape(self, function: str, positions: tuple[int, ...] | None) -> tuple[int, ...]:
        if positions is not None:
            return grid_rows.check_axes(function, self, len(self.axes or ()), positions)
        if self.shape is None:
            raise ValueError(message(function, "positions must be given where a Grid has no shape", "None"))
        return self.shape

    def grid_plan(self, dim: int, function: str = "Grid", stepped: bool = False) -> GridPlan:
        """Return what the kernels need for width ``dim``; cached by value. ``stepped``: for positions that count steps."""
        self.widths(dim, function)
        return _plan(self, dim, stepped and self.extent is not None)


@functools.lru_cache(maxsize=128)
def _plan(grid: Grid, dim: int, stepped: bool) -> GridPlan:
    assert grid.axes is not None
    parts: list[GridPart] = []
    widths, column = grid.widths(dim), 0
    halves = sum(widths) // 2  # where the second functions begin
    for axis, width in zip(grid.axes, widths, strict=True):
        kept = min(width, dim - column)
        if kept <= 0:
            continue
        sinusoid = grid.sinusoids[axis]
        if stepped:
            sinusoid = replace(sinusoid, position_scale=sinusoid.position_scale * grid.steps[axis])
        plan = _cut(sinusoid.plan(width), kept)
        if grid.layout == "functions":
            parts.append(GridPart(axis, column // 2, _apart(plan, halves)))
        else:
            parts.append(GridPart(axis, column, plan))
        column += kept
    if column < dim:
        parts.append(GridPart(grid.axes[0], column, _nothing(dim - column)))
    return GridPlan(dim, tuple(parts))


@functools.lru_cache(maxsize=128)
def _apart(plan: SinusoidalPlan, second_half: int) -> SinusoidalPlan:
    """A concatenated plan whose second functions lie further on."""
    return replace(plan, second_half=second_half)


@functools.lru_cache(maxsize=128)
def _cut(plan: SinusoidalPlan, width: int) -> SinusoidalPlan:
    """The first columns of an interleaved plan of an even width."""
    if width == plan.width:
        return plan
    count, odd = (width + 1) // 2, width % 2 == 1
    turns = Turns(plan.turns.fraction[:count], plan.turns.whole[:count])
    tail, tail_is_cosine = width - 1 if odd else -1, odd and plan.cosine_first
    kept = replace(plan, key=(*plan.key, width), width=width, turns=turns)
    return replace(kept, second_half=count, tail_column=tail, tail_is_cosine=tail_is_cosine)


@functools.lru_cache(maxsize=128)
def _nothing(width: int) -> SinusoidalPlan:
    """Zeros."""
    count = (width + 1) // 2
    zeros = Turns(np.zeros(count, np.uint64), np.zeros(count, np.uint64))
    return replace(Sinusoidal(amplitude=0.0).plan(width), key=("nothing", width), turns=zeros)


# ---- fields ------------------------------------------------------------------------------------------------------------------


def _shape(shape: Any) -> tuple[int, ...] | None:
    if shape is None:
        return None
    if not isinstance(shape, (tuple, list)) or not shape:
        raise TypeError(message("Grid", "shape must be a sequence of integers such as (H, W), or None", checks.describe(shape)))
    return tuple(checks.width("Grid", f"shape[{i}]", size) for i, size in enumerate(shape))


def _order(axes: Any, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    if not isinstance(axes, (tuple, list)) or not axes:
        raise TypeError(message("Grid", "axes must be a sequence of integers such as (1, 0)", checks.describe(axes)))
    found = tuple(checks.integer("Grid", f"axes[{i}]", axis) for i, axis in enumerate(axes))
    count = len(found) if shape is None else len(shape)
    if sorted(found) != list(range(count)):
        raise ValueError(message("Grid", f"axes must name each of 0 ... {count - 1} once", str(found)))
    return found


def _sinusoids(sinusoid: Any, count: int) -> Any:
    """One for all axes, if they are the same."""
    given = tuple(sinusoid) if isinstance(sinusoid, (tuple, list)) else (sinusoid,)
    for one in given:
        if not isinstance(one, Sinusoidal):
            raise TypeError(message("Grid", "sinusoid must be a Sinusoidal, or one for each axis", checks.describe(one)))
        if one.needs_length:
            rule = "a sinusoid's scaling must not depend on the length: an axis has none"
            raise ValueError(message("Grid", rule, repr(one.scaling)))
    if isinstance(sinusoid, (tuple, list)) and len(given) != count:
        raise ValueError(message("Grid", f"sinusoid must be one, or {count}: one for each axis", f"{len(given)}"))
    return given[0] if len(set(given)) == 1 else given


def _each(name: str, values: Any, count: int, check: Any) -> tuple[Any, ...]:
    if not isinstance(values, (tuple, list)) or len(values) != count:
        raise ValueError(message("Grid", f"{name} must have {count} entries: one for each axis", checks.describe(values)))
    return tuple(check("Grid", f"{name}[{i}]", value) for i, value in enumerate(values))
