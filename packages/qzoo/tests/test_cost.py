"""The counted cost of every model is what its network has and does."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import qcore
from qzoo.architectures import ARCHITECTURES
from qzoo.cost import cost


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_those_of_the_network(name):
    model = timm.create_model(name, device="meta", num_classes=7, in_chans=1)
    counted = cost(name, num_classes=7, in_chans=1)
    assert counted.parameters == sum(p.numel() for p in model.parameters())


# one of each kind, and one of each depth that is quickly counted
COUNTED = [
    *("qresnet20", "qresnet32", "qresnet20_compact", "qresnet20_rezero", "qresnet20_rank3"),
    "qresnet20_rms",
    *("qresnet10", "qresnet18", "qresnet10_dense", "cifar_resnet20", "cifar_resnet18_rank4"),
    *("cifar_resnet14", "cifar_resnet20_dense", "cifar_resnet20_w28", "cifar_resnet10_w110"),
]


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("size", [32, 9])
def test_multiply_adds_are_those_of_the_network(name, size):
    model = timm.create_model(name, device="meta").eval()
    products = 0  # of quadratic neurons, which are no matrix products

    def count(layer, _, output):
        nonlocal products
        products += output.numel() * sum(len(term) - 1 for term in layer.terms)

    for module in model.modules():
        if isinstance(module, qcore.Quadratic):
            module.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, size, size, device="meta"))
    counted = counter.get_total_flops() / 2 + products
    if ARCHITECTURES[name].get("head", "linear") == "linear":
        assert cost(name, size=size).multiply_adds == counted
    else:  # squares are no matrix products, and dense forms multiply more than their triangle
        form = cost(name, size=size).multiply_adds - cost(name, size=size, num_classes=0)[1]
        without = cost(name, size=size).multiply_adds - form
        assert without < counted
        assert form == pytest.approx(counted - without, rel=0.3)
