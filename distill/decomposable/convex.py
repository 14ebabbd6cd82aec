"""The decomposable case: phi(s, a) = phi1(s) + phi2(a), where distillation is convex.

For linear predictors f = <v, phi> the maximum leaves the states: max_a' f(s', a') = <v, phi1(s')> +
alpha(v) with alpha(v) = max_a <v, phi2(a)>. With z = (phi1(s) + phi2(a) - gamma phi1(s'), r) and
u = (v, -lambda), q numbers each, a Bellman loss is

    L_on(u; D) = u^T E_D[z z^T] u - 2 gamma alpha(v) u^T E_D[z] + gamma^2 alpha(v)^2

(and u^T E[z z^T] u with z = (phi1(s) + phi2(a), r) for terminated ones). Under the linear moment
constraint E_syn[phi1(s), phi2(a), r, phi1(s')] = E_train[...] the middle terms are equal, so losses
differ by u^T (M_syn - M_train) u, as in regression (2512.00536, Theorem 4.4): q(q+1)/2 predictors
determine M, and |L_syn - L_train| <= |u|^2 ||M_syn - M_train||_2 for *every* linear predictor.

Both M and the constrained moments are linear in weights w on candidate transitions, so with

    minimize  sum_j (sum_i w_i l_j(i) - L_j)^2   s.t.  w >= 0, sum w = 1, the moment constraint

the problem is a convex (quadratic) programme whose points are real transitions with weights. The
traps: moment constraints are met exactly only if the training set's moments lie in the candidates'
convex hull, so fewer candidates than moments will not do; and argmax_a <v, phi> does not depend on
s here, so what is kept are the losses, not a control policy.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np

from reprise.rollout.errors import BadInput

ROUNDING = 1e-6  # of the largest singular value: what float32 observations cannot tell from 0
MOVES = 30  # of polishing, at most


@dataclass(frozen=True)
class Linear:
    """Transitions of one kind (terminated or not) under decomposable features.

    Attributes:
        residual: z [N, q].
        moments: (phi1(s), phi2(a), r, phi1(s')) [N, c], what the constraint equates; without the
            last where terminated.
    """

    residual: np.ndarray
    moments: np.ndarray

    @classmethod
    def of(
        cls,
        state: np.ndarray,
        action: np.ndarray,
        rewards: np.ndarray,
        following: np.ndarray | None,
        gamma: float,
    ) -> Linear:
        """From phi1(s) [N, d], phi2(a) [N, d], r [N] and phi1(s') [N, d], None where terminated."""
        features = state + action
        moments = [state, action, rewards[:, None]]
        if following is not None:
            features = features - gamma * following
            moments.append(following)
        return cls(np.column_stack([features, rewards]), np.column_stack(moments))

    def second_moment(self, weights: np.ndarray | None = None) -> np.ndarray:
        """E[z z^T] [q, q], with weights [N] or uniform ones."""
        if weights is None:
            weights = np.full(len(self.residual), 1 / len(self.residual))
        return (self.residual * weights[:, None]).T @ self.residual


def predictors_needed(q: int) -> int:
    """q (q + 1) / 2: with fewer, some direction of M is seen by none."""
    return q * (q + 1) // 2


def points_needed(full: Linear) -> int:
    """Independent moments and one for the weights' sum: fewer points cannot have their mean."""
    return equations(full.moments).shape[1] + 1


def standardized(moments: np.ndarray) -> np.ndarray:
    """Moments [N, c] less their means, in units of their deviations: the constraint wants 0."""
    deviation = moments.std(0)
    return (moments - moments.mean(0)) / np.where(deviation > 1e-12, deviation, 1.0)


def equations(moments: np.ndarray) -> np.ndarray:
    """Independent directions of the moments, [N, rank] of mean 0 and variance 1.

    The trap: where s' is linear in s (CartPole's x' = x + tau v) some direction of (phi1(s),
    phi1(s')) is nothing but float32's rounding, below 1e-6 of the largest. As an equation it would
    be met by no weights.
    """
    left, values, _ = np.linalg.svd(standardized(moments), full_matrices=False)
    return left[:, values > ROUNDING * values[0]] * math.sqrt(len(moments))


def feasible(points: np.ndarray) -> bool:
    """Whether 0 lies in the convex hull of `points` [N, c]: a linear programme.

    Of `equations` at some candidates: whether weights on these can meet the moment constraint.
    """
    from scipy.optimize import linprog

    rows = np.vstack([points.T, np.ones(len(points))])
    wanted = np.append(np.zeros(len(rows) - 1), 1.0)
    return bool(linprog(np.zeros(len(points)), A_eq=rows, b_eq=wanted).status == 0)


def chance_of_hull(count: int, dimension: int) -> float:
    """P that 0 lies in the hull of `count` points in `dimension`, symmetric about 0 (Wendel 1962).

    1 - 2^(1-N) sum_{i < m} C(N-1, i): half at N = 2m.
    """
    below = sum(math.comb(count - 1, i) for i in range(min(dimension, count)))
    return 1.0 - below / 2 ** (count - 1)  # of whole numbers, however large


def fit_weights(
    losses: np.ndarray, candidates: np.ndarray, constraint: np.ndarray | None
) -> np.ndarray | None:
    """w on `candidates`, of any predictors' losses: the quadratic programme above, relative errors.

    Args:
        losses: l_j(i) of all transitions [n, K].
        candidates: rows that may get weight.
        constraint: `equations` of the moments [n, c], of mean 0; None: no constraint.

    Returns:
        Weights; None where none meet the constraint.
    """
    import cvxpy as cp

    wanted = losses.mean(0)
    size = np.maximum(wanted, 1e-12)
    balance = np.zeros((0, len(candidates)))
    if constraint is not None:
        balance = constraint[candidates].T
    weights = cp.Variable(len(candidates), nonneg=True)
    errors = (losses[candidates] / size).T @ weights - wanted / size
    constraints = [cp.sum(weights) == 1]
    if len(balance):
        constraints.append(balance @ weights == 0)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(errors)), constraints)
    with warnings.catch_warnings():
        # What the programme reached is measured on held-out predictors.
        warnings.filterwarnings("ignore", "Solution may be inaccurate")
        problem.solve(solver=cp.CLARABEL)
    if problem.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
        return None
    found = np.maximum(np.asarray(weights.value), 0.0)
    rows = np.vstack([(losses[candidates] / size).T, np.ones((1, len(candidates))), balance])
    right = np.concatenate([wanted / size, np.ones(1), np.zeros(len(balance))])
    return _polished(found / found.sum(), rows, right)


def _polished(weights: np.ndarray, rows: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Weights moved to meet all equations to rounding, where they can and stay positive.

    Interior points end at residuals of 1e-8, which the smallest singular value of t predictors can
    magnify a thousand times. Each move is the smallest relative to the weights, and ends before one
    of them is gone.
    """
    off = right - rows @ weights
    for _ in range(MOVES):
        move = weights * np.linalg.lstsq(rows * weights, off, rcond=1e-13)[0]
        shrinking = move < 0
        step = min(1.0, 0.9 * float((weights[shrinking] / -move[shrinking]).min(initial=np.inf)))
        moved = weights + step * move
        left = right - rows @ moved
        if np.abs(left).max() >= np.abs(off).max():
            break
        weights, off = moved, left
    return weights


@dataclass(frozen=True)
class Weighted:
    """Weights on the candidates, and what they achieve.

    Attributes:
        weights: w [N], not negative, sum 1.
        moment_error: largest violation of the moment constraint.
        gap: ||M_syn - M_train||_2, which bounds every linear predictor's error by |u|^2 gap.
    """

    weights: np.ndarray
    moment_error: float
    gap: float


def solve(
    full: Linear, candidates: np.ndarray, predictors: np.ndarray, alphas: np.ndarray, gamma: float
) -> Weighted:
    """Weights on `candidates` whose Bellman losses of all predictors are nearest the full set's.

    Args:
        full: the training set's transitions of one kind.
        candidates: rows of it that may get weight.
        predictors: u_j = (v_j, -lambda_j) [K, q].
        alphas: max_a <v_j, phi2(a)> [K]; zeros where terminated.
        gamma: discount.

    Raises:
        BadInput: fewer candidates than the constraint's moments, or it cannot be met.
    """
    needed = points_needed(full)
    if len(candidates) < needed:
        raise BadInput(
            f"size={len(candidates)}: the moment constraint has {needed - 1} independent equations "
            f"and the weights sum to 1, so at least {needed} points are needed"
        )
    losses = np.square(full.residual @ predictors.T - gamma * alphas)  # [n, K]
    found = fit_weights(losses, candidates, equations(full.moments))
    if found is None:
        raise BadInput(
            f"size={len(candidates)}: no weights on these points meet the moment constraint: the "
            "training set's moments lie outside their convex hull; take more points"
        )
    return achieved(full, candidates, found)


def achieved(full: Linear, candidates: np.ndarray, weights: np.ndarray) -> Weighted:
    """What weights on `candidates` achieve, however they were found."""
    part = Linear(full.residual[candidates], full.moments[candidates])
    difference = part.second_moment(weights) - full.second_moment()
    return Weighted(
        weights,
        float(np.abs(standardized(full.moments)[candidates].T @ weights).max()),
        float(np.linalg.norm(difference, 2)),
    )


def bellman_loss(
    data: Linear,
    predictors: np.ndarray,
    alphas: np.ndarray,
    gamma: float,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Mean of (u . z - gamma alpha)^2 for each predictor [K], weighted if asked."""
    errors = np.square(data.residual @ predictors.T - gamma * alphas)
    return errors.mean(0) if weights is None else weights @ errors
