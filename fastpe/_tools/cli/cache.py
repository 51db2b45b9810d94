"""``python -m fastpe cache``: the compiled kernels kept on disk."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..._backends import disk_cache

NO_CACHE = "none: every process compiles the kernels anew; set FASTPE_CACHE_DIR to a folder that only you can write"


def add_parser(commands: Any) -> Any:
    """Add the command to those of ``python -m fastpe``."""
    parser = commands.add_parser("cache", help="say what compiled kernels are kept, or delete them")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--info", action="store_true", help="say what is kept and where (the default)")
    action.add_argument("--clear", action="store_true", help="delete every compiled kernel")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Say how many kernels are kept, or delete them."""
    folder = disk_cache.root()
    deleted = disk_cache.clear() if arguments.clear else 0
    files = disk_cache.files()
    size = sum(path.stat().st_size for path in files)
    if arguments.json:
        known = {"folder": None if folder is None else str(folder), "kernels": len(files), "bytes": size, "deleted": deleted}
        print(json.dumps(known))
    elif folder is None:
        print(NO_CACHE)
    elif arguments.clear:
        print(f"deleted {deleted} compiled kernels in {folder}")
    else:
        print(f"{len(files)} compiled kernels, {size / 2**20:.1f} MiB, in {folder}")
    return 0
