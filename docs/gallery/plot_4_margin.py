r"""
The margin at work
==================

DIQNN explains its head by the *normalised margin*: by how much the true class leads, relative to the norm of the
output,

.. math:: \Delta\mu = \frac{1}{N} \sum_n \frac{\Phi_{y_n} - \max_{j \ne y_n} \Phi_j}{\lVert \Phi \rVert_2}.

Along training it should rise. It can also be rewarded directly, as ``-λ Δμ`` in the loss.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import qcore

images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16, dtype=torch.float32)
labels = torch.tensor(labels)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
train, test = order[:1200], order[1200:]

# %%
# ``MarginRegularizedLoss`` takes any loss as its base; λ = 0 is that loss itself.


def margins(lam: float, steps: int = 200) -> tuple[list[float], float]:
    """The margin over the test images along training, and the accuracy at its end."""
    torch.manual_seed(0)
    head = qcore.LowRankForm(64, 10, rank=2, init_scale=0.1)
    objective = qcore.MarginRegularizedLoss(lam=lam)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.02, momentum=0.9)
    found = []
    for _ in range(steps):
        loss = objective(head(images[train]), labels[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            found.append(float(qcore.normalized_margin(head(images[test]), labels[test])))
    with torch.no_grad():
        right = head(images[test]).argmax(1) == labels[test]
    return found, 100 * float(right.float().mean())


figure, axes = plt.subplots(figsize=(6.4, 3.4))
for lam in (0.0, 0.5, 2.0):
    curve, accuracy = margins(lam)
    axes.plot(curve, label=f"λ = {lam:g}: {accuracy:.1f} %")
axes.set(xlabel="step", ylabel="normalised margin Δμ, test images")
axes.legend()

# %%
# All outputs of a low-rank head are sums of squares, so Δμ is at most 1 there; for any other logits it is at most √2. It is
# never clamped. Whether λ > 0 gets to an accuracy *faster* is a claim of the paper, which ``qbench run margin-loss``
# tests over seeds.
