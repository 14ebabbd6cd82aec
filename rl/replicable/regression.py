"""Replicable ridge regression and second moments (2509.08660, Algorithms 2 and 3).

    w = (G + lambda c I)^-1 m,   G = sum_i x_i x_i^T,   m = sum_i x_i y_i

with c = 1 for normalization "sum" (as Algorithm 2 prints it) and c = N for "mean". Theorem 3.1 is
about the minimiser of E[(w^T x - y)^2] + lambda |w|^2, which "mean" converges to: with "sum" the
regularization fades as N grows, and with it the strong convexity that the proof rests on.

Everything takes leading axes of replicas: statistics of R data sets give R rounded estimates on
one shared grid. One thread computes, so that the number of threads changes no bit.
"""

from __future__ import annotations

import functools
import math
from contextlib import AbstractContextManager
from typing import Literal

import numpy as np
from threadpoolctl import ThreadpoolController

from reprise.rl.replicable.rounding import hypergrid_rounding
from reprise.rollout.errors import BadInput

Normalization = Literal["mean", "sum"]
NotPositive = Literal["project", "raise", "keep"]


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def one_thread() -> AbstractContextManager[object]:
    """Within the block BLAS computes with one thread: sums are added in one order, always."""
    return _controller().limit(limits=1)


# -- estimates from statistics ---------------------------------------------------------------------


def moments(features: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """G [..., d, d] and m [..., d] of features [..., N, d] and targets [..., N].

    Raises:
        BadInput: no data, values that are not finite, or features longer than 1 (Assumption 3.1).
    """
    check_features(features)
    if not np.isfinite(targets).all():
        raise BadInput(f"targets: {int((~np.isfinite(targets)).sum())} are not finite numbers")
    transposed = np.swapaxes(features, -1, -2)
    with one_thread():
        return transposed @ features, (transposed @ targets[..., None])[..., 0]


def ridge(
    gram: np.ndarray,
    moment: np.ndarray,
    count: int | np.ndarray,
    regularization: float,
    normalization: Normalization,
) -> np.ndarray:
    """w [..., d], the ridge weights of statistics of `count` data points.

    Raises:
        BadInput: no data, a negative lambda, or without regularization too little data for d.
    """
    if np.min(count) < 1:
        raise BadInput("no data: a regression needs at least one point")
    if not (math.isfinite(regularization) and regularization >= 0):
        raise BadInput(f"lambda={regularization}: must be finite and at least 0")
    scale = np.asarray(count if normalization == "mean" else 1, dtype=np.float64)
    identity = np.eye(gram.shape[-1])
    try:
        with one_thread():
            system = gram + (regularization * scale)[..., None, None] * identity
            return np.linalg.solve(system, moment[..., None])[..., 0]
    except np.linalg.LinAlgError as error:
        raise BadInput(
            f"lambda={regularization}: the features do not span their {gram.shape[-1]} dimensions, "
            "and without regularization the weights are not determined; use lambda > 0"
        ) from error


def replicable_ridge(
    features: np.ndarray,
    targets: np.ndarray,
    generator: np.random.Generator,
    *,
    regularization: float,
    alpha: float,
    weight_bound: float,
    normalization: Normalization = "mean",
) -> np.ndarray:
    """R-Ridge-Regression (Algorithm 2): ridge weights, rounded to the shared grid.

    Args:
        features: [..., N, d], each of length at most 1.
        targets: [..., N].
        generator: internal stream; replicas get equal ones.
        regularization: lambda.
        alpha: width of the grid; `ridge_bin` gives the paper's.
        weight_bound: weights lie in [-weight_bound, weight_bound].
        normalization: "mean" (Theorem 3.1) or "sum" (as printed).
    """
    gram, moment = moments(features, targets)
    weights = ridge(gram, moment, features.shape[-2], regularization, normalization)
    return hypergrid_rounding(
        weights, generator, alpha, -weight_bound, weight_bound, weights.ndim - 1
    )


def covariance(features: np.ndarray) -> np.ndarray:
    """sum_t 1/M sum_m x x^T [..., d, d] of features [..., T, M, d] (Algorithm 3, line 3)."""
    check_features(features)
    with one_thread():
        return (np.swapaxes(features, -1, -2) @ features / features.shape[-2]).sum(-3)


def round_covariance(
    estimate: np.ndarray,
    generator: np.random.Generator,
    alpha: float,
    bound: float,
    not_positive: NotPositive,
) -> np.ndarray:
    """Round the upper triangle of estimates [..., d, d] and mirror it (Algorithm 3, lines 4-5).

    The result is symmetric but, despite the paper's remark, *not* always positive semidefinite: a
    zero rounds to as much as alpha/2. `not_positive` says what then happens:

    * "project": to the nearest positive semidefinite matrix in Frobenius norm (negative
      eigenvalues become 0). A function of the rounded matrix alone, so equal ones stay equal, and
      since the projection is onto a convex set that holds the truth, never farther from it.
    * "raise": BadInput.
    * "keep": leave it; an inverse may then not be one of a covariance.
    """
    d = estimate.shape[-1]
    rows, columns = np.triu_indices(d)
    upper = hypergrid_rounding(
        estimate[..., rows, columns], generator, alpha, -bound, bound, estimate.ndim - 2
    )
    rounded = np.empty_like(estimate, dtype=np.float64)
    rounded[..., rows, columns] = upper
    rounded[..., columns, rows] = upper
    return rounded if not_positive == "keep" else _positive(rounded, not_positive)


def replicable_covariance(
    features: np.ndarray,
    generator: np.random.Generator,
    *,
    alpha: float,
    not_positive: NotPositive = "project",
) -> np.ndarray:
    """R-UC-Cov-Estimation (Algorithm 3) of features [..., T, M, d]; see `round_covariance`."""
    estimate = covariance(features)
    return round_covariance(estimate, generator, alpha, float(features.shape[-3]), not_positive)


def _positive(matrices: np.ndarray, not_positive: NotPositive) -> np.ndarray:
    with one_thread():
        values, vectors = np.linalg.eigh(matrices)
        negative = values[..., 0] < 0
        if not negative.any():
            return matrices
        if not_positive == "raise":
            raise BadInput(
                f"the rounded covariance has eigenvalue {values.min():.3g}: it is not positive "
                "semidefinite; round finer, use more data, or choose not_positive='project'"
            )
        clipped = (vectors * np.maximum(values, 0.0)[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    clipped = (clipped + np.swapaxes(clipped, -1, -2)) / 2
    return np.where(negative[..., None, None], clipped, matrices)


def check_features(features: np.ndarray) -> None:
    """Raise BadInput unless features [..., N, d] are finite, some, and of length at most 1."""
    if features.ndim < 2 or 0 in features.shape:
        raise BadInput(f"features: shape {list(features.shape)}; no data to learn from")
    if not np.isfinite(features).all():
        raise BadInput(f"features: {int((~np.isfinite(features)).sum())} are not finite numbers")
    longest = math.sqrt(float(np.square(features).sum(-1).max()))
    if longest > 1 + 1e-9:
        raise BadInput(
            f"features: the longest has length {longest:.6g}; Assumption 3.1 wants at most 1: "
            f"divide all of them by {longest:.6g}, or a bound that does not depend on the data"
        )


# -- widths of the grid, from what is asked for ----------------------------------------------------


def ridge_bin(epsilon: float, delta: float, rho: float, d: int) -> float:
    """alpha = d eps / (d^(3/2) + rho - 2 delta), Algorithm 2, line 4."""
    slack = _slack(epsilon, delta, rho)
    return d * epsilon / (d**1.5 + slack)


def covariance_bin(epsilon: float, delta: float, rho: float, d: int) -> float:
    """alpha = d^2 eps / (d^3 + rho - 2 delta), Algorithm 3, line 4."""
    slack = _slack(epsilon, delta, rho)
    return d * d * epsilon / (d**3 + slack)


# -- how much data theory asks for -----------------------------------------------------------------


def samples_theorem_3_1(
    epsilon: float, delta: float, rho: float, d: int, regularization: float, bounds: float
) -> float:
    """N of Theorem 3.1 with its proof's constant; `bounds` is B + Y.

    25 (B + Y)^2 d^3 / (lambda^2 eps^2 (rho - 2 delta)^2) ln(2 / delta)    (Appendix A.3)
    """
    slack = _slack(epsilon, delta, rho)
    _check_positive("lambda", regularization)
    _check_positive("B + Y", bounds)
    scale = bounds**2 * d**3 / (regularization * epsilon * slack) ** 2
    return 25 * scale * math.log(2 / delta)


def samples_theorem_3_2(
    epsilon: float, delta: float, rho: float, d: int, k: float, norm: float, bounds: float
) -> float:
    """N of Theorem 3.2: Theorem 3.1 at eps/2 with lambda = eps^2 / (4 k |theta*|^2) (A.4).

    1600 (B + Y)^2 d^3 k^2 |theta*|^4 / (eps^6 (rho - 2 delta)^2) ln(2 / delta)
    """
    _slack(epsilon, delta, rho)
    _check_positive("k", k)
    _check_positive("|theta*|", norm)
    regularization = epsilon**2 / (4 * k * norm**2)
    return samples_theorem_3_1(epsilon / 2, delta, rho, d, regularization, bounds)


def samples_theorem_3_3(epsilon: float, delta: float, rho: float, d: int, rounds: int) -> float:
    """N = T M of Theorem 3.3 with its proof's constant, for T = `rounds` distributions.

    8 T^2 d^8 / (eps^2 (rho - 2 delta)^2) ln(2 d^2 / delta)    (Appendix B.1)
    """
    slack = _slack(epsilon, delta, rho)
    _check_positive("T", rounds)
    return 8 * rounds**2 * d**8 / (epsilon * slack) ** 2 * math.log(2 * d * d / delta)


def samples_theorem_4_1(
    epsilon: float, delta: float, rho: float, d: int, k: float, horizon: int
) -> float:
    """N of Theorem 4.1 (R-LSVI), over all H steps, composed as in its proof.

    H calls of Theorem 3.2 with eps / 2H^2, delta / H, rho / H, |theta*| <= 2 H sqrt(d),
    B = 8 sqrt(k d) H^2 / eps and Y = 2 H: of order d^6 k^3 H^23 / (eps^8 (rho - 2 delta)^2).
    """
    _slack(epsilon, delta, rho)
    _check_positive("H", horizon)
    norm = 2 * horizon * math.sqrt(d)
    bounds = 8 * math.sqrt(k * d) * horizon**2 / epsilon + 2 * horizon
    each = samples_theorem_3_2(
        epsilon / (2 * horizon**2), delta / horizon, rho / horizon, d, k, norm, bounds
    )
    return horizon * (k + each)


def samples_theorem_4_2(epsilon: float, delta: float, rho: float, d: int, horizon: int) -> float:
    """M T, the trajectories of Theorem 4.2 (R-LSVI-UCB). The paper gives no constant; this has 1.

    d^56 H^62 ln(1/delta)^5 / (eps^44 rho^2)
    """
    _slack(epsilon, delta, rho)
    _check_positive("H", horizon)
    return d**56 * horizon**62 * math.log(1 / delta) ** 5 / (epsilon**44 * rho**2)


def _slack(epsilon: float, delta: float, rho: float) -> float:
    """rho - 2 delta, which the theorems divide by."""
    for key, value in (("epsilon", epsilon), ("delta", delta), ("rho", rho)):
        if not 0 < value < 1:
            raise BadInput(f"{key}={value}: must lie between 0 and 1")
    if rho <= 2 * delta:
        raise BadInput(
            f"rho={rho}, delta={delta}: rho must exceed 2 delta = {2 * delta}, since either of two "
            "runs may fail with probability delta; lower delta or raise rho"
        )
    return rho - 2 * delta


def _check_positive(key: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise BadInput(f"{key}={value}: must be positive and finite")
