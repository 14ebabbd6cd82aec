"""What theory says of a linear softmax policy, solved through the code that trains language models.

    pi_theta(a|x) = exp(theta . phi(x, a)) / Z(x),    r(x, a) = w . phi(x, a)  (realizable)

All pairs of all responses are enumerated and each round's objective is solved to its optimum, so
that the only approximation is float32 storage. theta_r = w / gamma is what one round is worth.
"""

import itertools

import numpy as np
import pytest
import torch

from reprise.alignment.config import DPO, PDFR, RDRC, REBEL
from reprise.alignment.objectives import pair_losses
from reprise.alignment.pairs import make_targets, select_pairs
from reprise.rollout.types import Completions

pytestmark = pytest.mark.portable

PROMPTS, RESPONSES, FEATURES = 4, 5, 3
RNG = np.random.default_rng(0)
PHI = torch.from_numpy(RNG.normal(size=(PROMPTS, RESPONSES, FEATURES)))
W = 0.5 * torch.from_numpy(RNG.normal(size=FEATURES))
THETA_0 = torch.from_numpy(RNG.normal(size=FEATURES))
GAMMA = 0.5
THETA_R = W / GAMMA


def log_policy(theta):
    return torch.log_softmax(PHI @ theta, dim=1)


def completions_of(theta_k, uniforms=(0.5,)):
    """Every ordered pair of responses to every prompt, a response with itself too."""
    rows = [
        (x, a, b, u)
        for x, a, b in itertools.product(range(PROMPTS), range(RESPONSES), range(RESPONSES))
        for u in uniforms
    ]
    x, both = np.array([row[0] for row in rows]), np.array([row[1:3] for row in rows])

    def columns(values):
        return values.numpy()[x[:, None], both].astype(np.float32)

    return Completions(
        prompt_index=x,
        prompt_ids=[np.array([row], dtype=np.int32) for row in x],
        completion_ids=[[np.array([a], dtype=np.int32) for a in pair] for pair in both],
        terminated=np.ones(both.shape, dtype=bool),
        rewards=columns(PHI @ W),
        policy_logprobs=columns(log_policy(theta_k)),
        reference_logprobs=columns(log_policy(THETA_0)),
        label_uniform=np.array([row[3] for row in rows]),
    )


def one_round(theta_k, objective, gamma=GAMMA, reward_scale=1.0, **data):
    """pi_{k+1}'s parameters: the minimizer of the objective over all pairs."""
    pairs = select_pairs(completions_of(theta_k, **data), "first_two")
    targets = make_targets(pairs, objective, gamma, reward_scale)
    x = torch.tensor([int(ids[0]) for ids in pairs.prompt_ids])
    a, b = (torch.tensor([int(i[0]) for i in ids]) for ids in (pairs.first_ids, pairs.second_ids))
    target, reference, weight = (
        torch.from_numpy(column).double()
        for column in (targets.target, targets.reference_logprobs, targets.weight)
    )
    theta = theta_k.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=200,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        logs = log_policy(theta)
        logprobs = torch.stack([logs[x, a], logs[x, b]], dim=1)
        losses, _ = pair_losses(objective.name, logprobs, reference, target, weight, targets.gamma)
        loss = losses.mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert theta.grad.abs().max() < 1e-7, "not at the optimum"
    return theta.detach()


def rounds(objective, count, gammas=None):
    """theta_1 - theta_0, ..., theta_K - theta_0."""
    theta, path = THETA_0, []
    for k in range(count):
        theta = one_round(theta, objective, gammas[k] if gammas else GAMMA)
        path.append(theta - THETA_0)
    return path


def assert_same(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def rebel(reference="previous"):
    return REBEL(name="rebel", gamma=GAMMA, reference=reference)


def rdrc(ratio):
    """Calibration gamma_c = ratio * gamma."""
    return RDRC(name="rdrc", gamma=GAMMA, reference="previous", gamma_c=ratio * GAMMA)


def test_rebel_compounds():
    for k, shift in enumerate(rounds(rebel(), 4), start=1):
        assert_same(shift, k * THETA_R)


def test_rebel_compounds_by_each_rounds_own_gamma():
    path = rounds(rebel(), 3, gammas=[0.5, 1.0, 0.25])
    for shift, worth in zip(path, (1 / 0.5, 3.0, 7.0), strict=True):  # 2, 2 + 1, 2 + 1 + 4
        assert_same(shift, worth * W)


def test_rebel_against_the_initial_policy_does_not_compound():
    for shift in rounds(rebel("initial"), 3):
        assert_same(shift, THETA_R)


def test_rdrc_with_full_calibration_lands_in_one_round_and_stays():
    for shift in rounds(rdrc(1.0), 3):
        assert_same(shift, THETA_R)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.5, 1.9, 2.5])
def test_rdrc_recursion(ratio):
    """theta_{k+1} = (1 - gamma_c/gamma) theta_k + theta_r, theta counted from theta_0."""
    expected = torch.zeros(FEATURES, dtype=torch.float64)
    for shift in rounds(rdrc(ratio), 5):
        expected = (1 - ratio) * expected + THETA_R
        assert_same(shift, expected)


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 22), (1.5, 22), (0.25, 55), (1.75, 55)])
def test_rdrc_converges_for_gamma_c_below_twice_gamma(ratio, count):
    path = rounds(rdrc(ratio), count)
    assert_same(path[-1], THETA_R / ratio)
    assert (path[0] - THETA_R / ratio).norm() > 0.1  # it was not there from the start


def test_rdrc_diverges_for_gamma_c_above_twice_gamma():
    distance = [(shift - THETA_R / 2.5).norm() for shift in rounds(rdrc(2.5), 4)]
    assert all(later > 1.4 * earlier for earlier, later in itertools.pairwise(distance))


def test_rdrc_without_calibration_is_rebel():
    for plain, calibrated in zip(rounds(rebel(), 3), rounds(rdrc(0.0), 3), strict=True):
        assert torch.equal(plain, calibrated)


def test_pdfr_lands_where_rebel_against_the_initial_policy_does():
    pdfr = PDFR(name="pdfr", gamma=GAMMA, reference="initial", beta=1.0)
    for soft, regressed in zip(rounds(pdfr, 3), rounds(rebel("initial"), 3), strict=True):
        assert_same(soft, regressed)
        assert_same(soft, THETA_R)


def test_pdfrs_beta_multiplies_the_reward():
    pdfr = PDFR(name="pdfr", gamma=GAMMA, reference="initial", beta=2.0)
    assert_same(rounds(pdfr, 2)[-1], 2 * THETA_R)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_dpo_with_labels_at_their_frequencies_estimates_pdfr(beta):
    """Labels drawn at the uniforms 1/2N, 3/2N, ...: their frequencies are exact to 1/N."""
    settings = {"name": "dpo", "gamma": GAMMA, "labels": "sampled", "beta": beta}
    uniforms = (np.arange(200) + 0.5) / 200
    previous = DPO(**settings, reference="previous")
    theta_1 = one_round(THETA_0, DPO(**settings, reference="initial"), uniforms=uniforms)
    theta_2 = one_round(theta_1, previous, uniforms=uniforms)
    assert_same(theta_1 - THETA_0, beta * THETA_R, tolerance=0.01)
    assert_same(theta_2 - THETA_0, 2 * beta * THETA_R, tolerance=0.02)


def test_gamma_and_reward_scale_only_matter_as_a_product():
    shift = one_round(THETA_0, rebel(), gamma=0.25, reward_scale=2.0) - THETA_0
    assert_same(shift, THETA_R)
