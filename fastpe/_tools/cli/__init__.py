"""``python -m fastpe``: one module a command, each with ``add_parser(commands)`` and ``run(arguments)``; ``main`` runs them."""

from __future__ import annotations

from .main import main

__all__ = ["main"]
