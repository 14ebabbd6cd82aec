r"""Optimal experimental designs for preference learning (2601.08421, Section 4).

G-optimal design (Kiefer and Wolfowitz): the distribution mu over points psi_i in R^d that minimizes
the worst prediction variance,

    min_mu max_i psi_i' M(mu)^-1 psi_i = d,    M(mu) = sum_i mu_i psi_i psi_i'.

It is also the maximizer of ln det M(mu) (D-optimality), whose gradient at i is the variance
g_i = psi_i' M^-1 psi_i. Frank-Wolfe moves weight to argmax g, or takes it from the support's argmin
(an away step), with the step that maximizes the determinant in closed form. max g / d - 1 bounds
what is left to gain, so that it is both the stopping rule and the reported gap.

* centred (Lemma 4.1): max_a ||phi(a) - phi(pi)||^2 in the norm of V(pi)^-1 is d as well, by the
  same solver on (1, phi), one dimension up.
* preferential (Proposition 4.2): conditional centred designs pi^cg(.|x), then the prompt marginal
  of the design of the centred features; worst variance at most d^2.

Source of the algorithm: Todd, *Minimum-Volume Ellipsoids* (2016), chapter 3. The trap: designs are
invariant under linear maps, determinants in double precision are not; all of it runs on an
orthonormal basis of the columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reprise.rollout.errors import BadInput

REFRESH = 64  # rank-one updates of M^-1 lose about a digit in a thousand; begin afresh long before


@dataclass(frozen=True)
class Design:
    """A distribution over points, and how good it is.

    Attributes:
        weights: mu, shape (points,); non-negative, sum 1, mostly 0.
        value: max_i psi_i' M(mu)^-1 psi_i (centred designs: with centred psi and the covariance).
        gap: value / d - 1; the optimum has 0.
    """

    weights: np.ndarray
    value: float
    gap: float

    @property
    def support(self) -> np.ndarray:
        """Indices of the points that carry weight."""
        return np.flatnonzero(self.weights)


@dataclass(frozen=True)
class PreferentialDesign:
    """pi^g(x, a) = prompt_weights[x] * response_weights[x, a] (Proposition 4.2).

    Attributes:
        prompt_weights: mu^g_X, shape (prompts,).
        response_weights: pi^cg(a|x), shape (prompts, responses); each row sums to 1.
        centred: phi^g(x, a) = phi(x, a) - phi(x, pi^cg(x)), shape (prompts, responses, d).
        value: sup over x, a of phi^g' V(pi^g)^-1 phi^g.
        bound: d times the largest rank of one prompt's centred features; at most d^2.
        gap: relative gap to which the conditional and the global design were solved.
    """

    prompt_weights: np.ndarray
    response_weights: np.ndarray
    centred: np.ndarray
    value: float
    bound: float
    gap: float

    @property
    def joint(self) -> np.ndarray:
        """pi^g, shape (prompts, responses)."""
        return self.prompt_weights[:, None] * self.response_weights


def g_optimal_design(
    features: np.ndarray, tolerance: float = 0.01, centred: bool = False
) -> Design:
    """G-optimal design over the rows of `features`.

    Args:
        features: psi, shape (points, d).
        tolerance: relative duality gap: the value is at most d (1 + tolerance).
        centred: the design of Lemma 4.1, for variances around the design's own mean.

    Returns:
        The design. Its support has at most d (d + 1) / 2 + 1 points (d + 1 for d if centred).

    Raises:
        BadInput: no points, points that are not finite, or that do not span R^d.
    """
    points = _checked(features, 2, "(points, d)")
    _check_tolerance(tolerance)
    dimension = points.shape[1]
    if centred:
        points = np.column_stack([np.ones(len(points)), points])
        tolerance *= dimension / (dimension + 1)
    basis = _orthonormal(points)
    weights = _reduce_support(basis, _solve(basis, tolerance))
    value = float(_variances(basis, _inverse(basis, weights)).max()) - centred
    return Design(weights, value, value / dimension - 1)


def conditional_designs(features: np.ndarray, tolerance: float = 0.01) -> np.ndarray:
    """Centred G-optimal designs pi^cg(.|x), one for each prompt, all at once (Lemma 4.1).

    Where the responses of a prompt span less than R^d around their mean, the design is that of
    their span, and its value is their rank.

    Args:
        features: phi, shape (prompts, responses, d).
        tolerance: relative duality gap of each.

    Returns:
        Weights, shape (prompts, responses).
    """
    phi = _checked(features, 3, "(prompts, responses, d)")
    _check_tolerance(tolerance)
    psi = np.concatenate([np.ones((*phi.shape[:2], 1)), phi], axis=2)
    left, singular, _ = np.linalg.svd(psi, full_matrices=False)
    ranks = (singular > 1e-9 * singular[:, :1]).sum(axis=1)
    weights = np.full(phi.shape[:2], 1 / phi.shape[1])
    for rank in np.unique(ranks[ranks > 1]):  # rank 1: all responses alike, nothing to choose
        of_rank = ranks == rank
        gap = tolerance * (rank - 1) / rank
        weights[of_rank] = _frank_wolfe(left[of_rank, :, :rank], weights[of_rank], gap)
    return weights


def preferential_design(features: np.ndarray, tolerance: float = 0.01) -> PreferentialDesign:
    """The preferential G-optimal design (2601.08421, Proposition 4.2, lines 1-5 of Algorithm 2).

    Args:
        features: phi, shape (prompts, responses, d).
        tolerance: relative gap of the conditional designs and of the global one.

    Raises:
        BadInput: nothing to choose from, or the centred features do not span R^d.
    """
    phi = _checked(features, 3, "(prompts, responses, d)")
    conditional = conditional_designs(phi, tolerance)
    centred = centre(phi, conditional)
    flat = centred.reshape(-1, phi.shape[2])
    marginal = g_optimal_design(flat, tolerance).weights.reshape(conditional.shape).sum(axis=1)
    variance = worst_variance(centred, conditional, marginal)
    singular = np.linalg.svd(centred, compute_uv=False)
    largest = singular.max()
    ranks = (singular > 1e-9 * largest).sum(axis=1)
    bound = float(phi.shape[2] * ranks.max())
    return PreferentialDesign(marginal, conditional, centred, variance, bound, tolerance)


def centre(features: np.ndarray, conditional: np.ndarray) -> np.ndarray:
    """phi^g(x, a) = phi(x, a) - sum_b pi^cg(b|x) phi(x, b)."""
    return features - np.einsum("xa,xad->xd", conditional, features)[:, None]


def covariances(centred: np.ndarray, conditional: np.ndarray) -> np.ndarray:
    """V(x, pi^cg) of every prompt, shape (prompts, d, d)."""
    return np.einsum("xa,xai,xaj->xij", conditional, centred, centred, optimize=True)


def worst_variance(centred: np.ndarray, conditional: np.ndarray, marginal: np.ndarray) -> float:
    """sup over x, a of phi^g(x, a)' V(marginal x pi^cg)^-1 phi^g(x, a), the objective of Eq. 7."""
    covariance = np.einsum("x,xij->ij", marginal, covariances(centred, conditional))
    return float(_variances(centred.reshape(-1, centred.shape[2]), np.linalg.inv(covariance)).max())


@dataclass(frozen=True)
class DirectDesign:
    """A near-minimizer of Eq. 7.

    Attributes:
        prompt_weights: mu, shape (prompts,).
        value: its worst variance.
        lower: no distribution over prompts does better than this (weak duality).
    """

    prompt_weights: np.ndarray
    value: float
    lower: float


def direct_design(
    centred: np.ndarray,
    conditional: np.ndarray,
    start: np.ndarray,
    tolerance: float = 0.05,
    steps: int = 4000,
) -> DirectDesign:
    r"""The prompt marginal that minimizes Eq. 7 itself (2601.08421, Remark 4.3).

        min_mu max_j phi_j' V(mu)^-1 phi_j,    V(mu) = sum_x mu_x V_x,

    convex in mu. The maximum is weighted by nu, a softmax over j whose sharpness grows; then mu
    takes a multiplicative step, mu_x <- mu_x h_x^1/2 with h_x = tr(V_x V^-1 S V^-1) and
    S = sum_j nu_j phi_j phi_j', the fixed point of min_mu tr(V(mu)^-1 S). For every nu and mu,
    tr(V(mu)^-1 S)^2 / max_x h_x is a lower bound of the optimum: that certifies the result.

    Args:
        centred: phi^g, shape (prompts, responses, d).
        conditional: pi^cg, shape (prompts, responses).
        start: mu to begin with, usually `preferential_design`'s.
        tolerance: stop when value / lower - 1 is at most this.
        steps: and at the latest after so many steps; `lower` then tells how far it came.
    """
    each, flat = covariances(centred, conditional), centred.reshape(-1, centred.shape[2])
    mu = 0.99 * start + 0.01 / len(start)
    best, value, lower = start, worst_variance(centred, conditional, start), 0.0
    average = np.full(len(flat), 1 / len(flat))
    for step in range(steps):
        inverse = np.linalg.inv(np.einsum("x,xij->ij", mu, each))
        variance = _variances(flat, inverse)
        if variance.max() < value:
            best, value = mu.copy(), float(variance.max())
        sharpness = 20 + step / 4
        nu = np.exp(sharpness * (variance / variance.max() - 1))
        rate = max(2 / (step + 2), 0.02)
        average = (1 - rate) * average + rate * nu / nu.sum()
        moment = inverse @ np.einsum("j,ji,jk->ik", average, flat, flat, optimize=True) @ inverse
        gain = np.einsum("xij,ji->x", each, moment)
        lower = max(lower, float(mu @ gain) ** 2 / float(gain.max()))
        if value <= lower * (1 + tolerance):
            break
        mu = mu * np.sqrt(gain)
        mu /= mu.sum()
    return DirectDesign(best, value, lower)


# -- the solver ----------------------------------------------------------------------------------


def _solve(basis: np.ndarray, tolerance: float) -> np.ndarray:
    """Weights of the design over the rows of `basis`, growing a small set of rows that matter.

    Frank-Wolfe runs on that set; a pass over all rows then finds those whose variance is too large.
    """
    points, dimension = basis.shape
    limit = dimension * (1 + tolerance)
    chosen = _spanning_rows(basis)
    weights = np.zeros(points)
    weights[chosen] = 1 / len(chosen)
    while True:
        variance = _variances(basis, _inverse(basis, weights))
        if variance.max() <= limit:
            return weights
        rows = min(points, 8 * dimension)
        worst = np.argpartition(variance, points - rows)[points - rows :]
        working = np.union1d(np.flatnonzero(weights), worst[variance[worst] > dimension])
        part = _frank_wolfe(basis[None, working], weights[None, working], tolerance / 2)
        weights[working] = part[0]


def _frank_wolfe(psi: np.ndarray, weights: np.ndarray, tolerance: float) -> np.ndarray:
    """Frank-Wolfe with away steps on a batch of designs, all of full rank.

    Args:
        psi: points, shape (designs, points, d).
        weights: where to begin, shape (designs, points); M must be invertible.
        tolerance: relative gap at which a design is finished.

    Returns:
        Weights, shape (designs, points).
    """
    weights = weights.copy()
    dimension = psi.shape[2]
    running = np.arange(len(psi))
    while len(running):
        batch, w, rows = psi[running], weights[running], np.arange(len(running))
        inverse = np.linalg.inv(np.einsum("bn,bni,bnj->bij", w, batch, batch, optimize=True))
        g = np.einsum("bni,bni->bn", batch @ inverse, batch)
        unfinished = g.max(axis=1) > dimension * (1 + tolerance)
        for _ in range(REFRESH):
            up, down = g.argmax(axis=1), np.where(w > 0, g, np.inf).argmin(axis=1)
            above, below = g[rows, up] / dimension - 1, 1 - g[rows, down] / dimension
            if above.max() <= tolerance:
                break
            j = np.where(above >= below, up, down)
            g_j, w_j = g[rows, j], w[rows, j]
            # The best step along e_j - w; a negative one takes weight away, at most all of it.
            least = -w_j / np.maximum(1 - w_j, 1e-300)
            best = (g_j - dimension) / (dimension * np.where(g_j > 1, g_j - 1, 1))
            step = np.where(g_j > 1, np.maximum(best, least), least)
            step = np.where(above <= tolerance, 0.0, step)  # finished, waits for the others
            dropped = step <= least
            w *= (1 - step)[:, None]
            w[rows, j] = np.where(dropped, 0.0, w[rows, j] + step)
            ratio = step / (1 - step)
            v = np.einsum("bij,bj->bi", inverse, batch[rows, j])
            share = ratio / (1 + ratio * g_j)
            inverse -= share[:, None, None] * v[:, :, None] * v[:, None, :]
            inverse /= (1 - step)[:, None, None]
            g -= share[:, None] * np.square((batch @ v[:, :, None])[:, :, 0])
            g /= (1 - step)[:, None]
        w = np.maximum(w, 0)
        weights[running] = w / w.sum(axis=1, keepdims=True)
        running = running[unfinished]
    return weights


def _spanning_rows(basis: np.ndarray) -> np.ndarray:
    """At most 2d rows that span: extremes along directions orthogonal to those found so far."""
    found: list[int] = []
    directions = np.zeros((0, basis.shape[1]))
    generator = np.random.Generator(np.random.Philox(key=0))  # any directions will do
    for _ in range(basis.shape[1]):
        direction = generator.normal(size=basis.shape[1])
        direction -= directions.T @ (directions @ direction)
        projected = basis @ direction
        high, low = int(projected.argmax()), int(projected.argmin())
        found += [high, low]
        furthest = basis[high] if projected[high] >= -projected[low] else basis[low]
        for _ in range(2):  # twice, for orthogonality to working precision
            furthest = furthest - directions.T @ (directions @ furthest)
        directions = np.vstack([directions, furthest / np.linalg.norm(furthest)])
    return np.unique(found)


def _reduce_support(basis: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same M with at most d (d + 1) / 2 + 1 points (Caratheodory)."""
    upper = np.triu_indices(basis.shape[1])
    support = np.flatnonzero(weights)
    excess = len(support) - len(upper[0]) - 1
    if excess > 0:
        rows = basis[support]
        moments = np.column_stack([rows[:, upper[0]] * rows[:, upper[1]], np.ones(len(support))])
        null = np.linalg.qr(moments, mode="complete")[0][:, -excess:].T
        left = weights[support]
        for i in range(excess):
            # Moving along a null vector keeps M and the sum; go until a weight is used up.
            move = null[i] if null[i].max() > 0 else -null[i]
            lengths = np.divide(left, move, out=np.full(len(left), np.inf), where=move > 1e-14)
            last = int(lengths.argmin())
            left = np.maximum(left - lengths[last] * move, 0)
            left[last] = 0.0
            # The vectors still to come must leave that point alone.
            null[i + 1 :] -= np.outer(null[i + 1 :, last] / null[i, last], null[i])
            null[i + 1 :, last] = 0.0
        weights[support] = left
    return weights / weights.sum()


def _inverse(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    support = np.flatnonzero(weights)
    rows = points[support]
    return np.linalg.inv((rows * weights[support, None]).T @ rows)


def _variances(points: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    return np.einsum("ni,ni->n", points @ inverse, points)


def _orthonormal(points: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the columns, shape (points, d).

    Raises:
        BadInput: the rows do not span R^d.
    """
    left, singular, _ = np.linalg.svd(points, full_matrices=False)
    rank = int((singular > 1e-10 * max(singular[0], 1e-300)).sum())
    if rank < points.shape[1]:
        raise BadInput(
            f"features span only {rank} of {points.shape[1]} dimensions (a centred design counts "
            "one more); project them onto their span first, e.g. on the leading right singular "
            "vectors, or add points"
        )
    return left


def _checked(features: np.ndarray, axes: int, shape: str) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != axes or 0 in features.shape:
        raise BadInput(
            f"features of shape {features.shape} should have the shape {shape}, with at least one "
            "entry along each axis: a design over nothing has an empty support"
        )
    if not np.isfinite(features).all():
        raise BadInput("features hold NaN or infinity; remove those points first")
    return features


def _check_tolerance(tolerance: float) -> None:
    if not 0 < tolerance < 1:
        raise BadInput(f"tolerance={tolerance} is a relative gap: choose it between 0 and 1")
