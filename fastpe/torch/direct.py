"""The verbs on tensors' memory, without autograd: look at tensors as arrays, write on torch's stream, count the version up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from .. import api, embedding, grids, rotations
from .._arrays import dispatch
from .._arrays.torch import as_array
from .._core.checks import message
from ..encodings import Fourier, Grid, Rotary
from . import repeated
from .memory import new

Tensor = torch.Tensor
_CPU = torch.device("cpu")
_here: Any = contextlib.nullcontext()


def add_encoding(
    x: Tensor,
    encoding: Any,
    offset: Any,
    positions: Any,
    cu_seqlens: Any,
    mask: Any,
    seq_axis: int,
    input_scale: float,
    seq_len: int | None,
    out: Any,
    validate: bool,
    counts_up: bool = True,
) -> None:
    """``fastpe.add_encoding`` on tensors. ``counts_up``: whether versions are, which autograd does of what it is told of."""
    function, device = "add_encoding", x.device
    source = as_array(function, "x", x)
    target = x if out is None else as_result(function, out)
    check_writable(function, target)
    if positions is None and cu_seqlens is None and mask is None and out is None:  # what repeated calls have, in short
        offset = seen(function, "offset", offset, device)
        with _here if device == _CPU else on_stream(device):
            api.add_encoding(
                source, encoding, offset=offset, seq_axis=seq_axis, input_scale=input_scale, seq_len=seq_len, validate=validate
            )
        if seq_len is None and type(offset) is int and device == _CPU:
            repeated.keep_sum(x, source, encoding, offset, seq_axis, input_scale)
    else:
        given = {
            "offset": offset,
            "positions": positions,
            "cu_seqlens": cu_seqlens,
            "mask": mask,
            "out": None if out is x else out,
        }
        arrays = {name: seen(function, name, value, device) for name, value in given.items()}
        options = {"seq_axis": seq_axis, "input_scale": input_scale, "seq_len": seq_len, "validate": validate}
        _run(device, api.add_encoding, source, encoding, **arrays, **options)
    if counts_up:
        count_up(target)


def apply_rotary(
    q: Tensor | None,
    k: Tensor | None,
    encoding: Any,
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
    counts_up: bool = True,
) -> None:
    """``fastpe.apply_rotary`` on tensors, or its transpose."""
    function = "apply_rotary"
    first = k if q is None else q
    assert first is not None
    device = first.device
    sources = seen(function, "q", q, device), seen(function, "k", k, device)
    targets = _pair(q, k) if out is None else _results(function, out)
    check_writable(function, *targets)
    if transposed and _is_orthogonal(encoding):
        inverse, transposed = not inverse, False
    offset = seen(function, "offset", offset, device)
    if positions is None and cu_seqlens is None and mask is None and out is None and not transposed:
        with _here if device == _CPU else on_stream(device):
            rotations.apply_rotary(
                *sources, encoding, offset=offset, seq_axis=seq_axis, inverse=inverse, seq_len=seq_len, validate=validate
            )
        if seq_len is None and type(offset) is int and device == _CPU:
            repeated.keep_rotation(q, k, sources, encoding, offset, seq_axis, inverse)
    else:
        arrays = [
            seen(function, name, value, device)
            for name, value in (("positions", positions), ("cu_seqlens", cu_seqlens), ("mask", mask))
        ]
        outs = None if out is None else [seen(function, "out", target, device) for target in targets]
        if outs is not None and len(outs) == 1:
            (outs,) = outs
        arguments = (None, *sources, encoding, offset, *arrays, seq_axis, inverse, seq_len, outs, validate, transposed)
        _run(device, rotations.rotate, *arguments)
    if counts_up:
        count_up(*targets)


def rerotate(
    k: Tensor,
    delta: Any,
    encoding: Any,
    source: Any,
    target: Any,
    offset: Any,
    positions: Any,
    cu_seqlens: Any,
    mask: Any,
    seq_axis: int,
    seq_len: Any,
    out: Any,
    validate: bool,
    transposed: bool = False,
    counts_up: bool = True,
) -> None:
    """``fastpe.rerotate`` on tensors, or its transpose."""
    function, device = "rerotate", k.device
    written = k if out is None else as_result(function, out)
    check_writable(function, written)
    given = {
        "k": k,
        "delta": delta,
        "offset": offset,
        "positions": positions,
        "cu_seqlens": cu_seqlens,
        "mask": mask,
        "out": out,
    }
    a = {name: seen(function, name, value, device) for name, value in given.items()}
    encodings, places = (encoding, source, target), (a["offset"], a["positions"], a["cu_seqlens"], a["mask"])
    _run(device, rotations.move, a["k"], a["delta"], *encodings, *places, seq_axis, seq_len, a["out"], validate, transposed)
    if counts_up:
        count_up(written)


def embed(
    ids: Any,
    table: Tensor,
    encoding: Any,
    scale: float,
    token_types: Any,
    row_scale: Any,
    padding_idx: int | None,
    offset: Any,
    positions: Any,
    cu_seqlens: Any,
    mask: Any,
    seq_len: int | None,
    out: Tensor | None,
    validate: bool,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``fastpe.embed`` into a tensor, or a new one of a dtype."""
    function, device = "embed", table.device
    words, found = as_array(function, "table", table), seen(function, "ids", ids, device)
    plain = token_types is row_scale is padding_idx is positions is cu_seqlens is mask is out is None  # one chain
    if plain and dtype is table.dtype and device == _CPU and dtype is not torch.bfloat16:
        offset = seen(function, "offset", offset, device)
        made = embedding.embed(found, words, encoding, scale=scale, offset=offset, seq_len=seq_len, validate=validate)
        if seq_len is None and type(offset) is int:
            repeated.keep_embedding(ids, table, (found, words), encoding, scale, offset)
        return torch.from_numpy(made)
    if out is None:
        assert dtype is not None
        out = new((*ids.shape, table.shape[1]), dtype, device)
    else:
        check_writable(function, out)
    given = {"offset": offset, "positions": positions, "cu_seqlens": cu_seqlens, "mask": mask, "out": out}
    arrays = {name: seen(function, name, value, device) for name, value in given.items() if value is not None}
    if isinstance(token_types, (tuple, list)):
        token_types = tuple(seen(function, "token_types", value, device) for value in token_types)
    if isinstance(row_scale, tuple):
        row_scale = tuple(seen(function, "row_scale", value, device) for value in row_scale)
    else:
        row_scale = seen(function, "row_scale", row_scale, device)
    options = {"scale": scale, "token_types": token_types, "row_scale": row_scale, "padding_idx": padding_idx}
    _run(device, embedding.embed, found, words, encoding, **options, **arrays, seq_len=seq_len, validate=validate)
    count_up(out)
    return out


def encode(positions: Any, dim: int, encoding: Any, seq_len: int | None, out: Tensor, validate: bool) -> None:
    """``fastpe.encode`` into a tensor."""
    function, device = "encode", out.device
    check_writable(function, out)
    found, target = seen(function, "positions", positions, device), as_array(function, "out", out)
    _run(device, api.encode, found, dim, encoding, out=target, seq_len=seq_len, validate=validate)
    count_up(out)


def encoded_shape(encoding: Any, positions: Any) -> tuple[int, ...]:
    """The shape of what ``encode`` makes of positions of this shape (None: all rows of a grid), but for the width."""
    if isinstance(encoding, (Fourier, Grid)):
        return grids.encoded_shape("encode", encoding, None if positions is None else tuple(positions))
    if positions is None:
        raise TypeError(message("encode", "positions must be numbers", "None", "Only a Grid has rows of its own."))
    return tuple(positions)


def resample(table: Tensor, new_size: Any, options: dict[str, Any]) -> Tensor:
    """``fastpe.resample`` to a new tensor."""
    array = as_array("resample", "table", table)
    if table.device == _CPU:
        made = embedding.resample(array, new_size, **options)
        return (
            torch.from_numpy(made.view("int16")).view(table.dtype) if table.dtype is torch.bfloat16 else torch.from_numpy(made)
        )
    with on_stream(table.device):
        made = embedding.resample(array, new_size, **options)
        shared: Tensor = torch.utils.dlpack.from_dlpack(made.view("int16") if table.dtype is torch.bfloat16 else made)
        return shared.view(table.dtype)


# ---- tensors as arrays -------------------------------------------------------------------------------------------------------


def seen(function: str, name: str, value: Any, device: torch.device) -> Any:
    """The array that shares a tensor's memory; numbers and lists as they are; nothing else."""
    if value is None or type(value) is int:
        return value
    if isinstance(value, Tensor):
        if not (value.is_cpu and device == _CPU) and value.device != device:
            got = f"{name} on {value.device} beside {device}"
            raise TypeError(
                message(function, "all tensors must be on one device", got, "Nothing is copied between devices silently.")
            )
        return as_array(function, name, value)
    library = dispatch.library_of(value)
    if library is not None and getattr(value, "ndim", 0) > 0:
        got = f"{name} of {library.NAME}"
        raise TypeError(message(function, "arrays beside a tensor must be tensors", got, f"Pass torch.as_tensor({name})."))
    return value


def _pair(q: Tensor | None, k: Tensor | None) -> list[Tensor]:
    return [array for array in (q, k) if array is not None]


def as_result(function: str, out: Any) -> Tensor:
    if not isinstance(out, Tensor):
        raise TypeError(
            message(function, "out must be a tensor like the input", f"{type(out).__module__}.{type(out).__qualname__}")
        )
    return out


def _results(function: str, out: Any) -> list[Tensor]:
    return [as_result(function, one) for one in (out if isinstance(out, (tuple, list)) else (out,))]


def _is_orthogonal(encoding: Any) -> bool:
    """Whether the inverse of the rotations is surely their transpose: they multiply by nothing."""
    if encoding is None:
        return True
    if not isinstance(encoding, Rotary):
        return True  # a table; what its rows multiply by is in them, and the kernel turns them about
    return encoding.scaling is None and encoding.attention_factor in (None, 1.0) and encoding.xpos_scale_base is None


def _run(device: torch.device, verb: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    if device.type == "cpu":
        verb(*arguments, **options)
        return
    with on_stream(device):
        verb(*arguments, **options)


@contextlib.contextmanager
def on_stream(device: torch.device) -> Any:
    """Make torch's current stream of a device the one that kernels are launched on."""
    import cupy

    stream = torch.cuda.current_stream(device).cuda_stream
    with cupy.cuda.Device(device.index), cupy.cuda.ExternalStream(stream, device.index):
        yield


# ---- what autograd keeps watch over ------------------------------------------------------------------------------------------


def check_writable(function: str, *written: Tensor) -> None:
    for x in written:
        if isinstance(x, Tensor) and x.is_inference() and not torch.is_inference_mode_enabled():
            rule = "an inference tensor must not be written outside InferenceMode"
            raise RuntimeError(message(function, rule, "one", "Pass a clone of it, as PyTorch says too."))


def count_up(*written: Tensor) -> None:
    """Count the version numbers up, by which autograd sees that a tensor was written after it was saved."""
    if torch.is_inference_mode_enabled():
        written = tuple(x for x in written if not x.is_inference())
    torch.autograd.graph.increment_version(written)
