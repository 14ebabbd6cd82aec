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

from dataclasses import dataclass

import numpy as np


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
    """Rank of the constrained moments with a one: fewer points cannot have their mean."""
    one = np.ones((len(full.moments), 1))
    return int(np.linalg.matrix_rank(np.column_stack([one, full.moments])))


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
        ValueError: fewer candidates than the constraint's moments, or it cannot be met.
    """
    import cvxpy as cp

    needed = points_needed(full)
    if len(candidates) < needed:
        raise ValueError(
            f"size={len(candidates)}: the moment constraint has {needed - 1} independent equations "
            f"and the weights sum to 1, so at least {needed} points are needed"
        )
    scale = np.where((std := full.moments.std(0)) > 1e-12, std, 1.0)
    moments = (full.moments - full.moments.mean(0)) / scale
    losses = np.square(full.residual @ predictors.T - gamma * alphas)  # [n, K]
    wanted = losses.mean(0)
    size = np.maximum(wanted, 1e-12)
    weights = cp.Variable(len(candidates), nonneg=True)
    errors = (losses[candidates] / size).T @ weights - wanted / size
    problem = cp.Problem(
        cp.Minimize(cp.sum_squares(errors)),
        [cp.sum(weights) == 1, moments[candidates].T @ weights == 0],
    )
    problem.solve(solver=cp.CLARABEL)
    if problem.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
        raise ValueError(
            f"size={len(candidates)}: no weights on these points meet the moment constraint "
            f"({problem.status}): the training set's moments lie outside their convex hull; take "
            "more points"
        )
    found = np.maximum(np.asarray(weights.value), 0.0)
    found /= found.sum()
    part = Linear(full.residual[candidates], full.moments[candidates])
    difference = part.second_moment(found) - full.second_moment()
    return Weighted(
        found,
        float(np.abs(moments[candidates].T @ found).max()),
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
