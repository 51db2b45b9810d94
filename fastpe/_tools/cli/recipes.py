"""``python -m fastpe recipes``: what published models use."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import Any

from ...encodings import recipes


def add_parser(commands: Any) -> Any:
    """Add the command to those of ``python -m fastpe``."""
    parser = commands.add_parser("recipes", help="list what published models use")
    parser.add_argument(
        "text", nargs="?", default="", metavar="TEXT", help="only those with this in their line, such as whisper"
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--markdown", action="store_true", help="as a table with fields and sources")
    kind.add_argument("--json", action="store_true", help="print one JSON object, by name")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print one line a model, or the documentation's table, or JSON."""
    width = max(map(len, recipes.CATALOGUE))
    lines = {name: f"{name:<{width}}  {entry.kind.__name__:<10}  {entry.summary}" for name, entry in recipes.CATALOGUE.items()}
    chosen = {name: recipes.CATALOGUE[name] for name, line in lines.items() if arguments.text.lower() in line.lower()}
    if not chosen:
        near = difflib.get_close_matches(arguments.text.lower(), lines, 1, 0.4)
        remedy = f"Did you mean {near[0]!r}?" if near else "python -m fastpe recipes lists all."
        raise ValueError(f"recipes: TEXT must be part of a recipe's line, got {arguments.text!r}. {remedy}")
    if arguments.json:
        print(json.dumps({name: _facts(entry) for name, entry in chosen.items()}))
    elif arguments.markdown:
        print(table(chosen), end="")
    else:
        print("\n".join(lines[name] for name in chosen))
    return 0


def _facts(entry: recipes.Entry) -> dict[str, Any]:
    """What the table says, as values; a field that JSON has no type for is written as Python does."""
    fields = {name: json.loads(json.dumps(value, default=brief)) for name, value in entry.fields.items()}
    verb = recipes.VERBS.get(entry.kind, "add_bias")
    facts = {"for": entry.summary, "encoding": entry.kind.__name__, "fields": fields, "verb": verb}
    return {**facts, "input_scale": entry.input_scale, "offset": entry.offset, "source": entry.source}


def table(entries: Mapping[str, recipes.Entry] = recipes.CATALOGUE) -> str:
    """Recipes as a Markdown table."""
    lines = ["| recipe | what for | encoding | input times | first position | source |", "|---|---|---|---|--:|---|"]
    for name, entry in entries.items():
        fields = ", ".join(f"{field}={brief(value)}" for field, value in entry.fields.items())
        cells = (
            f"`{name}`",
            entry.summary,
            f"`{entry.kind.__name__}({fields})`",
            "" if entry.input_scale == 1 else f"{entry.input_scale}",
            "" if recipes.VERBS.get(entry.kind) != "add_encoding" else f"{entry.offset}",
            entry.source,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def brief(value: Any) -> str:
    """A value without what it has by default, and without its many numbers."""
    if isinstance(value, tuple) and len(value) > 6:
        return f"({len(value)} numbers)"
    if not dataclasses.is_dataclass(value):
        return repr(value)
    fields = ((field.name, getattr(value, field.name), field.default) for field in dataclasses.fields(value))
    return (
        f"{type(value).__name__}({', '.join(f'{name}={brief(found)}' for name, found, default in fields if found != default)})"
    )
