"""Spectra of forms, spike-triggered averages, and the similarity of both."""

import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from qcore import LowRankForm, QuadraticForm, QuadraticLinear
from qcore.analysis import (
    SpikeTriggeredAverage,
    eigenvector_similarity,
    spectrum,
    spike_triggered_average,
)

DOUBLE = torch.float64

HEADS = {
    "dense": lambda: QuadraticForm(6, 4, dtype=DOUBLE),
    "dense-affine": lambda: QuadraticForm(6, 4, affine=True, dtype=DOUBLE),
    "rank1": lambda: LowRankForm(6, 4, rank=1, dtype=DOUBLE),
    "rank3-signed": lambda: LowRankForm(6, 4, rank=3, signed=True, dtype=DOUBLE),
    "float32": lambda: QuadraticForm(6, 4),
}


@pytest.mark.parametrize("build", HEADS.values(), ids=HEADS)
def test_the_spectrum_adds_up_to_the_form(build):
    head = build()
    found = spectrum(head)
    built = torch.einsum("ki,kin,kim->knm", found.values, found.vectors, found.vectors)
    torch.testing.assert_close(built, head.matrix.detach().double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("build", HEADS.values(), ids=HEADS)
def test_eigenvectors_are_orthonormal_rows_that_the_form_stretches(build):
    head = build()
    found = spectrum(head)
    n = head.size
    identity = torch.eye(n, dtype=DOUBLE).expand(4, n, n)
    torch.testing.assert_close(found.vectors @ found.vectors.mT, identity)
    stretched = found.vectors @ head.matrix.detach().double()
    expected = found.values.unsqueeze(-1) * found.vectors
    torch.testing.assert_close(stretched, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("build", HEADS.values(), ids=HEADS)
def test_eigenvalues_are_sorted_by_magnitude_and_their_largest_entry_is_positive(build):
    found = spectrum(build())
    magnitudes = found.values.abs()
    assert (magnitudes[:, :-1] >= magnitudes[:, 1:]).all()
    largest = found.vectors.gather(-1, found.vectors.abs().argmax(-1, keepdim=True))
    assert (largest > 0).all()


def test_a_rank_one_form_has_its_factor_as_leading_eigenvector():
    head = LowRankForm(5, 3, rank=1, dtype=DOUBLE)
    found = spectrum(head)
    factors = head.factors.detach().squeeze(1)
    torch.testing.assert_close(found.values[:, 0], factors.square().sum(1))
    assert found.values[:, 1:].abs().max() < 1e-14
    overlap = (found.vectors[:, 0] * factors).sum(1).abs() / factors.norm(dim=1)
    torch.testing.assert_close(overlap, torch.ones(3, dtype=DOUBLE))


def test_a_module_without_a_form_is_refused():
    text = (
        "head is a QuadraticLinear, but a spectrum needs a QuadraticForm or LowRankForm; "
        'the form of a bilinear layer is layer["q"]'
    )
    layer = QuadraticLinear(4, 2, neuron="bilinear")
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        spectrum(layer)
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        eigenvector_similarity(layer, SpikeTriggeredAverage(torch.ones(2, 4), torch.ones(2)))
    assert spectrum(layer["q"]).values.shape == (2, 4)


# --- the spike-triggered average ---


def test_the_average_is_that_of_the_inputs_predicted_as_each_class():
    model = LowRankForm(4, 3, rank=2)
    x = torch.randn(200, 4)
    average = spike_triggered_average(model, x.split(32))
    predicted = model(x).argmax(1)
    for k in range(3):
        chosen = x[predicted == k]
        torch.testing.assert_close(average.mean[k], chosen.double().mean(0))
        assert average.count[k] == len(chosen) > 0


def test_the_split_into_batches_does_not_matter():
    model = LowRankForm(4, 3, rank=2)
    x = torch.randn(100, 4)
    whole = spike_triggered_average(model, [x])
    for size in (1, 7, 99):
        parts = spike_triggered_average(model, x.split(size))
        torch.testing.assert_close(parts.mean, whole.mean, rtol=0, atol=1e-14)
        assert torch.equal(parts.count, whole.count)


def test_loaders_with_labels_and_images_work():
    x, y = torch.randn(20, 1, 4, 4), torch.randint(3, (20,))
    model = nn.Sequential(nn.Flatten(), LowRankForm(16, 3, rank=1))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    average = spike_triggered_average(model, loader)
    assert average.mean.shape == (3, 1, 4, 4)
    assert average.count.sum() == 20
    assert torch.equal(average.mean, spike_triggered_average(model, [x]).mean)


def test_a_class_never_predicted_has_no_average():
    x = torch.tensor([[1.0, 0.0, -1.0], [3.0, 0.0, -1.0]])
    average = spike_triggered_average(nn.Identity(), [x])
    assert average.count.tolist() == [2, 0, 0]
    assert average.mean[0].tolist() == [2.0, 0.0, -1.0]
    assert average.mean[1:].isnan().all()


def test_the_model_runs_in_eval_mode_and_keeps_its_modes():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    model[2].eval()
    modes = [module.training for module in model.modules()]
    before = model[1].running_mean.clone()
    x = torch.randn(50, 4)
    first, second = (spike_triggered_average(model, [x]) for _ in range(2))
    assert torch.equal(first.count, second.count)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model[1].running_mean, before)


@pytest.mark.parametrize("loader", [[], [torch.empty(0, 2)]], ids=["no batch", "empty batch"])
def test_a_loader_without_samples_is_refused(loader):
    text = "loader has no samples: give at least one batch of inputs"
    with pytest.raises(ValueError, match=f"^{text}$"):
        spike_triggered_average(nn.Identity(), loader)


def test_outputs_that_are_no_rows_of_classes_are_refused():
    text = "the model's output has shape (5, 2, 3), but a batch of 5 inputs needs (5, classes)"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        spike_triggered_average(nn.Identity(), [torch.zeros(5, 2, 3)])


# --- both together ---


def test_a_form_trained_on_its_class_resembles_that_class():
    # each class is a line through the origin: the form that answers to it has it as eigenvector
    directions = torch.linalg.qr(torch.randn(8, 3, dtype=DOUBLE)).Q.T  # (classes, n)
    y = torch.arange(300) % 3
    x = 2 * directions[y] + 0.1 * torch.randn(300, 8, dtype=DOUBLE)
    head = LowRankForm(8, 3, rank=1, dtype=DOUBLE)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(x), y).backward()
        optimizer.step()
    similarity = eigenvector_similarity(head, spike_triggered_average(head, [x]))
    assert similarity.diagonal().min() > 0.8
    assert torch.equal(similarity.argmax(1), torch.arange(3))


def test_similarity_is_the_cosine_written_out():
    head = QuadraticForm(5, 2, affine=True)
    average = SpikeTriggeredAverage(torch.randn(3, 5), torch.ones(3))
    similarity = eigenvector_similarity(head, average)
    assert similarity.shape == (2, 3)
    for k in range(2):
        eigenvector = spectrum(head).vectors[k, 0, :5]
        for j in range(3):
            mean = average.mean[j].double()
            expected = abs(eigenvector @ mean) / eigenvector.norm() / mean.norm()
            torch.testing.assert_close(similarity[k, j], expected)


def test_similarity_to_a_class_never_predicted_is_nan():
    mean = torch.tensor([[1.0, 0.0], [torch.nan, torch.nan]])
    average = SpikeTriggeredAverage(mean, torch.tensor([3, 0]))
    similarity = eigenvector_similarity(QuadraticForm(2, 2), average)
    assert similarity[:, 0].isfinite().all()
    assert similarity[:, 1].isnan().all()


def test_averages_of_another_size_are_refused():
    text = (
        "average has inputs of 3 numbers, but the head takes in_features=4; "
        "average over the inputs of the head itself"
    )
    average = SpikeTriggeredAverage(torch.ones(2, 3), torch.ones(2))
    with pytest.raises(ValueError, match=f"^{text}$"):
        eigenvector_similarity(LowRankForm(4, 2, rank=1), average)


def test_importing_qcore_does_not_load_the_analysis():
    code = (
        "import sys, qcore; assert 'qcore.analysis' not in sys.modules; "
        "from qcore import analysis; print(analysis.spectrum.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "spectrum\n", done.stderr
