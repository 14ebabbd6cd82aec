"""Q-values on a fixed grid (2509.08660, Section 5.2).

    round(q) = step * clip(nearest integer of q / step, -K, K),    K = floor(range / step)

"We round the outputs of our neural networks onto a fixed grid": its points are the multiples of
`step`, the same for every run, state and action, so that two runs whose values differ by less than
a cell may agree. A value half-way between two points goes to the even multiple, so that halves are
rounded up as often as down. Rounding what is on the grid changes nothing.

What the paper leaves open is where the rounding sits in the gradient (`gradient` below) and the
step. Acting, and the values in the targets, are rounded either way:

    straight_through   loss (round(Q(s, a)) - G)^2 with gradient 2 (round(Q(s, a)) - G) dQ(s, a)
    targets_only       loss (Q(s, a) - G)^2

The straight-through gradient is the identity beyond the range too: an output that left it is
pulled back by its target, where the gradient of the clip would be 0 and leave it there for ever.

The trap: a coarse grid makes actions *tie*, and a tie goes to the lowest action, in every run. Runs
whose values round to one cell agree perfectly, and have learnt nothing that shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from reprise.rl.config import Quantization


@dataclass(frozen=True)
class Quantizer:
    """Rounds Q-values to the grid; without a step it is the identity.

    Args:
        settings: step, range and gradient.
    """

    settings: Quantization

    @property
    def largest(self) -> int:
        """K, the number of grid points on either side of 0."""
        assert self.settings.step is not None
        # 0.3 / 0.1 is a rounding error below 3.
        return math.floor(self.settings.range / self.settings.step * (1 + 1e-12))

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """What acts and what targets use, of the shape of `values`; no gradient. NaN stays NaN."""
        step = self.settings.step
        if step is None:
            return values
        nearest = torch.round(values / step)  # half to even
        return nearest.clamp(-self.largest, self.largest) * step

    def learned(self, values: torch.Tensor) -> torch.Tensor:
        """What the loss sees, with its gradient."""
        if self.settings.step is None or self.settings.gradient == "targets_only":
            return values
        rounded: torch.Tensor = _StraightThrough.apply(values, self)
        return rounded

    def saturated(self, values: torch.Tensor) -> torch.Tensor:
        """Share of `values` beyond the grid: more than a little, and the range is too small.

        0 of no values: of a minibatch a process may have none, and it weighs its share by that.
        """
        if self.settings.step is None or not values.numel():
            return torch.zeros((), device=values.device)
        return (values.abs() > self.settings.range).float().mean()


class _StraightThrough(torch.autograd.Function):
    """Rounds forward, is the identity backward."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
        return quantizer(values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None
