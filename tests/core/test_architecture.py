"""House rules of the source tree: what may import what, how often a signature may be repeated, which names and words are private."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"fastpe": ROOT / "fastpe", "fastpe.kernels": ROOT / "kernels"}  # where the files of a package lie

# From top to bottom; a file may import what stands beside it or further down.
LAYERS = (
    ("_tools", "plot", "__main__"),
    ("__init__",),
    ("torch", "jax", "keras", "dask", "distributed"),
    ("verbs",),
    ("recipes",),
    ("encodings",),
    ("scaling",),
    ("positions",),
    ("_core",),
    ("_backends",),
    ("_arrays",),
    ("kernels",),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}

WHERE = ("offset", "positions", "cu_seqlens", "mask")  # together they say where rows stand
MOST_SIGNATURES = 12
MOST_MODULES = 9
MOST_LINES = 24_170  # raise it by the lines of what is new, and for nothing else; 16 000 is wanted
MOST_INVERSE = (21, 7)  # lines, files


@cache
def trees() -> dict[str, ast.Module]:
    """The parsed source of every module, by its dotted name; a package is its ``__init__``."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            found[".".join([package, *path.relative_to(folder).with_suffix("").parts])] = ast.parse(path.read_text(), str(path))
    return found


def module(name: str) -> str | None:
    """The module that a dotted name is, or None."""
    return next((one for one in (name, f"{name}.__init__") if one in trees()), None)


def imports(importer: str) -> Iterator[tuple[str, int]]:
    """The modules of fastpe that a module imports anywhere in its file, and the lines. A string is not an import."""
    package = importer.split(".")[:-1]
    for node in ast.walk(trees()[importer]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" if module(f"{source}.{alias.name}") else source for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "fastpe":
                imported = module(name)
                assert imported is not None, f"{importer}:{node.lineno} imports {name}, which is no module"
                yield imported, node.lineno


def layer(name: str) -> str:
    return name.split(".")[1]


# ---- imports -----------------------------------------------------------------------------------------------------------------


def test_every_module_has_a_layer():
    assert {layer(name) for name in trees()} <= set(RANKS)


def test_no_import_points_up():
    wrong = [
        f"{name}:{line} imports {imported}"
        for name in trees()
        for imported, line in imports(name)
        if RANKS.get(layer(imported), -1) < RANKS.get(layer(name), len(LAYERS))
    ]
    assert wrong == []


def test_no_files_import_each_other():
    graph = {name: {imported for imported, _ in imports(name)} for name in trees()}
    assert [sorted(circle) for circle in circles(graph)] == []


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The strongly connected components of more than one node, and nodes that lead to themselves."""
    reached = {start: reachable(graph, start) for start in graph}
    found = []
    for name in graph:
        circle = {other for other in reached[name] if name in reached[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    known: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph[waiting.pop()] - known:
            known.add(name)
            waiting.append(name)
    return known


def test_circles_are_noticed():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert circles(graph) == [{"b", "c"}, {"e"}]


# ---- sizes -------------------------------------------------------------------------------------------------------------------


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    given = function.args
    return {one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)}


def test_few_signatures_say_where_rows_stand():
    """A new way to give positions is added in few places."""
    found = [
        f"{name}.{function.name}"
        for name, tree in trees().items()
        for function in functions(tree)
        if set(WHERE) <= arguments(function)
    ]
    assert len(found) <= MOST_SIGNATURES, found


def test_the_library_is_of_a_size_to_hold_in_the_head():
    files = [path for folder in FOLDERS.values() for suffix in (".py", ".cu", ".cuh") for path in folder.rglob(f"*{suffix}")]
    lines = sum(path.read_text().count("\n") for path in files if "_tools" not in path.parts)
    assert lines <= MOST_LINES


def test_few_lines_know_that_a_rotation_may_be_inverted():
    """A keyword of one verb must not spread; the word counts where it is code."""
    found = set()
    for path in sorted(FOLDERS["fastpe"].rglob("*.py")):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type == tokenize.NAME and token.string == "inverse":
                found.add((str(path.relative_to(ROOT)), token.start[0]))
    most_lines, most_files = MOST_INVERSE
    files = {file for file, _ in found}
    assert len(found) <= most_lines, len(found)
    assert len(files) <= most_files, sorted(files)


# ---- what is public ----------------------------------------------------------------------------------------------------------


def test_few_modules_lie_flat_and_all_are_public():
    names = [path.stem for path in FOLDERS["fastpe"].glob("*.py") if not path.stem.startswith("__")]
    assert len(names) <= MOST_MODULES, sorted(names)
    assert not [name for name in names if name.startswith("_")]


def public_folders() -> list[str]:
    paths = (path.parent.relative_to(FOLDERS["fastpe"]) for path in FOLDERS["fastpe"].rglob("*/__init__.py"))
    return sorted(".".join(path.parts) for path in paths if not any(part.startswith("_") for part in path.parts))


@pytest.mark.parametrize("name", public_folders())
def test_public_folders_say_what_is_in_them(name):
    """A docstring, ``__all__``, and a place in the documentation."""
    tree = trees()[f"fastpe.{name}.__init__"]
    assert ast.get_docstring(tree)
    assigned = {target.id for node in tree.body for target in targets(node) if isinstance(target, ast.Name)}
    assert "__all__" in assigned
    pages = "".join(path.read_text() for path in sorted((ROOT / "docs" / "api").glob("*.md")))
    assert re.search(rf"\bfastpe\.{re.escape(name)}\b", pages)


def targets(node: ast.stmt) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign | ast.AugAssign) else []


# ---- words -------------------------------------------------------------------------------------------------------------------

# Words of which readers would need a glossary. Where a word is refused: in every identifier ("all"), in those of the kernels and of
# what starts them ("chunks"), in names of functions and classes ("definitions"), in names that a module defines ("module"), or only
# as a whole identifier ("whole").
REFUSED = {
    "room": ("all", "scratch slot"),
    "rooms": ("all", "scratch slots"),
    "seat": ("all", "spin slot, in which a waiting worker looks for work"),
    "seats": ("all", "spin slots"),
    "share": ("chunks", "chunk range"),
    "shares": ("chunks", "chunk ranges"),
    "form": ("all", "cache key or call signature"),
    "forms": ("all", "cache keys or call signatures"),
    "turn": ("definitions", "rotate, rotation; the unit of angles is turns"),
    "turned": ("definitions", "rotated"),
    "alive": ("all", "keepalive"),
    "written": ("whole", "serialized"),
    "watching": ("all", "grad state"),
    "found": ("module", "the thing's own name"),
    "seen": ("all", "the thing's own name"),
    "located": ("all", "the thing's own name"),
    "finished": ("all", "row cache"),
}

ALLOWED = {"sequences_share", "heads_share", "in_turn"}  # to share, and one after the other


@cache
def words(identifier: str) -> set[str]:
    """The words of a name, in lower case: parts between underscores and before capitals."""
    return {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)}


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that a file uses or defines, and its line; strings and comments are prose."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield value.rpartition(".")[2], getattr(node, "lineno", 0)
        if isinstance(node, ast.Global | ast.Nonlocal):
            yield from ((name, node.lineno) for name in node.names)


def definitions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return ((node.name, node.lineno) for node in ast.walk(tree) if isinstance(node, kinds))


def defined_by_module(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        for target in targets(node):
            yield from ((one.id, one.lineno) for one in ast.walk(target) if isinstance(one, ast.Name))


@cache
def uses(kind: str) -> dict[str, set[str]]:
    """Where each word stands in names of a kind."""
    of = {"definitions": definitions, "module": defined_by_module}.get(kind, identifiers)
    found = defaultdict(set)
    for name, tree in trees().items():
        if kind == "chunks" and layer(name) not in ("kernels", "_backends"):
            continue
        for identifier, line in of(tree):
            if identifier in ALLOWED:
                continue
            for word in {identifier} if kind == "whole" else words(identifier):
                found[word].add(f"{name}:{line} {identifier}")
    return found


@pytest.mark.parametrize("word", REFUSED)
def test_no_private_words(word):
    kind, instead = REFUSED[word]
    assert sorted(uses(kind).get(word, ())) == [], f"instead of {word!r} say: {instead}"


def test_no_private_words_in_tests_and_benchmarks():
    """Of the words that are refused everywhere, those that are no plain English there."""
    refused = {"room", "rooms", "seat", "seats", "watching", "located"}
    found = defaultdict(set)
    for path in sorted(path for folder in ("tests", "bench") for path in (ROOT / folder).rglob("*.py")):
        for identifier, line in identifiers(ast.parse(path.read_text())):
            for word in words(identifier) & refused:
                found[word].add(f"{path.relative_to(ROOT)}:{line} {identifier}")
    assert dict(found) == {}


def cuda_identifiers(path: Path) -> set[str]:
    return set(re.findall(r"\b[A-Za-z_]\w*\b", re.sub(r'//[^\n]*|"[^"\n]*"', "", path.read_text())))


@pytest.mark.parametrize("path", sorted(FOLDERS["fastpe.kernels"].glob("*.cu*")), ids=lambda path: path.name)
def test_no_private_words_in_cuda(path):
    refused = {word for word, (kind, _) in REFUSED.items() if kind in ("all", "chunks")}
    found = defaultdict(set)
    for identifier in cuda_identifiers(path):
        for word in words(identifier) & refused:
            found[word].add(identifier)
    assert dict(found) == {}
