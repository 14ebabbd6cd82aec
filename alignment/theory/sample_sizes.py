r"""How many pairs the theorems of 2601.08421 ask for, with the constants of their proofs.

Everything comes from one step (Proposition 3.1, Eq. 5): n_k pairs of pi_k, theta_k within r_k of
theta*, bring theta_{k+1}, with probability 1 - delta, to within

    r_{k+1}^2 = A C(r_k) ln(9 gamma R n_k / delta) / n_k
    A = 52 e^(4 gamma R) d^(2/p) / (lambda gamma^2)

as long as r_{k+1} <= min(1 / (2 gamma), R). C(r) is the local coverage of pi* (Eq. 4), lambda the
smallest eigenvalue of V(pi*). Solved for n, which is on both sides: n >= b ln(a n).

The numbers are large: they are what suffices, for every instance. No torch in this file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from reprise.rollout.errors import BadInput

CONSTANT = 52.0  # Eqs. 5 and 6; 2 * 5.09^2, rounded up


@dataclass(frozen=True)
class Setting:
    """An instance, as far as the bounds see it.

    Attributes:
        dimension: d.
        radius: R, of the ball of parameters.
        gamma: KL regularization; the corollaries take 1/R.
        norm: p of the ball.
        coverage: C(R), local coverage of pi*; at most e^(2R) for p <= 2 (Lemma B.8).
        eigenvalue: lambda of Assumption 3; at most about 1/d.
        epsilon: error of theta in the L_p norm, at the end.
        delta: failure probability.
        eta: factor by which the radius shrinks in a round.
    """

    dimension: int
    radius: float
    gamma: float
    norm: float
    coverage: float
    eigenvalue: float
    epsilon: float
    delta: float
    eta: float

    def __post_init__(self) -> None:
        """Refuse what no theorem covers."""
        for key, value, fine, rule in (
            ("dimension", self.dimension, self.dimension >= 1, "be at least 1"),
            ("radius", self.radius, self.radius > 0, "be above 0"),
            ("gamma", self.gamma, self.gamma > 0, "be above 0; the paper uses 1/R"),
            ("norm", self.norm, 1 <= self.norm <= 2, "lie in [1, 2]"),
            ("coverage", self.coverage, self.coverage >= 1, "be at least 1, that of pi* by itself"),
            ("eigenvalue", self.eigenvalue, 0 < self.eigenvalue <= 1, "lie in (0, 1]"),
            ("epsilon", self.epsilon, 0 < self.epsilon < self.radius, "lie between 0 and R"),
            ("delta", self.delta, 0 < self.delta < 1, "lie between 0 and 1"),
            ("eta", self.eta, 0 < self.eta < 1, "lie between 0 and 1"),
        ):
            if not fine:
                raise BadInput(f"{key}={value} must {rule}")

    @property
    def scale(self) -> float:
        """A = 52 e^(4 gamma R) d^(2/p) / (lambda gamma^2)."""
        curvature = math.exp(4 * self.gamma * self.radius) * self.dimension ** (2 / self.norm)
        return CONSTANT * curvature / (self.eigenvalue * self.gamma**2)

    def pairs(self, xi: float, rounds: int = 1) -> int:
        """The least n with A ln(9 gamma R K n / delta) / n <= xi, for K = `rounds`."""
        return least(self.scale / xi, 9 * self.gamma * self.radius * rounds / self.delta)


def least(b: float, a: float) -> int:
    """The smallest integer n >= max(b, 1) with n >= b ln(a n), and so every larger one.

    n - b ln(a n) rises from n = b on.
    """
    low = high = max(b, 1.0)
    while high < b * math.log(a * high):
        high *= 2
    for _ in range(120):
        middle = (low + high) / 2
        low, high = (middle, high) if middle < b * math.log(a * middle) else (low, middle)
    return math.ceil(high)


def one_round(s: Setting) -> int:
    """n_0 that brings theta_1 to within min(1 / (2 gamma), R) from anywhere in the ball."""
    return s.pairs(min(1 / (2 * s.gamma), s.radius) ** 2 / s.coverage)


def rounds(s: Setting) -> int:
    """K with R eta^K <= epsilon (Theorem 3.2)."""
    return math.ceil(math.log(s.radius / s.epsilon) / math.log(1 / s.eta))


def threshold(s: Setting) -> int:
    """n above which rounds contract: Eq. 6's condition on xi_n, explicit in its proof (Eq. 17).

    xi = A ln(9 gamma R K n / delta) / n <= min(eta^2 R^2 / C, 1 / (4 gamma^2 C), eta^2 / e^2)
    """
    xi = min(
        (s.eta * s.radius) ** 2 / s.coverage,
        1 / (4 * s.gamma**2 * s.coverage),
        (s.eta / math.e) ** 2,
    )
    return s.pairs(xi, rounds(s))


def precise(s: Setting) -> int:
    """n for which the floor e^2 xi_n / gamma^2 of Theorem 3.2 is at most epsilon^2."""
    return s.pairs((s.eta * s.epsilon / math.e) ** 2, rounds(s))


def constant_batches(s: Setting) -> int:
    """n K, pairs in all of Theorem 3.2 (Corollary 3.3's upper bound, explicit)."""
    return rounds(s) * max(threshold(s), precise(s))


def schedule(s: Setting, alpha: float, start: float = 1.0) -> list[int]:
    """n_0, ..., n_{K-1}, n_f of Corollary 3.6, by its proof with the constants of Eq. 5.

    n_k = eta^(alpha k) n_i until eta^K R < r_0, then n_f with A e^(2 r_0) ln(.) / n_f <= eps^2.

    Args:
        s: the setting.
        alpha: C(r) / r^(2 + alpha) does not fall for r >= r_0.
        start: r_0.

    Raises:
        BadInput: alpha or r_0 is not above 0.
    """
    if not (alpha > 0 and start > 0):
        raise BadInput(f"alpha={alpha} and r_0={start} must be above 0: C is super-quadratic")
    count = max(1, math.floor(math.log(max(s.radius / start, 1.0)) / math.log(1 / s.eta)) + 1)
    first = threshold(s)
    sizes = [math.ceil(first * s.eta ** (alpha * k)) for k in range(count)]
    return [*sizes, s.pairs(s.epsilon**2 * math.exp(-2 * start), count + 1)]


def offline(s: Setting) -> float:
    """The order of pairs that any offline learner needs (Theorem 2.2), its constant not given."""
    return s.dimension ** (2 if s.norm == 1 else 1) * s.coverage / s.epsilon**2


def two_rounds(s: Setting) -> float:
    """The order of n in each of two rounds with the design (Theorem 4.4), logarithms left out."""
    return s.dimension * (s.radius / s.epsilon) ** 2 * math.log(1 / s.delta)
