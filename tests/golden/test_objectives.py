"""Losses, targets and references against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from reprise.alignment.config import DPO, PDFR, RDRC, REBEL
from reprise.alignment.objectives import implicit_reward_difference, loss_function, pair_losses
from reprise.alignment.pairs import make_targets
from reprise.rollout.types import Pairs

pytestmark = pytest.mark.portable

NAMES = ["dpo", "pdfr", "rebel", "rdrc"]


def make_pairs(rewards, policy=None, reference=None, uniform=None, weight=None):
    """Pairs of one-token completions with the given columns."""
    rewards = np.array(rewards, dtype=np.float32)
    count = len(rewards)
    zeros = np.zeros((count, 2))
    return Pairs(
        prompt_index=np.arange(count),
        prompt_ids=[np.array([2], dtype=np.int32)] * count,
        first_ids=[np.array([3], dtype=np.int32)] * count,
        second_ids=[np.array([4], dtype=np.int32)] * count,
        terminated=np.zeros((count, 2), dtype=bool),
        rewards=rewards,
        policy_logprobs=np.array(zeros if policy is None else policy, dtype=np.float32),
        reference_logprobs=np.array(zeros if reference is None else reference, dtype=np.float32),
        label_uniform=np.array(np.full(count, 0.5) if uniform is None else uniform),
        weight=np.ones(count, dtype=np.float32)
        if weight is None
        else np.array(weight, dtype=np.float32),
    )


def dpo(**changes):
    settings = {"gamma": 1.0, "reference": "initial", "labels": "ranked", **changes}
    return DPO(name="dpo", **settings)


# ln pi: (-3, -5); ln pi': (-4, -4.5). Log ratios: (1, -0.5). gamma = 1/2: y = (1 + 0.5)/2 = 0.75.
LOGPROBS = torch.tensor([[-3.0, -5.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[-4.0, -4.5]], dtype=torch.float64)
GAMMA, Y = 0.5, 0.75
SIGMOID_Y = 0.679178699175393  # 1 / (1 + exp(-0.75))


def loss_and_gradient(objective, target, weight=1.0):
    logprobs = LOGPROBS.clone().requires_grad_()
    columns = (torch.tensor([v], dtype=torch.float64) for v in (target, weight))
    losses, watched = pair_losses(objective, logprobs, REFERENCE, *columns, GAMMA)
    losses.sum().backward()
    return losses.item(), logprobs.grad[0].tolist(), watched


def test_the_implicit_reward_difference():
    assert implicit_reward_difference(LOGPROBS, REFERENCE, GAMMA).item() == Y
    swapped = implicit_reward_difference(LOGPROBS.flip(1), REFERENCE.flip(1), GAMMA)
    assert swapped.item() == -Y


@pytest.mark.parametrize(
    ("objective", "target", "loss"),
    [
        ("dpo", 1.0, 0.38687101),  # ln(1 + exp(-0.75)), the first won
        ("dpo", 0.0, 1.13687101),  # ln(1 + exp(+0.75)), the second did
        ("pdfr", 0.3, 0.91187101),  # 0.3 * 0.38687101 + 0.7 * 1.13687101
        ("rebel", 2.0, 1.5625),  # (0.75 - 2)^2
        ("rebel", -2.0, 7.5625),  # (0.75 + 2)^2
        ("rdrc", -0.25, 1.0),  # (0.75 + 0.25)^2
    ],
)
def test_each_loss(objective, target, loss):
    assert loss_and_gradient(objective, target)[0] == pytest.approx(loss, abs=1e-8)


@pytest.mark.parametrize(
    ("objective", "target", "slope"),
    [
        ("dpo", 1.0, SIGMOID_Y - 1.0),
        ("dpo", 0.0, SIGMOID_Y),
        ("pdfr", 0.3, SIGMOID_Y - 0.3),
        ("rebel", 2.0, 2 * (Y - 2.0)),
        ("rdrc", -0.25, 2 * (Y + 0.25)),
    ],
)
def test_each_gradient_is_gamma_times_the_slope_in_y(objective, target, slope):
    _, gradient, _ = loss_and_gradient(objective, target)
    assert gradient == pytest.approx([GAMMA * slope, -GAMMA * slope], abs=1e-12)


def test_soft_labels_minimize_equation_10_and_not_equation_11():
    """Eq. 10 is KL(Bern(z) || Bern(sigmoid y)); Eq. 11 prints the arguments the other way round."""

    def kl(p, q):
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    z = 0.9
    entropy = -z * math.log(z) - (1 - z) * math.log(1 - z)
    loss = loss_and_gradient("pdfr", z)[0]
    assert loss - entropy == pytest.approx(kl(z, SIGMOID_Y), abs=1e-9)
    assert abs(loss - entropy - kl(SIGMOID_Y, z)) > 0.03


@pytest.mark.parametrize("objective", NAMES)
def test_weight_zero_takes_a_pair_out_of_loss_and_gradient(objective):
    loss, gradient, _ = loss_and_gradient(objective, 1.0, weight=0.0)
    assert loss == 0 and gradient == [0, 0]


@pytest.mark.parametrize("objective", NAMES)
def test_weights_scale_each_pair_on_its_own(objective):
    y = torch.tensor([0.75, -1.0, 3.0])
    target, weight = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([1.0, 0.0, 2.0])
    logprobs = torch.stack([y, torch.zeros(3)], dim=1)
    losses, _ = pair_losses(objective, logprobs, torch.zeros(3, 2), target, weight, 1.0)
    torch.testing.assert_close(losses, weight * loss_function(objective)(y, target))
    assert losses.shape == (3,) and losses[1] == 0


@pytest.mark.parametrize("objective", ["dpo", "pdfr"])
def test_the_sigmoid_loss_survives_large_differences(objective):
    logprobs = torch.tensor([[400.0, 0.0], [-400.0, 0.0]])
    ones = torch.ones(2)
    losses, _ = pair_losses(objective, logprobs, torch.zeros(2, 2), ones, ones, 1.0)
    assert losses.tolist() == [0.0, 400.0]


def test_what_is_watched():
    y = torch.tensor([2.0, -2.0, 2.0, -2.0])
    logprobs, zeros = torch.stack([y, torch.zeros(4)], dim=1), torch.zeros(4, 2)
    agreement = {}
    for objective, target in (("dpo", [0.9, 0.9, 0.1, 0.1]), ("rebel", [0.4, 0.4, -1.0, -1.0])):
        _, watched = pair_losses(
            objective, logprobs, zeros, torch.tensor(target), torch.ones(4), 0.5
        )
        agreement[objective] = watched["agreement"].tolist()
        assert watched["implicit_reward_difference"].tolist() == [1.0, -1.0, 1.0, -1.0]
    assert agreement["dpo"] == [1, 0, 0, 1]
    assert agreement["rebel"] == [1, 0, 0, 1]


def test_a_pair_without_weight_neither_agrees_nor_disagrees():
    logprobs, weight = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([1.0, 0.0])
    _, watched = pair_losses("dpo", logprobs, torch.zeros(2, 2), torch.ones(2), weight, 1.0)
    assert watched["agreement"].nanmean() == 1
    assert watched["agreement"].isnan().tolist() == [False, True]


# -- targets -------------------------------------------------------------------------------------


def test_ranked_labels():
    targets = make_targets(make_pairs([[2, 1], [1, 2], [-3, -2.5], [1e4, -1e4]]), dpo(), 0.7)
    assert targets.target.tolist() == [1, 0, 0, 1]
    assert targets.target.dtype == np.float32 and targets.gamma == 0.7


def test_sampled_labels_follow_the_stored_uniform():
    # r1 - r2 = ln 3: the first wins with probability 3/4; with beta = 2, 9/10.
    uniform = [0.0, 0.749, 0.751, 0.899, 0.901]
    pairs = make_pairs([[math.log(3), 0]] * 5, uniform=uniform)
    once = make_targets(pairs, dpo(labels="sampled"), 1.0).target
    assert once.tolist() == [1, 1, 0, 0, 0]
    sharper = make_targets(pairs, dpo(labels="sampled", beta=2.0), 1.0).target
    assert sharper.tolist() == [1, 1, 1, 1, 0]
    # Rewards measured in units of 1/2 are twice as large.
    scaled = make_targets(pairs, dpo(labels="sampled"), 1.0, reward_scale=0.5).target
    assert scaled.tolist() == sharper.tolist()


def test_sampled_labels_of_exchanged_pairs_are_as_likely():
    """A pair and its mirror image: P(first wins) are 3/4 and 1/4."""
    uniform = (np.arange(1000) + 0.5) / 1000
    for reward, share in ((math.log(3), 0.75), (-math.log(3), 0.25)):
        pairs = make_pairs([[reward, 0]] * 1000, uniform=uniform)
        assert make_targets(pairs, dpo(labels="sampled"), 1.0).target.mean() == pytest.approx(share)


def test_ranked_labels_do_not_look_at_the_uniform():
    pairs = make_pairs([[1, 0], [1, 0], [0, 1], [0, 1]], uniform=[0.0, 0.999, 0.0, 0.999])
    assert make_targets(pairs, dpo(), 1.0).target.tolist() == [1, 1, 0, 0]


def test_soft_labels_with_the_papers_beta_do_not_overflow():
    pdfr = PDFR(name="pdfr", gamma=1.0, reference="initial", beta=100.0)
    # beta (r1 - r2) = ln 3, -ln 3, 1e4, -1e4, 3e6 (overflow warnings would be errors here).
    third = math.log(3) / 100
    pairs = make_pairs([[third, 0], [0, third], [100, 0], [0, 100], [3e4, 0], [0, 0]])
    target = make_targets(pairs, pdfr, 1.0).target
    assert target.tolist() == pytest.approx([0.75, 0.25, 1.0, 0.0, 1.0, 0.5], abs=1e-6)
    assert np.isfinite(target).all() and ((target >= 0) & (target <= 1)).all()


def test_differences_of_rewards_are_rebels_targets():
    rebel = REBEL(name="rebel", gamma=1.0, reference="previous")
    pairs = make_pairs([[2.0, -1.5], [0.5, 3.0]])
    assert make_targets(pairs, rebel, 1.0).target.tolist() == [3.5, -2.5]
    assert make_targets(pairs, rebel, 1.0, reward_scale=2.0).target.tolist() == [1.75, -1.25]


def test_calibrated_targets():
    rdrc = RDRC(name="rdrc", gamma=1.0, reference="previous", gamma_c=0.5)
    # ln pi_k/pi_0 of the two: (-1 - -3, -2 - -1) = (2, -1); their difference 3.
    # z = (4 - 1) - 0.5 * 3 = 1.5; with rewards in units of 2, 1.5 - 1.5 = 0.
    pairs = make_pairs([[4.0, 1.0]], policy=[[-1.0, -2.0]], reference=[[-3.0, -1.0]])
    assert make_targets(pairs, rdrc, 1.0).target.tolist() == [1.5]
    assert make_targets(pairs, rdrc, 1.0, reward_scale=2.0).target.tolist() == [0.0]
    none = RDRC(name="rdrc", gamma=1.0, reference="previous", gamma_c=0.0)
    assert make_targets(pairs, none, 1.0).target.tolist() == [3.0]


@pytest.mark.parametrize(
    ("objective", "is_initial"),
    [
        (dpo(reference="initial"), True),
        (dpo(reference="previous"), False),
        (dpo(reference="previous", labels="sampled"), False),
        (PDFR(name="pdfr", gamma=1.0, reference="initial", beta=1.0), True),
        (REBEL(name="rebel", gamma=1.0, reference="previous"), False),
        (REBEL(name="rebel", gamma=1.0, reference="initial"), True),
        (RDRC(name="rdrc", gamma=1.0, reference="previous", gamma_c=1.0), False),
    ],
)
def test_the_reference_is_the_one_the_config_names(objective, is_initial):
    pairs = make_pairs([[1.0, 0.0]], policy=[[-1.0, -2.0]], reference=[[-3.0, -4.0]])
    reference = make_targets(pairs, objective, 1.0).reference_logprobs
    assert reference.tolist() == ([[-3.0, -4.0]] if is_initial else [[-1.0, -2.0]])


def test_weights_pass_through():
    pairs = make_pairs([[1, 0], [1, 1], [0, 1]], weight=[1, 0, 1])
    assert make_targets(pairs, dpo(), 1.0).weight.tolist() == [1, 0, 1]
