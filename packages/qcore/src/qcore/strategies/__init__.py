"""How quadratic networks are trained: ReLinear, ReZero, and the normalised margin."""

from qcore.strategies.margin import MarginMeter as MarginMeter
from qcore.strategies.margin import MarginRegularizedLoss as MarginRegularizedLoss
from qcore.strategies.margin import normalized_margin as normalized_margin
from qcore.strategies.relinear import ReLinear as ReLinear
from qcore.strategies.rezero import ReZero as ReZero
from qcore.strategies.schedule import CosineSchedule as CosineSchedule
from qcore.strategies.schedule import LinearSchedule as LinearSchedule
from qcore.strategies.schedule import StepSchedule as StepSchedule

__all__ = [
    "CosineSchedule",
    "LinearSchedule",
    "MarginMeter",
    "MarginRegularizedLoss",
    "ReLinear",
    "ReZero",
    "StepSchedule",
    "normalized_margin",
]
