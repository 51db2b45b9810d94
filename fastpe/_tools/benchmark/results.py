"""Results as a table, as a file, and beside those of another run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from ..._core.checks import message
from ..machine import duration, speedup
from .workload import CACHED, FASTPE, SCRATCH, TORCH

SLOWER = 1.10  # times as long as before is worth a word
VERSION = 1
MOST_SHOWN = 48  # characters of a cell
TITLES = {
    "cpu": {CACHED: "NumPy", SCRATCH: "NumPy, from scratch", TORCH: "torch"},
    "cuda": {CACHED: "CuPy", SCRATCH: "CuPy, from scratch", TORCH: "torch"},
}
HEADINGS = {"cpu": "On the host", "cuda": "On the GPU"}
EXPLANATION = (
    "Medians of interleaved calls. Roofline: the share of the bandwidth of the fastest x += 1 over as many bytes. Then how many times\n"
    "as fast as NumPy's and torch's expressions with the table, the cosines and sines or the bias at hand, or made anew (from scratch)."
)

Result = dict[str, Any]


def table(results: list[Result]) -> str:
    """Aligned lines, a block for each device."""
    blocks = []
    for device, titles in TITLES.items():
        of_device = [result for result in results if result["device"] == device]
        if of_device:
            head = ["operation", "shape", "dtype", "fastpe", "roofline", *titles.values()]
            blocks.append(f"{HEADINGS[device]}\n" + aligned([head, *(_row(result, titles) for result in of_device)], 3))
    return "\n\n".join(blocks)


def _row(result: Result, titles: Iterable[str]) -> list[str]:
    ours = result["seconds"].get(FASTPE)
    roofline = "-" if ours is None else f"{result['share_of_roofline']:.0%}"
    cells = {FASTPE: "-" if ours is None else duration(ours), "roofline": roofline}
    cells |= {name: speedup(result["speedups"].get(name)) for name in titles}
    cells |= {name: f"failed: {why}"[:MOST_SHOWN] for name, why in result["failures"].items()}
    return [*_name(result), *cells.values()]


def failed(results: list[Result]) -> list[str]:
    """Each failure of a contender in a line, with its whole reason."""
    return [f"{' '.join(_name(result))}: {name}: {why}" for result in results for name, why in result["failures"].items()]


def _name(result: Result) -> list[str]:
    return [result["operation"], " x ".join(map(str, result["shape"])), result["dtype"]]


def aligned(rows: list[list[str]], left: int) -> str:
    """Columns as wide as their widest cell, the first ones aligned to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


# ---- files -------------------------------------------------------------------------------------------------------------------


def write(path: str | os.PathLike[str], machine: dict[str, Any], results: list[Result]) -> None:
    """Save a run as JSON."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"version": VERSION, "machine": machine, "results": results}, file, indent=1)
        file.write("\n")


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A saved run; ValueError if the file holds something else."""
    remedy = "Write one with: python -m fastpe bench --json FILE."
    try:
        with open(path, encoding="utf-8") as file:
            saved: dict[str, Any] = json.load(file)
        for one in saved["results"]:
            _key(one)
            if FASTPE not in one.get("failures", ()) and not (one["seconds"][FASTPE] > 0 and one["roofline_bandwidth"] > 0):
                raise ValueError
        if saved["version"] != VERSION or "cpu" not in saved["machine"]:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ValueError(message("bench", "--compare must be a saved run", repr(os.fspath(path)), remedy)) from None
    return saved


# ---- comparison --------------------------------------------------------------------------------------------------------------


def _key(result: Result) -> tuple[Any, ...]:
    return result["operation"], tuple(result["shape"]), result["dtype"], result["device"]


def compare(before: list[Result], now: list[Result]) -> tuple[str, list[str]]:
    """A line for each case of both runs, and in words those that take more than 1.1 times as long now.

    Beside the time stands that of the machine's own ``x += 1``: where both grew alike, it is the machine that was slower.
    """
    known = {_key(result): result for result in before if FASTPE in result["seconds"]}
    rows, slower = [["operation", "shape", "dtype", "before", "now", "time", "x += 1"]], []
    for result in now:
        old = known.get(_key(result))
        if old is None or FASTPE not in result["seconds"]:
            continue
        was, took = old["seconds"][FASTPE], result["seconds"][FASTPE]
        machines = old["roofline_bandwidth"] / result["roofline_bandwidth"]
        rows.append([*_name(result), duration(was), duration(took), f"{took / was:.2f}x", f"{machines:.2f}x"])
        if took > SLOWER * was:
            name = " ".join(_name(result))
            slower.append(f"{name} takes {took / was:.2f} times as long; the machine's x += 1 {machines:.2f} times")
    if len(rows) == 1:
        return "The runs have no line in common.", slower
    return aligned(rows, 3), slower
