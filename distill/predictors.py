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

from reprise.rollout.types import Transitions

# Activations worked on at a time: what fits in a cache. In one piece, three hundred predictors
# go through memory nine times a step, which takes up to half as long again.
BLOCK = 1 << 18


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
        act = torch.tanh_ if self.activation == "tanh" else torch.relu_  # of fresh tensors
        out = act(before)
        for weight, bias in self.hidden:
            out = act(out @ weight + bias)
        return out

    def _features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Last hidden activations [G, K, N, H] of states with one-hot actions [G, N, d + A]."""
        return self._through(_with_predictors(inputs) @ torch.cat([self.first, self.action], 2))

    def features(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Last hidden activations phi(s, a) [G, K, N, H] of actions [G, N] or [N]."""
        return self._features(self.inputs(states, actions))

    def all_features(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Last hidden activations [G, K, N, H] of each action in turn."""
        return self._features(self.every_input(states)).tensor_split(self.action.shape[2], 2)

    def inputs(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """States with one-hot actions [..., N, d + A]."""
        one_hot = torch.nn.functional.one_hot(actions, self.action.shape[2]).to(states.dtype)
        return torch.cat([states, one_hot], -1)

    def every_input(self, states: torch.Tensor) -> torch.Tensor:
        """All states with the first action, all with the second, ... [..., A N, d + A]."""
        count = self.action.shape[2]
        rows = torch.eye(count, dtype=states.dtype).repeat_interleave(states.shape[-2], 0)
        many = torch.cat([states] * count, -2)
        return torch.cat([many, rows.expand(*many.shape[:-1], count)], -1)

    def at(self, inputs: torch.Tensor) -> torch.Tensor:
        """f of inputs [G, N, d + A] or [N, d + A]: [G, K, N]."""
        return (self._features(inputs) @ self.head[..., None])[..., 0] + self.offset[..., None]

    def taken(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """f(s, a) [G, K, N]."""
        return self.at(self.inputs(states, actions))

    def values(self, states: torch.Tensor) -> torch.Tensor:
        """f(s, .) [G, K, N, A]."""
        parts = self.at(self.every_input(states)).tensor_split(self.action.shape[2], 2)
        return torch.stack(parts, -1)


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
    groups, count, _, units = networks.first.shape
    step = max(1, BLOCK // (groups * len(batch.terminated) * units))
    parts = [
        _block_losses(
            networks.part(start, start + step), scales[:, start : start + step], batch, gamma
        )
        for start in range(0, count, step)
    ]
    on, end = zip(*parts, strict=True)
    return torch.cat(on, 1), torch.cat(end, 1)


def _block_losses(
    networks: Networks, scales: torch.Tensor, batch: Batch, gamma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One product for all: f at the others, at the terminated, and at s' with every action."""
    ends = batch.terminated
    others, final = batch.rows(~ends), batch.rows(ends)
    split = [len(others.terminated), len(final.terminated)]
    inputs = [networks.inputs(rows.states, rows.actions) for rows in (others, final)]
    found = networks.at(torch.cat([*inputs, networks.every_input(others.following)], -2))
    on, end, ahead = found.split([*split, found.shape[2] - sum(split)], 2)
    best = torch.stack(ahead.tensor_split(networks.action.shape[2], 2)).amax(0)
    on = on - scales[..., None] * _by_group(others.rewards) - gamma * best
    end = end - scales[..., None] * _by_group(final.rewards)
    return tuple(
        error.square().mean(-1) if error.shape[-1] else torch.zeros_like(scales)
        for error in (on, end)
    )


def _by_group(rewards: torch.Tensor) -> torch.Tensor:
    """[G, N] or [N] -> [G or 1, 1, N]."""
    return rewards[:, None] if rewards.dim() == 2 else rewards


@torch.no_grad()
def training_losses(
    networks: Networks, scales: torch.Tensor, batch: Batch, gamma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`bellman_losses` of a bank on the training set: once a bank, without gradients."""
    return bellman_losses(networks, scales, batch, gamma)
