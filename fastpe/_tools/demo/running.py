"""The demo itself: encode a text in place, check the result against the formula, time it."""

from __future__ import annotations

import importlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..._arrays import ITEMSIZE
from ..._backends import disk_cache
from ..._backends.host import pool
from ...encodings import Learned
from ...verbs import add_encoding, array_module, embed
from .. import formula, minilm
from ..benchmark import spread
from ..formula import ENCODING_ERROR
from ..machine import machine
from .report import FAR, LIBRARIES, Report
from .text import BadArgument, read, shape_for, vectors

SAMPLED_ROWS = 300
STEPS = 3  # that are shown: the first call, the ways that are timed, a real model

# Beside the error of the encoding add_encoding promises one rounding of the sum, relative to it.
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}

TIMED_SECONDS = 1.2  # of all ways together
FEWEST_ROUNDS, MOST_ROUNDS = 5, 50  # 150 additions of values up to 1 stay far from the largest float16


# ---- the check ---------------------------------------------------------------------------------------------------------------


def sample(batch: int, length: int, dim: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows (b, t) that are checked: the first, the last and random ones (fewer where they are wide)."""
    count = min(SAMPLED_ROWS, (1 << 21) // dim)
    rows = np.random.default_rng(1).integers(0, batch * length, count)
    b, t = np.divmod(np.concatenate([[0, batch * length - 1], rows]), length)
    return b, t


def compare(result: Any, before: Any, positions: Any, dtype: str) -> tuple[bool, float | None]:
    """Whether every element is as near to the reference as add_encoding promises, and the largest error (None: a NaN)."""
    expected = before.astype(np.float64) + formula.exact(positions, result.shape[-1])
    error = np.abs(result.astype(np.float64) - expected)
    largest = float(error.max())
    ok = bool((error <= ENCODING_ERROR[dtype] + ROUNDING[dtype] * np.abs(expected)).all())
    return ok, largest if math.isfinite(largest) else None


# ---- timing ------------------------------------------------------------------------------------------------------------------


def measure(calls: Sequence[Callable[[], object]], wait: Callable[[], object] = lambda: None) -> list[float]:
    """Median time of each call, after one that does not count; they take turns, so that what else runs slows all of them alike.

    On a GPU each call is waited for.
    """

    def timed(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        wait()
        return time.perf_counter() - start

    longest = max(sum(map(timed, calls)), 1e-9)
    rounds = min(MOST_ROUNDS, max(FEWEST_ROUNDS, int(TIMED_SECONDS / longest)))
    taken = [[timed(call) for call in calls] for _ in range(rounds)]
    return [statistics.median(seconds) for seconds in zip(*taken, strict=True)]


# ---- the demo ----------------------------------------------------------------------------------------------------------------


def run(file: str | None, dim: int, dtype: str, show: Callable[[str], None]) -> Report:
    """Encode, check and time a text. BadArgument says what is wrong with an argument. ``show`` is told each of ``STEPS`` steps."""
    name, content = read(file)
    element = _element(dtype)
    batch, length = shape_for(len(content), dim, ITEMSIZE[dtype])
    used = min(len(content), batch * length)
    xp = array_module()
    on_gpu = xp is not np
    wait: Callable[[], object] = xp.cuda.get_current_stream().synchronize if on_gpu else lambda: None

    b, t = sample(batch, length, dim)
    host = vectors(content, batch, length, dim, element)
    before = host[b, t]  # a copy
    x = xp.asarray(host)
    del host

    show("first call: compiles once, for seconds")
    before_it, start = {*disk_cache.files()}, time.perf_counter()
    result = add_encoding(x)
    wait()
    first_call = time.perf_counter() - start
    compiled = None if disk_cache.root() is None else bool({*disk_cache.files()} - before_it)
    near, error = compare(_on_host(result)[b, t], before, t, dtype)

    far = add_encoding(xp.zeros((1, dim), element), offset=FAR)
    far_near, error_far = compare(_on_host(far), np.zeros((1, dim)), np.array([FAR]), dtype)

    edges = np.array([length - 1, FAR])
    float32_angle = np.abs(formula.usual(np, edges, dim, np.float32) - formula.exact(edges, dim)).max(axis=-1)
    busy = spread.warnings({**machine(pool.get_num_threads(), ""), "busy_cores": spread.busy_cores()}, 0, 1)
    seconds = _time(xp, x, wait, show)
    show("a real model")
    model = _real_model(content)
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
        compiled=compiled,
        seconds_fastpe=seconds[0],
        seconds_table_kept=seconds[1],
        seconds_table_built=seconds[2],
        gigabytes_per_second=2 * x.nbytes / seconds[0] / 1e9,
        busy=None if on_gpu else next(iter(busy), None),
        rows_checked=len(b),
        error=error,
        error_far=error_far,
        float32_angle_error_last=float(float32_angle[0]),
        float32_angle_error_far=float(float32_angle[1]),
    )


def _time(xp: ModuleType, x: Any, wait: Callable[[], object], show: Callable[[str], None]) -> list[float]:
    """fastpe, a table that is kept, a table that is built for each call. The values of x are no longer of interest."""
    length, dim = x.shape[1:]
    table = formula.usual(xp, xp.arange(length), dim, x.dtype)

    def cached() -> None:
        xp.add(x, table, out=x)

    def built() -> None:
        xp.add(x, formula.usual(xp, xp.arange(length), dim, x.dtype), out=x)

    show(f"fastpe and {LIBRARIES[xp.__name__]}, by turns")
    return measure([lambda: add_encoding(x), cached, built], wait)


MODEL_SEQUENCES, MODEL_LENGTH = 64, 256


def _real_model(content: bytes) -> dict[str, Any]:
    """The text in the words of a real model, on the host: embed against NumPy's gathering and adding."""
    note = minilm.problem()
    if note is not None:
        return {"model_note": note}
    model = minilm.load()
    tokens = model.tokens(content.decode(errors="replace"), 1)
    if not tokens.size:
        return {"model_note": "the text has no tokens"}
    ids = np.resize(tokens, (MODEL_SEQUENCES, MODEL_LENGTH))  # repeated if it is short
    kinds = np.zeros_like(ids)
    out = np.empty((*ids.shape, model.words.shape[1]), np.float32)
    positions, types = Learned(model.positions), (kinds, model.types)

    def fast() -> None:
        embed(ids, model.words, positions, token_types=types, out=out)

    def three_gathers() -> Any:
        return model.words[ids] + model.types[kinds] + model.positions[:MODEL_LENGTH]

    fast()
    agrees = bool((out == three_gathers()).all())
    seconds = measure([fast, three_gathers])
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
