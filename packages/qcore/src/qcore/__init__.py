"""Quadratic neurons for PyTorch: layers, quadratic forms and training strategies.

In torch, ``q`` often stands for *quantised*; here it stands for *quadratic*.
"""

from qcore.forms import LowRankForm as LowRankForm
from qcore.forms import QuadraticForm as QuadraticForm
from qcore.layers import Constant as Constant
from qcore.layers import PatchForm2d as PatchForm2d
from qcore.layers import Quadratic as Quadratic
from qcore.layers import QuadraticConv2d as QuadraticConv2d
from qcore.layers import QuadraticLinear as QuadraticLinear
from qcore.neurons import CATALOGUE as CATALOGUE
from qcore.neurons import Branch as Branch
from qcore.neurons import Neuron as Neuron
from qcore.neurons import get_neuron as get_neuron
from qcore.strategies import ReLinear as ReLinear
from qcore.strategies import normalized_margin as normalized_margin

__all__ = [
    "CATALOGUE",
    "Branch",
    "Constant",
    "LowRankForm",
    "Neuron",
    "PatchForm2d",
    "Quadratic",
    "QuadraticConv2d",
    "QuadraticForm",
    "QuadraticLinear",
    "ReLinear",
    "get_neuron",
    "normalized_margin",
]
