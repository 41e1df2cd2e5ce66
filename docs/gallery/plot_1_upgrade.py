"""
Upgrade a trained network
=========================

You have a trained network and want to know whether quadratic neurons would do better. ``quadratize``
replaces its layers by quadratic ones that *start as the very same function*: your weights become the linear
part, and the quadratic part is zero. Nothing is lost before the first step of fine-tuning.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import qcore

images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
labels = torch.tensor(labels)
train, test = train_test_split(torch.arange(len(labels)), test_size=0.3, random_state=0)

# %%
# A small convolutional network, trained as usual.

torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(8, 16, 3, padding=1),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(16, 10),
)


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    """Cross entropy in batches of 64."""
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(64):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def accuracy(model: nn.Module) -> float:
    """Of the test images, in percent."""
    with torch.no_grad():
        return 100 * float((model(images[test]).argmax(1) == labels[test]).float().mean())


fit(network, torch.optim.AdamW(network.parameters(), lr=5e-3), epochs=10)
print(f"trained, linear neurons: {accuracy(network):.1f} %")

# %%
# Now the convolutions and the linear layer become quadratic. The report says which layers were taken and which stayed, and why.

before = network(images[test]).detach()
upgraded = qcore.quadratize(network)
print(qcore.surgery_report(upgraded))

# %%
# The outputs are what they were: the network is at its *linear reference*.

difference = (upgraded(images[test]) - before).abs().max()
print(f"largest difference of an output: {float(difference):.1e}")

# %%
# Fine-tune with ReLinear. It is a training strategy, not an activation: the quadratic parameters learn at the
# fraction γ of the rate of the others, so that they leave the reference slowly.

torch.manual_seed(0)
strategy = qcore.ReLinear(gamma=0.1)
groups = strategy.param_groups(upgraded, lr=2e-3, weight_decay=1e-2)
optimizer = strategy.attach(torch.optim.AdamW(groups))
fit(upgraded, optimizer, epochs=10)
print(f"fine-tuned, quadratic neurons: {accuracy(upgraded):.1f} %")

# %%
# How much of that is the quadratic part's? ``linearize`` takes it away again. An honest comparison also trains a linear
# network as long, over several seeds: one seed on 540 test images decides nothing (one image is 0.2 points).
# ``qbench run upgrade`` makes it, with intervals and a test.

linear = qcore.linearize(upgraded)  # your own modules again, with the linear part as trained
print(f"linear part of the fine-tuned network alone: {accuracy(linear):.1f} %")
