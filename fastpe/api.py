"""The public verbs that add: check, plan, run; nothing else."""

from __future__ import annotations

from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from . import fourier, grids, repeated
from ._arrays import ITEMSIZE, dispatch
from ._backends.calls import AddSinusoidal, GatherSum
from ._core import checks
from ._core import rows as rows_of
from ._core.arguments import check_apart, named_encoding, output, overlap, place_name
from ._core.checks import message
from .encodings import Fourier, Grid, Learned, Sinusoidal

Array = TypeVar("Array")


def add_encoding(
    x: Array,
    encoding: Sinusoidal | Grid | Learned | str | None = None,
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
    if type(x) is not np.ndarray and dispatch.is_tensor(x):
        from .torch import verbs

        verb: Any = verbs.add_encoding
        tensor: Array = verb(
            x,
            encoding,
            offset=offset,
            positions=positions,
            cu_seqlens=cu_seqlens,
            mask=mask,
            seq_axis=seq_axis,
            input_scale=input_scale,
            seq_len=seq_len,
            out=out,
            validate=validate,
        )
        return tensor
    form = None
    if positions is None and cu_seqlens is None and mask is None and seq_len is None and validate is False:
        form = repeated.form_of(x, encoding, offset, seq_axis, input_scale, out)
        if form is not None and repeated.run(form, x, offset, out):
            known: Array = x if out is None else out
            return known
    function = "add_encoding"
    library, source = dispatch.memory(function, "x", x)
    checks.floating(function, "x", source.dtype, x)
    checks.has_rows(function, "x", source.shape)
    axis = checks.axis(function, seq_axis, source.shape)
    chosen = named_encoding(function, encoding, grid=True)
    scale = checks.number(function, "input_scale", input_scale)
    checks.sequence_length(function, seq_len)
    checks.boolean(function, "validate", validate)
    target = source if out is None or out is x else output(function, out, library, source.device, source.shape, source.dtype)
    checks.writable(
        function, "x" if target is source else "out", target.shape, target.strides, ITEMSIZE[target.dtype], target.writeable
    )
    if target is not source and overlap(source, target):
        raise ValueError(
            message(
                function, "out must be x or lie apart from it", "an out that partly overlaps x", "Pass out=x, or a new array."
            )
        )
    checks.fits(function, "input_scale", scale, target.dtype)
    place = rows_of.Target(function, library, source, axis, validate)
    if isinstance(chosen, Grid):
        for sinusoid in chosen.sinusoids:
            checks.fits(function, "the encoding's amplitude", sinusoid.amplitude, target.dtype)
        additions = grids.additions(place, chosen, source, target, (offset, positions, cu_seqlens, mask), scale)
        if 0 not in target.shape:
            _run(additions, form, x, out)
        return x if out is None else out
    rows = rows_of.resolve(place, offset, positions, cu_seqlens, mask)
    if isinstance(chosen, Learned):
        learned = rows_of.learned_table(place, chosen, positions, rows)
        check_apart(function, target, {"the learned table": learned})
        if 0 not in target.shape:
            addition = GatherSum("add_table", source, target, rows, axis, scale, learned=learned, clips=chosen.clips)
            dispatch.backend(target).run(addition)
        return x if out is None else out
    checks.fits(function, "the encoding's amplitude", chosen.amplitude, target.dtype)
    if 0 not in target.shape:
        if chosen.needs_length:
            form = None  # another length, another plan
            if seq_len is None:
                seq_len = rows_of.length_of(function, rows.start, target.shape[axis], rows.keepalive[0] if rows.table else None)
        _run([AddSinusoidal(source, target, rows, axis, chosen.plan(target.shape[-1], seq_len), scale)], form, x, out)
    result: Array = x if out is None else out
    return result


def encode(
    positions: Any,
    dim: int,
    encoding: Sinusoidal | Grid | Fourier | str | None = None,
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
    if any(type(array) is not np.ndarray and dispatch.is_tensor(array) for array in (positions, like, out)):
        from .torch import verbs

        return verbs.encode(positions, dim, encoding, dtype=dtype, like=like, seq_len=seq_len, out=out, validate=validate)
    function = "encode"
    width = checks.width(function, "dim", dim)
    chosen = named_encoding(function, encoding, learned=False, grid=True, fourier=True)
    checks.sequence_length(function, seq_len)
    checks.boolean(function, "validate", validate)
    example, name = (like, "like") if like is not None else (out, "out")
    is_grid, has_axes = isinstance(chosen, Grid), isinstance(chosen, (Grid, Fourier))
    if isinstance(chosen, Fourier):
        chosen.check_width(function, width)
    if positions is None and is_grid:  # all rows
        found = None
        library, place = dispatch.memory(function, name, np.empty(0) if example is None else example)
    else:
        library, place = dispatch.memory(function, "positions", _place(function, positions, example, name))
        found = place
    shape = (*(grids.encoded_shape(function, chosen, found and found.shape) if has_axes else place.shape), width)
    element = None if dtype is None else checks.dtype_name(function, dtype)
    if out is None:
        out = library.empty(shape, element or "float32", place.device)
        target = library.memory(out)
    else:
        target = output(function, out, library, place.device, shape, element)
        checks.writable(function, "out", shape, target.strides, ITEMSIZE[target.dtype], target.writeable)
        if found is not None and overlap(found, target):
            raise ValueError(message(function, "out must lie apart from positions", "an out that overlaps positions"))
    if isinstance(chosen, Fourier):
        fourier.write(function, chosen, library, place, out, validate)
        return out
    for one in chosen.sinusoids if is_grid else (chosen,):
        checks.fits(function, "the encoding's amplitude", one.amplitude, target.dtype)
    if is_grid:
        addition = grids.encoding(function, chosen, library, found, target, validate)
        if 0 not in shape:
            dispatch.backend(target).run(addition)
        return out
    rows = rows_of.of_positions(function, library, place, validate)
    if 0 not in shape:
        scalar = len(shape) == 1
        if chosen.needs_length and seq_len is None:
            seq_len = rows_of.length_of(function, 0, 1, rows.keepalive[0])
        if scalar:  # a single row
            target = target._replace(shape=(1, *shape), strides=(0, *target.strides))
        operation = AddSinusoidal(None, target, rows, 0 if scalar else len(shape) - 2, chosen.plan(width, seq_len), 1.0)
        dispatch.backend(target).run(operation)
    return out


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
    backend = dispatch.backend_on(device)
    for name in names:
        backend.warmup(name, device)


def _run(operations: list[Any], form: repeated.Form | None, x: Any, out: Any) -> None:
    """Run operations; a single one of a known form is kept, to be run again."""
    backend = dispatch.backend(operations[0].out)
    call = backend.prepare(operations[0]) if form is not None and len(operations) == 1 else None
    if form is not None and call is not None:
        call.again()
        repeated.keep(form, call, x, out)
        return
    for operation in operations:
        backend.run(operation)


# ---- arguments ---------------------------------------------------------------------------------------------------------------


def _place(function: str, positions: Any, example: Any, name: str) -> Any:
    """Positions as an array in the library and on the device of ``example`` (if there is one)."""
    if dispatch.library_of(positions) is None:
        positions = rows_of.host_numbers(function, "positions", positions)
    if example is None:
        return positions
    library, found = dispatch.memory(function, name, example)
    positions_library, memory = dispatch.memory(function, "positions", positions)
    if positions_library is library and memory.device == found.device:
        return positions
    if memory.device is not None:
        got = f"positions on {place_name(memory.device)} and {name} on {place_name(found.device)}"
        raise TypeError(message(function, f"positions on a GPU must be on the device of {name}", got, "Copy them first."))
    return library.from_host(positions, found.device)
