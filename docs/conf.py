"""The documentation's site: `make docs` builds it into site/, from docs/ and the docstrings, without asking the network for anything."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.ext.autodoc.mock import _MockObject
from sphinx_gallery.utils import scale_image

import fastpe

project, author, copyright = "fastpe", "the authors of fastpe", "the authors of fastpe"
release = version = fastpe.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["sg_execution_times.rst", "static"]
nitpicky = True
suppress_warnings = ["config.cache"]  # functions among the gallery's settings
highlight_language = "text"
maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

# ---- pages -------------------------------------------------------------------------------------------------------------------

myst_enable_extensions = ["alert", "dollarmath"]
myst_heading_anchors = 4
myst_dmath_allow_labels = False
myst_dmath_double_inline = False

# ---- the reference -----------------------------------------------------------------------------------------------------------

autodoc_mock_imports = ["keras", "torch"]  # the same text with them and without
_MockObject.apply = None  # what subclasses of torch.autograd.Function inherit
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autoclass_content = "class"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
numpydoc_validation_checks = {"GL06", "GL07", "PR02"}  # unknown sections, their order, and parameters that are not there

# Names of other projects that pages may link to. Their own inventories would have to be fetched at each build.
ELSEWHERE = {
    "numpy": (
        "https://numpy.org/doc/stable/",
        {
            "numpy.ndarray": ("py:class", "reference/generated/numpy.ndarray.html"),
            "numpy.memmap": ("py:class", "reference/generated/numpy.memmap.html"),
        },
    ),
    "cupy": (
        "https://docs.cupy.dev/en/stable/",
        {"cupy.ndarray": ("py:class", "reference/generated/cupy.ndarray.html")},
    ),
    "torch": (
        "https://docs.pytorch.org/docs/stable/",
        {
            "torch.Tensor": ("py:class", "tensors.html#torch.Tensor"),
            "torch.compile": ("py:function", "generated/torch.compile.html"),
            "torch.export.export": ("py:function", "export.html#torch.export.export"),
            "torch.nn.Embedding": ("py:class", "generated/torch.nn.Embedding.html"),
        },
    ),
    "jax": ("https://docs.jax.dev/en/latest/", {"jax.Array": ("py:class", "_autosummary/jax.Array.html")}),
}


def write_inventory(folder: Path, name: str, names: dict[str, tuple[str, str]]) -> str:
    """Write the names of a project as Sphinx reads them."""
    lines = [f"{full} {kind} 1 {address} -\n" for full, (kind, address) in sorted(names.items())]
    head = f"# Sphinx inventory version 2\n# Project: {name}\n# Version: \n# The remainder of this file is compressed using zlib.\n"
    path = folder / f"{name}.inv"
    path.write_bytes(head.encode() + zlib.compress("".join(lines).encode()))
    return str(path)


def map_elsewhere(app: Any, config: Any) -> None:
    folder = Path(app.doctreedir)
    folder.mkdir(parents=True, exist_ok=True)
    config.intersphinx_mapping = {
        name: (address, write_inventory(folder, name, names)) for name, (address, names) in ELSEWHERE.items()
    }


def join_sentences(app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """What a function returns is often told in sentences, of which numpydoc takes each line for a type: make them one line."""
    text = "\n".join(lines)
    section = re.search(r"^Returns\n-+\n((?:.+\n?)+)", text, re.M)
    if section and "\n    " not in section[1] and not re.match(r"\w+ : ", section[1]):
        joined = section[1].strip().replace("\n", " ") + "\n"
        lines[:] = (text[: section.start(1)] + joined + text[section.end(1) :]).splitlines()


# ---- formulas: MathML, which browsers lay out themselves ------------------------------------------------------------------------


def write_math(writer: Any, node: nodes.math | nodes.math_block) -> None:
    block = isinstance(node, nodes.math_block)
    mathml = tex2mathml(node.astext(), as_block=block)
    writer.body.append(f'<div class="formula">{mathml}</div>' if block else mathml)
    raise nodes.SkipNode


# ---- the gallery: examples as they are, with the pictures that `make gallery` draws ------------------------------------------------

PICTURES = Path(__file__).parent / "pictures" / "gallery"
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "plot_gallery": False,  # they need packages and minutes that this build may lack
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "reset_modules": (),
    "copyfile_regex": r".*\.rst",
}


def add_picture(app: Any, page: str, source: list[str]) -> None:
    """Put the picture of an example under its introduction."""
    name = page.removeprefix("gallery/")
    if page.startswith("gallery/") and (PICTURES / f"{name}.png").exists():
        picture = f".. image:: /pictures/gallery/{name}.png\n   :alt: What the example draws\n\n"
        source[0] = source[0].replace(
            ".. GENERATED FROM PYTHON SOURCE LINES", picture + ".. GENERATED FROM PYTHON SOURCE LINES", 1
        )


def add_thumbnails(app: Any) -> None:
    """The same pictures, small, for the gallery's own page."""
    for picture in PICTURES.glob("*.png"):
        thumbnail = Path(app.srcdir, "gallery", "images", "thumb", f"sphx_glr_{picture.stem}_thumb.png")
        if thumbnail.exists():
            scale_image(str(picture), str(thumbnail), 400, 280)


# ---- the look ------------------------------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = "fastpe"
html_static_path = ["static"]
html_css_files = ["extra.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_show_sphinx = False
html_math_renderer = "mathml"
pygments_style, pygments_dark_style = "friendly", "github-dark"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    app.connect("config-inited", map_elsewhere, priority=100)
    app.connect("builder-inited", add_thumbnails, priority=900)
    app.connect("source-read", add_picture)
    app.connect("autodoc-process-docstring", join_sentences, priority=400)
