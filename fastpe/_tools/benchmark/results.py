"""Results as a table, as a file, and beside those of another run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from ..._core.checks import message
from ..machine import duration, speedup
from .spread import ALIKE, Span
from .workload import CACHED, FASTPE, SCRATCH, TORCH

SLOWER = 1 + ALIKE  # times as long as before is worth a word
VERSION = 2
MOST_SHOWN = 48  # characters of a cell
MOST_SHARE = 2.0  # of a spread: what is wider says nothing
TITLES = {
    "cpu": {CACHED: "NumPy", SCRATCH: "NumPy, from scratch", TORCH: "torch"},
    "cuda": {CACHED: "CuPy", SCRATCH: "CuPy, from scratch", TORCH: "torch"},
}
HEADINGS = {"cpu": "On the host", "cuda": "On the GPU"}
EXPLANATION = """\
Medians of interleaved calls, and ± how far the middle half of the rounds lies from them. Roofline: the share of the bandwidth of the
fastest x += 1 over as many bytes. Then how many times as fast as NumPy's and torch's expressions with the table, the cosines and
sines or the bias at hand, or made anew (from scratch). same: within 10 %. ?: the ratios of the rounds lie further apart than from 1."""

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
    cells = {FASTPE: "-" if ours is None else _within(duration(ours), Span(*result["spreads"][FASTPE])), "roofline": roofline}
    cells |= {name: _ratio(result.get("spreads_of_speedups", {}).get(name)) for name in titles}
    cells |= {name: f"failed: {why}"[:MOST_SHOWN] for name, why in result["failures"].items()}
    return [*_name(result), *cells.values()]


def _ratio(values: Iterable[float] | None) -> str:
    """A ratio where it says more than its spread; the spread in any case."""
    if values is None:
        return "-"
    ratio = Span(*values)
    return _within("same" if ratio.is_alike else speedup(ratio.middle) if ratio.is_clear else "?", ratio)


def _within(text: str, values: Span) -> str:
    return f"{text} ±{values.share:.0%}" if values.share < MOST_SHARE else f"{text} ±>{MOST_SHARE:.0%}"


def failed(results: list[Result]) -> list[str]:
    """Each failure of a contender in a line, with its whole reason."""
    return [f"{' '.join(_name(result))}: {name}: {why}" for result in results for name, why in result["failures"].items()]


def noisy(results: list[Result]) -> int:
    """In how many lines ``x += 1`` itself varied by more than what counts as a difference."""
    return sum(Span(*one["spreads"][one["fastest"]]).share > ALIKE for one in results if one["seconds"])


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
        file.write(as_json(machine, results))


def as_json(machine: dict[str, Any], results: list[Result]) -> str:
    """A run as JSON."""
    return json.dumps({"version": VERSION, "machine": machine, "results": results}, indent=1) + "\n"


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A saved run; ValueError if the file holds something else."""
    remedy = "Write one with: python -m fastpe bench --json FILE."
    try:
        with open(path, encoding="utf-8") as file:
            saved: dict[str, Any] = json.load(file)
        if saved["version"] == 1:
            remedy = f"That run has no spreads, as it was saved by an earlier version. {remedy}"
        if saved["version"] != VERSION or "cpu" not in saved["machine"]:
            raise ValueError
        for one in saved["results"]:
            _key(one)
            if FASTPE not in one["failures"] and not all(value > 0 for value in (*_spans(one)[0], *_spans(one)[1])):
                raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ValueError(message("bench", "--compare must be a saved run", repr(os.fspath(path)), remedy)) from None
    return saved


# ---- comparison --------------------------------------------------------------------------------------------------------------


def _key(result: Result) -> tuple[Any, ...]:
    return result["operation"], tuple(result["shape"]), result["dtype"], result["device"]


def _spans(result: Result) -> tuple[Span, Span, Span]:
    """fastpe's seconds, those of the machine's ``x += 1``, and the one over the other round by round."""
    seconds = result["spreads"]
    return Span(*seconds[FASTPE]), Span(*seconds[result["fastest"]]), Span(*result["over_add_one"])


def compare(before: list[Result], now: list[Result]) -> tuple[str, list[str]]:
    """A line for each case of both runs, and in words those that are slower now.

    Slower is what takes more than 1.1 times as long, by more than both runs' spreads, and beside the machine's own ``x += 1``, too: where
    both grew alike, it is the machine that was slower.
    """
    known = {_key(result): result for result in before if FASTPE in result["seconds"]}
    rows, slower = [["operation", "shape", "dtype", "before", "now", "time", "x += 1", "beside it", ""]], []
    for result in now:
        old = known.get(_key(result))
        if old is None or FASTPE not in result["seconds"]:
            continue
        pairs = [*zip(_spans(old), _spans(result), strict=True)]
        changes = [after.over(earlier) for earlier, after in pairs]
        verdict = _verdict(changes[0], changes[2])
        times = [_within(duration(one.middle), one) for one in pairs[0]]
        rows.append([*_name(result), *times, *(_ratio(change) for change in changes), verdict])
        if verdict == "slower":
            took, machines, beside = (change.middle for change in changes)
            name = " ".join(_name(result))
            slower.append(f"{name} takes {took:.2f} times as long, x += 1 {machines:.2f} times; beside it {beside:.2f} times")
    if len(rows) == 1:
        return "The runs have no line in common.", slower
    return aligned(rows, 3), slower


def _verdict(time: Span, beside: Span) -> str:
    """What a change of the time, and of the time beside ``x += 1``, amounts to."""
    if not time.is_clear or 1 / SLOWER <= time.middle <= SLOWER:
        return ""
    word = "slower" if time.middle > 1 else "faster"
    same_way = beside.is_clear and (beside.middle > SLOWER if word == "slower" else beside.middle < 1 / SLOWER)
    return word if same_way else f"{word}, as the machine"
