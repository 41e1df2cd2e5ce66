"""How quadratic networks are trained: ReLinear, and the normalised margin."""

from qcore.strategies.margin import normalized_margin as normalized_margin
from qcore.strategies.relinear import ReLinear as ReLinear

__all__ = ["ReLinear", "normalized_margin"]
