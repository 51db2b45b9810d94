"""Types carry through the verbs: an array of NumPy's comes out as one, a tensor as a tensor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CALLS = ROOT / "tests" / "helpers" / "typed_calls.py"


def checked(path: Path, cache: Path) -> str:
    """What mypy says of a file."""
    api = pytest.importorskip("mypy.api")
    pytest.importorskip("torch")
    said, errors, _ = api.run(["--strict", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(cache), str(path)])
    return said + errors


def test_types_carry_through_and_mistakes_are_found(tmp_path: Path) -> None:
    cache = ROOT / ".mypy_cache"
    assert "Success" in checked(CALLS, cache)
    wrong = tmp_path / "wrong.py"
    lines = [
        "fastpe.add_encoding(x, ofset=3)",
        "fastpe.apply_rotary(t, inverse='yes')",
        "fastpe.convert_layout(x, 'halves', 'half', 4)",
    ]
    wrong.write_text("\n".join([CALLS.read_text(), *lines, "y: torch.Tensor = fastpe.add_encoding(x)"]))
    said = checked(wrong, cache)
    assert "Found 4 errors" in said, said


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
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "clone")
    code = f"from setuptools import build_meta; print(build_meta.build_editable({str(folder)!r}))"  # what pip calls
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
    path = shutil.which(checker, path=str(Path(sys.executable).parent)) or shutil.which(checker)
    if path is None:
        pytest.skip(f"{checker} is not installed: pip install {checker}")
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    command = [path, *options, str(editable / "environment" / "bin" / "python"), "use.py"]
    run = subprocess.run(command, cwd=editable / "elsewhere", env=outside, capture_output=True, text=True, timeout=250)
    return run.stdout


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
