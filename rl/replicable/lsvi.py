"""Least-squares value iteration, replicable or not: R-LSVI, R-LSVI-UCB and their originals.

2509.08660, Algorithms 4 and 5, on finite linear MDPs, for R replicas at once. Replica r draws its
data from generator r; all of them share the grids, drawn from one internal stream. `alpha` None
leaves the estimates unrounded: LSVI and LSVI-UCB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from reprise.rl.replicable.agreement import Trace
from reprise.rl.replicable.linear_mdp import LinearMDP
from reprise.rl.replicable.regression import (
    Normalization,
    NotPositive,
    one_thread,
    ridge,
    round_covariance,
)
from reprise.rl.replicable.rounding import hypergrid_rounding
from reprise.rollout.errors import BadInput

Backup = Literal["sweep", "previous"]
Cap = Literal["remaining", "horizon"]


@dataclass(frozen=True)
class Learned:
    """What R replicas learned, and how their agreement came about."""

    weights: np.ndarray  # [R, H, ...] the rounded estimates, of the last round where there are many
    policies: np.ndarray  # [R, H, S], or [R, T + 1, H, S] for a list of policies: actions
    trace: Trace


# -- core sets -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CoreSet:
    """A design on few vectors that spans all.

    Two numbers say how well. `leverage` = max_x x^T (sum_i nu_i x_i x_i^T)^+ x, at least d and at
    most d (1 + tolerance) for an optimal design. `printed` is the smallest k for which Definition
    3.1 holds as printed: max_x of the least |eta|^2 with x = sum_i eta_i nu_i x_i, that is
    x^T (sum_i nu_i^2 x_i x_i^T)^+ x. It exceeds the number of vectors whenever leverage exceeds 1,
    also for an orthonormal basis (d^2), so k is not that number. The proof of Theorem 3.2 holds
    with `leverage` in the place of k: apply Cauchy-Schwarz with weights nu.
    """

    rows: np.ndarray  # int [K], which vectors
    weights: np.ndarray  # nu [K], positive, sum 1
    leverage: float
    printed: float


def core_set(vectors: np.ndarray, tolerance: float = 0.01, steps: int = 100_000) -> CoreSet:
    """Find a G-optimal design on [n, d]: max_i g_i is the rank (Kiefer-Wolfowitz).

    With g_i = x_i^T (sum nu x x^T)^+ x_i, each step either adds weight to the vector of largest g,
    or takes weight from the chosen vector of smallest g, whichever is farther from the rank r, by
    the length that maximises the determinant (Wynn's method with away steps):

        nu <- (1 - b) nu + b e_i,   b = (g_i / r - 1) / (g_i - 1), negative where weight is taken.

    Raises:
        BadInput: no vector, all of them zero, or not `tolerance` close after `steps`.
    """
    if vectors.ndim != 2 or not len(vectors) or not np.abs(vectors).max() > 0:
        raise BadInput("core set: needs at least one feature vector that is not zero")
    with one_thread():
        rank = int(np.linalg.matrix_rank(vectors))
        nu = np.full(len(vectors), 1 / len(vectors))
        for _ in range(steps):
            leverage = _leverage(vectors, vectors, nu)
            most = int(leverage.argmax())
            least = int(np.where(nu > 0, leverage, np.inf).argmin())
            if leverage[most] <= rank * (1 + tolerance) and nu.min(where=nu > 0, initial=1) > 1e-6:
                break
            if leverage[most] - rank > rank - leverage[least]:
                index = most
                length = (leverage[most] / rank - 1) / (leverage[most] - 1)
            else:
                index = least
                length = all_of_it = -nu[least] / (1 - nu[least])
                if leverage[least] > 1:
                    length = max(all_of_it, (leverage[least] / rank - 1) / (leverage[least] - 1))
            nu = (1 - length) * nu
            nu[index] = max(0.0, nu[index] + length)
            nu[nu < 1e-15] = 0.0
            nu /= nu.sum()
        else:
            raise BadInput(
                f"core set: leverage {leverage.max():.4g} for rank {rank} after {steps} steps; "
                f"accept more than tolerance={tolerance}"
            )
        rows = np.flatnonzero(nu)
        printed = _leverage(vectors, vectors[rows], nu[rows] ** 2)
    return CoreSet(rows, nu[rows], float(leverage.max()), float(printed.max()))


def _leverage(vectors: np.ndarray, chosen: np.ndarray, weights: np.ndarray) -> np.ndarray:
    inverse = np.linalg.pinv((chosen * weights[:, None]).T @ chosen, hermitian=True)
    return np.einsum("nd,de,ne->n", vectors, inverse, vectors)


# -- generative access -----------------------------------------------------------------------------


def lsvi(
    mdp: LinearMDP,
    core: CoreSet,
    samples: int,
    generators: Sequence[np.random.Generator],
    grid: np.random.Generator,
    *,
    alpha: float | None,
    regularization: float,
    normalization: Normalization = "mean",
    weight_bound: float = 1e6,
) -> Learned:
    """R-LSVI with a core set (Algorithm 4), or LSVI where `alpha` is None.

    For h = H-1 .. 0: ceil(nu_i samples) next states of each pair i of the core set, ridge
    regression of R_h + V_{h+1}(s') on the features, rounding, V_h = min(max_a Q_h, H).

    Args:
        mdp: with generative access.
        core: pairs (rows of features.reshape(-1, d)) and how often to draw each.
        samples: M, next states for each step h.
        generators: one data generator for each replica.
        grid: internal generator of the offsets, fresh ones for each step.
        alpha: width of the grid; None: unrounded.
        regularization: lambda.
        normalization: of the ridge regression.
        weight_bound: bound on the weights' entries.
    """
    if samples < 1:
        raise BadInput(f"samples={samples}; must be at least 1")
    pairs = mdp.features.reshape(-1, mdp.dimension)[core.rows]
    each = np.ceil(core.weights * samples - 1e-9).astype(np.int64)
    gram = (pairs * each[:, None]).T @ pairs
    replicas = len(generators)
    values = np.zeros((replicas, len(mdp.initial)))
    weights = np.zeros((replicas, mdp.horizon, mdp.dimension))
    policies = np.zeros((replicas, mdp.horizon, len(mdp.initial)), dtype=np.int64)
    trace = Trace(replicas)
    with one_thread():
        for h in reversed(range(mdp.horizon)):
            rewards = mdp.rewards[h].reshape(-1)[core.rows]
            counts = np.stack([mdp.next_counts(h, core.rows, each, draw) for draw in generators])
            targets = each * rewards + np.einsum("rks,rs->rk", counts, values)
            estimate = ridge(gram, targets @ pairs, each.sum(), regularization, normalization)
            weights[:, h] = _round(estimate, grid, alpha, weight_bound)
            trace.step(estimate, weights[:, h], alpha)
            q = np.einsum("sad,rd->rsa", mdp.features, weights[:, h])
            policies[:, h] = q.argmax(-1)
            values = np.minimum(q.max(-1), mdp.horizon)
    return Learned(weights, policies, trace)


# -- episodic access -------------------------------------------------------------------------------


def lsvi_ucb(
    mdp: LinearMDP,
    rounds: int,
    episodes: int,
    generators: Sequence[np.random.Generator],
    grid: np.random.Generator,
    *,
    alpha: float | None,
    alpha_covariance: float | None,
    beta: float,
    regularization: float,
    normalization: Normalization = "mean",
    backup: Backup = "sweep",
    cap: Cap = "remaining",
    not_positive: NotPositive = "project",
    weight_bound: float = 1e6,
) -> Learned:
    """R-LSVI-UCB (Algorithm 5), or LSVI-UCB in batches where both widths are None.

    T rounds: M episodes under pi^t, then for each h, on the data of all rounds so far,

        Q_h = min(cap_h, <w_h, phi> + beta sqrt(phi^T (G_h + lambda I)^-1 phi)),   V_h = max_a Q_h

    with w_h and G_h rounded. beta = 0 is greedy: LSVI on whatever it happens to see.

    Args:
        mdp: with episodic access.
        rounds: T.
        episodes: M, for each round.
        generators: one data generator for each replica.
        grid: internal generator of the offsets, fresh ones for each round and step.
        alpha: width of the weights' grid; None: unrounded.
        alpha_covariance: width of the covariances' grid; None: unrounded.
        beta: scale of the bonus.
        regularization: lambda, in the regression and in the bonus.
        normalization: of the ridge regression.
        backup: whose V_{h+1} the regression at h uses. "sweep": this round's, from h = H-1 down, as
            in LSVI-UCB and in the proof of Lemma D.1; "previous": the last round's, as line 19
            prints it, which carries a reward back one step a round.
        cap: cap_h = H - h ("remaining"), or H as printed ("horizon"): then unseen actions tie with
            seen ones, and exploration works its way back from the last step, a state at a time.
        not_positive: see `regression.round_covariance`.
        weight_bound: bound on the weights' entries.
    """
    if min(rounds, episodes) < 1:
        raise BadInput(f"rounds={rounds}, episodes={episodes}; both must be at least 1")
    replicas, (states, actions, d) = len(generators), mdp.features.shape
    trace, rewards, phi = Trace(replicas), mdp.rewards, mdp.features.reshape(-1, d)
    start = np.linalg.norm(mdp.features, axis=-1).argmax(-1)  # Q^0 = lambda beta |phi|
    policy = np.broadcast_to(start, (replicas, mdp.horizon, states)).copy()
    policies = [policy]
    estimates = np.zeros((replicas, mdp.horizon, d + d * (d + 1) // 2))
    seen = np.zeros((replicas, mdp.horizon, states, actions, states), dtype=np.int64)
    values = np.zeros((replicas, mdp.horizon + 1, states))
    with one_thread():
        for t in range(rounds):
            _play(mdp, policy, episodes, generators, seen)
            policy, previous = policy.copy(), values.copy()
            for h in reversed(range(mdp.horizon)):
                ahead = (values if backup == "sweep" else previous)[:, h + 1]
                gram, xy = _statistics(seen[:, h], phi, rewards[h].reshape(-1), ahead)
                weights = ridge(gram, xy, episodes * (t + 1), regularization, normalization)
                rounded = _round(weights, grid, alpha, weight_bound)
                trace.step(weights, rounded, alpha)
                spread = gram / episodes
                moment = spread
                if alpha_covariance is not None:
                    moment = round_covariance(
                        spread, grid, alpha_covariance, float(rounds), not_positive
                    )
                triangle = np.triu_indices(d)
                trace.step(spread[:, *triangle], moment[:, *triangle], alpha_covariance)
                bonus = beta * _widths(phi, moment + regularization * np.eye(d))
                most = mdp.horizon - h if cap == "remaining" else mdp.horizon
                q = np.minimum(rounded @ phi.T + bonus, most).reshape(replicas, states, actions)
                policy[:, h], values[:, h] = q.argmax(-1), q.max(-1)
                estimates[:, h] = np.concatenate([rounded, moment[:, *triangle]], axis=1)
            policies.append(policy)
    return Learned(estimates, np.stack(policies, axis=1), trace)


def _play(
    mdp: LinearMDP,
    policy: np.ndarray,
    episodes: int,
    generators: Sequence[np.random.Generator],
    seen: np.ndarray,
) -> None:
    """Add the transitions of each replica's episodes to its counts `seen` [R, H, S, A, S']."""
    for r, draw in enumerate(generators):
        counts = mdp.episode_counts(policy[r], episodes, draw)
        index = policy[r][..., None, None]
        old = np.take_along_axis(seen[r], index, axis=2)
        np.put_along_axis(seen[r], index, old + counts[:, :, None], axis=2)


def _statistics(
    seen: np.ndarray, phi: np.ndarray, rewards: np.ndarray, ahead: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """sum phi phi^T [R, d, d] and sum phi (R + V(s')) [R, d] of counts [R, S, A, S'], V [R, S']."""
    visits = seen.sum(-1).reshape(len(seen), -1)
    following = np.einsum("rsat,rt->rsa", seen, ahead).reshape(len(seen), -1)
    gram = np.einsum("rn,nd,ne->rde", visits, phi, phi)
    return gram, (visits * rewards + following) @ phi


def _widths(phi: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """sqrt(phi^T moment^-1 phi) of every pair [R, N]."""
    squares = np.einsum("nd,rde,ne->rn", phi, np.linalg.inv(moment), phi)
    return np.sqrt(np.maximum(squares, 0.0))


def _round(
    estimate: np.ndarray, grid: np.random.Generator, alpha: float | None, bound: float
) -> np.ndarray:
    if alpha is None:
        return estimate
    return hypergrid_rounding(estimate, grid, alpha, -bound, bound, replica_axes=1)
