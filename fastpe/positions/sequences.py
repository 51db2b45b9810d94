"""Positions in sequences: padded, packed, with images and video among the text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from .._arrays import dispatch
from .._core import checks
from .._core.checks import message
from . import arrays

if TYPE_CHECKING:
    from .._core.annotations import AnyArray, Array, Booleans, Float64, Int64, Integers, Lists, Reals


@overload
def from_mask(mask: Lists, *, offset: int = 0, fill: int = 0) -> Int64: ...
@overload
def from_mask(mask: Array, *, offset: int = 0, fill: int = 0) -> Array: ...
def from_mask(mask: Any, *, offset: int = 0, fill: int = 0) -> Any:
    """Return positions that count the kept rows before each row, as Hugging Face makes them from an attention mask.

    ``p_t = offset + (number of kept rows before t)``, ``fill`` where the row is not kept (0 or 1 in Hugging Face's models). The mask is
    (T,) or (B, T) booleans, True where a row is kept; padding may lie on either side.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.from_mask([[False, False, True, True, True]])
    array([[0, 0, 0, 1, 2]])
    """
    mask = arrays.array("from_mask", "mask", mask, "b", (1, 2))
    offset, fill = checks.integer("from_mask", "offset", offset), checks.integer("from_mask", "fill", fill)
    kept = arrays.integers(mask)
    return (kept.cumsum(-1) - 1 + offset) * kept + fill * (1 - kept)


@overload
def packed(cu_seqlens: Lists, *, total: int | None = None) -> Int64: ...
@overload
def packed(cu_seqlens: Array, *, total: int | None = None) -> Array: ...
def packed(cu_seqlens: Any, *, total: int | None = None) -> Any:
    """Return positions that restart at each boundary, for sequences packed one behind the other.

    ``cu_seqlens`` are (n + 1,) integers, from 0 on. ``total`` is the last of them; None: it is read, which waits for a GPU. On a GPU
    none of this is checked.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.packed([0, 3, 3, 5])
    array([0, 1, 2, 0, 1])
    """
    function = "packed"
    boundaries = arrays.integers(arrays.array(function, "cu_seqlens", cu_seqlens, "i", (1,)))
    if arrays.is_on_host(boundaries):
        values = arrays.host(boundaries)
        if values.size == 0 or values[0] != 0 or (np.diff(values) < 0).any():
            raise ValueError(message(function, "cu_seqlens must start at 0 and never decrease", str(values.tolist()[:8])))
        if total is not None and total != values[-1]:
            raise ValueError(message(function, f"total must be the last of cu_seqlens, {values[-1]}", str(total)))
    count = int(boundaries[-1]) if total is None else arrays.natural(function, "total", total)
    library = arrays.module(boundaries)
    place = {"device": boundaries.device} if dispatch.is_tensor(boundaries) else {}
    rows = library.arange(count, **place)
    return rows - boundaries[library.searchsorted(boundaries, rows, side="right") - 1]


@overload
def fairseq(ids: Lists, padding_idx: int = 1) -> Int64: ...
@overload
def fairseq(ids: Array, padding_idx: int = 1) -> Array: ...
def fairseq(ids: Any, padding_idx: int = 1) -> Any:
    """Return fairseq's positions of token ids: the first token is at ``padding_idx + 1``, padding at ``padding_idx``.

    For (T,) or (B, T) ids of fairseq, RoBERTa, M2M-100, XGLM, MusicGen and others, in which ``padding_idx`` is the id of padding. fairseq's
    table has zeros there: pass ``mask=(ids != padding_idx)``.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.fairseq([[1, 1, 40, 41, 2]])
    array([[1, 1, 2, 3, 4]])
    """
    ids = arrays.array("fairseq", "ids", ids, "i", (1, 2))
    padding = checks.integer("fairseq", "padding_idx", padding_idx)
    kept = arrays.integers(ids != padding)
    return kept.cumsum(-1) * kept + padding


@overload
def abacus(is_digit: Lists, *, offset: int = 0) -> Int64: ...
@overload
def abacus(is_digit: Array, *, offset: int = 0) -> Array: ...
def abacus(is_digit: Any, *, offset: int = 0) -> Any:
    """Return Abacus positions: the number of a digit in its run, from 1, plus ``offset``; 0 outside runs.

    ``is_digit`` is (T,) or (B, T) booleans. In training, the offset is a random number from 0 to 99, the same for a whole batch.

    McLeish et al., "Transformers Can Do Arithmetic with the Right Embeddings", 2024 (arXiv 2405.17399).

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.abacus([True, True, False, True])
    array([1, 2, 0, 1])
    """
    is_digit = arrays.array("abacus", "is_digit", is_digit, "b", (1, 2))
    offset = arrays.natural("abacus", "offset", offset)
    digits = arrays.integers(is_digit)
    total = digits.cumsum(-1)
    outside = total * (1 - digits)
    # The largest count outside a run so far is the count before the run.
    before = (
        outside.cummax(-1).values if dispatch.is_tensor(outside) else arrays.module(outside).maximum.accumulate(outside, -1)
    )
    return (total - before + offset) * digits


class MRope(NamedTuple):
    """Positions (3, B, T) of time, height and width, and for each sequence the difference between a later row's position and its number."""

    positions: AnyArray
    deltas: AnyArray


@overload
def contextual(logits: Lists, max_position: int) -> Float64: ...
@overload
def contextual(logits: Array, max_position: int) -> Array: ...
def contextual(logits: Any, max_position: int) -> Any:
    """Return CoPE's positions: how many open gates there are from a key up to the query, ``min(sum of sigmoid(logits), most)``.

    They are (..., Tq, Tk) float64: interpolate a key's score between the scores of the two integer positions beside it. Gradients of
    tensors pass. The logits, (..., Tq, Tk) real numbers, are attention scores; masked ones are -inf or far below 0. ``max_position`` is the
    number of positions that the model has learned; the largest is one less.

    Golovneva et al., "Contextual Position Encoding", 2024 (arXiv 2405.18719).

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.contextual([[9.0, 9.0, 0.0, -99.0]], 3).round(3)
    array([[2. , 1.5, 0.5, 0. ]])
    """
    scores = arrays.array("contextual", "logits", logits, "if", (1, 2, 3, 4, 5))
    most = checks.width("contextual", "max_position", max_position) - 1
    gates = (arrays.module(scores).tanh(arrays.reals(scores) / 2) + 1) / 2
    before = gates.cumsum(-1)
    return arrays.module(scores).clip(before[..., -1:] - before + gates, 0, most)


def mrope(
    token_types: Integers,
    image_grids: Integers | None = None,
    video_grids: Integers | None = None,
    *,
    merge: int = 2,
    time_intervals: Reals | None = None,
    temporal_merge: int = 1,
    separate_frames: bool = False,
    mask: Booleans | None = None,
    follows: str = "largest",
    shared_marks: bool = True,
) -> MRope:
    """Return the positions of multimodal rotary encodings, of text with images, video and audio in it.

    Text has positions ``(p, p, p)``; a patch of an image or video that begins at p has
    ``(p + floor(frame * interval), p + row, p + column)``.

    Wang et al., "Qwen2-VL", 2024 (arXiv 2409.12191), section 2.1; Bai et al., "Qwen2.5-VL", 2025 (arXiv 2502.13923); Xu et al.,
    "Qwen2.5-Omni", 2025 (arXiv 2503.20215). The values of token_types are read, which waits for a GPU.

    Parameters
    ----------
    token_types : (T,) or (B, T) integers
        0 for text, 1 for a patch of an image, 2 for one of a video, 3 for audio. Each run of patches is one image or video. Audio stands as
        text does. Among the patches of a video it is the video's own, and counts from where the video begins; what comes then goes on from
        the last of its runs.
    image_grids, video_grids : (n, 3) integers
        Frames, rows and columns of patches of each, before merging.
    merge
        How many patches along rows and along columns become one token.
    time_intervals : number, or one for each video
        Positions from frame to frame, 0 or more: in Qwen2.5-VL the tokens a second times the seconds of a frame. None: 1. Images have
        one frame.
    temporal_merge
        How many frames of a video become one token: 2 in ERNIE 4.5 VL.
    separate_frames
        Each frame of a video is an image of its own between text (Qwen3-VL's timestamps).
    mask : like token_types, booleans
        False for padding, whose positions are 0.
    follows
        The position of text after patches. ``"largest"``: the largest position so far + 1, as in the paper. ``"spatial"``: p + the
        larger of rows and columns, as in Hugging Face's library since version 5; it differs if the time axis goes further.
    shared_marks
        The two tokens that begin a video with audio share a position, and so do the two that end it (Qwen2.5-Omni). False: they are as
        other text (Qwen3-Omni, for whole positions from frame to frame).

    Returns
    -------
    positions : (3, T) or (3, B, T) int64
        For ``Rotary(sections=...)``.
    deltas : () or (B,) int64
        The largest position + 1 - the number of kept rows: a row decoded later, number t, is at position t + delta on all axes.

    Raises
    ------
    ValueError
        Runs of patches and grids do not fit each other; the message says which.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.mrope([0, 0, 1, 1, 1, 1, 0], [(1, 4, 4)]).positions
    array([[0, 1, 2, 2, 2, 2, 4],
           [0, 1, 2, 2, 3, 3, 4],
           [0, 1, 2, 3, 2, 3, 4]])
    """
    function = "mrope"
    given = arrays.array(function, "token_types", token_types, "i", (1, 2))
    types = np.atleast_2d(arrays.host(given))
    checks.boolean(function, "separate_frames", separate_frames)
    checks.one_of(function, "follows", follows, ("largest", "spatial"))
    checks.boolean(function, "shared_marks", shared_marks)
    if types.size and not np.isin(types, (0, 1, 2, 3)).all():
        rule = "token_types must be 0 (text), 1 (image), 2 (video) or 3 (audio)"
        raise ValueError(message(function, rule, str(np.unique(types)[:5])))
    kept = np.ones(types.shape, bool)
    if mask is not None:
        kept = np.atleast_2d(arrays.host(arrays.array(function, "mask", mask, "b", (1, 2))))
        if kept.shape != types.shape:
            raise ValueError(message(function, f"mask must have the shape of token_types, {types.shape}", f"{kept.shape}"))
    merged = checks.width(function, "merge", merge)
    images = _visions("image_grids", image_grids, merged, 1, None, False)
    per_token = checks.width(function, "temporal_merge", temporal_merge)
    videos = _visions("video_grids", video_grids, merged, per_token, time_intervals, separate_frames)
    positions, deltas = np.zeros((3, *types.shape), np.int64), np.zeros(len(types), np.int64)
    for b, row in enumerate(types):
        found = _sequence(row[kept[b]].tolist(), {1: images, 2: videos}, follows, shared_marks)
        positions[:, b, kept[b]] = found
        deltas[b] = found.max(initial=-1) + 1 - found.shape[1]
    for name, unused in (("image_grids", images), ("video_grids", videos)):
        left = len(list(unused))
        if left:
            raise ValueError(message(function, f"{name} must have one entry for each run of patches", f"{left} too many"))
    if given.ndim == 1:
        positions, deltas = positions[:, 0], deltas[0, ...]
    return MRope(arrays.like(function, given, positions), arrays.like(function, given, np.asarray(deltas)))


class _Vision(NamedTuple):
    """Tokens of an image or video: frames, rows, columns, and positions from frame to frame."""

    frames: int
    rows: int
    columns: int
    interval: float


def _visions(name: str, grids: Any, merge: int, temporal_merge: int, intervals: Any, separate: bool) -> Iterator[_Vision]:
    found = [] if grids is None else arrays.host(arrays.array("mrope", name, grids, "i", (2,))).tolist()
    if found and len(found[0]) != 3:
        raise ValueError(message("mrope", f"{name} must have shape (n, 3)", f"({len(found)}, {len(found[0])})"))
    several = isinstance(intervals, (tuple, list)) or (intervals is not None and np.ndim(intervals) > 0)
    steps = list(intervals) if several else [intervals] * len(found)
    if len(steps) != len(found):
        raise ValueError(message("mrope", f"time_intervals must be one number, or {len(found)}", f"{len(steps)}"))
    made: list[_Vision] = []
    for (frames, rows, columns), step in zip(found, steps, strict=True):
        if min(frames, rows, columns) < 1 or rows % merge or columns % merge or frames % temporal_merge:
            rule = f"{name} must be multiples of {temporal_merge} frames and {merge} rows and columns"
            raise ValueError(message("mrope", rule, f"({frames}, {rows}, {columns})"))
        interval = 1.0 if step is None else checks.number("mrope", "time_intervals", step)
        if not 0 <= interval < checks.POSITION_LIMIT:
            raise ValueError(message("mrope", "time_intervals must lie in [0, 2^31)", f"{interval:g}"))
        one = _Vision(frames // temporal_merge, rows // merge, columns // merge, interval)
        made += [one._replace(frames=1)] * one.frames if separate else [one]
    return iter(made)


def _sequence(types: list[int], visions: dict[int, Iterator[_Vision]], follows: str, shared: bool) -> Any:
    """Positions (3, T) of one sequence."""
    parts, begin = [np.zeros((3, 0), np.int64)], 0
    runs = [np.array(list(run)) for _, run in itertools.groupby(types, key=lambda kind: min(kind, 2))]
    heard = [2 in run and 3 in run for run in runs]
    for i, run in enumerate(runs):
        before, after = (shared and any(heard[max(j, 0) : j + 1]) for j in (i - 1, i + 1))
        if run[0] in (0, 3) and not heard[i]:
            steps = np.arange(len(run))
            steps[1:] -= before
            steps[-1] -= after
            parts.append(np.broadcast_to(begin + steps, (3, len(run))))
            begin = int(parts[-1].max()) + 1
            continue
        kind = min(int(run[0]), 2)
        one = next(visions[kind], None)
        _check_run("image_grids" if kind == 1 else "video_grids", one, run[run != 3])
        assert one is not None
        times = np.floor(np.arange(one.frames) * one.interval).astype(np.int64)
        along = np.meshgrid(times, np.arange(one.rows), np.arange(one.columns), indexing="ij")
        part = np.empty((3, len(run)), np.int64)
        part[:, run != 3] = np.stack(along).reshape(3, -1) + begin
        part[:, run == 3] = np.arange(np.count_nonzero(run == 3)) + begin
        parts.append(part)
        if heard[i]:
            _check_marks(runs[:i], heard[:i], run, shared)
            begin = int(part[:, np.flatnonzero(run != run[-1])[-1] + 1 :].max()) + 1
        else:
            begin = int(part.max()) + 1 if follows == "largest" else begin + max(one.rows, one.columns)
    return np.concatenate(parts, axis=1)


def _check_run(name: str, one: _Vision | None, run: Any) -> None:
    if one is None:
        raise ValueError(message("mrope", f"{name} must have one entry for each run of patches", "too few"))
    count = one.frames * one.rows * one.columns
    if count != len(run):
        rule = f"a run of patches must be as long as its entry of {name} says, {count}"
        raise ValueError(message("mrope", rule, f"{len(run)}"))


def _check_marks(before: list[Any], heard: list[bool], run: Any, shared: bool) -> None:
    """A video with audio begins with patches, after two tokens of text of its own."""
    own = 4 if heard[-2:-1] == [True] else 2
    if run[0] != 2 or (shared and (not before or before[-1][-1] != 0 or len(before[-1]) < own)):
        rule = "a video with audio in it must begin with a patch, after the two tokens that begin vision and audio"
        raise ValueError(message("mrope", rule, f"{run[:1].tolist()} after {[] if not before else before[-1][-2:].tolist()}"))
