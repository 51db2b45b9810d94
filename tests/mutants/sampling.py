"""The mutants of a file or folder, their names, and samples of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cuda_mutations
import mutations
from mutations import Mutation

FINDERS = {".py": mutations.of_source, ".cu": cuda_mutations.of_source, ".cuh": cuda_mutations.of_source}


class Mutant(NamedTuple):
    file: str  # relative to the root
    mutation: Mutation
    name: str  # the file, the text of the line, and what is changed: the same wherever the line stands
    line: int


def all_mutants(root: Path, place: str) -> Iterator[Mutant]:
    """Every mutant of a file or folder."""
    path = root / place
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.suffix in FINDERS:
            yield from _of_file(str(file.relative_to(root)), file.read_bytes(), FINDERS[file.suffix](file.read_bytes()))


def _of_file(file: str, source: bytes, found: list[Mutation]) -> Iterator[Mutant]:
    lines = source.decode().splitlines()
    equal: Counter[str] = Counter()
    for mutation in found:
        number = source.count(b"\n", 0, mutation.start)
        old, new = (" ".join(text.split()) for text in (mutation.old, mutation.new))
        column = mutation.start - source.rfind(b"\n", 0, mutation.start) - len(lines[number]) + len(lines[number].lstrip())
        name = f"{file} | {lines[number].strip()} | {column}: {old} -> {new}"
        equal[name] += 1
        yield Mutant(file, mutation, f"{name} ({equal[name]})" if equal[name] > 1 else name, number + 1)


def sample(mutants: list[Mutant], size: int, seed: int) -> list[Mutant]:
    """So many of them, drawn by their names: a change of the sources changes the sample only where it changes mutants."""
    return sorted(mutants, key=lambda one: hashlib.sha256(f"{seed} {one.name}".encode()).digest())[:size]
