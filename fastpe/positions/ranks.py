"""Positions of the rows that one rank of context parallelism holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .._arrays import dispatch
from .._core import checks
from .._core.checks import message
from . import arrays

if TYPE_CHECKING:
    from .._core.annotations import Integers, Like

ORDERS = ("contiguous", "zigzag", "striped")
FUNCTION = "context_parallel"


def context_parallel(
    length: int,
    rank: int,
    ranks: int,
    order: Literal["contiguous", "zigzag", "striped"] = "contiguous",
    cu_seqlens: Integers | None = None,
    *,
    like: Like | None = None,
) -> Like:
    """Return the positions of the rows that a rank holds of a sequence split among ranks, in the order in which they lie there.

    ``p_j = the row's number in its sequence``. Without ``cu_seqlens`` the rank holds ``x[:, positions]``.

    Liu et al., "Ring Attention with Blockwise Transformers for Near-Infinite Context", 2023 (arXiv 2310.01889); Brandon et al., "Striped
    Attention: Faster Ring Attention for Causal Transformers", 2023 (arXiv 2311.09431).

    Parameters
    ----------
    length
        Rows T of all ranks together; of packed sequences the last of ``cu_seqlens``.
    rank, ranks
        This rank, from 0 on, and how many there are.
    order
        ``"contiguous"``: rows one behind the other, ceil(T / ranks) a rank and fewer on the last ones, as ``torch.chunk`` and DTensors
        split; also PyTorch's ``context_parallel`` without load balancing. ``"zigzag"``: of 2 ranks chunks those numbered ``rank`` and
        ``2 ranks - 1 - rank``, as Megatron, TransformerEngine and PyTorch's ``context_parallel`` balance causal attention; the length must
        be a multiple of 2 ranks. ``"striped"``: rows ``rank``, ``rank + ranks``, ...
    cu_seqlens : (n + 1,) integers
        Sequences packed one behind the other, each with positions from 0 on. ``"zigzag"`` splits each sequence, as TransformerEngine does,
        so each is as long as a multiple of 2 ranks; the other orders split the packed rows as a whole. On a GPU they are not checked.
    like : array
        Return an array of this library and on this device.

    Returns
    -------
    (T / ranks,) int64, as many as the rank has rows.

    Examples
    --------
    >>> import fastpe
    >>> [fastpe.positions.context_parallel(8, rank, 2, "zigzag").tolist() for rank in range(2)]
    [[0, 1, 6, 7], [2, 3, 4, 5]]
    >>> fastpe.positions.context_parallel(12, 1, 2, "zigzag", cu_seqlens=[0, 4, 12])
    array([1, 2, 2, 3, 4, 5])
    """
    count, ranks, rank = arrays.natural(FUNCTION, "length", length), checks.width(FUNCTION, "ranks", ranks), _rank(rank, ranks)
    checks.one_of(FUNCTION, "order", order, ORDERS)
    unit = 2 * ranks if order == "zigzag" else 1
    if cu_seqlens is None and count % unit:
        raise ValueError(message(FUNCTION, f"length must be a multiple of 2 * ranks = {unit}", str(count), "Pad the sequence."))
    boundaries = arrays.array(FUNCTION, "cu_seqlens", [0, count] if cu_seqlens is None else cu_seqlens, "i", (1,))
    if arrays.is_on_host(boundaries):
        _check(arrays.host(boundaries), count, unit)
    if like is not None:
        boundaries = arrays.like(FUNCTION, like, arrays.host(boundaries))
    boundaries = arrays.integers(boundaries)
    library = arrays.module(boundaries)
    place = {"device": boundaries.device} if dispatch.is_tensor(boundaries) else {}
    if order == "zigzag":
        rows, own = library.arange(count // ranks, **place), boundaries // ranks  # of every sequence this rank has as many rows
        sequence = library.searchsorted(own, rows, side="right") - 1
        row, half = rows - own[sequence], (own[sequence + 1] - own[sequence]) // 2
        spread: Like = row + half * library.where(row < half, rank, 2 * ranks - 2 - rank)
        return spread
    share = -(-count // ranks)
    first, end, step = (
        (rank, count, ranks) if order == "striped" else (min(rank * share, count), min((rank + 1) * share, count), 1)
    )
    rows = library.arange(min(first, end), end, step, **place)
    found: Like = rows - boundaries[library.searchsorted(boundaries, rows, side="right") - 1]
    return found


def _rank(rank: int, ranks: int) -> int:
    found = checks.integer(FUNCTION, "rank", rank)
    if not 0 <= found < ranks:
        raise ValueError(message(FUNCTION, f"rank must lie in [0, {ranks})", str(found)))
    return found


def _check(boundaries: Any, count: int, unit: int) -> None:
    lengths = np.diff(boundaries)
    if boundaries.size == 0 or boundaries[0] != 0 or (lengths < 0).any() or boundaries[-1] != count:
        rule = f"cu_seqlens must start at 0, never decrease and end at length = {count}"
        raise ValueError(message(FUNCTION, rule, str(boundaries.tolist()[:8])))
    odd = np.flatnonzero(lengths % unit)
    if odd.size:
        rule = f"every sequence must be as long as a multiple of 2 * ranks = {unit}"
        got = f"{lengths[odd[0]]} rows in sequence {odd[0]}"
        raise ValueError(message(FUNCTION, rule, got, "Pad each sequence, as TransformerEngine wants it."))
