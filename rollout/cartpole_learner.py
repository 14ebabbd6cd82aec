"""A learner worth recording: Double DQN on CartPole, in numpy, from random play to long episodes.

    y = -1 where the pole or the cart fails, else gamma Q'(s', argmax_a Q(s', a))

so that values lie in [-1, 0] (the reward of CartPole, 1 a step, makes Q-learning drift at 100).
Adam, a rate that falls to 0, all transitions kept. Q' is the running average of the weights: it is
the target, and it acts, which keeps a good policy from being lost between two updates. It plays the
portable CartPole; what it does is recorded by `rollout.cartpole`. The same seed learns otherwise on
another processor: recordings are shipped, not made again.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from reprise.rollout.environments.portable import make_portable
from reprise.rollout.randomness import Streams

SCALE = np.array([2.4, 2.0, 0.2, 2.0])  # observations are divided by it


@dataclass(frozen=True)
class Settings:
    """Chosen on seeds 100 to 102: episodes of 489, 461 and 500 steps in the last fifth."""

    hidden: tuple[int, int] = (32, 32)
    batch: int = 64
    every: int = 2  # steps between updates
    start: int = 1_000  # steps before the first
    rate: float = 5e-4
    averaging: float = 0.005  # of the weights, tau
    gamma: float = 0.99
    last_epsilon: float = 0.05
    epsilon_steps: int = 10_000


Layers = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Course:
    """What a learner did, and what it knew on the way."""

    actions: np.ndarray  # bool [steps]
    lengths: list[int]  # of its finished episodes
    networks: list[Layers]  # weights [in, out] and biases [out] by layer, for raw observations
    epsilons: list[float]  # exploration at these snapshots


def learn(steps: int, seed: int, snapshots: int, settings: Settings | None = None) -> Course:
    """Play and learn for `steps` steps; `snapshots` copies of the network at equal distances."""
    s = settings or Settings()
    draw = Streams(seed).data("learner")
    network = _Network((4, *s.hidden, 2), draw)
    environment = make_portable("CartPole-v1", 1)
    seen = environment.reset(seed)[0] / SCALE
    before, after = np.zeros((2, steps, 4), dtype=np.float32)
    actions, failed = np.zeros(steps, dtype=np.int64), np.zeros(steps, dtype=bool)
    lengths: list[int] = []
    networks: list[Layers] = []
    epsilons: list[float] = []
    start = min(s.start, steps // 10)
    updates = -(-(steps - start) // s.every)
    for t in range(steps):
        epsilon = max(s.last_epsilon, 1 - (1 - s.last_epsilon) * t / s.epsilon_steps)
        greedy = int(network.values(seen.astype(np.float32)[None], averaged=True)[0].argmax())
        actions[t] = draw.integers(2) if draw.random() < epsilon else greedy
        step = environment.step(actions[t : t + 1])
        end = step.final_observations.get(0, step.observations[0])
        before[t], after[t], failed[t] = seen, end / SCALE, step.terminated[0]
        seen = step.observations[0] / SCALE
        lengths += [episode.length for episode in step.episodes]
        if t >= start and (t - start) % s.every == 0:
            rows = draw.integers(0, t + 1, s.batch)
            rate = s.rate * (1 - (t - start) // s.every / updates)
            network.update(before[rows], actions[rows], after[rows], failed[rows], rate, s)
        if (t + 1) * snapshots // steps > t * snapshots // steps:
            networks.append(network.for_raw_observations())
            epsilons.append(epsilon)
    return Course(actions.astype(bool), lengths, networks, epsilons)


class _Network:
    """Q(s, .) with two hidden layers of ReLU, its averaged copy, and Adam."""

    def __init__(self, sizes: tuple[int, ...], draw: np.random.Generator) -> None:
        shapes = [shape for pair in itertools.pairwise(sizes) for shape in (pair, pair[1:])]
        fans = [size for size in sizes[:-1] for _ in range(2)]
        parts = [
            draw.uniform(-1, 1, shape).ravel() / np.sqrt(fan)
            for shape, fan in zip(shapes, fans, strict=True)
        ]
        self.flat = np.concatenate(parts).astype(np.float32)
        self.averaged, self.gradient = self.flat.copy(), np.zeros_like(self.flat)
        self.mean, self.square, self.count = np.zeros_like(self.flat), np.zeros_like(self.flat), 0
        cuts = np.cumsum([part.size for part in parts])[:-1]
        self.layers, self.means, self.slopes = (
            [piece.reshape(shape) for piece, shape in zip(np.split(one, cuts), shapes, strict=True)]
            for one in (self.flat, self.averaged, self.gradient)
        )

    def values(self, x: np.ndarray, averaged: bool = False) -> np.ndarray:
        """Q [n, 2] of scaled observations [n, 4]."""
        return _forward(self.means if averaged else self.layers, x)[-1]

    def update(
        self,
        before: np.ndarray,
        actions: np.ndarray,
        after: np.ndarray,
        failed: np.ndarray,
        rate: float,
        s: Settings,
    ) -> None:
        """One step of Adam on the squared error of a minibatch; then the target follows."""
        row = np.arange(len(before))
        following = self.values(after, averaged=True)[row, self.values(after).argmax(1)]
        goal = np.where(failed, -1.0, s.gamma * following)
        hidden = _forward(self.layers, before)
        slope = np.zeros_like(hidden[-1])
        slope[row, actions] = (hidden[-1][row, actions] - goal) / len(before)
        for layer in (2, 1, 0):
            weight = self.layers[2 * layer]
            self.slopes[2 * layer][:] = hidden[layer].T @ slope
            self.slopes[2 * layer + 1][:] = slope.sum(0)
            slope = (slope @ weight.T) * (hidden[layer] > 0)
        self.count += 1
        self.mean += np.float32(0.1) * (self.gradient - self.mean)
        self.square += np.float32(0.001) * (self.gradient**2 - self.square)
        size = np.sqrt(self.square / (1 - 0.999**self.count)) + 1e-8
        self.flat -= (rate / (1 - 0.9**self.count) * self.mean / size).astype(np.float32)
        self.averaged += np.float32(s.averaging) * (self.flat - self.averaged)

    def for_raw_observations(self) -> Layers:
        """Averaged weights and biases, the scale of observations in the first layer."""
        layers = [layer.astype(np.float64) for layer in self.means]
        layers[0] = layers[0] / SCALE[:, None]
        return list(zip(layers[::2], layers[1::2], strict=True))


def _forward(layers: list[np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    """Inputs of every layer, then the output."""
    found = [x]
    for k in (0, 2, 4):
        x = x @ layers[k] + layers[k + 1]
        x = np.maximum(x, 0) if k < 4 else x
        found.append(x)
    return found
