"""Running a model for its outputs alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is back in the mode it was in."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in was_training:
            module.training = True


def example_parameter(model: nn.Module) -> Tensor:
    """A tensor of the model that tells its device and number type; an empty one if it has none."""
    return next(model.parameters(), torch.empty(0))
