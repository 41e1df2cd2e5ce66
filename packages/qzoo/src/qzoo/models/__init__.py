"""The networks, one family per file; importing a file registers its models with timm."""

from qzoo.models.cifar_qresnet import CifarQResNet as CifarQResNet
from qzoo.models.diqnn import DIQNN as DIQNN

__all__ = ["DIQNN", "CifarQResNet"]
