"""The rotary verbs: check, plan, run; and what goes with them."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from . import repeated
from ._arrays import ITEMSIZE, Memory, dispatch
from ._backends.calls import Pair, RotaryRows, Rotate, Rows
from ._core import checks
from ._core import rows as rows_of
from ._core.arguments import output, overlap, place_name
from ._core.checks import describe, message
from .encodings import Rotary, RotaryTable
from .encodings.rotary import difference

_DEFAULT = Rotary()
LAYOUTS = ("half", "interleaved")


def apply_rotary(
    q: Any,
    k: Any = None,
    encoding: Rotary | RotaryTable | None = None,
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
    first = k if q is None else q
    if type(first) is not np.ndarray and dispatch.is_tensor(first):
        from .torch import verbs

        return verbs.apply_rotary(
            q,
            k,
            encoding,
            offset=offset,
            positions=positions,
            cu_seqlens=cu_seqlens,
            mask=mask,
            seq_axis=seq_axis,
            inverse=inverse,
            seq_len=seq_len,
            out=out,
            validate=validate,
        )
    form = None
    if positions is None and cu_seqlens is None and mask is None and seq_len is None and out is None and validate is False:
        form = repeated.rotary_form_of(q, k, encoding, offset, seq_axis, inverse)
        if form is not None and repeated.run_rotary(form, q, k, offset):
            return q if k is None else k if q is None else (q, k)
    return rotate(form, q, k, encoding, offset, positions, cu_seqlens, mask, seq_axis, inverse, seq_len, out, validate)


def rotate(
    form: repeated.Form | None,
    q: Any,
    k: Any,
    encoding: Rotary | RotaryTable | None,
    offset: Any,
    positions: Any,
    cu_seqlens: Any,
    mask: Any,
    seq_axis: int,
    inverse: bool,
    seq_len: int | None,
    out: Any,
    validate: bool,
    transposed: bool = False,
) -> Any:
    """What ``apply_rotary`` does, or its transpose: rotated the other way, by the same factors. The transpose is its adjoint."""
    function = "apply_rotary"
    chosen = _encoding(function, "encoding", encoding, (Rotary, RotaryTable))
    checks.sequence_length(function, seq_len)
    checks.boolean(function, "validate", validate)
    checks.boolean(function, "inverse", inverse)
    arrays = _arrays(function, {"q": q, "k": k}, out, seq_axis)
    rows = _rows(arrays, chosen, validate, offset, positions, cu_seqlens, mask)
    plans = {}
    for name, memory in arrays.targets.items():
        length = _length(rows, memory.shape[arrays.axes[name]]) if chosen.needs_length and seq_len is None else seq_len
        plans[name] = chosen.plan(memory.shape[-1], length)
        for factor in (plans[name].attention_factor, 1 / plans[name].attention_factor):
            checks.fits(function, "the encoding's attention factor", factor, memory.dtype)
    pairs = {name: pair for name, pair in arrays.pairs.items() if 0 not in pair.out.shape}
    alike = len({(plans[name].head_dim, pair.out.dtype, arrays.axes[name]) for name, pair in pairs.items()}) == 1
    groups = [pairs] if alike and not _grows(chosen) else [{name: pair} for name, pair in pairs.items()]
    for group in groups:
        name = next(iter(group))
        plan = plans[name]
        factor, grows = plan.attention_factor, (name == "k") != inverse
        factor = 1 / factor if inverse else factor
        pair = group.get("q"), group.get("k")
        operation = Rotate(*pair, rows, arrays.axes[name], plan, inverse != transposed, factor, grows, plan.centre)
        backend = dispatch.backend(group[name].out)
        call = backend.prepare(operation) if form is not None and len(groups) == 1 and not chosen.needs_length else None
        if form is None or call is None:
            backend.run(operation)
        else:
            call.again()
            repeated.keep_rotary(form, call, chosen, q, k)
    if out is not None:
        return out
    return q if k is None else k if q is None else (q, k)


def rerotate(
    k: Any,
    delta: Any = 0,
    encoding: Rotary | None = None,
    *,
    source: Rotary | None = None,
    target: Rotary | None = None,
    offset: Any = 0,
    positions: Any = None,
    cu_seqlens: Any = None,
    mask: Any = None,
    seq_axis: int = -2,
    seq_len: int | tuple[int, int] | None = None,
    out: Any = None,
    validate: bool = False,
) -> Any:
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
    if type(k) is not np.ndarray and dispatch.is_tensor(k):
        from .torch import verbs

        return verbs.rerotate(
            k,
            delta,
            encoding,
            source=source,
            target=target,
            offset=offset,
            positions=positions,
            cu_seqlens=cu_seqlens,
            mask=mask,
            seq_axis=seq_axis,
            seq_len=seq_len,
            out=out,
            validate=validate,
        )
    return move(k, delta, encoding, source, target, offset, positions, cu_seqlens, mask, seq_axis, seq_len, out, validate)


def move(
    k: Any,
    delta: Any,
    encoding: Rotary | None,
    source: Rotary | None,
    target: Rotary | None,
    offset: Any,
    positions: Any,
    cu_seqlens: Any,
    mask: Any,
    seq_axis: int,
    seq_len: int | tuple[int, int] | None,
    out: Any,
    validate: bool,
    transposed: bool = False,
) -> Any:
    """What ``rerotate`` does, or its transpose."""
    function = "rerotate"
    checks.boolean(function, "validate", validate)
    if (source is None) != (target is None):
        raise ValueError(message(function, "source and target go together", "one of them", "Or give encoding alone."))
    if encoding is not None and source is not None:
        raise ValueError(message(function, "encoding contradicts source and target", "all of them"))
    old, new = (
        _encoding(function, name, value, (Rotary,))
        for name, value in (
            ("source" if source else "encoding", source or encoding),
            ("target" if target else "encoding", target or encoding),
        )
    )
    lengths = seq_len if isinstance(seq_len, (tuple, list)) else (seq_len, seq_len)
    if len(lengths) != 2:
        raise ValueError(message(function, "seq_len must be one length or a pair", describe(seq_len)))
    for length, one in zip(lengths, (old, new), strict=True):
        checks.sequence_length(function, length)
        if length is None and one.needs_length:
            raise ValueError(message(function, "seq_len must be given where the scaling rule depends on it", "None"))
    _check_alike(old, new)
    arrays = _arrays(function, {"k": k}, out, seq_axis)
    memory, axis = arrays.targets["k"], arrays.axes["k"]
    plans = [one.plan(memory.shape[-1], length) for one, length in zip((old, new), lengths, strict=True)]
    change = None if plans[0] is plans[1] else difference(*plans)
    rows = None if change is None else _rows(arrays, new, validate, offset, positions, cu_seqlens, mask)
    moves = not (type(delta) is int and delta == 0)
    moved = _moved_rows(arrays, validate, delta, mask) if moves or change is None else None
    pair = arrays.pairs["k"]
    if 0 not in memory.shape:
        backend = dispatch.backend(memory)
        if change is not None and rows is not None:
            checks.fits(function, "the attention factor's change", change.attention_factor, memory.dtype)
            backend.run(Rotate(None, pair, rows, axis, change, transposed, change.attention_factor))
            pair = Pair(pair.out, pair.out)
        if moved is not None and (moves or pair.x is not pair.out):
            backend.run(Rotate(None, pair, moved, axis, plans[1], transposed, 1.0, True, 0))
    return k if out is None else out


def convert_layout(
    weights: Any, from_: str, to: str, head_dim: int, *, rotary_dim: int | None = None, rotary_offset: int = 0
) -> Any:
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
    function = "convert_layout"
    checks.one_of(function, "from_", from_, LAYOUTS)
    checks.one_of(function, "to", to, LAYOUTS)
    head_dim = checks.width(function, "head_dim", head_dim)
    if dispatch.library_of(weights) is None:
        raise TypeError(message(function, "weights must be a NumPy or CuPy array or a PyTorch tensor", describe(weights)))
    if weights.ndim < 1 or weights.shape[0] % head_dim:
        rule = f"weights must have a first axis of heads * head_dim, a multiple of {head_dim}"
        raise ValueError(message(function, rule, f"shape {weights.shape}"))
    width = Rotary(rotary_dim=rotary_dim, rotary_offset=rotary_offset).width(head_dim)
    result = weights.clone() if dispatch.is_tensor(weights) else weights.copy()
    if from_ == to:
        return result
    heads, rest = weights.shape[0] // head_dim, weights.shape[1:]
    turning = slice(rotary_offset, rotary_offset + width)
    pairs = (2, width // 2) if from_ == "half" else (width // 2, 2)
    permuted = weights.reshape(heads, head_dim, *rest)[:, turning].reshape(heads, *pairs, *rest).swapaxes(1, 2)
    result.reshape(heads, head_dim, *rest)[:, turning] = permuted.reshape(heads, width, *rest)
    return result


# ---- arguments ---------------------------------------------------------------------------------------------------------------


class _Arrays(NamedTuple):
    """q and k, checked: which there are, where they are read and written, and their axis of rows."""

    function: str
    library: ModuleType
    sources: dict[str, Memory]
    targets: dict[str, Memory]
    axes: dict[str, int]

    @property
    def pairs(self) -> dict[str, Pair]:
        return {name: Pair(self.sources[name], self.targets[name]) for name in self.sources}


def _arrays(function: str, given: dict[str, Any], out: Any, seq_axis: Any) -> _Arrays:
    libraries, sources, axes = {}, {}, {}
    for name, array in given.items():
        if array is not None:
            libraries[name], memory = dispatch.memory(function, name, array)
            checks.floating(function, name, memory.dtype, array)
            checks.has_rows(function, name, memory.shape)
            sources[name], axes[name] = memory, checks.axis(function, seq_axis, memory.shape)
    if not sources:
        raise TypeError(message(function, f"{' or '.join(given)} must be an array", "None"))
    if len({(id(libraries[name]), memory.device) for name, memory in sources.items()}) > 1:
        got = " and ".join(f"{libraries[name].NAME} on {place_name(memory.device)}" for name, memory in sources.items())
        remedy = "Nothing is copied between devices silently."
        raise TypeError(message(function, "q and k must be of one library and on one device", got, remedy))
    library = next(iter(libraries.values()))
    arrays = _Arrays(function, library, sources, _targets(function, out, library, sources), axes)
    _check_apart(arrays)
    return arrays


def _targets(function: str, out: Any, library: ModuleType, sources: dict[str, Memory]) -> dict[str, Memory]:
    """Where each of q and k is written."""
    if out is None:
        return dict(sources)
    outs = (out,) if len(sources) == 1 else out
    if not isinstance(outs, (tuple, list)) or len(outs) != len(sources):
        raise TypeError(message(function, "out must be a pair of arrays, for q and for k", describe(out)))
    targets = {}
    for one, (name, source) in zip(outs, sources.items(), strict=True):
        target = output(function, one, library, source.device, source.shape, source.dtype)
        targets[name] = source if target.same_elements(source) else target
    return targets


def _check_apart(arrays: _Arrays) -> None:
    """What is written must be writable and share no element with anything else."""
    function, sources, targets = arrays.function, arrays.sources, arrays.targets
    for name, target in targets.items():
        label = name if target is sources[name] else "out"
        checks.writable(function, label, target.shape, target.strides, ITEMSIZE[target.dtype], target.writeable)
        others = [(other, memory) for other, memory in sources.items() if other != name or memory is not target]
        others += [("the other out", memory) for other, memory in targets.items() if other != name]
        for other, memory in others:
            if overlap(target, memory) or (0 not in target.shape and target.same_elements(memory)):
                got = f"{label} overlaps {other}"
                raise ValueError(message(function, "q, k and out must lie apart", got, "Pass arrays that share no memory."))


def _encoding(function: str, name: str, value: Any, kinds: tuple[type, ...]) -> Any:
    if value is None:
        return _DEFAULT
    if not isinstance(value, kinds):
        raise TypeError(message(function, f"{name} must be a Rotary or None", describe(value)))
    return value


def _grows(encoding: Rotary | RotaryTable) -> bool:
    """Whether q and k are multiplied by different factors."""
    return isinstance(encoding, Rotary) and encoding.xpos_scale_base is not None


def _check_alike(source: Rotary, target: Rotary) -> None:
    """Only what sets frequencies may differ between what keys have and what they get."""
    for name in ("interleaved", "rotary_dim", "rotary_offset", "sections", "section_layout", "xpos_scale_base", "xpos_centre"):
        values = getattr(source, name), getattr(target, name)
        if values[0] != values[1]:
            raise ValueError(
                message("rerotate", f"source and target must have the same {name}", f"{values[0]} and {values[1]}")
            )


# ---- rows --------------------------------------------------------------------------------------------------------------------


def _without_heads(memory: Memory, axis: int) -> tuple[Memory, int]:
    """Batch, rows and channels of q or k: what positions belong to."""
    batch = [other for other in range(len(memory.shape) - 1) if other != axis][:1]
    kept = [*sorted([*batch, axis]), len(memory.shape) - 1]
    shape, strides = (tuple(values[i] for i in kept) for values in (memory.shape, memory.strides))
    return memory._replace(shape=shape, strides=strides), kept.index(axis)


def _target(arrays: _Arrays, name: str, validate: bool) -> rows_of.Target:
    memory, axis = _without_heads(arrays.sources[name], arrays.axes[name])
    return rows_of.Target(arrays.function, arrays.library, memory, axis, validate)


def _rotary_rows(target: rows_of.Target, rows: Rows, step: int = 0) -> RotaryRows:
    """With the strides of batch, rows and axes of positions."""
    batch, axis = target.batch_axis, target.seq_axis
    strides, mask_strides = (
        (0 if batch is None else values[batch], values[axis]) for values in (rows.table_strides, rows.mask_strides)
    )
    return RotaryRows(rows.start, rows.table, (*strides, step), rows.mask, mask_strides, rows.keepalive)


def _rows(
    arrays: _Arrays, encoding: Rotary | RotaryTable, validate: bool, offset: Any, positions: Any, cu_seqlens: Any, mask: Any
) -> RotaryRows:
    """The rows of q and k, which must agree."""
    function = arrays.function
    targets = {name: _target(arrays, name, validate) for name in arrays.sources}
    target = next(iter(targets.values()))
    if isinstance(encoding, RotaryTable):
        offset = _check_table_arguments(target, encoding, offset, positions, cu_seqlens)
    step = 0
    if isinstance(encoding, Rotary) and encoding.sections is not None and positions is not None:
        for name, value in (("cu_seqlens", cu_seqlens), ("offset", None if type(offset) is int and offset == 0 else offset)):
            if value is not None:
                raise ValueError(message(function, f"positions and {name} contradict each other", "both"))
        rows, step = rows_of.resolve_axes(target, positions, len(encoding.sections), mask)
    else:
        rows = rows_of.resolve(target, offset, positions, cu_seqlens, mask)
    result = _rotary_rows(target, rows, step)
    if isinstance(encoding, RotaryTable):
        rows_of.check_in_table(target, rows, encoding.rows)
    for name, one in targets.items():
        if one.rows != target.rows:
            got = f"{target.rows} and {one.rows}"
            raise ValueError(message(function, "q and k must have the same number of rows T", got))
        if result.vary and one.batch != target.batch:
            got = f"q {arrays.sources['q'].shape} and {name} {arrays.sources[name].shape}"
            rule = "q and k must have the same batch B where positions, offsets or a mask differ between sequences"
            raise ValueError(message(function, rule, got))
    return result


def _moved_rows(arrays: _Arrays, validate: bool, delta: Any, mask: Any) -> RotaryRows:
    target = _target(arrays, "k", validate)
    return _rotary_rows(target, rows_of.resolve_moves(target, delta, mask))


def _length(rows: RotaryRows, count: int) -> int:
    return rows_of.length_of("apply_rotary", rows.start, count, rows.keepalive[0] if rows.table else None)


def _check_table_arguments(target: rows_of.Target, table: RotaryTable, offset: Any, positions: Any, cu_seqlens: Any) -> Any:
    """Positions that a table can have; returns the offset, which a table with rows for each sequence sets."""
    function = target.function
    rows_of.refuse_real_positions(function, positions)
    if table.sequences is None:
        return offset
    if positions is not None or cu_seqlens is not None or not (type(offset) is int and offset == 0):
        rule = "a table with rows for each sequence takes no positions, offset or cu_seqlens"
        raise ValueError(message(function, rule, "some"))
    batch = 1 if target.batch_axis is None else target.batch
    if table.sequences not in ((batch, target.rows), (1, target.rows)):
        rule = f"the table must have B and T of q and k, {(batch, target.rows)}"
        raise ValueError(message(function, rule, f"{table.sequences}"))
    if table.sequences[0] == 1:
        return 0
    return target.library.from_host(np.arange(batch, dtype=np.int64) * target.rows, target.memory.device)
