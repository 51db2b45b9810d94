"""The documentation: its examples run, its reference names everything public, its site is built and opens in a browser."""

from __future__ import annotations

import contextlib
import doctest
import functools
import http.server
import importlib.util
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cases
import pytest

import fastpe

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))

# ---- examples ----------------------------------------------------------------------------------------------------------------


def examples(page: str) -> list[tuple[str, str, str, str]]:
    """The blocks of Python of a page: the library that the comment before one says it needs, or the file that it is, its kind, its code."""
    text = (DOCS / page).read_text()
    marked = r"^(?:<!-- (?:needs: (\w+)|file: ([\w.]+)) -->\n)?"
    found = re.findall(marked + r"```(python|pycon)\n(.*?)^```$", text, re.M | re.S)
    assert len(found) == text.count("```py"), "a block of Python is not where it can be found: at the start of a line"
    return found


def need(library: str) -> None:
    """Skip where a library is missing."""
    if library == "transformers":
        pytest.importorskip("torch")
        cases.transformers()
    elif library == "zarr":
        pytest.importorskip("dask.array")  # its blocks go through Dask
        pytest.importorskip("zarr")
    elif library:
        pytest.importorskip(library)


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # of PyTorch's exporter itself
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own, of tensors
@pytest.mark.parametrize(
    ("page", "library"), [(page, library) for page in PAGES for library in sorted({needs for needs, *_ in examples(page)})]
)
def test_examples(page: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's blocks are one program; those that need a library run with all that need none before them."""
    need(library)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}  # dataclasses look their module up
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    ran = 0
    for needs, file, kind, code in examples(page):
        if needs not in ("", library):
            continue
        if file:  # a module that blocks after it import; one that was imported before stays, as fastpe knows its classes
            (tmp_path / file).write_text(code)
        elif kind == "python":
            exec(compile(code, page, "exec"), names)
        else:
            test = doctest.DocTestParser().get_doctest(code, names, page, page, 0)
            test.globs = names  # not a copy: blocks go on where the one before ended
            runner.run(test, clear_globs=False)
        ran += 1
    assert ran
    assert runner.failures == 0


def test_an_example_that_is_wrong_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules[__name__], "DOCS", tmp_path)
    for block in ("```python\nassert 1 == 2\n```\n", "```pycon\n>>> 1 + 1\n3\n```\n", "    ```python\n    1\n    ```\n"):
        (tmp_path / "page.md").write_text(block)
        with pytest.raises(AssertionError):
            test_examples("page.md", "", tmp_path, monkeypatch)


# ---- what the pages say ------------------------------------------------------------------------------------------------------


def public() -> set[str]:
    """The names that public modules export, what functions return that is exported nowhere, and ``Bias``."""
    modules = ("", ".scaling", ".positions", ".encodings.protocol", ".torch", ".torch.functional", ".plot")
    if importlib.util.find_spec("torch") is None:
        pytest.skip("without torch its names cannot be listed")
    found = {f"fastpe.keras.{name}" for name in ("ALiBi", "RotaryEmbedding", "SinusoidalEncoding", "TokenAndPositionEmbedding")}
    found |= {f"fastpe.encodings.{name}" for name in ("recipes.Recipe", "rotary_table.RotaryTable", "bias.Bias")}
    for module in (importlib.import_module(f"fastpe{name}") for name in modules):
        found |= {f"{module.__name__}.{name}" for name in module.__all__}
    return found - {"fastpe.scaling", "fastpe.positions", "fastpe.torch.functional", "fastpe.plot.INSTALL"}


def test_the_reference_names_everything_public() -> None:
    pytest.importorskip("torch")  # fastpe.torch is among it
    pages = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    named = re.findall(r"^\.\. auto(?:function|class):: (\S+)$", pages, re.M)
    assert len(named) == len(set(named))
    assert public() <= set(named)
    assert set(named) - public() == {"fastpe.plot.named.encoding", "fastpe.plot.named.rule"}


def test_the_readme_has_the_figures_of_the_pages() -> None:
    """Its three figures, and the number of recipes."""
    readme, measured = (ROOT / "README.md").read_text(), (DOCS / "performance.md").read_text()
    errors = {
        line.split(" | ")[0].strip("| "): line.split(" | ")[4]
        for line in (DOCS / "accuracy.md").read_text().splitlines()[:9]
        if line.count(" | ") == 7
    }
    assert errors["first position"] == "131 008"
    ours, usual = (
        f"{float(errors[name]):.1e}".replace("e-0", "e-") for name in ("fastpe, float32", "float32 table as usually built")
    )
    assert f"| largest error at position 131 008, float32 | {ours} | {usual}, the usual table |" in readme
    (row,) = re.findall(r"^\| \(32, 4096, 1024\), 512 MiB \| float32 \| (.*) \| (\d+)% \| (.*?)x \|", measured, re.M)
    assert f"| {row[0]}, {row[1]} % of the memory's speed | {row[2]} times that, NumPy" in readme
    (rotation,) = re.findall(
        r"`apply_rotary` takes (5\.7 ms), 0\.95 of the roofline; .*?\n.* takes torch (198 ms), and (92) when compiled", measured
    )
    assert "| {}, 95 % of the memory's speed | {}, PyTorch with tables at hand; {} compiled |".format(*rotation) in readme
    assert f"{len(fastpe.recipes())} [recipes]" in readme


def test_the_readme_is_two_screens() -> None:
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if not re.match(r"\[[\w-]+\]: ", line)]
    assert len(lines) <= 120


def test_the_start_page_counts_right() -> None:
    page = (DOCS / "index.md").read_text()
    assert f"{len(fastpe.recipes())} [recipes]" in page
    assert page.count("nine rules") == 1
    assert len(set(fastpe.scaling.__all__) - {"Scaling"}) == 9


# ---- the site ----------------------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPENED = ("index.html", "how-to/long-context.html", "api/plot.html")
LOOK = """<!doctype html><body><script>
async function look(page) {
  const frame = document.createElement("iframe");
  const loaded = new Promise(done => frame.onload = done);
  frame.src = "/" + page;
  document.body.append(frame);
  await loaded;
  const pictures = [...frame.contentDocument.images];
  await Promise.allSettled(pictures.map(picture => picture.decode()));
  return {
    title: frame.contentDocument.title,
    pictures: pictures.map(picture => [picture.src, picture.naturalWidth]),
    requested: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
  };
}
Promise.all(PAGES.map(look)).then(found => fetch("/found", {method: "POST", body: JSON.stringify(found)}));
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does, from a copy: the gallery is written beside the pages."""
    return build(copied(tmp_path_factory.mktemp("source")))


def need_sphinx() -> None:
    for name in ("furo", "myst_parser", "numpydoc", "sphinx", "sphinx_copybutton", "sphinx_gallery"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install -e '.[docs]'")


def copied(folder: Path) -> Path:
    need_sphinx()
    for name in ("docs", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("gallery", "__pycache__"))
    if (DOCS / "pictures" / "gallery").exists():
        shutil.copytree(DOCS / "pictures" / "gallery", folder / "docs" / "pictures" / "gallery")
    return folder


def build(folder: Path) -> Path:
    command = [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", "docs", "site"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=250)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder / "site"


def test_every_page_is_built(site: Path) -> None:
    assert all((site / page).with_suffix(".html").exists() for page in PAGES)
    assert 'id="fastpe.add_encoding"' in (site / "api" / "verbs.html").read_text()


def test_search_finds_what_people_look_for(site: Path) -> None:
    index = (site / "searchindex.js").read_text()
    for word in ("dask", "fsdp", "nanogpt", "rope", "vllm"):
        assert re.search(rf'[{{,]"?{word}"?:', index), word


def test_pages_are_written_as_the_site_reads_them() -> None:
    for page in PAGES:
        text = (DOCS / page).read_text()
        assert not re.search(r"\]\[fastpe|^!!! |^\?\?\? |^=== \"|^::: |\{ *:?[.#]\w+ *\}", text, re.M), page


def test_links_that_lead_nowhere_fail(tmp_path: Path) -> None:
    """On a site of three pages with the settings of ours."""
    need_sphinx()
    docs = tmp_path / "docs"
    shutil.copytree(DOCS / "static", docs / "static")
    shutil.copy(DOCS / "conf.py", docs)
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "README.rst", tmp_path / "examples")
    listed = "```{toctree}\ngallery/index\nverbs\n```\n"
    links = "[a](nowhere.md) [b](verbs.md#nowhere) ![c](pictures/none.png) [d](#fastpe.none)"
    (docs / "index.md").write_text(f"# Start\n\n{links}\n\n{listed}")
    (docs / "more.md").write_text("# In no list\n\n```{eval-rst}\n.. autofunction:: fastpe.none\n```\n")
    docstring = "F.\n\n    Parameters\n    ----------\n    y\n        No argument.\n    "
    (tmp_path / "wrong.py").write_text(f'def f(x):\n    """{docstring}"""\n')
    (docs / "verbs.md").write_text("# Verbs\n\n```{eval-rst}\n.. autofunction:: wrong.f\n```\n")
    with pytest.raises(AssertionError) as failed:
        build(tmp_path)
    said = str(failed.value)
    warnings = ("'nowhere.md'", "'nowhere'", "pictures/none.png", "'fastpe.none'", "in any toctree", "import 'none'", "PR02")
    assert all(warning in said for warning in warnings), said


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, queue.Queue[Any]]]:
    """Serve a folder on this machine: its address, and what its pages send back, as JSON."""
    sent: queue.Queue[Any] = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", sent
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def browsing(address: str, profile: Path) -> Iterator[None]:
    """Chromium without a window, open at an address. A page that it dumps by itself may not have looked yet: ours says when it has."""
    apart = ("--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--disable-dev-shm-usage", "--no-first-run")
    command = [str(CHROMIUM), *apart, "--remote-debugging-port=0", f"--user-data-dir={profile}", address]
    with (profile.parent / "browser.txt").open("w") as said, subprocess.Popen(command, stdout=said, stderr=said) as browser:
        try:
            yield
        finally:
            browser.terminate()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed, in which the site would be opened")
def test_pages_open_with_their_pictures_and_ask_no_other_host(site: Path, tmp_path: Path) -> None:
    (site / "look.html").write_text(LOOK.replace("PAGES", json.dumps(OPENED)))
    with served(site) as (address, sent), browsing(f"{address}look.html", tmp_path / "profile"):
        found = sent.get(timeout=240)
    for page, seen in zip(OPENED, found, strict=True):
        assert "fastpe" in seen["title"], page
        assert seen["pictures"], page
        assert all(width > 0 for _, width in seen["pictures"]), (page, seen["pictures"])
        assert seen["requested"], page
        assert all(name.startswith((address, "blob:", "data:")) for name in seen["requested"]), (page, seen["requested"])
