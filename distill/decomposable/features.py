"""Transitions and feature maps of the decomposable study: linear, RBF and MLP, decomposable or not.

With W, b, u_a and M_a drawn once and never from the data, phi(s, a) in R^d is

                decomposable, phi1(s) + phi2(a)           joint
    linear      W s                       + u_a           M_a s
    rbf         sqrt(2) cos(W s + b)      + u_a           sqrt(2) cos(W s + b + u_a)
    mlp         tanh(W s)                 + u_a           tanh(W s + u_a)

W and M_a have variance 1 / (numbers of a state), u_a has 1, b is uniform on a turn. Predictors are
f(s, a) = <v, phi(s, a)> with a reward scale lambda, u = (v, -lambda) ~ N(0, I / q), q = d + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reprise.distill.config import DistillDecomposable
from reprise.distill.data import training_set
from reprise.distill.decomposable.convex import Linear
from reprise.distill.predictors import Scaling


@dataclass(frozen=True)
class Steps:
    """Transitions of one kind: states [n, D] of variance about 1, actions, rewards, next states."""

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    following: np.ndarray

    def rows(self, chosen: np.ndarray) -> Steps:
        """Those at `chosen`."""
        parts = (self.states, self.actions, self.rewards, self.following)
        return Steps(*(part[chosen] for part in parts))


def synthetic(size: int, width: int, actions: int, draw: np.random.Generator) -> Steps:
    """A random system: s' = .8 tanh(T s) + B_a / 2 + .3 noise, r = <w, s> + c_a + .1 noise."""
    states = draw.standard_normal((size, width))
    taken = draw.integers(0, actions, size)
    turn = draw.standard_normal((width, width)) / np.sqrt(width)
    push, noise = draw.standard_normal((actions, width)), draw.standard_normal((size, width))
    following = 0.8 * np.tanh(states @ turn) + 0.5 * push[taken] + 0.3 * noise
    weights, bonus = draw.standard_normal(width) / np.sqrt(width), draw.standard_normal(actions)
    rewards = states @ weights + 0.5 * bonus[taken] + 0.1 * draw.standard_normal(size)
    return Steps(states, taken, rewards, following)


def recorded(config: DistillDecomposable, terminated: bool) -> Steps:
    """One kind of an environment's transitions, states standardized."""
    assert config.environment != "synthetic"
    data = training_set(config.environment, config.data, config.data_size, config.data_seed)
    scaling = Scaling.of(data)
    rows = data.terminated == terminated
    states, following = (
        (some[rows] - scaling.centre) / scaling.scale
        for some in (data.observations, data.next_observations)
    )
    return Steps(states, data.actions[rows], data.rewards[rows].astype(np.float64), following)


@dataclass(frozen=True)
class Features:
    """One draw of W, b, u_a and M_a."""

    kind: str
    weights: np.ndarray  # W [D, d]
    shift: np.ndarray  # b [d]
    action: np.ndarray  # u_a [A, d]
    mixing: np.ndarray  # M_a [A, D, d]

    @classmethod
    def drawn(
        cls, kind: str, width: int, dimension: int, actions: int, draw: np.random.Generator
    ) -> Features:
        """`dimension` features of states of `width` numbers."""
        return cls(
            kind,
            draw.standard_normal((width, dimension)) / np.sqrt(width),
            draw.uniform(0, 2 * np.pi, dimension),
            draw.standard_normal((actions, dimension)),
            draw.standard_normal((actions, width, dimension)) / np.sqrt(width),
        )

    def of_states(self, states: np.ndarray) -> np.ndarray:
        """phi1(s) [N, d]."""
        return self._shaped(states @ self.weights)

    def joint(self, states: np.ndarray) -> np.ndarray:
        """The joint phi(s, a) of every action [N, A, d]."""
        if self.kind == "linear":
            return np.einsum("nw,awd->nad", states, self.mixing)
        return self._shaped((states @ self.weights)[:, None] + self.action)

    def _shaped(self, before: np.ndarray) -> np.ndarray:
        if self.kind == "rbf":
            return np.sqrt(2) * np.cos(before + self.shift)
        return np.tanh(before) if self.kind == "mlp" else before

    def linear(self, steps: Steps, gamma: float, terminated: bool) -> Linear:
        """Decomposable residuals and moments of some transitions."""
        following = None if terminated else self.of_states(steps.following)
        state, action = self.of_states(steps.states), self.action[steps.actions]
        return Linear.of(state, action, steps.rewards, following, gamma)

    def joint_losses(self, steps: Steps, predictors: np.ndarray, gamma: float) -> np.ndarray:
        """(f(s,a) - lambda r - gamma max_a' f(s',a'))^2 of joint features [n, K]."""
        v = predictors[:, :-1]
        here = self.joint(steps.states)[np.arange(len(steps.actions)), steps.actions] @ v.T
        best = (self.joint(steps.following) @ v.T).max(1)
        return np.square(here + np.outer(steps.rewards, predictors[:, -1]) - gamma * best)


def losses_of(full: Linear, predictors: np.ndarray, alphas: np.ndarray, gamma: float) -> np.ndarray:
    """(u . z - gamma alpha)^2 of decomposable features [n, K]."""
    return np.square(full.residual @ predictors.T - gamma * alphas)
