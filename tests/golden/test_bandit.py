"""Exact identities of linear softmax bandits, to 1e-10, through the code of the experiments.

Batches of infinitely many pairs (`expected`) leave no noise: what remains is algebra.
"""

import math

import numpy as np
import pytest
import torch

from reprise.alignment.theory.bandit import Bandit, dyadic, largest_ratio, random_bandit, skewed
from reprise.alignment.theory.learning import (
    PairTable,
    design_of,
    expected,
    fit,
    objective_of,
    pair_probabilities,
    win_probability,
)

pytestmark = pytest.mark.portable

EXACT = {"atol": 1e-10, "rtol": 0}


@pytest.fixture(scope="module")
def bandit():
    """Five prompts, six responses, d = 3, and a ball far larger than any estimate."""
    small = random_bandit(5, 6, 3, 2.0, np.random.default_rng(0), gamma=0.5)
    return Bandit(small.features, small.base, small.prompts, small.theta_star, 0.5, 100.0)


def path(bandit, objective, rounds):
    table = PairTable.of(bandit)
    wins, theta, result = win_probability(bandit, table), torch.zeros(1, 3).double(), []
    for _ in range(rounds):
        policy = bandit.log_policy(theta).exp()
        batch = expected(table.probabilities(bandit.prompts, policy), wins)
        theta = fit(bandit, table, batch, objective, theta)
        result.append(theta[0])
    return result


def test_rebel_compounds(bandit):
    for k, theta in enumerate(path(bandit, objective_of("rebel", 0.5, "previous"), 4), start=1):
        torch.testing.assert_close(theta, k * bandit.theta_star, **EXACT)


@pytest.mark.parametrize("name", ["dpo", "pdfr", "rebel", "rdrc"])
def test_one_round_lands_on_the_target_and_stays(bandit, name):
    for theta in path(bandit, objective_of(name, 0.5), 3):
        torch.testing.assert_close(theta, bandit.theta_star, **EXACT)
    assert float(bandit.errors(theta)["kl"]) < 1e-18


@pytest.mark.parametrize("ratio", [0.25, 1.5, 1.9, 2.5])
def test_rdrc_recursion(bandit, ratio):
    theta = torch.zeros(3, dtype=torch.float64)
    for found in path(bandit, objective_of("rdrc", 0.5, calibration=ratio), 5):
        theta = (1 - ratio) * theta + bandit.theta_star
        torch.testing.assert_close(found, theta, **EXACT)


def test_covariance_is_the_curvature_of_the_log_partition_function(bandit):
    theta = torch.randn(3, generator=torch.Generator().manual_seed(0)).double()

    def log_partition(t):
        return torch.logsumexp(bandit.base + bandit.scores(t), dim=1) @ bandit.prompts

    curvature = torch.autograd.functional.hessian(log_partition, theta)
    torch.testing.assert_close(bandit.covariance(bandit.log_policy(theta)), curvature, **EXACT)


def test_kl_is_the_bregman_divergence_of_the_log_partition_function(bandit):
    a, b = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double()
    log_a, log_b = bandit.log_policy(a), bandit.log_policy(b)

    def log_partition(t):
        return torch.logsumexp(bandit.base + bandit.scores(t), dim=1) @ bandit.prompts

    mean = torch.einsum("xa,xad,x->d", log_a.exp(), bandit.features, bandit.prompts)
    bregman = log_partition(b) - log_partition(a) - (b - a) @ mean
    torch.testing.assert_close(bandit.kl(log_a, log_b), bregman, **EXACT)
    plain = (log_a.exp() * (log_a - log_b)).sum(1) @ bandit.prompts
    torch.testing.assert_close(bandit.kl(log_a, log_b), plain, **EXACT)


def test_divergence_and_coverage_are_below_their_bounds(bandit):
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        shift = torch.randn(3, generator=generator).double() * 2
        other = bandit.log_policy(bandit.theta_star + shift)
        assert float(bandit.kl(other, bandit.log_target)) <= float(shift.square().sum())  # B.9
        ratio = float((bandit.log_target - other).max().exp())
        assert float(bandit.coverage(other)) <= ratio * (1 + 1e-9)
        assert ratio <= bandit.density_ratio_bound(float(shift.norm()))  # B.8


def test_coverage_of_oneself_and_of_a_hand_made_pair():
    b = skewed(6, 6.0)
    assert float(b.coverage(b.log_target)) == pytest.approx(1, abs=1e-10)
    below, above = torch.diag(torch.tensor([1.0, 4.0])), torch.diag(torch.tensor([3.0, 2.0]))
    assert float(largest_ratio(below.double(), above.double())) == pytest.approx(3, abs=1e-12)
    assert float(largest_ratio(torch.diag(torch.tensor([1.0, 0.0])), above)) == math.inf


def test_local_coverage_is_found_where_it_is_known():
    # phi(i) = e_i, two responses: V = p (1 - p) on the span, largest where p is smallest:
    # theta = (-r/2, r/2) on the span has L_2 norm r / sqrt(2) and ratio cosh^2(r / 2).
    two = torch.eye(2, dtype=torch.float64)[None]
    half = torch.full((1, 2), -math.log(2), dtype=torch.float64)
    b = Bandit(two, half, torch.ones(1).double(), torch.zeros(2).double(), 1.0, 5.0, 2.0)
    found = b.local_coverage(3.0, np.random.default_rng(0))
    assert found == pytest.approx(math.cosh(3 / math.sqrt(2)) ** 2, rel=1e-6)
    one = Bandit(two, half, b.prompts, b.theta_star, 1.0, 5.0, 1.0)
    assert one.local_coverage(3.0, np.random.default_rng(0)) == pytest.approx(
        math.cosh(1.5) ** 2, rel=1e-6
    )


def test_the_skewed_instance_is_that_of_the_theorem():
    d, radius = 6, 6.0
    b = skewed(d, radius)
    rare = d * math.exp(1 - radius)
    torch.testing.assert_close(b.base.exp()[0, 1:].sum().item(), rare)
    assert float(b.theta_star.abs().sum()) <= radius
    # pi* is uniform but for the codeword: at most e^(2/d) between any two responses.
    spread = float(b.log_target.max() - b.log_target.min())
    assert spread == pytest.approx(2 / d)
    assert math.exp(-4 / d) / (d + 1) <= b.smallest_eigenvalue <= math.exp(4 / d) / (d + 1)
    two = skewed(5, 6.0, norm=2.0)
    height = 2**-0.5 * 5
    assert float(two.base[0].max() - two.base[0].min()) == pytest.approx(2 * height)


def test_dyadic_probabilities():
    b = dyadic(5, 2.0)
    torch.testing.assert_close(b.base.exp()[0], torch.tensor([8, 4, 2, 1, 1]).double() / 16)


# -- Algorithm 2, line 7 -------------------------------------------------------------------------


def test_the_hybrid_sampler_draws_both_actions_from_the_mixture():
    b = random_bandit(3, 4, 2, 3.0, np.random.default_rng(5))
    table, design = PairTable.of(b), design_of(b)
    policy = b.log_policy(b.theta_star / 2)
    found = pair_probabilities(b, table, "hybrid", policy, design)
    joint = (b.prompts[:, None] * policy.exp() + design) / 2
    by_hand = [
        2 * joint[x, a] * joint[x, c] / joint[x].sum()
        for x, a, c in zip(table.prompt, table.first, table.second, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(by_hand), **EXACT)
    same = (joint.square() / joint.sum(1, keepdim=True)).sum()
    assert float(found.sum() + same) == pytest.approx(1, abs=1e-12)


def test_lemma_c_2_mixing_actions_informs_at_least_as_much_as_mixing_pairs():
    gains = []
    for seed in range(8):
        b = random_bandit(5, 6, 3, 6.0, np.random.default_rng(seed), opposed=True)
        table, design = PairTable.of(b), design_of(b)
        actions, pairs, own, of_design = (
            information(b, table, pair_probabilities(b, table, sampler, b.base, given))
            for sampler, given in (
                ("hybrid", design),
                ("hybrid_pairs", design),
                ("on_policy", None),
                ("design", design),
            )
        )
        torch.testing.assert_close(pairs, (own + of_design) / 2, **EXACT)
        assert float(largest_ratio(actions, pairs)) <= 1 + 1e-9
        gains.append(float(largest_ratio(pairs, actions)))
    assert min(gains) > 1.2  # and by no little: what lies between the two is compared at last


def information(b, table, probabilities):
    """sum of P(x, {a, b}) delta delta', delta = phi(x, a) - phi(x, b), on the span."""
    delta = b.features[table.prompt, table.first] - b.features[table.prompt, table.second]
    delta = delta @ b.span
    return torch.einsum("p,pi,pj->ij", probabilities, delta, delta)
