"""Compare two digests; this needs no fastpe."""

from __future__ import annotations

import json
from pathlib import Path


def errors_file(path: Path) -> Path:
    """The file of error messages beside a digest: OUT.errors.json for OUT.json."""
    return path.with_name(path.name.removesuffix(".json") + ".errors.json")


def read(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Hashes, and error messages if their file is there."""
    errors = errors_file(path)
    return json.loads(path.read_text()), json.loads(errors.read_text()) if errors.exists() else {}


def compare(one: Path, other: Path) -> int:
    """Print the cases that differ or are missing, with their error messages; how many there are."""
    (a, a_errors), (b, b_errors) = read(one), read(other)
    names = a.keys() | b.keys()
    different = sorted(name for name in names if a.get(name) != b.get(name))
    for name in different:
        if name not in a or name not in b:
            print(f"only in {one if name in a else other}: {name}")
            continue
        same_bits = a[name].split()[0] == b[name].split()[0]
        print(f"{'same bits, other form' if same_bits else 'differs'}: {name}")
        if name in a_errors and name in b_errors:
            texts = (a_errors[name], b_errors[name])
            print(f"    {texts[0]}\n    {texts[1]}" if texts[0] != texts[1] else "    the same text, but an array was written")
    print(f"{len(different)} of {len(names)} differ or are missing")
    return len(different)
