"""
Train a QResNet with ReLinear
=============================

A quadratic network that learns all its parameters at one rate is fragile: products and squares grow with depth.
ReLinear starts it as the linear network inside and lets the quadratic part learn at a rate of its own. Here is
what γ does to a QResNet on scikit-learn's digits.
"""

import matplotlib.pyplot as plt
import timm
import torch
from sklearn.datasets import load_digits
from torch import nn

import qcore
import qzoo  # registers the networks with timm  # noqa: F401

images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
labels = torch.tensor(labels)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
train, held_out = order[:1200], order[1200:]

# %%
# A network of the zoo, small enough for a laptop: one block per stage. Every argument of ``CifarQResNet`` is a
# keyword of ``timm.create_model``.


def new_network() -> nn.Module:
    """The same initial weights each time."""
    torch.manual_seed(0)
    return timm.create_model("qresnet20", in_chans=1, depths=(1, 1), widths=(8, 16))


network = new_network()
quadratic, linear = [], []
for name, parameter in network.named_parameters():
    (quadratic if ".g." in name or ".b." in name else linear).append(parameter)
print(f"{sum(p.numel() for p in linear)} linear parameters")
print(f"{sum(p.numel() for p in quadratic)} quadratic ones")
print("at the start the quadratic ones are all zero:", not any(p.any() for p in quadratic))

# %%
# γ = 0 is the linear network, γ = 1 is free. Between them the quadratic part learns at the fraction γ of the rate.


def losses(gamma: float, epochs: int = 6) -> list[float]:
    """The training loss of each step."""
    model = new_network()
    strategy = qcore.ReLinear(gamma=gamma)
    groups = strategy.param_groups(model, lr=0.1, weight_decay=1e-4)
    optimizer = strategy.attach(torch.optim.SGD(groups, momentum=0.9))
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train), generator=generator)].split(100):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(float(loss))
    return found


figure, axes = plt.subplots(figsize=(6.4, 3.4))
for gamma in (0.0, 1e-3, 1e-1, 1.0):
    axes.plot(losses(gamma), label=f"γ = {gamma:g}")
axes.set(xlabel="step", ylabel="training loss", yscale="log")
axes.legend()

# %%
# The published recipes for CIFAR-10, over depths and seeds, are the table ``relinear``; from linear to free, factor by
# factor, is ``gamma``; how often networks diverge, by depth and strategy, is ``collapse``. Each is one command, such as
# ``qbench run collapse --quick``.
