"""Diagnostics by hand."""

import math

import numpy as np
import pytest

from reprise.alignment.diagnostics import (
    completion_lengths,
    correlation,
    data_diagnostics,
    effective_sample_size,
    update_diagnostics,
)
from reprise.alignment.pairs import Targets, select_pairs
from reprise.rollout.types import Completions, Pairs


def completions():
    """Three prompts, two samples each; lengths (2, 4), (1, 1), (3, 1)."""
    ids = [[[5, 1], [6, 7, 8, 9]], [[4], [4]], [[5, 6, 1], [3]]]
    policy = np.array([[-2, -8], [-1, -1], [-5, -3]], dtype=np.float32)
    shift = np.array([[0.5, -0.5], [0.25, 0.25], [2.0, 0.0]], dtype=np.float32)
    return Completions(
        prompt_index=np.arange(3),
        prompt_ids=[np.array([2], dtype=np.int32)] * 3,
        completion_ids=[[np.array(i, dtype=np.int32) for i in row] for row in ids],
        terminated=np.array([[True, False], [False, False], [True, False]]),
        rewards=np.array([[3, 1], [2, 2], [0.5, 0.5]], dtype=np.float32),
        policy_logprobs=policy,
        reference_logprobs=policy - shift,
        label_uniform=np.full(3, 0.5),
    )


def test_what_the_data_says():
    data = completions()
    found = data_diagnostics(data, select_pairs(data, "first_two"))
    assert completion_lengths(data).tolist() == [[2, 4], [1, 1], [3, 1]]
    assert found["tie_rate"] == pytest.approx(2 / 3)
    assert found["identical_rate"] == pytest.approx(1 / 3)
    assert found["no_eos_rate"] == pytest.approx(4 / 6)
    assert found["length_mean"] == pytest.approx(12 / 6)
    assert found["reward_margin"] == pytest.approx((2 + 0 + 0) / 3)
    assert found["entropy"] == pytest.approx(20 / 6)
    assert found["entropy_per_token"] == pytest.approx(20 / 12)
    assert found["kl_to_initial"] == pytest.approx(2.5 / 6)
    # Lengths (2,4,1,1,3,1), rewards (3,1,2,2,.5,.5): deviations (0,2,-1,-1,1,-1) and
    # (1.5,-.5,.5,.5,-1,-1); covariance sum -2, squares 8 and 5.
    assert found["length_reward_correlation"] == pytest.approx(-2 / math.sqrt(8 * 5))
    # w = pi_0/pi_k = exp(-shift).
    weights = np.exp([-0.5, 0.5, -0.25, -0.25, -2.0, 0.0])
    expected = weights.sum() ** 2 / (6 * np.square(weights).sum())
    assert found["effective_sample_size"] == pytest.approx(expected)


def test_best_worst_pairs_do_not_change_what_the_completions_say():
    data = completions()
    found = [data_diagnostics(data, select_pairs(data, s)) for s in ("first_two", "best_worst")]
    for name in ("length_mean", "entropy", "kl_to_initial", "effective_sample_size"):
        assert found[0][name] == found[1][name]


def test_effective_sample_size():
    assert effective_sample_size(np.zeros(7)) == pytest.approx(1)
    assert effective_sample_size(np.array([0.0, -1e3])) == pytest.approx(1 / 2)
    # Weights 1 and 3: 16 / (2 * 10).
    assert effective_sample_size(np.log([1.0, 3.0])) == pytest.approx(0.8)
    # A common factor cancels, and does not overflow.
    assert effective_sample_size(np.log([1.0, 3.0]) + 5e3) == pytest.approx(0.8)


def test_correlation():
    assert correlation(np.array([1, 2, 3]), np.array([2, 4, 6])) == pytest.approx(1)
    assert correlation(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    # Deviations (-1, 0, 1) and (-1, 2, -1): orthogonal.
    assert correlation(np.array([1, 2, 3]), np.array([1, 4, 1])) == pytest.approx(0)
    assert math.isnan(correlation(np.array([1, 1]), np.array([1, 2])))
    assert math.isnan(correlation(np.array([]), np.array([])))


def pairs_of(policy, weight):
    count = len(policy)
    one = [np.array([3], dtype=np.int32)] * count
    return Pairs(
        prompt_index=np.arange(count),
        prompt_ids=one,
        first_ids=one,
        second_ids=one,
        terminated=np.zeros((count, 2), dtype=bool),
        rewards=np.zeros((count, 2), dtype=np.float32),
        policy_logprobs=np.array(policy, dtype=np.float32),
        reference_logprobs=np.zeros((count, 2), dtype=np.float32),
        label_uniform=np.full(count, 0.5),
        weight=np.array(weight, dtype=np.float32),
    )


def test_what_the_update_did():
    pairs = pairs_of([[-1, -2], [-3, -4], [-5, -5]], [1, 1, 0])
    logprobs = np.array([[-0.5, -2.5], [-3, -5], [-5, -4]])
    reference = np.array([[-1, -1], [-2, -4], [-5, -5]])
    # Log ratios (.5, -1.5), (-1, -1), (0, 1); y = 2 * (2, 0, -1) = (4, 0, -2).
    targets = Targets(np.array([3.0, -1.0, 0.0]), reference, pairs.weight, gamma=2.0)
    found = update_diagnostics(pairs, targets, logprobs, soft_labels=False)
    # ln pi_k - ln pi_{k+1} = (-.5, .5), (0, 1), (0, -1).
    assert found["kl_from_previous"] == pytest.approx(0)
    assert found["implicit_margin"] == pytest.approx((4 + 0 + 2) / 3)
    assert found["target_margin"] == pytest.approx((3 + 1 + 0) / 3)
    assert found["implicit_target_correlation"] == pytest.approx(1)  # of the two that count
    assert found["pairs_with_weight"] == 2
    assert "saturation" not in found


def test_the_divergence_of_a_step_is_seen_from_the_policy_that_drew_the_data():
    pairs = pairs_of([[-1, -2], [-3, -4]], [1, 1])
    targets = Targets(np.array([1.0, -1.0]), pairs.reference_logprobs, pairs.weight, gamma=1.0)
    lower = pairs.policy_logprobs - np.array([[1.0, 2.0], [0.0, 3.0]])
    assert update_diagnostics(pairs, targets, lower, False)["kl_from_previous"] == 1.5


def test_saturated_labels():
    pairs = pairs_of(np.zeros((5, 2)), np.ones(5))
    labels = np.array([0.995, 0.5, 0.005, 0.95, 1.0])
    targets = Targets(labels, pairs.reference_logprobs, pairs.weight, gamma=1.0)
    found = update_diagnostics(pairs, targets, np.zeros((5, 2)), soft_labels=True)
    assert found["saturation"] == pytest.approx(3 / 5)
    assert found["target_margin"] == pytest.approx((0.495 + 0 + 0.495 + 0.45 + 0.5) / 5)
