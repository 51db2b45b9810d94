"""Readings as tables: ``python -m bench.extrapolation.stretch.report RESULTS.json --into PAGE.md --pictures FOLDER``.

In the page the part between the markers is rewritten.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastpe._tools.machine import describe

from ..files import read_json, write_text
from . import pictures
from .rules import FACTORS, RULES, pieces

__all__ = ["main", "page", "say", "write"]

BEGIN, END = "<!-- stretch:begin -->", "<!-- stretch:end -->"
Results = dict[str, Any]
Reading = dict[str, Any]


def write(out: Path, results: Results) -> None:
    """Write table.md and the two pictures into a folder."""
    write_text(out / "table.md", page(results, "") + "\n")
    pictures.draw(results, out)


def say(results: Results) -> None:
    """Print the tables."""
    print(f"\n{losses(results)}\n\n{answers(results)}")


def page(results: Results, folder: str) -> str:
    """All of it as Markdown, with links to the pictures in a folder."""
    readings = results["readings"].values()
    minutes, memory = sum(entry["minutes"] for entry in readings), max(entry["peak_gib"] for entry in readings)
    about = f"Seed {results['seed']}; {describe(results['machine'])}. "
    about += f"{len(readings)} readings, {minutes:.0f} minutes in all, at most {memory:.1f} GiB of memory."
    whole = pieces(list(RULES), FACTORS)
    missing = [f"{RULES[piece.name].label} to {piece.factor}x" for piece in whole if str(piece) not in results["readings"]]
    return "\n\n".join(
        [
            about + (f" Not read: {'; '.join(missing)}." if missing else ""),
            f"![The loss of each rule by position, to and beyond the trained length]({folder}{pictures.LOSSES})",
            "### Loss and next tokens by position",
            losses(results),
            f"![How many digits of a pass key are found, by length and depth]({folder}{pictures.ANSWERS})",
            "### Pass keys found by length",
            answers(results),
        ]
    )


# ---- numbers -----------------------------------------------------------------------------------------------------------------


def readings(results: Results) -> Iterator[tuple[str, Reading]]:
    """The readings that are there, with the name of the rule, in the order of the rules and of the factors.

    Of a rule that is the same for all factors only the longest.
    """
    for name, rule in RULES.items():
        there = [results["readings"][key] for key in sorted(results["readings"]) if key.rpartition("-")[0] == name]
        for entry in there if rule.own else there[-1:]:
            yield name, entry


def title(name: str, factor: int) -> str:
    """The label, with the factor where the rule depends on it."""
    return f"{RULES[name].label}, {factor}x" if RULES[name].own else RULES[name].label


def means(entry: Reading, metric: str, size: int) -> list[float]:
    """The mean over tokens of each ``size`` tokens that were read."""
    per = size // entry["block"]
    blocks = [entry["blocks"][i : i + per] for i in range(0, len(entry["blocks"]), per)]
    return [
        float(np.average([block[metric] for block in some], weights=[block["tokens"] for block in some])) for some in blocks
    ]


def losses(results: Results) -> str:
    """The losses of each half of the trained length, and the accuracies of each trained length."""
    trained = results["trained"]
    tables = []
    for metric, better, size, digits in (
        ("loss", "nats per token, lower is better", trained // 2, 2),
        ("accuracy", "next tokens right, higher is better", trained, 3),
    ):
        count = max(entry["length"] for entry in results["readings"].values()) // size
        heads = [f"to {thousands((i + 1) * size)}" for i in range(count)]
        lines = [f"| {better} | {' | '.join(heads)} |", f"|---|{'--:|' * count}"]
        for name, entry in readings(results):
            cells = [f"{value:.{digits}f}" for value in means(entry, metric, size)]
            lines.append(f"| {title(name, entry['factor'])} | {' | '.join(cells + ['-'] * (count - len(cells)))} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def answers(results: Results) -> str:
    """Of the questions after each length: the share of digits that are right, and the nats of a digit."""
    asked = sorted({answer["length"] for entry in results["readings"].values() for answer in entry["answers"]})
    lines = [f"| digits right, nats per digit | {' | '.join(map(thousands, asked))} |", f"|---|{'--:|' * len(asked)}"]
    for name, entry in readings(results):
        if entry["answers"]:
            lines.append(f"| {title(name, entry['factor'])} | {' | '.join(_answered(entry, length) for length in asked)} |")
    return "\n".join(lines)


def _answered(entry: Reading, length: int) -> str:
    there = [answer for answer in entry["answers"] if answer["length"] == length]
    if not there:
        return "-"
    right = np.mean([digit for answer in there for digit in answer["right"]])
    return f"{right:.2f}, {np.mean([answer['nats'] for answer in there]):.1f}"


def thousands(count: int) -> str:
    return f"{count:,}".replace(",", " ")


def main(arguments: list[str] | None = None) -> None:
    """Rewrite a page's part and the pictures from saved results."""
    parser = argparse.ArgumentParser("python -m bench.extrapolation.stretch.report", description=__doc__.split(":")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--into", type=Path, required=True, metavar="PAGE")
    parser.add_argument("--pictures", type=Path, required=True, metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    results = read_json(chosen.results)
    pictures.draw(results, chosen.pictures)
    link = Path(os.path.relpath(chosen.pictures, chosen.into.parent)).as_posix()
    before, begin, rest = chosen.into.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{chosen.into} must have the lines {BEGIN} and {END}.")
    write_text(chosen.into, f"{before}{begin}\n\n{page(results, link + '/')}\n\n{end}{after}")


if __name__ == "__main__":
    main()
