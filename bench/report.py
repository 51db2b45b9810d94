"""Turn pytest-benchmark's JSON into the table of the documentation.

``python -m bench.report bench/results/*.json --into docs/performance.md`` rewrites the section between the two markers, with a table
for each machine; without ``--into`` it is printed. ``--picture docs/pictures/bench/speed.png`` draws it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastpe._tools import machine as machines
from fastpe._tools.machine import describe, duration, size, speedup

from . import chart

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
COMMAND = "pytest bench --benchmark-only --benchmark-enable --benchmark-json=results.json"
OPERATION = "add_encoding"
# Contender -> heading, for each kind of device.
COLUMNS = {
    "cpu": {
        "numpy_cached": "over NumPy, cached table",
        "torch_cached": "over torch, cached table",
        "numpy_scratch_f64": "over NumPy, from scratch",
    },
    "cuda": {"cupy_cached": "over CuPy, cached table"},
}
EXPLANATION = (
    "Medians of calls on `(B, T, D)` arrays, in place. The roofline is the bandwidth of the fastest `x += 1` over the same bytes, "
    "measured in the same run."
)

Entry = dict[str, Any]


class ReportError(Exception):
    """The results or the document are not what they should be."""


def machine(threads: int) -> dict[str, Any]:
    """Everything that a figure depends on, with the command of this suite."""
    return machines.machine(threads, COMMAND)


# ---- the section -------------------------------------------------------------------------------------------------------------


def entries(results: dict[str, Any]) -> list[Entry]:
    """The benchmarks of the table's verb that name a contender, each with its median."""
    medians = [
        {**benchmark["extra_info"], "seconds": benchmark["stats"]["median"]}
        for benchmark in results.get("benchmarks", [])
        if "contender" in benchmark.get("extra_info", {})
    ]
    medians = [entry for entry in medians if entry.get("operation", OPERATION) == OPERATION]
    if not any(entry["contender"] == "fastpe" for entry in medians):
        raise ReportError(f"there is no benchmark of fastpe in the results; write them with: {COMMAND}")
    return medians


def section(runs: Iterable[dict[str, Any]]) -> str:
    """The Markdown between the markers: what the figures are, and the tables of each run's machine."""
    return "\n\n".join([EXPLANATION, *(tables(results) for results in runs)])


def tables(results: dict[str, Any]) -> str:
    """The tables of one run, and the machine it was."""
    every = entries(results)
    known = results.get("machine_info", {}).get("fastpe")
    if known is None:
        raise ReportError(f"the results do not describe the machine; write them with: {COMMAND}")
    parts = []
    for kind, columns in COLUMNS.items():
        of_kind = [entry for entry in every if entry["device"] == kind]
        if of_kind:
            parts.append(table(of_kind, columns))
    names = {entry["device_name"]: None for entry in every if entry.get("device_name")}
    day = f". Measured on {results['datetime'][:10]}" if "datetime" in results else ""
    parts.append("; ".join([describe({**known, "cpu": name_of(results)}), *names]) + f"{day}. Command: `{known['command']}`.")
    return "\n\n".join(parts)


def name_of(results: dict[str, Any]) -> str:
    """The processor of a run."""
    return str(results["machine_info"]["fastpe"]["cpu"]) + model(results["machine_info"].get("cpu", {}))


def model(cpu: dict[str, Any]) -> str:
    """Family and model of a processor, whose name may not tell: virtual machines hide it."""
    return f" (family {cpu['family']}, model {cpu['model']})" if {"family", "model"} <= cpu.keys() else ""


def table(measured: list[Entry], columns: dict[str, str]) -> str:
    """One row a shape and dtype, in the order of the results."""
    rows: dict[tuple[tuple[int, ...], str], dict[str, Entry]] = {}
    for entry in measured:
        rows.setdefault((tuple(entry["shape"]), entry["dtype"]), {})[entry["contender"]] = entry
    lines = [
        "| " + " | ".join(["x", "dtype", "fastpe", "of the roofline", *columns.values()]) + " |",
        "|" + "---|" * 2 + "--:|" * (2 + len(columns)),
    ]
    lines += [_row(shape, dtype, row, columns) for (shape, dtype), row in rows.items() if "fastpe" in row]
    return "\n".join(lines)


def _row(shape: tuple[int, ...], dtype: str, row: dict[str, Entry], columns: dict[str, str]) -> str:
    ours = row["fastpe"]
    ratios = [speedup(row[name]["seconds"] / ours["seconds"] if name in row else None) for name in columns]
    share = f"{ours['share_of_roofline']:.0%}"
    return "| " + " | ".join([size(shape, ours["array_bytes"]), dtype, duration(ours["seconds"]), share, *ratios]) + " |"


def rewrite(text: str, content: str, markers: tuple[str, str] = (BEGIN, END)) -> str:
    """Put ``content`` between the markers of a document."""
    begin, end = markers
    for marker in markers:
        if text.count(marker) != 1:
            raise ReportError(f"the document must contain the line {marker} once; it does {text.count(marker)} times")
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ReportError(f"{end} must come after {begin}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def read(path: Path) -> dict[str, Any]:
    """The results in a file."""
    try:
        results = json.loads(path.read_text())
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ReportError(f"{path} is not JSON ({error}); write it with: {COMMAND}") from None
    if not isinstance(results, dict):
        raise ReportError(f"{path} is not pytest-benchmark's JSON; write it with: {COMMAND}")
    return results


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        "python -m bench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", help="JSON of pytest-benchmark, a file for each machine")
    parser.add_argument("--into", type=Path, metavar="DOCUMENT", help="file with the two markers, to rewrite")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="a PNG of the ratios, to draw")
    given = parser.parse_args(arguments)
    try:
        runs = [read(path) for path in given.results]
        content = section(runs)
        if given.picture is not None:
            chart.draw([(name_of(run), entries(run)) for run in runs], given.picture)
        if given.into is None:
            print(content)
        else:
            given.into.write_text(rewrite(given.into.read_text(), content))
    except (ReportError, OSError) as error:
        raise SystemExit(f"report: {error}") from None


if __name__ == "__main__":
    main()
