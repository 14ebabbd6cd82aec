"""Replicable fitted Q-iteration on CartPole (2509.08660, Section 5.1), many replicas at once.

    w_0 = 0,   w_{k+1} = round( (sum phi phi^T + lambda n I)^-1 sum phi (r + gamma V_k(s')) )
    V_k(s') = max_a <w_k, phi(s', a)>, 0 where the episode terminated

for k < 5 backups, on a shared grid of width .2 with fresh offsets for each entry and backup, over
random features of a state s and an action a = -1 or +1. Features, their scale and the grid come
from the internal stream and never from the data. The paper says "random Fourier features" and no
more; there are two kinds here (`rl.config.FQIFeatures`):

    mirror:   phi_j = a sin(omega_j . s) / sqrt(M),   omega_j > 0
    fourier:  phi_j = sqrt(2/M) cos(omega_j . s / scale + nu_j a + b_j)

CartPole mirrored is CartPole: Q(-s, -a) = Q(s, a), which holds for every w with the first kind.
Both kinds may have a constant c as one feature more. It stands for the mean of Q; the larger c is,
the less the ridge penalizes its weight and the less the grid sees of it.

How replicas are batched: a data set drawn from one set of N transitions is a row of counts [N], so
all Gram matrices are one matrix product (counts with the products phi_i phi_j), and so is each
backup's moment, whatever lambda. Blocks of transitions keep the work in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from reprise.rl.config import FQIFeatures, FQIMethod
from reprise.rl.replicable.regression import one_thread, ridge
from reprise.rl.replicable.rounding import hypergrid_rounding
from reprise.rollout.environments.base import cartpole
from reprise.rollout.episodes import episode_returns
from reprise.rollout.errors import BadInput
from reprise.rollout.randomness import Streams
from reprise.rollout.types import Transitions

BLOCK = 2**16  # numbers in a block: half a megabyte stays in a core's cache


class Features(Protocol):
    """phi of a state and one of two actions: observations [..., 4], a -> [..., D]."""

    def __call__(self, observations: np.ndarray, sign: np.ndarray | float) -> np.ndarray:
        """phi [..., D] of the action -1 or +1 (or an array of them, [..., 1])."""

    def greedy(self, weights: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """argmax_a <w, phi(s, a)> of weights [U, D] at observations [U, E, 4]: actions [U, E]."""


def draw_features(settings: FQIFeatures, streams: Streams) -> Mirror | Fourier:
    """Draw a kind of features from the internal stream."""
    kind = Mirror if settings.kind == "mirror" else Fourier
    return kind.draw(settings, streams)


@dataclass(frozen=True)
class Mirror:
    """a sin(omega_j . s) / sqrt(M), and a constant: Q(-s, -a) = Q(s, a)."""

    frequencies: np.ndarray  # omega [4, M], positive
    constant: float = 0.0

    @classmethod
    def draw(cls, settings: FQIFeatures, streams: Streams) -> Mirror:
        """omega_j = 2 |u_j| / (bandwidth * scale), u_j the rows of random orthogonal matrices.

        2 is about the length of a standard Gaussian in four dimensions; orthogonal rows cover them
        better than independent ones (Yu et al. 2016). In absolute value, because a lean to the
        right, a fall to the right and a drift to the right all ask for the same push.
        """
        generator = streams.internal("features", settings.count)
        rows = [
            np.linalg.qr(generator.standard_normal((4, 4)))[0] for _ in range(0, settings.count, 4)
        ]
        units = np.abs(np.concatenate(rows)[: settings.count]).T
        scale = settings.bandwidth * np.array(settings.scale)
        return cls(2.0 * units / scale[:, None], settings.constant)

    def _sines(self, observations: np.ndarray) -> np.ndarray:
        """The sine in single precision is many times faster and off by 1e-6, for all alike."""
        angles = observations.astype(np.float64) @ self.frequencies
        return np.sin(angles.astype(np.float32)).astype(np.float64)

    def __call__(self, observations: np.ndarray, sign: np.ndarray | float) -> np.ndarray:
        """phi [..., D]; see `Features`."""
        odd = self._sines(observations) * (sign / np.sqrt(self.frequencies.shape[1]))
        return _with_constant(odd, self.constant)

    def greedy(self, weights: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Greedy actions [U, E]; see `Features`."""
        advantage = self._sines(observations) @ weights[:, : self.frequencies.shape[1], None]
        return (advantage[..., 0] > 0).astype(np.int64)


@dataclass(frozen=True)
class Fourier:
    """Random Fourier features (Rahimi and Recht 2007) of (s / scale, a), and a constant."""

    frequencies: np.ndarray  # omega of the state [4, M]
    action: np.ndarray  # nu, of the action [M]
    phase: np.ndarray  # b [M]
    constant: float = 0.0

    @classmethod
    def draw(cls, settings: FQIFeatures, streams: Streams) -> Fourier:
        """omega, nu ~ N(0, 1/bandwidth^2), b ~ U[0, 2 pi), from the internal stream."""
        count = settings.count
        generator = streams.internal("features", count)
        frequencies = generator.standard_normal((5, count)) / settings.bandwidth
        phase = generator.uniform(0.0, 2 * np.pi, count)
        scale = np.array(settings.scale)[:, None]
        return cls(frequencies[:4] / scale, frequencies[4], phase, settings.constant)

    def _angles(self, observations: np.ndarray) -> np.ndarray:
        """omega . s + b [..., M]: what both actions share."""
        return observations.astype(np.float64) @ self.frequencies + self.phase

    def __call__(self, observations: np.ndarray, sign: np.ndarray | float) -> np.ndarray:
        """phi [..., D]; see `Features`. The cosine is of single precision."""
        angles = (self._angles(observations) + sign * self.action).astype(np.float32)
        cosine = np.sqrt(2 / len(self.phase)) * np.cos(angles).astype(np.float64)
        return _with_constant(cosine, self.constant)

    def greedy(self, weights: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Greedy actions [U, E]; see `Features`.

        cos(x + y) - cos(x - y) = -2 sin x sin y: one sine in the place of two cosines.
        """
        sine = np.sin(self._angles(observations).astype(np.float32)).astype(np.float64)
        advantage = sine @ (-np.sin(self.action) * weights[:, : len(self.phase)])[..., None]
        return (advantage[..., 0] > 0).astype(np.int64)


def _with_constant(features: np.ndarray, constant: float) -> np.ndarray:
    if not constant:
        return features
    return np.concatenate([features, np.full((*features.shape[:-1], 1), constant)], -1)


@dataclass(frozen=True)
class Encoded:
    """Transitions under one choice of features."""

    features: np.ndarray  # phi(s, a) [N, D]
    following: np.ndarray  # phi(s', .) [2, D, N], for actions -1 and +1
    rewards: np.ndarray  # [N]
    alive: np.ndarray  # [N], 0 where the episode terminated, else 1

    @classmethod
    def of(cls, data: Transitions, features: Features, method: FQIMethod) -> Encoded:
        """Encode; CartPole's actions are 0 and 1. `method` says what the reward is.

        Raises:
            BadInput: no data, or not CartPole's shapes.
        """
        if len(data) == 0:
            raise BadInput("no data: fitted Q-iteration needs at least one transition")
        if data.observations.shape[1:] != (4,) or not np.isin(data.actions, (0, 1)).all():
            raise BadInput(
                f"data: observations of shape {data.observations.shape[1:]} and actions "
                f"{np.unique(data.actions)[:5]}; CartPole has 4 numbers and actions 0 and 1"
            )
        sign = 2.0 * data.actions[:, None] - 1.0
        with one_thread():
            taken = features(data.observations, sign)
            following = np.stack(
                [np.ascontiguousarray(features(data.next_observations, a).T) for a in (-1.0, 1.0)]
            )
        fell = data.terminated.astype(np.float64)
        rewards = -fell if method.reward == "failure" else data.rewards.astype(np.float64)
        return cls(taken, following, method.reward_scale * rewards, 1.0 - fell)

    def head(self, count: int) -> Encoded:
        """The first `count` transitions."""
        return Encoded(
            self.features[:count],
            self.following[:, :, :count],
            self.rewards[:count],
            self.alive[:count],
        )


def fit(
    data: Encoded, counts: np.ndarray, lambdas: np.ndarray, method: FQIMethod, streams: Streams
) -> np.ndarray:
    """Weights [C, L, D] after all backups, for C data sets and L regularizations.

    Args:
        data: N encoded transitions.
        counts: [C, N], how often each transition is in each data set.
        lambdas: [L].
        method: backups, grid and variants.
        streams: its internal stream gives the grid, the same for all C and L.
    """
    if method.median_of > 1:
        return _median(data, counts, lambdas, method, streams)
    sets, width = len(counts), data.features.shape[1]
    sizes = np.repeat(counts.sum(1, dtype=np.int64), len(lambdas))
    if sizes.min() < 1:
        raise BadInput("no data: a data set has no transition; use a larger fraction")
    strength = np.tile(np.asarray(lambdas, dtype=np.float64), sets)
    grid = streams.internal("grid", method.backups)
    weights = np.zeros((sets * len(lambdas), width))
    kept: list[np.ndarray] = []
    with one_thread():
        gram = np.repeat(_gram(data, counts), len(lambdas), axis=0)
        system = gram + (strength * sizes)[:, None, None] * np.eye(width)
        for backup in range(method.backups):
            moment = _moment(data, counts, weights, len(lambdas), method.gamma)
            weights = ridge(system, moment, sizes, 0.0, "sum")
            if method.rounding == "every":
                weights = _round(weights, grid, method)
            if backup >= method.backups - method.average:
                kept.append(weights)
        if len(kept) > 1:
            weights = np.mean(kept, axis=0)
        if len(kept) > 1 or method.rounding == "last":
            weights = _round(weights, grid, method)
    return weights.reshape(sets, len(lambdas), width)


def _round(weights: np.ndarray, grid: np.random.Generator, method: FQIMethod) -> np.ndarray:
    if method.alpha is None:
        return weights
    return hypergrid_rounding(
        weights, grid, method.alpha, -method.bound, method.bound, replica_axes=1
    )


def _median(
    data: Encoded, counts: np.ndarray, lambdas: np.ndarray, method: FQIMethod, streams: Streams
) -> np.ndarray:
    """Deal each data set out to `median_of` parts, fit each, take the median of every entry.

    The parts' weights are rounded to one grid, so where most of them agree the median is their
    common midpoint.
    """
    parts = np.zeros((len(counts), method.median_of, counts.shape[1]), dtype=counts.dtype)
    for row, count in enumerate(counts):
        members = np.repeat(np.arange(len(count)), count)
        dealt = streams.data("median", row).permutation(len(members)) % method.median_of
        np.add.at(parts[row], (dealt, members), 1)
    single = method.model_copy(update={"median_of": 1})
    fitted = fit(data, parts.reshape(-1, counts.shape[1]), lambdas, single, streams)
    return np.median(fitted.reshape(len(counts), method.median_of, *fitted.shape[1:]), axis=1)


def _blocks(count: int, rows: int) -> list[slice]:
    size = max(64, BLOCK // rows)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _gram(data: Encoded, counts: np.ndarray) -> np.ndarray:
    """sum_i counts_i phi_i phi_i^T [C, D, D]: the upper triangles in one matrix product."""
    width = data.features.shape[1]
    rows, columns = np.triu_indices(width)
    upper = np.zeros((len(counts), len(rows)))
    for block in _blocks(len(data.rewards), max(len(rows), len(counts))):
        phi = data.features[block]
        upper += counts[:, block].astype(np.float64) @ (phi[:, rows] * phi[:, columns])
    gram = np.empty((len(counts), width, width))
    gram[:, rows, columns] = upper
    gram[:, columns, rows] = upper
    return gram


def _moment(
    data: Encoded, counts: np.ndarray, weights: np.ndarray, lambdas: int, gamma: float
) -> np.ndarray:
    """sum_i counts_i phi_i (r_i + gamma V(s'_i)) [C L, D]."""
    moment = np.zeros_like(weights)
    for block in _blocks(len(data.rewards), len(weights)):
        values = weights @ data.following[0, :, block]
        np.maximum(values, weights @ data.following[1, :, block], out=values)
        values *= gamma * data.alive[block]
        values += data.rewards[block]
        targets = values.reshape(len(counts), lambdas, -1)
        targets *= counts[:, None, block]
        moment += values @ data.features[block]
    return moment


# -- policies --------------------------------------------------------------------------------------


def grid_nearest_zero(width: int, method: FQIMethod, streams: Streams) -> np.ndarray:
    """The last backup's grid points next to 0 [D]: what rounding makes of no data at all.

    A policy that replicates perfectly and has seen nothing; what data add is judged against it.
    """
    grid = streams.internal("grid", method.backups)
    draws = (method.rounding == "every") * method.backups + (
        method.average > 1 or method.rounding == "last"
    )
    for _ in range(draws):
        weights = _round(np.zeros((1, width)), grid, method)
    return weights[0]


def mean_returns(weights: np.ndarray, features: Features, episodes: int, seed: int) -> np.ndarray:
    """Mean return over `episodes` of CartPole-v1 of the greedy policies [R, D]: [R].

    Equal weights are played once.
    """
    unique, index = np.unique(weights, axis=0, return_inverse=True)
    shape = (len(unique), episodes, -1)

    def act(observations: np.ndarray) -> np.ndarray:
        return features.greedy(unique, observations.reshape(shape)).reshape(-1)

    with one_thread():
        returns = episode_returns(act, cartpole(len(unique) * episodes), seed)
    return returns.reshape(len(unique), episodes).mean(1)[index.reshape(-1)]
