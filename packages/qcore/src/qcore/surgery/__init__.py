"""Surgery on what people already have: quadratic layers, heads and folded batch norms."""

from qcore.surgery.fold import fold_batchnorm as fold_batchnorm
from qcore.surgery.heads import replace_head as replace_head
from qcore.surgery.heads import truncate_head as truncate_head
from qcore.surgery.quadratize import SurgeryReport as SurgeryReport
from qcore.surgery.quadratize import linearize as linearize
from qcore.surgery.quadratize import quadratize as quadratize
from qcore.surgery.quadratize import surgery_report as surgery_report

__all__ = [
    "SurgeryReport",
    "fold_batchnorm",
    "linearize",
    "quadratize",
    "replace_head",
    "surgery_report",
    "truncate_head",
]
