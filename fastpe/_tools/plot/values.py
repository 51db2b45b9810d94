"""The numbers behind the pictures; without matplotlib."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..._backends.plans import sine_cosine
from ..._core import checks
from ..._core.checks import describe, message
from ...encodings import Rotary, RotaryTable, Sinusoidal
from ...encodings.bias import Bias
from ...verbs import add_encoding, apply_rotary
from . import named

Floats = npt.NDArray[Any]
MOST_ELEMENTS = 1 << 24  # ten times the pixels of a picture
MOST_POSITIONS = 4096  # of which all pairs are compared
SMOOTH = 512  # steps of a smooth picture
ROWS = 8  # neighbours of which an error is the largest one
POINTS = 160


def chosen(function: str, encoding: Any) -> Any:
    """An encoding that adds or rotates: the value, or the one that a text names, or ``Sinusoidal()``."""
    value = Sinusoidal() if encoding is None else named.encoding(encoding) if isinstance(encoding, str) else encoding
    if isinstance(value, Bias):
        remedy = "fastpe.plot.bias (plot bias) shows it."
        rule = "encoding must be added to embeddings or rotate queries and keys"
        raise ValueError(message(function, rule, f"a bias on scores, {type(value).__name__}", remedy))
    if not hasattr(value, "needs_length") and not hasattr(value, "plan"):
        remedy = "Give a Sinusoidal, a Rotary, a Learned table or a text such as 'rotary:base=500000'."
        raise TypeError(message(function, "encoding must be one of fastpe's", describe(value), remedy))
    return value


def is_rotary(encoding: Any) -> bool:
    """Whether it rotates."""
    return isinstance(encoding, (Rotary, RotaryTable))


def length_of(function: str, encoding: Any, length: int | None, usual: int) -> int:
    """The number of positions: the caller's, or as many as a grid has, or ``usual``."""
    if length is None:
        grid = getattr(encoding, "shape", None)
        table = getattr(encoding, "table", None)
        return math.prod(grid) if isinstance(grid, tuple) else usual if table is None else min(usual, table.shape[0])
    if checks.integer(function, "length", length) < 1:
        raise ValueError(message(function, "length must be at least 1", str(length)))
    return length


def width_of(function: str, encoding: Any, dim: int | None) -> int:
    """The width: the caller's, or that of a table, or 128."""
    if dim is not None:
        return checks.width(function, "dim", dim)
    if isinstance(encoding, RotaryTable):
        return int(encoding.rotary_offset + 2 * encoding.cos.shape[-1])
    table = getattr(encoding, "table", None)
    return 128 if table is None else int(table.shape[1])


def check_range(function: str, length: int, offset: int) -> None:
    """Refuse positions that no encoding has."""
    checks.integer(function, "offset", offset)
    if not -checks.POSITION_LIMIT <= offset <= checks.POSITION_LIMIT - length:
        got = f"offset {offset} and length {length}"
        raise ValueError(message(function, "positions must lie in [-2^31, 2^31)", got))


def check_size(function: str, length: int, dim: int) -> None:
    """Refuse sizes that would only fill the memory."""
    if length * dim > MOST_ELEMENTS:
        rule = f"length * dim must be at most {MOST_ELEMENTS}"
        raise ValueError(message(function, rule, f"{length} * {dim}", "No picture shows more."))


def limit(values: Floats) -> float:
    """The greatest magnitude, to which the map is stretched on both sides."""
    return float(np.nanmax(np.abs(values), initial=0.0)) or 1.0


# ---- rows --------------------------------------------------------------------------------------------------------------------


def rows(function: str, encoding: Any, length: int, dim: int, offset: int = 0, dtype: Any = np.float32) -> Floats:
    """(T, D): what an encoding adds, or what a rotation makes of pairs (1, 0), NaN in channels that are not rotated."""
    check_size(function, length, dim)
    check_range(function, length, offset)
    x: Floats = np.zeros((1, length, dim), dtype)
    if not is_rotary(encoding):
        add_encoding(x, encoding, offset=offset)
        return x.reshape(length, dim)
    first, second = channels(encoding.plan(dim, offset + length))
    x[..., first] = 1
    rotate(x, encoding, offset + np.arange(length))
    kept = np.ones(dim, bool)
    kept[first] = kept[second] = False
    x[..., kept] = np.nan
    return x.reshape(length, dim)


def channels(plan: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first and the second channel of each rotated pair."""
    i = np.arange(plan.rotary_dim // 2)
    if plan.interleaved:
        return plan.first_channel + 2 * i, plan.first_channel + 2 * i + 1
    return plan.first_channel + i, plan.first_channel + i + len(i)


def rotate(q: Floats, encoding: Any, positions: npt.NDArray[np.int64], k: Floats | None = None) -> None:
    """Rotate (1, T, D) in place; every axis of an encoding with sections has the same positions, as text has."""
    sections = getattr(encoding, "sections", None)
    given = positions if sections is None else np.broadcast_to(positions, (len(sections), len(positions))).copy()
    apply_rotary(q, k, encoding, positions=given, seq_len=max(int(positions.max()) + 1, 1))


class Block(NamedTuple):
    """Values (N, M) at N positions and M channels, whole numbers or not."""

    channels: Floats
    positions: Floats
    values: Floats


def to_edges(block: Block) -> Block:
    """A block that reaches half a channel beyond its first and last, as the cells of a heat map do."""
    channels = np.r_[block.channels[0] - 0.5, block.channels, block.channels[-1] + 0.5]
    return Block(channels, block.positions, np.pad(block.values, ((0, 0), (1, 1)), "edge"))


def as_blocks(function: str, encoding: Any, length: int, dim: int) -> list[Block]:
    """The rows of an encoding as they are; of a table of rotations the cosines and the sines."""
    if not is_rotary(encoding):
        return [Block(np.arange(dim), np.arange(length), rows(function, encoding, length, dim))]
    halves = replace(encoding, interleaved=False)
    rotated = rows(function, halves, length, dim)
    first, second = channels(halves.plan(dim, length))
    return [Block(part - first[0], np.arange(length), rotated[:, part]) for part in (first, second)]


def smooth(encoding: Sinusoidal | Rotary, length: int, dim: int) -> list[Block]:
    """Sines, and cosines, of a function of real positions and real frequencies through those of an encoding."""
    angular, factor = encoding.frequencies(dim, length)
    amplitude = factor if isinstance(encoding, Sinusoidal) else 1.0
    count = len(angular)
    channels_at = np.linspace(0, count - 1, max(min(SMOOTH, (count - 1) * 16), count - 1) + 1)
    # Geometric between neighbours; a pair that is not rotated has next to no frequency.
    between = np.exp(np.interp(channels_at, np.arange(count), np.log(np.maximum(angular, 1e-30))))
    positions = np.linspace(0, length - 1, max(min(SMOOTH, (length - 1) * 8), length - 1) + 1)
    angles = positions[:, None] * between
    return [
        Block(channels_at, positions, amplitude * np.sin(angles)),
        Block(channels_at + count, positions, amplitude * np.cos(angles)),
    ]


# ---- similarity --------------------------------------------------------------------------------------------------------------


class Similarity(NamedTuple):
    """Of all pairs of positions (T, T), queries down; and of each distance (T,) the mean, the least and the largest."""

    pairs: Floats
    mean: Floats
    least: Floats
    largest: Floats


def similarity(function: str, encoding: Any, length: int, dim: int) -> Similarity:
    """Cosine of what is added; of rotated vectors the dot product, relative to that at distance 0."""
    if length > MOST_POSITIONS:
        rule = f"length must be at most {MOST_POSITIONS}"
        raise ValueError(message(function, rule, str(length), "All pairs of positions are compared."))
    if is_rotary(encoding):
        q, k = (np.ones((1, length, dim)) for _ in range(2))
        rotate(q, encoding, np.arange(length), k)
        pairs = q[0] @ k[0].T
        pairs /= pairs[0, 0]
    else:
        unit = rows(function, encoding, length, dim, dtype=np.float64)
        norms = np.linalg.norm(unit, axis=1, keepdims=True)
        unit /= np.where(norms > 0, norms, 1)
        pairs = unit @ unit.T
    diagonals = [np.diagonal(pairs, -n) for n in range(length)]  # the query after the key
    return Similarity(pairs, *(np.array([f(one) for one in diagonals]) for f in (np.mean, np.min, np.max)))


# ---- errors ------------------------------------------------------------------------------------------------------------------


def to_bfloat16(values: Floats) -> npt.NDArray[np.float32]:
    """Finite float32 values rounded to the nearest of bfloat16, ties to even; without ml_dtypes."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    kept = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return kept.view(np.float32)


def error_positions(length: int) -> npt.NDArray[np.int64]:
    """First positions of runs of ``ROWS``, evenly spaced by ratio, from 1 on."""
    return np.unique(np.geomspace(1, max(length - ROWS, 1), POINTS).round().astype(np.int64))


FASTPE, ANGLES, STORED, CAST = (
    "fastpe, float32",
    "float32 angles, as usually computed",
    "the same, in a bfloat16 table",
    "float32 angles, frequencies in bfloat16",
)


def errors(function: str, encoding: Any, length: int, dim: int) -> tuple[npt.NDArray[np.int64], dict[str, Floats]]:
    """Positions (N,), and for each way of computing them the largest error of sines and cosines from there on, (N,)."""
    if not isinstance(encoding, (Rotary, Sinusoidal)):
        got = type(encoding).__name__
        raise ValueError(message(function, "encoding must be a Sinusoidal or a Rotary, which have angles", got))
    check_range(function, length, 0)
    if length < 2 * ROWS:
        raise ValueError(message(function, f"length must be at least {2 * ROWS}", str(length)))
    starts = error_positions(length)
    positions = (starts[:, None] + np.arange(ROWS)).reshape(-1)
    plan = encoding.plan(dim, length)
    used = slice(len(encoding.frequencies(dim, length)[0]))
    exact = np.stack(sine_cosine(positions.astype(np.uint64)[:, None] * plan.turns.fraction[None, used]))
    angular = encoding.frequencies(dim, length)[0].astype(np.float32)

    def usual(frequencies: npt.NDArray[np.float32]) -> Floats:
        angles = positions.astype(np.float32)[:, None] * frequencies
        return np.stack((np.sin(angles), np.cos(angles)))

    angles = usual(angular)
    computed = {
        FASTPE: _by_fastpe(encoding, positions, dim, length),
        ANGLES: angles,
        STORED: to_bfloat16(angles),
        CAST: usual(to_bfloat16(angular)),
    }
    return starts, {name: _largest(values, exact, len(starts)) for name, values in computed.items()}


def _largest(values: Floats, exact: Floats, count: int) -> Floats:
    off = np.abs(values.astype(np.float64) - exact[:, :, : values.shape[-1]])
    result: Floats = off.max(axis=(0, 2)).reshape(count, ROWS).max(axis=1)
    return result


def _by_fastpe(encoding: Sinusoidal | Rotary, positions: npt.NDArray[np.int64], dim: int, length: int) -> Floats:
    """Sines and cosines of every whole pair, (2, N, F): those that are added, or that queries are multiplied with."""
    if isinstance(encoding, Sinusoidal):
        plain = replace(encoding, layout="concatenated", cos_first=False, amplitude=1.0)
        x = np.zeros((1, len(positions), dim), np.float32)
        add_encoding(x, plain, positions=positions, seq_len=length)
        pairs, second = dim // 2, plain.plan(dim, length).second_half
        return np.stack((x[0, :, :pairs], x[0, :, second : second + pairs]))
    plain_rotary = replace(encoding, xpos_scale_base=None, attention_factor=1.0)
    first, second_ones = channels(plain_rotary.plan(dim, length))
    x = np.zeros((1, len(positions), dim), np.float32)
    x[..., first] = 1
    sections = encoding.sections
    given = positions if sections is None else np.broadcast_to(positions, (len(sections), len(positions))).copy()
    apply_rotary(x, None, plain_rotary, positions=given, seq_len=length)
    return np.stack((x[0][:, second_ones], x[0][:, first]))
