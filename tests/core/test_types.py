"""Types carry through the verbs: an array of NumPy's comes out as one, a tensor as a tensor."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CALLS = ROOT / "tests" / "helpers" / "typed_calls.py"


def checked(path: Path, cache: Path) -> str:
    """What mypy says of a file."""
    api = pytest.importorskip("mypy.api")
    pytest.importorskip("torch")
    said, errors, _ = api.run(["--strict", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(cache), str(path)])
    return said + errors


def said_by(checker: str, folder: Path, *options: str, env: dict[str, str] | None = None) -> str:
    """What the command of a checker says in a folder."""
    path = shutil.which(checker, path=str(Path(sys.executable).parent)) or shutil.which(checker)
    if path is None:
        pytest.skip(f"{checker} is not installed: pip install {checker}")
    return subprocess.run([path, *options], cwd=folder, env=env, capture_output=True, text=True, timeout=280).stdout


MISTAKES = [
    "fastpe.add_encoding(x, ofset=3)",
    "fastpe.add_encoding(x, offset='3')",
    "fastpe.add_encoding(x, mask=3)",
    "fastpe.apply_rotary(t, inverse='yes')",
    "fastpe.convert_layout(x, 'halves', 'half', 4)",
    "fastpe.embed([['a']], x[0])",
    "fastpe.add_bias(x, fastpe.Rotary())",
    "fastpe.Grid.mae('14')",
    "fastpe.scaling.YaRN('4', 4096)",
    "fastpe.positions.grid(5)",
    "fastpe.positions.randomized(5, 100, rng='0')",
    "fastpe.plot.heatmap(fastpe.ALiBi(8))",
    "fastpe.plot.bias(fastpe.Rotary())",
    "fastpe.plot.heatmap('rotary', ax=3)",
    "fastpe.plot.wavelengths([fastpe.scaling.NTK(4), 4])",
    "fastpe.torch.patch_transformers(torch.nn.Linear(1, 1), scaling=2.0)",
    "rotary(t, offset='a')",
    "learned_wrong = fastpe.torch.LearnedEncoding(9, 4, out_of_range='wrap')",
    "y: torch.Tensor = fastpe.add_encoding(x)",
    "z: torch.Tensor = fastpe.positions.packed([0, 3])",
]


@pytest.fixture
def wrong(tmp_path: Path) -> tuple[Path, list[int]]:
    """The calls, and behind them the mistakes; and the lines of these."""
    path, right = tmp_path / "wrong.py", CALLS.read_text()
    path.write_text(right + "\n".join(MISTAKES))
    return path, [right.count("\n") + 1 + i for i in range(len(MISTAKES))]


def test_types_carry_through_and_mistakes_are_found(wrong: tuple[Path, list[int]]) -> None:
    said = checked(wrong[0], ROOT / ".mypy_cache")
    assert [int(line) for line in re.findall(r"wrong\.py:(\d+): error", said)] == wrong[1], said
    assert f"Found {len(MISTAKES)} errors in 1 file" in said, said  # and none elsewhere


@pytest.mark.slow
def test_pyright_agrees(wrong: tuple[Path, list[int]]) -> None:
    pytest.importorskip("torch")
    # Project settings of its own: without them a checker takes tests/torch and the like for roots of imports.
    (wrong[0].parent / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)], "include": ["."]}))
    options = ("--outputjson", "--level", "error", "--pythonpath", sys.executable, "--project", str(wrong[0].parent))
    found = json.loads(said_by("basedpyright", ROOT, *options))["generalDiagnostics"]
    assert [one["range"]["start"]["line"] + 1 for one in found] == wrong[1], [one["message"] for one in found]


OF_JAX = """\
import jax
import jax.numpy as jnp
from typing_extensions import assert_type

import fastpe
import fastpe.jax

x = jnp.zeros((2, 3, 4))
assert_type(fastpe.add_encoding(x), jax.Array)
assert_type(fastpe.jax.add_encoding(x, offset=jnp.arange(2)), jax.Array)
assert_type(fastpe.apply_rotary(x, x), tuple[jax.Array, jax.Array])
assert_type(fastpe.jax.apply_rotary(x, None, fastpe.Rotary(500_000.0)), jax.Array)
assert_type(fastpe.rerotate(x, 3), jax.Array)
assert_type(fastpe.embed([[1, 0]], x[0]), jax.Array)
assert_type(fastpe.add_bias(x, fastpe.ALiBi(2)), jax.Array)
assert_type(fastpe.encode(jnp.arange(3), 8), jax.Array)
fastpe.jax.add_encoding(x, ofset=3)
fastpe.add_encoding(x).base
"""


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "basedpyright"])
def test_types_of_jax_carry_through(checker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jax")
    (tmp_path / "use.py").write_text(OF_JAX)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    cache = str(ROOT / ".mypy_cache" / "jax")  # with other settings than the project's, so apart
    mypy = ("--strict", "--config-file", "", "--follow-imports", "silent", "--cache-dir", cache, "--python-executable")
    options = mypy if checker == "mypy" else ("--level", "error", "--pythonpath")
    said = said_by(checker, tmp_path, *options, sys.executable, "use.py")
    found = re.findall(r"use\.py:(\d+)(?::\d+)?(?: -)?:? error", said)
    assert [int(line) for line in found] == [OF_JAX.count("\n") - 1, OF_JAX.count("\n")], said


# ---- what an editor shows ----------------------------------------------------------------------------------------------------

# Their overloads say more, or they are for those who write a bias.
OVERLOADED = {"apply_rotary", "encode", "abacus", "contextual", "detr", "fairseq", "from_mask", "packed", "qwen2_vl"}
OVERLOADED |= {"RotaryEmbedding.forward"}
OF_AUTHORS = {"evaluate", "slopes_of", "buckets", "rows", "arranged", "check_like"}
UNKNOWN = {  # anything may be meant
    "Recipe.encoding",
    "TokenEmbedding.__init__.options",
    "TokenEmbedding.from_pretrained.options",
    "embed.out",
    "recipe.fields",
}


def unknown(name: str, function: Any) -> set[str]:
    """The parameters of a function, and its result, of which an editor knows nothing."""
    signature = inspect.signature(function)
    places = {f"{name}.{one.name}": one.annotation for one in signature.parameters.values() if one.name not in ("self", "cls")}
    places[f"{name} ->"] = None if name.endswith("__init__") else signature.return_annotation
    return {place for place, annotation in places.items() if annotation in ("Any", Any, inspect.Parameter.empty)}


def members(module: Any) -> Iterator[tuple[str, Any]]:
    """The functions of a module and the methods of its classes that users call, with their names."""
    for name in module.__all__:
        one = getattr(module, name)
        if not isinstance(one, type):
            if callable(one):
                yield name, one
            continue
        for method, value in vars(one).items():
            inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if inspect.isfunction(inner) and (not method.startswith("_") or method == "__init__"):
                yield f"{name}.{method}", inner


def test_nothing_public_is_shown_as_any() -> None:
    pytest.importorskip("torch")
    import fastpe.plot
    import fastpe.torch

    modules = (fastpe, fastpe.scaling, fastpe.positions, fastpe.plot, fastpe.torch, fastpe.torch.functional)
    found: set[str] = set()
    for module in modules:
        for name, function in members(module):
            if name not in OVERLOADED and name.rpartition(".")[2] not in OF_AUTHORS:
                found |= unknown(name, function)
    assert found <= UNKNOWN, sorted(found - UNKNOWN)


# ---- an editable install -----------------------------------------------------------------------------------------------------

USERS_FILE = """\
import fastpe
from fastpe.scaling import YaRN

fastpe.Rotary(scaling=YaRN(4.0, 4096)).base.upper()
fastpe.get_num_threads(7)
"""


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds an editable install of a copy, and nothing else."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("editable")
    for name in ("fastpe", "kernels"):
        shutil.copytree(ROOT / name, folder / "clone" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("build_backend.py", "pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "clone")
    code = f"import build_backend; print(build_backend.build_editable({str(folder)!r}))"  # what pip calls
    run = subprocess.run([sys.executable, "-c", code], cwd=folder / "clone", capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    venv.create(folder / "environment", with_pip=False)
    (packages,) = (folder / "environment").glob("lib/python3*/site-packages")
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(packages)
    assert [path.name for path in packages.iterdir() if path.suffix == ".py"] == []  # an import hook would be a module
    (tmp := folder / "elsewhere").mkdir()
    (tmp / "use.py").write_text(USERS_FILE)
    return folder


def said_of_use(editable: Path, checker: str, *options: str) -> str:
    """What a checker says of the user's file, from a folder and an environment that do not know where the clone is."""
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    return said_by(checker, editable / "elsewhere", *options, str(editable / "environment/bin/python"), "use.py", env=outside)


@pytest.mark.slow
def test_mypy_follows_an_editable_install(editable: Path) -> None:
    said = said_of_use(editable, "mypy", "--strict", "--config-file", "", "--python-executable")
    assert [line.partition(" error: ")[2].partition("  [")[0] for line in said.splitlines() if " error: " in line] == [
        '"float" has no attribute "upper"',
        'Too many arguments for "get_num_threads"',
    ], said


@pytest.mark.slow
def test_pyright_follows_an_editable_install(editable: Path) -> None:
    said = json.loads(said_of_use(editable, "basedpyright", "--outputjson", "--level", "error", "--pythonpath"))
    found = [one["message"].partition("\n")[0] for one in said["generalDiagnostics"]]
    assert found == ['Cannot access attribute "upper" for class "float"', "Expected 0 positional arguments"]
