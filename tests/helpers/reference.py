"""The encodings as their papers write them, slow and obvious. Imports nothing of fastpe.

Angles are reduced with integers of 160 fractional bits and evaluated in float64: the error is that of NumPy's sine on [-pi, pi].
"""

from __future__ import annotations

import mpmath
import numpy as np

BITS = 160


def angular_frequencies(
    dim: int, base: float = 10000.0, shift: float = 0, scale: float = 1.0, zero_pad: bool = False
) -> list[mpmath.mpf]:
    """w_f: base^(-2f/D) for shift 0 (Vaswani et al.), else base^(-f / max(D//2 - shift, 1)) (tensor2tensor, diffusers)."""
    with mpmath.workprec(220):
        if shift == 0 and not zero_pad:
            exponents = [mpmath.mpf(2 * f) / dim for f in range(-(-dim // 2))]
        else:
            denominator = max(mpmath.mpf(dim // 2) - mpmath.mpf(shift), mpmath.mpf(1))
            exponents = [f / denominator for f in range(dim // 2)]
        return [mpmath.mpf(scale) * mpmath.mpf(base) ** -exponent for exponent in exponents]


def angles(positions: np.ndarray, frequencies: list[mpmath.mpf]) -> np.ndarray:
    """Position times frequency modulo one turn, in radians: positions.shape + (F,) float64. Positions are taken exactly."""
    with mpmath.workprec(220):
        turns = [int(mpmath.nint(w / (2 * mpmath.pi) * mpmath.mpf(2) ** BITS)) for w in frequencies]
    exact = [_scaled(p) for p in np.asarray(positions).reshape(-1).tolist()]
    one = 1 << BITS
    reduced = [[((p * w) >> 80) % one for w in turns] for p in exact]
    fractions = [[(v - one if v > one // 2 else v) / one for v in row] for row in reduced]
    return 2 * np.pi * np.array(fractions, np.float64).reshape(*np.shape(positions), len(turns))


def _scaled(position: float) -> int:
    """position * 2^80; float64 positions of any size that matters here have no finer bits."""
    if isinstance(position, int):
        return position << 80
    numerator, denominator = position.as_integer_ratio()
    return (numerator << 80) // denominator


def sinusoidal(
    positions: np.ndarray,
    dim: int,
    *,
    base: float = 10000.0,
    layout: str = "interleaved",
    cos_first: bool = False,
    frequency_shift: float = 0,
    amplitude: float = 1.0,
    position_scale: float = 1.0,
    zero_pad: bool = False,
) -> np.ndarray:
    """PE of shape positions.shape + (dim,) in float64."""
    angle = angles(positions, angular_frequencies(dim, base, frequency_shift, position_scale, zero_pad))
    return amplitude * arranged(angle, dim, layout, cos_first)


def arranged(angle: np.ndarray, dim: int, layout: str, cos_first: bool) -> np.ndarray:
    """The functions of angles (..., F) in the order of their columns, (..., dim); a column that is left over is zero."""
    first, second = (np.cos(angle), np.sin(angle)) if cos_first else (np.sin(angle), np.cos(angle))
    pairs = dim // 2
    if layout == "concatenated":
        result = np.concatenate([first, second[..., :pairs]], axis=-1)
    else:
        result = np.empty((*angle.shape[:-1], 2 * angle.shape[-1]))
        result[..., 0::2], result[..., 1::2] = first, second
        result = result[..., :dim]
    if result.shape[-1] < dim:
        result = np.concatenate([result, np.zeros((*result.shape[:-1], 1))], axis=-1)
    return result


def turns(frequencies: list[mpmath.mpf]) -> np.ndarray:
    """Frequencies as whole turns, and the next 64 and 32 bits: (3, F) uint64."""
    with mpmath.workprec(220):
        exact = [int(mpmath.nint(w / (2 * mpmath.pi) * mpmath.mpf(2) ** 96)) for w in frequencies]
    parts = [[(w >> 96) % (1 << 64), (w >> 32) % (1 << 64), w % (1 << 32)] for w in exact]
    return np.array(parts, np.uint64).reshape(-1, 3).T


def many_angles(units: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """As ``angles``, vectorised, of int64 positions in units of 2^-32 and of frequencies (3, F); it errs by 2^-60 turn."""
    units = np.asarray(units, np.int64)[..., None]
    whole, part = units >> 32, (units & 0xFFFFFFFF).astype(np.uint64)
    turn, high, low = frequencies
    half = np.uint64(32)
    phase = whole.astype(np.uint64) * high + ((whole * low.astype(np.int64)) >> 32).astype(np.uint64)
    if part.any():
        phase += ((part * turn) << half) + part * (high >> half) + ((part * (high & np.uint64(0xFFFFFFFF))) >> half)
    return phase.astype(np.int64) * (2 * np.pi / 2.0**64)


def grid(
    coordinates: np.ndarray,
    dim: int,
    *,
    axes: tuple[int, ...],
    layout: str = "axes",
    shares: tuple[int, ...] | None = None,
    remainder: str = "refuse",
    **encoding: object,
) -> np.ndarray:
    """Sinusoids of several coordinates (A, ...): (..., dim) float64. ``encoding`` may have a tuple, an entry for each axis."""
    total = sum(shares or (1,) * len(axes))
    blocks = []
    for axis in axes:
        exact = dim * (shares[axis] if shares else 1) / total
        width = 2 * int(np.ceil(exact / 2)) if remainder == "truncate" else 2 * int(exact // 2)
        own = {
            "layout" if name == "sinusoid_layout" else name: value[axis] if isinstance(value, tuple) else value
            for name, value in encoding.items()
        }
        if width:
            blocks.append(sinusoidal(coordinates[axis], width, **own))
    if layout == "functions":
        halves = [np.split(block, 2, axis=-1) for block in blocks]
        blocks = [half[i] for i in (0, 1) for half in halves]
    empty = np.zeros((*coordinates.shape[1:], dim))
    return np.concatenate([*blocks, empty], axis=-1)[..., :dim]


def fourier(points: np.ndarray, matrix: np.ndarray, *, scale: float = 2.0, shift: float = -1.0) -> np.ndarray:
    """[sin | cos] of 2 pi (scale*x + shift) B for points (..., axes), B (axes, F): whole turns are left out exactly."""
    exact = [[_scaled(float(value)) for value in row] for row in np.asarray(matrix, np.float64)]
    one, moved = 1 << 160, int(shift * 2) << 79
    rows = []
    for point in np.asarray(points, np.float64).reshape(-1, len(exact)).tolist():
        where = [(_scaled(x) * int(scale * 2) >> 1) + moved for x in point]
        turns = [sum(c * row[f] for c, row in zip(where, exact, strict=True)) % one for f in range(len(exact[0]))]
        rows.append([(v - one if v > one // 2 else v) / one for v in turns])
    angle = 2 * np.pi * np.array(rows).reshape(*points.shape[:-1], -1)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)


def rotate(
    x: np.ndarray, cosines: np.ndarray, sines: np.ndarray, *, interleaved: bool = False, rotary_offset: int = 0
) -> np.ndarray:
    """Rows (..., T, D) turned pair by pair in float64 (Su et al., equation 34); cosines and sines (..., T, F)."""
    x = np.asarray(x, np.float64)
    result = x.copy()
    for i, (one, other) in enumerate(_pairs(cosines.shape[-1], interleaved, rotary_offset)):
        u, v, c, s = x[..., one], x[..., other], cosines[..., i], sines[..., i]
        result[..., one], result[..., other] = u * c - v * s, v * c + u * s
    return result


def pair_norms(x: np.ndarray, pairs: int, *, interleaved: bool = False, rotary_offset: int = 0) -> np.ndarray:
    """The norm of each channel's pair, 0 where it does not turn."""
    x = np.asarray(x, np.float64)
    found = np.zeros(x.shape)
    for one, other in _pairs(pairs, interleaved, rotary_offset):
        found[..., one] = found[..., other] = np.hypot(x[..., one], x[..., other])
    return found


def _pairs(pairs: int, interleaved: bool, first: int) -> list[tuple[int, int]]:
    return [(first + 2 * i, first + 2 * i + 1) if interleaved else (first + i, first + i + pairs) for i in range(pairs)]


def rows(
    shape: tuple[int, int],
    *,
    offset: object = 0,
    positions: np.ndarray | None = None,
    cu_seqlens: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Position of every row of a (B, T) array, one row at a time."""
    batch, length = shape
    result = np.empty(shape, np.int64 if positions is None else np.asarray(positions).dtype)
    for b in range(batch):
        count, sequence = 0, -1
        for t in range(length):
            while cu_seqlens is not None and sequence + 1 < len(cu_seqlens) - 1 and t >= cu_seqlens[sequence + 1]:
                sequence, count = sequence + 1, 0
            kept = mask is None or (mask[b, t] if np.ndim(mask) == 2 else mask[t])
            if positions is not None:
                result[b, t] = positions[b, t] if np.ndim(positions) == 2 else positions[t]
            else:
                start = offset if np.ndim(offset) == 0 else offset[sequence if cu_seqlens is not None else b]
                result[b, t] = start + count
            count += bool(kept)
    return result


def add(
    x: np.ndarray, positions: np.ndarray, *, mask: np.ndarray | None = None, input_scale: float = 1.0, **encoding: object
) -> np.ndarray:
    """x*input_scale + PE(positions) for x (B, T, D) in float64; masked rows keep x."""
    result = np.asarray(x, np.float64) * input_scale + sinusoidal(positions, x.shape[-1], **encoding)
    if mask is not None:
        kept = np.broadcast_to(mask, positions.shape)[..., None]
        result = np.where(kept, result, np.asarray(x, np.float64))
    return result


# ---- biases ------------------------------------------------------------------------------------------------------------------


def alibi(slopes: np.ndarray, distances: np.ndarray, symmetric: bool = False) -> np.ndarray:
    """Press et al. 2022, section 3: -m (i - j), for each slope; distances are query minus key."""
    return -np.multiply.outer(slopes, np.abs(distances) if symmetric else distances)


def alibi_slopes(heads: int, max_bias: float = 8.0) -> np.ndarray:
    """A geometric sequence that ends with 2^-max_bias; for other numbers of heads, every other one of twice as many is put behind."""
    power = 2 ** int(np.floor(np.log2(heads)))
    own = [2.0 ** (-max_bias * h / power) for h in range(1, power + 1)]
    return np.array(own + [2.0 ** (-max_bias * h / (2 * power)) for h in range(1, 2 * power, 2)])[:heads]


def kerple(p: np.ndarray, a: np.ndarray, distances: np.ndarray, kind: str) -> np.ndarray:
    """Chi et al. 2022, corollary 1, of causal distances."""
    n = np.maximum(distances, 0).astype(np.float64)
    return np.stack([-u * np.log(1 + v * n) if kind == "log" else -v * n**u for u, v in zip(p, a, strict=True)])


def sandwich(heads: int, distances: np.ndarray, width: int = 128) -> np.ndarray:
    """Chi et al. 2023, section 4."""
    k = np.arange(1, width // 2 + 1)
    total = np.cos(np.multiply.outer(distances, 10000.0 ** (-2 * k / width))).sum(-1) - width / 2
    return np.stack([total / (8 * h / heads) for h in range(1, heads + 1)])


def fire(
    w1: np.ndarray,
    b1: np.ndarray,
    w2: np.ndarray,
    b2: np.ndarray,
    c: float,
    length: float,
    distances: np.ndarray,
    queries: np.ndarray,
) -> np.ndarray:
    """Li et al. 2023, equation 9 and its code in the appendix."""
    x = np.log(1 + np.abs(c * distances)) / (np.log(1 + np.abs(c * np.maximum(queries, length))) + 1e-6)
    hidden = np.maximum(x[..., None] * np.asarray(w1, np.float64).reshape(-1) + np.asarray(b1, np.float64), 0)
    return np.moveaxis(hidden @ np.asarray(w2, np.float64).T + np.asarray(b2, np.float64), -1, 0)


def add_bias(scores: np.ndarray, bias: np.ndarray, future: np.ndarray | None = None, input_scale: float = 1.0) -> np.ndarray:
    """scores (B, H, Tq, Tk) times a factor plus a bias that broadcasts, in float64; -inf where ``future``."""
    result = np.asarray(scores, np.float64) * input_scale + bias
    return result if future is None else np.where(future, -np.inf, result)
