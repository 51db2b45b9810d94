"""Random positions, to train a model for contexts longer than its training sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import checks
from .._core.checks import message
from . import arrays

if TYPE_CHECKING:
    from .._core.annotations import Like, Random, RealLike


def _shape(function: str, length: Any, batch: Any) -> tuple[int, tuple[int, ...]]:
    """T, and the axes before it."""
    return arrays.natural(function, "length", length), () if batch is None else (arrays.natural(function, "batch", batch),)


def _longer(function: str, name: str, value: Any, length: int) -> int:
    found = arrays.natural(function, name, value)
    if found < length:
        raise ValueError(message(function, f"{name} must be at least length = {length}", str(found)))
    return found


def randomized(length: int, max_length: int, *, batch: int | None = None, rng: Random = None, like: Like | None = None) -> Like:
    """Return T different positions drawn from [0, max_length), sorted.

    Ruoss et al., "Randomized Positional Encodings Boost Length Generalization of Transformers", 2023 (arXiv 2305.16843).

    Parameters
    ----------
    length, batch
        T, and B where each sequence gets a row of its own. None: one row for all.
    max_length
        Longer than any sequence that the model will be given.
    rng : numpy Generator or seed
    like : array
        Make the result in this array's library and on its device.

    Returns
    -------
    positions : (T,) or (B, T) int64

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.randomized(5, 100, rng=0).tolist() == sorted(set(fastpe.positions.randomized(5, 100, rng=0).tolist()))
    True
    """
    function = "randomized"
    count, axes = _shape(function, length, batch)
    most = _longer(function, "max_length", max_length, count)
    generator = np.random.default_rng(rng)
    found = np.empty((*axes, count), np.int64)
    for row in found.reshape(-1, count) if count else ():
        row[:] = np.sort(generator.choice(most, count, replace=False))
    return arrays.like(function, like, found)


def shifted(length: int, max_shift: int, *, batch: int | None = None, rng: Random = None, like: Like | None = None) -> Like:
    """Return positions ``t + k``, with k drawn from 0 ... ``max_shift``.

    Other arguments and the result are as for ``randomized``.

    Kiyono et al., "SHAPE: Shifted Absolute Position Embedding for Transformers", 2021 (arXiv 2109.05644).

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.shifted(4, 0)
    array([0, 1, 2, 3])
    """
    count, axes = _shape("shifted", length, batch)
    shifts = np.random.default_rng(rng).integers(0, arrays.natural("shifted", "max_shift", max_shift), axes, endpoint=True)
    return arrays.like("shifted", like, np.arange(count) + np.asarray(shifts)[..., None])


def skipped(
    length: int, target_length: int, *, chunks: int = 2, batch: int | None = None, rng: Random = None, like: Like | None = None
) -> Like:
    """Return positions with gaps: a sequence of T rows is cut into chunks, each shifted by at least as much as the one before.

    ``p_t = t + u_i`` in chunk i, ``u_0 = 0``, ``u_i`` uniform in ``u_(i-1) ... target_length - length``; chunks are cut at random.

    Zhu et al., "PoSE: Efficient Context Window Extension of LLMs via Positional Skip-wise Training", 2023 (arXiv 2309.10400).

    Parameters
    ----------
    length, batch, rng, like
        As for ``randomized``; T is the length trained on.
    target_length
        The length trained for: positions are below it.
    chunks
        At most ``length``.

    Returns
    -------
    positions : (T,) or (B, T) int64
        For an encoding that is scaled to ``target_length``.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.skipped(6, 6)
    array([0, 1, 2, 3, 4, 5])
    """
    function = "skipped"
    count, axes = _shape(function, length, batch)
    most = _longer(function, "target_length", target_length, count)
    parts = checks.width(function, "chunks", chunks)
    if parts > max(count, 1):
        raise ValueError(message(function, f"chunks must be at most length = {count}", str(parts)))
    generator = np.random.default_rng(rng)
    found = np.empty((*axes, count), np.int64)
    for row in found.reshape(-1, count) if count else ():
        ends = np.sort(generator.choice(count - 1, parts - 1, replace=False)) + 1
        skips = [0]
        for _ in ends:
            skips.append(int(generator.integers(skips[-1], most - count, endpoint=True)))
        row[:] = np.arange(count) + np.repeat(skips, np.diff([0, *ends.tolist(), count]))
    return arrays.like(function, like, found)


def random_float(
    length: int, max_length: float, *, batch: int | None = None, rng: Random = None, like: RealLike | None = None
) -> RealLike:
    """Return T real positions, uniform in [0, max_length), sorted.

    Arguments and the result are as for ``randomized``, but the result is float64. Random float sampling (arXiv 2602.14050).

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.random_float(3, 10.0, batch=2, rng=0).shape
    (2, 3)
    """
    count, axes = _shape("random_float", length, batch)
    most = checks.positive_number("random_float", "max_length", max_length)
    return arrays.like("random_float", like, np.sort(np.random.default_rng(rng).uniform(0, most, (*axes, count)), axis=-1))
