"""The networks, one family per file; importing a file registers its models with timm."""

from qzoo.models.cifar_qresnet import CifarQResNet as CifarQResNet

__all__ = ["CifarQResNet"]
