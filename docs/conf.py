"""How the documentation is built: ``uv run nox -s docs``."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

from qbench.report.drawing import save_figures

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
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery", "generated"]
html_theme = "furo"
html_title = "Quadnets"
html_static_path = ["static"]
html_show_sphinx = False
html_math_renderer = "mathml"

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
    "reset_modules": ("matplotlib", "figures.wear_our_look"),
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
}


def prepare(*_: object) -> None:
    """Make the figures and tables that pages show, from data, before pages are read."""
    from figures import FIGURES, every_report
    from measured import accuracies, catalogue

    save_figures({name: make() for name, make in FIGURES.items()}, HERE / "static" / "figures")
    generated = HERE / "generated"
    generated.mkdir(exist_ok=True)
    of_neurons = [report for report in every_report() if report.table == "neurons"]
    of_neurons.sort(key=lambda report: report.reduced is not None)
    nothing = "*It has not been run in full yet:* `qbench run neurons`.\n"
    (generated / "catalogue.md").write_text(catalogue(), encoding="utf-8")
    text = "\n".join(accuracies(report) for report in of_neurons) or nothing
    (generated / "neurons.md").write_text(text, encoding="utf-8")


def inline_math(page: HTML5Translator, node: nodes.math) -> None:
    """A formula within a line as MathML, which browsers draw without a script from elsewhere."""
    page.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block_math(page: HTML5Translator, node: nodes.math_block) -> None:
    """A formula by itself."""
    page.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Sphinx calls this when it has read the file."""
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("config-inited", prepare)
