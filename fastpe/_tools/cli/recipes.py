"""``python -m fastpe recipes``: what published models use."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from ...encodings import recipes


def add_parser(commands: Any) -> Any:
    """Add the command to those of ``python -m fastpe``."""
    parser = commands.add_parser("recipes", help="list what published models use")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--markdown", action="store_true", help="as a table with fields and sources")
    kind.add_argument("--json", action="store_true", help="print one JSON object, by name")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print one line a model, or the documentation's table, or JSON."""
    if arguments.json:
        print(json.dumps({name: _facts(entry) for name, entry in recipes.CATALOGUE.items()}))
    elif arguments.markdown:
        print(table(), end="")
    else:
        width = max(map(len, recipes.CATALOGUE))
        for name, entry in recipes.CATALOGUE.items():
            print(f"{name:<{width}}  {entry.kind.__name__:<10}  {entry.summary}")
    return 0


def _facts(entry: recipes.Entry) -> dict[str, Any]:
    """What the table says, as values; a field that JSON has no type for is written as Python does."""
    fields = {name: json.loads(json.dumps(value, default=brief)) for name, value in entry.fields.items()}
    verb = recipes.VERBS.get(entry.kind, "add_bias")
    facts = {"for": entry.summary, "encoding": entry.kind.__name__, "fields": fields, "verb": verb}
    return {**facts, "input_scale": entry.input_scale, "offset": entry.offset, "source": entry.source}


def table() -> str:
    """The recipes as a Markdown table."""
    lines = ["| recipe | what for | encoding | input times | first position | source |", "|---|---|---|---|--:|---|"]
    for name, entry in recipes.CATALOGUE.items():
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
