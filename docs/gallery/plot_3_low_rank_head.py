"""
A low-rank head and its eigenvectors
====================================

DIQNN's classifier gives each class a quadratic form of the input, ``f_k(x) = Σ ⟨c_{k,i}, x⟩²``. Its matrix
``A_k = Σ c_{k,i} c_{k,i}ᵀ`` can be looked at: its eigenvectors are the patterns that the class answers to.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import qcore
from qcore import analysis

images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16, dtype=torch.float32)
labels = torch.tensor(labels)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
train, test = order[:1200], order[1200:]

# %%
# The head alone is a classifier: 64 pixels in, 10 classes out, rank 4.

torch.manual_seed(0)
head = qcore.LowRankForm(64, 10, rank=4, init_scale=0.1)
optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
for _ in range(300):
    loss = nn.functional.cross_entropy(head(images[train]), labels[train])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def accuracy(model: nn.Module) -> float:
    """Of the test images, in percent."""
    with torch.no_grad():
        return 100 * float((model(images[test]).argmax(1) == labels[test]).float().mean())


print(f"rank 4: {accuracy(head):.1f} % of {len(test)} test images")

# %%
# The leading eigenvector of each class, as an image. Its sign is arbitrary: a form is even, f(x) = f(−x).

spectrum = analysis.spectrum(head)
figure, panels = plt.subplots(1, 10, figsize=(8, 1.2), layout="constrained")
for digit, panel in enumerate(panels):
    pattern = spectrum.vectors[digit, 0].detach().view(8, 8)
    pattern = pattern * torch.sign(pattern.sum())
    bound = float(pattern.abs().max())
    panel.imshow(pattern, cmap="RdBu_r", vmin=-bound, vmax=bound)
    panel.set_title(digit, fontsize=9)
    panel.set_axis_off()

# %%
# How many of them are needed? ``truncate_head`` keeps the best approximation of a lower rank.

for rank in (1, 2, 3, 4):
    truncated, energy = qcore.truncate_head(head, rank)
    print(f"{rank} of 4 eigenvectors: {accuracy(truncated):.1f} %")

# %%
# On MNIST and Fashion-MNIST, beside spike-triggered averages and over seeds, this is the table ``spectrum``.
