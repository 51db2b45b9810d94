"""Imports, dependencies between modules, what the wheel and the source archive hold, the documentation's examples."""

from __future__ import annotations

import ast
import doctest
import email
import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import cases
import pytest
import use_installed
from fresh_python import python

import fastpe

ROOT = Path(__file__).resolve().parents[2]


# ---- imports -----------------------------------------------------------------------------------------------------------------

OPTIONAL = ("cupy", "torch", "numba", "llvmlite", "matplotlib", "ml_dtypes", "jax", "keras", "tensorflow", "tqdm")


@pytest.mark.slow
def test_import_loads_numpy_only():
    names = python("import sys, json, fastpe; print(json.dumps(sorted(sys.modules)))")
    loaded = {name.partition(".")[0] for name in json.loads(names)}
    assert "numpy" in loaded
    assert not loaded & set(OPTIONAL)


@pytest.mark.slow
def test_the_cpu_path_imports_no_other_library():
    names = python(
        "import sys, json, numpy, fastpe; fastpe.add_encoding(numpy.zeros((2, 4))); print(json.dumps(sorted(sys.modules)))"
    )
    loaded = {name.partition(".")[0] for name in json.loads(names)}
    assert not loaded & (set(OPTIONAL) - {"numba", "llvmlite"})


@pytest.mark.slow
def test_works_where_the_optional_libraries_are_missing():
    block = f"import sys; sys.modules.update(dict.fromkeys({[name for name in OPTIONAL if name not in ('numba', 'llvmlite')]}))"
    code = (
        f"{block}; import numpy, fastpe; print(fastpe.add_encoding(numpy.zeros((1, 2)))[0, 1], fastpe.array_module().__name__)"
    )
    assert python(code).split() == ["1.0", "numpy"]


PUBLIC_MODULES = {"dask", "encodings", "jax", "keras", "plot", "positions", "scaling", "torch", "verbs"}


def test_dir_lists_what_users_may_use():
    assert set(dir(fastpe)) == {*fastpe.__all__, *PUBLIC_MODULES, "__version__"}
    files = {path.stem for path in (ROOT / "fastpe").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert {name for name in files if not name.startswith("_")} == PUBLIC_MODULES


@pytest.mark.slow
@pytest.mark.parametrize(("name", "member"), [("torch", "functional"), ("plot", "heatmap"), ("scaling", "YaRN")])
def test_public_modules_load_when_they_are_asked_for(name, member):
    if name == "torch":
        pytest.importorskip("torch")
    before, after = f"'fastpe.{name}' in sys.modules", f"fastpe.{name}.{member} is sys.modules['fastpe.{name}'].{member}"
    assert python(f"import sys, fastpe; print({before}, {after})").split() == ["False", "True"]


@pytest.mark.slow
def test_fastpe_torch_does_not_load_pytorchs_compiler():
    """It takes a third of the import, and most programs never compile."""
    pytest.importorskip("torch")
    loaded = "print('torch._dynamo' in sys.modules)"
    assert python(f"import sys, torch; {loaded}; import fastpe.torch; {loaded}").split() in (["False"] * 2, ["True"] * 2)


@pytest.mark.slow
def test_a_public_module_without_its_library_says_what_to_install():
    code = """if True:
        import inspect, sys
        sys.modules["torch"] = None
        import fastpe
        inspect.getmembers(fastpe)  # as help() does
        assert not hasattr(fastpe, "torch")
        try:
            fastpe.torch
        except AttributeError as error:
            print(error)
    """
    said = python(code)
    assert said.startswith("fastpe.torch cannot be imported (import of torch halted")
    assert said.endswith("): pip install 'fastpe[torch]'\n")


# ---- dependencies point one way ----------------------------------------------------------------------------------------------


def test_dispatch_is_short_and_imports_no_library():
    source = (ROOT / "fastpe" / "_arrays" / "dispatch.py").read_text()
    code = [line for line in source.splitlines() if line.strip() and not line.strip().startswith(("#", '"""'))]
    assert len(code) <= 98
    assert not {"cupy", "torch", "numba", "numpy"} & {
        alias.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for alias in node.names
    }


# ---- archives ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source archive, built from a copy of what belongs in it, and the wheel, built from the source archive."""
    import shutil

    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("fastpe", "kernels", "tests", "bench", "docs", "examples"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, copy)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    quick = {**os.environ, "FASTPE_TRANSLATE": "0"}  # `make dist-check` builds and uses a wheel with translated kernels
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, env=quick)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "!!" not in run.stdout + run.stderr  # setuptools' frame around a warning
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def archives(built):
    """The names in both."""
    wheel, source = built
    return set(zipfile.ZipFile(wheel).namelist()), {name.partition("/")[2] for name in tarfile.open(source).getnames()}


@pytest.mark.slow
def test_wheel_and_source_archive_hold_every_file(archives):
    wheel, source = archives
    kernels = {path.name for path in (ROOT / "kernels").iterdir() if path.suffix in (".cu", ".cuh", ".py")}
    assert {"add_sinusoidal.cu", "locate_rows.cu", "arithmetic.cuh"} <= kernels
    assert {f"fastpe/kernels/{name}" for name in kernels} <= wheel
    assert {f"kernels/{name}" for name in kernels} <= source
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "fastpe").rglob("*.py")}
    extra = {"fastpe/py.typed", *(str(path.relative_to(ROOT)) for path in (ROOT / "fastpe" / "_tools" / "data").iterdir())}
    assert modules | extra <= wheel
    assert (
        modules
        | extra
        | {"LICENSE", "CHANGELOG.md", "README.md", "build_backend.py", "tests/data/truth.npz", "tests/conftest.py"}
        <= source
    )
    documentation = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*") if path.is_file()}
    documentation = {path for path in documentation if not path.startswith("docs/gallery/") and "__pycache__" not in path}
    assert documentation | {"docs/conf.py", "docs/index.md", "examples/README.rst"} <= source
    assert not any(name.startswith(("tests/", "bench/", "kernels/", "docs/", "build_backend")) for name in wheel)


@pytest.mark.slow
def test_the_wheel_works_from_an_empty_folder(built, tmp_path):
    """The examples and the commands, with what the wheel holds and NumPy, Numba and ml_dtypes."""
    installed, empty = tmp_path / "lib", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(built[0]).extractall(installed)
    assert len(use_installed.examples()) == 6
    start = f"import sys; sys.path.insert(0, {str(installed)!r}); sys.prefix = {str(tmp_path)!r}\n"
    everything = "\n".join([use_installed.WHERE, *use_installed.examples()]).replace("sys.exit(", "assert not (")
    run = subprocess.run(
        [sys.executable, "-P", "-c", start + everything], cwd=empty, capture_output=True, text=True, env=outside()
    )
    assert run.returncode == 0, run.stderr


def outside():
    """The environment of a process that does not know where the clone is."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.mark.slow
def test_the_metadata_is_for_people_who_look_for_it(built):
    (name,) = (name for name in zipfile.ZipFile(built[0]).namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(zipfile.ZipFile(built[0]).read(name))
    assert {"RoPE", "ALiBi", "YaRN", "positional encoding"} <= set(metadata["Keywords"].split(","))
    assert {line.partition(",")[0] for line in metadata.get_all("Project-URL")} >= {
        "Source",
        "Documentation",
        "Changelog",
        "Issues",
    }
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)} <= set(metadata.get_all("Classifier"))
    assert "RoPE" in metadata.get_payload()[:400]


def test_links_of_the_readme_lead_somewhere_from_everywhere():
    """On a package index a relative link is broken: they are absolute, below the project's own address, and lead to files that exist."""
    text = (ROOT / "README.md").read_text()
    (source,) = re.findall(r'^Source = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    targets = re.findall(r"\]\(([^)\s]+)\)|^\[[\w-]+\]: (\S+)$", text, re.M)
    links = [inline or referred for inline, referred in targets]
    assert len(links) > 15
    own = [link for link in links if link.startswith(f"{source}/")]
    for link in own:
        kind, branch, path = link.removeprefix(f"{source}/").split("/", 2)
        assert branch == "main"
        path, _, heading = path.partition("#")
        assert (ROOT / path).is_dir() if kind == "tree" else (ROOT / path).is_file()
        if heading:
            assert heading in re.sub("[^a-z\n]", "-", (ROOT / path).read_text().lower())
    assert {*links} - {*own} == {"https://pytorch.org/get-started/locally/"}
    named = set(re.findall(r"^\[([\w-]+)\]: ", text, re.M))
    assert named == set(re.findall(r"\]\[([\w-]+)\]", text)) | {
        name for name in named if re.search(rf"(?<!\])\[{name}\](?![:\[(])", text)
    }


def test_version_is_the_packages():
    from importlib.metadata import version

    assert version("fastpe") == fastpe.__version__


# ---- documentation -----------------------------------------------------------------------------------------------------------


def modules_with_examples():
    """Every module with examples; those of plots need Matplotlib, and are among its tests."""
    paths = [path for path in (ROOT / "fastpe").rglob("*.py") if "_tools" not in path.parts and ">>> " in path.read_text()]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)


@pytest.mark.parametrize("name", modules_with_examples())
def test_docstring_examples(name):
    if "torch" in name:
        pytest.importorskip("torch")
    if name.endswith("transformers"):
        cases.transformers()
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert results.failed == 0
    assert results.attempted > 0


def readme_examples():
    """Each block of Python, and the library that the comment before it says it needs."""
    text = (ROOT / "README.md").read_text()
    found = re.findall(r"(?:<!-- needs: (\w+) -->\n)?```python\n(.*?)```", text, re.S)
    assert len(found) == text.count("```python")
    return found


@pytest.mark.parametrize(("library", "code"), readme_examples())
def test_readme_examples(library, code):
    if library:
        pytest.importorskip("torch")
    if library == "transformers":
        cases.transformers()
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("name", [*fastpe.__all__])
def test_public_docstrings(name):
    documented = getattr(fastpe, name).__doc__
    assert documented
    assert documented.strip()


@pytest.mark.parametrize("name", [*fastpe.positions.__all__])
def test_generators_of_positions_are_documented(name):
    documented = getattr(fastpe.positions, name).__doc__
    assert documented
    assert name in fastpe.positions.__doc__ or name == "Remap"
