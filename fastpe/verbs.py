"""The verbs. Each builds an operation and hands it to ``run``, with its arrays and the positions of their rows."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np

from ._backends import backend_on
from ._backends import clear as clear_backends
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

    from ._core.annotations import AnyArray, Booleans, DType, Integers, Reals
    from ._core.where import WhereArguments
    from .encodings.bias import Bias

    Numbers: TypeAlias = float | Sequence[Any] | npt.NDArray[Any]

    class Encoded(TypedDict, total=False):
        """The other arguments of ``encode``."""

        dtype: DType | None
        seq_len: int | None
        validate: bool

    class RotaryOptions(WhereArguments, total=False):
        """The other arguments of ``apply_rotary``."""

        head_dim: int | None
        inverse: bool
        seq_len: int | None
        out: Any
        out_scale: float | tuple[float, float] | None
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
    offset: Integers = 0,
    positions: Reals | None = None,
    cu_seqlens: Integers | None = None,
    mask: Booleans | None = None,
    seq_axis: int = -2,
    input_scale: float = 1.0,
    seq_len: int | None = None,
    out: Array | None = None,
    validate: bool = False,
) -> Array:
    """Add a positional encoding to an array, in place.

    ``x[..., t, :] = x[..., t, :] * input_scale + PE(position of row t)``

    Parameters
    ----------
    x : (..., T, D) float16, bfloat16, float32 or float64 array of NumPy, CuPy or PyTorch
        Any strides; written in place without a copy. T is ``seq_axis``. Of the other axes, without the last, the first is the batch B
        and all further ones are heads.
    encoding
        A ``Sinusoidal``, the name ``"sinusoidal"``, a ``Grid``, a ``Learned`` table, an ``Additive`` of your own, or None for
        ``Sinusoidal()``. For a ``Grid``, x is (..., T, D) with all rows of the grid along T, or has the grid's axes in place of T.
    offset : int or (B,) integers
        Position of the first row: row t stands at ``offset + t``. With ``cu_seqlens``, an int or (n,) integers.
    positions : (T,), (B, T) or x.shape[:-1] integers or real numbers
        Position of every row, counted from 0; (B, T) in x's axis order. Real positions are rounded to 2^-32. Positions of a
        ``Grid`` have its axes in front, (A, T) or (A, B, T), and may have the grid's shape in place of T.
    cu_seqlens : (n + 1,) integers
        Boundaries along T, from 0 to T; positions restart at each of them.
    mask : (T,) or (B, T) booleans
        Rows that are False are left as they are, unscaled (with ``out``, copied). The position of any other row is ``offset`` + the
        number of True rows before it in its sequence; with ``positions``, the mask only protects.
    seq_axis
        The axis of T; any but the last.
    input_scale
        Factor on x, such as ``math.sqrt(D)``. One multiply, then one add, each rounded.
    seq_len
        Length for a scaling rule that depends on it. None: the largest position + 1.
    out : array like x
        Write here and leave x alone. May be x; may not partly overlap it.
    validate
        Also check values that lie on a GPU, which costs one synchronisation. Values on the host are always checked.

    Returns
    -------
    x itself, not a copy (or ``out`` itself).

    Raises
    ------
    TypeError
        x is not an array that fastpe knows, or not a floating-point array; an argument has the wrong type, dtype, library or device.
    ValueError
        A shape, layout or value is wrong: read-only or broadcast x, positions that are not finite or beyond 2^31, contradicting
        arguments. Nothing has been written.
    IndexError
        A position is not in a ``Learned`` table.

    Notes
    -----
    Angles are exact at any position. The error is at most 2e-7 for float32, half a unit in the last place for almost every float16
    and bfloat16 element, and 1e-12 for float64 up to position one million. The result for a position, width and dtype has the same
    bits on every backend, for any batch, strides and number of threads, and however the position is given. NaN and inf
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
    dtype: DType | None = None,
    like: Any = None,
    seq_len: int | None = None,
    out: Any = None,
    validate: bool = False,
) -> Any:
    """Write the encoding of positions: tables, diffusion timesteps, plots.

    ``result[..., :] = PE(positions[...])``, bit for bit what ``add_encoding`` adds. Fourier features are computed in float64 and rounded
    once.

    Parameters
    ----------
    positions : number, sequence or array of integers or real numbers
        Positions count from 0 and lie in [-2^31, 2^31); real ones are rounded to 2^-32. Positions of a ``Grid`` or ``Fourier`` have its
        axes in front, (A, ...). None means all rows of a grid.
    dim, encoding
        Width D >= 1, and a ``Sinusoidal``, its name, a ``Grid``, a ``Fourier``, an encoding of your own, or None for ``Sinusoidal()``.
    dtype
        float16, bfloat16, float32 or float64 (NumPy's bfloat16 needs ml_dtypes). None: the dtype of ``out``, or float32.
    like : array
        Make the result in this array's library and on its device; positions on the host are copied there.
    out : array of shape positions.shape + (dim,)
        Write here, whatever its strides.
    seq_len, validate
        As for ``add_encoding``.

    Returns
    -------
    array of shape ``positions.shape + (dim,)``, in the library and on the device of ``positions`` (or ``out`` itself). For a ``Grid``
    or ``Fourier`` its shape is ``positions.shape[1:] + (dim,)``, for all rows of a grid the grid's shape + (dim,).

    Raises
    ------
    TypeError, ValueError
        As for ``add_encoding``. ImportError: bfloat16 without ml_dtypes.

    Examples
    --------
    >>> import fastpe
    >>> fastpe.encode([0, 1.5], 4).round(4)
    array([[0.    , 1.    , 0.    , 1.    ],
           [0.9975, 0.0707, 0.015 , 0.9999]], dtype=float32)
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
    offset: Integers = 0,
    positions: Reals | None = None,
    cu_seqlens: Integers | None = None,
    mask: Booleans | None = None,
    seq_axis: int = -2,
    head_dim: int | None = None,
    inverse: bool = False,
    seq_len: int | None = None,
    out: Any = None,
    out_scale: float | tuple[float, float] | None = None,
    validate: bool = False,
) -> Any:
    """Rotate queries and keys by their positions, in place.

    Each pair of channels (u, v) of row t becomes ``m (u cos a - v sin a, v cos a + u sin a)``, ``a = position of row t * frequency``.

    Parameters
    ----------
    q, k : (..., T, D) float16, bfloat16, float32 or float64 arrays of NumPy, CuPy or PyTorch, or None
        As x of ``add_encoding``, such as slices of one packed array. k may have fewer heads than q, and another dtype, but no other width
        D of a head; B counts where positions, offsets or a mask differ between sequences.
    encoding
        A ``Rotary``, a ``Rotary.tabulated`` table, a ``Rotational`` of your own, or None for ``Rotary()``.
    offset, positions, cu_seqlens, mask
        As for ``add_encoding``; positions have shape (T,) or (B, T), so (3, T) is a batch of 3; where the encoding has sections, their axes
        are in front, (A, T) or (A, B, T), so (3, T) is three axes, whatever B is.
        Rows that the mask protects are left as they are (with ``out``, copied).
    seq_axis
        The axis of T; -3 for (B, T, H, D), whose shape does not tell heads from rows.
    head_dim
        Width D of a head where the last axis holds all heads, one behind the other: (..., T, heads * D), as projections write them.
    inverse
        Undo the rotation: rotate back, and divide by the attention factor.
    out : an array, or a pair where both q and k are given
        Write there and leave q and k alone. Its dtype is that of q or k, or float8_e4m3fn or float8_e5m2 (NumPy and CuPy know these by
        ml_dtypes), as caches of keys have it: all channels, rotated or not, are divided by ``out_scale``, rounded once to nearest, and
        saturated at 448 or 57344. NaN stays NaN.
    out_scale : float, or a pair of them for q and k
        For ``out`` in float8, whose values times this scale are the result: what ``torch._scaled_mm`` and vLLM call the tensor's scale.
        None: 1. The result is multiplied by the scale's reciprocal, rounded once to float32 (float64 for float64 arrays).
    seq_len, validate
        As for ``add_encoding``.

    Returns
    -------
    q, or (q, k); k alone if q is None. They are the arrays given, not copies (or ``out``).

    Raises
    ------
    TypeError, ValueError
        As for ``add_encoding``. Also: q and k overlap, differ in length or width, or differ in B although positions depend on it; the last
        axis is no multiple of ``head_dim``. Nothing has been written.
    IndexError
        A position is not in the table.

    Notes
    -----
    Angles are exact at any position; a float32 pair errs by at most 2e-7 of its norm. The result has the same bits on every backend, in
    every layout, and however positions are given. Arrays on a GPU are written on the current stream without synchronising. For that reason
    ``seq_len`` must be given if a scaling rule depends on the length and positions lie on a GPU.

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
    operation = Rotate(rotational("apply_rotary", encoding), inverse, seq_len, head_dim, out_scale=out_scale)
    return run(operation, (q, k), (offset, positions, cu_seqlens, mask, seq_axis), out, validate)


def rerotate(
    k: Array,
    delta: Reals = 0,
    encoding: Rotational | None = None,
    *,
    source: Rotational | None = None,
    target: Rotational | None = None,
    offset: Integers = 0,
    positions: Reals | None = None,
    cu_seqlens: Integers | None = None,
    mask: Booleans | None = None,
    seq_axis: int = -2,
    head_dim: int | None = None,
    seq_len: int | tuple[int, int] | None = None,
    out: Array | None = None,
    validate: bool = False,
) -> Array:
    """Move rotated keys to other positions, or from one scaling rule to another, in place.

    A key that ``source`` rotated for position p becomes what ``target`` would make of it at position p + delta, rounded once if only the
    position or only the encoding changes, twice if both do.

    Parameters
    ----------
    k : (..., T, D) array
        Keys that were rotated before, such as a cache; as for ``apply_rotary``.
    delta : a number, or (B,) or (B, T) integers or real numbers
        By how many positions each row moves.
    encoding
        The encoding that k has and keeps; None for ``Rotary()``.
    source, target
        In place of ``encoding``: the one that k has, and the one that it gets. They may differ in base, scaling and attention factor only.
    offset, positions, cu_seqlens, mask
        The present positions of k; they matter only if source and target differ. Rows that the mask protects are left as they are.
    seq_axis, head_dim, out, validate
        As for ``apply_rotary``.
    seq_len
        As for ``add_encoding``, or a pair of lengths: the present one, and the new one.

    Returns
    -------
    k itself, not a copy (or ``out`` itself).

    Raises
    ------
    TypeError, ValueError
        As for ``apply_rotary``. Nothing has been written.

    Notes
    -----
    Every move rounds k. 512 moves by 1 of bfloat16 keys err by a quarter of their norm, one by 512 by 0.2 %: move by the sum, from keys
    that were kept in float32 or unrotated.

    Examples
    --------
    >>> import numpy as np, fastpe
    >>> k = fastpe.apply_rotary(np.ones((1, 2, 4), np.float32), offset=100)
    >>> np.allclose(fastpe.rerotate(k, -100), fastpe.apply_rotary(np.ones((1, 2, 4), np.float32)), atol=1e-6)
    True
    """
    operation = Rerotate(*source_and_target(encoding, source, target), seq_len, head_dim)
    result: Array = run(operation, (k, delta), (offset, positions, cu_seqlens, mask, seq_axis), out, validate)
    return result


def embed(
    ids: Integers,
    table: Array,
    encoding: Additive | str | None = None,
    *,
    scale: float = 1.0,
    token_types: tuple[Integers, AnyArray] | None = None,
    row_scale: Reals | None = None,
    padding_idx: int | None = None,
    offset: Integers = 0,
    positions: Reals | None = None,
    cu_seqlens: Integers | None = None,
    mask: Booleans | None = None,
    dtype: DType | None = None,
    seq_len: int | None = None,
    out: Any = None,
    out_scale: float | None = None,
    validate: bool = False,
) -> Array:
    """Look up token embeddings, scale them and add their positions, in one pass.

    ``out[b, t] = table[ids[b, t]] * scale (+ type_table[type_ids[b, t]]) (+ PE(position of row t))``

    All is computed in float64 if a table or the result is float64, else in float32, in the order of the formula; the result is rounded
    once more at the store. With ``Sinusoidal`` the bits are those of ``add_encoding(table[ids], input_scale=scale)``.

    Parameters
    ----------
    ids : (..., T) integers of any type and rank
        Rows of the table, in [0, V). The last axis is T, the first other one the batch B.
    table : (V, D) float16, bfloat16, float32, float64, int8 or uint8 array of NumPy, CuPy or PyTorch
        Rows of contiguous elements; may be memory-mapped.
    encoding
        A ``Sinusoidal`` or its name, a ``Learned`` table, an ``Additive`` of your own, or None for the embedding alone.
    scale
        Factor on the embedding, such as ``math.sqrt(D)``.
    token_types : (ids, table)
        A second embedding: integers of the shape of ids, and a (types, D) table (BERT's segments).
    row_scale : (V,) real numbers, or a pair (row_scale, zero_point)
        For int8 and uint8 tables: ``(table - zero_point) * row_scale``. The zero point is one number or (V,) of them; by default 0 for
        int8 and 128 for uint8.
    padding_idx
        Rows with this id, in [0, V), become zero, and are masked: the position of any other row is ``offset`` + the number of such rows
        before it. fairseq's rule is ``offset=padding_idx + 1``.
    offset, positions, cu_seqlens, mask
        As for ``add_encoding``; positions may have the shape of ids. Masked rows become zero. Without an encoding only a mask is
        accepted.
    dtype
        Dtype of the result, which may be float8_e4m3fn or float8_e5m2. None: that of ``out``, or of the table (float32 for integer tables).
    out : array of shape ids.shape + (D,)
        Write here, whatever its strides.
    out_scale
        For a result in float8, whose values times this scale are the sums, as for ``apply_rotary``.
    seq_len, validate
        As for ``add_encoding``.

    Returns
    -------
    array of shape ``ids.shape + (D,)`` in the library and on the device of the table (or ``out`` itself).

    Raises
    ------
    IndexError
        An id is not in its table, or a position not in a ``Learned`` table; the message has the first one and its index. Nothing has been
        written. On a GPU without ``validate`` such a row becomes NaN; nothing outside a table is ever read.
    TypeError, ValueError
        As for ``add_encoding``.

    Examples
    --------
    >>> import numpy as np, fastpe
    >>> table = np.eye(5, 4, dtype=np.float32)
    >>> fastpe.embed([[0, 3]], table, "sinusoidal", scale=2.0).round(3)
    array([[[2.   , 1.   , 0.   , 1.   ],
            [0.841, 0.54 , 0.01 , 3.   ]]], dtype=float32)
    """
    added = None if encoding is None else additive("embed", encoding, "embeds")
    operation = Embed(added, scale, padding_idx, dtype, seq_len, out_scale)
    arrays = (table, ids, *pair(token_types), *quantisation(row_scale))
    result: Array = run(operation, arrays, (offset, positions, cu_seqlens, mask, -2), out, validate)
    return result


def add_bias(
    scores: Array,
    bias: Bias,
    *,
    q_offset: Integers | None = None,
    q_positions: Reals | None = None,
    k_positions: Reals | None = None,
    causal: bool = False,
    input_scale: float = 1.0,
    out: Array | None = None,
    validate: bool = False,
) -> Array:
    """Add a bias by distance to attention scores, in place.

    ``scores[..., h, i, j] = scores[..., h, i, j] * input_scale + bias_h(query i - key j)``; the bias is never made as a matrix.

    Parameters
    ----------
    scores : (..., H, Tq, Tk) float16, bfloat16, float32 or float64 array of NumPy or CuPy, or a tensor
        Any strides. The first of the leading axes is the batch B.
    bias
        ``ALiBi``, ``T5Bias``, ``LogBuckets``, ``RelativeTable``, ``Kerple``, ``Sandwich``, ``FIRE``, or a ``Bias`` of your own, of H heads.
    q_offset : int, or (B,) integers
        Query i is at position q_offset + i, key j at j. None: Tk - Tq, so that the last query is at the last key.
    q_positions, k_positions : (Tq,) or (B, Tq), and (Tk,) or (B, Tk) integers
        Positions of queries and keys, for packed, left-padded or remapped sequences. Without k_positions key j is at position j; without
        q_positions and q_offset the queries are the last Tq of the keys.
    causal
        Also write -inf where the key's position is greater than the query's. These scores are not read: they may be uninitialised.
    input_scale
        Factor on the scores, such as 1/sqrt(D).
    out, validate
        As for ``add_encoding``.

    Returns
    -------
    scores itself, not a copy (or ``out`` itself).

    Raises
    ------
    TypeError, ValueError
        scores is not a writable (..., H, Tq, Tk) array of floats, or has other heads than the bias; positions have the wrong kind or
        shape, or lie outside [-2^31, 2^31); both q_offset and q_positions are given. Nothing has been written.

    Notes
    -----
    A bias is computed in float64 and rounded once, to float32 (float64 for float64 scores). Then follow a multiply and an add, each
    rounded, and a last rounding at the store. Values are kept in a table by distance; if positions span more than 2^20 they are computed
    row by row instead. ALiBi needs no table. Positions on a GPU are not read, so Kerple, Sandwich and FIRE, which differ at every distance,
    need ``validate`` there. An invalid position on a GPU makes NaN. A T5 table on a GPU is read there; other learned parameters on a GPU
    are copied to the host, which synchronises.

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

    Weights are those of PyTorch, in float32 for all but float64 tables; sums are in float64 and rounded once. Gradients of tensors pass, by
    the transposed weights.

    Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981; Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021.

    Parameters
    ----------
    table : (P, D) or (1, P, D) array of NumPy, CuPy or PyTorch
        Rows of positions; the first ``prefix_tokens`` belong to no patch and stay as they are (class tokens, registers).
    new_size
        The new length, or the new grid (rows, columns) of patches.
    method
        ``"linear"`` for lengths; ``"bicubic"`` (ViT, DeiT, MAE, DINO; a = -0.75), ``"bilinear"``, ``"antialias"`` (bilinear with
        antialiasing, SigLIP 2) or ``"bicubic_antialias"`` (timm; a = -0.5) for grids. None: linear or bicubic. All as PyTorch's
        ``interpolate`` with ``align_corners=False``.
    grid
        The old grid; None: a square.
    interpolate_offset
        Stretch by (new size + interpolate_offset) / old size: 0.1 in DINO's and DINOv2's own code.

    Returns
    -------
    A new array of the table's dtype and number of axes.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type or value, or the table is not a square and ``grid`` is not given.

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

    A model that was trained with adjacent pairs (``interleaved=True``) gives the same scores with half pairs if the rows of both
    projections, of queries and of keys, are permuted.

    Parameters
    ----------
    weights : (heads * head_dim, ...) array of NumPy, CuPy or PyTorch, any dtype
        Output channels first, as ``torch.nn.Linear.weight`` has them; the result is a new array like it.
    from_, to
        ``"interleaved"``: pair i is channels 2i and 2i + 1. ``"half"``: channels i and i + rotary_dim/2.
    head_dim, rotary_dim, rotary_offset
        Width D of a head, and as in ``Rotary``; other channels stay.

    Examples
    --------
    >>> import numpy as np, fastpe
    >>> fastpe.convert_layout(np.arange(8), "interleaved", "half", head_dim=8)
    array([0, 2, 4, 6, 1, 3, 5, 7])
    """
    result: Array = permuted(weights, from_, to, head_dim, rotary_dim, rotary_offset)
    return result


def array_module() -> ModuleType:
    """Return CuPy if a GPU can be used, else NumPy, so that one pipeline runs on both.

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


def warmup(dtypes: DType | Sequence[DType] = ("float32",), *, device: int | None = None) -> None:
    """Compile the kernels now, not in the first call.

    On the host that takes about three seconds for an element type, or 0.3 from the disk cache. On a device it loads the functions too,
    but neither the frequencies of an encoding nor sums of tables of different element types: call those once before a CUDA graph is
    captured.

    ``dtypes`` are names of element types; ``device`` is None for the host, or the number of a CUDA device.

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
    """Drop what earlier calls keep in memory to make later ones faster: prepared calls, tables of biases, copies of numbers on GPUs.

    What plans have on a GPU stays, as a captured graph may read it. So do compiled kernels, in memory and on disk;
    ``python -m fastpe cache --clear`` deletes those on disk.
    """
    call_cache.clear()
    bias_tables.clear()
    clear_backends()
