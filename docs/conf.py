"""How the documentation is built: ``uv run nox -s docs``."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "Quadnets"
author = "The Quadnets developers"
copyright = "The Quadnets developers, Apache-2.0"  # noqa: A001 - Sphinx's own name
version = release = version_of("quadnets-core")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery"]
html_theme = "furo"
html_title = "Quadnets"
html_static_path = ["static"]
html_show_sphinx = False

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "tutorials",
    "filename_pattern": "/plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": 3600,
}


def draw(app: Sphinx) -> None:
    """Make the figures that pages show, from data, before pages are read."""
    from figures import FIGURES

    folder = HERE / "static" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in FIGURES.items():
        make().savefig(folder / f"{name}.svg", metadata={"Date": None})
    del app


def setup(app: Sphinx) -> None:
    """Sphinx calls this when it has read the file."""
    app.connect("builder-inited", draw)
