"""The verbs: what each does, and what it takes. Every one hands an operation, its arrays and where their rows stand to ``run``."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np

from ._backends import backend_on
from ._backends.host.pool import get_num_threads, set_num_threads
from ._core import bias_tables, call_cache, checks
from ._core.operations import Add, AddBias, Embed, Encode, Rerotate, Resample, Rotate
from ._core.operations.embed import pair, quantisation
from ._core.pair_layout import permuted
from ._core.run import run
from .encodings import Additive, Encoding, Rotational, additive, rotational, source_and_target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias, TypedDict

    import numpy.typing as npt
    from typing_extensions import Unpack

    from .encodings.bias import Bias

    Numbers: TypeAlias = float | Sequence[Any] | npt.NDArray[Any]

    class Encoded(TypedDict, total=False):
        """The other arguments of ``encode``."""

        dtype: Any
        seq_len: int | None
        validate: bool

    class RotaryOptions(TypedDict, total=False):
        """The other arguments of ``apply_rotary``."""

        offset: Any
        positions: Any
        cu_seqlens: Any
        mask: Any
        seq_axis: int
        inverse: bool
        seq_len: int | None
        out: Any
        validate: bool


__all__ = [
    "add_bias",
    "add_encoding",
    "apply_rotary",
    "array_module",
    "clear_caches",
    "convert_layout",
    "embed",
    "encode",
    "get_num_threads",
    "rerotate",
    "resample",
    "set_num_threads",
    "warmup",
]

Array = TypeVar("Array")
Keys = TypeVar("Keys")


def add_encoding(
    x: Array,
    encoding: Additive | str | None = None,
    *,
    offset: Any = 0,
    positions: Any = None,
    cu_seqlens: Any = None,
    mask: Any = None,
    seq_axis: int = -2,
    input_scale: float = 1.0,
    seq_len: int | None = None,
    out: Any = None,
    validate: bool = False,
) -> Array:
    """Add a positional encoding to an array, in place.

    ``x[..., t, :] = x[..., t, :] * input_scale + PE(position of row t)``

    Parameters
    ----------
    x : (..., T, D) float16, bfloat16, float32 or float64 array of NumPy, CuPy or PyTorch
        Any strides; written in place without a copy. T is ``seq_axis``, the first other axis but the last is the batch B, further
        ones are heads.
    encoding
        A ``Sinusoidal``, the name ``"sinusoidal"``, a ``Grid``, a ``Learned`` table, or None for ``Sinusoidal()``. For a grid x is
        (..., T, D), T all its rows, or has the grid's axes in place of T.
    offset : int or (B,) integers
        Position of the first row: row t stands at ``offset + t``. With ``cu_seqlens``, an int or (n,) integers.
    positions : (T,), (B, T) or x.shape[:-1] integers or real numbers
        Position of every row, counted from 0; (B, T) in x's axis order. Real positions are rounded to 2^-32. Those of a ``Grid`` have
        its axes in front, (A, T) or (A, B, T), and may have the grid's shape in place of T.
    cu_seqlens : (n + 1,) integers
        Boundaries along T, from 0 to T; positions restart at each.
    mask : (T,) or (B, T) booleans
        Rows that are False keep x unscaled (with ``out``, copied). A kept row stands at ``offset`` + the number of kept rows before
        it in its sequence; with ``positions``, the mask only protects.
    seq_axis
        The axis of T; any but the last.
    input_scale
        Factor on x, such as ``math.sqrt(D)``. One multiply, then one add, each rounded.
    seq_len
        Length for a scaling rule that depends on it. None: the largest position + 1.
    out : array like x
        Write here and leave x alone. May be x; may not partly overlap it.
    validate
        Check values that lie on a GPU too, at the price of one synchronisation. Values on the host are always checked.

    Returns
    -------
    x itself, not a copy (or ``out`` itself).

    Raises
    ------
    TypeError
        x is no array that fastpe knows or no floating-point array; an argument has the wrong type, dtype, library or device.
    ValueError
        A shape, layout or value is wrong: read-only or broadcast x, positions that are not finite or beyond 2^31, contradicting
        arguments. Nothing has been written.
    IndexError
        A position is not in a ``Learned`` table.

    Notes
    -----
    Angles are exact at any position. Error against the true value: at most 2e-7 for float32, half a unit in the last place for
    almost every float16 and bfloat16 element, 1e-12 for float64 up to position one million. The result for a position, width and
    dtype has the same bits on every backend, for any batch, strides, number of threads and way of giving the position. NaN and inf
    in x pass through. x on a GPU is written on the current stream of its device without synchronising.

    Vaswani et al., "Attention Is All You Need", 2017, section 3.5.

    Examples
    --------
    >>> import numpy as np, fastpe
    >>> x = np.zeros((2, 3, 4), np.float32)      # (B, T, D)
    >>> fastpe.add_encoding(x) is x
    True
    >>> x[1].round(4)
    array([[ 0.    ,  1.    ,  0.    ,  1.    ],
           [ 0.8415,  0.5403,  0.01  ,  1.    ],
           [ 0.9093, -0.4161,  0.02  ,  0.9998]], dtype=float32)
    """
    operation = Add(additive("add_encoding", encoding), input_scale, seq_len)
    result: Array = run(operation, (x,), (offset, positions, cu_seqlens, mask, seq_axis), out, validate)
    return result


@overload
def encode(
    positions: Any, dim: int, encoding: Encoding | str | None = None, *, like: Array, **options: Unpack[Encoded]
) -> Array: ...
@overload
def encode(
    positions: Any, dim: int, encoding: Encoding | str | None = None, *, out: Array, **options: Unpack[Encoded]
) -> Array: ...
@overload
def encode(
    positions: Numbers | None, dim: int, encoding: Encoding | str | None = None, **options: Unpack[Encoded]
) -> npt.NDArray[Any]: ...
@overload
def encode(positions: Array, dim: int, encoding: Encoding | str | None = None, **options: Unpack[Encoded]) -> Array: ...
def encode(
    positions: Any,
    dim: int,
    encoding: Encoding | str | None = None,
    *,
    dtype: Any = None,
    like: Any = None,
    seq_len: int | None = None,
    out: Any = None,
    validate: bool = False,
) -> Any:
    """Write the encoding of positions: tables, diffusion timesteps, plots.

    ``result[..., :] = PE(positions[...])``

    Parameters
    ----------
    positions : number, sequence or array of integers or real numbers
        Positions count from 0 and lie in [-2^31, 2^31); real ones are rounded to 2^-32. Those of a ``Grid`` or ``Fourier`` have its
        axes in front, (A, ...); None are all rows of a grid.
    dim
        Width D >= 1.
    encoding
        A ``Sinusoidal``, the name ``"sinusoidal"``, a ``Grid``, a ``Fourier``, or None for ``Sinusoidal()``.
    dtype
        float16, bfloat16, float32 or float64 (NumPy's bfloat16 needs ml_dtypes). None: that of ``out``, or float32.
    like : array
        Make the result in this array's library and on its device; positions on the host are copied there.
    seq_len
        Length for a scaling rule that depends on it. None: the largest position + 1.
    out : array of shape positions.shape + (dim,)
        Write here, whatever its strides.
    validate
        Check positions that lie on a GPU too, at the price of one synchronisation.

    Returns
    -------
    array of shape ``positions.shape + (dim,)``, in the library and on the device of ``positions`` (or ``out`` itself). Of a ``Grid``
    or ``Fourier`` ``positions.shape[1:] + (dim,)``, of all rows of a grid its shape + (dim,).

    Raises
    ------
    TypeError, ValueError
        As ``add_encoding``. ImportError: bfloat16 without ml_dtypes.

    Notes
    -----
    The values are those that ``add_encoding`` adds, bit for bit. Fourier features are computed in float64 and rounded once.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.encode([0, 1.5], 4).round(4)
    array([[0.    , 1.    , 0.    , 1.    ],
           [0.9975, 0.0707, 0.015 , 0.9999]], dtype=float32)
    >>> fastpe.encode(131_071, 512, dtype="float64").shape
    (512,)
    """
    operation = Encode(additive("encode", encoding, "encodes"), dim, dtype, seq_len)
    return run(operation, (like, positions), None, out, validate)


@overload
def apply_rotary(q: None, k: Keys, encoding: Rotational | None = None, **options: Unpack[RotaryOptions]) -> Keys: ...
@overload
def apply_rotary(q: Array, k: None = None, encoding: Rotational | None = None, **options: Unpack[RotaryOptions]) -> Array: ...
@overload
def apply_rotary(
    q: Array, k: Keys, encoding: Rotational | None = None, **options: Unpack[RotaryOptions]
) -> tuple[Array, Keys]: ...
def apply_rotary(
    q: Any,
    k: Any = None,
    encoding: Rotational | None = None,
    *,
    offset: Any = 0,
    positions: Any = None,
    cu_seqlens: Any = None,
    mask: Any = None,
    seq_axis: int = -2,
    inverse: bool = False,
    seq_len: int | None = None,
    out: Any = None,
    validate: bool = False,
) -> Any:
    """Rotate queries and keys by their positions, in place.

    Each pair of channels (u, v) of row t becomes ``m (u cos a - v sin a, v cos a + u sin a)``, ``a = position of row t * frequency``.

    Parameters
    ----------
    q, k : (..., T, D) float16, bfloat16, float32 or float64 arrays of NumPy, CuPy or PyTorch, or None
        Any strides, such as slices of one packed array; written in place without a copy. T is ``seq_axis``, the first other axis but
        the last is the batch B where positions, offsets or a mask differ between sequences, all further ones are heads. k may have
        fewer heads than q, and another dtype.
    encoding
        A ``Rotary`` or a ``Rotary.tabulated`` table, or None for ``Rotary()``.
    offset, positions, cu_seqlens, mask
        As ``add_encoding``; positions have shape (T,) or (B, T), with the axes of ``Rotary.sections`` in front: (A, T) or (A, B, T).
        Rows that the mask protects are left as they are (with ``out``, copied).
    seq_axis
        The axis of T; -3 for (B, T, H, D).
    inverse
        Undo it: rotate back, and divide by the attention factor.
    seq_len
        Length for a scaling rule that depends on it. None: the largest position + 1.
    out : an array, or a pair where both q and k are given
        Write there and leave q and k alone.
    validate
        Check values that lie on a GPU too.

    Returns
    -------
    q, or (q, k); k alone where q is None; not copies (or ``out``).

    Raises
    ------
    TypeError, ValueError
        As ``add_encoding``; and where q and k overlap, or differ in length, or in B where positions depend on it. Nothing has been
        written.
    IndexError
        A position is not in the table.

    Notes
    -----
    Angles are exact at any position; a float32 pair errs by at most 2e-7 of its norm. The result has the same bits on every backend and for
    every way of giving positions and layout. Arrays on a GPU are written on the current stream without synchronising; so where a scaling
    rule depends on the length and positions lie on a GPU, ``seq_len`` is needed.

    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021 (arXiv 2104.09864).

    Examples
    --------
    >>> import numpy as np, fastpe
    >>> q, k = np.ones((1, 8, 3, 4), np.float32), np.ones((1, 2, 3, 4), np.float32)     # (B, H, T, D), fewer heads in k
    >>> fastpe.apply_rotary(q, k)[0] is q
    True
    >>> k[0, 0, 1].round(3)
    array([-0.301,  0.99 ,  1.382,  1.01 ], dtype=float32)
    """
    operation = Rotate(rotational("apply_rotary", encoding), inverse, seq_len)
    return run(operation, (q, k), (offset, positions, cu_seqlens, mask, seq_axis), out, validate)


def rerotate(
    k: Array,
    delta: Any = 0,
    encoding: Rotational | None = None,
    *,
    source: Rotational | None = None,
    target: Rotational | None = None,
    offset: Any = 0,
    positions: Any = None,
    cu_seqlens: Any = None,
    mask: Any = None,
    seq_axis: int = -2,
    seq_len: int | tuple[int, int] | None = None,
    out: Any = None,
    validate: bool = False,
) -> Array:
    """Move rotated keys to other positions, or from one scaling rule to another, in place.

    A key that stands at p in ``source`` becomes what it would be at p + delta in ``target``.

    Parameters
    ----------
    k : (..., T, D) array
        As for ``apply_rotary``: keys that were rotated before, such as a cache.
    delta : a number, or (B,) or (B, T) integers or real numbers
        By how many positions each row moves.
    encoding
        The encoding that k has and keeps; None for ``Rotary()``.
    source, target
        In place of ``encoding``: the one that k has, and the one that it gets. They agree in everything but base, scaling and attention
        factor.
    offset, positions, cu_seqlens, mask
        Where k stands now, needed where source and target differ. Rows that the mask protects are left as they are.
    seq_axis, out, validate
        As for ``apply_rotary``.
    seq_len
        Length for a scaling rule that depends on it, or a pair: the one that k has, and the one that it gets.

    Returns
    -------
    k itself, not a copy (or ``out`` itself).

    Raises
    ------
    TypeError, ValueError
        As for ``apply_rotary``. Nothing has been written.

    Notes
    -----
    Rounded once where only the position or only the encoding changes, twice where both do.

    Examples
    --------
    >>> import numpy as np, fastpe
    >>> k = fastpe.apply_rotary(np.ones((1, 2, 4), np.float32), offset=100)
    >>> np.allclose(fastpe.rerotate(k, -100), fastpe.apply_rotary(np.ones((1, 2, 4), np.float32)), atol=1e-6)
    True
    """
    operation = Rerotate(*source_and_target(encoding, source, target), seq_len)
    result: Array = run(operation, (k, delta), (offset, positions, cu_seqlens, mask, seq_axis), out, validate)
    return result


def embed(
    ids: Any,
    table: Array,
    encoding: Additive | str | None = None,
    *,
    scale: float = 1.0,
    token_types: Any = None,
    row_scale: Any = None,
    padding_idx: int | None = None,
    offset: Any = 0,
    positions: Any = None,
    cu_seqlens: Any = None,
    mask: Any = None,
    dtype: Any = None,
    seq_len: int | None = None,
    out: Any = None,
    validate: bool = False,
) -> Array:
    """Look up token embeddings, scale them and add their positions, in one pass.

    ``out[b, t] = table[ids[b, t]] * scale (+ type_table[type_ids[b, t]]) (+ PE(position of row t))``

    Parameters
    ----------
    ids : (..., T) integers of any type and rank
        Rows of the table, in [0, V). The last axis is T, the first other one the batch B.
    table : (V, D) float16, bfloat16, float32, float64, int8 or uint8 array of NumPy, CuPy or PyTorch
        Rows of contiguous elements; may be memory-mapped.
    encoding
        A ``Sinusoidal`` or its name, a ``Learned`` table, or None for the embedding alone.
    scale
        Factor on the embedding, such as ``math.sqrt(D)``.
    token_types : (ids, table)
        A second embedding: integers of the shape of ids, and a (types, D) table (BERT's segments).
    row_scale : (V,) real numbers, or a pair (row_scale, zero_point)
        Of int8 and uint8 tables: ``(table - zero_point) * row_scale``; the zero point, one number or (V,) of them, is 0 for int8 and
        128 for uint8 if it is not given.
    padding_idx
        Rows with this id become zero, and are masked: those kept stand at ``offset`` + the number of kept rows before them. fairseq's
        rule is ``offset=padding_idx + 1``.
    offset, positions, cu_seqlens, mask
        As ``add_encoding``; positions may have the shape of ids. Masked rows become zero. Only with an encoding (a mask always).
    dtype
        Of the result; None: that of ``out``, or of the table (float32 for integer tables).
    seq_len
        Length for a scaling rule that depends on it. None: the largest position + 1.
    out : array of shape ids.shape + (D,)
        Write here, whatever its strides.
    validate
        Check values that lie on a GPU too, at the price of one synchronisation. Values on the host are always checked.

    Returns
    -------
    array of shape ``ids.shape + (D,)`` in the library and on the device of the table (or ``out`` itself).

    Raises
    ------
    IndexError
        An id, or a position of a ``Learned`` table, is not in its table; the message has the first one and its index. Nothing has been
        written. On a GPU without ``validate`` such a row becomes NaN; nothing outside a table is ever read.
    TypeError, ValueError
        As ``add_encoding``.

    Notes
    -----
    Computed in float64 if the table, another table or the result is float64, else in float32; one operation after the other, in the order
    of the formula, rounded once at the store. With ``Sinusoidal`` the bits are those of ``add_encoding(table[ids], input_scale=scale)``.

    Examples
    --------
    >>> import numpy as np, fastpe
    >>> table = np.eye(5, 4, dtype=np.float32)
    >>> fastpe.embed([[0, 3]], table, "sinusoidal", scale=2.0).round(3)
    array([[[2.   , 1.   , 0.   , 1.   ],
            [0.841, 0.54 , 0.01 , 3.   ]]], dtype=float32)
    """
    operation = Embed(None if encoding is None else additive("embed", encoding, "embeds"), scale, padding_idx, dtype, seq_len)
    arrays = (table, ids, *pair(token_types), *quantisation(row_scale))
    result: Array = run(operation, arrays, (offset, positions, cu_seqlens, mask, -2), out, validate)
    return result


def add_bias(
    scores: Array,
    bias: Bias,
    *,
    q_offset: Any = None,
    q_positions: Any = None,
    k_positions: Any = None,
    causal: bool = False,
    input_scale: float = 1.0,
    out: Any = None,
    validate: bool = False,
) -> Array:
    """Add a bias by distance to attention scores, in place.

    ``scores[..., h, i, j] = scores[..., h, i, j] * input_scale + bias_h(query i - key j)``; the bias is never made as a matrix.

    Parameters
    ----------
    scores : (..., H, Tq, Tk) float16, bfloat16, float32 or float64 array of NumPy or CuPy, or a tensor
        Any strides. The first of the leading axes is the batch B.
    bias
        ``ALiBi``, ``T5Bias``, ``LogBuckets``, ``Kerple``, ``Sandwich`` or ``FIRE``, of H heads.
    q_offset : int, or (B,) integers
        Query i stands at q_offset + i, key j at j. None: Tk - Tq, so that the last query stands at the last key.
    q_positions, k_positions : (Tq,) or (B, Tq), and (Tk,) or (B, Tk) integers
        Where queries and keys stand, in packed, left-padded or remapped sequences. Without k_positions key j stands at j; without
        q_positions (and q_offset) the queries are the last Tq of the keys.
    causal
        Also write -inf where the key's position is greater than the query's. Those scores need not be anything.
    input_scale
        Factor on the scores, such as 1/sqrt(D).
    out
        Write there and leave the scores alone.
    validate
        Check positions that lie on a GPU too, at the price of one synchronisation.

    Returns
    -------
    scores itself, not a copy (or ``out`` itself).

    Raises
    ------
    TypeError, ValueError
        Scores that are no (..., H, Tq, Tk) array of floats that can be written, heads unlike the bias's, positions of the wrong kind or
        shape or beyond [-2^31, 2^31), q_offset beside q_positions. Nothing has been written.

    Notes
    -----
    A bias is computed in float64 and rounded once, to float32 (float64 for float64 scores); then a multiply and an add, each rounded, and
    once more at the store. What a table of a distance's values cannot hold (positions that span more than 2^20) is computed row by row;
    ALiBi needs no table. Positions on a GPU are not read: for Kerple, Sandwich and FIRE, whose values have no end, they need ``validate``.
    A position on a GPU that is none makes NaN. FIRE's queries beyond its length have values of their own, made a few rows at a time.

    A T5 table on a GPU is read there; other learned parameters on a GPU are copied to the host, which synchronises.

    Examples
    --------
    >>> import numpy as np, fastpe
    >>> scores = np.zeros((1, 2, 3, 3), np.float32)
    >>> fastpe.add_bias(scores, fastpe.ALiBi(2), causal=True) is scores
    True
    >>> scores[0, 0]
    array([[ 0.    ,    -inf,    -inf],
           [-0.0625,  0.    ,    -inf],
           [-0.125 , -0.0625,  0.    ]], dtype=float32)
    """
    operation = AddBias(bias, causal, input_scale)
    result: Array = run(operation, (scores,), (q_offset, q_positions, k_positions), out, validate)
    return result


def resample(
    table: Array,
    new_size: int | tuple[int, int],
    *,
    method: str | None = None,
    prefix_tokens: int = 0,
    grid: tuple[int, int] | None = None,
    interpolate_offset: float = 0.0,
) -> Array:
    """Stretch a learned table past its training length, or to another grid of patches.

    Parameters
    ----------
    table : (P, D) or (1, P, D) array of NumPy, CuPy or PyTorch
        Rows of positions; the first ``prefix_tokens`` of them stay as they are (class tokens, registers).
    new_size
        The new length, or the new grid (rows, columns) of patches.
    method
        ``"linear"`` for lengths; ``"bicubic"`` (ViT, DeiT, MAE, DINO; a = -0.75), ``"bilinear"``, ``"antialias"`` (bilinear with
        antialiasing, SigLIP 2) or ``"bicubic_antialias"`` (timm; a = -0.5) for grids. None: linear or bicubic. All as PyTorch's
        ``interpolate`` with ``align_corners=False``.
    prefix_tokens
        Rows in front that belong to no patch.
    grid
        The old grid; None: a square.
    interpolate_offset
        Stretch by (new size + this) / old size: 0.1 in DINO and DINOv2's own code.

    Returns
    -------
    A new array of the table's dtype and number of axes.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type or value, or the table is no square and ``grid`` is not given.

    Notes
    -----
    Weights are those of PyTorch, in float32 for all but float64 tables; sums are in float64 and rounded once.

    Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981; Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021.

    Examples
    --------
    >>> import numpy as np, fastpe
    >>> fastpe.resample(np.array([[0.0], [1.0]]), 4)[:, 0]
    array([0.  , 0.25, 0.75, 1.  ])
    """
    result: Array = run(Resample(new_size, method, prefix_tokens, grid, interpolate_offset), (table,), None)
    return result


def convert_layout(
    weights: Array,
    from_: Literal["half", "interleaved"],
    to: Literal["half", "interleaved"],
    head_dim: int,
    *,
    rotary_dim: int | None = None,
    rotary_offset: int = 0,
) -> Array:
    """Permute a projection's weights (or bias) from one layout of rotary pairs to the other.

    A model whose queries and keys were trained with adjacent pairs (``interleaved=True``) gives the same scores with half pairs, if the
    rows of both projections are permuted.

    Parameters
    ----------
    weights : (heads * head_dim, ...) array of NumPy, CuPy or PyTorch, any dtype
        Output channels first, as ``torch.nn.Linear.weight`` has them.
    from_, to
        ``"interleaved"``: pair i is channels 2i and 2i + 1. ``"half"``: channels i and i + rotary_dim/2.
    head_dim
        Width D of a head.
    rotary_dim, rotary_offset
        As in ``Rotary``; other channels stay.

    Returns
    -------
    A new array like weights.

    Examples
    --------
    >>> import numpy as np, fastpe
    >>> fastpe.convert_layout(np.arange(8), "interleaved", "half", head_dim=8)
    array([0, 2, 4, 6, 1, 3, 5, 7])
    """
    result: Array = permuted(weights, from_, to, head_dim, rotary_dim, rotary_offset)
    return result


# ---- around them -------------------------------------------------------------------------------------------------------------


def array_module() -> ModuleType:
    """Return CuPy where a GPU is usable and NumPy otherwise, so that one pipeline runs on both.

    Examples
    --------
    >>> import fastpe
    >>> xp = fastpe.array_module()
    >>> x = fastpe.add_encoding(xp.zeros((2, 16, 64), "float32"))
    """
    from ._backends import cuda

    if cuda.problem() is not None:
        return np
    import cupy

    module: ModuleType = cupy
    return module


def warmup(dtypes: Any = ("float32",), *, device: int | None = None) -> None:
    """Compile the kernels now, not in the first call.

    On the host that takes about four seconds for an element type, or 0.3 from the disk cache; while a CUDA graph is captured it is
    not allowed.

    Parameters
    ----------
    dtypes
        Names of element types.
    device
        None for the host, or the number of a CUDA device.

    Raises
    ------
    ImportError, RuntimeError
        The device cannot be used; the message says what is missing and how to install it.
    """
    names = [checks.dtype_name("warmup", dtype) for dtype in (dtypes if isinstance(dtypes, (list, tuple)) else [dtypes])]
    if device is not None:
        device = checks.integer("warmup", "device", device)
    backend = backend_on(device)
    for name in names:
        backend.warmup(name, device)


def clear_caches() -> None:
    """Forget what earlier calls left to make later ones quicker: prepared calls, and tables of biases.

    Compiled kernels stay, in memory and on disk: ``python -m fastpe cache --clear`` deletes those on disk.
    """
    call_cache.clear()
    bias_tables.clear()
