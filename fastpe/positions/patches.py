"""Coordinates of patches of images and video: one axis of positions for each axis of a grid.

For ``Rotary(sections=...)`` and ``Grid``; (A, T), rows in the order of memory, the last axis the fastest.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from .._core import checks
from .._core.checks import message
from . import arrays

if TYPE_CHECKING:
    from .._core.annotations import Array, Float64, Int64, Like, Lists, RealLike, Shape


def _spread(function: str, along: list[npt.NDArray[Any]], like: Like | None) -> Like:
    return arrays.like(function, like, np.stack(np.meshgrid(*along, indexing="ij")).reshape(len(along), -1))


def grid(shape: Shape, *, start: int | Shape = 0, like: Like | None = None) -> Like:
    """Return the coordinates of a grid: (row, column) of every patch.

    Parameters
    ----------
    shape : (n_0, ..., n_n)
        Sizes, slowest axis first: (H, W) or (T, H, W).
    start : integer, or one for each axis
        The first coordinate; for a crop, where it begins in the image.
    like : array
        Make the result in this array's library and on its device.

    Returns
    -------
    positions : (number of axes, T) int64
        For Pixtral and Gemma 4, timm's rotary encodings, CogVideoX and Flux.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.grid((2, 3))
    array([[0, 0, 0, 1, 1, 1],
           [0, 1, 2, 0, 1, 2]])
    """
    counts = arrays.sizes("grid", "shape", shape)
    starts = start if isinstance(start, (tuple, list)) else [start] * len(counts)
    if len(starts) != len(counts):
        raise ValueError(message("grid", f"start must be an integer, or {len(counts)}", f"{len(starts)}"))
    along = [np.arange(size) + checks.integer("grid", "start", first) for size, first in zip(counts, starts, strict=True)]
    return _spread("grid", along, like)


@overload
def window(shape: Shape, *, class_token: Literal[False] = False, like: Like | None = None) -> Like: ...
@overload
def window(shape: Shape, *, class_token: Literal[True], like: Like | None = None) -> tuple[Like, Like]: ...
def window(shape: Shape, *, class_token: bool = False, like: Like | None = None) -> Like | tuple[Like, Like]:
    """Return one number for each patch of a grid, whose differences say how many rows and columns lie between two patches.

    ``p = row * (2 columns - 1) + column``, and so on for more axes: what ``RelativeTable`` takes for queries and keys of Swin's windows.

    Parameters
    ----------
    shape, like
        As for ``grid``.
    class_token
        One more row in front, for ``RelativeTable(class_token=True)``. It stands elsewhere as a query than as a key, so that a distance
        says which of both it is.

    Returns
    -------
    positions : (T,) int64
        With ``class_token`` a pair of (1 + T,), of queries and of keys.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.window((2, 3))
    array([0, 1, 2, 5, 6, 7])
    """
    counts = arrays.sizes("window", "shape", shape)
    checks.boolean("window", "class_token", class_token)
    found = np.zeros(math.prod(counts), np.int64)
    for size, along in zip(counts, np.indices(counts).reshape(len(counts), -1), strict=True):
        found = found * (2 * size - 1) + along
    if not class_token:
        return arrays.like("window", like, found)
    ends = 2 * found[-1] + 1, -2 * found[-1] - 2
    queries, keys = (arrays.like("window", like, np.append(end, found)) for end in ends)
    return queries, keys


def resized(shape: Shape, reference: Shape, *, start: float = 0.0, like: RealLike | None = None) -> RealLike:
    """Return the coordinates of a grid stretched onto the one that a model was trained on: ``(i + start) / n * n_reference``.

    ``reference`` is the grid of training, (H, W). ``shape``, ``like`` and the result are as for ``grid``, but float64. EVA-02 (arXiv
    2303.11331); ``ref_feat_shape`` in timm.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.resized((2, 2), (3, 4))
    array([[0. , 0. , 1.5, 1.5],
           [0. , 2. , 0. , 2. ]])
    """
    sizes, wanted = arrays.sizes("resized", "shape", shape), arrays.sizes("resized", "reference", reference)
    first = checks.number("resized", "start", start)
    if len(sizes) != len(wanted):
        raise ValueError(message("resized", f"reference must have the {len(sizes)} axes of shape", f"{len(wanted)}"))
    return _spread("resized", [(np.arange(n) + first) / n * m for n, m in zip(sizes, wanted, strict=True)], like)


def centred(shape: Shape, *, scale: float = 1.0, like: RealLike | None = None) -> RealLike:
    """Return the centres of patches of an image that goes from -scale to scale: ``scale * (2 (i + 0.5) / n - 1)``.

    ``shape``, ``like`` and the result are as for ``grid``, but float64. For DINOv3 (Siméoni et al., 2025, arXiv 2508.10104) ``scale`` is
    2 pi, with ``Rotary(100.0, sections=(d/4, d/4), section_frequencies="own")``.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.centred((1, 4))
    array([[ 0.  ,  0.  ,  0.  ,  0.  ],
           [-0.75, -0.25,  0.25,  0.75]])
    """
    factor = checks.number("centred", "scale", scale)
    sizes = arrays.sizes("centred", "shape", shape)
    return _spread("centred", [factor * (2 * (np.arange(n) + 0.5) / n - 1) for n in sizes], like)


def pixels(shape: Shape, *, like: RealLike | None = None) -> RealLike:
    """Return the coordinates of an image whose first patch is at -1 and whose last is at 1 (timm's pixel frequencies).

    ``shape``, ``like`` and the result are as for ``grid``, but float64.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.pixels((3,))
    array([[-1.,  0.,  1.]])
    """
    return _spread("pixels", [np.linspace(-1.0, 1.0, n) for n in arrays.sizes("pixels", "shape", shape)], like)


def log_spaced(window: Shape, pretrained_window: Shape | None = None, *, like: RealLike | None = None) -> RealLike:
    """Return the log-spaced distances in a window of patches; Swin v2's bias is a learned function of them.

    ``sign(x) log2(abs(x) + 1) / 3``, ``x = 8 d / (n - 1)`` for the distances d = -(H - 1) ... H - 1 of each axis of a window (H, W), as
    (number of axes, 2H - 1, 2W - 1) float64. n is that of ``pretrained_window``, or of the window. ``like`` is as for ``grid``.

    Liu et al., "Swin Transformer V2", 2022 (arXiv 2111.09883), section 3.3.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.log_spaced((1, 3))[1].round(3)
    array([[-1.057, -0.774,  0.   ,  0.774,  1.057]])
    """
    sizes = arrays.sizes("log_spaced", "window", window)
    trained = sizes if pretrained_window is None else arrays.sizes("log_spaced", "pretrained_window", pretrained_window)
    if len(trained) != len(sizes):
        rule = f"pretrained_window must have the {len(sizes)} axes of window"
        raise ValueError(message("log_spaced", rule, f"{len(trained)}"))
    along = [8 * np.arange(1 - n, n) / max(m - 1, 1) for n, m in zip(sizes, trained, strict=True)]
    spaced = [np.sign(x) * np.log2(np.abs(x) + 1) / 3 for x in along]
    return arrays.like("log_spaced", like, np.stack(np.meshgrid(*spaced, indexing="ij")))


def llama4(side: int, *, cls_token: bool = True, like: Like | None = None) -> Like:
    """Return the coordinates of Llama 4's vision tower: column + 1 and row + 1 of square images, the class token last, at 0.

    There are ``side`` patches along a side: (2, side * side + 1) int64, or one less without the token, for
    ``Rotary(interleaved=True, sections=(d/4, d/4), section_frequencies="own")``. ``like`` is as for ``grid``.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.llama4(2)
    array([[1, 2, 1, 2, 0],
           [1, 1, 2, 2, 0]])
    """
    n = checks.width("llama4", "side", side)
    checks.boolean("llama4", "cls_token", cls_token)
    found = grid((n, n), start=1)[::-1]
    if cls_token:
        found = np.concatenate([found, np.zeros((2, 1), np.int64)], axis=1)
    return arrays.like("llama4", like, np.ascontiguousarray(found))


@overload
def qwen2_vl(grids: Lists, *, merge: int = 2, with_frames: bool = False) -> Int64: ...
@overload
def qwen2_vl(grids: Array, *, merge: int = 2, with_frames: bool = False) -> Array: ...
def qwen2_vl(grids: Any, *, merge: int = 2, with_frames: bool = False) -> Any:
    """Return the coordinates of Qwen2-VL's vision tower, in which patches that will be merged lie together.

    They are (2, T) int64, for ``Rotary(sections=(d/4, d/4), section_frequencies="own")``; with ``with_frames`` (3, T), the frame first.

    Wang et al., "Qwen2-VL", 2024 (arXiv 2409.12191). Also for Qwen2.5-VL, Qwen3-VL and GLM-4V.

    Parameters
    ----------
    grids : (n, 3) integers
        Frames, rows and columns of patches of each image or video, one after the other. They are read, which waits for a GPU.
    merge
        How many patches along rows and along columns become one token.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.qwen2_vl([(1, 2, 4)])
    array([[0, 0, 1, 1, 0, 0, 1, 1],
           [0, 1, 0, 1, 2, 3, 2, 3]])
    """
    function = "qwen2_vl"
    given = arrays.array(function, "grids", grids, "i", (2,))
    size = checks.width(function, "merge", merge)
    checks.boolean(function, "with_frames", with_frames)
    if given.shape[1] != 3:
        raise ValueError(message(function, "grids must have shape (n, 3)", f"{tuple(given.shape)}"))
    parts = [np.zeros((3, 0), np.int64)]
    for frames, rows, columns in arrays.host(given).tolist():
        if min(frames, rows, columns) < 1 or rows % size or columns % size:
            rule = f"rows and columns must be multiples of merge = {size}"
            raise ValueError(message(function, rule, f"({frames}, {rows}, {columns})"))
        found = grid((frames, rows, columns))
        blocks = found.reshape(3, frames, rows // size, size, columns // size, size)
        parts.append(blocks.swapaxes(3, 4).reshape(3, -1))
    found = np.concatenate(parts, axis=1)
    return arrays.like(function, given, found if with_frames else found[1:])


@overload
def detr(mask: Lists, *, normalize: bool = True, scale: float = ..., epsilon: float = 1e-6, shift: float = 0.0) -> Float64: ...
@overload
def detr(mask: Array, *, normalize: bool = True, scale: float = ..., epsilon: float = 1e-6, shift: float = 0.0) -> Array: ...
def detr(mask: Any, *, normalize: bool = True, scale: float = 2 * math.pi, epsilon: float = 1e-6, shift: float = 0.0) -> Any:
    """Return DETR's coordinates for images with padding: how many image pixels there are down to each pixel, and across to it.

    ``y = cumulative sum of mask along rows - shift``, normalised ``y / (number of kept rows + epsilon) * scale``; x along columns.

    Carion et al., "End-to-End Object Detection with Transformers", 2020 (arXiv 2005.12872).

    Parameters
    ----------
    mask : (H, W) or (B, H, W) booleans
        True where there is a pixel.
    normalize, scale, epsilon
        Divide by the last count of each column (of each row) + epsilon, so that coordinates go from 0 to ``scale``.
    shift
        0.5 in Deformable DETR: pixels' centres.

    Returns
    -------
    positions : (2, H, W) or (2, B, H, W) float64, or int64 if they are neither normalised nor shifted
        For ``add_encoding(x, Grid.detr(), positions=...)``.

    Raises
    ------
    ValueError
        An image has no pixel. On a GPU this is not checked: its coordinates are 0.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.detr([[True, True, False], [True, True, False]], normalize=False)
    array([[[1, 1, 0],
            [2, 2, 0]],
           [[1, 2, 2],
            [1, 2, 2]]])
    """
    function = "detr"
    mask = arrays.array(function, "mask", mask, "b", (2, 3))
    checks.boolean(function, "normalize", normalize)
    factor = checks.positive_number(function, "scale", scale)
    least, moved = checks.positive_number(function, "epsilon", epsilon), checks.number(function, "shift", shift)
    if arrays.is_on_host(mask) and mask.shape[-1] * mask.shape[-2] and not bool(mask.any(-1).any(-1).all()):
        raise ValueError(message(function, "mask must keep at least one pixel of every image", "an image of padding alone"))
    kept = arrays.integers(mask)
    down, across = kept.cumsum(-2), kept.cumsum(-1)
    rows, columns = arrays.reals(down[..., -1:, :]), arrays.reals(across[..., -1:])
    if normalize or moved != 0:
        down, across = arrays.reals(down) - moved, arrays.reals(across) - moved
    if normalize:
        down, across = down / (rows + least) * factor, across / (columns + least) * factor
    return arrays.module(down).stack([down, across])
