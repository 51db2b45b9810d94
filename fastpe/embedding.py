"""Tables: token embedding with its position in one pass, and learned tables stretched to other sizes."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from . import repeated
from ._arrays import ITEMSIZE, Memory, dispatch
from ._backends.calls import GatherSum
from ._core import checks
from ._core import rows as rows_of
from ._core.arguments import check_apart, named_encoding, output
from ._core.checks import describe, message
from .encodings import Learned, Sinusoidal
from .encodings.learned import check_table

Floats = npt.NDArray[Any]
METHODS = ("linear", "bilinear", "bicubic", "antialias", "bicubic_antialias")
ZERO_POINT = 128  # of uint8, where none is given


def embed(
    ids: Any,
    table: Any,
    encoding: Sinusoidal | Learned | str | None = None,
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
) -> Any:
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
    if type(table) is not np.ndarray and dispatch.is_tensor(table):
        from .torch import verbs

        return verbs.embed(
            ids,
            table,
            encoding,
            scale=scale,
            token_types=token_types,
            row_scale=row_scale,
            padding_idx=padding_idx,
            offset=offset,
            positions=positions,
            cu_seqlens=cu_seqlens,
            mask=mask,
            dtype=dtype,
            seq_len=seq_len,
            out=out,
            validate=validate,
        )
    form = None
    if (
        token_types
        is row_scale
        is padding_idx
        is positions
        is cu_seqlens
        is mask
        is seq_len
        is None  # one chain: they are all None
        and validate is False
    ):
        form = repeated.embedding_form_of(ids, table, encoding, scale, offset, dtype, out)
        if form is not None:
            known = repeated.run_embedding(form, ids, table, offset, out)
            if known is not None:
                return known
    function = "embed"
    library, words = dispatch.memory(function, "table", table)
    if words.dtype not in ("int8", "uint8"):
        checks.floating(function, "table", words.dtype, table)
    check_table(function, "table", dispatch.outline(function, "table", table))
    rows_count, width = words.shape
    factor = checks.number(function, "scale", scale)
    checks.sequence_length(function, seq_len)
    checks.boolean(function, "validate", validate)
    chosen = None if encoding is None else named_encoding(function, encoding)
    found = _ids(function, library, words.device, "ids", ids, rows_count, validate, None)
    shape = (*found.shape, width)
    name = None if dtype is None else checks.dtype_name(function, dtype)
    if name is None and out is None:
        name = words.dtype if words.dtype in ITEMSIZE else "float32"
    row_scales, zero_points = _quantisation(function, library, words, row_scale)
    type_ids, types = _token_types(function, library, words, token_types, found, validate)
    if out is None:
        assert name is not None
        out = library.empty(shape, name, words.device)
        target = library.memory(out)
    else:
        target = output(function, out, library, words.device, shape, name)
        checks.writable(function, "out", shape, target.strides, ITEMSIZE[target.dtype], target.writeable)
        check_apart(function, target, {"the table": words, "ids": found, "the table of types": types})
    checks.fits(function, "scale", factor, target.dtype)
    if len(shape) == 1:  # a single id
        found, target = (memory._replace(shape=(1, *memory.shape), strides=(0, *memory.strides)) for memory in (found, target))
        if type_ids is not None:
            type_ids = type_ids._replace(shape=(1,), strides=(0,))
    axis = len(target.shape) - 2
    place = rows_of.Target(function, library, target, axis, validate)
    if padding_idx is not None:
        mask = _without_padding(place, found, checks.integer(function, "padding_idx", padding_idx), mask)
    if chosen is None:
        _refuse_positions(function, offset, positions, cu_seqlens)
    rows = rows_of.resolve(place, offset, positions, cu_seqlens, mask)
    plan, learned = None, None
    if isinstance(chosen, Sinusoidal):
        checks.fits(function, "the encoding's amplitude", chosen.amplitude, target.dtype)
        if chosen.needs_length and seq_len is None:
            seq_len = rows_of.length_of(function, rows.start, target.shape[axis], rows.keepalive[0] if rows.table else None)
        plan = chosen.plan(width, seq_len)
    elif chosen is not None:
        learned = rows_of.learned_table(place, chosen, positions, rows)
        check_apart(function, target, {"the learned table": learned})
    if 0 not in target.shape:
        operation = GatherSum(
            "embed",
            words,
            target,
            rows,
            axis,
            factor,
            plan,
            learned,
            isinstance(chosen, Learned) and chosen.clips,
            found,
            type_ids,
            types,
            row_scales,
            zero_points,
        )
        backend = dispatch.backend(target)
        call = None if form is None or (chosen is not None and chosen.needs_length) else backend.prepare(operation)
        if form is None or call is None:
            backend.run(operation)
        else:
            call.again()
            repeated.keep_embedding(form, call, chosen, ids)
    return out


def resample(
    table: Any,
    new_size: int | tuple[int, int],
    *,
    method: str | None = None,
    prefix_tokens: int = 0,
    grid: tuple[int, int] | None = None,
    interpolate_offset: float = 0.0,
) -> Any:
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
    if type(table) is not np.ndarray and dispatch.is_tensor(table):
        from .torch import verbs

        options = {"method": method, "prefix_tokens": prefix_tokens, "grid": grid, "interpolate_offset": interpolate_offset}
        return verbs.resample(table, new_size, **options)
    function = "resample"
    library, found = dispatch.memory(function, "table", table)
    checks.floating(function, "table", found.dtype, table)
    if len(found.shape) not in (2, 3) or 0 in found.shape or (len(found.shape) == 3 and found.shape[0] != 1):
        raise ValueError(message(function, "table must have shape (P, D) or (1, P, D)", f"shape {found.shape}"))
    prefix = checks.integer(function, "prefix_tokens", prefix_tokens)
    count, width = found.shape[-2] - prefix, found.shape[-1]
    if prefix < 0 or count < 1:
        raise ValueError(message(function, f"prefix_tokens must lie in [0, {found.shape[-2]})", str(prefix)))
    is_grid = isinstance(new_size, (tuple, list))
    checks.one_of(function, "method", method or ("bicubic" if is_grid else "linear"), METHODS[1:] if is_grid else METHODS[:1])
    sizes = [checks.width(function, "new_size", size) for size in (new_size if is_grid else (new_size,))]  # type: ignore[union-attr]
    if is_grid and len(sizes) != 2:
        raise ValueError(message(function, "new_size must be a length or a pair (rows, columns)", describe(new_size)))
    extra = checks.number(function, "interpolate_offset", interpolate_offset)
    if extra < 0:
        raise ValueError(message(function, "interpolate_offset must be 0 or more", f"{extra:g}"))
    old = _old_grid(function, count, grid) if is_grid else [count]
    flat = table.reshape(prefix + count, width)
    made = flat[prefix:].astype("float64").reshape(*old, width)
    for before, after in zip(old, sizes, strict=True):  # one axis after the other: the first goes to the back of the grid
        real = np.float64 if found.dtype == "float64" else np.float32
        way = method or ("bicubic" if is_grid else "linear")
        weights = library.from_host(_weights(way, before, after, extra, real), found.device)
        rest = made.shape[1:]
        made = (weights @ made.reshape(before, -1)).reshape(after, *rest)
        if len(old) == 2:
            made = made.swapaxes(0, 1)
    result = library.empty((prefix + math.prod(sizes), width), found.dtype, found.device)
    result[:prefix] = flat[:prefix]
    result[prefix:] = made.reshape(-1, width).astype(result.dtype)
    return result if len(found.shape) == 2 else result[None]


# ---- arguments ---------------------------------------------------------------------------------------------------------------


def _ids(
    function: str,
    library: ModuleType,
    device: int | None,
    name: str,
    ids: Any,
    count: int,
    validate: bool,
    shape: tuple[int, ...] | None,
) -> Memory:
    """Ids as int64, checked to lie in [0, count) where they are on the host, or to validate."""
    if dispatch.library_of(ids) is None and device is None:
        ids = rows_of.host_numbers(function, name, ids)
    own, found = dispatch.memory(function, name, ids)
    if own is not library or found.device != device:
        got = f"{own.NAME} on {'the host' if found.device is None else f'device {found.device}'}"
        raise TypeError(message(function, f"{name} must be of the table's library and on its device", got, "Copy them first."))
    kind = found.array.dtype.kind
    if kind not in "iu":
        remedy = "Convert them first, e.g. to int64." if kind == "f" else ""
        raise TypeError(message(function, f"{name} must be integers", describe(ids), remedy))
    if shape is not None and found.shape != shape:
        raise ValueError(message(function, f"{name} must have the shape of ids, {shape}", f"shape {found.shape}"))
    if (device is None or validate) and 0 not in found.shape:
        values = np.asarray(library.as_host(found.array))
        if values.min() < 0 or values.max() >= count:
            bad = (values < 0) | (values >= count)
            where = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
            raise IndexError(message(function, f"{name} must lie in [0, {count})", f"{values[where]} at index {where}"))
    if found.dtype != "int64":
        found = library.memory(found.array.astype("int64"))
    return found


def _quantisation(function: str, library: ModuleType, table: Memory, row_scale: Any) -> tuple[Memory | None, Memory | None]:
    """Scales and zero points of an integer table, float64 each; the kernel's zero point of int8 is 128 more."""
    if table.dtype in ITEMSIZE:
        if row_scale is not None:
            raise ValueError(message(function, "row_scale is for int8 and uint8 tables", f"a {table.dtype} table"))
        return None, None
    if row_scale is None:
        rule = f"row_scale must be given for an {table.dtype} table, ({table.shape[0]},) real numbers"
        raise ValueError(message(function, rule, "None"))
    scales, zeros = row_scale if isinstance(row_scale, tuple) else (row_scale, None)
    if isinstance(row_scale, tuple) and len(row_scale) != 2:  # pragma: no cover
        raise ValueError(message(function, "row_scale must be numbers or a pair (row_scale, zero_point)", describe(row_scale)))
    if zeros is None:
        zeros = 0 if table.dtype == "int8" else ZERO_POINT
    found = []
    for name, value, more in (("row_scale", scales, 0), ("zero_point", zeros, 128 if table.dtype == "int8" else 0)):
        if dispatch.library_of(value) is None:
            value = rows_of.host_numbers(function, name, value)
            if name == "zero_point" and value.ndim == 0:
                value = np.full(table.shape[0], value)
            value = library.from_host(np.asarray(value, np.float64), table.device)
        own, memory = dispatch.memory(function, name, value)
        if own is not library or memory.device != table.device or memory.shape != (table.shape[0],):
            rule = f"{name} must be ({table.shape[0]},) real numbers, of the table's library and on its device"
            raise ValueError(message(function, rule, describe(value)))
        if memory.array.dtype.kind not in "iuf" and memory.dtype != "bfloat16":
            raise TypeError(message(function, f"{name} must be real numbers", describe(value)))
        array = memory.array.astype("float64")
        found.append(library.memory(array + more if more else array))
    return found[0], found[1]


def _token_types(
    function: str, library: ModuleType, table: Memory, token_types: Any, ids: Memory, validate: bool
) -> tuple[Memory | None, Memory | None]:
    if token_types is None:
        return None, None
    if not isinstance(token_types, (tuple, list)) or len(token_types) != 2:
        raise TypeError(message(function, "token_types must be a pair (ids, table)", describe(token_types)))
    own, types = dispatch.memory(function, "the table of token_types", token_types[1])
    checks.floating(function, "the table of token_types", types.dtype, token_types[1])
    check_table(function, "the table of token_types", dispatch.outline(function, "types", token_types[1]))
    if own is not library or types.device != table.device:
        raise TypeError(
            message(function, "the table of token_types must be of the table's library and on its device", own.NAME)
        )
    if types.shape[1] != table.shape[1]:
        rule = f"the table of token_types must have the table's width, {table.shape[1]}"
        raise ValueError(message(function, rule, f"shape {types.shape}"))
    name = "the ids of token_types"
    return _ids(function, library, table.device, name, token_types[0], types.shape[0], validate, ids.shape), types


def _without_padding(place: rows_of.Target, ids: Memory, padding: int, mask: Any) -> Any:
    """The mask without rows of padding, in the shape of ids."""
    kept = ids.array.reshape(ids.shape) != padding
    if len(ids.shape) > 2:
        rule = "padding_idx needs ids of shape (T,) or (B, T)"
        raise ValueError(message(place.function, rule, f"shape {ids.shape}", "Reshape them."))
    if mask is None:
        return kept
    if dispatch.library_of(mask) is None and place.memory.device is None:
        mask = np.asarray(mask)
    if getattr(mask, "shape", None) in ((place.rows,), ids.shape) and getattr(mask.dtype, "kind", "") == "b":
        return kept & mask
    return mask  # wrong, as will be said


def _refuse_positions(function: str, offset: Any, positions: Any, cu_seqlens: Any) -> None:
    for name, value in (
        ("offset", None if type(offset) is int and offset == 0 else offset),
        ("positions", positions),
        ("cu_seqlens", cu_seqlens),
    ):
        if value is not None:
            raise ValueError(
                message(function, f"{name} needs an encoding", "None for the encoding", "Pass fastpe.Sinusoidal().")
            )


# ---- resampling --------------------------------------------------------------------------------------------------------------


def _old_grid(function: str, count: int, grid: Any) -> list[int]:
    if grid is None:
        side = math.isqrt(count)
        if side * side != count:
            raise ValueError(message(function, "grid must be given where the patches are no square", f"{count} patches"))
        return [side, side]
    if not isinstance(grid, (tuple, list)) or len(grid) != 2:
        raise TypeError(message(function, "grid must be a pair (rows, columns)", describe(grid)))
    sizes = [checks.width(function, "grid", size) for size in grid]
    if sizes[0] * sizes[1] != count:
        raise ValueError(message(function, f"grid must have as many patches as the table, {count}", f"{tuple(sizes)}"))
    return sizes


def _weights(method: str, old: int, new: int, extra: float, real: Any) -> Floats:
    """(new, old) float64: how much of each old place a new one takes; places are the middles of equal cells.

    In float32 for all but float64 tables, with fused multiply-adds: that is what PyTorch computes, and a place's last bits are up to
    1e-5 of the result.
    """
    step = real(1 / ((new + extra) / old)) if extra else real(old) / real(new)
    numbers = np.arange(new) + 0.5
    weights = np.zeros((new, old))
    if method.endswith("antialias"):
        kernel, taps_reach = (_triangle, 1) if method == "antialias" else (_keys, 2)
        widening = max(step, real(1))
        reach = widening * real(taps_reach)
        for i, centre in enumerate((numbers * step).astype(real)):
            first, last = max(int(centre - reach + real(0.5)), 0), min(int(centre + reach + real(0.5)), old)
            shares = kernel(np.abs((np.arange(first, last).astype(real) - centre + real(0.5)) / widening))
            weights[i, first:last] = shares / shares.sum()
        return weights
    places = (numbers * np.float64(step) - 0.5).astype(real)
    if method != "bicubic":
        places = np.maximum(places, 0)
    below = np.floor(places)
    parts = places - below
    taps = {0: 1 - parts, 1: parts} if method != "bicubic" else _cubic(parts)
    for tap, shares in taps.items():
        columns = np.clip(below.astype(int) + tap, 0, old - 1)
        np.add.at(weights, (np.arange(new), columns), shares)
    return weights


def _triangle(x: Floats) -> Floats:
    """A hat of width 2 at distances from its middle."""
    hat: Floats = np.maximum(1 - x, 0)
    return hat


def _keys(x: Floats, a: float = -0.5) -> Floats:
    """Keys's kernel at distances 0 to 2."""
    return np.where(x < 1, _horner(x, a + 2, -(a + 3), 0, 1), _horner(x, a, -5 * a, 8 * a, -4 * a))


def _cubic(parts: Floats) -> dict[int, Floats]:
    """The four nearest places, with a = -0.75."""
    return {tap: np.asarray(_keys_between(parts, tap)) for tap in (-1, 0, 1, 2)}


def _keys_between(parts: Floats, tap: int) -> Floats:
    x = parts if tap <= 0 else 1 - parts  # distances are made as PyTorch does, whose last bits differ
    a = -0.75
    return _horner(x, a + 2, -(a + 3), 0, 1) if tap in (0, 1) else _horner(x + 1, a, -5 * a, 8 * a, -4 * a)


def _horner(x: Floats, *coefficients: float) -> Floats:
    """A polynomial in fused steps."""
    result = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = (result.astype(np.float64) * x + coefficient).astype(x.dtype)
    return result
