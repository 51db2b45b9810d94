"""``python -m fastpe recipes``: what published models use."""

from __future__ import annotations

import argparse
from typing import Any

from ...encodings import recipes


def add_parser(commands: Any) -> Any:
    """Add the command to those of ``python -m fastpe``."""
    parser = commands.add_parser("recipes", help="list what published models use")
    parser.add_argument("--markdown", action="store_true", help="as a table with fields and sources")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print one line a model, or the documentation's table."""
    if arguments.markdown:
        print(recipes.table(), end="")
    else:
        width = max(map(len, recipes.CATALOGUE))
        for name, entry in recipes.CATALOGUE.items():
            print(f"{name:<{width}}  {entry.kind.__name__:<10}  {entry.summary}")
    return 0
