"""The demo's report, and how it is told."""

from __future__ import annotations

import dataclasses
import os
import sys
import textwrap

from ... import __version__
from ..machine import duration

FAR = 1_000_000
LIBRARIES = {"numpy": "NumPy", "cupy": "CuPy"}
FIRST_STEPS = "https://github.com/fastpe/fastpe/blob/main/docs/first-steps.md"


@dataclasses.dataclass
class Report:
    """The results of the demo. An error is the largest absolute one over a row's columns."""

    ok: bool
    text: str
    text_bytes: int  # used
    text_cut: bool  # whether there was more
    backend: str
    library: str
    device: str
    shape: tuple[int, int, int]
    dtype: str
    bytes: int
    seconds_first_call: float
    compiled: bool | None  # in this process, or by an earlier one; None: compiled, and kept nowhere
    seconds_fastpe: float
    seconds_table_kept: float
    seconds_table_built: float
    gigabytes_per_second: float  # x read and written once
    busy: str | None  # a warning that other work takes the cores
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


def table(report: Report) -> str:
    """The report as a story of 20 lines of 80 columns: two more on a busy machine, wider if a file has a long name."""
    batch, length, dim = report.shape
    repeats = batch * length / report.text_bytes
    size = f"{'the first ' if report.text_cut else ''}{report.text_bytes:,} bytes"
    again = f", repeated {repeats:.1f} times" if repeats > 1 else ""
    lines = [
        f"fastpe {__version__} encodes {report.text} ({size}{again})",
        f"as {batch} sequences x {length} tokens x {dim} columns of {report.dtype}, {report.bytes / 2**20:.1f} MiB.",
        "",
        *_speed(report),
        "",
        f"{'Largest error at position':<26}{length - 1:>10,}  {FAR:>10,}",
        f"  {'fastpe':<24}{_error(report.error)}  {_error(report.error_far)}",
        f"  {'an angle in float32':<24}{_error(report.float32_angle_error_last)}  {_error(report.float32_angle_error_far)}",
        "",
        *_model(report),
        "",
        _verdict(report) + _picture(report),
        f"Try next: {_python()} -m fastpe info, or bench --quick, or demo YOUR_TEXT",
        f"Read next: {FIRST_STEPS}",
    ]
    return "\n".join(lines)


def _speed(report: Report) -> list[str]:
    library, fast = LIBRARIES[report.library], report.seconds_fastpe
    kept, built = report.seconds_table_kept, report.seconds_table_built
    compiled = {
        True: "compiled, once: later runs load it",
        False: "loaded what an earlier run has compiled",
        None: "compiled, kept nowhere: see fastpe cache",
    }[report.compiled]
    return [
        f"fastpe.add_encoding(x), {library} arrays, {report.backend} on {report.device}:",
        _timed("the first call", report.seconds_first_call, compiled),
        _timed("every other call", fast, f"{report.gigabytes_per_second:,.1f} GB/s read and written"),
        _timed(f"{library}, table kept", kept, f"{kept / fast:.2f} times as long"),
        _timed(f"{library}, table built", built, f"{built / fast:.2f} times as long"),
        *textwrap.wrap(report.busy or "", 78, initial_indent="  ", subsequent_indent="  "),
    ]


def _model(report: Report) -> list[str]:
    if report.model_shape is None or report.model_seconds_fastpe is None or report.model_seconds_numpy is None:
        why, _, remedy = (report.model_note or "").partition(": ")
        return [f"A real model is left out: {why}{':' if remedy else '.'}", *([f"  {remedy}"] if remedy else [])]
    batch, length, dim = report.model_shape
    fast, usual = report.model_seconds_fastpe, report.model_seconds_numpy
    agree = "the same bits as" if report.model_agrees else "NOT the same bits as"
    return [
        f"Words, types and positions of a real model, all-MiniLM-L6-v2, {batch} x {length} x {dim}:",
        _timed("fastpe.embed", fast, f"{agree} NumPy's"),
        _timed("NumPy, three gathers", usual, f"{usual / fast:.2f} times as long"),
    ]


def _verdict(report: Report) -> str:
    if report.ok:
        return f"Passed: {report.rows_checked} rows are as near to the formula as promised."
    return f"FAILED: in {report.rows_checked} rows something is further from the formula than promised."


def _picture(report: Report) -> str:
    if report.plot is None:
        return f"\nPicture {report.plot_note}." if report.plot_note else ""
    beside = os.path.relpath(report.plot)
    return f" Picture: {report.plot if beside.startswith(os.pardir) else beside}"


def _python() -> str:
    """How this Python is called from here; make demo has one of its own."""
    beside = os.path.relpath(sys.executable) if sys.executable else os.pardir
    return "python" if beside.startswith(os.pardir) else beside


def _timed(what: str, seconds: float, remark: str) -> str:
    return f"  {what:<24}{duration(seconds):>10}  {remark}"


def _error(value: float | None) -> str:
    return f"{'NaN' if value is None else format(value, '.1e'):>10}"
