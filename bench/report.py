"""Turn pytest-benchmark's JSON into the table in the README.

``python bench/report.py results.json README.md`` rewrites the section between the two markers; with ``--print`` it is printed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
COMMAND = "pytest bench --benchmark-only --benchmark-enable --benchmark-json=results.json"
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
    """The results or the README are not what they should be."""


# ---- the machine -------------------------------------------------------------------------------------------------------------


def machine(threads: int) -> dict[str, Any]:
    """What a figure depends on: processor, cores, threads, versions, command."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {"Python": platform.python_version()}
    for title, package in (("NumPy", "numpy"), ("Numba", "numba"), ("torch", "torch"), ("fastpe", "fastpe")):
        try:
            versions[title] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    small = "FASTPE_BENCH_SMALL=1 " if os.environ.get("FASTPE_BENCH_SMALL") == "1" else ""
    return {"cpu": _processor(), "cores": cores, "threads": threads, "versions": versions, "command": small + COMMAND}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(found: dict[str, Any]) -> str:
    """The machine in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{found['cpu']}, {_count(found['cores'], 'core')}, {_count(found['threads'], 'thread')}; {versions}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


# ---- numbers -----------------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    unit, scale = ("s", 1.0) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-3 else ("us", 1e-6)
    value = seconds / scale
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def speedup(ratio: float | None) -> str:
    """How many times faster; "-" if it was not measured."""
    return "-" if ratio is None else f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}x"


def size(shape: tuple[int, ...], nbytes: int) -> str:
    """A shape and what it weighs."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= scale:
            return f"({', '.join(map(str, shape))}), {nbytes / scale:.3g} {unit}"
    return f"({', '.join(map(str, shape))}), {nbytes} B"


# ---- the section -------------------------------------------------------------------------------------------------------------


def entries(results: dict[str, Any]) -> list[Entry]:
    """The benchmarks that name a contender, each with its median."""
    found = [
        {**benchmark["extra_info"], "seconds": benchmark["stats"]["median"]}
        for benchmark in results.get("benchmarks", [])
        if "contender" in benchmark.get("extra_info", {})
    ]
    if not any(entry["contender"] == "fastpe" for entry in found):
        raise ReportError(f"there is no benchmark of fastpe in the results; write them with: {COMMAND}")
    return found


def section(results: dict[str, Any]) -> str:
    """The Markdown between the markers."""
    found = entries(results)
    known = results.get("machine_info", {}).get("fastpe")
    if known is None:
        raise ReportError(f"the results do not describe the machine; write them with: {COMMAND}")
    parts = [EXPLANATION]
    for kind, columns in COLUMNS.items():
        of_kind = [entry for entry in found if entry["device"] == kind]
        if of_kind:
            parts.append(table(of_kind, columns))
    names = {entry["device_name"]: None for entry in found if entry.get("device_name")}
    parts.append("; ".join([describe(known), *names]) + f". Command: `{known['command']}`.")
    return "\n\n".join(parts)


def table(found: list[Entry], columns: dict[str, str]) -> str:
    """One row a shape and dtype, in the order of the results."""
    rows: dict[tuple[tuple[int, ...], str], dict[str, Entry]] = {}
    for entry in found:
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


def rewrite(text: str, content: str) -> str:
    """Put ``content`` between the markers of a document."""
    for marker in (BEGIN, END):
        if text.count(marker) != 1:
            raise ReportError(f"the document must contain the line {marker} once; it does {text.count(marker)} times")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ReportError(f"{END} must come after {BEGIN}")
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON of pytest-benchmark")
    parser.add_argument("document", type=Path, nargs="?", help="file with the two markers")
    parser.add_argument("--print", action="store_true", dest="only_print", help="print the section and write nothing")
    given = parser.parse_args(arguments)
    if given.document is None and not given.only_print:
        parser.error("name the document to rewrite, or use --print")
    try:
        content = section(read(given.results))
        if given.only_print:
            print(content)
        else:
            given.document.write_text(rewrite(given.document.read_text(), content))
    except (ReportError, OSError) as error:
        raise SystemExit(f"report.py: {error}") from None


if __name__ == "__main__":
    main()
