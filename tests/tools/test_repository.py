"""What maintainers and machines read: versions that are repeated, targets that workflows call, forms that must parse."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import fastpe

ROOT = Path(__file__).resolve().parents[2]
FORMS = sorted(
    path.relative_to(ROOT)
    for pattern in (".github/**/*.yml", "*.cff", ".pre-commit-config.yaml")
    for path in ROOT.glob(pattern)
)

if not (ROOT / ".github").is_dir():
    pytest.skip("a source archive has no forms of the repository", allow_module_level=True)


def read(path: Path | str) -> Any:
    return pytest.importorskip("yaml").safe_load((ROOT / path).read_text())


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("path", FORMS, ids=str)
def test_forms_parse(path: Path) -> None:
    assert isinstance(read(path), dict)


def test_targets_are_phony() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert {*phony.split()} == targets()


@pytest.mark.parametrize("path", [".github/workflows/tests.yml", ".github/workflows/docs.yml", ".github/workflows/release.yml"])
def test_workflows_call_targets_that_exist(path: str) -> None:
    steps = [step["run"] for job in read(path)["jobs"].values() for step in job["steps"] if "run" in step]
    called = {found for step in steps for found in re.findall(r"^make ([a-z-]+)", step)}
    assert called
    assert called <= targets()


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", "docs/internals/release.md", "docs/support.md", "README.md", ".github/pull_request_template.md"]
)
def test_pages_name_targets_that_exist(page: str) -> None:
    called = set(re.findall(r"`(?:[A-Z_]+=\S+ )?make ([a-z-]+)", (ROOT / page).read_text()))
    assert called
    assert called <= targets()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")
def test_a_python_that_is_not_here_is_left_out_and_named() -> None:
    done = subprocess.run(["make", "matrix", "PYTHONS=3.99"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "there is no Python 3.99, so nothing was tested with it" in done.stdout


def test_versions_that_are_repeated() -> None:
    assert read("CITATION.cff")["version"] == fastpe.__version__
    (ruff,) = re.findall(r"^ruff==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert read(".pre-commit-config.yaml")["repos"][0]["rev"] == f"v{ruff}"


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", heading) for heading in headings[1:])
    version, date = re.findall(r"[\d.-]*\d", headings[1])
    assert (version, date) == (fastpe.__version__, str(read("CITATION.cff")["date-released"]))


def test_the_changelog_has_the_sections_and_links_of_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    for part in text.split("\n## ")[1:]:
        sections = re.findall(r"^### (.*)$", part, re.M)
        assert sections == [
            one for one in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security") if one in sections
        ]
    linked = re.findall(r"^\[(.*?)\]: https://github\.com/fastpe/fastpe/", text, re.M)
    assert linked == re.findall(r"^## \[(.*?)\]", text, re.M)


def test_supported_versions_are_those_of_the_metadata() -> None:
    metadata, page = (ROOT / "pyproject.toml").read_text(), (ROOT / "docs" / "support.md").read_text()
    oldest = {name: re.findall(rf'"{name}>=([\d.]+)"', metadata)[0] for name in ("numpy", "numba", "torch")}
    assert f"| NumPy, Numba | {oldest['numpy']}, {oldest['numba']} |" in page
    assert f"| PyTorch | {oldest['torch']} |" in page
    assert f"| Python | {re.findall(r'requires-python = .>=([0-9.]+).', metadata)[0]} |" in page
    matrix = (ROOT / "Makefile").read_text()
    assert f"numpy=={oldest['numpy']}.* numba=={oldest['numba']}.*" in matrix


def test_the_files_that_conftest_lists_are_there() -> None:
    """A name that is left behind would run a slow file at every save, or begin the longest last."""
    tests = ROOT / "tests"
    listed = re.findall(r'^    "([\w/*]+\.py)",$', (tests / "conftest.py").read_text(), re.M)
    assert len(listed) > 50
    assert [name for name in listed if not [*tests.glob(name)]] == []
