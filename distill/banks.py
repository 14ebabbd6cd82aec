"""Banks of predictors: what a distilled set is matched on, drawn once or anew in every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from reprise.distill.predictors import (
    Batch,
    Networks,
    bellman_losses,
    draw_networks,
    training_losses,
)

FLOOR = 1e-8  # of a training-set loss, below which a relative error means nothing


@dataclass
class Bank:
    """Predictors with their losses on the training set, computed once.

    Attributes:
        networks: f_j, [G, K].
        scales: lambda_j [G, K].
        on: L_on_j on the training set [G, K]; `end` likewise.
    """

    networks: Networks
    scales: torch.Tensor
    on: torch.Tensor
    end: torch.Tensor

    @classmethod
    def of(cls, networks: Networks, scales: torch.Tensor, full: Batch, gamma: float) -> Bank:
        """With the losses on `full`."""
        return cls(networks, scales, *training_losses(networks, scales, full, gamma))

    def part(self, start: int, stop: int) -> Bank:
        """Predictors start..stop of every group."""
        take = slice(start, stop)
        return Bank(
            self.networks.part(start, stop),
            self.scales[:, take],
            self.on[:, take],
            self.end[:, take],
        )

    def turn(self, step: int, minibatch: int) -> Bank:
        """The minibatch of step `step`: each predictor as often as any other."""
        count = self.scales.shape[1]
        turns = max(1, count // minibatch)
        start = step % turns * minibatch
        return self.part(start, count if step % turns == turns - 1 else start + minibatch)

    def difference(self, batch: Batch, gamma: float) -> torch.Tensor:
        """(L_on - L_on_train, L_end - L_end_train), [2, G, K]: what Algorithm 2 squares."""
        on, end = bellman_losses(self.networks, self.scales, batch, gamma)
        return torch.stack([on - self.on, end - self.end])

    def error(self, batch: Batch, gamma: float) -> torch.Tensor:
        """Relative errors (L_on / L_on_train - 1, L_end / L_end_train - 1), [2, G, K]."""
        on, end = bellman_losses(self.networks, self.scales, batch, gamma)
        return torch.stack([on / self.on.clamp(min=FLOOR) - 1, end / self.end.clamp(min=FLOOR) - 1])


Draw = Callable[[int], tuple[Networks, torch.Tensor]]


def random_networks(
    generator: np.random.Generator, full: Batch, groups: int, actions: int, **shape: object
) -> Draw:
    """Draw K random networks a group and lambda ~ N(0, 1): the paper's predictors."""

    def draw(count: int) -> tuple[Networks, torch.Tensor]:
        networks = draw_networks(
            generator,
            groups,
            count,
            full.states.shape[-1],
            actions,
            **shape,  # type: ignore[arg-type]
        )
        scales = generator.standard_normal((groups, count), dtype=np.float32)
        return networks, torch.as_tensor(scales)

    return draw


def near_iterates(
    generator: np.random.Generator,
    iterates: Networks,
    reward_scale: float,
    spread: tuple[float, float],
    **shape: object,
) -> Draw:
    """Draw f = c (Q_k + sigma g): fitted Q-iterates Q_k of the training set, and around them.

    g is a random network and sigma log-uniform in `spread`; f is one network with the hidden units
    of both. lambda = c * reward_scale, the reward's scale in the iterates' units, c log-uniform in
    [1/2, 2]: "random reward scales", under which Bellman losses only scale.

    Args:
        generator: of all draws.
        iterates: [G, I] networks with one hidden layer.
        reward_scale: reward of the iterates' targets over the reward.
        spread: smallest and largest sigma.
        shape: of g, as for `draw_networks`.
    """
    assert not iterates.hidden
    groups, available, width, _ = iterates.first.shape
    actions = iterates.action.shape[2]
    low, high = np.log(spread[0]), np.log(spread[1])

    def draw(count: int) -> tuple[Networks, torch.Tensor]:
        around = draw_networks(
            generator,
            groups,
            count,
            width,
            actions,
            **shape,  # type: ignore[arg-type]
        )
        chosen = torch.as_tensor(generator.integers(0, available, (groups, count)))
        rows = torch.arange(groups)[:, None]
        sigma = torch.as_tensor(np.exp(generator.uniform(low, high, (groups, count, 1))))
        sigma = sigma.to(around.head.dtype)
        networks = Networks(
            torch.cat([iterates.first[rows, chosen], around.first], 3),
            torch.cat([iterates.action[rows, chosen], around.action], 3),
            [],
            torch.cat([iterates.head[rows, chosen], sigma * around.head], 2),
            iterates.offset[rows, chosen] + sigma[..., 0] * around.offset,
        )
        return networks, torch.full((groups, count), reward_scale, dtype=around.head.dtype)

    return draw
