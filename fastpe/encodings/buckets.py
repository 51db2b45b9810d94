"""Biases from a learned table whose row depends on the bucket of the distance, or the distance itself: T5, WavLM, DeBERTa-v2, Swin."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._arrays import dispatch
from .._core import checks
from .._core.checks import message
from .bias import Bias, Reach, check_finite

if TYPE_CHECKING:
    from .._core.annotations import AnyArray

Integers = npt.NDArray[np.int64]
DEBERTA, WAVLM = "deberta", "wavlm"
MAX_DISTANCE = {DEBERTA: 512, WAVLM: 800}  # of the models


def _root(power: int, value: int, low: int, high: int) -> int:
    """The smallest n in [low, high] with n^power >= value."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if middle**power >= value else (middle + 1, high)
    return low


@functools.lru_cache(maxsize=64)
def t5_edges(buckets: int, max_distance: int) -> Integers:
    """The distances, in one direction, at which the buckets 1, 2, ... begin.

    Up to e = buckets // 2 each distance has a bucket of its own; bucket e + k begins at the smallest n with
    (n/e)^(buckets - e) >= (max_distance/e)^k, compared in integers. Logarithms in float64 miss some of them by one.
    """
    exact = buckets // 2
    steps = buckets - exact
    edges = list(range(1, exact + 1))
    for k in range(1, steps):
        edges.append(_root(steps, max_distance**k * exact ** (steps - k), edges[-1], max_distance))
    return np.array(edges, np.int64)


@functools.lru_cache(maxsize=64)
def deberta_edges(bucket_size: int, max_distance: int, largest: int) -> Integers:
    """The distances, up to ``largest``, at which the buckets middle + 1, middle + 2, ... begin, middle = bucket_size // 2.

    Bucket middle + k ends at the largest n with (n/middle)^(middle - 1) <= ((max_distance - 1)/middle)^k.
    """
    middle = bucket_size // 2
    edges, k = [middle + 1], 1
    while edges[-1] <= largest:
        power = middle - 1
        # n^power > (max_distance - 1)^k * middle^(power - k), multiplied out so that no exponent is negative
        left, right = middle ** max(k - power, 0), (max_distance - 1) ** k * middle ** max(power - k, 0)
        edges.append(_root(power, right // left + 1, edges[-1], 2 * max_distance**2 * (largest + 1)))
        k += 1
    return np.array(edges, np.int64)


class Buckets(Bias):
    """A learned table (buckets, H); a rule chooses the row for each distance."""

    table: AnyArray

    @property
    def heads(self) -> int:
        return int(self.table.shape[1])

    @property
    def parameters(self) -> dict[str, Any]:
        return {"table": self.table}

    def buckets(self, distances: Any) -> Integers:
        """The integer that the rule gives each distance, query minus key."""
        raise NotImplementedError

    def rows(self, distances: Any) -> Integers:
        """Rows of the table."""
        return self.buckets(distances)

    def evaluate(self, xp: Any, distances: Any, queries: Any = None, **parameters: Any) -> Any:
        return parameters["table"].T[:, self.rows(np.asarray(distances))]


def _check_table(function: str, table: Any) -> int:
    """Raise an error for anything but a (buckets, H) table of floats; return how many buckets there are."""
    found = dispatch.outline(function, "table", table)
    checks.floating(function, "table", found.dtype, table)
    if len(found.shape) != 2 or 0 in found.shape:
        raise ValueError(message(function, "table must have shape (buckets, H), at least 1 of each", f"shape {found.shape}"))
    check_finite(function, "table", table)
    return found.shape[0]


def _check_t5(function: str, buckets: int, bidirectional: bool, max_distance: int) -> None:
    if bidirectional and buckets % 2:
        rule = "a bidirectional table must have an even number of buckets, half of them for keys after the query"
        raise ValueError(message(function, rule, f"{buckets} rows"))
    one_way = buckets // 2 if bidirectional else buckets
    least = 4 if bidirectional else 2
    if one_way < 2:
        raise ValueError(message(function, f"the table must have at least {least} buckets", f"{buckets} rows"))
    if max_distance <= one_way // 2:
        rule = f"max_distance must be greater than {one_way // 2}, the distances that have a bucket of their own"
        raise ValueError(message(function, rule, f"{max_distance}"))


def _t5_buckets(distances: Any, buckets: int, bidirectional: bool, max_distance: int) -> Integers:
    n = np.asarray(distances, np.int64)
    one_way = buckets // 2 if bidirectional else buckets
    found = np.searchsorted(t5_edges(one_way, max_distance), np.abs(n) if bidirectional else np.maximum(n, 0), side="right")
    return np.where(n < 0, found + one_way, found) if bidirectional else np.asarray(found)


@dataclass(frozen=True, eq=False)
class T5Bias(Buckets):
    """T5's relative position bias: table[bucket(query - key), h].

    With N buckets for a direction and e = N // 2, distances n below e have one each; larger ones have bucket
    e + floor(ln(n/e) / ln(max_distance/e) (N - e)), at most N - 1.

    Edges of buckets are found by comparing integer powers, so they are exact for every setting. T5 does not divide scores by
    sqrt(head width).

    Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2020, section 2.1.

    Parameters
    ----------
    table : (buckets, H) array or tensor
        Learned, as Hugging Face's ``relative_attention_bias.weight``; not copied, so what is written into it later counts.
    bidirectional
        Half of the buckets are for keys after the query (encoders). Otherwise those count as distance 0 (decoders).
    max_distance
        From this distance on, all have the same bucket.

    Examples
    --------
    >>> import numpy as np, fastpe
    >>> fastpe.T5Bias(np.zeros((32, 8), np.float32)).buckets([0, 1, 8, 20, 500, -1]).tolist()
    [0, 1, 8, 10, 15, 17]
    """

    table: AnyArray
    bidirectional: bool = True
    max_distance: int = 128

    def __post_init__(self) -> None:
        checks.boolean("T5Bias", "bidirectional", self.bidirectional)
        buckets, end = _check_table("T5Bias", self.table), checks.integer("T5Bias", "max_distance", self.max_distance)
        _check_t5("T5Bias", buckets, self.bidirectional, end)
        super().__post_init__(max_distance=end)

    @property
    def reach(self) -> Reach:
        return (-self.max_distance if self.bidirectional else 0), self.max_distance

    def buckets(self, distances: Any) -> Integers:
        return _t5_buckets(distances, self.table.shape[0], self.bidirectional, self.max_distance)


@dataclass(frozen=True, eq=False)
class LogBuckets(Buckets):
    """A learned table by the logarithmic buckets of DeBERTa-v2 or WavLM.

    ``"deberta"``: with m = bucket_size // 2 and n = query - key, n itself up to m, then
    sign(n) (ceil(ln(abs(n)/m) / ln((max_distance - 1)/m) (m - 1)) + m). The table has 2 bucket_size rows; the bias is row
    bucket + bucket_size, clipped to the first and the last one. ``"wavlm"``: T5's bidirectional rule.

    He et al., "DeBERTaV3", 2021 (arXiv 2111.09543); Chen et al., "WavLM", 2022 (arXiv 2110.13900).

    Parameters
    ----------
    table : (buckets, H) array or tensor
        Learned; not copied.
    rule
        ``"deberta"`` or ``"wavlm"``.
    max_distance
        None: 512 (DeBERTa-v2) or 800 (WavLM).

    Examples
    --------
    >>> import numpy as np, fastpe
    >>> fastpe.LogBuckets(np.zeros((512, 8), np.float32)).buckets([0, 100, -128, 129, 511, -511]).tolist()
    [0, 100, -128, 129, 255, -255]
    """

    table: AnyArray
    rule: str = DEBERTA
    max_distance: int | None = None

    def __post_init__(self) -> None:
        checks.one_of("LogBuckets", "rule", self.rule, (DEBERTA, WAVLM))
        buckets = _check_table("LogBuckets", self.table)
        if self.max_distance is not None:
            object.__setattr__(self, "max_distance", checks.integer("LogBuckets", "max_distance", self.max_distance))
        if self.rule == WAVLM:
            _check_t5("LogBuckets", buckets, True, self._end)
        elif buckets % 2 or buckets < 8:
            raise ValueError(message("LogBuckets", "the table must have 2 bucket_size rows, at least 8", f"{buckets} rows"))
        elif self._end <= buckets // 4 + 1:
            rule = f"max_distance must be greater than bucket_size // 2 + 1 = {buckets // 4 + 1}"
            raise ValueError(message("LogBuckets", rule, f"{self._end}"))
        super().__post_init__()

    @property
    def _end(self) -> int:
        return MAX_DISTANCE[self.rule] if self.max_distance is None else self.max_distance

    @property
    def reach(self) -> Reach:
        if self.rule == WAVLM:
            return -self._end, self._end
        size = self.table.shape[0] // 2
        # Buckets from bucket_size - 1 on have the last row; on the other side those up to -bucket_size have the first one.
        last = size // 2
        edges = deberta_edges(size, self._end, self._end)
        while len(edges) <= size - last:
            edges = deberta_edges(size, self._end, int(edges[-1]))
        end = int(edges[size - last - 1])
        return -end, end

    def buckets(self, distances: Any) -> Integers:
        if self.rule == WAVLM:
            return _t5_buckets(distances, self.table.shape[0], True, self._end)
        n = np.asarray(distances, np.int64)
        far, size = np.abs(n), self.table.shape[0] // 2
        middle, edges = size // 2, deberta_edges(size, self._end, int(far.max(initial=0)))
        return np.where(far <= middle, n, np.sign(n) * (np.searchsorted(edges, far, side="right") + middle))

    def rows(self, distances: Any) -> Integers:
        found = self.buckets(distances)
        if self.rule == WAVLM:
            return found
        size = self.table.shape[0] // 2
        return np.asarray(np.clip(found + size, 0, 2 * size - 1))


@dataclass(frozen=True, eq=False)
class RelativeTable(Buckets):
    """A learned table by the distance itself: table[clip(query - key, -R, R) + R, h], of 2 R + 1 rows.

    With ``positions.window((rows, columns))`` for queries and keys, a distance says how many rows and columns lie between two patches:
    the relative position bias of windows and grids, with the rows of the table in the order of Swin's and BEiT's checkpoints.

    Liu et al., "Swin Transformer", 2021 (arXiv 2103.14030), section 3.2; Bao et al., "BEiT", 2021 (arXiv 2106.08254).

    Parameters
    ----------
    table : (2 R + 1, H) array or tensor
        Learned; not copied. For a window of h x w patches (2 h - 1) (2 w - 1) rows.
    class_token
        Three more rows, behind the others: class token to patch, patch to class token, class token to itself (BEiT). For
        ``positions.window(..., class_token=True)``.

    Examples
    --------
    >>> import numpy as np, fastpe
    >>> bias, where = fastpe.RelativeTable(np.arange(15.0)[:, None]), fastpe.positions.window((2, 3))
    >>> fastpe.add_bias(np.zeros((1, 6, 6)), bias, q_positions=where, k_positions=where)[0, 0]
    array([7., 6., 5., 2., 1., 0.])
    """

    table: AnyArray
    class_token: bool = False

    def __post_init__(self) -> None:
        checks.boolean("RelativeTable", "class_token", self.class_token)
        rows, own = _check_table("RelativeTable", self.table), 3 if self.class_token else 0
        if rows <= own or (rows - own) % 2 == 0:
            rule = "the table must have 2 R + 1 rows" + (", and three for the class token" if own else "")
            raise ValueError(message("RelativeTable", rule, f"{rows} rows"))
        super().__post_init__()

    @property
    def _most(self) -> int:
        return (int(self.table.shape[0]) - (3 if self.class_token else 0)) // 2

    @property
    def reach(self) -> Reach:
        return -self._most, 4 * self._most + 3 if self.class_token else self._most

    def buckets(self, distances: Any) -> Integers:
        n, most = np.asarray(distances, np.int64), self._most
        found = np.clip(n, -most, most) + most
        if self.class_token:  # which stands where `positions.window` puts it
            found += np.searchsorted([most + 1, 2 * most + 2, 3 * most + 3], n, side="right")
        return np.asarray(found)
