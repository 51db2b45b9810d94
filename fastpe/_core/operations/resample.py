"""A table of positions stretched to another length or grid."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..._arrays import Memory, dispatch
from .. import checks
from ..checks import describe, message
from ..interpolation import weights
from .base import Job, Operation, Spec

METHODS = ("linear", "bilinear", "bicubic", "antialias", "bicubic_antialias")


class _Resample(NamedTuple):
    new_size: Any
    method: str | None = None
    prefix_tokens: int = 0
    grid: Any = None
    interpolate_offset: float = 0.0
    rows: int | None = None


class Resample(_Resample, Operation):
    """Rows of a table interpolated to a new length, or to a new grid of patches; those in front stay.

    ``rows``: the adjoint, which takes the gradient of what was made to that of a table of so many rows.
    """

    __slots__ = ()
    function: ClassVar[str] = "resample"
    names: ClassVar[tuple[str, ...]] = ("table",)
    in_place: ClassVar[bool] = False

    def check(self, arrays: tuple[Any, ...], where: Any, out: Any, validate: bool) -> Job:
        function, (array,) = self.function, arrays
        library, table = dispatch.memory(function, "table", array)
        checks.floating(function, "table", table.dtype, array)
        if len(table.shape) not in (2, 3) or 0 in table.shape or (len(table.shape) == 3 and table.shape[0] != 1):
            raise ValueError(message(function, "table must have shape (P, D) or (1, P, D)", f"shape {table.shape}"))
        prefix = checks.integer(function, "prefix_tokens", self.prefix_tokens)
        rows = table.shape[-2] if self.rows is None else self.rows
        count = rows - prefix
        if prefix < 0 or count < 1:
            raise ValueError(message(function, f"prefix_tokens must lie in [0, {rows})", str(prefix)))
        is_grid = isinstance(self.new_size, (tuple, list))
        method = self.method or ("bicubic" if is_grid else "linear")
        checks.one_of(function, "method", method, METHODS[1:] if is_grid else METHODS[:1])
        sizes = [checks.width(function, "new_size", size) for size in (self.new_size if is_grid else (self.new_size,))]
        if is_grid and len(sizes) != 2:
            raise ValueError(message(function, "new_size must be a length or a pair (rows, columns)", describe(self.new_size)))
        extra = checks.number(function, "interpolate_offset", self.interpolate_offset)
        if extra < 0:
            raise ValueError(message(function, "interpolate_offset must be 0 or more", f"{extra:g}"))
        old = _old_grid(function, count, self.grid) if is_grid else [count]
        made = _stretched(library, table, prefix, old, sizes, method, extra, self.rows is not None)
        return Job(made, table.device, ())

    def adjoint_to(self, rows: int) -> Resample:
        """The adjoint for a table of so many rows; that of an adjoint is the operation itself."""
        return self._replace(rows=rows if self.rows is None else None)

    def result(self, specs: tuple[Spec, ...]) -> Spec:
        *leading, _, width = specs[0].shape
        sizes = self.new_size if isinstance(self.new_size, (tuple, list)) else (self.new_size,)
        rows = self.prefix_tokens + math.prod(sizes) if self.rows is None else self.rows
        return Spec((*leading, rows, width), specs[0].dtype)


def _stretched(
    library: Any, table: Memory, prefix: int, old: list[int], new: list[int], method: str, extra: float, back: bool
) -> Any:
    """A new array: one axis after the other, in float64, rounded once. ``back``: by the transposed weights, from new to old."""
    width, (given, wanted) = table.shape[-1], (new, old) if back else (old, new)
    flat = table.array.reshape(prefix + math.prod(given), width)
    made = flat[prefix:].astype("float64", order="C").reshape(*given, width)  # a product of other strides rounds otherwise
    real = np.float64 if table.dtype == "float64" else np.float32
    for before, after in zip(old, new, strict=True):  # the first axis goes to the back of the grid
        matrix = library.from_host(weights(method, before, after, extra, real), table.device)
        matrix = matrix.T if back else matrix
        made = (matrix @ made.reshape(matrix.shape[1], -1)).reshape(-1, *made.shape[1:])
        if len(old) == 2:
            made = made.swapaxes(0, 1)
    result = library.empty((prefix + math.prod(wanted), width), table.dtype, table.device)
    result[:prefix] = flat[:prefix]
    result[prefix:] = made.reshape(-1, width).astype(result.dtype)
    return result if len(table.shape) == 2 else result[None]


def _old_grid(function: str, count: int, grid: Any) -> list[int]:
    if grid is None:
        side = math.isqrt(count)
        if side * side != count:
            raise ValueError(message(function, "grid must be given where the patches are no square", f"{count} patches"))
        return [side, side]
    if not isinstance(grid, (tuple, list)) or len(grid) != 2:
        raise TypeError(message(function, "grid must be a pair (rows, columns)", describe(grid)))
    sizes = [checks.width(function, "grid", size) for size in grid]
    if sizes[0] * sizes[1] != count:
        raise ValueError(message(function, f"grid must have as many patches as the table, {count}", f"{tuple(sizes)}"))
    return sizes
