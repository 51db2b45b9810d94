"""What is measured: fastpe's verbs, and the expressions that they replace, on the same arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...api import add_encoding
from ...biases import add_bias
from ...embedding import embed
from ...encodings import Rotary, Sinusoidal
from ...encodings.bias import ALiBi
from ...rotations import apply_rotary
from ..machine import is_small
from .clock import RESTORE_AFTER
from .expressions import Array, as_tensor, element, from_scratch, numpy_embed, random_values, torch_embed, usual_rotation
from .probes import torch_if_installed

# A name stands for a column: what is at hand before the call, or made in it, in the arrays' own library or in torch.
FASTPE, CACHED, SCRATCH, TORCH = "fastpe", "cached", "scratch", "torch"
SCALE = 32.0
HALF_UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-9, "float32": 2.0**-24, "float64": 2.0**-53}
ROUNDINGS = 24  # half units that a rival may err by: its table, its products and their sum are rounded
FLOAT32_ANGLE = 2.0**-22  # error of an angle for each position, where frequency, product and sine are rounded
LAST_DECODED, DECODED_APART = 4095, 61

Run = Callable[[], Any]  # in place or not, returns the array or arrays that hold the result


class WrongResult(Exception):
    """A contender's result is not that of NumPy's expression in float64."""


@dataclass(frozen=True)
class Case:
    """One line: an operation on arrays of a shape and an element type, on the host or a GPU.

    ``shape``: add_encoding (B, T, D); apply_rotary (B, heads of q, heads of k, T, D); embed (B, T, V, D); add_bias (B, H, Tq, Tk).
    """

    operation: str
    shape: tuple[int, ...]
    dtype: str
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.operation} {'x'.join(map(str, self.shape))} {self.dtype} {self.device}"


class Race(NamedTuple):
    """The calls of a case, the bytes that fastpe's reads and writes, the result as float64 NumPy has it, and how arrays are put back."""

    calls: dict[str, Run]
    moved: int
    expected: list[Array]
    restore: Callable[[], None]
    sampled: list[int]  # which sequences of a result are compared
    slack: dict[str, float]  # how much more a contender may err: float32 angles do


SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "add_encoding": ((1, 1, 1024), (32, 1, 1024), (8, 1024, 512), (32, 1024, 1024)),
    "apply_rotary": ((32, 32, 8, 1, 128), (1, 32, 8, 4096, 128)),
    "embed": ((32, 1, 32_000, 1024), (8, 2048, 32_000, 1024)),
    "add_bias": ((8, 32, 1, 4096), (1, 32, 1024, 1024)),
}
QUICK_SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "add_encoding": ((32, 1, 1024), (8, 1024, 512)),
    "apply_rotary": ((32, 32, 8, 1, 128), (1, 32, 8, 512, 128)),
    "embed": ((32, 1, 4000, 1024), (8, 256, 4000, 1024)),
    "add_bias": ((8, 32, 1, 4096), (1, 32, 256, 256)),
}
SMALL_SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "add_encoding": ((3, 1, 64), (2, 9, 64)),
    "apply_rotary": ((3, 4, 2, 1, 16), (1, 4, 2, 8, 16)),
    "embed": ((2, 9, 50, 32),),
    "add_bias": ((2, 4, 1, 9), (1, 4, 7, 9)),
}


def cases(quick: bool, devices: tuple[str, ...], dtypes: tuple[str, ...]) -> list[Case]:
    """Every line of the table, in its order."""
    shapes = SMALL_SHAPES if is_small() else QUICK_SHAPES if quick else SHAPES
    return [
        Case(operation, shape, dtype, device)
        for device in devices
        for operation, several in shapes.items()
        for shape in several
        for dtype in dtypes
    ]


def prepare(case: Case) -> Race:
    """The arrays and calls of a case."""
    if case.device == "cpu":
        return PREPARE[case.operation](case, np)
    import cupy

    return PREPARE[case.operation](case, cupy)


def check(case: Case, race: Race, name: str) -> None:
    """Call a contender once on fresh values; WrongResult unless it did what NumPy's expression does in float64."""
    race.restore()
    found = race.calls[name]()
    for one, expected in zip(found if isinstance(found, tuple) else (found,), race.expected, strict=True):
        got = on_host(one)[race.sampled].astype(np.float64)
        size = np.abs(expected).max() if case.operation == "apply_rotary" else np.abs(expected)  # a pair's sum may cancel
        off = np.abs(got - expected) > (ROUNDINGS * HALF_UNIT[case.dtype] + race.slack.get(name, 0.0)) * (1 + size)
        if off.any() or got.shape != expected.shape or np.isnan(got).any():
            where = np.argwhere(off)[0].tolist() if off.any() else "NaN"
            raise WrongResult(f"{case}: {name} differs from NumPy's expression, first at {where}")


def on_host(value: Any) -> Array:
    """An array of NumPy from one of NumPy, CuPy or torch."""
    if isinstance(value, np.ndarray):
        return value
    found: Array = value.get() if hasattr(value, "get") else value.detach().float().cpu().numpy()
    return found


def _sampled(batch: int) -> list[int]:
    return sorted({0, batch - 1})


def _slow(case: Case, xp: Any) -> bool:
    """NumPy has 16-bit types in software, a hundred times slower."""
    return xp is np and case.dtype in ("float16", "bfloat16")


def _tensor(x: Any, xp: Any) -> Any:
    """A tensor over the same memory on the host; on a GPU one of its own."""
    return as_tensor(x) if xp is np else as_tensor(x.get()).to("cuda")


def _torch(xp: Any) -> Any:
    """torch, where it can use the device."""
    torch = torch_if_installed()
    return torch if torch is not None and (xp is np or torch.cuda.is_available()) else None


class _Kept:
    """Arrays that calls write, and their first values, to which they are put back."""

    def __init__(self, xp: Any, *first: Array) -> None:
        self.arrays = [xp.array(one) for one in first]
        self.pairs = [(one, xp.asarray(values)) for one, values in zip(self.arrays, first, strict=True)]
        self.tensors: list[Any] = []

    def restore(self) -> None:
        for array, first in self.pairs:
            _bytes(array)[...] = _bytes(first)
        for tensor, array in zip(self.tensors, self.arrays, strict=False):
            if tensor.is_cuda:  # memory of its own
                tensor.copy_(as_tensor(array.get()))


def _bytes(x: Any) -> Any:
    """Not every library copies every element type."""
    return x.reshape(-1).view(np.uint8)


# ---- operations --------------------------------------------------------------------------------------------------------------


def _adding(case: Case, xp: Any) -> Race:
    batch, rows, width = case.shape
    decoding = rows == 1
    offset: Any = 0
    if decoding:
        offset = LAST_DECODED if batch == 1 else LAST_DECODED - DECODED_APART * np.arange(batch)
    positions = np.asarray(offset)[..., None] + np.arange(rows)  # (T,) or (B, T)
    first = random_values(case.shape, case.dtype)
    kept = _Kept(xp, first)
    (x,) = kept.arrays
    table = xp.asarray(from_scratch(np.arange(int(positions.max()) + 1), width, np.float64).astype(x.dtype))
    starts = xp.asarray(positions)
    given = xp.asarray(offset) if np.ndim(offset) else offset
    encoding = Sinusoidal()
    calls: dict[str, Run] = {FASTPE: lambda: add_encoding(x, encoding, offset=given)}
    if not _slow(case, xp):
        calls[CACHED] = (
            (lambda: xp.add(x, table[starts], out=x))
            if np.ndim(offset)
            else (lambda: xp.add(x, table[offset : offset + rows], out=x))
        )
        calls[SCRATCH] = lambda: xp.add(x, from_scratch(starts, width, np.float64, xp).astype(x.dtype), out=x)
    torch = _torch(xp)
    if torch is not None:
        tensor, rows_of = _tensor(x, xp), _tensor(table, xp)
        kept.tensors = [tensor]
        at = torch.from_numpy(positions).to(tensor.device)
        calls[TORCH] = (
            (lambda: tensor.add_(rows_of[at])) if np.ndim(offset) else (lambda: tensor.add_(rows_of[offset : offset + rows]))
        )
    b = _sampled(batch)
    places = np.broadcast_to(positions, (batch, rows))[b]
    return Race(
        calls, 2 * x.nbytes, [first[b].astype(np.float64) + from_scratch(places, width, np.float64)], kept.restore, b, {}
    )


def _rotating(case: Case, xp: Any) -> Race:
    batch, q_heads, k_heads, rows, width = case.shape
    offset: Any = 0 if batch == 1 else np.arange(batch) * 7
    positions = np.broadcast_to(np.add.outer(np.broadcast_to(offset, batch), np.arange(rows))[:, None], (batch, 1, rows))
    firsts = [random_values((batch, heads, rows, width), case.dtype) for heads in (q_heads, k_heads)]
    kept = _Kept(xp, *firsts)
    q, k = kept.arrays
    encoding = Rotary()
    frequencies = np.tile(encoding.frequencies(width)[0], 2)
    angles = positions[..., None] * frequencies
    cos, sin = (xp.asarray(f(angles).astype(q.dtype)) for f in (np.cos, np.sin))
    places, rates = xp.asarray(positions[..., None].astype(np.float32)), xp.asarray(frequencies.astype(np.float32))
    given = xp.asarray(offset) if np.ndim(offset) else offset

    def scratch() -> Any:
        turned = places * rates
        cosines, sines = xp.cos(turned).astype(q.dtype), xp.sin(turned).astype(q.dtype)
        return tuple(usual_rotation(xp, x, cosines, sines) for x in (q, k))

    calls: dict[str, Run] = {FASTPE: lambda: apply_rotary(q, k, encoding, offset=given)}
    if not _slow(case, xp):
        calls[CACHED] = lambda: tuple(usual_rotation(xp, x, cos, sin) for x in (q, k))
        calls[SCRATCH] = scratch
    torch = _torch(xp)
    if torch is not None:
        kept.tensors, tables = [_tensor(x, xp) for x in (q, k)], [_tensor(x, xp) for x in (cos, sin)]
        calls[TORCH] = lambda: tuple(usual_rotation(torch, x, *tables) for x in kept.tensors)
    b = _sampled(batch)
    turned = angles[b]
    expected = [usual_rotation(np, x[b].astype(np.float64), np.cos(turned), np.sin(turned)) for x in firsts]
    slack = {SCRATCH: FLOAT32_ANGLE * (1 + float(positions.max()))}
    return Race(calls, 2 * (q.nbytes + k.nbytes), expected, kept.restore, b, slack)


def _embedding(case: Case, xp: Any) -> Race:
    batch, rows, words, width = case.shape
    values = random_values((words, width), case.dtype)
    which = np.random.default_rng(0).integers(0, words, (batch, rows))
    table, ids = xp.asarray(values), xp.asarray(which)
    kept = _Kept(xp, np.zeros((batch, rows, width), element(case.dtype)))
    (out,) = kept.arrays
    exact = from_scratch(np.arange(rows), width, np.float64)
    added, places = xp.asarray(exact.astype(out.dtype)), xp.arange(rows)
    encoding = Sinusoidal()

    def expression(rows_added: Any) -> Any:
        numpy_embed(ids, table, out, rows_added, SCALE, xp)
        return out

    calls: dict[str, Run] = {FASTPE: lambda: embed(ids, table, encoding, scale=SCALE, out=out)}
    if not _slow(case, xp):
        calls[CACHED] = lambda: expression(added)
        calls[SCRATCH] = lambda: expression(from_scratch(places, width, np.float64, xp).astype(out.dtype))
    torch = _torch(xp)
    if torch is not None:
        words_of, result, added_of = (_tensor(x, xp) for x in (table, out, added))
        ids_of = torch.from_numpy(which).to(result.device)
        kept.tensors = [result]

        def by_torch() -> Any:
            torch_embed(words_of, result, ids_of, added_of, SCALE)
            return result

        calls[TORCH] = by_torch
    b = _sampled(batch)
    expected = values[which[b]].astype(np.float64) * SCALE + exact
    return Race(calls, 2 * out.nbytes + ids.nbytes, [expected], kept.restore, b, {})


def _biasing(case: Case, xp: Any) -> Race:
    batch, heads, queries, keys = case.shape
    first = random_values(case.shape, case.dtype)
    kept = _Kept(xp, first)
    (scores,) = kept.arrays
    bias = ALiBi(heads)
    distances = np.arange(keys - queries, keys)[:, None] - np.arange(keys)
    exact = bias.values(distances)  # (H, Tq, Tk)
    matrix = xp.asarray(exact.astype(scores.dtype))
    slopes = xp.asarray(-np.array(bias.slopes_of, np.float32).reshape(heads, 1, 1))

    def scratch() -> Any:
        apart = xp.arange(keys - queries, keys)[:, None] - xp.arange(keys)
        return xp.add(scores, (slopes * apart.astype(np.float32)).astype(scores.dtype), out=scores)

    calls: dict[str, Run] = {FASTPE: lambda: add_bias(scores, bias)}
    if not _slow(case, xp):
        calls[CACHED] = lambda: xp.add(scores, matrix, out=scores)
        calls[SCRATCH] = scratch
    torch = _torch(xp)
    if torch is not None:
        tensor, matrix_of = _tensor(scores, xp), _tensor(matrix, xp)
        kept.tensors = [tensor]
        calls[TORCH] = lambda: tensor.add_(matrix_of)
    b = _sampled(batch)
    return Race(calls, 2 * scores.nbytes, [first[b].astype(np.float64) + exact], kept.restore, b, {})


PREPARE: dict[str, Callable[[Case, Any], Race]] = {
    "add_encoding": _adding,
    "apply_rotary": _rotating,
    "embed": _embedding,
    "add_bias": _biasing,
}


class Spending:
    """Counts calls, and puts the arrays back before additions carry their values away."""

    def __init__(self, restore: Callable[[], None]) -> None:
        self._restore, self._calls = restore, math.inf

    def __call__(self, calls: int) -> None:
        if self._calls + calls > RESTORE_AFTER:
            self._restore()
            self._calls = 0
        self._calls += calls
