"""The demo's report, and its table."""

from __future__ import annotations

import dataclasses

FAR = 1_000_000
LIBRARIES = {"numpy": "NumPy", "cupy": "CuPy"}


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
