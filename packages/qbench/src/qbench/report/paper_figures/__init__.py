"""The papers' figures beside the common ones, by the names under which tables ask for them.

Each stands in a file of its name, as a function of its name. This list needs neither matplotlib
nor torch: tables are checked against it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from qbench.report.evidence import Evidence

FIGURES = (
    "along_factor",
    "at_best",
    "counts",
    "eigenvectors",
    "equality",
    "margin_and_accuracy",
    "phase_diagram",
    "rank_curve",
    "retained",
    "steps_to_accuracy",
)
"""Every name that a table's ``figures`` can have."""


def draw(name: str, evidence: "Evidence") -> "Figure | None":
    """The figure of that name; None where the results have nothing that it could show."""
    module = import_module(f"qbench.report.paper_figures.{name}")
    figure: Figure | None = getattr(module, name)(evidence)
    return figure
