r"""Contextual bandits with Bradley-Terry preferences and linear softmax policies: all of it exact.

    pi_theta(a|x) = pi_0(a|x) exp(theta . phi(x, a)) / Z_x(theta),     ||phi(x, a)||_2 <= 1
    P(a1 beats a2 | x) = sigmoid(r(x, a1) - r(x, a2)),    r = gamma theta* . phi  (realizable)

Prompts and responses are few enough to sum over, so that policies, divergences, feature covariances
V(pi) and coverages are numbers, not estimates (2601.08421, Section 2). Tensors are float64, and a
leading batch of parameters (seeds, rounds) goes through everything.

The trap: policies do not see a shift of theta along directions in which the features of one prompt
do not differ (for phi(i) = e_i: the ones). Everything is measured on the span of the differences.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reprise.rollout.errors import BadInput


@dataclass(frozen=True, eq=False)
class Bandit:
    """One instance.

    Attributes:
        features: phi, shape (prompts, responses, d), rows of norm at most 1.
        base: ln pi_0(a|x), shape (prompts, responses).
        prompts: the distribution of prompts, shape (prompts,).
        theta_star: parameters of the target policy, shape (d,), ||theta*||_p <= R.
        gamma: KL regularization, > 0.
        radius: R.
        norm: p of the ball, in [1, 2] (or infinity).
    """

    features: Tensor
    base: Tensor
    prompts: Tensor
    theta_star: Tensor
    gamma: float
    radius: float
    norm: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what the theory does not cover."""
        if not self.gamma > 0:
            raise BadInput(
                f"gamma={self.gamma}: the KL regularization must be above 0; the paper uses 1/R"
            )
        if not self.radius > 0:
            raise BadInput(f"radius={self.radius}: the ball of parameters needs a radius above 0")
        if not (1 <= self.norm <= 2 or self.norm == math.inf):
            raise BadInput(f"norm={self.norm}: the ball's p must lie in [1, 2], or be infinity")
        if self.features.ndim != 3 or 0 in self.features.shape or self.features.shape[1] < 2:
            raise BadInput(
                f"features of shape {tuple(self.features.shape)} should have the shape (prompts, "
                "responses, d), with at least one prompt and two responses"
            )
        longest = float(self.features.norm(dim=2).max())
        if longest > 1 + 1e-9:
            raise BadInput(
                f"a feature vector has norm {longest:.4g}; the bounds need norms of at most 1: "
                "divide all features by the largest norm (and multiply theta* by it)"
            )
        size = float(torch.linalg.vector_norm(self.theta_star, self.norm))
        if size > self.radius * (1 + 1e-9):
            raise BadInput(
                f"theta* has L_{self.norm:g} norm {size:.4g}, outside the ball of radius "
                f"{self.radius:g}: enlarge radius, or shrink theta*"
            )

    # -- policies ----------------------------------------------------------------------------

    def log_policy(self, theta: Tensor) -> Tensor:
        """ln pi_theta(a|x), shape (..., prompts, responses), for theta of shape (..., d)."""
        return torch.log_softmax(self.base + self.scores(theta), dim=-1)

    def scores(self, theta: Tensor) -> Tensor:
        """theta . phi(x, a), shape (..., prompts, responses)."""
        return torch.einsum("xad,...d->...xa", self.features, theta)

    @functools.cached_property
    def log_target(self) -> Tensor:
        """ln pi*(a|x), shape (prompts, responses)."""
        return self.log_policy(self.theta_star)

    @functools.cached_property
    def rewards(self) -> Tensor:
        """r(x, a) = gamma theta* . phi(x, a), shape (prompts, responses)."""
        return self.gamma * self.scores(self.theta_star)

    def kl(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """KL(p || q) averaged over prompts, nats; shape (...)."""
        # p ln(p/q) - p + q, each term of which is >= 0, so that tiny divergences keep their digits.
        difference = log_q - log_p
        terms = log_p.exp() * (torch.expm1(difference) - difference)
        return torch.einsum("...xa,x->...", terms, self.prompts)

    # -- coverage ----------------------------------------------------------------------------

    def covariance(self, log_policy: Tensor) -> Tensor:
        """V(pi) = E_x Cov_{a ~ pi(x)} phi(x, a), shape (..., d, d)."""
        p = log_policy.exp()
        mean = torch.einsum("...xa,xad->...xd", p, self.features)
        centred = self.features - mean[..., None, :]
        weighted = p * self.prompts[:, None]
        return torch.einsum("...xa,...xai,...xaj->...ij", weighted, centred, centred)

    @functools.cached_property
    def span(self) -> Tensor:
        """Orthonormal basis, shape (d, rank), of all differences phi(x, a) - phi(x, b)."""
        differences = (self.features - self.features[:, :1]).reshape(-1, self.features.shape[2])
        _, singular, right = torch.linalg.svd(differences, full_matrices=False)
        rank = int((singular > 1e-10 * singular[0]).sum())
        return right[:rank].T.contiguous()

    def coverage(self, log_policy: Tensor, log_target: Tensor | None = None) -> Tensor:
        """C_{pi -> pi'} = inf {C : V(pi') <= C V(pi)}, shape (...); pi' is pi* if not given."""
        target = self.log_target if log_target is None else log_target
        return largest_ratio(self.on_span(log_policy), self.on_span(target))

    def on_span(self, log_policy: Tensor) -> Tensor:
        """V(pi) in the coordinates of `span`."""
        return self.span.T @ self.covariance(log_policy) @ self.span

    @functools.cached_property
    def smallest_eigenvalue(self) -> float:
        """lambda of Assumption 3: the smallest eigenvalue of V(pi*) on the span."""
        return float(torch.linalg.eigvalsh(self.on_span(self.log_target))[0])

    def local_coverage(
        self, radius: float, generator: np.random.Generator, starts: int = 64, steps: int = 60
    ) -> float:
        """A certified lower bound of C_*^p(r), the largest C_{pi_theta -> pi*} in B_p(theta*, r).

        Every point of the ball gives one; the largest is taken over the ball's corners and random
        points of its surface, and over what gradient ascent along the surface makes of the best.
        `density_ratio_bound` is an upper bound.
        """
        dimension = self.features.shape[2]
        corners = torch.eye(dimension, dtype=torch.float64)
        pairs = (corners[:, None] - corners[None]).reshape(-1, dimension)
        random = torch.from_numpy(generator.normal(size=(starts, dimension)))
        points = torch.cat([corners, -corners, pairs[pairs.abs().sum(1) > 0], random])
        points = self._of_length(points, radius)
        values = self._log_coverage(points)
        shift = points[values.argsort(descending=True)[:starts]].clone()
        best, size = float(values.max()), 0.2 * radius
        for step in range(steps):
            shift.requires_grad_(True)
            values = self._log_coverage(shift)
            best = max(best, float(values.detach().max()))
            (slope,) = torch.autograd.grad(values.sum(), shift)
            slope = slope / slope.norm(dim=1, keepdim=True).clamp_min(1e-300)
            shift = self._of_length(shift.detach() + size / math.sqrt(step + 1) * slope, radius)
        return math.exp(best)

    def _of_length(self, points: Tensor, radius: float) -> Tensor:
        return points * (radius / torch.linalg.vector_norm(points, self.norm, dim=1, keepdim=True))

    def _log_coverage(self, shift: Tensor) -> Tensor:
        return self.coverage(self.log_policy(self.theta_star + shift)).log()

    def density_ratio_bound(self, radius: float) -> float:
        """exp(2 r), an upper bound of C_*^p(r) for p <= 2 (Lemma B.8)."""
        return math.exp(2 * radius)

    # -- errors ------------------------------------------------------------------------------

    def errors(self, theta: Tensor) -> dict[str, Tensor]:
        """How far policies are from pi*, each of shape (...).

        * ``kl``: KL(pi_theta || pi*), the divergence of Theorem 3.2; ``forward_kl`` the other way.
        * ``theta_error``: the L_p norm of theta - theta*, on the span.
        * ``variance_error``: the norm of theta - theta* in V(pi*) (Theorem 4.4).
        * ``deviation``: MAD_{pi*}(f_theta - f*), with f = theta . phi (Section 5.2).
        """
        log_policy = self.log_policy(theta)
        difference = (theta - self.theta_star) @ self.span @ self.span.T
        variance = self.covariance(self.log_target)
        squared = torch.einsum("...i,ij,...j->...", difference, variance, difference)
        scores, target = self.scores(difference), self.log_target.exp()
        centred = scores - (target * scores).sum(-1, keepdim=True)
        return {
            "kl": self.kl(log_policy, self.log_target),
            "forward_kl": self.kl(self.log_target, log_policy),
            "theta_error": torch.linalg.vector_norm(difference, self.norm, dim=-1),
            "variance_error": squared.clamp_min(0).sqrt(),
            "deviation": torch.einsum("...xa,xa,x->...", centred.abs(), target, self.prompts),
        }


def largest_ratio(below: Tensor, above: Tensor) -> Tensor:
    """inf {C : above <= C below} in Loewner order, shape (...); infinite for a singular `below`."""
    scale = below.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp_min(1e-300)
    factor, failed = torch.linalg.cholesky_ex(below / scale)
    factor = torch.where(failed[..., None, None] > 0, torch.eye(below.shape[-1]).to(below), factor)
    half = torch.linalg.solve_triangular(factor, above / scale, upper=False)
    whole = torch.linalg.solve_triangular(factor, half.transpose(-1, -2), upper=False)
    largest = torch.linalg.eigvalsh((whole + whole.transpose(-1, -2)) / 2)[..., -1]
    return torch.where(failed > 0, torch.inf, largest)


# -- instances -----------------------------------------------------------------------------------


def skewed(
    dimension: int,
    radius: float,
    norm: float = 1.0,
    gamma: float | None = None,
    codeword: np.random.Generator | None = None,
) -> Bandit:
    """The bandit of Theorem 2.2: pi_0 almost never draws what tells the hypotheses apart.

    p = 1 (case I): d + 1 responses, phi(i) = e_i, pi_0 = (1 - e, e/d, ..., e/d) with e = d e^(1-R),
    and pi* nearly uniform: theta* = (ln e/(d (1 - e)), v / d) with a balanced v of +1 and -1.
    p > 1 (case II): d responses, pi_0 = softmax(-t), theta* = t + e_2 / 4, where
    t = 2^(-1/p) (R - 1) (-1, 1, 0, ..., 0).

    Args:
        dimension: d; even for p = 1.
        radius: R > ln d + 1 for p = 1.
        norm: p.
        gamma: KL regularization; None for 1/R.
        codeword: draws v; None for (1, -1, 1, -1, ...).
    """
    gamma = 1 / radius if gamma is None else gamma
    if norm == 1:
        if dimension % 2 or radius <= math.log(dimension) + 1:
            raise BadInput(
                f"dimension={dimension}, radius={radius}: the skewed instance needs an even "
                "dimension and radius above ln(dimension) + 1"
            )
        rare = dimension * math.exp(1 - radius)
        base = torch.tensor([1 - rare] + [rare / dimension] * dimension, dtype=torch.float64).log()
        signs = np.tile([1.0, -1.0], dimension // 2)
        if codeword is not None:
            codeword.shuffle(signs)
        first = math.log(rare / (dimension * (1 - rare)))
        theta = torch.from_numpy(np.concatenate([[first], signs / dimension]))
    else:
        height = 2 ** (-1 / norm) * (radius - 1)
        shift = torch.zeros(dimension, dtype=torch.float64)
        shift[0], shift[1] = -height, height
        base, theta = torch.log_softmax(-shift, 0), shift.clone()
        theta[1] += 0.25
    features = torch.eye(len(base), dtype=torch.float64)[None]
    one = torch.ones(1, dtype=torch.float64)
    return Bandit(features, base[None], one, theta, gamma, radius, norm)


def random_bandit(
    prompts: int,
    responses: int,
    dimension: int,
    radius: float,
    generator: np.random.Generator,
    norm: float = 2.0,
    gamma: float | None = None,
    skew: float = 1.0,
    opposed: bool = False,
    target: float = 0.9,
) -> Bandit:
    """Random directions as features, theta* on the sphere of radius `target` * R.

    Args:
        prompts: number of prompts, equally likely.
        responses: responses to each.
        dimension: d.
        radius: R.
        generator: randomness of the instance.
        norm: p.
        gamma: KL regularization; None for 1/R.
        skew: deviation of the logits of pi_0.
        opposed: pi_0 = softmax(-theta* . phi): what pi* prefers is what pi_0 hardly draws, and
            coverage is at its worst. pi* is then uniform.
        target: ||theta*||_p / R.
    """
    phi = generator.normal(size=(prompts, responses, dimension))
    phi /= np.linalg.norm(phi, axis=2, keepdims=True)
    theta = generator.normal(size=dimension)
    theta *= target * radius / np.linalg.norm(theta, norm)
    features, theta_star = torch.from_numpy(phi), torch.from_numpy(theta)
    logits = skew * torch.from_numpy(generator.normal(size=(prompts, responses)))
    if opposed:
        logits = -torch.einsum("xad,d->xa", features, theta_star)
    weights = torch.full((prompts,), 1 / prompts, dtype=torch.float64)
    base = torch.log_softmax(logits, dim=1)
    gamma = 1 / radius if gamma is None else gamma
    return Bandit(features, base, weights, theta_star, gamma, radius, norm)


def tabular(
    values: Tensor, base: Tensor, prompts: Tensor, radius: float, gamma: float | None = None
) -> Bandit:
    """Any function f*(x, a) bounded by R: one feature for each prompt and response (Section 5).

    theta is then the table of f itself, theta.reshape(prompts, responses), and the ball is the box
    |f| <= R, whatever class f is fitted in.

    Args:
        values: f*, shape (prompts, responses).
        base: ln pi_0, of the same shape.
        prompts: distribution of prompts.
        radius: R.
        gamma: KL regularization; None for 1/R.
    """
    count = values.numel()
    features = torch.eye(count, dtype=torch.float64).reshape(*values.shape, count)
    gamma = 1 / radius if gamma is None else gamma
    return Bandit(features, base, prompts, values.reshape(-1), gamma, radius, math.inf)


def dyadic(responses: int, radius: float, gamma: float | None = None) -> Bandit:
    """A table over responses that pi_0 draws with probability 1/2, 1/4, ..., the last one twice.

    However many pairs are drawn, some responses have been seen about once: the mass of what was
    never seen falls as 1/n, neither faster (as with a fixed number of like responses) nor slower.
    f* is 1, -1, 1, ...: no response is easier than another.
    """
    powers = torch.arange(1, responses + 1, dtype=torch.float64).clamp_max(responses - 1)
    base = (-powers * math.log(2))[None]
    values = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(responses)[None, :responses]
    return tabular(values, base, torch.ones(1, dtype=torch.float64), radius, gamma)
