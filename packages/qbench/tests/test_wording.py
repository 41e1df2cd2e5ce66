"""Numbers in words."""

import pytest

from qbench.metrics import Metric
from qbench.report.wording import format_number, format_p


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [
        (97.249, "test_accuracy", "97.2"),
        (-0.04, "test_accuracy", "0.0"),
        (-13.33, "test_accuracy", "−13.3"),
        (0.29286, "train_loss", "0.2929"),
        (154346196.8, "train_loss", "1.54e+08"),
        (None, "train_loss", "–"),
    ],
)
def test_numbers(value: float | None, metric: Metric, text: str) -> None:
    assert format_number(value, metric) == text


@pytest.mark.parametrize(
    ("p_value", "text"), [(0.00099, "<0.001"), (0.001, "0.001"), (1.0, "1.000"), (None, "")]
)
def test_p_values(p_value: float | None, text: str) -> None:
    assert format_p(p_value) == text
