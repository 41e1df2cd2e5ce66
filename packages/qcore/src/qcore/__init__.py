"""Quadratic neurons for PyTorch: layers, quadratic forms and training strategies.

In torch, ``q`` often stands for *quantised*; here it stands for *quadratic*.
"""

from qcore.convolutions import PatchForm as PatchForm
from qcore.convolutions import QuadraticConv1d as QuadraticConv1d
from qcore.convolutions import QuadraticConv2d as QuadraticConv2d
from qcore.convolutions import QuadraticConv3d as QuadraticConv3d
from qcore.convolutions import QuadraticConvTranspose1d as QuadraticConvTranspose1d
from qcore.convolutions import QuadraticConvTranspose2d as QuadraticConvTranspose2d
from qcore.convolutions import QuadraticConvTranspose3d as QuadraticConvTranspose3d
from qcore.forms import LowRankForm as LowRankForm
from qcore.forms import QuadraticForm as QuadraticForm
from qcore.kernels import backend as backend
from qcore.layers import Constant as Constant
from qcore.layers import Quadratic as Quadratic
from qcore.layers import QuadraticLinear as QuadraticLinear
from qcore.neurons import CATALOGUE as CATALOGUE
from qcore.neurons import Branch as Branch
from qcore.neurons import Cost as Cost
from qcore.neurons import Neuron as Neuron
from qcore.neurons import get_neuron as get_neuron
from qcore.strategies import CosineSchedule as CosineSchedule
from qcore.strategies import LinearSchedule as LinearSchedule
from qcore.strategies import MarginMeter as MarginMeter
from qcore.strategies import MarginRegularizedLoss as MarginRegularizedLoss
from qcore.strategies import ReLinear as ReLinear
from qcore.strategies import ReZero as ReZero
from qcore.strategies import StepSchedule as StepSchedule
from qcore.strategies import normalized_margin as normalized_margin
from qcore.surgery import SurgeryReport as SurgeryReport
from qcore.surgery import fold_batchnorm as fold_batchnorm
from qcore.surgery import linearize as linearize
from qcore.surgery import quadratize as quadratize
from qcore.surgery import replace_head as replace_head
from qcore.surgery import surgery_report as surgery_report
from qcore.surgery import truncate_head as truncate_head

__all__ = [
    "CATALOGUE",
    "Branch",
    "Constant",
    "CosineSchedule",
    "Cost",
    "LinearSchedule",
    "LowRankForm",
    "MarginMeter",
    "MarginRegularizedLoss",
    "Neuron",
    "PatchForm",
    "Quadratic",
    "QuadraticConv1d",
    "QuadraticConv2d",
    "QuadraticConv3d",
    "QuadraticConvTranspose1d",
    "QuadraticConvTranspose2d",
    "QuadraticConvTranspose3d",
    "QuadraticForm",
    "QuadraticLinear",
    "ReLinear",
    "ReZero",
    "StepSchedule",
    "SurgeryReport",
    "backend",
    "fold_batchnorm",
    "get_neuron",
    "linearize",
    "normalized_margin",
    "quadratize",
    "replace_head",
    "surgery_report",
    "truncate_head",
]
