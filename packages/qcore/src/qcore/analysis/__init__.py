"""What a quadratic network does, as tensors: spectra, margins, regions, expressivity.

``from qcore import analysis``; ``import qcore`` alone does not load it.
"""

from qcore.analysis.bound import MarginBound as MarginBound
from qcore.analysis.bound import margin_bound as margin_bound
from qcore.analysis.bound import proof_cosine as proof_cosine
from qcore.analysis.dynamics import MarginDynamics as MarginDynamics
from qcore.analysis.dynamics import margin_dynamics as margin_dynamics
from qcore.analysis.homogeneity import homogeneity_degree as homogeneity_degree
from qcore.analysis.regions import DecisionRegions as DecisionRegions
from qcore.analysis.regions import decision_regions as decision_regions
from qcore.analysis.spectrum import Spectrum as Spectrum
from qcore.analysis.spectrum import eigenvector_similarity as eigenvector_similarity
from qcore.analysis.spectrum import spectrum as spectrum
from qcore.analysis.spike_triggered import SpikeTriggeredAverage as SpikeTriggeredAverage
from qcore.analysis.spike_triggered import spike_triggered_average as spike_triggered_average
from qcore.analysis.splines import SplinePieces as SplinePieces
from qcore.analysis.splines import spline_pieces as spline_pieces
from qcore.analysis.variety import FunctionalDimension as FunctionalDimension
from qcore.analysis.variety import functional_dimension as functional_dimension

__all__ = [
    "DecisionRegions",
    "FunctionalDimension",
    "MarginBound",
    "MarginDynamics",
    "Spectrum",
    "SpikeTriggeredAverage",
    "SplinePieces",
    "decision_regions",
    "eigenvector_similarity",
    "functional_dimension",
    "homogeneity_degree",
    "margin_bound",
    "margin_dynamics",
    "proof_cosine",
    "spectrum",
    "spike_triggered_average",
    "spline_pieces",
]
