"""Results as tables, pictures and sentences: ``python -m bench.extrapolation.report RESULTS.json ... --into PAGE.md --pictures FOLDER``.

Several results are of several seeds: the tables show each, the pictures their mean. In the page the part between the markers is
rewritten.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastpe._tools.machine import describe

from . import pictures
from .encodings import ENCODINGS
from .files import read_json, write_text
from .orderings import ORDERINGS, check

__all__ = ["main", "page", "say", "table", "write"]

BEGIN, END = "<!-- lab:begin -->", "<!-- lab:end -->"
SAMPLED = ["rotary", "rotary_yarn", "rotary_rerope", "alibi"]
Results = dict[str, Any]


def write(out: Path, every: list[Results]) -> None:
    """Write table.md and a picture for each task into a folder."""
    write_text(out / "table.md", page(every, "") + "\n")
    pictures.draw(every, out)


def say(results: Results) -> int:
    """Print the tables and which orderings hold; return how many do not."""
    for task in results["tasks"]:
        print(f"\n{table(task, [results])}")
    checked = check(results)
    for ordering, difference in checked:
        print(f"{'holds' if ordering.holds(difference) else 'FAILS'}: {ordering.says}: {difference:+.3f} ({ordering.bound})")
    return sum(not ordering.holds(difference) for ordering, difference in checked)


def page(every: list[Results], folder: str) -> str:
    """All of it as Markdown, with links to the pictures in a folder."""
    first, parts = every[0], list[str]()
    seeds = ", ".join(str(results["seed"]) for results in every)
    parts.append(f"Seed{'s' * (len(every) > 1)} {seeds}; {describe(first['machine'])}, {first['processes']} at a time.")
    for task, entry in first["tasks"].items():
        having = [str(results["seed"]) for results in every if task in results["tasks"]]
        only = [f"Of seed {', '.join(having)}."] if len(having) < len(every) else []
        alt = f"{entry['title']}: how well each family of encodings does against the length"
        parts += [f"### {entry['title']}", *only, f"![{alt}]({folder}{pictures.file_name(task)})", table(task, every)]
        if samples := list(_samples(entry)):
            parts += [
                "The text read (the end of long ones), what the model writes (>), and the truth (=) where there is one:",
                *samples,
            ]
    checked = [dict(check(results)) for results in every]
    lines = [
        f"| {ordering.says} | {ordering.bound} | {' / '.join(f'{differences[ordering]:+.2f}' for differences in checked)} |"
        for ordering in ORDERINGS
        if all(ordering in differences for differences in checked)
    ]
    if lines:
        parts += [
            "### Orderings that every change is checked for",
            "\n".join(["| ordering | bound | here |", "|---|---|---|", *lines]),
        ]
    return "\n\n".join(parts)


def table(task: str, every: list[Results]) -> str:
    """One line an encoding, one column a length; values of several seeds, where they have the task, beside each other."""
    every = [results for results in every if task in results["tasks"]]
    first = every[0]["tasks"][task]
    factors = sorted({int(factor) for entry in first["encodings"].values() for factor in entry["lengths"]})
    heads = [f"{factor}x" for factor in factors]
    sections = []
    for metric, better in first["metrics"].items():
        lines = [f"| {metric} ({better} is better) | {' | '.join(heads)} |", f"|---|{'--:|' * len(factors)}"]
        for name in (name for name in ENCODINGS if name in first["encodings"]):
            cells = [" / ".join(_value(results, task, name, factor, metric) for results in every) for factor in factors]
            lines.append(f"| {first['encodings'][name]['label']} | {' | '.join(cells)} |")
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def _value(results: Results, task: str, name: str, factor: int, metric: str) -> str:
    entry = results["tasks"].get(task, {}).get("encodings", {}).get(name, {})
    metrics = entry.get("lengths", {}).get(str(factor))
    return "-" if metrics is None else f"{metrics[metric]:.2f}"


def _samples(task: dict[str, Any]) -> Iterator[str]:
    """What some encodings write, as blocks of text, each only once: rules change nothing at the trained length."""
    shown = set()
    for name in (name for name in SAMPLED if name in task["encodings"]):
        entry = task["encodings"][name]
        for factor, values in entry["lengths"].items():
            if (sample := values.get("sample")) is not None and sample not in shown:
                shown.add(sample)
                yield f"{entry['label']}, {factor}x:\n\n```text\n{sample}\n```"


def main(arguments: list[str] | None = None) -> None:
    """Rewrite a page's part and its pictures from saved results."""
    parser = argparse.ArgumentParser(
        "python -m bench.extrapolation.report", description=__doc__.split("\n")[0].replace("``", "")
    )
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--into", type=Path, required=True, metavar="PAGE")
    parser.add_argument("--pictures", type=Path, required=True, metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    every = [read_json(path) for path in chosen.results]
    pictures.draw(every, chosen.pictures)
    link = Path(os.path.relpath(chosen.pictures, chosen.into.parent)).as_posix()
    before, begin, rest = chosen.into.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{chosen.into} must have the lines {BEGIN} and {END}.")
    write_text(chosen.into, f"{before}{begin}\n\n{page(every, f'{link}/')}\n\n{end}{after}")


if __name__ == "__main__":
    main()
