"""Finite linear MDPs with known optimal values (2509.08660, Definition 2.1).

    R_h(s, a) = <phi(s, a), theta_h>        P_h(s' | s, a) = <phi(s, a), mu_h(s')>

for steps h = 0 .. H-1, features of length at most 1, rewards in [0, 1], and |theta_h|, |mu_h(S)| at
most sqrt(d). States are finite, so optimal and policy values are exact sums, and d may be far
smaller than |S||A|: rewards and transitions of most pairs follow from those of others.

Sampling is by counts. A regression on N next states of (s, a) only needs how often each s' came,
which is one multinomial draw, whatever N. The same holds for M trajectories of a deterministic
policy: the counts of (s, s') at step h are multinomials given the counts of s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from reprise.rollout.draws import multinomial
from reprise.rollout.errors import BadInput

TOLERANCE = 1e-8


@dataclass(frozen=True, eq=False)
class LinearMDP:
    """A linear MDP, checked against Definition 2.1 and Assumption 2.1 when made."""

    features: np.ndarray  # phi [S, A, d]
    theta: np.ndarray  # [H, d]
    mu: np.ndarray  # signed measures [H, d, S]
    initial: np.ndarray  # q [S]

    def __post_init__(self) -> None:
        """Raise a BadInput that names the first condition that does not hold."""
        states, _, d = self.features.shape
        horizon = len(self.theta)
        if self.theta.shape != (horizon, d) or self.mu.shape != (horizon, d, states):
            raise BadInput(
                f"shapes: features {self.features.shape}, theta {self.theta.shape} and mu "
                f"{self.mu.shape} must be [S, A, d], [H, d] and [H, d, S]"
            )
        for name in ("features", "theta", "mu", "initial"):
            if not np.isfinite(getattr(self, name)).all():
                raise BadInput(f"{name}: must be finite")
        _check(np.linalg.norm(self.features, axis=-1).max() - 1, "|phi(s, a)| <= 1", "features")
        _check(-self.transitions.min(), "P_h(s'|s, a) >= 0", "<features, mu>")
        _check(
            np.abs(self.transitions.sum(-1) - 1).max(),
            "sum_s' P_h(s'|s, a) = 1",
            "<features, mu>",
        )
        _check(max(-self.rewards.min(), self.rewards.max() - 1), "0 <= R_h <= 1", "rewards")
        root = math.sqrt(d)
        _check(np.linalg.norm(self.theta, axis=-1).max() - root, "|theta_h| <= sqrt(d)", "theta")
        _check(np.linalg.norm(self.mu.sum(-1), axis=-1).max() - root, "|mu_h(S)| <= sqrt(d)", "mu")
        _check(-self.initial.min(), "q(s) >= 0", "initial")
        _check(abs(self.initial.sum() - 1), "sum_s q(s) = 1", "initial")

    @classmethod
    def from_tables(
        cls,
        features: np.ndarray,
        rewards: np.ndarray,
        transitions: np.ndarray,
        initial: np.ndarray,
    ) -> LinearMDP:
        """Find theta and mu for rewards [H, S, A] and transitions [H, S, A, S'], if there are any.

        Raises:
            BadInput: the tables are not linear in the features.
        """
        phi = features.reshape(-1, features.shape[-1])
        inverse = np.linalg.pinv(phi)
        horizon, states = len(rewards), features.shape[0]
        theta = rewards.reshape(horizon, -1) @ inverse.T
        mu = inverse @ transitions.reshape(horizon, len(phi), states)
        for name, table, fitted in (
            ("rewards", rewards.reshape(horizon, -1), theta @ phi.T),
            ("transitions", transitions.reshape(horizon, len(phi), states), phi @ mu),
        ):
            error = float(np.abs(table - fitted).max())
            if error > TOLERANCE:
                raise BadInput(
                    f"{name}: not linear in the features (nearest linear table is off by "
                    f"{error:.3g}); Definition 2.1 wants {name} = <phi, .> exactly; add features"
                )
        return cls(features, theta, mu, initial)

    @property
    def horizon(self) -> int:
        """H."""
        return len(self.theta)

    @property
    def dimension(self) -> int:
        """d."""
        return self.features.shape[-1]

    @property
    def rewards(self) -> np.ndarray:
        """R [H, S, A]."""
        return np.einsum("sad,hd->hsa", self.features, self.theta)

    @property
    def transitions(self) -> np.ndarray:
        """P [H, S, A, S']."""
        return np.einsum("sad,hdt->hsat", self.features, self.mu)

    def optimal(self) -> tuple[np.ndarray, float]:
        """Optimal values V* [H, S], and their mean under q, by backward induction."""
        values = np.zeros((self.horizon + 1, len(self.initial)))
        rewards, transitions = self.rewards, self.transitions
        for h in reversed(range(self.horizon)):
            values[h] = (rewards[h] + transitions[h] @ values[h + 1]).max(-1)
        return values[:-1], float(self.initial @ values[0])

    def policy_value(self, policy: np.ndarray) -> np.ndarray:
        """E_q V^pi of deterministic policies [..., H, S] (actions): exact, [...]."""
        rewards, transitions = self.rewards, self.transitions
        states = np.arange(len(self.initial))
        values = np.zeros((*policy.shape[:-2], len(self.initial)))
        for h in reversed(range(self.horizon)):
            action = policy[..., h, :]
            following = np.einsum("...st,...t->...s", transitions[h][states, action], values)
            values = rewards[h][states, action] + following
        return values @ self.initial

    # -- generative access ---------------------------------------------------------------------

    def next_counts(
        self, h: int, pairs: np.ndarray, samples: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """How often each s' came in `samples` [K] draws from P_h at `pairs` [K]: [K, S]."""
        table = self._rows(h).reshape(-1, len(self.initial))
        return multinomial(generator, samples, table[pairs])

    # -- episodic access -----------------------------------------------------------------------

    def episode_counts(
        self, policy: np.ndarray, episodes: int, generator: np.random.Generator
    ) -> np.ndarray:
        """Follow a policy [H, S] for `episodes` episodes: counts [H, S, S'] of its transitions."""
        states = np.arange(len(self.initial))
        here = multinomial(generator, episodes, self.initial / self.initial.sum())
        counts = np.zeros((self.horizon, len(states), len(states)), dtype=np.int64)
        for h in range(self.horizon):
            counts[h] = multinomial(generator, here, self._rows(h)[states, policy[h]])
            here = counts[h].sum(0)
        return counts

    def _rows(self, h: int) -> np.ndarray:
        """P_h without the last bits that make a sum of floats exceed 1."""
        table = np.maximum(np.einsum("sad,dt->sat", self.features, self.mu[h]), 0.0)
        return table / table.sum(-1, keepdims=True)


def _check(excess: float | np.floating, condition: str, name: str) -> None:
    if excess > TOLERANCE:
        raise BadInput(
            f"{name}: {condition} is violated by {excess:.3g}: not a linear MDP (Definition 2.1)"
        )


# -- families --------------------------------------------------------------------------------------


def simplex(
    states: int, actions: int, d: int, horizon: int, generator: np.random.Generator
) -> LinearMDP:
    """Features in the probability simplex: each pair mixes d hidden situations.

    mu_h^i is a distribution over states and theta_h in [0, 1]^d, so any mixture is an MDP. The
    first d pairs are the situations themselves, without which none could be learnt apart.
    """
    _sizes(states, actions, d, horizon)
    features = generator.dirichlet(np.full(d, 0.5), size=states * actions)
    features[generator.permutation(states * actions)[:d]] = np.eye(d)
    mu = generator.dirichlet(np.full(states, 0.3), size=(horizon, d))
    theta = generator.random((horizon, d))
    initial = np.full(states, 1 / states)
    return LinearMDP(features.reshape(states, actions, d), theta, mu, initial)


def random_finite(
    states: int, actions: int, d: int, horizon: int, generator: np.random.Generator
) -> LinearMDP:
    """Features of any sign and signed measures: the simplex family in turned coordinates.

    phi -> phi Q and (theta, mu) -> Q^T (theta, mu) for a random orthogonal Q leave rewards,
    transitions and every length as they are, and nothing sparse or positive.
    """
    base = simplex(states, actions, d, horizon, generator)
    turn, triangle = np.linalg.qr(generator.standard_normal((d, d)))
    turn = turn * np.sign(np.diag(triangle))
    return LinearMDP(
        base.features @ turn,
        base.theta @ turn,
        np.einsum("ij,hit->hjt", turn, base.mu),
        base.initial,
    )


def chain(length: int, horizon: int, slip: float = 0.0) -> LinearMDP:
    """Hard exploration: reward 1 at the far end, .01 for staying at the start.

    Action 1 moves right (with probability 1 - slip, otherwise left), action 0 left. Only
    length - 1 steps to the right in a row see the large reward, on which a learner that is
    greedy from the start, and settles for the small one, never happens. One-hot features,
    d = 2 * length.

    Args:
        length: number of states; the start is state 0.
        horizon: H, at least `length`, or the end cannot be reached and paid.
        slip: probability that a step to the right fails.
    """
    if length < 2 or horizon < length:
        raise BadInput(
            f"length={length}, horizon={horizon}: a chain has 2 states or more and a horizon of "
            "at least its length"
        )
    if not 0 <= slip < 1:
        raise BadInput(f"slip={slip}: must lie in [0, 1)")
    d = 2 * length
    features = np.eye(d).reshape(length, 2, d)
    rewards = np.zeros((length, 2))
    rewards[0, 0], rewards[-1, 1] = 0.01, 1.0
    transitions = np.zeros((length, 2, length))
    for state in range(length):
        left, right = max(state - 1, 0), min(state + 1, length - 1)
        transitions[state, 0, left] = 1.0
        transitions[state, 1, right] += 1 - slip
        transitions[state, 1, left] += slip
    initial = np.eye(length)[0]
    return LinearMDP.from_tables(
        features,
        np.broadcast_to(rewards, (horizon, length, 2)),
        np.broadcast_to(transitions, (horizon, length, 2, length)),
        initial,
    )


def _sizes(states: int, actions: int, d: int, horizon: int) -> None:
    if min(states, actions, horizon) < 1 or not 1 <= d <= states * actions:
        raise BadInput(
            f"states={states}, actions={actions}, d={d}, horizon={horizon}: all must be at least "
            "1, and d at most states * actions"
        )
