"""Decision regions: the grid, the plane, and XOR."""

import re

import pytest
import torch
from torch import nn

from qcore import LowRankForm
from qcore.analysis import decision_regions


def test_every_point_gets_its_own_class():
    model = LowRankForm(2, 3, rank=2)
    regions = decision_regions(model, (-2.0, 1.0, 0.0, 3.0), resolution=7)
    assert regions.x.tolist() == [-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0]
    assert regions.y.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    for i, y in enumerate(regions.y):
        for j, x in enumerate(regions.x):
            outputs = model(torch.stack([x, y]))
            torch.testing.assert_close(regions.outputs[i, j], outputs.detach())
            assert regions.classes[i, j] == outputs.argmax()


def test_xor_is_solved_by_the_diagonals():
    # ⟨(1, 1), x⟩² against ⟨(1, -1), x⟩²: equal signs against different signs
    model = LowRankForm(2, 2, rank=1, dtype=torch.float64)
    with torch.no_grad():
        model.factors.copy_(torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]]))
    regions = decision_regions(model, (-2.0, 2.0, -2.0, 2.0), resolution=40)
    x, y = torch.meshgrid(regions.x, regions.y, indexing="xy")
    assert torch.equal(regions.classes, (x * y < 0).long())
    assert regions.outputs.dtype == torch.float64


def test_a_plane_in_a_larger_space():
    model = LowRankForm(6, 3, rank=2)
    origin, u, v = torch.randn(3, 6)
    regions = decision_regions(model, (-1.0, 1.0, -1.0, 1.0), 5, plane=(origin, u, v))
    expected = model(origin + regions.x[3] * u + regions.y[1] * v)
    torch.testing.assert_close(regions.outputs[1, 3], expected.detach())


def test_a_plane_of_images():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    origin, u, v = torch.randn(3, 1, 4, 4)
    regions = decision_regions(model, (0.0, 1.0, 0.0, 1.0), 2, plane=(origin, u, v))
    expected = model((origin + u + v).unsqueeze(0))[0]
    torch.testing.assert_close(regions.outputs[1, 1], expected.detach())


def test_more_points_than_a_batch_change_nothing_and_the_mode_is_kept():
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
    regions = decision_regions(model, (0.0, 1.0, 0.0, 1.0), resolution=101)
    assert regions.classes.shape == (101, 101)
    assert regions.outputs.shape == (101, 101, 3)
    last = model[0](torch.ones(2)).detach()
    torch.testing.assert_close(regions.outputs[-1, -1], last)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ((1.0, 1.0, 0.0, 1.0),),
            "extent=(1.0, 1.0, 0.0, 1.0) is not allowed: give left, right, bottom, top with "
            "left < right and bottom < top",
        ),
        (
            ((0.0, 1.0, 2.0, 1.0),),
            "extent=(0.0, 1.0, 2.0, 1.0) is not allowed: give left, right, bottom, top with "
            "left < right and bottom < top",
        ),
        (
            ((0.0, 1.0, 0.0, 1.0), 1),
            "resolution=1 is not allowed: give 2 points or more per axis",
        ),
    ],
)
def test_bad_grids_are_refused(arguments, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        decision_regions(LowRankForm(2, 2, rank=1), *arguments)


def test_outputs_that_are_no_rows_of_classes_are_refused():
    text = "the model's output has shape (8,), but 4 points need (4, classes)"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        decision_regions(nn.Flatten(0), (0.0, 1.0, 0.0, 1.0), 2)
