"""A pytest plugin that aims timm's own model tests at the models of qzoo.

timm's tests select by ``timm.list_models`` when they are imported, and some name models of timm.
Here the selection returns ours, and tests of other models are left out. ``QZOO_MODELS`` narrows it
to some names, separated by commas.
"""

import os
from collections.abc import Sequence
from typing import Any

import pytest
import timm

from qzoo.architectures import ARCHITECTURES, DIQNNS

# A DIQNN is one layer deep: nothing intermediate can be taken out of it, and without a convolution
# it has one parameter, which timm's test of parameter groups does not know.
_OF_DEEPER = ("intermediate", "test_model_forward_features")
_OF_SEVERAL_PARAMETERS = "test_model_default_cfgs"

# their tests take a minute and more for each: what they are is shown on the meta device
TOO_DEEP = ("qresnet152", "qresnet1202")
WANTED = os.environ.get("QZOO_MODELS", "")
MODELS = WANTED.split(",") if WANTED else [name for name in ARCHITECTURES if name not in TOO_DEEP]


def list_ours(
    filter: str | Sequence[str] = "",  # noqa: A002 - timm's name
    *arguments: Any,
    pretrained: bool = False,
    **keywords: Any,
) -> list[str]:
    """Our models, where timm selects among all; none where it selects by name or by weights."""
    del arguments, keywords
    if filter or pretrained:
        return []
    return MODELS


def _is_for(model: str, test: str) -> bool:
    """Whether a test of timm's is about something that the model has."""
    if model not in DIQNNS:
        return True
    if any(part in test for part in _OF_DEEPER):
        return False
    return "convolution" in DIQNNS[model] or _OF_SEVERAL_PARAMETERS not in test


def pytest_configure() -> None:
    """Before the tests are imported; and only where this is a plugin."""
    timm.list_models = list_ours
    timm.list_pretrained = lambda *_: []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of timm's own models, and those with no model."""
    ours, others = [], []
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("model_name")
        (ours if name in MODELS and _is_for(name, item.name) else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = ours
