"""Distilling a regression data set: few points on which every linear model has the same loss.

A point is z = (x, y), or z = (x, 1, y) for models with an intercept, q numbers; a regressor is
r in R^q with loss (r . z)^2, so r = (w, -1) is the squared error of the model w. Over a data set,

    L(r) = (1/n) sum_i (r . z_i)^2 = r^T M r,      M = Z^T Z / n.

Equal M is equal loss for *every* linear model. Three routes to such points:

* sampled: min_Z sum_j (L_syn(r_j) - L_train(r_j))^2 over k random regressors, r_j ~ N(0, I/q),
  from a random subset (2512.00536, Algorithm 1). By L-BFGS, or by Gauss-Newton, which converges in
  some ten steps where L-BFGS takes thousands.
* moments: the same with M itself in place of losses: min_Z |M_syn - M|_F^2, by Gauss-Newton.
* closed_form: its exact solution, with points of one norm (`distill.closed_form`).

The threshold. r_j r_j^T span the symmetric matrices exactly when k >= q(q+1)/2 (almost surely):
from there on matched losses are matched moments. Below it the optimizer moves freely along what
the k losses do not see. Losses of regressors like the r_j still come closer, on average, than the
starting subset's; but where features are correlated the worst model's are often *farther* off, and
least squares fitted on the points is worse than on the subset.
The trap: the objective is convex in M, not in the points.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from reprise.distill.supervised.closed_form import closed_form, closed_form_centred
from reprise.distill.supervised.domains import Bounded, Unbounded
from reprise.rollout.errors import BadInput

# Gauss-Newton ends when residuals are this small against their target: float64 has no more.
PRECISION = 1e-15
GAUSS_NEWTON_STEPS = 200


class BelowThreshold(UserWarning):
    """Fewer regressors than determine the moments: matched losses do not carry over."""


@dataclass(frozen=True)
class Distilled:
    """Points [N, q], and how the optimizer got there.

    `objective` is sum_j (L_syn(r_j) - L_train(r_j))^2 / sum_j L_train(r_j)^2 at the end, `initial`
    at the starting points; for the moment routes the same over the entries of M.
    """

    points: np.ndarray
    objective: float
    initial: float
    iterations: int


# -- losses and moments ----------------------------------------------------------------------------


def second_moment(points: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """M = Z^T diag(weights) Z / n, [q, q]; weights of mean 1 in expectation."""
    weighted = points if weights is None else points * weights[:, None]
    return points.T @ weighted / len(points)


def losses(moment: np.ndarray, regressors: np.ndarray) -> np.ndarray:
    """L(r_j) = r_j^T M r_j, [k]."""
    return (regressors @ moment * regressors).sum(1)


def draw_regressors(count: int, width: int, draw: np.random.Generator) -> np.ndarray:
    """r_j ~ N(0, I/q), [count, q]."""
    return draw.standard_normal((count, width)) / np.sqrt(width)


def threshold(width: int, intercept: bool = False) -> int:
    """Regressors that determine M: q(q+1)/2; with an intercept one less, as M has a known 1."""
    return width * (width + 1) // 2 - int(intercept)


def size_bound(points: np.ndarray) -> int:
    """Points that can have these moments: at least the rank of M, q = d + 1 (+ 1) in general.

    N points have moments of rank at most N; some regressor then has loss 0 on them.
    """
    return int(np.linalg.matrix_rank(points))


# -- distillation ----------------------------------------------------------------------------------


def distill(
    route: str,
    training: np.ndarray,
    start: np.ndarray,
    regressors: np.ndarray,
    *,
    draw: np.random.Generator,
    domain: Bounded | None = None,
    intercept: bool = False,
    max_iterations: int = 20_000,
    allow_too_few: bool = False,
) -> Distilled:
    """N points on which regressors have the losses they have on `training`.

    Args:
        route: sampled, sampled_gauss_newton, moments or closed_form.
        training: Z [n, q]; with an intercept the last column but one is 1.
        start: the points to start from, [N, q]; the closed form takes only their number.
        regressors: r_j [k, q]; the moment routes take none of them.
        draw: of the closed form's free rotation.
        domain: where the points (without the 1) may lie; the closed form's always lie in a ball
            around 0 that holds `training`, and may leave a box.
        intercept: whether z = (x, 1, y).
        max_iterations: of L-BFGS.
        allow_too_few: not an error, for showing what happens.

    Raises:
        BadInput: a number is not finite, or N is below the size bound.

    Warns:
        BelowThreshold: k < q(q+1)/2.
    """
    for name, array in (("training", training), ("start", start)):
        if not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array).all(1))[0])
            raise BadInput(f"{name}: row {row} has a value that is not finite; drop or fill it")
    least, width = size_bound(training), training.shape[1]
    if len(start) < least and not allow_too_few:
        raise BadInput(
            f"size={len(start)} is below the size bound: the training data's second moments have "
            f"rank {least}, and fewer than {least} points cannot have them (Lemma C.2)"
        )
    needed = threshold(width, intercept)
    sampled = route in ("sampled", "sampled_gauss_newton")
    if sampled and len(regressors) < needed:
        warnings.warn(
            f"regressors={len(regressors)} is below the threshold q(q+1)/2 = {needed}: losses of "
            "other regressors will not match",
            BelowThreshold,
            stacklevel=2,
        )
    moment = second_moment(training)
    problem = Matching(moment, start, intercept, domain or Unbounded())
    if route == "sampled":
        return _lbfgs(problem, regressors, max_iterations)
    if route == "sampled_gauss_newton":
        return _gauss_newton(problem, loss_rows(regressors))
    if route == "moments":
        return _gauss_newton(problem, moment_rows(width))
    assert route == "closed_form", route
    points = _closed_form(training, moment, len(start), intercept, draw, allow_too_few)
    measure = moment_rows(width)
    return Distilled(points, problem.relative(measure, points), problem.initial(measure), 0)


class Matching:
    """The problem in the free vectors u: points(u) with the 1s of an intercept put in."""

    def __init__(
        self, moment: np.ndarray, start: np.ndarray, intercept: bool, domain: Bounded
    ) -> None:
        self.moment, self.start, self.domain = moment, start, domain
        self.shape = start.shape
        width = start.shape[1]
        self.free = np.delete(np.arange(width), width - 2) if intercept else np.arange(width)
        self.upper = np.triu_indices(width)
        self.first = domain.inverse(start[:, self.free])

    def points(self, u: np.ndarray) -> np.ndarray:
        """Z [N, q] of free vectors u [N, q or q - 1]."""
        points = np.ones(self.shape)
        points[:, self.free] = self.domain.points(u)
        return points

    def objective(
        self, u: np.ndarray, regressors: np.ndarray, target: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """f = sum_j (r_j^T M_syn r_j - target_j)^2 and df/du, like u.

        df/dZ = (4/N) Z sum_j (r_j^T M_syn r_j - target_j) r_j r_j^T, then dz/du of the domain.
        """
        points = self.points(u)
        residual = losses(second_moment(points), regressors) - target
        pull = (regressors.T * residual) @ regressors
        gradient = 4 / len(points) * (points @ pull)[:, self.free]
        return float(residual @ residual), self.domain.pull_back(u, gradient)

    def gap(self, points: np.ndarray) -> np.ndarray:
        """The upper triangle of M_syn - M, [q(q+1)/2]."""
        return (second_moment(points) - self.moment)[self.upper]

    def jacobian(self, u: np.ndarray) -> np.ndarray:
        """d gap / du, [q(q+1)/2, N * free]: dM_ab/dz_i = (z_ib e_a + z_ia e_b) / N."""
        points = self.points(u)
        rows, columns = self.upper
        slope = np.zeros((len(rows), *self.shape))
        index = np.arange(len(rows))
        slope[index, :, rows] += points.T[columns] / len(points)
        slope[index, :, columns] += points.T[rows] / len(points)
        slope = self.domain.pull_back(u, slope[:, :, self.free])
        return slope.reshape(len(rows), -1)

    def relative(self, measure: np.ndarray, points: np.ndarray) -> float:
        """|measure gap|^2 over |measure M|^2."""
        target = measure @ self.moment[self.upper]
        residual = measure @ self.gap(points)
        return float(residual @ residual / (target @ target))

    def initial(self, measure: np.ndarray) -> float:
        """`relative` at the starting points."""
        return self.relative(measure, self.start)


def loss_rows(regressors: np.ndarray) -> np.ndarray:
    """A [k, q(q+1)/2] with A triu(M) = losses: r_a r_b, twice off the diagonal."""
    rows, columns = np.triu_indices(regressors.shape[1])
    twice = np.where(rows == columns, 1.0, 2.0)
    return twice * regressors[:, rows] * regressors[:, columns]


def moment_rows(width: int) -> np.ndarray:
    """Diagonal A with |A triu(M)|_2 = |M|_F."""
    rows, columns = np.triu_indices(width)
    return np.diag(np.where(rows == columns, 1.0, np.sqrt(2.0)))


# -- optimizers ------------------------------------------------------------------------------------


def _lbfgs(problem: Matching, regressors: np.ndarray, limit: int) -> Distilled:
    """Algorithm 1's optimizer, run until float64 sees no more descent."""
    from scipy.optimize import minimize

    target = losses(problem.moment, regressors)
    scale = float(target @ target)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = problem.objective(flat.reshape(problem.first.shape), regressors, target)
        return value / scale, gradient.ravel() / scale

    first = objective(problem.first.ravel())[0]
    options: dict[str, Any] = {"maxcor": 50, "maxiter": limit, "maxfun": 2 * limit}
    # Tolerances of 0: it ends when its line search finds no lower value.
    found = minimize(
        objective,
        problem.first.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={**options, "ftol": 0.0, "gtol": 0.0, "maxls": 50},
    )
    points = problem.points(found.x.reshape(problem.first.shape))
    return Distilled(points, float(found.fun), first, int(found.nit))


def _gauss_newton(problem: Matching, measure: np.ndarray) -> Distilled:
    """min_u |measure gap(u)|^2 by damped Gauss-Newton (Levenberg-Marquardt).

    There are more unknowns than equations, so the step of least length is solved for in the
    equations: -J^T (J J^T + damping)^-1 f. More than q(q+1)/2 of them are first reduced to their
    R factor, which has the same sum of squares.
    """
    initial = problem.initial(measure)
    if len(measure) > measure.shape[1]:
        measure = np.linalg.qr(measure, mode="r")
    size = float(np.linalg.norm(measure @ problem.moment[problem.upper]))
    u, damping, iterations = problem.first, 1e-3, 0
    residual = measure @ problem.gap(problem.points(u))
    while iterations < GAUSS_NEWTON_STEPS and np.linalg.norm(residual) > PRECISION * size:
        iterations += 1
        slope = measure @ problem.jacobian(u)
        normal = slope @ slope.T
        scale = np.trace(normal) / len(normal)
        gain = 0.0
        while gain <= 0 and damping < 1e6:
            dual = np.linalg.solve(normal + damping * scale * np.eye(len(normal)), residual)
            tried = u - (slope.T @ dual).reshape(u.shape)
            after = measure @ problem.gap(problem.points(tried))
            linear = residual - normal @ dual
            # What was gained, as a share of what the linear model promised: steps that it
            # misjudges are followed by shorter ones (Nielsen's rule).
            promised = residual @ residual - linear @ linear
            won = residual @ residual - after @ after
            gain = float(won / promised) if promised > 0 else -1.0
            factor = max(0.1, 1 - (2 * gain - 1) ** 3) if gain > 0 else 10.0
            damping = min(max(damping * factor, 1e-14), 1e6)
        if gain <= 0:
            break
        u, residual = tried, after
    objective = float(residual @ residual) / size**2
    return Distilled(problem.points(u), objective, initial, iterations)


def _closed_form(
    training: np.ndarray,
    moment: np.ndarray,
    size: int,
    intercept: bool,
    draw: np.random.Generator,
    truncate: bool,
) -> np.ndarray:
    if not intercept:
        return closed_form(moment, size, draw, truncate)
    free = np.delete(training, training.shape[1] - 2, axis=1)
    mean = free.mean(0)
    points = closed_form_centred(mean, second_moment(free - mean), size, draw)
    return np.insert(points, points.shape[1] - 1, 1.0, axis=1)
