"""ReZero: a residual branch that starts switched off.

Paper: Bachlechner et al., "ReZero is All You Need", arXiv 2003.04887; with ReLinear in the authors'
repository (TrainQuadraticNetworksViaReLinear+ReZero).
"""

import torch
from torch import Tensor, nn


class ReZero(nn.Module):
    r"""A gate, 0 at the start, on any residual branch.

    .. math:: y = \alpha \cdot F(x), \qquad \alpha = 0 \text{ at the start}

    In :math:`x + \alpha F(x)` every residual block thus starts as the identity. In the first step
    the gate alone receives a gradient, the branch from the second step on. To
    :class:`qcore.ReLinear` the gate is a linear parameter: it trains at the full rate.

    Args:
        branch: the residual branch F.
        device, dtype: of the gate, as everywhere in torch.

    Shapes: those of the branch; ``.gate`` is a scalar.

    Cost: one parameter, and one multiplication per output of the branch.

    Source: arXiv 2003.04887, eq. 1.

    >>> branch = ReZero(nn.Linear(4, 4))
    >>> x = torch.randn(5, 4)
    >>> torch.equal(x + branch(x), x)
    True
    """

    def __init__(
        self,
        branch: nn.Module,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.branch = branch
        self.gate = nn.Parameter(torch.empty((), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The gate back to 0; the branch stays as it is."""
        nn.init.zeros_(self.gate)

    def forward(self, x: Tensor) -> Tensor:
        """``gate * branch(x)``."""
        return self.gate * self.branch(x)
