"""fastpe's operator in ONNX's own operations, for ``torch.onnx.export``."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .._core.checks import message
from .._core.operations import Add, Rotate
from ..encodings import Rotary, Sinusoidal
from . import _operators  # noqa: F401  (defines the operator)
from ._packing import unpack

_FUNCTION = "onnx_translations"
_DOUBLE, _FLOAT, _INT64 = 11, 1, 7  # of ONNX's TensorProto.DataType


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what ``torch.onnx.export(..., dynamo=True, custom_translation_table=...)`` needs to write fastpe into a graph.

    The graph consists of ONNX's own operations, for any runtime: products of positions and frequencies in float64, of which whole turns are
    dropped, then sines and cosines in float32, or in float64 for a float64 x.

    Returns
    -------
    dict
        For ``add_encoding`` with ``Sinusoidal`` and ``apply_rotary`` with ``Rotary``, in the forms that make new tensors
        (``fastpe.torch.functional``, the modules without ``inplace=True``, models of ``patch_transformers`` without a remap). Exporting
        anything else raises, and says what: masks, ``cu_seqlens``, ``sections``, xPos, rules that need a length (give ``seq_len``).

    Raises
    ------
    ImportError
        onnxscript is not installed.

    Notes
    -----
    Results err by less than 1e-5 at position 2^31; float16 is computed in float32 and rounded once.

    Examples
    --------
    >>> import torch
    >>> from fastpe.torch import RotaryEmbedding, onnx_translations
    >>> q = torch.ones(1, 4, 10, 64)
    >>> options = {"dynamo": True, "dynamic_shapes": ({2: torch.export.Dim("rows")},), "verbose": False}
    >>> table = onnx_translations()  # doctest: +SKIP
    >>> torch.onnx.export(RotaryEmbedding(), (q,), "q.onnx", custom_translation_table=table, **options)  # doctest: +SKIP
    """
    try:
        importlib.import_module("onnxscript")
    except ImportError:
        remedy = "pip install onnx onnxscript"
        raise ImportError(message(_FUNCTION, "onnxscript must be installed", "no such package", remedy)) from None
    return {torch.ops.fastpe.run.default: _run}


def _run(arrays: Any, tables: Any, where: Any, call: str, numbers: Any, seq_len: Any) -> Any:
    """``torch.ops.fastpe.run`` as nodes of a graph: a list of what it makes."""
    opset = importlib.import_module("onnxscript").opset18
    operation, given, rows, _ = unpack(list(arrays), list(tables), list(where), call, list(numbers), list(seq_len))
    length = operation.seq_len if hasattr(operation, "seq_len") else None
    kind = type(operation), type(operation[0])
    if kind not in ((Rotate, Rotary), (Add, Sinusoidal)) or rows.mask is not None or rows.cu_seqlens is not None:
        raise _refused(f"{operation.function} with {kind[1].__name__}, or with a mask or cu_seqlens")
    if operation[0].needs_length and not isinstance(length, int):
        raise _refused(f"{operation[0].scaling!r} without seq_len")
    graph = _Graph(opset, rows, length)
    if kind[0] is Add:
        return [graph.added(operation, given[0])]
    encoding = operation.encoding
    if encoding.sections is not None or encoding.xpos_scale_base is not None or operation.packing is not None:
        raise _refused("sections, xPos, or q, k and v in one tensor")
    if operation.head_dim is not None:
        raise _refused("head_dim")
    return [graph.rotated(operation, x) for x in given if x is not None]


def _refused(what: str) -> NotImplementedError:
    rule = "a graph must have add_encoding of a Sinusoidal, or apply_rotary of a Rotary, of consecutive or given positions"
    return NotImplementedError(message(_FUNCTION, rule, what))


class _Graph:
    """Nodes for one call."""

    def __init__(self, opset: Any, where: Any, length: int | None) -> None:
        self.op, self.where, self.length = opset, where, length

    def constant(self, value: Any, dtype: Any) -> Any:
        return self.op.Constant(value=importlib.import_module("onnx").numpy_helper.from_array(np.asarray(value, dtype)))

    def turns(self, x: Any, per_position: Any, shifts: Any) -> Any:
        """Angles of each row in radians, of [0, 2 pi), in float64, with axes so that they go with x."""
        op, axis = self.op, self.where.seq_axis
        positions, axes = self.where.positions, len(x.shape)
        if positions is None:
            count = op.Squeeze(op.Gather(op.Shape(x), self.constant([axis], np.int64)), self.constant([0], np.int64))
            positions = op.Range(self.constant(0, np.int64), count, self.constant(1, np.int64))
            offset = self.where.offset
            if isinstance(offset, int):
                offset = self.constant(offset, np.int64)
            elif len(offset.shape):
                offset = op.Unsqueeze(offset, self.constant([1], np.int64))
            positions = op.Add(positions, op.Cast(offset, to=_INT64))
            several = not isinstance(self.where.offset, int) and len(self.where.offset.shape) > 0
        else:
            several = len(positions.shape) > 1
        rows = axes + axis if axis < 0 else axis
        new = [place for place in range(1, axes) if place != rows] if several else list(range(rows + 1 - axes, 0))
        positions = op.Unsqueeze(op.Cast(positions, to=_DOUBLE), self.constant(new, np.int64))
        found = op.Add(op.Mul(positions, self.constant(per_position, np.float64)), self.constant(shifts, np.float64))
        return op.Mul(op.Sub(found, op.Floor(found)), self.constant(2 * math.pi, np.float64))

    def sines(self, x: Any, frequencies: Any, shifts: Any, factor: Any) -> Any:
        """``factor * sin(position * frequency + shift)``, shifts in turns, in the dtype to compute x in."""
        kind = _DOUBLE if int(x.dtype) == _DOUBLE else _FLOAT
        angles = self.op.Cast(self.turns(x, np.asarray(frequencies) / (2 * math.pi), shifts), to=kind)
        return self.op.Mul(self.op.Sin(angles), self.constant(factor, np.float64 if kind == _DOUBLE else np.float32))

    def widened(self, x: Any) -> Any:
        return x if int(x.dtype) in (_DOUBLE, _FLOAT) else self.op.Cast(x, to=_FLOAT)

    def number(self, x: Any, value: float) -> Any:
        return self.constant(value, np.float64 if int(x.dtype) == _DOUBLE else np.float32)

    def added(self, operation: Add, x: Any) -> Any:
        """``x * input_scale`` and the encoding, a sine with its own frequency and shift in each column."""
        width, encoding = int(x.shape[-1]), operation.encoding
        frequencies, amplitude = encoding.frequencies(width, self.length)
        count = len(frequencies)
        columns = np.tile(frequencies, 2) if encoding.layout == "concatenated" else np.repeat(frequencies, 2)
        shifts = np.tile([0.0, 0.25], count) if encoding.layout == "interleaved" else np.repeat([0.0, 0.25], count)
        shifts = 0.25 - shifts if encoding.cos_first else shifts
        factors = np.full(2 * count, amplitude)
        missing = max(0, width - 2 * count)  # a column of zeros at the end
        columns, shifts, factors = (np.pad(one, (0, missing))[:width] for one in (columns, shifts, factors))
        made = self.sines(x, columns, shifts, factors)
        scaled = self.widened(x)
        if operation.input_scale != 1:
            scaled = self.op.Mul(scaled, self.number(x, operation.input_scale))
        return self.op.Cast(self.op.Add(scaled, made), to=int(x.dtype))

    def rotated(self, operation: Rotate, x: Any) -> Any:
        """Pairs of channels, of the channels that rotate."""
        op, encoding, width = self.op, operation.encoding, int(x.shape[-1])
        frequencies, factor = encoding.frequencies(width, self.length)
        back, factor = operation.direction(factor)
        cosines = self.sines(x, frequencies, 0.25, factor)
        sines = self.sines(x, frequencies, 0.0, -factor if back else factor)
        first, count = encoding.rotary_offset, len(frequencies)
        wide = self.widened(x)
        end, half = first + 2 * count, first + count
        spans = ((first, end, 2), (first + 1, end, 2)) if encoding.interleaved else ((first, half, 1), (half, end, 1))
        a, b = (self.cut(wide, *span) for span in spans)
        pair = [op.Sub(op.Mul(a, cosines), op.Mul(b, sines)), op.Add(op.Mul(b, cosines), op.Mul(a, sines))]
        if encoding.interleaved:
            last = self.constant([-1], np.int64)
            pair = [op.Concat(*(op.Unsqueeze(one, last) for one in pair), axis=-1)]
            pair = [op.Reshape(pair[0], op.Shape(self.cut(wide, first, end)))]
        outside = [self.cut(wide, start, stop) for start, stop in ((0, first), (end, width)) if start < stop]
        parts = outside[:1] * (first > 0) + pair + outside[int(first > 0) :]
        found = op.Concat(*parts, axis=-1) if len(parts) > 1 else parts[0]
        return op.Cast(found, to=int(x.dtype))

    def cut(self, x: Any, start: int, stop: int, step: int = 1) -> Any:
        """Some channels."""
        return self.op.Slice(x, *(self.constant([one], np.int64) for one in (start, stop, -1, step)))
