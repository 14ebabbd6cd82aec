"""Banks of Q-predictors: many small networks evaluated as one, and their Bellman losses.

A predictor is (f, lambda): f(s, a) a network of the standardized state and the one-hot action, and
lambda a scale of the reward. Its Bellman losses on a set D (2512.00536, Section 4) are two means,

    L_on(f, lambda; D)  = mean over the others      (f(s,a) - lambda r - gamma max_a' f(s',a'))^2
    L_end(f, lambda; D) = mean over the terminated  (f(s,a) - lambda r)^2

matched separately: a terminated transition has no next state, and in a sum of both few terminal
transitions would drown. Shapes: G groups (seeds) with K predictors each, N points, d numbers in a
state, A actions, H units:

    states [G, N, d], or [N, d] shared by all groups      values [G, K, N, A]

The trap: a loop over predictors costs K times the overhead of a network of this size. Here all are
one batched matrix product, and since a one-hot action only adds a row to the first layer's product,
max_a' costs no second one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rollout.types import Transitions

CHUNK = 4_000_000  # activations held at a time where no gradient is wanted


@dataclass(frozen=True)
class Batch:
    """Transitions as tensors of G sets of N points (or one set without G), states standardized.

    Attributes:
        states: [G, N, d]; also `following`, s'.
        actions: int64 [G, N].
        rewards: [G, N].
        terminated: bool [N], the same rows in every group, so that both means stay rectangular.
            Where no Bellman loss is taken, also [G, N].
    """

    states: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    following: torch.Tensor
    terminated: torch.Tensor

    def rows(self, chosen: torch.Tensor) -> Batch:
        """The points at `chosen` (indices or a mask over N)."""
        return Batch(
            self.states[..., chosen, :],
            self.actions[..., chosen],
            self.rewards[..., chosen],
            self.following[..., chosen, :],
            self.terminated[..., chosen],
        )


@dataclass(frozen=True)
class Scaling:
    """Standardization of states by the training set: (s - centre) / scale, per number."""

    centre: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, data: Transitions) -> Scaling:
        """Mean and standard deviation of all observations; a constant number keeps scale 1."""
        seen = np.concatenate([data.observations, data.next_observations]).astype(np.float64)
        scale = seen.std(0)
        return cls(seen.mean(0), np.where(scale > 1e-8, scale, 1.0))

    def batch(self, data: Transitions, dtype: torch.dtype = torch.float32) -> Batch:
        """One set [N, ...] as a batch without groups."""
        return Batch(
            torch.as_tensor((data.observations - self.centre) / self.scale, dtype=dtype),
            torch.as_tensor(data.actions, dtype=torch.int64),
            torch.as_tensor(data.rewards, dtype=dtype),
            torch.as_tensor((data.next_observations - self.centre) / self.scale, dtype=dtype),
            torch.as_tensor(data.terminated),
        )


@dataclass
class Networks:
    """G x K networks of one shape: one-hot actions, `activation`, a scalar output.

    Attributes:
        first: [G, K, d, H], weights of the state.
        action: [G, K, A, H], weights of the one-hot action, the bias among them.
        hidden: further layers, each weights [G, K, H, H] and bias [G, K, 1, H].
        head: [G, K, H]; `offset` [G, K] is its bias.
    """

    first: torch.Tensor
    action: torch.Tensor
    hidden: list[tuple[torch.Tensor, torch.Tensor]]
    head: torch.Tensor
    offset: torch.Tensor
    activation: str = "tanh"

    def parameters(self) -> list[torch.Tensor]:
        """All tensors, weights and biases."""
        return [
            self.first,
            self.action,
            *(part for layer in self.hidden for part in layer),
            self.head,
            self.offset,
        ]

    def copy(self) -> Networks:
        """The same networks in tensors of their own."""
        return Networks(
            self.first.clone(),
            self.action.clone(),
            [(weight.clone(), bias.clone()) for weight, bias in self.hidden],
            self.head.clone(),
            self.offset.clone(),
            self.activation,
        )

    def part(self, start: int, stop: int | None) -> Networks:
        """Predictors start..stop of every group."""
        take = slice(start, stop)
        return Networks(
            self.first[:, take],
            self.action[:, take],
            [(weight[:, take], bias[:, take]) for weight, bias in self.hidden],
            self.head[:, take],
            self.offset[:, take],
            self.activation,
        )

    def _through(self, before: torch.Tensor) -> torch.Tensor:
        """Activations of the last hidden layer, from the first layer's input [G, K, N, H]."""
        act = torch.tanh if self.activation == "tanh" else torch.relu
        out = act(before)
        for weight, bias in self.hidden:
            out = act(out @ weight + bias)
        return out

    def features(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Last hidden activations phi(s, a) [G, K, N, H] of actions [G, N] or [N]."""
        one_hot = torch.nn.functional.one_hot(actions, self.action.shape[2]).to(states.dtype)
        inputs = torch.cat([states, one_hot], -1)
        weights = torch.cat([self.first, self.action], 2)
        return self._through(_with_predictors(inputs) @ weights)

    def all_features(self, states: torch.Tensor) -> list[torch.Tensor]:
        """Last hidden activations [G, K, N, H] of each action in turn."""
        before = _with_predictors(states) @ self.first
        return [
            self._through(before + self.action[:, :, a, None]) for a in range(self.action.shape[2])
        ]

    def taken(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """f(s, a) [G, K, N]."""
        return self._out(self.features(states, actions))

    def values(self, states: torch.Tensor) -> torch.Tensor:
        """f(s, .) [G, K, N, A]."""
        return torch.stack([self._out(features) for features in self.all_features(states)], -1)

    def _out(self, features: torch.Tensor) -> torch.Tensor:
        return (features @ self.head[..., None])[..., 0] + self.offset[..., None]


def _with_predictors(inputs: torch.Tensor) -> torch.Tensor:
    """[G, N, d] or [N, d] -> [G or 1, 1, N, d], to be multiplied with [G, K, d, H]."""
    return inputs[:, None] if inputs.dim() == 3 else inputs[None, None]


def draw_networks(
    generator: np.random.Generator,
    groups: int,
    count: int,
    state_width: int,
    actions: int,
    units: int = 64,
    depth: int = 1,
    gains: Sequence[float] = (1.0,),
    activation: str = "tanh",
    dtype: torch.dtype = torch.float32,
) -> Networks:
    """Random networks: weights N(0, gain^2 / fan-in), first biases N(0, gain^2).

    Predictor k of a group has gain gains[k % len(gains)]; heads are N(0, 1 / H), so that outputs
    are of order 1 and gains change only how fast they vary.

    Args:
        generator: source of all weights.
        groups: G.
        count: K.
        state_width: d.
        actions: A.
        units: H.
        depth: hidden layers; 0 is a linear predictor (of "units" = d + A inputs).
        gains: of the hidden layers.
        activation: "tanh" or "relu".
        dtype: of the weights.
    """
    assert depth >= 1 and activation in ("tanh", "relu")

    def normal(*shape: int) -> torch.Tensor:
        return torch.as_tensor(generator.standard_normal(shape, dtype=np.float32), dtype=dtype)

    gain = torch.tensor([gains[k % len(gains)] for k in range(count)], dtype=dtype)
    gain = gain[None, :, None, None]
    # A state has about d numbers of variance 1, an action is worth as much as one of them.
    first = normal(groups, count, state_width, units) * gain / math.sqrt(state_width)
    shift = normal(groups, count, 1, units) * gain * 0.5
    action = normal(groups, count, actions, units) * gain / math.sqrt(state_width)
    hidden = [
        (
            normal(groups, count, units, units) * gain * math.sqrt(2 / units),
            normal(groups, count, 1, units) * 0.5 * gain,
        )
        for _ in range(depth - 1)
    ]
    head = normal(groups, count, units) / math.sqrt(units)
    return Networks(first, action + shift, hidden, head, 0.3 * normal(groups, count), activation)


def bellman_losses(
    networks: Networks, scales: torch.Tensor, batch: Batch, gamma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """L_on and L_end of every predictor, each [G, K]; 0 where the batch has no such rows.

    Args:
        networks: f.
        scales: lambda [G, K].
        batch: N points for each group, or one set for all.
        gamma: discount.
    """
    ends = batch.terminated
    residuals = []
    for rows, bootstrap in ((batch.rows(~ends), True), (batch.rows(ends), False)):
        if rows.terminated.numel() == 0:
            residuals.append(torch.zeros_like(scales))
            continue
        rewards = rows.rewards if rows.rewards.dim() == 2 else rows.rewards[None]
        error = networks.taken(rows.states, rows.actions) - scales[..., None] * rewards[:, None]
        if bootstrap:
            error = error - gamma * networks.values(rows.following).amax(-1)
        residuals.append(error.square().mean(-1))
    return residuals[0], residuals[1]


@torch.no_grad()
def training_losses(
    networks: Networks, scales: torch.Tensor, batch: Batch, gamma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`bellman_losses` of a whole bank on a large set, a few predictors at a time: once a bank."""
    groups, count, _, units = networks.first.shape
    rows, actions = len(batch.terminated), networks.action.shape[2]
    step = max(1, CHUNK // (groups * rows * units * actions))
    parts = [
        bellman_losses(
            networks.part(start, start + step), scales[:, start : start + step], batch, gamma
        )
        for start in range(0, count, step)
    ]
    return torch.cat([on for on, _ in parts], 1), torch.cat([end for _, end in parts], 1)
