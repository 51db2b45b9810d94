"""Positions that keep distances within those that a model was trained on, without further training.

Attention is computed in several branches, each with its own positions of queries and keys. Each pair of a query and a key uses one branch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._core import checks
from .._core.checks import message
from . import arrays

if TYPE_CHECKING:
    from .._core.annotations import Float64, Int64, Integers


class Remap(NamedTuple):
    """Positions for each branch, and which branch a query and a key use.

    Branch b is for ``bounds[b] <= i // size - j // size < bounds[b + 1]``, i and j being the positions of query and key. ``bounds`` begins
    with 0; its last entry is None, for no end.
    """

    q: Int64 | Float64
    k: Int64 | Float64
    size: int
    bounds: tuple[int | None, ...]
    queries: Int64
    keys: Int64

    def branch(self) -> Int64:
        """Return which branch each query (rows) and key (columns) use: (Tq, Tk) int64. Keys after the query use the first."""
        apart: Int64 = (self.queries // self.size)[:, None] - (self.keys // self.size)[None, :]
        inner: Any = self.bounds[1:-1]
        chosen: Int64 = np.digitize(apart, inner)
        return chosen

    def distance(self) -> Int64 | Float64:
        """Return the distance of each query (rows) and key (columns) in their branch: (Tq, Tk)."""
        chosen = self.branch()
        rows, columns = np.arange(self.queries.size)[:, None], np.arange(self.keys.size)[None, :]
        return self.q[chosen, rows] - self.k[chosen, columns]


def _places(function: str, queries: Any, keys: Any) -> tuple[Any, Any]:
    """Positions of queries and keys; a number means 0, 1, ..."""
    found = []
    for name, value in (("queries", queries), ("keys", queries if keys is None else keys)):
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            found.append(np.arange(arrays.natural(function, name, value)))
            continue
        given = np.asarray(arrays.host(arrays.array(function, name, value, "i", (1,))))
        if given.size and given.min() < 0:
            raise ValueError(message(function, f"{name} must be 0 or more", str(given.min())))
        found.append(given.astype(np.int64))
    return found[0], found[1]


def rerope(queries: Integers, keys: Integers | None = None, *, window: int) -> Remap:
    """Return ReRoPE's branches: distances from ``window`` on are all ``window``.

    Su, "Rectified Rotary Position Embeddings", 2023 (github.com/bojone/rerope).

    Parameters
    ----------
    queries, keys : number of rows, or (T,) integers
        Their positions; a number T means 0 ... T - 1. None: keys as queries.
    window
        At least 1.

    Returns
    -------
    Remap
        Branch 0, distances below ``window``: positions as they are. Branch 1: each query at ``window``, each key at 0.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.rerope(5, window=3).distance()[-1]
    array([3, 3, 2, 1, 0])
    """
    i, j = _places("rerope", queries, keys)
    w = checks.width("rerope", "window", window)
    return Remap(np.stack([i, np.full_like(i, w)]), np.stack([j, np.zeros_like(j)]), 1, (0, w, None), i, j)


def leaky_rerope(queries: Integers, keys: Integers | None = None, *, window: int, factor: float) -> Remap:
    """Return Leaky ReRoPE's branches: a distance n from ``window`` on becomes ``window + (n - window) / factor``.

    Arguments and branch 0 are as for ``rerope``. Branch 1: ``i / factor + window - window / factor`` and ``j / factor``.

    Su, "Rectified Rotary Position Embeddings", 2023 (github.com/bojone/rerope).

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.leaky_rerope(6, window=3, factor=2).distance()[-1]
    array([4. , 3.5, 3. , 2. , 1. , 0. ])
    """
    i, j = _places("leaky_rerope", queries, keys)
    w, k = checks.width("leaky_rerope", "window", window), checks.positive_number("leaky_rerope", "factor", factor)
    return Remap(np.stack([i, i / k + (w - w / k)]), np.stack([j, j / k]), 1, (0, w, None), i, j)


def self_extend(queries: Integers, keys: Integers | None = None, *, group: int = 8, window: int = 1024) -> Remap:
    """Return Self-Extend's branches: beyond ``window``, ``group`` rows share a position.

    Arguments and branch 0 are as for ``rerope``. Branch 1: ``i // group + window - window // group`` and ``j // group``.

    Jin et al., "LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning", 2024 (arXiv 2401.01325).

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.self_extend(8, group=2, window=4).distance()[-1]
    array([5, 5, 4, 4, 3, 2, 1, 0])
    """
    i, j = _places("self_extend", queries, keys)
    g, w = checks.width("self_extend", "group", group), checks.width("self_extend", "window", window)
    return Remap(np.stack([i, i // g + w - w // g]), np.stack([j, j // g]), 1, (0, w, None), i, j)


def dual_chunk(queries: Integers, keys: Integers | None = None, *, chunk: int, local: int) -> Remap:
    """Return the branches of dual chunk attention: within a chunk, to the previous chunk, and to chunks further back.

    Keys are at ``j mod s``. Queries are at ``i mod s`` within a chunk, at ``min(i mod s + s, chunk)`` for the previous chunk, and at
    ``min(2 s - 1, chunk)`` for the others. The chunks, of ``s = chunk - local`` rows, decide on the branch: ``size`` is s. In the authors'
    code ``chunk`` and ``local`` are three quarters and a sixteenth of the trained length. Queries and keys are as for ``rerope``.

    An et al., "Training-Free Long-Context Scaling of Large Language Models", 2024 (arXiv 2402.17463).

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.dual_chunk(10, chunk=4, local=1).distance()[-1]
    array([4, 3, 2, 4, 3, 2, 3, 2, 1, 0])
    """
    function = "dual_chunk"
    i, j = _places(function, queries, keys)
    c, near = checks.width(function, "chunk", chunk), arrays.natural(function, "local", local)
    s = c - near
    if s < 1:
        raise ValueError(message(function, f"local must be less than chunk = {c}", str(near)))
    q = np.stack([i % s, np.minimum(i % s + s, c), np.full_like(i, min(2 * s - 1, c))])
    return Remap(q, np.stack([j % s] * 3), s, (0, 1, 2, None), i, j)


def string(queries: Integers, keys: Integers | None = None, *, shift: int, window: int = 128) -> Remap:
    """Return STRING's branches: from ``shift`` on, distances start again at ``window``.

    An et al., "Why Does the Effective Context Length of LLMs Fall Short?", 2024 (arXiv 2410.18745).

    Branch 0, distances below ``shift``: positions as they are. Branch 1: queries at ``i - shift + window``. In the paper ``shift`` is about
    a third of the length. ``window`` is at most ``shift``; queries and keys are as for ``rerope``.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.positions.string(7, shift=4, window=1).distance()[-1]
    array([3, 2, 1, 3, 2, 1, 0])
    """
    i, j = _places("string", queries, keys)
    s, w = checks.width("string", "shift", shift), arrays.natural("string", "window", window)
    if w > s:
        raise ValueError(message("string", f"window must be at most shift = {s}", str(w)))
    return Remap(np.stack([i, i - s + w]), np.stack([j, j]), 1, (0, s, None), i, j)
