"""A model zoo of quadratic networks: importing it makes timm know them.

In timm and torch, ``q`` often stands for *quantised*; here it stands for *quadratic*.

>>> import timm, torch
>>> timm.list_models("qresnet*")
['qresnet20']
>>> model = timm.create_model("qresnet20")
>>> model(torch.randn(2, 3, 32, 32)).shape
torch.Size([2, 10])
"""

from qzoo.models import CifarQResNet as CifarQResNet

__all__ = ["CifarQResNet"]
