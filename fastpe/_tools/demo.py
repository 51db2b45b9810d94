"""The work behind ``python -m fastpe demo``: encode a text in place, check the result against the formula, time it."""

from __future__ import annotations

import dataclasses
import decimal
import importlib
import importlib.resources
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from .._arrays import ITEMSIZE
from .._backends.host import pool
from .._core.checks import message
from ..encodings import Learned
from ..verbs import add_encoding, array_module
from ..verbs import embed as embed_tokens
from . import minilm

SHIPPED = "data/sonnets.txt"
SEQUENCE = 4096
FEWEST_SEQUENCES, MOST_SEQUENCES = 8, 64
MOST_BYTES = 1 << 26  # of the array; the process stays below 300 MB
MOST_DIM = 1 << 14
SAMPLED_ROWS = 300
FAR = 1_000_000

# What add_encoding promises: the error of the encoding, and one rounding of the sum relative to it.
ENCODING_ERROR = {"float16": 2e-7, "bfloat16": 2e-7, "float32": 2e-7, "float64": 1e-12}
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}

TIMED_SECONDS = 0.4  # for each of the three ways
FEWEST_CALLS, MOST_CALLS = 5, 50  # 50 additions of values up to 1 stay far from the largest float16


class BadArgument(Exception):
    """An argument that cannot be used; the text says why, in one line."""


@dataclasses.dataclass
class Report:
    """What the demo found. An error is the largest absolute one over a row's columns."""

    ok: bool
    text: str
    text_bytes: int  # that were used
    text_cut: bool  # whether there was more
    backend: str
    library: str
    device: str
    shape: tuple[int, int, int]
    dtype: str
    bytes: int
    seconds_first_call: float
    seconds_fastpe: float
    seconds_table_kept: float
    seconds_table_built: float
    gigabytes_per_second: float  # x read and written once
    rows_checked: int
    error: float | None  # None: not a number
    error_far: float | None
    float32_angle_error_last: float
    float32_angle_error_far: float
    model_note: str | None = None  # why there is no real model; None: there is
    model_shape: tuple[int, int, int] | None = None
    model_seconds_fastpe: float | None = None
    model_seconds_numpy: float | None = None
    model_agrees: bool | None = None
    plot: str | None = None
    plot_note: str | None = None


# ---- the text ----------------------------------------------------------------------------------------------------------------


def read(file: str | None) -> tuple[str, bytes]:
    """A name for the text and its bytes; never more than can be used, and one."""
    most = SEQUENCE * MOST_SEQUENCES + 1
    try:
        if file is None:
            resource = importlib.resources.files(__package__).joinpath(SHIPPED)
            name, content = "Shakespeare's sonnets", resource.read_bytes()
        elif file == "-":
            name = "standard input"
            if sys.stdin is None:
                raise ValueError("standard input is closed")
            buffer = getattr(sys.stdin, "buffer", None)
            content = sys.stdin.read(most).encode() if buffer is None else buffer.read(most)
        else:
            name = os.fsencode(file).decode(errors="replace")
            with open(file, "rb") as opened:
                content = opened.read(most)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadArgument(message("demo", "FILE must be a file that can be read", repr(file), f"{reason}.")) from None
    if not content:
        raise BadArgument(message("demo", "FILE must hold some text", f"nothing from {name}"))
    return name, content


def shape_for(count: int, dim: int, itemsize: int) -> tuple[int, int]:
    """(B, T) for so many tokens: whole sequences, at least eight, within the memory allowed."""
    rows = MOST_BYTES // (dim * itemsize)
    length = min(SEQUENCE, rows // FEWEST_SEQUENCES)
    batch = max(FEWEST_SEQUENCES, -(-count // length))
    return min(batch, MOST_SEQUENCES, rows // length), length


def embed(content: bytes, batch: int, length: int, dim: int, dtype: Any) -> Any:
    """(B, T, D) on the host: one random vector of variance 1 for each value of a byte; a short text is repeated."""
    tokens = np.resize(np.frombuffer(content, np.uint8), (batch, length))
    table = np.random.default_rng(0).standard_normal((256, dim), np.float32).astype(dtype)
    return table[tokens]


# ---- the reference -----------------------------------------------------------------------------------------------------------


def reference(positions: npt.NDArray[np.int64], dim: int) -> npt.NDArray[np.float64]:
    """PE[p, 2f] = sin(p / 10000^(2f/D)), PE[p, 2f+1] = cos(the same): Vaswani et al. 2017, section 3.5, in float64.

    Frequencies are counted in turns, with 40 digits; the whole turns of p * w are dropped exactly, for |p| below 2^23.
    """
    with decimal.localcontext() as context:
        context.prec = 40
        turn = 2 * decimal.Decimal("3.14159265358979323846264338327950288419717")
        turns = [decimal.Decimal(10000) ** (decimal.Decimal(-2 * f) / dim) / turn for f in range((dim + 1) // 2)]
        high = [int(value * 2**30) for value in turns]
        low = [float(value - decimal.Decimal(part) / 2**30) for value, part in zip(turns, high, strict=True)]
    p = np.asarray(positions, np.float64)[..., None]
    angle = 2 * np.pi * (p * (np.array(high) / 2.0**30) % 1.0 + p * np.array(low))
    result: npt.NDArray[np.float64] = _columns(np, np.sin(angle), np.cos(angle), dim, np.float64)
    return result


def usual(xp: ModuleType, positions: Any, dim: int, dtype: Any) -> Any:
    """The encoding as it is commonly written, angles in float32 (float64 for a float64 table)."""
    real = xp.float64 if dtype == np.float64 else xp.float32
    frequencies = xp.exp(xp.arange(0, dim, 2).astype(real) * real(-math.log(10000.0) / dim))
    angle = xp.asarray(positions).astype(real)[:, None] * frequencies
    return _columns(xp, xp.sin(angle), xp.cos(angle), dim, dtype)


def _columns(xp: ModuleType, sine: Any, cosine: Any, dim: int, dtype: Any) -> Any:
    result = xp.empty((*sine.shape[:-1], dim), dtype)
    result[..., 0::2], result[..., 1::2] = sine, cosine[..., : dim // 2]
    return result


def sample(batch: int, length: int, dim: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows (b, t) that are checked: the first, the last and random ones (fewer where they are wide)."""
    count = min(SAMPLED_ROWS, (1 << 21) // dim)
    rows = np.random.default_rng(1).integers(0, batch * length, count)
    b, t = np.divmod(np.concatenate([[0, batch * length - 1], rows]), length)
    return b, t


def compare(result: Any, before: Any, positions: Any, dtype: str) -> tuple[bool, float | None]:
    """Whether every element is as near to the reference as add_encoding promises, and the largest error (None: a NaN)."""
    expected = before.astype(np.float64) + reference(positions, result.shape[-1])
    error = np.abs(result.astype(np.float64) - expected)
    largest = float(error.max())
    ok = bool((error <= ENCODING_ERROR[dtype] + ROUNDING[dtype] * np.abs(expected)).all())
    return ok, largest if math.isfinite(largest) else None


# ---- timing ------------------------------------------------------------------------------------------------------------------


class Progress:
    """A bar on a terminal; nothing anywhere else."""

    WIDTH = 24

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if stream is not None and stream.isatty() else None

    def show(self, fraction: float, label: str) -> None:
        if self._stream is not None:
            full = round(self.WIDTH * fraction)
            self._stream.write(f"\r[{'#' * full}{'.' * (self.WIDTH - full)}] {fraction:4.0%}  {label}\x1b[K")
            self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def measure(call: Callable[[], object], wait: Callable[[], object], show: Callable[[float], None]) -> float:
    """Median time of a call, after one that does not count; on a GPU each is waited for."""

    def timed() -> float:
        start = time.perf_counter()
        call()
        wait()
        return time.perf_counter() - start

    calls = min(MOST_CALLS, max(FEWEST_CALLS, int(TIMED_SECONDS / max(timed(), 1e-9))))
    times = []
    for done in range(calls):
        show(done / calls)
        times.append(timed())
    return statistics.median(times)


# ---- the demo ----------------------------------------------------------------------------------------------------------------


def run(file: str | None, dim: int, dtype: str, progress: Progress) -> Report:
    """Encode, check and time a text. BadArgument says what is wrong with an argument."""
    name, content = read(file)
    element = _element(dtype)
    batch, length = shape_for(len(content), dim, ITEMSIZE[dtype])
    used = min(len(content), batch * length)
    xp = array_module()
    on_gpu = xp is not np
    wait: Callable[[], object] = xp.cuda.get_current_stream().synchronize if on_gpu else lambda: None

    b, t = sample(batch, length, dim)
    host = embed(content, batch, length, dim, element)
    before = host[b, t]  # a copy
    x = xp.asarray(host)
    del host

    progress.show(0, "the first call compiles")
    start = time.perf_counter()
    result = add_encoding(x)
    wait()
    first_call = time.perf_counter() - start
    near, error = compare(_on_host(result)[b, t], before, t, dtype)

    far = add_encoding(xp.zeros((1, dim), element), offset=FAR)
    far_near, error_far = compare(_on_host(far), np.zeros((1, dim)), np.array([FAR]), dtype)

    edges = np.array([length - 1, FAR])
    float32_angle = np.abs(usual(np, edges, dim, np.float32) - reference(edges, dim)).max(axis=-1)
    seconds = _time(xp, x, wait, progress)
    model = _real_model(content, progress)
    return Report(
        **model,
        ok=near and far_near and result is x and model.get("model_agrees") is not False,
        text=name,
        text_bytes=used,
        text_cut=len(content) > used,
        backend="cuda" if on_gpu else "numba",
        library=xp.__name__,
        device=_device(xp),
        shape=(batch, length, dim),
        dtype=dtype,
        bytes=x.nbytes,
        seconds_first_call=first_call,
        seconds_fastpe=seconds[0],
        seconds_table_kept=seconds[1],
        seconds_table_built=seconds[2],
        gigabytes_per_second=2 * x.nbytes / seconds[0] / 1e9,
        rows_checked=len(b),
        error=error,
        error_far=error_far,
        float32_angle_error_last=float(float32_angle[0]),
        float32_angle_error_far=float(float32_angle[1]),
    )


def _time(xp: ModuleType, x: Any, wait: Callable[[], object], progress: Progress) -> list[float]:
    """fastpe, a table that is kept, a table that is built for each call. The values of x are no longer of interest."""
    length, dim = x.shape[1:]
    table = usual(xp, xp.arange(length), dim, x.dtype)

    def cached() -> None:
        xp.add(x, table, out=x)

    def built() -> None:
        xp.add(x, usual(xp, xp.arange(length), dim, x.dtype), out=x)

    ways = [
        ("fastpe.add_encoding", lambda: add_encoding(x)),
        (f"{LIBRARIES[xp.__name__]}, table kept", cached),
        (f"{LIBRARIES[xp.__name__]}, table built", built),
    ]

    def shown(index: int, label: str) -> Callable[[float], None]:
        return lambda fraction: progress.show((index + fraction) / len(ways), label)

    return [measure(call, wait, shown(index, label)) for index, (label, call) in enumerate(ways)]


MODEL_SEQUENCES, MODEL_LENGTH = 64, 256


def _real_model(content: bytes, progress: Progress) -> dict[str, Any]:
    """The text in the words of a real model, on the host: embed against NumPy's gathering and adding."""
    note = minilm.problem()
    if note is not None:
        return {"model_note": note}
    progress.show(1, "a real model")
    model = minilm.load()
    found = model.tokens(content.decode(errors="replace"), 1)
    if not found.size:
        return {"model_note": "the text has no tokens"}
    ids = np.resize(found, (MODEL_SEQUENCES, MODEL_LENGTH))  # repeated if it is short
    kinds = np.zeros_like(ids)
    out = np.empty((*ids.shape, model.words.shape[1]), np.float32)
    positions, types = Learned(model.positions), (kinds, model.types)

    def fast() -> None:
        embed_tokens(ids, model.words, positions, token_types=types, out=out)

    def usual_sum() -> Any:
        return model.words[ids] + model.types[kinds] + model.positions[:MODEL_LENGTH]

    fast()
    agrees = bool((out == usual_sum()).all())
    seconds = [measure(call, lambda: None, lambda fraction: None) for call in (fast, usual_sum)]
    return {
        "model_shape": out.shape,
        "model_seconds_fastpe": seconds[0],
        "model_seconds_numpy": seconds[1],
        "model_agrees": agrees,
    }


def _element(dtype: str) -> Any:
    if dtype != "bfloat16":
        return np.dtype(dtype)
    try:
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        raise BadArgument("demo: bfloat16 needs ml_dtypes: pip install ml_dtypes.") from None


def _on_host(array: Any) -> Any:
    return array if isinstance(array, np.ndarray) else array.get()


def _device(xp: ModuleType) -> str:
    if xp is np:
        threads = pool.get_num_threads()
        return "1 thread" if threads == 1 else f"{threads} threads"
    name: bytes = xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)["name"]
    return name.decode(errors="replace")


# ---- the table ---------------------------------------------------------------------------------------------------------------

LIBRARIES = {"numpy": "NumPy", "cupy": "CuPy"}


def table(report: Report) -> str:
    """The report as aligned lines."""
    library = LIBRARIES[report.library]
    batch, length, dim = report.shape
    repeats = batch * length / report.text_bytes
    text = f"{report.text}: {'the first ' if report.text_cut else ''}{report.text_bytes:,} bytes"
    fast, kept, built = report.seconds_fastpe, report.seconds_table_kept, report.seconds_table_built
    rows = [
        ("text", text + (f", repeated {repeats:.1f} times" if repeats > 1 else "")),
        ("backend", f"{report.backend} ({library} arrays, {report.device})"),
        ("array", f"{batch} sequences x {length} tokens x {dim} columns, {report.dtype}, {report.bytes / 2**20:.1f} MiB"),
        ("", ""),
        ("first call", f"{_milliseconds(report.seconds_first_call)}  compiling, or loading from the cache, included"),
        ("fastpe.add_encoding", f"{_milliseconds(fast)}  {report.gigabytes_per_second:,.1f} GB/s read and written"),
        (f"{library}, table kept", f"{_milliseconds(kept)}  {kept / fast:.2f} times that"),
        (f"{library}, table built", f"{_milliseconds(built)}  {built / fast:.2f} times that"),
        ("", ""),
        ("largest error", f"{_error(report.error)}  in {report.rows_checked} rows, with the rounding of the sum"),
        (f"  at position {FAR:,}", _error(report.error_far)),
        ("with a float32 angle", f"{_error(report.float32_angle_error_last)}  at position {length - 1:,}"),
        (f"  at position {FAR:,}", _error(report.float32_angle_error_far)),
        ("", ""),
        *_model_rows(report),
        ("check", "passed" if report.ok else "FAILED"),
    ]
    if report.plot or report.plot_note:
        rows.append(("heat map", report.plot or report.plot_note or ""))
    return "\n".join(f"{label:<24}{value}".rstrip() for label, value in rows)


def _model_rows(report: Report) -> list[tuple[str, str]]:
    if report.model_shape is None or report.model_seconds_fastpe is None or report.model_seconds_numpy is None:
        return [("a real model", report.model_note or ""), ("", "")]
    batch, length, dim = report.model_shape
    fast, usual_seconds = report.model_seconds_fastpe, report.model_seconds_numpy
    return [
        ("a real model", f"all-MiniLM-L6-v2: {batch} sequences x {length} tokens x {dim} columns, word + type + position"),
        ("fastpe.embed", f"{_milliseconds(fast)}  {'the same bits' if report.model_agrees else 'NOT the same bits'}"),
        ("NumPy, three gathers", f"{_milliseconds(usual_seconds)}  {usual_seconds / fast:.2f} times that"),
        ("", ""),
    ]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:10,.3f} ms"


def _error(value: float | None) -> str:
    return f"{'NaN' if value is None else format(value, '.1e'):>10}"
