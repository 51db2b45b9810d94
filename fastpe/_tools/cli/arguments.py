"""Checks that several commands make of their arguments."""

from __future__ import annotations

import os


def require_folder(command: str, option: str, path: str) -> None:
    """Refuse a path that could not be written, before the work is done."""
    folder, name = os.path.split(path)
    if not name or os.path.isdir(path) or not os.path.isdir(folder or "."):
        raise ValueError(f"{command}: {option} must name a file in a folder that exists, got {path!r}.")
