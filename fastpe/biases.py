"""The verb on attention scores: check, make the bias's values, run."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from . import repeated_biases
from ._arrays import ITEMSIZE, Memory, dispatch
from ._backends.calls import QueryKeyRows
from ._core import checks
from ._core import rows as rows_of
from ._core.arguments import check_apart, output, overlap, place_name
from ._core.checks import NOT_A_POSITION, POSITION_LIMIT, describe, message
from .bias_values import FUNCTION, Work, own_memory
from .encodings.bias import Bias


def add_bias(
    scores: Any,
    bias: Bias,
    *,
    q_offset: Any = None,
    q_positions: Any = None,
    k_positions: Any = None,
    causal: bool = False,
    input_scale: float = 1.0,
    out: Any = None,
    validate: bool = False,
) -> Any:
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
    if type(scores) is not np.ndarray and dispatch.is_tensor(scores):
        from .torch import bias as of_torch

        return of_torch.add_bias(
            scores,
            bias,
            q_offset=q_offset,
            q_positions=q_positions,
            k_positions=k_positions,
            causal=causal,
            input_scale=input_scale,
            out=out,
            validate=validate,
        )
    form = None
    if q_positions is None and k_positions is None and validate is False:
        form = repeated_biases.form_of(scores, bias, q_offset, causal, input_scale, out)
        if form is not None and repeated_biases.run(form, scores, q_offset, out):
            return scores if out is None else out
    work = prepare(scores, bias, q_offset, q_positions, k_positions, causal, input_scale, out, validate)
    if form is None or not repeated_biases.run_and_keep(form, work):
        work.run()
    return scores if out is None else out


def prepare(
    scores: Any,
    bias: Any,
    q_offset: Any,
    q_positions: Any,
    k_positions: Any,
    causal: bool,
    input_scale: float,
    out: Any,
    validate: bool,
) -> Work:
    """Check everything."""
    library, source = check_scores(scores, bias)
    checks.boolean(FUNCTION, "causal", causal)
    checks.boolean(FUNCTION, "validate", validate)
    scale = checks.number(FUNCTION, "input_scale", input_scale)
    checks.fits(FUNCTION, "input_scale", scale, source.dtype)
    target = source if out is None or out is scores else _output(out, library, source)
    name = "scores" if target is source else "out"
    checks.writable(FUNCTION, name, target.shape, target.strides, ITEMSIZE[target.dtype], target.writeable)
    places = resolve(library, source, q_offset, q_positions, k_positions, validate)
    work = Work(library, source, target, places, bias, causal, scale, validate)
    for name, value in bias.parameters.items():
        if not isinstance(value, (tuple, float, int)):
            check_apart(FUNCTION, target, {f"the bias's {name}": own_memory(work, name, value)})
    return work


# ---- arguments ---------------------------------------------------------------------------------------------------------------


def check_bias(bias: Any) -> None:
    if not isinstance(bias, Bias):
        raise TypeError(message(FUNCTION, "bias must be a bias such as fastpe.ALiBi(heads)", describe(bias)))


def check_scores(scores: Any, bias: Any) -> tuple[ModuleType, Memory]:
    check_bias(bias)
    library, source = dispatch.memory(FUNCTION, "scores", scores)
    checks.floating(FUNCTION, "scores", source.dtype, scores)
    if len(source.shape) < 3:
        raise ValueError(message(FUNCTION, "scores must have at least 3 axes, (..., H, Tq, Tk)", f"shape {source.shape}"))
    if source.shape[-3] != bias.heads:
        rule = f"scores must have the bias's {bias.heads} heads in their third axis from the end, (..., H, Tq, Tk)"
        raise ValueError(message(FUNCTION, rule, f"shape {source.shape}"))
    return library, source


def _output(out: Any, library: ModuleType, source: Memory) -> Memory:
    target = output(FUNCTION, out, library, source.device, source.shape, source.dtype)
    if target.same_elements(source):
        return source
    if overlap(source, target):
        remedy = "Pass the scores themselves, or an array that shares no memory with them."
        raise ValueError(message(FUNCTION, "out must not partly overlap the scores", "overlapping views", remedy))
    return target


def resolve(
    library: ModuleType, scores: Memory, q_offset: Any, q_positions: Any, k_positions: Any, validate: bool
) -> QueryKeyRows:
    """Where queries and keys stand."""
    queries_count, keys_count = scores.shape[-2:]
    if max(queries_count, keys_count) > POSITION_LIMIT:
        rule = "Tq and Tk must be at most 2^31, as every position lies in [-2^31, 2^31)"
        raise ValueError(message(FUNCTION, rule, f"shape {scores.shape}"))
    keys = None if k_positions is None else _table(library, scores, "k_positions", k_positions, keys_count, validate)
    if q_positions is not None:
        if q_offset is not None:
            remedy = "Give one of them."
            raise ValueError(message(FUNCTION, "q_offset and q_positions contradict each other", "both", remedy))
        return QueryKeyRows(0, _table(library, scores, "q_positions", q_positions, queries_count, validate), keys)
    if q_offset is None:
        if keys is None:
            return QueryKeyRows(keys_count - queries_count, None, None)
        if queries_count > keys_count:
            rule = "q_positions or q_offset must be given where there are more queries than k_positions"
            raise ValueError(message(FUNCTION, rule, f"{queries_count} queries, {keys_count} keys"))
        first = keys_count - queries_count
        shape, address = (*keys.shape[:-1], queries_count), keys.address + first * keys.strides[-1]
        return QueryKeyRows(0, keys._replace(array=keys.array[..., first:], address=address, shape=shape), keys)
    if isinstance(q_offset, (list, tuple, range)) or getattr(q_offset, "ndim", 0) > 0:
        return QueryKeyRows(0, _offsets(library, scores, q_offset, validate), keys)
    start = checks.integer(FUNCTION, "q_offset", q_offset, "One offset a sequence is an array of shape (B,).")
    if start < -POSITION_LIMIT or start + max(queries_count - 1, 0) >= POSITION_LIMIT:
        got = f"q_offset {start} with {queries_count} queries"
        raise ValueError(message(FUNCTION, "every position must lie in [-2^31, 2^31)", got))
    return QueryKeyRows(start, None, keys)


def _integers(library: ModuleType, scores: Memory, name: str, value: Any, accepted: list[tuple[int, ...]]) -> Memory:
    """Integers of the scores' library on their device, of one of these shapes."""
    if dispatch.library_of(value) is None and scores.device is None:
        value = rows_of.host_numbers(FUNCTION, name, value)
    own, found = dispatch.memory(FUNCTION, name, value)
    if own is not library or found.device != scores.device:
        rule = f"{name} must be of the scores' library and on their device"
        got = f"{own.NAME} on {place_name(found.device)}"
        raise TypeError(message(FUNCTION, rule, got, "Nothing is copied between devices silently."))
    if found.array.dtype.kind not in "iu":
        remedy = "Round them first." if found.array.dtype.kind == "f" else ""
        raise TypeError(message(FUNCTION, f"{name} must be integers", describe(value), remedy))
    if found.shape not in accepted:
        shapes = " or ".join(str(shape) for shape in accepted)
        raise ValueError(message(FUNCTION, f"{name} must have shape {shapes}", f"shape {found.shape}"))
    return found


def _table(library: ModuleType, scores: Memory, name: str, value: Any, count: int, validate: bool) -> Memory:
    """Given positions as the kernels know them."""
    accepted = [(count,), *([(scores.shape[0], count)] if len(scores.shape) > 3 else [])]
    found = _integers(library, scores, name, value, accepted)
    table: Memory = dispatch.backend(scores).locate_rows_given(library, found)
    _refuse_bad(library, name, found, table, validate)
    return table


def _offsets(library: ModuleType, scores: Memory, value: Any, validate: bool) -> Memory:
    """The positions of queries that count from an offset of each sequence's own."""
    if len(scores.shape) < 4:
        remedy = "Scores of shape (H, Tq, Tk) have no batch axis; give an int."
        raise ValueError(message(FUNCTION, "q_offset must be an integer", describe(value), remedy))
    found = _integers(library, scores, "q_offset", value, [(scores.shape[0],)])
    table: Memory = dispatch.backend(scores).locate_rows_ragged(library, scores.shape[-2], found, None)
    _refuse_bad(library, "q_offset", found, table, validate)
    return table


def _refuse_bad(library: ModuleType, name: str, given: Memory, table: Memory, validate: bool) -> None:
    if table.device is not None and not validate:
        return
    bad = np.asarray(library.as_host(table.array)) == NOT_A_POSITION
    if bad.any():
        where = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))[: len(given.shape)]
        value = np.asarray(library.as_host(given.array))[where]
        raise ValueError(message(FUNCTION, f"{name} must lie in [-2^31, 2^31)", f"{value} at index {where}"))
